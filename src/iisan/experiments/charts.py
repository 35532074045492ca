"""Charts of records, each about six by four inches, readable in black and white and on a phone.

No chart rests on colour alone: lines differ in dash and marker, areas in hatching, and all carry labels.
Figures are made without pyplot, so none is kept between calls and no display is needed.
"""

import contextlib
import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iisan.errors import ConfigError, MissingExtraError
from iisan.experiments.labels import Spot, label, wrapped
from iisan.experiments.records import Record, Row, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Weights = tuple[float, float, float]

# Okabe and Ito's colours that stay apart for the colour-blind and are dark enough for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (9, 3)))
MARKERS = "os^Dv*PX"
# Only straight strokes: dots and rings make a vector file twenty times as large.
HATCHES = ("", "//", "\\\\", "--", "xx", "||", "++")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 15,
    "axes.labelsize": 15,
    "axes.titlesize": 15,
    "xtick.labelsize": 14,
    "ytick.labelsize": 14,
    "legend.fontsize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.7,
    # Names of rows come from outside: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    # Letters as outlines look the same everywhere; the salt makes the ids inside repeatable.
    "svg.fonttype": "path",
    "svg.hashsalt": "iisan",
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Matplotlib with our letters, for the time of the block."""
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "the report") from None
    with matplotlib.rc_context(STYLE):
        yield


def _figure(height: float = 4.0) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def svg(figure: "Figure") -> str:
    """The figure as an SVG document; the same figure gives the same text.

    It has neither a date nor a reference to anything outside, and no XML prologue, so it can stand in a page.
    """
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    return "<svg" + _saved(figure, "svg", nothing).decode().partition("<svg")[2]


def pdf(figure: "Figure") -> bytes:
    """The figure as a PDF document; the same figure gives the same bytes."""
    return _saved(figure, "pdf", {"CreationDate": None})


def _saved(figure: "Figure", form: str, metadata: dict[str, None]) -> bytes:
    with _style():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:
            # The layout's last digits differ from process to process.
            axes.set_position(tuple(round(value, 6) for value in axes.get_position().bounds))
        file = io.BytesIO()
        figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def has_costs(row: Row) -> bool:
    """Whether ``quality_against_cost`` can draw the row."""
    return row.ndcg is not None and bool(row.seconds_per_epoch) and bool(row.peak_memory_bytes)


def has_history(row: Row) -> bool:
    """Whether ``learning_curves`` can draw the row: two epochs that all its finished runs validated."""
    return len(_curve(row)) > 1


def has_gates(row: Row) -> bool:
    """Whether ``gate_values`` can draw the row."""
    return any(values for run in row.runs for values in run.gates.values())


def has_size(row: Row) -> bool:
    """Whether ``quality_against_size`` can draw the row."""
    return row.hr is not None and bool(row.encoder_parameters)


def growing(rows: Sequence[Row]) -> tuple[str, ...]:
    """The modalities whose encoders grow from the smallest row to the largest one.

    Returns:
        Empty where rows are equal in size, or smaller in one modality and larger in another.
    """
    sizes = [row.encoder_parameters for row in sorted(filter(has_size, rows), key=_all_parameters)]
    steps = list(itertools.pairwise(sizes))
    if not steps or any(
        one.keys() != other.keys() or dict(one) == dict(other) or any(one[name] > other[name] for name in one)
        for one, other in steps
    ):
        return ()
    return tuple(name for name in sizes[0] if sizes[0][name] < sizes[-1][name])


def _all_parameters(row: Row) -> float:
    return sum(row.encoder_parameters.values())


def quality_against_cost(records: Sequence[Record]) -> "Figure":
    """Test NDCG@10 over seconds an epoch (logarithmic), as bubbles whose area is the peak memory.

    Args:
        records: of one experiment at one scale; the mean over the seeds of each row is drawn.

    Raises:
        ConfigError: no row has NDCG@10, seconds and memory; or as ``records.table``.
    """
    rows = _drawable(table(records), has_costs, "NDCG@10, seconds per epoch and peak memory")
    seconds = [row.seconds_per_epoch or 0.0 for row in rows]
    quality = [100 * row.ndcg.mean for row in rows if row.ndcg]
    memory = [row.peak_memory_bytes or 0.0 for row in rows]
    areas = [1800 * value / max(memory) for value in memory]
    with _style():
        from matplotlib.ticker import EngFormatter

        figure = _figure()
        axes = figure.subplots()
        # Large bubbles lie below small ones; a dot marks the centre of one too small to be seen.
        order = sorted(range(len(rows)), key=lambda place: -areas[place])
        bubbles = axes.scatter(
            [seconds[place] for place in order],
            [quality[place] for place in order],
            [areas[place] for place in order],
            facecolors=COLOURS[0] + "4D",
            edgecolors="#222222",
            linewidths=1.2,
        )
        axes.plot(seconds, quality, ".", color="#222222", markersize=4)
        _log_axis(axes, seconds)
        _quality_axis(axes, quality, "test NDCG@10 (%)")
        axes.set_xlabel("seconds per epoch (logarithmic)")
        largest = EngFormatter("B", places=1)(max(memory))
        axes.set_title(f"area: peak memory (largest {largest})", fontsize=14, loc="left")
        label(axes, list(zip(seconds, quality, (row.name for row in rows), strict=True)), bubbles=bubbles)
    return figure


def quality_against_size(records: Sequence[Record]) -> "Figure":
    """Test HR@10 over the parameters of the encoders that grow (logarithmic), with deviations as whiskers.

    Args:
        records: of one experiment at one scale; the mean over the seeds of each row is drawn.

    Raises:
        ConfigError: no row has HR@10 and sizes, or no encoder grows (see ``growing``); or as ``records.table``.
    """
    rows = _drawable(table(records), has_size, "test HR@10 and the encoders' parameters")
    grown = growing(rows)
    if not grown:
        raise ConfigError("rows without an order of size", "encoders that grow from row to row", "draw bars")
    rows.sort(key=_all_parameters)
    sizes = [sum(row.encoder_parameters[name] for name in grown) for row in rows]
    quality = [100 * row.hr.mean for row in rows if row.hr]
    # A whisker of NaN is not drawn: one seed says nothing about deviation.
    whiskers = [100 * (row.hr.deviation or math.nan) for row in rows if row.hr]
    with _style():
        from matplotlib.ticker import EngFormatter

        figure = _figure()
        axes = figure.subplots()
        axes.errorbar(sizes, quality, whiskers, fmt="o-", color="#222222", linewidth=1.5, markersize=8, capsize=5)
        _log_axis(axes, sizes, EngFormatter())
        _quality_axis(axes, quality, "test HR@10 (%)")
        axes.set_xlabel(f"parameters, {' and '.join(grown)} (logarithmic)")
        steps = [step / 40 for step in range(41)]
        line = [
            (x * (other_x / x) ** step, y + (other_y - y) * step)
            for (x, y), (other_x, other_y) in itertools.pairwise(zip(sizes, quality, strict=True))
            for step in steps
        ]
        label(axes, list(zip(sizes, quality, (row.name for row in rows), strict=True)), points=line)
    return figure


def learning_curves(records: Sequence[Record]) -> "Figure":
    """Validation HR@10 by epoch, one line a row: the mean over its seeds, up to the last epoch of all.

    Args:
        records: of one experiment at one scale; failed runs are left out.

    Raises:
        ConfigError: no row has two validated epochs; or as ``records.table``.
    """
    rows = _drawable(table(records), has_history, "validation HR@10 of two epochs")
    columns = 2 if max(len(row.name) for row in rows) < 22 else 1
    with _style():
        from matplotlib.ticker import MaxNLocator

        figure = _figure(3.7 + 0.31 * math.ceil(len(rows) / columns))
        axes = figure.subplots()
        for place, row in enumerate(rows):
            curve = _curve(row)
            axes.plot(
                list(curve),
                [100 * value for value in curve.values()],
                linestyle=DASHES[place % len(DASHES)],
                marker=MARKERS[place % len(MARKERS)],
                color=COLOURS[place % len(COLOURS)],
                # A few markers tell the lines apart; shifted, they do not hide each other.
                markevery=(place % 2, max(1, len(curve) // 6)) if len(curve) > 6 else 1,
                linewidth=2,
                markersize=7,
                label=wrapped(row.name, 40),
            )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation HR@10 (%)")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5)
    return figure


def gate_values(records: Sequence[Record]) -> "Figure":
    """Learned gates as numbers in cells: one panel a tower, one line a row, one column a level.

    Within a modality the weight of the previous state ("IISAN", eq. 1), for ``inter`` that of the first modality
    (eq. 2); the mean over the seeds.

    Args:
        records: of one experiment at one scale; failed runs are left out.

    Raises:
        ConfigError: no row has gates; or as ``records.table``.
    """
    rows = _drawable(table(records), has_gates, "gates")
    seen = dict.fromkeys(tower for row in rows for run in row.runs for tower in run.gates)
    # The tower over the modalities stands below them, as in the papers' drawing.
    towers = sorted(seen, key=lambda tower: tower == "inter")
    panels = []
    for tower in towers:
        lines = [(row.name, _gates(row, tower)) for row in rows]
        panels.append([(name, values) for name, values in lines if values])
    with _style():
        figure = _figure(sum(1.1 + 0.38 * len(lines) for lines in panels))
        for axes, tower, lines in zip(
            figure.subplots(len(panels), squeeze=False, height_ratios=[len(lines) + 1.4 for lines in panels])[
                :, 0
            ],
            towers,
            panels,
            strict=True,
        ):
            _heat_map(axes, lines)
            of = "first modality" if tower == "inter" else "previous state"
            axes.set_title(f"{tower}: weight of the {of}", loc="left")
        axes.set_xlabel("gated level")
    return figure


def tpme_regions(points: Sequence[tuple[Weights, str]], marks: Mapping[str, Weights]) -> "Figure":
    """Which method has the best TPME under which weights of time, parameters and memory.

    Args:
        points: ``((time, parameters, memory), winner)`` over the simplex, such as a regular grid; weights
            that several methods tie at stand there once for each.
        marks: named weights to mark.

    Raises:
        ConfigError: fewer than three points, or points that all lie on a line.
    """
    with _style():
        from matplotlib.tri import Triangulation

        won: dict[Weights, set[str]] = {}
        for weights, winner in points:
            won.setdefault(weights, set()).add(winner)
        x, y = zip(*map(_ternary, won), strict=True) if won else ((), ())
        try:
            mesh = Triangulation(x, y)
        except (ValueError, RuntimeError):
            got = f"{len(won)} distinct points of weights"
            raise ConfigError(got, "three or more, not on a line", "give a grid over the simplex") from None
        figure = _figure(4.8)
        axes = figure.subplots()
        axes.set_aspect("equal")
        axes.set_axis_off()
        spots: list[Spot] = []
        for place, name in enumerate(dict.fromkeys(winner for _, winner in points)):
            inside = [float(name in winners) for winners in won.values()]
            # Hatching is drawn in the edge's colour, which only the collection itself can be given.
            look = {"colors": [COLOURS[place % len(COLOURS)]], "hatches": [HATCHES[place % len(HATCHES)]]}
            region = axes.tricontourf(mesh, inside, levels=[0.5, 1.5], alpha=0.35, **look)
            region.set_edgecolor("#555555")
            region.set_linewidth(0.8)
            # A method's region is convex, as TPME is linear in the weights: its middle lies inside.
            room = [point for point, of in zip(zip(x, y, strict=True), inside, strict=True) if of]
            middle_x, middle_y = (statistics.fmean(axis) for axis in zip(*room, strict=True))
            axes.plot(middle_x, middle_y, "o", markersize=5, color="#222222")
            spots.append((middle_x, middle_y, name))
        corners = [_ternary((1, 0, 0)), _ternary((0, 1, 0)), _ternary((0, 0, 1))]
        axes.plot(*zip(*corners, corners[0], strict=True), color="#222222", linewidth=1.5)
        for (corner_x, corner_y), name in zip(corners, ("time", "parameters", "memory"), strict=True):
            height, side = (corner_y + 0.02, "bottom") if corner_y else (-0.02, "top")
            axes.text(corner_x, height, f"only {name}", ha="center", va=side)
        axes.set_xlim(-0.15, 1.15)
        axes.set_ylim(-0.1, 0.97)
        for name, weights in marks.items():
            spots.append((*_ternary(weights), name))
            axes.plot(*spots[-1][:2], "*", markersize=14, color="#222222", markeredgecolor="white")
        label(axes, spots, bold=marks)
    return figure


def bars(records: Sequence[Record]) -> "Figure":
    """Mean test HR@10 by row, with the standard deviation over seeds as whiskers.

    Args:
        records: of one experiment at one scale; a row of which every run failed says so.

    Raises:
        ConfigError: no row has HR@10; or as ``records.table``.
    """
    rows = table(records)
    _drawable(rows, lambda row: row.hr is not None, "test HR@10")
    means = [100 * row.hr.mean if row.hr else 0.0 for row in rows]
    deviations = [100 * (row.hr.deviation or 0.0) if row.hr else 0.0 for row in rows]
    places = list(range(len(rows)))
    with _style():
        figure = _figure(max(2.2, 1.0 + 0.5 * len(rows)))
        axes = figure.subplots()
        # A whisker of NaN is not drawn: one seed says nothing about deviation.
        whiskers = [deviation or math.nan for deviation in deviations]
        lines = {"elinewidth": 1.8, "capthick": 1.8, "capsize": 5}
        axes.barh(places, means, height=0.65, color="#A9CBE4", edgecolor="#222222", xerr=whiskers, error_kw=lines)
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


def decline_lines(
    lines: Mapping[str, Sequence[float]], rates: Sequence[float], corrupted: str, metric: str
) -> "Figure":
    """What is left of runs' quality over the share of items that are corrupted.

    Args:
        lines: run -> the metric at every rate, as a share of 1.
        rates: shares of 1.
        corrupted: what is done to the items, for the axis.
        metric: its name.
    """
    with _style():
        figure = _figure()
        axes = figure.subplots()
        looks = zip(itertools.cycle(COLOURS), itertools.cycle(DASHES), itertools.cycle(MARKERS), strict=False)
        for (name, values), (colour, dash, marker) in zip(lines.items(), looks, strict=False):
            shown = [100 * value for value in values]
            axes.plot([100 * rate for rate in rates], shown, color=colour, ls=dash, marker=marker, label=name)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"items with {corrupted} (%)")
        axes.set_ylabel(f"test {metric} (%)")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


def _drawable(rows: Sequence[Row], able: Any, needed: str) -> list[Row]:
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
    if not runs:
        return {}
    # A mean over fewer seeds towards the end would jump wherever one of them stops.
    shared = sorted(set.intersection(*(set(run) for run in runs)))
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
    for line, (_, values) in enumerate(lines):
        for column, value in enumerate(values):
            axes.text(
                column + 0.5,
                line + 0.5,
                f"{value:.2f}".removeprefix("0"),
                color="white" if value > 0.6 else "black",
                fontsize=14 if width <= 10 else 14 * 10 / width,
                ha="center",
                va="center",
            )
    axes.set_xticks([column + 0.5 for column in range(width)], [str(level + 1) for level in range(width)])
    axes.set_yticks([line + 0.5 for line in range(len(lines))], [wrapped(name) for name, _ in lines])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()


def _quality_axis(axes: "Axes", values: Sequence[float], name: str) -> None:
    """A y axis around the values, with room for labels."""
    low, high = min(values), max(values)
    pad = 0.4 * (high - low) or 0.1 * high or 1.0
    axes.set_ylim(max(0, low - pad), high + pad)
    axes.set_ylabel(name)
    axes.grid(alpha=0.25)


def _log_axis(axes: "Axes", values: Sequence[float], written: Callable[[float], str] = "{:g}".format) -> None:
    """A logarithmic x axis around the values, with plain numbers at as many round places as are easily read."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.22 * (high - low), 0.15)
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - pad), 10 ** (high + pad))
    decades = range(math.floor(low - pad), math.ceil(high + pad) + 1)
    for steps in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low - pad <= math.log10(tick) <= high + pad]
        if len(ticks) <= 6:
            break
    axes.set_xticks(ticks, [written(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _ternary(weights: Weights) -> tuple[float, float]:
    """Weights on a triangle of side 1: parameters at the left, memory at the right, time on top."""
    time, parameters, memory = weights
    total = time + parameters + memory
    return (memory + time / 2) / total, time / total * math.sqrt(3) / 2
