"""Charts of records, about six by four inches, readable in black and white and on a phone.

No chart relies on colour alone: lines differ in dash and marker, regions in hatching, and all carry labels.
Figures are made without pyplot, which would keep them in memory and may need a display.

Charts of ``records`` take those of one experiment at one scale, draw the mean over the finished seeds of each row,
and raise ``ConfigError`` if no row has the figures that are drawn, or for the reasons of ``records.table``.
"""

import contextlib
import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iisan.errors import ConfigError, MissingExtraError
from iisan.experiments.labels import Spot, label, wrapped
from iisan.experiments.records import Record, Row, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Weights = tuple[float, float, float]

# Colours of Okabe and Ito that the colour-blind can tell apart and that are dark enough for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (9, 3)))
MARKERS = "os^Dv*PX"
# Only straight strokes: dots and rings make a vector file twenty times as large.
HATCHES = ("", "//", "\\\\", "--", "xx", "||", "++")
INK = "#222222"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 15,
    "axes.titlesize": 15,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 14),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "hatch.linewidth": 0.7,
    # Row names are user input: a dollar sign in one does not start a formula.
    "text.parse_math": False,
    # Text as outlines looks the same everywhere; the salt makes the ids in the file reproducible.
    "svg.fonttype": "path",
    "svg.hashsalt": "iisan",
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Apply the style of all charts to matplotlib within a block or, as a decorator, a function."""
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "the report") from None
    with matplotlib.rc_context(STYLE):
        yield


def _figure(height: float = 4.0, panels: Sequence[float] = (1,)) -> tuple["Figure", Any]:
    """A figure and its axes, one below the other with these relative heights."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(len(panels), squeeze=False, height_ratios=panels)[:, 0]


def svg(figure: "Figure") -> str:
    """Return the figure as an SVG document that can be embedded in a page; the same figure gives the same text."""
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    return "<svg" + _saved(figure, "svg", nothing).decode().partition("<svg")[2]


def pdf(figure: "Figure") -> bytes:
    """Return the figure as a PDF document; the same figure gives the same bytes."""
    return _saved(figure, "pdf", {"CreationDate": None})


@_style()
def _saved(figure: "Figure", form: str, metadata: dict[str, None]) -> bytes:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        # The last digits of the layout differ from process to process.
        axes.set_position(tuple(round(value, 6) for value in axes.get_position().bounds))
    file = io.BytesIO()
    figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def has_costs(row: Row) -> bool:
    """Whether ``quality_against_cost`` can draw the row."""
    return row.ndcg is not None and bool(row.seconds_per_epoch) and bool(row.peak_memory_bytes)


def has_history(row: Row) -> bool:
    """Whether ``learning_curves`` can draw the row: all its finished runs validated two common epochs."""
    return len(_curve(row)) > 1


def has_gates(row: Row) -> bool:
    """Whether ``gate_values`` can draw the row."""
    return any(values for run in row.runs for values in run.gates.values())


def has_size(row: Row) -> bool:
    """Whether ``quality_against_size`` can draw the row."""
    return row.hr is not None and bool(row.encoder_parameters)


def growing(rows: Sequence[Row]) -> tuple[str, ...]:
    """Modalities whose encoders grow from the smallest row to the largest one.

    Returns:
        Empty if two rows are equal in size, or one is smaller in one modality and larger in another.
    """
    sizes = [row.encoder_parameters for row in sorted(filter(has_size, rows), key=_all_parameters)]
    steps = list(itertools.pairwise(sizes))
    if not steps or any(
        one.keys() != other.keys() or one == other or any(one[name] > other[name] for name in one)
        for one, other in steps
    ):
        return ()
    return tuple(name for name in sizes[0] if sizes[0][name] < sizes[-1][name])


def _all_parameters(row: Row) -> float:
    return sum(row.encoder_parameters.values())


@_style()
def quality_against_cost(records: Sequence[Record]) -> "Figure":
    """Test NDCG@10 over seconds per epoch (logarithmic), as bubbles whose area is the peak memory."""
    from matplotlib.ticker import EngFormatter

    rows = _drawable(records, has_costs, "NDCG@10, seconds per epoch and peak memory")
    # Small bubbles are drawn over large ones.
    rows.sort(key=lambda row: -(row.peak_memory_bytes or 0.0))
    seconds = [row.seconds_per_epoch or 0.0 for row in rows]
    quality = [100 * row.ndcg.mean for row in rows if row.ndcg]
    memory = [row.peak_memory_bytes or 0.0 for row in rows]
    areas = [1800 * value / memory[0] for value in memory]
    figure, (axes,) = _figure()
    bubbles = axes.scatter(seconds, quality, areas, facecolors=COLOURS[0] + "4D", edgecolors=INK, linewidths=1.2)
    # A dot marks the centre of a bubble that is too small to be seen.
    axes.plot(seconds, quality, ".", color=INK, markersize=4)
    _log_axis(axes, seconds)
    _quality_axis(axes, quality, "test NDCG@10 (%)")
    axes.set_xlabel("seconds per epoch (logarithmic)")
    largest = EngFormatter("B", places=1)(memory[0])
    axes.set_title(f"area: peak memory (largest {largest})", fontsize=14, loc="left")
    label(axes, list(zip(seconds, quality, (row.name for row in rows), strict=True)), bubbles=bubbles)
    return figure


