import itertools
import math
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from iisan.errors import ConfigError, MissingExtraError
from iisan.experiments import charts
from iisan.experiments.records import Record, table

# The published costs: four methods stand close together, the two others far away.
COSTS = {
    "FFT": (443, 195e6, 46.76e9, 4.06),
    "Adapter": (354, 5e6, 37.82e9, 3.91),
    "LoRA": (378, 0.8e6, 39.07e9, 4.09),
    "BitFit": (403, 0.4e6, 36.97e9, 3.76),
    "IISAN uncached": (179, 4e6, 8.32e9, 4.14),
    "IISAN cached": (22, 4e6, 3.11e9, 4.14),
}


def record(row, seed=0, **fields):
    return Record(**({"experiment": "e", "row": row, "seed": seed, "status": "finished"} | fields))


@pytest.fixture
def costly():
    return [
        record(
            row,
            test={"hr@10": 0.06, "ndcg@10": quality / 100},
            efficiency={"seconds_per_epoch": time, "trainable_parameters": size, "peak_memory_bytes": memory},
        )
        for row, (time, size, memory, quality) in COSTS.items()
    ]


def curve(*values, first=1):
    return [{"epoch": epoch, "loss": 1.0, "hr@10": value} for epoch, value in enumerate(values, first)]


def grid(steps):
    for time, parameters in itertools.product(range(steps + 1), repeat=2):
        if time + parameters <= steps:
            yield (time / steps, parameters / steps, (steps - time - parameters) / steps)


def texts(figure):
    from matplotlib.text import Text

    return [each.get_text() for each in figure.findobj(Text) if each.get_visible() and each.get_text()]


def boxes(axes):
    """The letters of every label, without the line that leads to its spot."""
    from matplotlib.text import Text

    renderer = axes.figure.canvas.get_renderer()
    axes.figure.draw_without_rendering()
    return {each.get_text(): Text.get_window_extent(each, renderer) for each in axes.texts}


def test_bubbles_have_areas_in_proportion_and_labels_that_do_not_overlap(costly):
    figure = charts.quality_against_cost(costly)
    (axes,) = figure.axes
    (bubbles,) = axes.collections
    areas = sorted(bubbles.get_sizes())
    assert areas[-1] / areas[0] == pytest.approx(46.76 / 3.11)
    assert axes.get_xscale() == "log"
    placed = boxes(axes)
    assert {name.replace("\n", " ") for name in placed} == set(COSTS)
    for (one, box), (other, second) in itertools.combinations(placed.items(), 2):
        assert not box.overlaps(second), (one, other)
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in placed.values())


def test_one_row_with_costs_is_enough(costly):
    assert "FFT" in texts(charts.quality_against_cost(costly[:1]))


def sized(row, hr, seed=0, **parameters):
    return record(row, seed, test={"hr@10": hr}, encoder_parameters=parameters)


def test_quality_is_drawn_over_the_parameters_that_grow():
    runs = [
        sized("large", 0.09, text=70e9, image=1e9),
        sized("base", 0.07, text=110e6, image=1e9),
        sized("base", 0.09, seed=1, text=110e6, image=1e9),
        sized("tiny", 0.05, text=4e6, image=1e9),
        record("failed", status="failed", error="no memory"),
    ]
    figure = charts.quality_against_size(runs)
    (axes,) = figure.axes
    (line,) = [each for each in axes.lines if each.get_linestyle() == "-" and len(each.get_xdata()) == 3]
    assert list(line.get_xdata()) == [4e6, 110e6, 70e9]
    assert list(line.get_ydata()) == pytest.approx([5, 8, 9])
    (whisker,) = [each for each in axes.collections[0].get_segments() if len(each) and not math.isnan(each[0][1])]
    assert whisker[:, 1] == pytest.approx([8 - math.sqrt(2), 8 + math.sqrt(2)])
    assert axes.get_xscale() == "log"
    assert "parameters, text (logarithmic)" in texts(figure)
    assert {"1 M", "1 G"} <= {each.get_text() for each in axes.get_xticklabels()}
    placed = boxes(axes)
    assert {"tiny", "base", "large"} == set(placed)
    x, y = axes.transData.transform(line.get_xydata()).T
    along = np.linspace(x[0], x[-1], 200)
    for name, box in placed.items():
        assert not box.count_contains(np.column_stack([along, np.interp(along, x, y)])), name


def test_sizes_are_drawn_only_where_every_encoder_grows_or_stays():
    small, large = {"text": 10, "image": 100}, {"text": 50, "image": 100}

    def found(*sizes):
        rows = [sized(str(place), 0.1, **parameters) for place, parameters in enumerate(sizes)]
        return charts.growing(table(rows))

    assert found(large, small) == ("text",)
    assert found(small, large, {"text": 50, "image": 300}) == ("text", "image")
    assert found(small) == found(small, small) == found({}, {}) == ()
    assert found(small, {"text": 5, "image": 300}) == ()
    assert found({"text": 10}, {"image": 100}) == ()
    with pytest.raises(ConfigError, match="without an order of size"):
        charts.quality_against_size([sized("A", 0.1, text=10)])


