"""Commands from raw files to a dataset, and from a dataset to files of another format."""

from pathlib import Path
from typing import Annotated, Final, Literal

from typer import Argument, Context, Option

from iisan.cli.common import DatasetFolder, Json, Out, app, pairs_of
from iisan.names import IMAGE, TEXT
from iisan.printing import print_json, print_table

#: The formats, repeated here because the readers load heavy libraries; compared with them in a test.
FORMATS: Final = (
    "auto | table | reference | amazon-2018 | amazon-2023 | movielens | recbole | microlens | pixelrec | "
    "ninerec | hm | steam | goodreads | yelp | kuairand | otto | huggingface"
)


@app.command()
def prepare(
    context: Context,
    form: Annotated[str, Argument(metavar="FORMAT", help=FORMATS)],
    sources: Annotated[
        list[Path],
        Argument(metavar="SOURCE…", help="Folder of the files, or files: items, then interactions."),
    ],
    out: Out,
    validation: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Validation queries: user_id, history (space-separated item ids or a list), target.",
        ),
    ] = None,
    test: Annotated[
        Path | None,
        Option(metavar="FILE", help="Test queries of the same form. With both, no filter is on by default."),
    ] = None,
    held_out: Annotated[
        Path | None,
        Option(metavar="FILE", help="Users to hold out of training: user_id, subset (validation or test)."),
    ] = None,
    images: Annotated[
        Path | None, Option(help="Folder of images named <item_id>.jpg (png, webp, …), or root of image paths.")
    ] = None,
    item_id: Annotated[str | None, Option(help="Column of item ids.")] = None,
    user_id: Annotated[str | None, Option(help="Column of user ids.")] = None,
    text: Annotated[str | None, Option(help="Column of titles.")] = None,
    image: Annotated[
        str | None, Option(help="Column of image paths or bytes; 'none' if no column holds images.")
    ] = None,
    timestamp: Annotated[str | None, Option(help="Column of timestamps.")] = None,
    event: Annotated[str | None, Option(help="Column of the kinds of events.")] = None,
    weight: Annotated[str | None, Option(help="Column of weights or ratings.")] = None,
    events: Annotated[
        str | None, Option(metavar="NAME,…|all", help="Events that count; required where they differ.")
    ] = None,
    min_weight: Annotated[
        str | None,
        Option(
            metavar="NUMBER|all",
            help="Minimum weight of interactions that count; required where weights differ.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        Option(metavar="COLUMN=KIND", help="Further column of text, image, audio or video contents; repeatable."),
    ] = None,
    preset: Annotated[
        Literal["paper"] | None, Option(help="Filters of a publication, see the format's documentation.")
    ] = None,
    complete: Annotated[
        bool | None, Option("--complete", help="Keep only items with all contents, such as a text and an image.")
    ] = None,
    repeats: Annotated[
        Literal["keep", "drop-consecutive", "drop-all"] | None,
        Option(
            help="Repeated interactions of a user with an item: keep, or drop those in a row, or all later ones."
        ),
    ] = None,
    min_length: Annotated[int | None, Option(min=0, help="Minimum interactions per user.")] = None,
    k_core: Annotated[
        int | None, Option(min=0, help="Minimum interactions per user and item (iterated k-core).")
    ] = None,
    sample_users: Annotated[int | None, Option(min=0, help="Number of users to draw at random; 0 is all.")] = None,
    seed: Annotated[int | None, Option(min=0, help="Random seed of that draw.")] = None,
    keep_last: Annotated[
        int | None, Option(min=0, help="Number of latest interactions per user to keep; 0 is all.")
    ] = None,
    items: Annotated[
        Literal["all", "interacted"] | None, Option(help="Items to keep: all, or those with interactions.")
    ] = None,
    on_bad: Annotated[
        Literal["stop", "skip"], Option(help="Action on bad rows: stop, or skip and list them.")
    ] = "stop",
    check_images: Annotated[bool, Option(help="Decode every image, sound and clip, not only read it.")] = True,
    quotes: Annotated[bool | None, Option(help="Allow quoted fields (CSV: yes, TSV: no).")] = None,
    as_json: Json = False,
) -> None:
    """Convert raw files to a dataset folder."""
    from iisan.data.options import RULE_OPTIONS, PrepareOptions
    from iisan.data.prepare import parse_options
    from iisan.data.prepare import prepare as prepare_dataset
    from iisan.data.rules import described_rules

    given = {**context.params, "images": images, "columns": pairs_of(column, "COLUMN=KIND")}
    options = parse_options({name: given[name] for name in PrepareOptions.model_fields})
    dataset = prepare_dataset(
        form, sources, out, options, validation=validation, test=test, held_out=held_out, preset=preset
    )
    if as_json:
        print_json(dataset.manifest)
        return
    provenance = dataset.manifest["provenance"]
    if form == "auto":
        named = ", ".join(source["name"] for source in provenance["sources"])
        pictures = provenance["options"]["images"]
        named += f"; pictures in {pictures}" if pictures else ""
        print(f"read as {provenance['format']} ({provenance['layout']}): {named}")
    counts = dataset.manifest["counts"]
    keys = ("users", "items", "interactions")
    rows = [[step["step"], *(f"{step[key]:,}" for key in keys)] for step in counts["steps"]]
    print_table(str(out), ["", *(f"{key}#" for key in keys)], rows)
    missing = ", ".join(f"{count:,} without {what}" for what, count in counts["missing"].items() if count)
    print(f"of {counts['items']:,} items: {missing or 'all are complete'}")
    if dataset.queries:
        print("given queries:", "; ".join(f"{subset}, {each}" for subset, each in dataset.queries.items()))
    if "held_out" in counts:
        print("held-out users:", ", ".join(f"{subset} {count:,}" for subset, count in counts["held_out"].items()))
    if counts["timestamps"] is None:
        print("no timestamps: interactions are ordered as in the file")
    # The rules that apply, those of the format included.
    rules = {name: provenance["options"][name] for name in RULE_OPTIONS}
    for name, counting in described_rules(parse_options(rules)).items():
        left, column = counts.get("left_out", {}).get(name), provenance["options"][name]
        print(
            f"{counting} count"
            + (f" (column {column})" if column else "")
            + ("" if left is None else f"; interactions left out: {left:,}")
        )
    for fault, count in counts.get("dropped", {}).items():
        print(f"left out: {count:,} × {fault}")
    for reason, count in dataset.manifest["skipped"].items():
        print(f"skipped: {count:,} × {reason} (listed in {out / 'skipped.jsonl'})")
    some = [name for name, absent in counts["missing"].items() if absent < counts["items"]]
    models = "".join(f" --{name} MODEL" if name in (IMAGE, TEXT) else f" --model {name}=MODEL" for name in some)
    print(f"next: iisan describe {out}   |   iisan cache {out}{models} --out my-states")


@app.command("export-data")
def export_data(
    dataset: DatasetFolder,
    out: Out,
    form: Annotated[Literal["recbole"], Option("--format", help="Format of the files.")] = "recbole",
    as_json: Json = False,
) -> None:
    """Write a dataset as files for another library: RecBole's atomic files."""
    from iisan.data.atomic_files import write_recbole
    from iisan.data.dataset import Dataset

    files = [str(path) for path in write_recbole(Dataset.load(dataset), out)]
    if as_json:
        print_json({"format": form, "files": files})
        return
    print(f"wrote {' and '.join(files)}")