@_style()
def quality_against_size(records: Sequence[Record]) -> "Figure":
    """Test HR@10 over the parameters of the encoders that grow (logarithmic); whiskers are standard deviations."""
    from matplotlib.ticker import EngFormatter

    rows = _drawable(records, has_size, "test HR@10 and the encoders' parameters")
    grown = growing(rows)
    if not grown:
        raise ConfigError("rows without an order of size", "encoders that grow from row to row", "draw bars")
    rows.sort(key=_all_parameters)
    sizes = [sum(row.encoder_parameters[name] for name in grown) for row in rows]
    quality = [100 * row.hr.mean for row in rows if row.hr]
    # A whisker of NaN is not drawn: one seed has no deviation.
    whiskers = [100 * (row.hr.deviation or math.nan) for row in rows if row.hr]
    figure, (axes,) = _figure()
    axes.errorbar(sizes, quality, whiskers, fmt="o-", color=INK, linewidth=1.5, markersize=8, capsize=5)
    _log_axis(axes, sizes, EngFormatter())
    _quality_axis(axes, quality, "test HR@10 (%)")
    axes.set_xlabel(f"parameters, {' and '.join(grown)} (logarithmic)")
    # Labels avoid the line, which is straight on the logarithmic axis.
    line = [
        (x * (other_x / x) ** (step / 40), y + (other_y - y) * step / 40)
        for (x, y), (other_x, other_y) in itertools.pairwise(zip(sizes, quality, strict=True))
        for step in range(41)
    ]
    label(axes, list(zip(sizes, quality, (row.name for row in rows), strict=True)), points=line)
    return figure


@_style()
def learning_curves(records: Sequence[Record]) -> "Figure":
    """Validation HR@10 by epoch, one line per row: the mean over its seeds, up to the last common epoch."""
    from matplotlib.ticker import MaxNLocator

    rows = _drawable(records, has_history, "validation HR@10 of two epochs")
    columns = 2 if max(len(row.name) for row in rows) < 22 else 1
    figure, (axes,) = _figure(3.7 + 0.31 * math.ceil(len(rows) / columns))
    for place, row in enumerate(rows):
        curve = _curve(row)
        # A few markers tell the lines apart; shifted, they do not hide each other.
        marked = (place % 2, max(1, len(curve) // 6)) if len(curve) > 6 else 1
        shown = [100 * value for value in curve.values()]
        look = {**_look(place), "linewidth": 2, "markersize": 7, "markevery": marked}
        axes.plot(list(curve), shown, label=wrapped(row.name, 40), **look)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="epoch", ylabel="validation HR@10 (%)")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5)
    return figure


@_style()
def gate_values(records: Sequence[Record]) -> "Figure":
    """Learned gates as numbers in cells: one panel per tower, one line per row, one column per level.

    Within a modality the weight of the previous state (IISAN, eq. 1), for ``inter`` that of the first modality
    (IISAN, eq. 2).
    """
    rows = _drawable(records, has_gates, "gates")
    seen = dict.fromkeys(tower for row in rows for run in row.runs for tower in run.gates)
    panels = []
    # The inter-modal tower stands last, as in the papers' figures.
    for tower in sorted(seen, key=lambda tower: tower == "inter"):
        lines = [(row.name, values) for row in rows if (values := _gates(row, tower))]
        panels.append((tower, lines))
    heights = [len(lines) + 1.4 for _, lines in panels]
    figure, every = _figure(sum(1.1 + 0.38 * len(lines) for _, lines in panels), heights)
    for axes, (tower, lines) in zip(every, panels, strict=True):
        _heat_map(axes, lines)
        weighted = "first modality" if tower == "inter" else "previous state"
        axes.set_title(f"{tower}: weight of the {weighted}", loc="left")
    every[-1].set_xlabel("gated level")
    return figure


