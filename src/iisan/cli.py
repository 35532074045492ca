"""The command line: parse, call, print; no logic, and no heavy import before a command needs it."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iisan.errors import IisanError

if TYPE_CHECKING:
    from iisan.evaluate.evaluation import Evaluation

app = typer.Typer(
    name="iisan",
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
PolicyOption = Annotated[
    Literal["exclude-all", "keep-target", "none"] | None,
    typer.Option(help="What happens to items that the user has already seen; the run's own by default."),
]


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    try:
        app()
    except IisanError as error:
        _stop(str(error))
    except OSError as error:
        # A full disk, a folder without rights: what was finished stays, what was begun is not there.
        where = f" ('{error.filename}')" if error.filename else ""
        _stop(
            f"the system refused: {error.strerror or error}{where}; finished work is kept: mend that and run again"
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _say(as_json: bool) -> Callable[[str], None]:
    """Lines for a person: on standard output, or on standard error when that is for a machine."""
    return lambda line: print(line, file=sys.stderr if as_json else sys.stdout, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; a column whose name ends in "#" holds numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.endswith("#") else "left"
        table.add_column(column.removesuffix("#"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    Console().print(table)


def _metric_label(name: str) -> str:
    """``cold_ndcg@10`` -> ``cold NDCG@10``."""
    cold, _, rest = name.rpartition("_")
    label = rest if rest.startswith("coverage") else rest.upper()
    return f"{cold} {label}".strip()


def _print_evaluations(evaluations: Mapping[str, "Evaluation"], cutoffs: Sequence[int]) -> None:
    k = 10 if 10 in cutoffs else cutoffs[0]
    names = [f"hr@{k}", f"ndcg@{k}", f"mrr@{k}", f"cold_hr@{k}", "coverage@10"]
    last = list(evaluations.values())[-1]
    _print_table(
        f"{last.protocol}; in %",
        ["", *(f"{_metric_label(name)}#" for name in names)],
        [
            [name, *(f"{100 * e.metrics[m]:.2f}" if m in e.metrics else "–" for m in names)]
            for name, e in evaluations.items()
        ],
    )
    if last.metrics.get("cold_users"):
        print(f"cold: the {int(last.metrics['cold_users']):,} users whose target was never trained on")


def _print_recommendations(title: str, rows: Iterable[Mapping[str, Any]]) -> None:
    cells = [[row["rank"], row["item_id"], f"{row['score']:.3f}", (row["text"] or "")[:80]] for row in rows]
    _print_table(title, ["rank#", "item", "score#", "title"], cells)


@app.command()
def demo(
    out: Out = Path("iisan-demo"),
    seed: Annotated[int, typer.Option(help="Of the catalogue and of all trainings.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole path on a generated catalogue, in minutes, on a CPU, offline."""
    from iisan.demo.run import run_demo

    report = run_demo(out, seed=seed, say=_say(as_json))
    if as_json:
        _print_json(report.as_json())
        return
    _print_table(*report.table())
    _print_recommendations("what IISAN recommends to one user", report.recommended)
    print(report.closing())


