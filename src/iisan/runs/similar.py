"""Similar items of a run: by its learned embeddings, or by what the encoders know of their contents."""

import warnings

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from iisan.data.filters import Mask
from iisan.data.ids import quoted
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import whole_histories
from iisan.errors import DataError, RunError
from iisan.evaluate.ranks import top_k
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.evaluate.terms import side_by_side
from iisan.names import ITEM_ID, PAD, TEXT
from iisan.runs.run import Run

#: What items are similar by, beside single modalities: learned embeddings, or the anchors of all modalities.
MODEL, ANCHOR = "model", "anchor"


def comparable(run: Run) -> list[str]:
    """What the items of a run can be compared by, see ``item_vectors``; texts come before other modalities."""
    anchors = sorted(run.anchoring.scorer.anchors, key=lambda name: (name != TEXT, name)) if run.anchoring else []
    return [MODEL] * bool(run.members) + [ANCHOR] * bool(anchors) + anchors


def item_vectors(run: Run, by: str) -> Tensor:
    """Return item vectors ``[N, V]`` of length 1, whose dot products are cosines.

    An item without the content, or one that training never reached, has the vector zero.

    Args:
        run: A finished run.
        by: ``model`` for the learned embeddings (of several members, side by side), ``anchor`` for the anchors of
            all modalities side by side, or the name of a modality for its anchors.

    Raises:
        RunError: The run has no such vectors.
    """
    anchors = run.anchoring.scorer.anchors if run.anchoring else {}
    learned = {str(number): normalize(member.items, dim=1) for number, member in enumerate(run.members)}
    parts = {name: {name: vectors} for name, vectors in anchors.items()} | {MODEL: learned, ANCHOR: anchors}
    if isinstance(by, str) and parts.get(by):
        return side_by_side(parts[by])
    if by != MODEL and not anchors:
        got = f"the run in '{run.folder}' has no anchor, which similarity by '{by}' needs"
        raise RunError(got, "a run with an anchor", "train one with --set anchor=true")
    known = " or ".join(f"'{name}'" for name, vectors in parts.items() if vectors)
    raise RunError(f"the run in '{run.folder}' has no item vectors by '{by}'", known, f"ask for {known}")


class SimilarityScorer(EmbeddingScorer):
    """Scorer whose query is a single item, and whose scores are the cosines of ``item_vectors``.

    Attributes:
        by: What is compared, see ``item_vectors``.
        present: Mask ``[N]`` of the items with a vector.

    Raises:
        RunError: The run has no such vectors.
    """

    def __init__(self, run: Run, by: str) -> None:
        vectors = item_vectors(run, by)
        super().__init__(vectors, lambda histories: self.items[torch.from_numpy(histories[:, -1])], 1)
        self.by = by
        self.present: Mask = vectors.any(dim=1).cpu().numpy()


def similar_items(
    scorer: SimilarityScorer, items: pl.DataFrame, rows: Index, k: int, allowed: Mask
) -> tuple[Index, npt.NDArray[np.float32]]:
    """List the ``k`` allowed items most similar to each of the items ``rows [Q]``, itself not included.

    Args:
        scorer: What the items are compared by.
        items: Items of the run.
        rows: The items whose lists are wanted.
        k: Number of similar items per item.
        allowed: Mask ``[N]``.

    Returns:
        Item indices ``[Q, k]``, best first, and their cosines; ``PAD`` and -inf where no item is left, and, with a
        warning, for items without a vector.

    Raises:
        DataError: None of ``rows`` has a vector.
    """
    missing = ~scorer.present[rows]
    if missing.any():
        names = quoted(items[ITEM_ID].gather(rows[missing]))
        if missing.all():
            expected = "an item with that content, or seen in training"
            raise DataError(
                f"item {names} has no vector by '{scorer.by}'", expected, "name another one, or change 'by'"
            )
        warnings.warn(f"items without a vector by '{scorer.by}' are left out: {names}", stacklevel=3)
    alone = Sequences(np.arange(len(rows) + 1), rows.astype(np.int32))
    found, scores = top_k(
        scorer, whole_histories(alone, np.arange(len(rows))), k, "unseen", scorer.present & allowed
    )
    found[missing], scores[missing] = PAD, -np.inf
    return found, scores