def test_curves_are_means_over_the_epochs_of_all_seeds():
    runs = [
        record("A", 0, history=curve(0.1, 0.2, 0.4)),
        record("A", 1, history=curve(0.3, 0.4)),
        record("B", 0, history=curve(0.2, 0.2, 0.2)),
        record("B", 1, status="failed", error="stopped", history=curve(0.9)),
    ]
    figure = charts.learning_curves(runs)
    one, two = figure.axes[0].lines
    assert list(one.get_xdata()) == [1, 2]
    assert list(one.get_ydata()) == pytest.approx([20, 30])
    assert list(two.get_ydata()) == pytest.approx([20, 20, 20])
    assert one.get_marker() != two.get_marker()
    assert one.get_linestyle() != two.get_linestyle()
    assert {"A", "B"} <= set(texts(figure))


def test_gates_are_printed_as_means_by_level():
    runs = [
        record("A", 0, gates={"inter": [0.5], "image": [0.25, 1.0]}),
        record("A", 1, gates={"inter": [0.5], "image": [0.35, 1.0]}),
        record("B", 0, gates={"image": [0.75]}),
    ]
    figure = charts.gate_values(runs)
    image, inter = figure.axes
    assert [each.get_text() for each in image.texts] == [".30", "1.00", ".75"]
    assert [each.get_text() for each in inter.texts] == [".50"]
    assert "image: weight of the previous state" in texts(figure)
    assert "inter: weight of the first modality" in texts(figure)
    assert [each.get_text() for each in image.get_yticklabels()] == ["A", "B"]


def test_bars_have_whiskers_and_say_what_failed():
    runs = [
        record("A", 0, test={"hr@10": 0.10}, position=1),
        record("A", 1, test={"hr@10": 0.12}, position=1),
        record("B", 0, test={"hr@10": 0.2}),
        record("C", 0, status="failed", error="no memory", position=2),
    ]
    figure = charts.bars(runs)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([20, 11, 0])
    assert [each.get_text() for each in axes.texts] == ["20.00", "11.00", "failed"]
    (whisker,) = axes.collections
    (segment,) = [each for each in whisker.get_segments() if len(each) and not math.isnan(each[0][0])]
    assert segment[:, 0] == pytest.approx([11 - math.sqrt(2), 11 + math.sqrt(2)])


def test_regions_are_named_and_weights_marked():
    points = [(weights, "cached" if weights[1] < 0.6 else "BitFit") for weights in grid(20)]
    figure = charts.tpme_regions(points, {"paper": (0.45, 0.1, 0.45)})
    assert {"cached", "BitFit", "paper", "only time", "only parameters", "only memory"} <= set(texts(figure))
    (star,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert star.get_xydata()[0] == pytest.approx([0.45 + 0.225, 0.45 * math.sqrt(3) / 2])
    assert len(figure.axes[0].collections) == 2


def test_a_tied_method_keeps_its_region():
    points = [(weights, name) for weights in grid(6) for name in ("one", "two")]
    assert {"one", "two"} <= set(texts(charts.tpme_regions(points, {})))


@pytest.mark.parametrize("count", [0, 2])
def test_regions_need_a_triangle(count):
    points = [((1.0, 0.0, 0.0), "A"), ((0.0, 1.0, 0.0), "B")][:count]
    with pytest.raises(ConfigError, match=f"{count} distinct points"):
        charts.tpme_regions(points, {})


def test_a_chart_without_figures_is_an_error():
    for draw in (
        *(charts.quality_against_cost, charts.quality_against_size),
        *(charts.learning_curves, charts.gate_values, charts.bars),
    ):
        with pytest.raises(ConfigError, match="no figures to draw in the rows 'A'"):
            draw([record("A")])


def test_svg_and_pdf_are_the_same_each_time(costly):
    one, two = (charts.quality_against_cost(costly) for _ in range(2))
    drawing = charts.svg(one)
    assert drawing == charts.svg(one) == charts.svg(two)
    assert drawing.startswith("<svg")
    assert drawing.rstrip().endswith("</svg>")
    assert "IISAN cached" in drawing
    assert charts.pdf(one) == charts.pdf(two)
    assert charts.pdf(one).startswith(b"%PDF")


def test_names_are_no_formulas():
    figure = charts.bars([record("$a_b$ & <c> -- d", test={"hr@10": 0.1})])
    assert "$a_b$ & <c> -- d" in texts(figure)
    assert ElementTree.fromstring(charts.svg(figure)).tag.endswith("svg")


def test_without_matplotlib_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[report\]"'):
        charts.bars([record("A", test={"hr@10": 0.1})])


def test_settings_of_matplotlib_are_left_as_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    charts.svg(charts.bars([record("A", test={"hr@10": 0.1})]))
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
