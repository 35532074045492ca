"""Atomic writing (a temporary file, then a rename), manifests and hashes."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iisan.errors import ConfigError, IisanError

#: Lock file of a folder that one process writes at a time.
LOCK = ".lock"
#: Endings of files of tables -> the formats that polars reads and writes.
FRAMES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "ndjson", ".ndjson": "ndjson"}


def check_ending(out: Path | None, endings: Iterable[str]) -> None:
    """Raise a ``ConfigError`` if the ending of an output file is not supported, before anything is computed."""
    if out is not None and out.suffix.lower() not in endings:
        known = ", ".join(endings)
        raise ConfigError(f"--out '{out}' has the ending '{out.suffix}'", f"one of {known}", "choose one of these")


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the context exits without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        settle(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Write a file through to the disk, and let all users read it; some libraries make files private."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.chmod(0o644)


def locked(folder: Path, error: type[IisanError], wait: bool = False) -> contextlib.AbstractContextManager[object]:
    """Lock a folder, created if absent, until the returned context exits.

    If it is locked already, wait or raise ``error``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / LOCK, timeout=-1 if wait else 0).acquire()
    except Timeout:
        got = f"'{folder}' is being written by another process"
        raise error(got, "one writer", "wait for it to end") from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    with aside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: Path, kind: str, schema: int, error: type[IisanError], cure: str) -> dict[str, Any]:
    """Read the JSON manifest of an artefact and check its kind and schema version.

    Args:
        path: Path of the manifest.
        kind: Required value of its field ``kind``, such as ``"iisan-dataset"``.
        schema: Newest supported schema version.
        error: Class of the raised error.
        cure: Instruction for a manifest that is missing, unreadable or of another kind.

    Raises:
        IisanError: (of class ``error``) The manifest is missing, not JSON, of another kind, or of a newer schema.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = path if path.parent.is_dir() else path.parent
        raise error(f"'{missing}' does not exist", f"an {kind} folder whose writing was finished", cure) from None
    except (json.JSONDecodeError, UnicodeDecodeError, NotADirectoryError):
        raise error(f"'{path}' is not a readable manifest", f"the JSON of an {kind}", cure) from None
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        raise error(f"'{path}' was not written as an {kind}", f'a manifest with "kind": "{kind}"', cure)
    if not isinstance(manifest.get("schema"), int) or manifest["schema"] > schema:
        raise error(
            f"'{path}' has schema {manifest.get('schema')!r}",
            f"schema {schema} or older",
            "upgrade iisan, or make the artefact again with this version",
        )
    return manifest


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_key(content: str | bytes) -> str:
    """Hexadecimal SHA-256 of a content: a text's UTF-8 bytes, or a media file's bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def relocated(path: Path, written_in: str | None, folder: Path) -> Path:
    """Return a path recorded in an artefact or, if it no longer exists, its counterpart moved with the artefact.

    Args:
        path: The recorded, absolute path.
        written_in: The artefact's absolute folder when it was written; None if unknown.
        folder: The artefact's folder now.
    """
    if written_in is None or path.exists():
        return path
    moved = (folder / os.path.relpath(path, written_in)).resolve()
    return moved if moved.exists() else path


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, hexadecimal and independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