@_style()
def tpme_regions(points: Sequence[tuple[Weights, str]], marks: Mapping[str, Weights]) -> "Figure":
    """Which method has the best TPME under which weights of time, parameters and memory.

    Args:
        points: ``((time, parameters, memory), winner)`` over the simplex, such as a regular grid; one entry per
            winner where several tie.
        marks: Name -> weights to mark.

    Raises:
        ConfigError: Fewer than three points, or all on one line.
    """
    from matplotlib.tri import Triangulation

    won: dict[Weights, set[str]] = {}
    for weights, winner in points:
        won.setdefault(weights, set()).add(winner)
    x, y = np.array([_ternary(weights) for weights in won]).reshape(-1, 2).T
    try:
        mesh = Triangulation(x, y)
    except (ValueError, RuntimeError):
        got = f"{len(won)} distinct points of weights"
        raise ConfigError(got, "three or more, not on a line", "give a grid over the simplex") from None
    figure, (axes,) = _figure(4.8)
    axes.set_aspect("equal")
    axes.set_axis_off()
    spots: list[Spot] = []
    for place, name in enumerate(dict.fromkeys(winner for _, winner in points)):
        inside = np.array([name in winners for winners in won.values()])
        look = {"colors": [COLOURS[place % len(COLOURS)]], "hatches": [HATCHES[place % len(HATCHES)]]}
        region = axes.tricontourf(mesh, inside.astype(float), levels=[0.5, 1.5], alpha=0.35, **look)
        # Hatching is drawn in the colour of the edge, which only the collection itself accepts.
        region.set(edgecolor="#555555", linewidth=0.8)
        # TPME is linear in the weights, so a region is convex and contains its centre.
        centre = float(x[inside].mean()), float(y[inside].mean())
        axes.plot(*centre, "o", markersize=5, color=INK)
        spots.append((*centre, name))
    corners = [_ternary((1, 0, 0)), _ternary((0, 1, 0)), _ternary((0, 0, 1))]
    axes.plot(*zip(*corners, corners[0], strict=True), color=INK, linewidth=1.5)
    for (corner_x, corner_y), name in zip(corners, ("time", "parameters", "memory"), strict=True):
        height, side = (corner_y + 0.02, "bottom") if corner_y else (-0.02, "top")
        axes.text(corner_x, height, f"only {name}", ha="center", va=side)
    axes.set(xlim=(-0.15, 1.15), ylim=(-0.1, 0.97))
    for name, weights in marks.items():
        spots.append((*_ternary(weights), name))
        axes.plot(*_ternary(weights), "*", markersize=14, color=INK, markeredgecolor="white")
    label(axes, spots, bold=marks)
    return figure


