"""The application, and the options and output functions that its commands share."""

import contextlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from iisan.errors import ConfigError
from iisan.files import FRAMES, aside

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


app = typer.Typer(
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
