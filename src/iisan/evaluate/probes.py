"""Scorers whose ranks are known beforehand, and scorers that read changed histories."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iisan.data.sequences import Index
from iisan.evaluate.scorer import Scorer


class RandomScorer:
    """Independent, evenly distributed scores for every query and item, the same whichever block they are in.

    Args:
        num_items: Number of items, ``N``.
        seed: Seed of the queries.
    """

    history_length = 1

    def __init__(self, num_items: int, seed: int) -> None:
        self.num_items = num_items
        self._rng = np.random.default_rng(seed)

    def start(self, histories: Index) -> Any:
        """Return a random number for each query, uint64 ``[B]``."""
        return self._rng.integers(2**64, size=len(histories), dtype=np.uint64)

    def score(self, query: Any, items: Tensor | slice) -> Tensor:
        """Return the scores ``[B, n]``: hashes of query and item (the finaliser of SplitMix64)."""
        columns = np.arange(self.num_items)[items if isinstance(items, slice) else items.numpy()]
        hashed = query[:, None] + columns.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            hashed = (hashed ^ (hashed >> np.uint64(shift))) * np.uint64(factor)
        return torch.from_numpy(((hashed ^ (hashed >> np.uint64(31))) >> np.uint64(40)).astype(np.float32))


class RepeatScorer:
    """Scores the items of the history by their last position, counted from 1, and all other items 0.

    Args:
        num_items: Number of items, ``N``.
        history_length: Last items of a history that it reads, ``S``.
    """

    def __init__(self, num_items: int, history_length: int) -> None:
        self.num_items, self.history_length = num_items, history_length

    def start(self, histories: Index) -> Index:
        """Return the histories."""
        return histories

    def score(self, query: Index, items: Tensor | slice) -> Tensor:
        """Return the scores ``[B, n]``."""
        block = range(self.num_items)[items] if isinstance(items, slice) else range(self.num_items)
        # The last column takes what is not in the block, and PAD.
        scores, rows = torch.zeros(len(query), len(block) + 1), torch.arange(len(query))
        for position in range(query.shape[1]):
            columns = torch.from_numpy(query[:, position]) - block.start
            inside = (columns >= 0) & (columns < len(block))
            scores[rows, torch.where(inside, columns, len(block))] = position + 1.0
        return scores[:, :-1].contiguous() if isinstance(items, slice) else scores[:, items]


class ChangedHistories:
    """A scorer that reads changed histories.

    Args:
        scorer: The scorer.
        change: Function from histories ``[B, S]`` to others.
    """

    def __init__(self, scorer: Scorer, change: Callable[[Index], Index]) -> None:
        self.num_items, self.history_length = scorer.num_items, scorer.history_length
        self._scorer, self._change = scorer, change

    def start(self, histories: Index) -> Any:
        """Return the query of the changed histories."""
        return self._scorer.start(self._change(histories))

    def score(self, query: Any, items: Tensor | slice) -> Tensor:
        """Return the scores of the changed histories, ``[B, n]``."""
        return self._scorer.score(query, items)


def of_other_users(histories: Index) -> Index:
    """Give every query the history of another one of its batch."""
    return np.roll(histories, 1, axis=0)


def in_random_order(histories: Index) -> Index:
    """Shuffle the items of each history."""
    rng = np.random.default_rng(0)
    # Padding, which stands first, keeps its place.
    keys = np.where(histories < 0, -1.0, rng.random(histories.shape))
    return np.take_along_axis(histories, np.argsort(keys, axis=1, kind="stable"), axis=1)
