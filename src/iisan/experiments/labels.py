"""Names beside the spots of a chart, placed by the library adjustText."""

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from iisan.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: x and y in data, and a name.
Spot = tuple[float, float, str]


def wrapped(name: str, width: int = 18) -> str:
    """A name broken into lines of at most ``width`` letters, where it has spaces."""
    return "\n".join(textwrap.wrap(name, width)) or name


def label(
    axes: "Axes",
    spots: Sequence[Spot],
    bold: Collection[str] = (),
    bubbles: Any = None,
    points: Sequence[tuple[float, float]] = (),
) -> None:
    """Write each name beside its spot, clear of the others; a line leads to a spot that is far off.

    Args:
        axes: a finished chart, but for these names.
        spots: what is named.
        bold: names in bold type.
        bubbles: a scatter plot to keep clear of; without one, texts that are there already are kept clear of.
        points: further points to keep clear of.
    """
    try:
        from adjustText import adjust_text
    except ImportError:
        raise MissingExtraError("adjustText", "report", "the report") from None
    figure: Any = axes.figure
    figure.draw_without_rendering()
    # From here on the axes stay where they are, or the places found would shift.
    figure.set_layout_engine("none")
    written = [each.get_window_extent().transformed(axes.transData.inverted()) for each in axes.texts]
    # Above areas, below lines and marks.
    look: Any = {"ha": "center", "va": "center", "zorder": 1.9}
    look["bbox"] = {"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    texts = [
        axes.text(x, y, wrapped(name), weight="bold" if name in bold else "normal", **look) for x, y, name in spots
    ]
    xs, ys = zip(*points, strict=True) if points else ((), ())
    target_xs, target_ys, _ = zip(*spots, strict=True)
    # A number of steps, not seconds: the same chart everywhere.
    adjust_text(
        texts,
        x=xs,
        y=ys,
        target_x=target_xs,
        target_y=target_ys,
        objects=bubbles or written or None,
        ax=axes,
        expand=(1.1, 1.4),
        iter_lim=1000,
        arrowprops={"arrowstyle": "-", "color": "#444444", "linewidth": 0.9},
    )
