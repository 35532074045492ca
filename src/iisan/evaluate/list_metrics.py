"""Metrics of recommended lists, beyond accuracy: how much of the catalogue, how popular, how alike.

Lists ``[Q, k]`` hold item indices, best first, padded with ``PAD``.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.evaluate.metrics import gini
from iisan.evaluate.terms import side_by_side
from iisan.names import PAD

#: Most numbers in the vectors of the lists that are compared at a time.
_NUMBERS = 2**22


def list_metrics(
    lists: Index, queries: Queries, train_counts: Index, anchors: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Compute the metrics of the lists of some queries.

    Args:
        lists: Lists, one per query.
        queries: Queries, of whose histories the popularity is compared with that of the lists.
        train_counts: Training interactions of every item, ``[N]``.
        anchors: Anchors ``[N, A]`` of the items by modality, zero for items without it.

    Returns:
        ``coverage@k``, ``gini@k``, ``novelty@k``, ``popularity_lift@k`` and ``diversity@k``, without those that
        are undefined: no item is listed, no history has a trained item, or no list has two items with anchors.
    """
    values = {
        "coverage": coverage(lists, len(train_counts)),
        "gini": gini(np.bincount(lists[lists != PAD], minlength=len(train_counts))),
        "novelty": novelty(lists, train_counts),
        "popularity_lift": popularity_lift(lists, queries, train_counts),
        "diversity": diversity(lists, anchors) if anchors else None,
    }
    return {f"{name}@{lists.shape[1]}": value for name, value in values.items() if value is not None}


def coverage(lists: Index, num_items: int) -> float:
    """Share of the catalogue in at least one list."""
    return len(np.unique(lists[lists != PAD])) / num_items


def novelty(lists: Index, train_counts: Index) -> float | None:
    """Mean self-information ``−log2 p`` in bits over all places of the lists.

    ``p = (interactions + 1) / (all interactions + N)`` is the item's share of the training interactions, with one
    added to each item's so that an item without any has a finite value.
    """
    listed = lists[lists != PAD]
    information = np.log2(train_counts.sum() + len(train_counts)) - np.log2(train_counts + 1)
    return float(information[listed].mean()) if len(listed) else None


def popularity_lift(lists: Index, queries: Queries, train_counts: Index) -> float | None:
    """Mean training interactions of the listed items, relative to those of the items in the histories.

    Both are means over queries of the means of a list or history; empty ones are left out.
    """
    rows, items = queries.seen()
    of_histories = _mean_of_means(train_counts[items], rows)
    rows, places = np.nonzero(lists != PAD)
    of_lists = _mean_of_means(train_counts[lists[rows, places]], rows)
    return of_lists / of_histories if of_lists is not None and of_histories else None


def _mean_of_means(values: npt.NDArray[np.integer], rows: Index) -> float | None:
    """Mean over the distinct rows of the mean of their values."""
    sizes = np.bincount(rows)
    sums = np.bincount(rows, weights=values)
    return float((sums[sizes > 0] / sizes[sizes > 0]).mean()) if len(rows) else None


@torch.inference_mode()
def diversity(lists: Index, anchors: Mapping[str, Tensor]) -> float | None:
    """Mean over lists of one minus the mean cosine of two of its items, by the anchors of all modalities.

    Items without anchors are left out, and so are lists with fewer than two others.
    """
    width = sum(each.shape[1] for each in anchors.values())
    found = []
    for some in torch.from_numpy(lists).split(max(1, _NUMBERS // (width * lists.shape[1]))):
        listed = some != PAD
        items, places = some[listed].unique(return_inverse=True)
        unique = side_by_side({name: each[items.to(each.device)] for name, each in anchors.items()}).cpu()
        vectors = torch.zeros(*some.shape, unique.shape[1])
        vectors[listed] = unique[places]
        # The squared length of the sum of n vectors of length 1 is n plus twice the cosines of all pairs.
        count = vectors.any(2).sum(1).double()
        pairs = count * (count - 1)
        sums = vectors.sum(1, dtype=torch.float64)
        cosines = (sums.square().sum(1) - count)[pairs > 0] / pairs[pairs > 0]
        found.append(1 - cosines)
    values = torch.cat(found)
    return float(values.mean()) if len(values) else None
