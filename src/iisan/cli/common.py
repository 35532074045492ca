"""The application, and the options and output functions that its commands share."""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

from iisan.errors import ConfigError
from iisan.files import FRAMES, aside
from iisan.remote.address import Address, is_address
from iisan.remote.opening import local, output

if TYPE_CHECKING:
    from polars import DataFrame

    from iisan.scale.cluster import Cluster


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run a command; after an interruption, say that it can be resumed."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped; the same command resumes from here", file=sys.stderr)
            raise typer.Exit(130) from None


Command = TypeVar("Command", bound=Callable[..., Any])

#: Copies of the addresses of the command line -> the addresses.
_addresses: dict[Path, str] = {}


def shown(text: str) -> str:
    """Replace copies in a text by the addresses that were typed."""
    for copy, address in _addresses.items():
        # Not in a longer name that begins like it.
        text = re.sub(re.escape(str(copy)) + r"(?![\w.-])", address, text)
    return text


class _Shown:
    """A stream that prints what :func:`shown` returns."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(shown(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _opened(value: Any, written: contextlib.ExitStack | None) -> Any:
    """Replace addresses in an argument by their copies; those that are written are uploaded at the end."""
    if isinstance(value, list | tuple):
        return [_opened(each, written) for each in value]
    # A path has lost the second slash.
    typed = re.sub(r"^([A-Za-z][\w+.-]+):/", r"\1://", value.as_posix()) if isinstance(value, Path) else None
    if typed is None or not is_address(typed):
        return value
    _addresses[Address.parse(typed).copy] = typed
    return local(typed) if written is None else written.enter_context(output(typed))


class _Application(typer.Typer):
    """Commands whose paths may be addresses in object stores."""

    def command(
        self, name: str | None = None, *, writes: Sequence[str] = ("out",), **options: Any
    ) -> Callable[[Command], Command]:
        """Register a command; the paths in its arguments ``writes`` are written to, all others are read."""
        register = super().command(name, **options)

        def decorate(command: Command) -> Command:
            @functools.wraps(command)
            def run(**given: Any) -> Any:
                with contextlib.ExitStack() as stack:
                    # What is read comes first: what is wrong with it is said before anything is written.
                    for name in sorted(given, key=lambda each: each in writes):
                        given[name] = _opened(given[name], stack if name in writes else None)
                    if _addresses:
                        stack.enter_context(contextlib.redirect_stdout(_Shown(sys.stdout)))
                        stack.enter_context(contextlib.redirect_stderr(_Shown(sys.stderr)))
                    try:
                        return command(**given)
                    except typer.Exit as stop:
                        # A command that ends with an exit code has written what it could.
                        ended = stop
                raise ended

            register(run)
            return command

        return decorate


app = _Application(
    name="iisan",
    cls=_Commands,
    help="Content-aware next-item recommendation from frozen text and image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[Path, typer.Option("--out", help="Output folder.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
]
DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder written by `iisan prepare`.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `iisan train`.")]
DatasetOption = Annotated[
    Path | None, typer.Option("--dataset", help="Dataset folder, if the run's own has moved.")
]
StatesOption = Annotated[
    Path | None, typer.Option("--states", help="Folder of state stores, if the run's own has moved.")
]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Folder of the dataset's media files, if it has moved.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="local|auto|HOST:PORT",
        help="Ray cluster to compute on: started on this machine, running on it, or elsewhere (extra 'ray').",
    ),
]
PolicyOption = Annotated[
    Literal["unseen", "all", "exclude-all"] | None,
    typer.Option(help="Items that compete with a target. Defaults to the run's own policy."),
]
SharesOption = Annotated[
    str | None,
    typer.Option(
        metavar="TRAIN,VALIDATION,TEST",
        help="Shares of the splits temporal, ratio and users, such as 0.8,0.1,0.1; they sum to 1.",
    ),
]


def check_shares(shares: str | None, split: str) -> None:
    """Refuse shares for a split that has none."""
    if shares is not None and split not in ("temporal", "ratio", "users"):
        cure = "name one by --split, or leave --shares out"
        raise ConfigError(f"--shares with the split {split}", "the split temporal, ratio or users", cure)


def say_to(as_json: bool) -> Callable[[str], None]:
    """Return a function that prints progress lines, to standard error if standard output is for JSON."""
    return lambda line: print(line, file=sys.stderr if as_json else sys.stdout, flush=True)


def cluster_at(
    address: str | None, say: Callable[[str], None]
) -> "contextlib.AbstractContextManager[Cluster | None]":
    """Connect to the cluster of ``--ray``; without that option, do nothing."""
    if address is None:
        return contextlib.nullcontext()
    from iisan.scale.cluster import connected

    return connected(address, say)


def write_frame(frame: "DataFrame", out: Path) -> None:
    """Write a table in the format of the file's ending, see ``FRAMES``."""
    with aside(out) as temporary:
        getattr(frame, f"write_{FRAMES[out.suffix.lower()]}")(temporary)


def given(**folders: Path | None) -> dict[str, Path | None]:
    """Return the folders given on the command line as settings; another dataset does not use a run's own media."""
    found: dict[str, Path | None] = {name: path.resolve() for name, path in folders.items() if path is not None}
    return {"images": None, **found} if "dataset" in found else found


def pairs_of(given: Iterable[str] | None, form: str) -> dict[str, str]:
    """Parse ``["a=b"]`` to ``{"a": "b"}``, for repeatable options such as COLUMN=KIND."""
    pairs = {}
    for each in given or ():
        name, separator, value = each.partition("=")
        if not (name and separator and value):
            raise ConfigError(f"'{each}' is not {form}", form, "write both, with a '=' between them")
        pairs[name] = value
    return pairs


def conditions_of(given: Iterable[str] | None) -> dict[str, list[str | bool]] | None:
    """Parse ``["color=red", "color=blue", "new"]`` to ``{"color": ["red", "blue"], "new": [True]}``."""
    conditions: dict[str, list[str | bool]] = {}
    for each in given or ():
        name, separator, value = each.partition("=")
        conditions.setdefault(name.strip(), []).append(value.strip() if separator else True)
    return conditions or None


def limits_of(given: Iterable[str] | None) -> dict[str, int] | None:
    """Parse ``["brand", "category=3"]`` to ``{"brand": 1, "category": 3}``."""
    limits = {}
    for each in given or ():
        name, separator, value = each.partition("=")
        try:
            limits[name.strip()] = int(value) if separator else 1
        except ValueError:
            expected = "COLUMN or COLUMN=N"
            raise ConfigError(f"--max-per '{each}'", expected, "write a whole number after the '='") from None
    return limits or None
