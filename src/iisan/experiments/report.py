"""One self-contained HTML page from records: tables, charts and failures, with nothing loaded from outside."""

import base64
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iisan.errors import MissingExtraError
from iisan.evaluate.tpme import PAPER, Measurement, tpme, winners
from iisan.experiments import charts
from iisan.experiments.records import Record, Row, failures, grid, read_records, table
from iisan.files import aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.j2"
#: The main comparison and the first paper's other tables; then come the second paper's, then open questions.
_FIRST = ("table-3", "table-4", "table-5", "table-6", "table-7", "figure-4")
#: Of a fingerprint, as many as tell two apart.
_DIGITS = 16


@dataclass(frozen=True)
class Chart:
    """A figure of the page, as ``data:`` addresses.

    Attributes:
        alt: what the picture says, for those who do not see it.
        caption: what it shows and how to read it.
        name: the name of its downloads, without suffix.
        svg, pdf: the figure itself.
    """

    alt: str
    caption: str
    name: str
    svg: str
    pdf: str


@dataclass(frozen=True)
class Section:
    """An experiment at one scale, as the template wants it.

    Attributes:
        title: the experiment's name, with the scale.
        conclusion: which row is best, and how certain that is, in one line.
        protocols: how the runs were evaluated.
        facts: ``(label, values)`` of what the records say about data, states and machine.
        heads, body: the table.
        runs, failed: number of records, and of those that failed.
        failures: ``(row, seed, error)`` of every failed run.
        charts: its figures.
    """

    title: str
    conclusion: str
    protocols: list[str]
    facts: list[tuple[str, list[str]]]
    heads: list[str]
    body: list[list[str]]
    runs: int
    failed: int
    failures: list[tuple[str, str, str]]
    charts: list[Chart]


