"""Labels of points in a chart, placed by the library adjustText."""

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from iisan.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: x and y in data coordinates, and a name.
Spot = tuple[float, float, str]


def wrapped(name: str, width: int = 18) -> str:
    """Break a name at spaces into lines of at most ``width`` characters."""
    return "\n".join(textwrap.wrap(name, width)) or name


def label(
    axes: "Axes",
    spots: Sequence[Spot],
    bold: Collection[str] = (),
    bubbles: Any = None,
    points: Sequence[tuple[float, float]] = (),
) -> None:
    """Write each name beside its spot without overlaps; a line leads to a spot that is far away.

    Args:
        axes: Chart that is finished but for these names.
        spots: Positions and names.
        bold: Names in bold type.
        bubbles: Scatter plot to avoid; without one, existing texts are avoided.
        points: Further points to avoid.
    """
    try:
        from adjustText import adjust_text
    except ImportError:
        raise MissingExtraError("adjustText", "report", "the report") from None
    figure: Any = axes.figure
    figure.draw_without_rendering()
    # The axes must not move once labels are placed.
    figure.set_layout_engine("none")
    written = [each.get_window_extent().transformed(axes.transData.inverted()) for each in axes.texts]
    # Above areas, below lines and marks.
    look: Any = {"ha": "center", "va": "center", "zorder": 1.9}
    look["bbox"] = {"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    texts = [
        axes.text(x, y, wrapped(name), weight="bold" if name in bold else "normal", **look) for x, y, name in spots
    ]
    # A limit of steps instead of seconds makes the same chart on every machine.
    adjust_text(
        texts,
        x=[x for x, _ in points],
        y=[y for _, y in points],
        target_x=[x for x, _, _ in spots],
        target_y=[y for _, y, _ in spots],
        objects=bubbles or written or None,
        ax=axes,
        expand=(1.1, 1.4),
        iter_lim=1000,
        arrowprops={"arrowstyle": "-", "color": "#444444", "linewidth": 0.9},
    )
