"""Commands for costs, comparisons, experiments and tuning."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from iisan.cli.common import (
    DatasetFolder,
    DatasetOption,
    ImagesOption,
    Json,
    Out,
    Set,
    StatesOption,
    app,
    given,
    say_to,
)
from iisan.errors import ConfigError, DataError
from iisan.files import check_ending
from iisan.printing import (
    print_comparison,
    print_declines,
    print_estimates,
    print_json,
    print_measurements,
    print_study,
)


@app.command()
def estimate(
    dataset: DatasetFolder,
    text: Annotated[str | None, typer.Option(help="Hub id or folder of the text model.")] = None,
    image: Annotated[str | None, typer.Option(help="Hub id or folder of the image model.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Recipe; repeatable. Defaults to all methods.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Mean tokens per text.")] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Predict time, memory and disk space of training each method."""
    from dataclasses import asdict

    from iisan.data.dataset import Dataset
    from iisan.efficiency.estimate import plan
    from iisan.recipes import METHODS

    models = {name: model for name, model in (("image", image), ("text", text)) if model}
    countable = [name for name in METHODS if name != "lora" or find_spec("peft")]  # the code of peft is counted
    found = plan(Dataset.load(dataset), models, recipe or countable, settings or [], tokens)
    print_json({name: asdict(each) for name, each in found.items()}) if as_json else print_estimates(found)


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN… | FILE.csv", help="Run folders, or one table of measurements.")
    ],
    weights: Annotated[
        str, typer.Option(metavar="T,P,M", help="Weights of time, parameters and memory in TPME, or paper.")
    ] = "paper",
    extremes: Annotated[
        Path | None, typer.Option(help="CSV of measurements to normalise TPME by (CSV only).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare quality, costs, TPME and significance of runs, or TPME of a CSV: name, seconds, parameters, memory.

    Runs that differ only in their seed are one method; the first method is tested against each other one.
    """
    from iisan.evaluate.tpme import parse_weights, read_csv
    from iisan.runs.compare import compare_measurements, compare_runs

    if len(runs) == 1 and runs[0].suffix.lower() == ".csv":
        reference = read_csv(extremes) if extremes else None
        measured = compare_measurements(read_csv(runs[0]), parse_weights(weights), reference)
        print_json(measured.as_json()) if as_json else print_measurements(measured)
        return
    report = compare_runs(runs, parse_weights(weights))
    print_json(report.as_json()) if as_json else print_comparison(report)


@app.command()
def robustness(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")],
    modality: Annotated[str, typer.Option(help="Modality to corrupt.")],
    how: Annotated[
        Literal["remove", "noise", "swap"],
        typer.Option(help="Remove it, add noise to its states, or swap contents among items."),
    ] = "remove",
    rates: Annotated[str, typer.Option(metavar="R,R,…", help="Shares of items to corrupt.")] = "0,0.1,0.3,0.5,1",
    items: Annotated[
        Path | None, typer.Option(help="File of item ids, one per line, that may be corrupted. Defaults to all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of items.")] = 0,
    dataset: DatasetOption = None,
    states: StatesOption = None,
    images: ImagesOption = None,
    out: Annotated[Path | None, typer.Option(help="SVG file to write the chart to.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how quality declines when a modality is missing or wrong for a growing share of items."""
    from iisan.experiments.charts import decline_lines, svg
    from iisan.experiments.robustness import CORRUPTED, decline
    from iisan.files import aside
    from iisan.runs.naming import short_names

    check_ending(out, [".svg"])
    try:
        shares = [float(rate) for rate in rates.split(",")]
    except ValueError:
        raise ConfigError(f"the rates '{rates}'", "numbers with commas", "write e.g. 0,0.3,1") from None
    try:
        ids = [each.strip() for each in items.read_text(encoding="utf-8").splitlines()] if items else None
    except UnicodeDecodeError:
        raise DataError(f"'{items}' is not UTF-8 text", "item ids, one per line", "save it as UTF-8") from None
    ids = ids and list(filter(None, ids))
    names = short_names([run.absolute() for run in runs])
    moved = given(dataset=dataset, states=states, images=images)
    found = [
        decline(run, modality, shares, how, ids, seed, name, moved) for run, name in zip(runs, names, strict=True)
    ]
    title = f"{CORRUPTED[how]} {modality}"
    if out is not None:
        with aside(out) as temporary:
            chart = decline_lines({each.name: each.values("hr@10") for each in found}, shares, title, "HR@10")
            temporary.write_text(svg(chart), encoding="utf-8")
    print_json([each.as_json() for each in found]) if as_json else print_declines(found, title)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="table-3 to table-7, figure-4, layerdrop, …")],
    scale: Annotated[
        Literal["demo", "full"],
        typer.Option(help="demo: built-in data, minutes; full: your data, the settings of the paper."),
    ] = "demo",
    out: Out = Path("iisan-experiments"),
    seeds: Annotated[str, typer.Option(metavar="N,N,…", help="Seeds, for every row.")] = "0",
    dataset: Annotated[Path | None, typer.Option(help="Dataset folder (full).")] = None,
    states: Annotated[Path | None, typer.Option(help="Folder of state stores (full).")] = None,
    images: ImagesOption = None,
    text: Annotated[list[str] | None, typer.Option(help="Text model (full); repeatable.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="Image model (full); repeatable.")] = None,
) -> None:
    """Run a table of the papers, or a sweep. Finished runs are not run again."""
    from iisan.experiments.records import markdown, read_records
    from iisan.experiments.run import run_experiment
    from iisan.experiments.scales import demo_scale, full_scale
    from iisan.experiments.tables import experiment as named
    from iisan.machine import keep_freed_memory

    keep_freed_memory()
    title = (named(name).__doc__ or name).splitlines()[0]
    numbers = [seed.strip() for seed in seeds.split(",")]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ConfigError(f"the seeds '{seeds}'", "whole numbers, such as 0,1,2", "write them with commas")
    say = say_to(False)
    if scale == "demo":
        chosen = demo_scale(out, say)
    elif dataset is None or states is None:
        raise ConfigError("the scale 'full' lacks data", "--dataset and --states", "pass both")
    else:
        chosen = full_scale(dataset, states, text or [], image or [], say, images)
    folder = run_experiment(name, chosen, out, [int(number) for number in numbers], say)
    print(f"\n{name} ({scale}): {title}\n")
    records = read_records([folder])
    print(markdown(records, name))
    print(f"next: iisan report {out} --out report.html")
    failed = sum(not record.finished for record in records)
    if failed:
        print(f"{failed} of {len(records)} runs failed; the same command runs them again", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def tune(
    space: Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="Settings to vary, and how.")],
    out: Out,
    dataset: DatasetOption = None,
    states: StatesOption = None,
    images: ImagesOption = None,
    as_json: Json = False,
) -> None:
    """Search for the settings that validate best, then train them with several seeds and test these runs.

    Resumes an interrupted study. Several of these commands with one --out work on it together.
    """
    from iisan.machine import keep_freed_memory
    from iisan.tune.space import read_space
    from iisan.tune.study import tune as tune_settings

    keep_freed_memory()
    folders = given(dataset=dataset, states=states, images=images)
    result = tune_settings(read_space(space), out, folders, say_to(as_json))
    print_json(result) if as_json else print_study(result, out)


@app.command()
def report(
    records: Annotated[
        list[Path],
        typer.Argument(metavar="RECORDS…", help="Record files, folders of them, or studies of `iisan tune`."),
    ],
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
) -> None:
    """Write tables and charts of experiments and studies as one self-contained page."""
    from iisan.experiments.report import write_report

    check_ending(out, [".html", ".htm"])
    print(write_report(records, out))
