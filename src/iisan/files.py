"""Files that are either whole or absent: write aside, then rename; manifests go last."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from iisan.errors import IisanError

#: In a folder that one process writes at a time.
LOCK = ".lock"


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def locked(folder: Path, error: type[IisanError]) -> contextlib.AbstractContextManager[object]:
    """Take a folder's lock, to be released as a context manager; makes the folder if it is absent.

    Raises:
        IisanError: (of class ``error``) another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout:
        raise error(
            f"'{folder}' is being written by another process", "one writer", "wait for it to end"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with aside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: Path, kind: str, schema: int, error: type[IisanError], cure: str) -> dict[str, Any]:
    """Read the JSON manifest of an artefact and check that it is one of ours and not newer than we are.

    Args:
        path: the manifest file.
        kind: the value its ``kind`` field must have, such as ``"iisan-dataset"``.
        schema: the newest schema version understood here.
        error: the class to raise.
        cure: what to do when the artefact is absent or unreadable, as an instruction.

    Raises:
        IisanError: (of class ``error``) absent, not JSON, foreign, or written by a newer iisan.
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
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