@app.command()
def prepare(
    form: Annotated[Literal["reference", "table"], typer.Argument(metavar="FORMAT", help="reference | table")],
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE…", help="Items file and interactions file, or their folder.")
    ],
    out: Out,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images: <item_id>.jpg|png|webp, or the root of paths.")
    ] = None,
    item_id: Annotated[str | None, typer.Option(help="Column of item ids.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Column of user ids.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of titles.")] = None,
    image: Annotated[str | None, typer.Option(help="Column of image paths or bytes.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of timestamps.")] = None,
    min_length: Annotated[int | None, typer.Option(min=0, help="Fewest interactions of a user.")] = None,
    k_core: Annotated[int | None, typer.Option(min=0, help="Fewest of a user and of an item, repeated.")] = None,
    keep_last: Annotated[int | None, typer.Option(min=0, help="Keep a user's last ones only; 0 is all.")] = None,
    items: Annotated[
        Literal["all", "interacted"] | None, typer.Option(help="Keep all items, or those that were taken.")
    ] = None,
    on_bad: Annotated[
        Literal["stop", "skip"], typer.Option(help="Stop at bad rows, or skip, count and list them.")
    ] = "stop",
    check_images: Annotated[bool, typer.Option(help="Decode every image now.")] = True,
    quotes: Annotated[bool | None, typer.Option(help="Fields may be quoted (CSV: yes, TSV: no).")] = None,
    as_json: Json = False,
) -> None:
    """Raw files -> a dataset folder."""
    from iisan.data.prepare import PrepareOptions
    from iisan.data.prepare import prepare as prepare_dataset

    options = PrepareOptions(
        images=images,
        item_id=item_id,
        user_id=user_id,
        text=text,
        image=image,
        timestamp=timestamp,
        min_length=min_length,
        k_core=k_core,
        keep_last=keep_last,
        items=items,
        on_bad=on_bad,
        check_images=check_images,
        quotes=quotes,
    )
    dataset = prepare_dataset(form, sources, out, options)
    if as_json:
        _print_json(dataset.manifest)
        return
    counts = dataset.manifest["counts"]
    _print_table(
        str(out),
        ["", "users#", "items#", "interactions#"],
        [
            [step["step"], *(f"{step[key]:,}" for key in ("users", "items", "interactions"))]
            for step in counts["steps"]
        ],
    )
    missing = ", ".join(f"{count:,} without {what}" for what, count in counts["missing"].items() if count)
    print(f"of {counts['items']:,} items: {missing or 'all have everything'}")
    if counts["timestamps"] is None:
        print("no timestamps: the order of the rows is taken as the order of time")
    for reason, count in dataset.manifest["skipped"].items():
        print(f"skipped: {count:,} × {reason} (listed in {out / 'skipped.jsonl'})")
    print(f"next: iisan describe {out}   |   iisan cache {out} --text MODEL --image MODEL --out my-states")


@app.command()
def describe(
    dataset: DatasetFolder,
    split: Annotated[Literal["leave-one-out", "temporal"], typer.Option(help="Which split to look at.")] = (
        "leave-one-out"
    ),
    as_json: Json = False,
) -> None:
    """What is in a dataset, and what will make evaluation lie."""
    from iisan.data.dataset import Dataset
    from iisan.data.splits import split as make_split
    from iisan.evaluate.describe import describe as describe_dataset

    loaded = Dataset.load(dataset)
    description = describe_dataset(loaded, make_split(loaded.sequences, loaded.num_items, split))
    if as_json:
        _print_json(description.to_json())
        return
    _print_table(f"{dataset}, {split} split", ["", "value#", "why it matters"], description.rows())


