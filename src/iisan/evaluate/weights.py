"""The weights of the terms of a score, chosen on validation queries.

Legend: Q queries, C candidates of a query, F features of a candidate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iisan.config import Policy
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.errors import DataError
from iisan.evaluate.metrics import METRICS, Values, target_seen
from iisan.evaluate.terms import REPEAT, TermScorer, Weights
from iisan.progress import track

#: Best items of a query that become candidates in each round.
_CANDIDATES = 128
_ROUNDS = 6
#: Most queries on which weights are chosen.
MAX_QUERIES = 20_000
#: Scores computed at a time.
_SCORES = 2**24
_FACTORS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 4.0)
_DECAYS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: The default first, as of equally good ones the first is chosen.
_REPEATS = (REPEAT, -0.25, -1.0, 0.0, 0.25, -2.0, 0.5, 1.0, -4.0, 2.0, 4.0)
#: Quantile of the normal distribution for a two-sided test at 5%.
_SIGNIFICANT = 1.96
#: Weight of a term relative to that of the anchor, from which a search starts that has none yet.
_TYPICAL = {"popularity": 0.05}

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """Chosen weights.

    Attributes:
        weights: The weights.
        record: Facts about the search, as JSON.
    """

    weights: Weights
    record: dict[str, Any]


class Candidates:
    """Queries with some candidates that may outrank the target, and their features.

    Args:
        scorer: Scorer whose terms are weighted.
        queries: Queries, targets included.
        cold: Whether a query's target has no training interaction, ``[Q]``.
    """

    def __init__(self, scorer: TermScorer, queries: Queries, cold: _Flags) -> None:
        self.scorer, self.queries, self.cold = scorer, queries, cold
        self.histories = queries.histories(scorer.history_length)
        self.target_seen = target_seen(queries)
        self.targets = self._features(queries.targets[:, None])
        # The items of the history are always candidates, as their rank depends on the weight of repeats.
        self.items = np.empty((len(queries), 0), np.int64)
        self.features = torch.empty(len(queries), 0, self.targets.shape[2])
        self.others = self.unseen = torch.empty(len(queries), 0, dtype=torch.bool)
        self.add(np.where(self.histories < 0, queries.targets[:, None], self.histories))

    def add(self, items: Index) -> None:
        """Add candidates ``[Q, C]``; repeated ones are ignored."""
        known = np.concatenate([self.items, self.queries.targets[:, None]], axis=1)
        new = ~(items[:, :, None] == known[:, None, :]).any(2)
        order = np.argsort(items, axis=1, kind="stable")
        ascending = np.take_along_axis(items, order, axis=1)
        first = np.ones_like(new)
        np.put_along_axis(first, order[:, 1:], ascending[:, 1:] != ascending[:, :-1], axis=1)
        rows, seen = self.queries.seen()
        pairs = rows * self.scorer.num_items + seen
        numbers = np.arange(len(items))[:, None] * self.scorer.num_items + items
        self.items = np.concatenate([self.items, items], axis=1)
        self.features = torch.cat([self.features, self._features(items)], dim=1)
        self.others = torch.cat([self.others, torch.from_numpy(new & first)], dim=1)
        self.unseen = torch.cat([self.unseen, torch.from_numpy(~np.isin(numbers, pairs))], dim=1)

    def extend(self, weights: Weights) -> None:
        """Add the items that are best under some weights, whether seen or not."""
        scorer, count = self.scorer.reweighted(weights), min(_CANDIDATES, self.scorer.num_items)
        found = []
        for rows in self._chunks("best items"):
            query = scorer.start(self.histories[rows])
            scores = scorer.score(query, slice(0, scorer.num_items))
            found.append(scores.topk(count, dim=1).indices.cpu().numpy())
        self.add(np.concatenate(found))

    def values(self, weights: Weights, metric: str, policy: Policy) -> Values:
        """Compute a metric of every query, ``[Q]``; NaN where the policy leaves a query out."""
        name, _, k = metric.partition("@")
        vector = self.scorer.feature_weights(weights)
        scores, own = self.features @ vector, self.targets @ vector
        rivals = self.others if policy == "all" else self.others & self.unseen
        above = ((scores > own) & rivals).sum(1).numpy()
        ties = 1 + ((scores == own) & rivals).sum(1).numpy()
        values = METRICS[name](above, ties, int(k))
        if policy != "all":
            values[self.target_seen] = np.nan if policy == "unseen" else 0.0
        return values

    def _features(self, items: Index) -> Tensor:
        return torch.cat([self.scorer.features(self.histories[rows], items[rows]) for rows in self._chunks()])

    def _chunks(self, label: str | None = None) -> Iterator[slice]:
        step = max(1, min(256, _SCORES // self.scorer.num_items))
        starts: Any = range(0, len(self.queries), step)
        for start in track(starts, label) if label else starts:
            yield slice(start, min(start + step, len(self.queries)))


@torch.inference_mode()
def choose_weights(scorer: TermScorer, queries: Queries, policy: Policy, metric: str) -> Choice:
    """Choose the weights of a scorer's terms by a coordinate search for the best metric on validation queries.

    A search over all N items would be slow, so each round searches over the items that were best under the weights
    of the rounds before, until no new ones are found. Of all weights that are not significantly worse than the
    best (paired, at 5%), those are chosen that are best for targets without interactions, which become more
    frequent the longer ago the training was. The weight of repeats is chosen under the policy ``all``, as the
    others leave no items of the history to be ranked.

    Args:
        scorer: Scorer with any weights, from which the search starts.
        queries: Validation queries; a fixed sample of ``MAX_QUERIES`` is used if there are more.
        policy: Policy of the evaluation.
        metric: Metric such as ``hr@10``.

    Raises:
        DataError: There is no query that the policy ranks.
    """
    sample = queries.sample(MAX_QUERIES)
    cold = (scorer.counts.numpy() == 0)[sample.targets]
    if policy == "unseen":
        cold &= ~target_seen(sample)
    candidates = Candidates(scorer, sample, cold)
    if policy == "unseen" and candidates.target_seen.all():
        got = "no validation query with a target outside its history, to choose the weights of the terms on"
        raise DataError(got, "at least one", "choose the policy all, or set anchor to false")
    weights, tried = scorer.weights, list[Weights]()
    while weights not in tried and len(tried) < _ROUNDS:
        candidates.extend(weights)
        tried.append(weights)
        # Not from the last weights, which may be good for the candidates of this round only.
        weights = _search(candidates, scorer.weights, policy, metric)
    if weights not in tried:
        candidates.extend(weights)
    without = {
        name: float(np.nanmean(candidates.values(_without(weights, name), metric, policy)))
        for name in _names(weights)
        if name != "decay"
    }
    record = {
        "metric": metric,
        "policy": policy,
        "queries": len(sample),
        "rounds": len(tried),
        "candidates": candidates.items.shape[1],
        "validation": float(np.nanmean(candidates.values(weights, metric, policy))),
        "without": without,
    }
    return Choice(weights, record)


def _search(candidates: Candidates, start: Weights, policy: Policy, metric: str) -> Weights:
    cold = candidates.cold

    def values(weights: Weights) -> Values:
        found = candidates.values(weights, metric, policy)
        return found[~np.isnan(found)]

    best = _climb(start, lambda weights: float(values(weights).mean()))
    top = values(best)
    if cold.any() and not cold.all():

        def for_cold(weights: Weights) -> float:
            lost = top - values(weights)
            if lost.mean() > _SIGNIFICANT * lost.std() / len(lost) ** 0.5:
                return -np.inf
            return float(np.nanmean(candidates.values(weights, metric, policy)[cold]))

        best = _climb(best, for_cold)
    return _with_repeats(candidates, best, metric)


def _with_repeats(candidates: Candidates, weights: Weights, metric: str) -> Weights:
    unit = sum(weights.anchor.values()) or 1.0
    if not candidates.target_seen.any():
        return replace(weights, repeats=REPEAT * unit)
    choices = [replace(weights, repeats=factor * unit) for factor in _REPEATS]
    return max(choices, key=lambda each: float(candidates.values(each, metric, "all").mean()))


def _climb(start: Weights, value: Callable[[Weights], float]) -> Weights:
    """Change one weight at a time as long as the value rises."""
    best, best_value = start, value(start)
    improved = True
    while improved:
        improved = False
        for name in _names(best):
            for weights in _moves(best, name):
                found = value(weights)
                if found > best_value:
                    best, best_value, improved = weights, found, True
        # A term that does not help is left out.
        for name in _names(best):
            if name != "decay" and (found := value(bare := _without(best, name))) >= best_value:
                best, best_value = bare, found
    return best


def _names(weights: Weights) -> list[str]:
    """Names of the weights that are searched; the first member's is the unit of all others."""
    members = [f"member {number}" for number in range(2, len(weights.learned) + 1)]
    return [*members, *(f"anchor of {name}" for name in weights.anchor), "decay", "popularity", "transitions"]


