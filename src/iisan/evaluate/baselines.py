"""Baselines without learned parameters."""

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from iisan.data.sequences import Index, ragged
from iisan.data.splits import Split
from iisan.errors import ConfigError
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.names import PAD
from iisan.progress import track

#: Most pairs of items with common users that are held at a time.
_PAIRS = 2**23


class FixedScorer:
    """The same scores ``[N]`` for every user."""

    history_length = 0

    def __init__(self, scores: npt.NDArray[np.floating] | Index) -> None:
        self.num_items = len(scores)
        self._scores = torch.from_numpy(np.asarray(scores, dtype=np.float32))

    def start(self, histories: Index) -> int:
        """Return the number of users, ``B``."""
        return len(histories)

    def score(self, query: int, items: Tensor | slice) -> Tensor:
        """Return the scores ``[B, n]``."""
        return self._scores[items].repeat(query, 1)


def _dense_ranks(values: Index) -> Index:
    """Rank of each value among the distinct ones, from 0: the same order, without ties in float32."""
    return np.unique(values, return_inverse=True)[1]


def most_popular(split: Split) -> FixedScorer:
    """Score items by their number of training interactions (its rank among all such numbers, from 0)."""
    return FixedScorer(_dense_ranks(split.train_counts()))


def recently_popular(split: Split, share: float = 0.2) -> FixedScorer:
    """Score items by their number of recent training interactions, then by that of all.

    The last ``share`` of all training interactions by timestamp are recent, including all at the earliest of these
    timestamps. Without timestamps, the last ``share`` of each user's training interactions, rounded up.

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


def transition_counts(split: Split) -> sparse.csr_array:
    """Count the training transitions from every item to its next, sparse ``[N, N]``, int64."""
    users, items = ragged(split.sequences.items, split.train_starts, split.train_ends)
    follows = users[1:] == users[:-1]
    pairs = items[:-1][follows], items[1:][follows]
    return sparse.csr_array((np.ones(follows.sum(), np.int64), pairs), shape=(split.num_items, split.num_items))


def _columns(scores: sparse.csr_array, items: Tensor | slice) -> Tensor:
    """Return the scores ``[B, n]`` of some items from those of all, sparse ``[B, N]``."""
    return torch.from_numpy(scores[:, items if isinstance(items, slice) else items.cpu().numpy()].toarray())


class Markov:
    """Score items by the number of training transitions to them from the history's last item, then by popularity.

    Items are ordered by ``count(last → j) + pop_j / (max pop + 1)``; scores are ranks in this order. Transitions
    are a sparse matrix, so memory grows with the number of interactions.
    """

    history_length = 1

    def __init__(self, split: Split) -> None:
        self.num_items = split.num_items
        popularity = split.train_counts()
        ranks = _dense_ranks(popularity)
        self._popularity_ranks = torch.from_numpy(ranks).float()
        counts = transition_counts(split)
        # The row after those of the items, which has no transitions, is the one that PAD, -1, selects.
        counts.resize(self.num_items + 1, self.num_items)
        # Any transition outranks none.
        order = counts.data * (popularity.max() + 1) + popularity[counts.indices]
        counts.data = (ranks.max() + 1 + _dense_ranks(order)).astype(np.float32)
        self._scores = counts

    def start(self, histories: Index) -> sparse.csr_array:
        """Return the scores of the transitions from the last items, ``[B, N]``; an empty history has none."""
        return self._scores[histories[:, -1]]

    def score(self, query: sparse.csr_array, items: Tensor | slice) -> Tensor:
        """Return the scores ``[B, n]``."""
        scores = _columns(query, items)
        return torch.where(scores > 0, scores, self._popularity_ranks[items])


class ItemKNN:
    """Score items by the sum of their similarities to the items of the history (item-based nearest neighbours).

    The similarity of two items is the cosine of their columns in the binary matrix of users and training items,
    ``common users / √(users of one · users of the other)``, of which each item keeps the largest. Of long training
    sequences and histories the last items count, as the time to count pairs grows with the square of the length.

    Args:
        split: Training interactions.
        neighbours: Number of similarities kept per item.
        length: Maximum number of items of a user.
    """

    def __init__(self, split: Split, neighbours: int = 100, length: int = 200) -> None:
        self.num_items, self.history_length = split.num_items, length
        starts = np.maximum(split.train_starts, split.train_ends - length)
        interactions = _occurrences(
            ragged(split.sequences.items, starts, split.train_ends), len(starts), split.num_items
        )
        by_item = interactions.T.tocsr()
        users = np.diff(by_item.indptr)
        scale = 1 / np.sqrt(np.maximum(users, 1), dtype=np.float32)
        # Pairs counted for each item, which bound the size of its row.
        work = np.minimum(by_item @ np.diff(interactions.indptr), split.num_items)
        blocks = np.split(np.arange(split.num_items), np.flatnonzero(np.diff(np.cumsum(work) // _PAIRS)) + 1)
        rows = []
        for block in track(blocks, "similar items by users"):
            common = by_item[block[0] : block[-1] + 1] @ interactions
            common.data *= np.repeat(scale[block], np.diff(common.indptr)) * scale[common.indices]
            rows.append(_largest(common, block[0], neighbours))
        self._similarities = sparse.vstack(rows, format="csr")

    def start(self, histories: Index) -> sparse.csr_array:
        """Return the scores ``[B, N]``."""
        rows, places = np.nonzero(histories != PAD)
        pairs = rows, histories[rows, places]
        return _occurrences(pairs, len(histories), self.num_items) @ self._similarities

    def score(self, query: sparse.csr_array, items: Tensor | slice) -> Tensor:
        """Return the scores ``[B, n]``."""
        return _columns(query, items)


def _occurrences(pairs: tuple[Index, Index], num_rows: int, num_items: int) -> sparse.csr_array:
    """Binary matrix of rows and items, sparse ``[num_rows, N]``, float32."""
    found = sparse.csr_array((np.ones(len(pairs[0]), np.float32), pairs), shape=(num_rows, num_items))
    found.sum_duplicates()
    found.data[:] = 1
    return found


def _largest(values: sparse.csr_array, first: int, count: int) -> sparse.csr_array:
    """Keep the largest values of each row, all in [0, 1], without the diagonal that begins at column ``first``."""
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    values.data[values.indices == rows + first] = 0
    long = np.flatnonzero(np.diff(values.indptr)[rows] > count)
    # In order of rows, and in each from the largest value on: sorting one key takes a fraction of sorting by two.
    order = long[np.argsort(rows[long] - values.data[long].astype(np.float64))]
    sizes = np.bincount(rows[order], minlength=values.shape[0])
    places = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    values.data[order[places >= count]] = 0
    values.eliminate_zeros()
    return values


def last_item_similarity(vectors: Tensor, has_vector: Tensor) -> EmbeddingScorer:
    """Score items by the cosine similarity of their content vector to that of the history's last item.

    An item without a vector scores −2, below all others. After a last item without a vector, and after
    an empty history, all items with a vector score 0. Of the content vectors ``[N, D]``, rows where ``has_vector``
    ``[N]`` is false are ignored.
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
