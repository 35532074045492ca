"""Places that a user names: paths stay as they are, addresses are replaced by their copies."""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from iisan.errors import IisanError, RemoteError
from iisan.machine import first_process
from iisan.remote.address import Address, is_address
from iisan.remote.copies import Copy

P = ParamSpec("P")
R = TypeVar("R")
#: Seconds between uploads of what a running command has finished.
_INTERVAL = 60.0


def local(place: str | Path) -> Path:
    """Return a path as it is, or the copy of what is at an address, brought up to date.

    Raises:
        RemoteError: There is nothing at the address, or it cannot be read, or a command of this machine has not
            finished its upload.
        MissingExtraError: pyarrow is not installed.
    """
    if not is_address(place):
        return Path(place)
    remote = Copy(Address.parse(str(place)))
    with remote.lock():
        if remote.is_pending():
            got = f"'{remote}' is being written from this machine, or that was interrupted"
            cure = f"run the command that writes it to its end, or delete '{remote.folder}'"
            raise RemoteError(got, "a finished upload", cure)
        if not remote.download():
            raise RemoteError(f"there is nothing at '{remote}'", "a file or folder", "check the address")
    return remote.folder


@contextlib.contextmanager
def output(place: str | Path) -> Iterator[Path]:
    """Yield a path to write to: the given one, or the copy of an address, which is uploaded.

    The copy is brought up to date before, unless an earlier command was interrupted before everything it wrote was
    uploaded; then the copy is as that left it. Finished files are uploaded every minute, and all at the end.

    Raises:
        RemoteError: The address cannot be read or written, another process of this machine is writing there, or
            another machine did in the meantime.
        MissingExtraError: pyarrow is not installed.
    """
    if not is_address(place):
        yield Path(place)
        return
    remote = Copy(Address.parse(str(place)))
    with remote.writer_lock() if first_process() else contextlib.nullcontext():
        with remote.lock():
            remote.begin()
        if not first_process():
            yield remote.folder
            return
        try:
            with _regularly(functools.partial(remote.upload, bar=False)):
                yield remote.folder
            remote.upload()
        finally:
            if not remote.is_pending():
                remote.journal.unlink(missing_ok=True)


def addressed(*inputs: str, out: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of functions whose arguments may be addresses.

    Args:
        inputs: Names of arguments that are read: :func:`local` is applied to them.
        out: Name of the argument that is written to: :func:`output` is.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound: Any = signature.bind(*args, **kwargs)
            given = {name for name, value in bound.arguments.items() if is_address(value)}
            bound.arguments.update({name: local(bound.arguments[name]) for name in inputs if name in given})
            with output(bound.arguments[out]) if out in given else contextlib.nullcontext() as place:
                if place is not None:
                    bound.arguments[out] = place
                return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def with_copies(settings: Iterable[tuple[str, Any]], folders: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Apply :func:`local` to addresses among the settings of some names; only for settings that a user wrote."""
    for name, value in settings:
        yield name, str(local(value)) if name in folders and is_address(value) else value


@contextlib.contextmanager
def _regularly(action: Callable[[], object]) -> Iterator[None]:
    """Repeat an action in a thread; what fails is left to the next time, and to the end."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(_INTERVAL):
            with contextlib.suppress(IisanError, OSError):
                action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
