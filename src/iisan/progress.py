"""Progress bars on standard error, shown only in a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from iisan.machine import first_process

T = TypeVar("T")

#: Whether a bar is shown; a bar within another is not.
_shown = False


def hide_bars() -> None:
    """Show no bars from now on: a service has better things to write."""
    global _shown
    _shown = True


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from ``iterable`` and show a progress bar, which disappears at the end."""
    global _shown
    if _shown or not (sys.stderr.isatty() and first_process()):
        yield from iterable
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    _shown = True
    try:
        yield from rich_track(iterable, description=description, total=total, console=console, transient=True)
    finally:
        _shown = False
