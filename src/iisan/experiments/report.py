"""One self-contained HTML page from records and studies: tables, charts and failures; it loads nothing else."""

import base64
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iisan.checks import check
from iisan.errors import MissingExtraError, RunError
from iisan.evaluate.significance import paired_t
from iisan.evaluate.tpme import PAPER, Measurement, tpme, winners
from iisan.experiments import charts
from iisan.experiments.records import (
    MISSING,
    Record,
    Row,
    failures,
    grid,
    json_of_kind,
    read_records,
    remark,
    table,
)
from iisan.files import aside
from iisan.runs.naming import short_names
from iisan.tune.results import is_study, read_result, shown, tested

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The main comparison and the other tables of IISAN; then come those of IISAN-Versa, then open questions.
_FIRST = ("table-3", "table-4", "table-5", "table-6", "table-7", "figure-4")
#: Digits of a fingerprint that are shown.
_DIGITS = 16
#: Kind of chart -> beginning of its alt text, and its caption.
_TEXTS = {
    "quality-cost": (
        "Bubble chart of test NDCG@10 over seconds per epoch",
        "Quality against cost: test NDCG@10 over seconds per epoch (logarithmic), mean over seeds; the "
        "area of a bubble is the peak memory. Up and to the left is better.",
    ),
    "hr": (
        "Bar chart of test HR@10",
        "Test HR@10, mean over seeds; whiskers are the sample standard deviation over several seeds.",
    ),
    "quality-size": (
        "Line chart of test HR@10 over the encoders' parameters",
        "Quality against size: test HR@10 over the parameters of the {grown} encoder (logarithmic), "
        "mean over seeds; whiskers are the sample standard deviation over several seeds.",
    ),
    "learning": (
        "Line chart of validation HR@10 by epoch",
        "Validation HR@10 by epoch, mean over seeds, up to the last epoch that all seeds of a row reached.",
    ),
    "trials": (
        "Chart of the validation metric by trial",
        "Validation {metric} of the finished trials; crosses mark trials that were stopped, as their learned part "
        "was below the median at the same epoch.",
    ),
    "importance": (
        "Bar chart of what mattered",
        "What mattered: the share of each setting in what distinguishes the best tenth of the trials from all "
        "that did not fail (PED-ANOVA).",
    ),
    "gates": (
        "Table of learned gates by level and tower",
        "Learned gates, mean over seeds: within a modality the weight of the previous state, between "
        "modalities the weight of the first one.",
    ),
}


