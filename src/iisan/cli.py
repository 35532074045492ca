"""The command line: parse, call, print; no logic, and no heavy import before a command needs it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from iisan.errors import IisanError
from iisan.printing import (
    print_comparison,
    print_estimates,
    print_evaluations,
    print_json,
    print_measurements,
    print_recommendations,
    print_table,
)

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
        print_json(report.as_json())
        return
    print_table(*report.table())
    print_recommendations("what IISAN recommends to one user", report.recommended)
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
        print_json(dataset.manifest)
        return
    counts = dataset.manifest["counts"]
    print_table(
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
        print_json(description.to_json())
        return
    print_table(f"{dataset}, {split} split", ["", "value#", "why it matters"], description.rows())


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
    top_blocks: Annotated[
        int | None, typer.Option(min=1, help="Also store the tokens below the last N blocks (recipe 'partial').")
    ] = None,
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
        top_blocks=top_blocks,
        trust_remote_code=trust_remote_code,
        say=_say(as_json),
    )
    for store in stores.values():
        if verify:
            store.verify()
    if as_json:
        print_json(
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
    print_table(
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
        typer.Argument(metavar="CONFIG", help="A YAML file, or a recipe such as default, ids or lora."),
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
        print_json(result)
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
        print_json({name: {"protocol": e.protocol, **e.metrics} for name, e in evaluations.items()})
        return
    print_evaluations(evaluations, config.evaluation.cutoffs)


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
        print_json(lists.to_dicts())
        return
    title = f"next for user {user}" if user is not None else f"next after {history}"
    print_recommendations(title, lists.to_dicts())


@app.command()
def estimate(
    dataset: DatasetFolder,
    text: Annotated[str | None, typer.Option(help="Hub id or folder of the text model.")] = None,
    image: Annotated[str | None, typer.Option(help="Hub id or folder of the image model.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Recipe; repeatable. All methods by default.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a text on average.")] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Time, memory and disk of every method, predicted before paying for them."""
    from dataclasses import asdict

    from iisan.data.dataset import Dataset
    from iisan.efficiency.plan import plan
    from iisan.recipes import METHODS

    models = {name: model for name, model in (("image", image), ("text", text)) if model}
    found = plan(Dataset.load(dataset), models, recipe or METHODS, settings or [], tokens)
    if as_json:
        print_json({name: asdict(each) for name, each in found.items()})
        return
    print_estimates(found)


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN… | FILE.csv", help="Run folders, or one table of measurements.")
    ],
    weights: Annotated[str, typer.Option(help="paper, data-centre, small-gpu, edge or mobile.")] = "paper",
    extremes: Annotated[
        Path | None, typer.Option(help="CSV of other measurements that TPME is normalised by (CSV only).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Quality, cost, TPME and significance of runs; or TPME of a CSV: name, seconds, parameters, memory.

    Runs that differ in their seed alone are one method; the first method is tested against every other.
    """
    from iisan.efficiency.tpme import preset, read_csv
    from iisan.experiments.compare import compare_measurements, compare_runs

    if len(runs) == 1 and runs[0].suffix == ".csv":
        reference = read_csv(extremes) if extremes else None
        measured = compare_measurements(read_csv(runs[0]), preset(weights), reference)
        print_json(measured.as_json()) if as_json else print_measurements(measured)
        return
    report = compare_runs(runs, preset(weights))
    print_json(report.as_json()) if as_json else print_comparison(report)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="table-3 to table-7, figure-4, layerdrop, …")],
    scale: Annotated[
        Literal["demo", "full"],
        typer.Option(help="demo: built-in data, minutes; full: your data, the paper's settings."),
    ] = "demo",
    out: Out = Path("iisan-experiments"),
    seeds: Annotated[str, typer.Option(metavar="N,N,…", help="Seeds of every row.")] = "0",
    dataset: Annotated[Path | None, typer.Option(help="Dataset folder (full).")] = None,
    states: Annotated[Path | None, typer.Option(help="Folder of state stores (full).")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text model (full); repeatable.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="Image model (full); repeatable.")] = None,
) -> None:
    """Run a table of the paper, or a sweep; finished runs are not run again."""
    from iisan.errors import ConfigError
    from iisan.experiments.records import markdown, read_records
    from iisan.experiments.run import run_experiment
    from iisan.experiments.scales import demo_scale, full_scale
    from iisan.experiments.tables import experiment as named

    title = (named(name).__doc__ or name).splitlines()[0]
    numbers = [seed.strip() for seed in seeds.split(",")]
    if not all(number.isdigit() for number in numbers):
        raise ConfigError(f"the seeds '{seeds}'", "whole numbers, such as 0,1,2", "write them with commas")
    say = _say(False)
    if scale == "demo":
        chosen = demo_scale(out, say)
    elif dataset is None or states is None:
        raise ConfigError("the scale 'full' lacks data", "--dataset and --states", "pass both")
    else:
        chosen = full_scale(dataset, states, text or [], image or [], say)
    folder = run_experiment(name, chosen, out, [int(number) for number in numbers], say)
    print(f"\n{name} ({scale}): {title}\n")
    print(markdown(read_records([folder]), name))
    print(f"next: iisan report {out} --out report.html")


@app.command()
def report(
    records: Annotated[list[Path], typer.Argument(metavar="RECORDS…", help="Record files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
) -> None:
    """Tables and charts of experiments as one self-contained page."""
    from iisan.experiments.report import write_report

    print(write_report(records, out))


if __name__ == "__main__":
    main()