def write_report(paths: Iterable[str | Path], out: str | Path) -> Path:
    """Write the page of all records below some paths.

    Args:
        paths: record files, or folders of them.
        out: the HTML file; it is replaced only when the new page is complete.

    Returns:
        ``out``.

    Raises:
        ConfigError: no record, or records that cannot stand in one table.
        MissingExtraError: the extra ``report`` is not installed.
        RunError: a damaged record.
    """
    page = render(read_records(paths))
    out = Path(out)
    with aside(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def render(records: Sequence[Record]) -> str:
    """The page as HTML; the same records give the same text.

    Args:
        records: of any experiments and scales; each pair of them has a section, the main comparison first.

    Raises:
        ConfigError: as ``write_report``.
        MissingExtraError: as ``write_report``.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "report", "the report") from None
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.experiment, record.scale), []).append(record)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = resources.files("iisan.experiments").joinpath(TEMPLATE).read_text(encoding="utf-8")
    sections = [section(groups[key]) for key in sorted(groups, key=lambda key: _place(key[0]))]
    return environment.from_string(template).render(sections=sections)


def section(records: Sequence[Record]) -> Section:
    """What the page says about the records of one experiment at one scale.

    Raises:
        ConfigError: as ``records.table``.
    """
    rows = table(records)
    heads, body = grid(rows)
    experiment, scale = records[0].experiment, records[0].scale
    facts = [
        ("Data", _distinct(record.data and record.data[:_DIGITS] for record in records)),
        ("States", _distinct(_pairs({m: f[:_DIGITS] for m, f in record.states.items()}) for record in records)),
        ("Machine", _distinct(_pairs(record.machine) for record in records)),
        ("Versions", _distinct(_pairs(record.versions) for record in records)),
    ]
    return Section(
        title=f"{experiment} ({scale})" if scale else experiment,
        conclusion=conclusion(rows),
        protocols=_distinct(record.protocol for record in records),
        facts=[(label, values) for label, values in facts if values],
        heads=heads,
        body=body,
        runs=len(records),
        failed=sum(not record.finished for record in records),
        failures=failures(rows),
        charts=_charts(records, rows, f"{experiment}-{scale}"),
    )


def _place(experiment: str) -> int:
    if experiment in _FIRST:
        return _FIRST.index(experiment)
    return len(_FIRST) + (not experiment.startswith("versa"))


def conclusion(rows: Sequence[Row]) -> str:
    """Which row has the best test HR@10, and whether its lead over the second is more than the seeds' scatter."""
    ranked = sorted(((row.hr.mean, row) for row in rows if row.hr), key=lambda pair: -pair[0])
    if not ranked:
        return "No run was tested."
    (best, first), *others = ranked
    said = f"Best test HR@10: {first.name}, {100 * best:.2f} %"
    if not others:
        return f"{said}, the only row with a result."
    second = others[0][1]
    said += f", {100 * (best - others[0][0]):.2f} points above {second.name}"
    ours, theirs = (
        {run.seed: run.test["hr@10"] for run in row.runs if "hr@10" in run.test} for row in (first, second)
    )
    leads = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    if len(leads) < 2:
        return f"{said}; with one seed, that may be chance."
    p = _paired_p(leads)
    certain = "is more than chance" if p < 0.05 else "may be chance"
    return f"{said}; over {len(leads)} seeds, that {certain} (paired t-test, p = {p:.2g})."


def _paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of Student's t-test that the differences have mean 0."""
    from scipy.stats import t

    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    if not error:
        return float(mean == 0)
    return float(2 * t.sf(abs(mean) / error, len(differences) - 1))


def _charts(records: Sequence[Record], rows: Sequence[Row], name: str) -> list[Chart]:
    """The charts that the records have figures for; a caption names the rows that its chart leaves out."""
    drawn = []

    def add(
        kind: str,
        draw: Callable[[Sequence[Record]], "Figure"],
        able: Callable[[Row], bool],
        alt: str,
        caption: str,
        value: Callable[[Row], str],
    ) -> None:
        shown = [row for row in rows if able(row)]
        left_out = ", ".join(row.name for row in rows if not able(row))
        if left_out:
            caption += f" Not drawn, as there are no such figures: {left_out}."
        said = "; ".join(f"{row.name} {value(row)}".strip() for row in shown)
        drawn.append(chart(draw(records), f"{name}-{kind}", f"{alt}: {said}.", caption))

    if any(map(charts.has_costs, rows)):
        add(
            "quality-cost",
            charts.quality_against_cost,
            charts.has_costs,
            "Bubble chart of test NDCG@10 over seconds per epoch",
            "Quality against cost: test NDCG@10 over seconds per epoch (logarithmic), mean over seeds; the "
            "area of a bubble is the peak memory. Up and to the left is better.",
            lambda row: f"{100 * row.ndcg.mean if row.ndcg else 0:.2f} % at {row.seconds_per_epoch:.3g} s",
        )
        if sum(map(_measured, rows)) > 1:
            drawn.append(_tpme([row for row in rows if _measured(row)], name))
    elif any(row.hr is not None for row in rows):
        add(
            "hr",
            charts.bars,
            lambda row: True,
            "Bar chart of test HR@10",
            "Test HR@10, mean over seeds; whiskers are the sample standard deviation where there are "
            "several seeds.",
            lambda row: f"{100 * row.hr.mean:.2f} %" if row.hr else "has none",
        )
    if grown := charts.growing(rows):
        add(
            "quality-size",
            charts.quality_against_size,
            charts.has_size,
            "Line chart of test HR@10 over the encoders' parameters",
            f"Quality against size: test HR@10 over the parameters of the {' and '.join(grown)} encoder "
            "(logarithmic), mean over seeds; whiskers are the sample standard deviation where there are several "
            "seeds.",
            lambda row: f"{100 * row.hr.mean:.2f} %" if row.hr else "",
        )
    if any(map(charts.has_history, rows)):
        add(
            "learning",
            charts.learning_curves,
            charts.has_history,
            "Line chart of validation HR@10 by epoch",
            "Validation HR@10 by epoch, mean over seeds, up to the last epoch that all seeds of a row reached.",
            lambda row: "",
        )
    if any(map(charts.has_gates, rows)):
        add(
            "gates",
            charts.gate_values,
            charts.has_gates,
            "Table of learnt gates by level and tower",
            "Learnt gates, mean over seeds: within a modality the weight of the previous state, between "
            "modalities the weight of the first one.",
            lambda row: "",
        )
    return drawn


def _measured(row: Row) -> bool:
    return charts.has_costs(row) and row.trainable_parameters is not None


def _tpme(rows: Sequence[Row], name: str) -> Chart:
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
    return chart(
        charts.tpme_regions(points, {"paper": (PAPER.time, PAPER.parameters, PAPER.memory)}),
        f"{name}-tpme",
        f"Triangle of weights, divided by the best row: {best}.",
        "Which row has the lowest TPME under which weights of time, parameters and memory; the star marks "
        f"the published weights. TPME there, in % and over these rows alone: {scores}.",
    )


def chart(figure: "Figure", name: str, alt: str, caption: str) -> Chart:
    """A figure with its downloads.

    Args:
        figure: any figure of ``charts``.
        name: for the downloads; what is no letter, digit, dot or dash becomes a dash.
        alt: what the picture says.
        caption: what it shows.
    """
    return Chart(
        alt=alt,
        caption=caption,
        name=re.sub(r"[^\w.-]+", "-", name).strip("-."),
        svg=_address("image/svg+xml", charts.svg(figure).encode()),
        pdf=_address("application/pdf", charts.pdf(figure)),
    )


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())
