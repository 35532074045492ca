"""What the fixtures of all sources have in common: one log, titles, and functions that write files."""

import gzip
import io
import json
from pathlib import Path

from conftest import WORDS

TITLES = {f"{n}": f"{WORDS[n]} {WORDS[n + 1]} {WORDS[n + 2]}" for n in range(8)}
#: User, item and hour, newest first: in no file of a fixture are users in order of time.
LOG = [(f"u{user}", f"{(user + 3 * step) % 8}", step) for step in (4, 3, 2, 1, 0) for user in range(6)]
NOON = 1_500_000_000


def text(path: Path, content: str | bytes) -> None:
    """Write a file, its folders too; compressed where its name ends in .gz."""
    data = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def rows(path: Path, records: list[dict]) -> None:
    text(path, "".join(json.dumps(record) + "\n" for record in records))


def picture(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    shade = int(path.stem[-1]) * 9 % 255
    Image.new("RGB", (16, 16), (shade, 40, 90)).save(buffer := io.BytesIO(), "JPEG")
    path.write_bytes(buffer.getvalue())