@app.command()
def cache(
    dataset: DatasetFolder,
    out: Out,
    text: Annotated[str | None, typer.Option(metavar="MODEL", help="Hub id or folder of a text encoder.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub id or folder of an image encoder.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Pooling and text length that this recipe trains on; the options below win.")
    ] = "default",
    levels: Annotated[str, typer.Option(help="layerdrop, all, or a list such as 0,6,12,last.")] = "layerdrop",
    text_pooling: Annotated[Literal["mean", "cls"] | None, typer.Option()] = None,
    image_pooling: Annotated[Literal["mean", "cls"] | None, typer.Option()] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest text, special tokens included.")] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "int8", "fp32"], typer.Option(help="How states are stored.")
    ] = "bf16",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="How the backbones compute.")
    ] = "auto",
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Contents per file: the most that a kill can lose.")
    ] = 4096,
    verify: Annotated[bool, typer.Option("--verify", help="Also compare every file with its checksum.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every item through the frozen models once and store the hidden states."""
    from iisan.data.dataset import Dataset
    from iisan.recipes import recipe as named_recipe
    from iisan.states.caching import cache as cache_states

    wanted = named_recipe(recipe)
    stores = cache_states(
        Dataset.load(dataset),
        out,
        text,
        image,
        levels=levels,
        text_pooling=text_pooling or wanted.text.pooling or "mean",
        image_pooling=image_pooling or wanted.image.pooling or "cls",
        max_tokens=max_tokens or wanted.text.max_tokens,
        dtype=dtype,
        precision=precision,
        shard_rows=shard_rows,
        trust_remote_code=trust_remote_code,
        say=_say(as_json),
    )
    for store in stores.values():
        if verify:
            store.verify()
    if as_json:
        _print_json(
            {
                modality: {
                    "folder": str(store.folder),
                    "rows": len(store),
                    **store.manifest.model_dump(mode="json"),
                }
                for modality, store in stores.items()
            }
        )
        return
    _print_table(
        str(out),
        ["", "contents#", "levels", "width#", "stored as", "largest error#", "folder"],
        [
            [
                modality,
                f"{len(store):,}",
                ", ".join(map(str, store.levels)),
                store.width,
                store.manifest.dtype,
                f"{max(error or 0.0 for error in store.manifest.error):.2%}",
                store.folder.name,
            ]
            for modality, store in stores.items()
        ],
    )
    print("largest error: of a stored level, next to the spread between items, against an fp32 forward pass")
    print(f"next: iisan train default --dataset {dataset} --states {out} --out my-run")


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A YAML file, or a recipe: default, paper, reference, frozen, ids."),
    ],
    out: Out,
    dataset: Annotated[Path | None, typer.Option(help="Dataset folder.")] = None,
    states: Annotated[Path | None, typer.Option(help="Folder of state stores.")] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Train, and evaluate the best epoch; an interrupted run goes on."""
    from iisan.recipes import load_config
    from iisan.train.run import train as train_run

    folders = [
        f"{name}={json.dumps(str(path))}" for name, path in (("dataset", dataset), ("states", states)) if path
    ]
    result = train_run(load_config(config, [*folders, *(settings or [])]), out, say=_say(as_json))
    if as_json:
        _print_json(result)
        return
    test = result["test"]
    print(
        f"best epoch {result['best_epoch']} of {result['epochs']}: test "
        + "  ".join(
            f"{name.upper()} {100 * test[name]:.2f}%"
            for name in test
            if name.endswith("@10") and "cold" not in name
        )
    )
    print(f"protocol: {result['protocol']}")
    print(f"next: iisan evaluate {out}   |   iisan recommend {out} --user ID")


@app.command()
def evaluate(
    run: RunFolder,
    part: Annotated[Literal["validation", "test"], typer.Option("--split", help="Which targets.")] = "test",
    protocol: Annotated[
        Literal["leave-one-out", "temporal"] | None, typer.Option(help="The run's own by default.")
    ] = None,
    policy: PolicyOption = None,
    baselines: Annotated[bool, typer.Option(help="Also measure popularity, Markov, frozen similarity.")] = True,
    dataset: Annotated[Path | None, typer.Option(help="Where the dataset is now, if it moved.")] = None,
    states: Annotated[Path | None, typer.Option(help="Where the state stores are now, if they moved.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file for the run's rank of every target.")] = None,
    as_json: Json = False,
) -> None:
    """Rank the whole catalogue for every user, next to the baselines."""
    from iisan.files import aside
    from iisan.train.assess import assess
    from iisan.train.trained import TrainedRun

    trained = TrainedRun.load(run)
    changes = {
        "evaluation.split": protocol,
        "evaluation.policy": policy,
        "dataset": dataset and json.dumps(str(dataset)),
        "states": states and json.dumps(str(states)),
    }
    config = trained.config.override(f"{key}={value}" for key, value in changes.items() if value)
    evaluations = assess(trained, config, part, baselines)
    if out:
        with aside(out) as temporary:
            evaluations[trained.config.recipe].per_user.write_parquet(temporary)
    if as_json:
        _print_json({name: {"protocol": e.protocol, **e.metrics} for name, e in evaluations.items()})
        return
    _print_evaluations(evaluations, config.evaluation.cutoffs)


@app.command()
def recommend(
    run: RunFolder,
    user: Annotated[str | None, typer.Option(help="A user of the dataset.")] = None,
    history: Annotated[str | None, typer.Option(metavar="ID,ID,…", help="Item ids, oldest first.")] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user, into --out.")] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Length of a list.")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Recommend seen items again.")] = False,
    as_json: Json = False,
) -> None:
    """The next items for a known user, for any history, or for all users."""
    from iisan.api import Recommender
    from iisan.errors import ConfigError
    from iisan.files import aside

    if (user is not None) + (history is not None) + all_users != 1:
        raise ConfigError(
            "the question is not clear",
            "exactly one of --user, --history and --all-users",
            "give one of them",
        )
    if all_users and out is None:
        raise ConfigError("--all-users has no file to write to", "--out FILE.parquet", "add --out FILE.parquet")
    recommender = Recommender.load(run)
    if all_users:
        lists = recommender.recommend_all(k, include_seen)
    else:
        items = None if history is None else [item.strip() for item in history.split(",") if item.strip()]
        lists = recommender.recommend(user=user, history=items, k=k, include_seen=include_seen)
    if out is not None:
        with aside(out) as temporary:
            lists.write_parquet(temporary)
        print(f"{lists.height:,} rows written to {out}", file=sys.stderr)
        return
    if as_json:
        _print_json(lists.to_dicts())
        return
    title = f"next for user {user}" if user is not None else f"next after {history}"
    _print_recommendations(title, lists.to_dicts())


if __name__ == "__main__":
    main()
