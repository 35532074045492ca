"""What the commands share: the application, their options, and how they speak."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from iisan.errors import ConfigError
from iisan.files import aside

if TYPE_CHECKING:
    from polars import DataFrame


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run a command; who stops it is told that nothing is lost, which typer would keep to itself."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="iisan",
    cls=_Commands,
    help="Content-aware next-item recommendation from frozen text and image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
]
DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="What `iisan prepare` wrote.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="What `iisan train` wrote.")]
DatasetOption = Annotated[Path | None, typer.Option("--dataset", help="Dataset folder; a run's own if it moved.")]
StatesOption = Annotated[
    Path | None, typer.Option("--states", help="Folder of state stores; a run's own if it moved.")
]
ImagesOption = Annotated[Path | None, typer.Option("--images", help="Folder of the dataset's media if it moved.")]
PolicyOption = Annotated[
    Literal["unseen", "all", "exclude-all"] | None,
    typer.Option(help="Items that compete with a target. Defaults to the run's own policy."),
]


def say_to(as_json: bool) -> Callable[[str], None]:
    """Lines for a person: on standard output, or on standard error when that is for a machine."""
    return lambda line: print(line, file=sys.stderr if as_json else sys.stdout, flush=True)


#: Endings of files of tables -> the method of a frame that writes them.
FRAMES = {".parquet": "write_parquet", ".csv": "write_csv", ".jsonl": "write_ndjson", ".ndjson": "write_ndjson"}


def check_ending(out: Path | None, endings: Iterable[str]) -> None:
    """Make sure, before anything is computed, that the ending of a file says one of the formats there are.

    Raises:
        ConfigError: it says another one, or none.
    """
    if out is not None and out.suffix.lower() not in endings:
        known = ", ".join(endings)
        raise ConfigError(f"--out '{out}' has the ending '{out.suffix}'", f"one of {known}", "choose one of these")


def write_frame(frame: "DataFrame", out: Path) -> None:
    """Write a table in the format that the ending of its file says, see ``FRAMES``."""
    with aside(out) as temporary:
        getattr(frame, FRAMES[out.suffix.lower()])(temporary)


def given(**folders: Path | None) -> dict[str, Path | None]:
    """The folders that are named on the command line, as settings of a configuration.

    Media that an earlier dataset had elsewhere are not those of another dataset.
    """
    found: dict[str, Path | None] = {name: path.resolve() for name, path in folders.items() if path is not None}
    return {"images": None, **found} if "dataset" in found else found


def pairs_of(given: Iterable[str] | None, form: str) -> dict[str, str]:
    """``["a=b"]`` -> ``{"a": "b"}``, for repeatable options of the form COLUMN=SOMETHING."""
    pairs = {}
    for each in given or ():
        name, separator, value = each.partition("=")
        if not (name and separator and value):
            raise ConfigError(f"'{each}' is not {form}", form, "write both, with a '=' between them")
        pairs[name] = value
    return pairs
