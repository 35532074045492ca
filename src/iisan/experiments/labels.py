"""Where the labels of a chart go: clear of each other, of foreign spots and of foreign areas."""

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: ``(x0, y0, x1, y1)`` in points.
Box = tuple[float, float, float, float]
#: Offset of a label from its spot in points, whether a line must lead to it, and the price of the place.
Place = tuple[float, float, bool, float]
#: What a label belongs to: x and y in data, radius in points, text, and for an area the points within it.
Spot = tuple[float, float, float, str, Sequence[tuple[float, float]]]


def label(axes: "Axes", spots: Sequence[Spot], bold: int = 0, line: Sequence[tuple[float, float]] = ()) -> None:
    """Write each label beside its spot or inside its area, clear of the other labels, spots and areas.

    The first ``bold`` labels are in bold type; a line leads to a spot that is far off. Each label takes the
    cheapest of fixed places, given those that stand already, so the result depends on nothing but the spots and
    the ``line`` that labels keep off, given as close points in data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure: Any = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    # From here on the axes stay where they are, or the places found would shift.
    figure.set_layout_engine("none")
    scale = 72 / figure.dpi

    def in_points(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * scale, y * scale) for x, y in axes.transData.transform(list(places))] if places else []

    frame = axes.get_window_extent(renderer)
    bounds = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    centres = in_points([(x, y) for x, y, *_ in spots])
    # A hundred or two of an area's points are as good as all of them.
    rooms = [in_points(room[:: len(room) // 150 + 1]) for *_, room in spots]
    drawn = in_points(line)
    solid = [(*centre, spot[2]) for centre, spot in zip(centres, spots, strict=True) if not spot[4]]
    taken: list[Box] = []
    for place, ((x, y), (data_x, data_y, radius, text, _)) in enumerate(zip(centres, spots, strict=True)):
        written = axes.annotate(
            wrapped(text, 18),
            (data_x, data_y),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontweight="bold" if place < bold else "normal",
            arrowprops={"arrowstyle": "-", "color": "#444444", "linewidth": 0.9, "shrinkA": 0, "shrinkB": radius},
            bbox={"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=10,
        )
        extent = Text.get_window_extent(written, renderer)
        wide, high = extent.width * scale / 2 + 2, extent.height * scale / 2 + 1
        foreign = drawn + [
            point for other, room in enumerate(rooms) if rooms[place] and other != place for point in room
        ]
        choices = []
        for dx, dy, far, price in inside(rooms[place], (x, y)) or beside(radius, wide, high):
            box = (x + dx - wide, y + dy - high, x + dx + wide, y + dy + high)
            price += 20 * (4 * wide * high - overlap(box, bounds)) + 4 * sum(overlap(box, each) for each in taken)
            price += 40 * sum(box[0] < a < box[2] and box[1] < b < box[3] for a, b in foreign)
            for a, b, size in solid:
                price += 3 * overlap(box, (a - 0.9 * size, b - 0.9 * size, a + 0.9 * size, b + 0.9 * size))
                # A label that nearly touches another bubble would be read as that one's.
                gap = math.hypot(max(abs(a - x - dx) - wide, 0), max(abs(b - y - dy) - high, 0)) - size
                price += 6 * max(9 - gap, 0) if (a, b) != (x, y) else 0
            choices.append((price, dx, dy, far, box))
        _, dx, dy, far, box = min(choices)
        written.set_position((dx, dy))
        if not far and written.arrow_patch is not None:
            written.arrow_patch.set_visible(False)
        taken.append(box)


def inside(room: Sequence[tuple[float, float]], middle: tuple[float, float]) -> list[Place]:
    """Places of a label within its area, those near the middle cheaper."""
    offsets = [(x - middle[0], y - middle[1]) for x, y in room]
    return [(dx, dy, False, 0.2 * math.hypot(dx, dy)) for dx, dy in offsets]


def beside(radius: float, wide: float, high: float) -> Iterator[Place]:
    """Places of a label in rings around its spot."""
    for ring, angle in itertools.product(range(7), range(0, 360, 15)):
        reach = radius + 2 + 11 * ring
        along, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        # Right, left, above and below are read more easily as belonging to the spot than corners are.
        corner = 0.0 if angle in (0, 180) else 3.0 if angle in (90, 270) else 6.0
        # The label's edge, not its middle, stands at the reach.
        yield (reach + wide) * along, (reach + high) * up, ring > 0, 12.0 * ring + corner


def overlap(one: Box, two: Box) -> float:
    """Area shared by two boxes ``(x0, y0, x1, y1)``."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(width, 0.0) * max(height, 0.0)


def wrapped(name: str, width: int) -> str:
    """A name broken into lines of at most ``width`` letters, where it has spaces."""
    return "\n".join(textwrap.wrap(name, width)) or name