@_style()
def bars(records: Sequence[Record]) -> "Figure":
    """Mean test HR@10 by row; whiskers are standard deviations over seeds."""
    _drawable(records, lambda row: row.hr is not None, "test HR@10")
    rows = table(records)
    means = [100 * row.hr.mean if row.hr else 0.0 for row in rows]
    deviations = [100 * (row.hr.deviation or 0.0) if row.hr else 0.0 for row in rows]
    # A whisker of NaN is not drawn: one seed has no deviation.
    whiskers = [deviation or math.nan for deviation in deviations]
    figure, (axes,) = _figure(max(2.2, 1.0 + 0.5 * len(rows)))
    lines = {"elinewidth": 1.8, "capthick": 1.8, "capsize": 5}
    places = range(len(rows))
    axes.barh(places, means, height=0.65, color="#A9CBE4", edgecolor=INK, xerr=whiskers, error_kw=lines)
    for place, row in enumerate(rows):
        text = f"{means[place]:.2f}" if row.hr else "failed" if row.failures else "not measured"
        end = (means[place] + deviations[place], place)
        axes.annotate(text, end, (7, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [wrapped(row.name) for row in rows])
    axes.set_xlim(0, 1.22 * max(map(sum, zip(means, deviations, strict=True))) or 1)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("test HR@10 (%)")
    return figure


@_style()
def decline_lines(
    lines: Mapping[str, Sequence[float]], rates: Sequence[float], corrupted: str, metric: str
) -> "Figure":
    """Quality of runs, by name, at every rate of items with ``corrupted`` contents, such as ``no text``."""
    figure, (axes,) = _figure()
    for place, (name, values) in enumerate(lines.items()):
        shown = [100 * value for value in values]
        axes.plot([100 * rate for rate in rates], shown, label=name, **_look(place))
    axes.set_ylim(bottom=0)
    axes.set(xlabel=f"items with {corrupted} (%)", ylabel=f"test {metric} (%)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


@_style()
def trial_values(finished: Mapping[int, float], stopped: Sequence[int], metric: str) -> "Figure":
    """Validation metric of finished trials by number, the best so far, and crosses for stopped trials."""
    figure, (axes,) = _figure()
    values = [100 * value for value in finished.values()]
    best = list(itertools.accumulate(values, max))
    axes.step(list(finished), best, where="post", color=INK, label="best so far")
    axes.plot(list(finished), values, "o", color=COLOURS[0], label="finished")
    if stopped:
        axes.plot(
            stopped,
            [0.03] * len(stopped),
            "x",
            color=COLOURS[1],
            label="stopped",
            transform=axes.get_xaxis_transform(),
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", ylabel=f"validation {metric} (%)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


@_style()
def share_bars(shares: Mapping[str, float]) -> "Figure":
    """Shares of 1 by name, the largest on top."""
    figure, (axes,) = _figure(max(2.2, 1.0 + 0.5 * len(shares)))
    places = range(len(shares))
    axes.barh(places, [100 * share for share in shares.values()], height=0.65, color="#A9CBE4", edgecolor=INK)
    axes.set_yticks(places, [wrapped(name.replace(".", ". ")).replace(". ", ".") for name in shares])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share (%)")
    return figure


def _look(place: int) -> dict[str, Any]:
    """Colour, dash and marker of the line at a place among the lines of a chart."""
    looks = {"color": COLOURS, "linestyle": DASHES, "marker": MARKERS}
    return {name: values[place % len(values)] for name, values in looks.items()}


def _drawable(records: Sequence[Record], able: Callable[[Row], bool], needed: str) -> list[Row]:
    """The rows that a chart can draw; at least one."""
    rows = table(records)
    chosen = [row for row in rows if able(row)]
    if not chosen:
        names = ", ".join(f"'{row.name}'" for row in rows)
        raise ConfigError(f"no figures to draw in the rows {names}", needed, "choose another chart or experiment")
    return chosen


def _curve(row: Row) -> dict[float, float]:
    """Mean validation HR@10 by epoch, for the epochs that every finished run validated."""
    runs = [
        {entry["epoch"]: entry["hr@10"] for entry in run.history if {"epoch", "hr@10"} <= entry.keys()}
        for run in row.runs
    ]
    # A mean over fewer seeds towards the end would jump wherever one of them stops.
    shared = sorted(set.intersection(*map(set, runs))) if runs else []
    return {epoch: statistics.fmean(run[epoch] for run in runs) for epoch in shared}


def _gates(row: Row, tower: str) -> list[float]:
    """Mean gate of every level over the runs that have it."""
    levels = itertools.zip_longest(*(run.gates.get(tower, ()) for run in row.runs))
    return [statistics.fmean(value for value in level if value is not None) for level in levels]


def _heat_map(axes: "Axes", lines: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Cells from white (0) to dark (1) with their numbers; rows with fewer levels end earlier."""
    width = max(len(values) for _, values in lines)
    cells = [[*values, *([math.nan] * (width - len(values)))] for _, values in lines]
    axes.pcolormesh(cells, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    size = 14 * min(1, 10 / width)
    for line, (_, values) in enumerate(lines):
        for column, value in enumerate(values):
            look: Any = {"color": "white" if value > 0.6 else "black", "ha": "center", "va": "center"}
            axes.text(column + 0.5, line + 0.5, f"{value:.2f}".removeprefix("0"), fontsize=size, **look)
    axes.set_xticks([column + 0.5 for column in range(width)], [str(level + 1) for level in range(width)])
    axes.set_yticks([line + 0.5 for line in range(len(lines))], [wrapped(name) for name, _ in lines])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()


def _quality_axis(axes: "Axes", values: Sequence[float], name: str) -> None:
    """A y axis around the values, with room for labels."""
    low, high = min(values), max(values)
    pad = 0.4 * (high - low) or 0.1 * high or 1.0
    axes.set(ylim=(max(0, low - pad), high + pad), ylabel=name)
    axes.grid(alpha=0.25)


def _log_axis(axes: "Axes", values: Sequence[float], written: Callable[[float], str] = "{:g}".format) -> None:
    """A logarithmic x axis around the values, with at most six round numbers where that is possible."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.22 * (high - low), 0.15)
    left, right = 10 ** (low - pad), 10 ** (high + pad)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    decades = range(math.floor(low - pad), math.ceil(high + pad) + 1)
    for steps in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if left <= tick <= right]
        if len(ticks) <= 6:
            break
    axes.set_xticks(ticks, [written(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _ternary(weights: Weights) -> tuple[float, float]:
    """Weights as a point of a triangle of side 1: parameters at the left, memory at the right, time on top."""
    time, parameters, memory = weights
    total = time + parameters + memory
    return (memory + time / 2) / total, time / total * math.sqrt(3) / 2
