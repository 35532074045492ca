"""Scorers without learning: what a model has to beat."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iisan.data.sequences import Index, ragged
from iisan.data.splits import Split
from iisan.errors import ConfigError
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.names import PAD


class FixedScorer:
    """The same scores for every user.

    Args:
        scores: ``[N]``.
    """

    history_length = 0

    def __init__(self, scores: npt.NDArray[np.floating] | Index) -> None:
        self.num_items = len(scores)
        self._scores = torch.from_numpy(np.asarray(scores, dtype=np.float32))

    def start(self, histories: Index) -> int:
        """Number of users, ``B``."""
        return len(histories)

    def score(self, query: int, items: Tensor | slice) -> Tensor:
        """``[B, n]`` scores."""
        return self._scores[items].repeat(query, 1)


def _dense_ranks(values: Index) -> Index:
    """Rank of each value among the distinct ones, from 0: the same order, exact in float32.

    Large counts would tie there, as would sums of a count and a fraction.
    """
    return np.unique(values, return_inverse=True)[1]


def most_popular(split: Split) -> FixedScorer:
    """Score = rank of the number of training interactions among all such numbers, from 0."""
    return FixedScorer(_dense_ranks(split.train_counts()))


def recently_popular(split: Split, share: float = 0.2) -> FixedScorer:
    """Score = rank of the number of recent training interactions; among equals, the number of all of them decides.

    Recent are the last ``share`` of all training interactions by timestamp (with all that share the
    earliest of these timestamps). Without timestamps, recent are the last ``share`` of every user's own
    training interactions, rounded up.

    Raises:
        ConfigError: ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"a recent share of {share}", "more than 0 and at most 1", "choose 0.2, say")
    starts, ends = split.train_starts, split.train_ends
    timestamps = split.sequences.timestamps
    if timestamps is None:
        _, recent = ragged(split.sequences.items, ends - np.ceil((ends - starts) * share).astype(int), ends)
    else:
        _, items = ragged(split.sequences.items, starts, ends)
        _, times = ragged(timestamps, starts, ends)
        recent = items[times >= np.quantile(times, 1 - share, method="higher")]
    counts = split.train_counts()
    return FixedScorer(_dense_ranks(np.bincount(recent, minlength=split.num_items) * (counts.max() + 1) + counts))


@dataclass(frozen=True)
class _LastItems:
    """``users`` queries, and the transitions out of their last items as ``(row, item, score)``."""

    users: int
    rows: Index
    items: Index
    scores: Index


class Markov:
    """How often training users went from the history's last item straight to j, then popularity.

    Items are ordered by ``count(last → j) + pop_j / (max pop + 1)``; scores are ranks in this order. Transitions
    are kept as CSR arrays, so memory grows with the interactions.

    Args:
        split: whose training interactions are counted.
    """

    history_length = 1

    def __init__(self, split: Split) -> None:
        self.num_items = split.num_items
        popularity = split.train_counts()
        ranks = _dense_ranks(popularity)
        self._popularity_ranks = torch.from_numpy(ranks).float()
        rows, items = ragged(split.sequences.items, split.train_starts, split.train_ends)
        follows = rows[1:] == rows[:-1]
        pairs, counts = np.unique(items[:-1][follows] * self.num_items + items[1:][follows], return_counts=True)
        self._next_items = pairs % self.num_items
        # Any transition is worth more than none.
        order = counts * (popularity.max() + 1) + popularity[self._next_items]
        self._scores = ranks.max() + 1 + _dense_ranks(order)
        self._offsets = np.searchsorted(pairs // self.num_items, np.arange(self.num_items + 1))

    def start(self, histories: Index) -> _LastItems:
        """Look up the transitions out of the last items; an empty history has none."""
        last = histories[:, -1]
        known = np.flatnonzero(last != PAD)
        starts, ends = self._offsets[last[known]], self._offsets[last[known] + 1]
        rows, items = ragged(self._next_items, starts, ends)
        _, scores = ragged(self._scores, starts, ends)
        return _LastItems(len(last), known[rows], items, scores)

    def score(self, query: _LastItems, items: Tensor | slice) -> Tensor:
        """``[B, n]`` scores."""
        if isinstance(items, slice):
            first, stop, _ = items.indices(self.num_items)
            return self._score_sorted(query, np.arange(first, stop))
        distinct, position = np.unique(items.cpu().numpy(), return_inverse=True)
        return self._score_sorted(query, distinct)[:, torch.from_numpy(position)]

    def _score_sorted(self, query: _LastItems, items: Index) -> Tensor:
        scores = self._popularity_ranks[torch.from_numpy(items)].repeat(query.users, 1)
        columns = np.minimum(np.searchsorted(items, query.items), len(items) - 1)
        asked = items[columns] == query.items
        where = torch.from_numpy(query.rows[asked]), torch.from_numpy(columns[asked])
        scores[where] = torch.from_numpy(query.scores[asked]).float()
        return scores


def last_item_similarity(vectors: Tensor, has_vector: Tensor) -> EmbeddingScorer:
    """Score = cosine between the vector of j and that of the history's last item.

    An item without a vector scores −2, below all others. After a last item without a vector, and after
    an empty history, all items that have one score 0.

    Args:
        vectors: ``[N, D]`` content vectors.
        has_vector: ``[N]`` bool; the rows of the others are ignored.
    """
    directions = torch.nn.functional.normalize(vectors.float(), dim=1)
    directions = torch.where(has_vector[:, None], directions, 0.0)
    penalty = torch.where(has_vector, 0.0, -2.0)[:, None].to(directions)

    def encode(histories: Index) -> Tensor:
        last = torch.from_numpy(histories[:, -1]).to(directions.device)
        query = torch.where((last != PAD)[:, None], directions[last], 0.0)
        # The added coordinate is 1 in every query, so that it adds an item's penalty to its score.
        return torch.nn.functional.pad(query, (0, 1), value=1.0)

    return EmbeddingScorer(torch.cat([directions, penalty], 1), encode, history_length=1)
