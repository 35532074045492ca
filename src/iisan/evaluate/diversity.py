"""Lists without too many items of a kind and without near-duplicates: a greedy pass down the ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from iisan.config import Policy
from iisan.data.conditions import numbered_values
from iisan.data.filters import Mask
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.errors import ConfigError
from iisan.evaluate.ranks import check_length, top_k
from iisan.evaluate.scorer import Scorer
from iisan.names import PAD

#: Places of the ranking that are read first, and factor by which more are read, relative to the length of a list.
_DEEPER = 4
#: Places whose items are compared with each other at a time.
_PLACES = 64
#: Most numbers in the vectors of the items that are compared at a time.
_NUMBERS = 2**25


@dataclass(frozen=True)
class Limit:
    """At most ``count`` items of one value in a list.

    Attributes:
        values: Number of each item's value, ``[N]``; ``PAD`` for an item without one, to which no limit applies.
        count: Number of items of one value, 1 or more.
    """

    values: Index
    count: int

    def __post_init__(self) -> None:
        if not isinstance(self.count, int | np.integer) or self.count < 1:
            got = f"at most {self.count!r} items of a value"
            raise ConfigError(got, "a whole number, 1 or more", "write max_per={'column': 2}")

    def longest(self, allowed: Mask) -> int:
        """Return the length of the longest list of allowed items."""
        values = self.values[allowed]
        return int((values == PAD).sum() + np.bincount(values[values != PAD]).clip(max=self.count).sum())


def limits_per(items: pl.DataFrame, max_per: str | Mapping[str, int]) -> list[Limit]:
    """Return the limits of ``Recommender.recommend`` for the items of a dataset.

    Raises:
        ConfigError: A number that is no limit.
        DataError: An unknown column, or one of nested values.
    """
    counts = {max_per: 1} if isinstance(max_per, str) else max_per
    if not isinstance(counts, Mapping):
        raise ConfigError(f"max_per={max_per!r}", "a column, or numbers by column", "write max_per={'column': 2}")
    return [Limit(numbered_values(items, name), count) for name, count in counts.items()]


@dataclass(frozen=True)
class Distance:
    """No item whose cosine with an item higher in the list exceeds ``threshold``.

    Attributes:
        vectors: Vectors ``[N, V]`` of length 1, or zero for items that are similar to none.
        threshold: Cosine, from 0 to below 1.
    """

    vectors: npt.NDArray[np.float32]
    threshold: float

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float | np.floating) or not 0 <= self.threshold < 1:
            got = f"near-duplicates above a cosine of {self.threshold!r}"
            raise ConfigError(got, "0 or more, below 1", "choose a threshold such as 0.99")

    def near(self, items: Index, lists: Index) -> tuple[Mask, Mask]:
        """Mark which ``items [B, P]`` are near an item of the ``lists [B, L]``, and which near each other.

        Returns:
            ``[B, P]`` and ``[B, P, P]``; every item is near itself.
        """
        vectors, listed = (self.vectors[each] * (each != PAD)[..., None] for each in (items, lists))
        in_list, each_other = (vectors @ each.swapaxes(1, 2) > self.threshold for each in (listed, vectors))
        return in_list.any(2), each_other


def diverse_top_k(
    scorer: Scorer,
    queries: Queries,
    k: int,
    policy: Policy = "unseen",
    allowed: Mask | None = None,
    *,
    limits: Sequence[Limit] = (),
    distance: Distance | None = None,
    batch: int = 128,
    block: int = 32768,
) -> tuple[Index, npt.NDArray[np.float32]]:
    """List the ``k`` best items of every query that keep the limits and the distance.

    An item is listed unless it breaks a limit or the distance together with the items listed above it: a greedy
    pass down the whole ranking, of which only as much is computed as the lists need. The other arguments and the
    result are those of ``top_k``, which this is without limits and distance.

    Raises:
        RunError: A score is NaN or +inf.
        ConfigError: ``k``, ``batch`` or ``block`` is out of range.
    """
    if not limits and distance is None:
        return top_k(scorer, queries, k, policy, allowed, batch=batch, block=block)
    check_length(k)
    candidates = np.ones(scorer.num_items, bool) if allowed is None else allowed
    # A list that cannot be longer is not looked for down to the end of the ranking.
    full = min(k, *(limit.longest(candidates) for limit in limits), scorer.num_items)
    if distance is not None:
        batch = min(batch, max(1, _NUMBERS // (max(full, _PLACES) * distance.vectors.shape[1])))
    items = np.full((len(queries), k), PAD, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(queries), batch):
        pending, depth = np.arange(start, min(start + batch, len(queries))), k
        while len(pending):
            depth = min(_DEEPER * depth, scorer.num_items)
            ranking = top_k(scorer, queries[pending], depth, policy, allowed, batch=batch, block=block)
            chosen = _pass(ranking[0], full, limits, distance)
            rows, places = np.nonzero(chosen)
            slots = (chosen.cumsum(1) - 1)[rows, places]
            items[pending[rows], slots], scores[pending[rows], slots] = (each[rows, places] for each in ranking)
            ended = (chosen.sum(1) == full) | (ranking[0][:, -1] == PAD) | (depth == scorer.num_items)
            pending = pending[~ended]
    return items, scores


def _pass(ranking: Index, k: int, limits: Sequence[Limit], distance: Distance | None) -> Mask:
    """Mark the first ``k`` items of every ranking ``[B, D]`` that keep the limits and the distance."""
    chosen = np.zeros(ranking.shape, bool)
    lists = np.full((len(ranking), k), PAD, np.int64)
    lengths = np.zeros(len(ranking), np.int64)
    # The last row belongs to PAD, which has no value.
    values = [np.append(limit.values, PAD - 1) for limit in limits]
    for place in range(ranking.shape[1]):
        rows = np.flatnonzero((lengths < k) & (ranking[:, place] != PAD))
        if not len(rows):
            break
        if distance is not None and place % _PLACES == 0:
            block = slice(place, place + _PLACES)
            near, near_each_other = distance.near(ranking[:, block], lists[:, : lengths.max()])
        items, longest = ranking[rows, place], lengths.max()
        kept = np.ones(len(rows), bool)
        for limit, value in zip(limits, values, strict=True):
            own = value[items]
            same = (value[lists[rows, :longest]] == own[:, None]).sum(1)
            kept &= (own == PAD) | (same < limit.count)
        if distance is not None:
            column = place % _PLACES
            kept &= ~near[rows, column] & ~(near_each_other[rows, column] & chosen[rows, block]).any(1)
        rows, items = rows[kept], items[kept]
        chosen[rows, place] = True
        lists[rows, lengths[rows]] = items
        lengths[rows] += 1
    return chosen
