"""Commands for what a finished run serves: its items, the index that finds them, exports."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iisan.cli.common import DatasetOption, Json, Out, RunFolder, StatesOption, app, given, say_to
from iisan.printing import print_index, print_json

if TYPE_CHECKING:
    from iisan.serve.items import Change


@app.command("add-items", writes=("run", "states"))
def add_items(
    run: RunFolder,
    items: Annotated[
        Path,
        typer.Argument(metavar="ITEMS", help="Table of items as for `iisan prepare`, such as new.csv."),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the new items' images and other media; default: that of ITEMS.")
    ] = None,
    states: StatesOption = None,
    as_json: Json = False,
) -> None:
    """Add items to a finished run, or update those that it has, without training."""
    from iisan.serve.items import add_items as add

    _tell(add(run, items, images=images, moved=given(states=states), say=say_to(True)), as_json)


@app.command("remove-items", writes=("run",))
def remove_items(
    run: RunFolder,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Items of the run.")],
    as_json: Json = False,
) -> None:
    """Remove items from all lists of a run; in histories they still count."""
    from iisan.serve.items import remove_items as remove

    _tell(remove(run, ids), as_json)


@app.command(writes=("run",))
def index(
    run: RunFolder,
    kind: Annotated[
        Literal["auto", "exact", "ivf"],
        typer.Option(
            help="Search among all items (exact), in cells of FAISS (ivf), or the better one as measured."
        ),
    ] = "auto",
    recall: Annotated[float, typer.Option(help="Least recall@10 of a search in cells.")] = 0.95,
    dataset: DatasetOption = None,
    as_json: Json = False,
) -> None:
    """Measure the kinds of search on this machine, and store the index that recommendations use."""
    from iisan.runs.run import Run
    from iisan.serve.index import build_index

    trained = Run.load(run, with_additions=True)
    config = trained.config.model_copy(update=given(dataset=dataset))
    manifest = build_index(replace(trained, config=config), kind=kind, recall=recall, say=say_to(True))
    if as_json:
        print_json(manifest)
    else:
        print_index(manifest)


@app.command()
def export(
    run: RunFolder,
    out: Out,
    format: Annotated[
        Literal["vectors", "onnx", "hub"],
        typer.Option(help="Item vectors, these with the encoders as ONNX graphs, or a Hugging Face Hub folder."),
    ] = "vectors",
    states: StatesOption = None,
    as_json: Json = False,
) -> None:
    """Export a finished run for other programs, without users, histories or paths."""
    from iisan.api import Recommender

    manifest = Recommender.load(run).export(out, format, states=states, say=say_to(True))
    if as_json:
        print_json(manifest)
        return
    print(f"{manifest['items']:,} items in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _tell(change: "Change", as_json: bool) -> None:
    if as_json:
        print_json(asdict(change))
        return
    counts = {"added": change.added, "updated": change.updated, "removed": change.removed}
    print(", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to change")
    for name, share in (change.outside or {}).items():
        if share >= 0.01:
            print(
                f"{share:.0%} of the variance of the new {name} states is unknown to the anchor", file=sys.stderr
            )
