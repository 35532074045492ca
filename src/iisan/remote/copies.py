"""The copy of what is at an address: downloaded where it differs, uploaded so that manifests come last."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from filelock import FileLock, Timeout

from iisan.ahead import ahead
from iisan.errors import RemoteError
from iisan.files import aside
from iisan.machine import first_process
from iisan.progress import track
from iisan.remote.address import Address, cache_folder, is_relative
from iisan.remote.system import explained, file_system, missing_bucket

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

#: Size and modification time (ns) of a file.
Facts: TypeAlias = tuple[int, int]

_THREADS = 16
#: Bytes that are read at once, and bytes above which a download is announced.
_BLOCK, _LARGE = 2**23, 2**26


class Copy:
    """The one copy of an address on this machine, a file or a folder.

    A copied file has the size and the modification time of its object: one that differs is out of date, or was
    changed here. While a command writes into the copy, a journal outside of it has a line for every object, so
    that what others write there in the meantime is noticed: name, size and time, as found at the beginning or
    uploaded since; null instead of these where an upload was begun; the name alone where the object was deleted.

    Attributes:
        folder: Path of the copy.
        journal: Path of the journal, which is there while a command writes, or after it was interrupted.
    """

    def __init__(self, address: Address) -> None:
        self._address, self.folder = address, address.copy
        with explained(address):
            self._system = file_system(address.scheme)
        name = hashlib.sha256(str(address).encode()).hexdigest()[:32]
        self._state = cache_folder() / ".state" / name
        self._state.parent.mkdir(parents=True, exist_ok=True)
        self.journal = self._state.with_suffix(".jsonl")

    def __str__(self) -> str:
        return str(self._address)

    def lock(self) -> FileLock:
        """Lock of downloads; others wait until the copy is there."""
        return FileLock(self._state.with_suffix(".lock"))

    def writer_lock(self) -> contextlib.AbstractContextManager[object]:
        """Lock of the one process that writes, held until the returned context exits.

        Raises:
            RemoteError: Another process holds it.
        """
        try:
            return FileLock(self._state.with_suffix(".writing"), timeout=0).acquire()
        except Timeout:
            got = f"'{self}' is being written by another process"
            raise RemoteError(got, "one writer", "wait for it to end") from None

    def is_pending(self) -> bool:
        """Whether the copy has changes that were not uploaded."""
        return self.journal.exists() and self.folder.exists() and self._copied() != self._recorded()

    def begin(self) -> None:
        """Bring the copy up to date and begin a journal, unless an interrupted command left both."""
        if self.journal.exists() and self.folder.exists():
            return
        self.download()
        if first_process():
            lines = (json.dumps([name, *facts]) for name, facts in self._copied().items())
            with aside(self.journal) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def download(self) -> bool:
        """Fetch what differs, delete what is gone, and return whether there is anything at the address."""
        theirs, ours = self._listed(), self._copied()
        wanted = [name for name, facts in theirs.items() if ours.get(name) != facts]
        total = sum(theirs[name][0] for name in wanted)
        if total > _LARGE:
            print(f"fetching {len(wanted):,} files, {total / 1e9:.2f} GB, from {self}", file=sys.stderr)
        cache_folder().mkdir(parents=True, exist_ok=True)
        if total > (free := shutil.disk_usage(cache_folder()).free):
            got = f"'{self}' has {total / 1e9:.2f} GB to fetch, and '{cache_folder()}' {free / 1e9:.2f} GB free"
            raise RemoteError(got, "enough space", "free some, or set IISAN_CACHE to another disk")
        if theirs and not self.folder.exists():
            # The user deleted the copy, and what it had not uploaded.
            self.journal.unlink(missing_ok=True)
        if not self.journal.exists():  # No command is writing here.
            for leftover in self.folder.rglob(".*.part"):
                leftover.unlink()
        for name in ours.keys() - theirs.keys():
            self._path(name).unlink()
        self._in_threads(lambda name: self._fetch(name, theirs[name]), wanted, "fetching")
        return bool(theirs)

    def upload(self, bar: bool = True) -> None:
        """Upload what differs: manifests after the files that they name, and none beside files of another one.

        Raises:
            RemoteError: The address cannot be written, or somebody else did.
        """
        with contextlib.ExitStack() as opened:
            # Opened before the other files are listed, which are all there by then; replacing one changes nothing.
            manifests = {
                name: opened.enter_context(self._path(name).open("rb"))
                for name in filter(_is_manifest, self._copied())
            }
            ours, theirs = self._copied(), self._listed()
            self._check_unchanged(theirs)
            data = [name for name, facts in ours.items() if not _is_manifest(name) and facts != theirs.get(name)]
            changed = [name for name, file in manifests.items() if _facts(file) != theirs.get(name)]
            gone = theirs.keys() - ours.keys()
            withdrawn = set(filter(_is_manifest, gone))
            if not theirs.keys().isdisjoint(data):
                withdrawn |= theirs.keys() & changed
            self._in_threads(self._delete, withdrawn, "uploading", bar)
            self._in_threads(self._send, data, "uploading", bar)
            for name in sorted(changed, key=lambda name: _facts(manifests[name])[1]):
                self._send_open(name, manifests[name])
            self._in_threads(self._delete, gone - withdrawn, "uploading", bar)

    def _check_unchanged(self, theirs: dict[str, Facts]) -> None:
        recorded = self._recorded()
        for name, facts in theirs.items():
            if name not in recorded or recorded[name] not in (None, facts):
                got = f"'{self._address.scheme}://{self._key(name)}' was written elsewhere in the meantime"
                cure = f"delete '{self.folder}' and run the command again, which begins with what is there now"
                raise RemoteError(got, "one writer at a time", cure)

    def _listed(self) -> dict[str, Facts]:
        """Size and time of every object by its name below the address, which is empty for the address itself."""
        from pyarrow.fs import FileSelector, FileType

        path = self._address.path
        with explained(self._address):
            if self._address.key:
                found = self._system.get_file_info(path)
                if found.type == FileType.File:
                    return {"": _object_facts(found)}
                if found.type == FileType.NotFound:
                    if self._system.get_file_info(self._address.bucket).type == FileType.NotFound:
                        raise missing_bucket(self._address)
                    return {}
            below = self._system.get_file_info(FileSelector(path, recursive=True))
        listed = {each.path.removeprefix(f"{path}/"): each for each in below if each.type == FileType.File}
        for name in listed:
            if not is_relative(name):
                got = f"the key '{name}' at '{self}'"
                raise RemoteError(got, "plain names between single slashes", "rename or remove that object")
        return {name: _object_facts(each) for name, each in listed.items() if not _is_hidden(name)}

    def _copied(self) -> dict[str, Facts]:
        """Size and time of every file of the copy, by its name as in ``_listed``."""
        if self.folder.is_file():
            return {"": _facts(self.folder)}
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            # Those of a running command may vanish.
            with contextlib.suppress(FileNotFoundError):
                if not _is_hidden(name) and path.is_file():
                    found[name] = _facts(path)
        return found

    def _recorded(self) -> dict[str, Facts | None]:
        """What the journal says of the objects that there are; None where an upload was begun."""
        recorded: dict[str, Facts | None] = {}
        for line in self.journal.read_text(encoding="utf-8").splitlines():
            # The last line of a killed process may be cut short.
            with contextlib.suppress(ValueError):
                name, *facts = json.loads(line)
                recorded[name] = (facts[0], facts[1]) if len(facts) == 2 else None
                if not facts:
                    del recorded[name]
        return recorded

    def _record(self, *entry: str | int | None) -> None:
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")

    def _key(self, name: str) -> str:
        return f"{self._address.path}/{name}".rstrip("/")

    def _path(self, name: str) -> Path:
        return self.folder / name if name else self.folder

    def _in_threads(
        self, action: Callable[[str], object], names: Collection[str], description: str, bar: bool = True
    ) -> None:
        with contextlib.closing(ahead(action, names, _THREADS)) as done:
            for _ in track(done, description, len(names)) if bar else done:
                pass

    def _fetch(self, name: str, facts: Facts) -> None:
        with aside(self._path(name)) as temporary:
            with (
                explained(self._address),
                self._system.open_input_stream(self._key(name)) as stream,
                temporary.open("wb") as file,
            ):
                shutil.copyfileobj(stream, file, _BLOCK)
            if temporary.stat().st_size != facts[0]:
                got = f"'{self._key(name)}' changed while it was read"
                raise RemoteError(got, "objects that stay", "run the command again")
            os.utime(temporary, ns=(facts[1], facts[1]))

    def _send(self, name: str) -> None:
        # Gone again: a file of a running command.
        with contextlib.suppress(FileNotFoundError), self._path(name).open("rb") as file:
            self._send_open(name, file)

    def _send_open(self, name: str, file: IO[bytes]) -> None:
        self._record(name, None)
        with explained(self._address):
            with self._system.open_output_stream(self._key(name)) as stream:
                shutil.copyfileobj(file, stream, _BLOCK)
            size, time = _object_facts(self._system.get_file_info(self._key(name)))
        # Of the open file, not of one that has replaced it in the meantime.
        os.utime(file.fileno(), ns=(time, time))
        self._record(name, size, time)

    def _delete(self, name: str) -> None:
        with explained(self._address):
            self._system.delete_file(self._key(name))
        self._record(name)


def _is_manifest(name: str) -> bool:
    return name.endswith(".json")


def _is_hidden(name: str) -> bool:
    """Whether a name is that of a lock, or of a file that is being written."""
    return name.startswith(".") or "/." in name


def _object_facts(info: "FileInfo") -> Facts:
    # In whole seconds, because some stores list fractions of them, but do not tell them of single objects.
    return info.size, info.mtime_ns // 10**9 * 10**9


def _facts(file: IO[bytes] | Path) -> Facts:
    found = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns
