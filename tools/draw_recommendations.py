"""Draw a user's history and recommendations from the demo: ``python tools/draw_recommendations.py DEMO OUT.png``.

DEMO is the folder that ``iisan demo`` wrote. The picture in the README is that of its second user.
"""

import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

from iisan.api import Recommender
from iisan.data.images import open_image

COUNT = 5


def main(demo: Path, out: Path, user: int = 1) -> None:
    """Draw the last items of a user and the items recommended next."""
    recommender = Recommender.load(demo / "runs" / "iisan", demo / "dataset")
    dataset = recommender.dataset
    start, end = dataset.sequences.offsets[user : user + 2]
    history = dataset.sequences.items[start:end].tolist()[-COUNT:]
    found = recommender.recommend(user=dataset.user_ids[user], k=COUNT)
    rows = {
        "Last interactions, oldest first": history,
        "Recommended next, best first": dataset.item_index(found["item_id"].to_list()).tolist(),
    }
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 8})
    figure, axes = plt.subplots(2, COUNT, figsize=(1.5 * COUNT, 4.7), layout="constrained")
    for line, (title, items) in zip(axes, rows.items(), strict=True):
        for column, axis in enumerate(line):
            axis.axis("off")
            if column < len(items):
                if dataset.items["image"][items[column]] is not None:
                    axis.imshow(open_image(dataset.content_bytes("image", items[column])), interpolation="nearest")
                else:
                    axis.imshow([[1.0]], cmap="gray", vmin=0, vmax=1)
                    axis.text(0.5, 0.5, "no picture", transform=axis.transAxes, ha="center", color="gray")
                axis.text(
                    *(0.5, -0.06),
                    "\n".join(textwrap.wrap(dataset.text(items[column]) or "", 20, max_lines=3, placeholder=" …")),
                    transform=axis.transAxes,
                    ha="center",
                    va="top",
                )
        line[0].set_title(title, loc="left", fontsize=10, fontweight="bold")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, bbox_inches="tight", pad_inches=0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