def write_report(paths: Iterable[str | Path], out: str | Path) -> Path:
    """Write the page of all records and checks in files and folders, and of finished studies, to ``out``.

    The page has a section per experiment and scale, per study, and per check of a run; the same files give the
    same page.

    Returns:
        ``out``.

    Raises:
        ConfigError: No record, check or study, or records that cannot be in one table.
        MissingExtraError: The extra ``report`` is not installed.
        RunError: A damaged record, or an unfinished study.
    """
    given = [Path(path) for path in paths]
    studies = [path for path in given if is_study(path)]
    others = [path for path in given if path not in studies]
    results = [read_result(study) for study in studies]
    checks = [_check(path, value) for path, value in json_of_kind(others, check.KIND, check.SCHEMA)]
    records = read_records(others, required=not (studies or checks))
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "report", "the report") from None
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.experiment, record.scale), []).append(record)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = resources.files("iisan.experiments").joinpath("report.html.j2").read_text(encoding="utf-8")
    sections = [_section(groups[key]) for key in sorted(groups, key=lambda key: _place(key[0]))]
    names = short_names([study.absolute() for study in studies])
    sections += [_study(name, result) for name, result in zip(names, results, strict=True)]
    page = environment.from_string(template).render(sections=sections, checks=checks)
    out = Path(out)
    with aside(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _check(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Variables of the template for the checks of a run."""
    try:
        return {
            "title": f"Check of {value['run']}",
            "protocol": value["protocol"],
            "failed": value["failed"],
            "body": [(each["status"], each["name"], each["seen"]) for each in value["checks"]],
        }
    except (KeyError, TypeError) as error:
        got = f"'{path}' is a damaged check ({error!r})"
        raise RunError(got, "what `iisan check RUN --out FILE` wrote", "make it again, or move it away") from None


def _section(records: Sequence[Record]) -> dict[str, Any]:
    """Variables of the template for the records of one experiment at one scale."""
    rows = table(records)
    heads, body = grid(rows)
    experiment, scale = records[0].experiment, records[0].scale
    facts: dict[str, list[str | None]] = {
        "Data": [record.data and record.data[:_DIGITS] for record in records],
        "States": [_pairs({name: of[:_DIGITS] for name, of in record.states.items()}) for record in records],
        "Machine": [_pairs(record.machine) for record in records],
        "Versions": [_pairs(record.versions) for record in records],
        "Remark": [remark(records)],
    }
    return {
        "title": f"{experiment} ({scale})" if scale else experiment,
        "conclusion": conclusion(rows),
        "protocols": _distinct(record.protocol for record in records),
        "facts": [(label, distinct) for label, values in facts.items() if (distinct := _distinct(values))],
        "heads": heads,
        "body": body,
        "runs": len(records),
        "failed": sum(not record.finished for record in records),
        "failures": failures(rows),
        "charts": _charts(records, rows, f"{experiment}-{scale}"),
    }


def _study(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Variables of the template for a study of ``iisan tune``."""
    metric, best, trials = result["objective"].upper(), result["best"], result["trials"]
    keys = list(best["settings"])
    ranked = sorted(trials, key=lambda trial: (trial["state"] != "finished", -(trial["value"] or 0)))
    body = [
        [
            f"trial {trial['number']}",
            trial["state"],
            MISSING if trial["value"] is None else f"{100 * trial['value']:.2f}",
            str(trial["epochs"]),
            *(shown(trial["settings"][key]) for key in keys),
        ]
        for trial in ranked
    ]
    finished = {trial["number"]: trial["value"] for trial in trials if trial["state"] == "finished"}
    stopped = [trial["number"] for trial in trials if trial["state"] == "stopped"]
    chart = charts.trial_values(finished, stopped, metric)
    alt, caption = _TEXTS["trials"]
    said = f"{alt}: best {100 * best['value']:.2f} % in trial {best['trial']}."
    drawn = [_chart(chart, f"{name}-trials", said, caption.format(metric=metric))]
    if shares := result["importance"]:
        alt, caption = _TEXTS["importance"]
        said = f"{alt}: {'; '.join(f'{key} {share:.0%}' for key, share in shares.items())}."
        drawn.append(_chart(charts.share_bars(shares), f"{name}-importance", said, caption))
    seed = result["config"]["training"]["seed"]
    return {
        "title": f"{name} (study)",
        "conclusion": (
            f"Best validation {metric}: trial {best['trial']}, {100 * best['value']:.2f} %. "
            f"Its settings, tested once: {tested(result)}."
        ),
        "protocols": [result["protocol"]],
        "facts": [
            ("Data", [result["data"][:_DIGITS]]),
            ("States", _distinct([_pairs({key: each[:_DIGITS] for key, each in result["states"].items()})])),
            ("Machine", [_pairs(result["machine"])]),
            ("Versions", [_pairs(result["versions"])]),
        ],
        "heads": ["", "", f"validation {metric} (%)", "epochs", *keys],
        "body": body,
        "runs": len(trials),
        "failed": sum(trial["state"] == "failed" for trial in trials),
        "failures": [(f"trial {each['number']}", seed, each["error"]) for each in trials if each["error"]],
        "charts": drawn,
    }


def _place(experiment: str) -> int:
    if experiment in _FIRST:
        return _FIRST.index(experiment)
    return len(_FIRST) + (not experiment.startswith("versa"))


def conclusion(rows: Sequence[Row]) -> str:
    """Say which row has the best test HR@10, and whether its lead over the second may be chance."""
    ranked = sorted(((row.hr.mean, row) for row in rows if row.hr), key=lambda pair: -pair[0])
    if not ranked:
        return "No run was tested."
    (best, first), *others = ranked
    said = f"Best test HR@10: {first.name}, {100 * best:.2f} %"
    if not others:
        return f"{said}, the only row with a result."
    (runner_up, second), *_ = others
    said += f", {100 * (best - runner_up):.2f} points above {second.name}"
    ours, theirs = (
        {run.seed: run.test["hr@10"] for run in row.runs if "hr@10" in run.test} for row in (first, second)
    )
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if len(pairs) < 2:
        return f"{said}; with one seed, that may be chance."
    p = paired_t(*np.array(pairs).T)
    certain = "is more than chance" if p < 0.05 else "may be chance"
    return f"{said}; over {len(pairs)} seeds, that {certain} (paired t-test, p = {p:.2g})."


def _charts(records: Sequence[Record], rows: Sequence[Row], name: str) -> list[dict[str, str]]:
    """Charts for which the records have figures; a caption names the rows that its chart leaves out."""
    costs = any(map(charts.has_costs, rows))
    grown = " and ".join(charts.growing(rows))

    def hr(row: Row) -> str:
        return f"{100 * row.hr.mean:.2f} %" if row.hr else "has none"

    def cost(row: Row) -> str:
        return f"{100 * row.ndcg.mean if row.ndcg else 0:.2f} % at {row.seconds_per_epoch:.3g} s"

    # Whether there are figures, name, chart, the rows that it can draw, and what the alt text says of each.
    kinds: list[Any] = [
        (costs, "quality-cost", charts.quality_against_cost, charts.has_costs, cost),
        (not costs and any(row.hr for row in rows), "hr", charts.bars, lambda row: True, hr),
        (grown, "quality-size", charts.quality_against_size, charts.has_size, hr),
        (any(map(charts.has_history, rows)), "learning", charts.learning_curves, charts.has_history, None),
        (any(map(charts.has_gates, rows)), "gates", charts.gate_values, charts.has_gates, None),
    ]
    drawn = []
    for there, kind, draw, able, value in kinds:
        if not there:
            continue
        alt, caption = _TEXTS[kind]
        caption = caption.format(grown=grown)
        said = "; ".join(f"{row.name} {value(row)}" if value else row.name for row in rows if able(row))
        if left_out := ", ".join(row.name for row in rows if not able(row)):
            caption += f" Not drawn, as there are no such figures: {left_out}."
        drawn.append(_chart(draw(records), f"{name}-{kind}", f"{alt}: {said}.", caption))
        measured = [row for row in rows if charts.has_costs(row) and row.trainable_parameters is not None]
        if kind == "quality-cost" and len(measured) > 1:
            drawn.append(_tpme(measured, name))
    return drawn


def _tpme(rows: Sequence[Row], name: str) -> dict[str, str]:
    """Where each row has the best TPME; the caption names the compared set, without which a TPME says nothing."""
    costs = [
        Measurement(
            row.name, row.seconds_per_epoch or 0, row.trainable_parameters or 0, row.peak_memory_bytes or 0
        )
        for row in rows
    ]
    points = [((at.time, at.parameters, at.memory), winner) for at, winner in winners(costs, steps=100)]
    best = ", ".join(dict.fromkeys(winner for _, winner in points))
    scores = ", ".join(f"{row} {100 * score:.2f}" for row, score in tpme(costs).items())
    return _chart(
        charts.tpme_regions(points, {"paper": (PAPER.time, PAPER.parameters, PAPER.memory)}),
        f"{name}-tpme",
        f"Triangle of weights, divided by the best row: {best}.",
        "Which row has the lowest TPME under which weights of time, parameters and memory; the star marks "
        f"the published weights. TPME there, in % and over these rows alone: {scores}.",
    )


def _chart(figure: "Figure", name: str, alt: str, caption: str) -> dict[str, str]:
    """Variables of the template for a figure, which is embedded as ``data:`` addresses."""
    files = {"svg": ("image/svg+xml", charts.svg(figure).encode()), "pdf": ("application/pdf", charts.pdf(figure))}
    addresses = {
        kind: f"data:{mime};base64,{base64.b64encode(content).decode()}" for kind, (mime, content) in files.items()
    }
    return {"name": re.sub(r"[^\w.-]+", "-", name).strip("-."), "alt": alt, "caption": caption, **addresses}


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())