def _get(weights: Weights, name: str) -> float:
    kind, _, which = name.partition(" ")
    if kind == "member":
        return weights.learned[int(which) - 1]
    if kind == "anchor":
        return weights.anchor[which.removeprefix("of ")]
    value: float = getattr(weights, name)
    return value


def _set(weights: Weights, name: str, value: float) -> Weights:
    kind, _, which = name.partition(" ")
    if kind == "member":
        members = list(weights.learned)
        members[int(which) - 1] = value
        return replace(weights, learned=tuple(members))
    if kind == "anchor":
        return replace(weights, anchor={**weights.anchor, which.removeprefix("of "): value})
    changes: dict[str, Any] = {name: value}
    return replace(weights, **changes)


def _without(weights: Weights, name: str) -> Weights:
    return _set(weights, name, 0.0)


def _moves(weights: Weights, name: str) -> Iterator[Weights]:
    """Weights that differ in one of them."""
    if name == "decay":
        values: Sequence[float] = _DECAYS
    elif current := _get(weights, name):
        values = [factor * current for factor in _FACTORS]
    else:
        # As large as it typically is beside the anchors.
        unit = max([*weights.anchor.values(), *weights.learned[:1], 0.0]) * _TYPICAL.get(name, 1.0)
        values = [factor * unit for factor in _FACTORS if factor]
    for value in values:
        yield _set(weights, name, value)
