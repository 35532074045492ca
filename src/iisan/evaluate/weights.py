"""The weights of the terms of a score, chosen on validation queries.

Legend: Q queries, C candidates of a query.
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
from iisan.names import PAD
from iisan.progress import track

#: Fewest best items of a query that become candidates in each round; twice the cutoff if that is more.
_CANDIDATES = 64
_ROUNDS = 4
#: Most queries on which weights are chosen.
MAX_QUERIES = 20_000
#: Queries and scores computed at a time.
_BATCH, _SCORES = 256, 2**24
_FACTORS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 4.0)
_DECAYS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: The default first, as of equally good ones the first is chosen.
_REPEATS = (REPEAT, -0.25, -1.0, 0.0, 0.25, -2.0, 0.5, 1.0, -4.0, 2.0, 4.0)
#: Weight of a term relative to that of the anchor, from which a search starts that has none yet.
_TYPICAL = {"popularity": 0.05}


@dataclass(frozen=True)
class Choice:
    """Chosen weights.

    Attributes:
        weights: The weights.
        record: Facts about the search, as JSON.
    """

    weights: Weights
    record: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return weights and record as JSON."""
        return {"weights": self.weights.as_json(), **self.record}


class Candidates:
    """Queries with some candidates that may outrank the target, and the terms of their scores.

    Args:
        scorer: Scorer whose terms are weighted.
        queries: Queries, targets included.
    """

    def __init__(self, scorer: TermScorer, queries: Queries) -> None:
        self.scorer, self.queries = scorer, queries
        self.cold = (scorer.counts.numpy() == 0)[queries.targets]
        self.histories = queries.histories(scorer.history_length)
        self.target_seen = target_seen(queries)
        self._users = np.unique(queries.users, return_inverse=True)[1]
        rows, seen = queries.seen()
        self._seen: Index = np.sort(self._numbers(rows, seen))
        self._known: Index = np.sort(self._numbers(np.arange(len(queries)), queries.targets))
        self.targets = self._terms(queries.targets[:, None])
        self.terms = {name: values[:, :0] for name, values in self.targets.items()}
        self.others = self.unseen = torch.empty(len(queries), 0, dtype=torch.bool)
        # The items of the history are always candidates, as their rank depends on the weight of repeats.
        self.add(np.where(self.histories == PAD, queries.targets[:, None], self.histories))

    @property
    def count(self) -> int:
        """Number of candidates per query, C."""
        return self.others.shape[1]

    def add(self, items: Index) -> None:
        """Add candidates ``[Q, C]``; repeated ones are ignored."""
        numbers = self._numbers(np.arange(len(items))[:, None], items)
        distinct, first = np.unique(numbers, return_index=True)
        flat = np.zeros(items.size, dtype=bool)
        flat[first] = ~_contains(self._known, distinct)
        new, unseen = flat.reshape(items.shape), ~_contains(self._seen, numbers)
        self._known = np.sort(np.concatenate([self._known, numbers[new]]))
        self.terms = {name: torch.cat([self.terms[name], each], 1) for name, each in self._terms(items).items()}
        self.others = torch.cat([self.others, torch.from_numpy(new)], dim=1)
        self.unseen = torch.cat([self.unseen, torch.from_numpy(unseen)], dim=1)

    def extend(self, weights: Weights, count: int = _CANDIDATES) -> None:
        """Add the ``count`` items that are best under some weights, whether seen or not."""
        scorer, count = self.scorer.reweighted(weights), min(count, self.scorer.num_items)
        found = []
        for rows in self._chunks("best items", _SCORES // scorer.num_items):
            query = scorer.start(self.histories[rows])
            scores = scorer.score(query, slice(0, scorer.num_items))
            found.append(scores.topk(count, dim=1).indices.cpu().numpy())
        self.add(np.concatenate(found))

    def values(self, weights: Weights, metrics: Sequence[str], policy: Policy) -> dict[str, Values]:
        """Compute metrics of every query, ``[Q]`` each; NaN where the policy leaves a query out."""
        scores, own = torch.zeros(self.others.shape), torch.zeros(len(self.others), 1)
        for name, factor in weights.factors().items():
            if factor:
                scores.add_(self.terms[name], alpha=factor)
                own.add_(self.targets[name], alpha=factor)
        rivals = self.others if policy == "all" else self.others & self.unseen
        above = ((scores > own) & rivals).sum(1).numpy()
        ties = 1 + ((scores == own) & rivals).sum(1).numpy()
        found = {}
        for metric in metrics:
            name, _, k = metric.partition("@")
            found[metric] = METRICS[name](above, ties, int(k))
            if policy != "all":
                found[metric][self.target_seen] = np.nan if policy == "unseen" else 0.0
        return found

    def mean(self, weights: Weights, metric: str, policy: Policy) -> float:
        """Mean of a metric over the queries that the policy ranks."""
        return float(np.nanmean(self.values(weights, [metric], policy)[metric]))

    def within_error(self, lost: Values) -> bool:
        """Whether the mean of losses ``[Q]`` is within one standard error.

        It is cluster-robust where users have several queries. NaN of queries that are left out are ignored.
        """
        known = np.isfinite(lost)
        mean, count = lost[known].mean(), known.sum()
        of_users = np.bincount(self._users[known], lost[known] - mean)
        return bool(mean <= np.sqrt((of_users**2).sum()) / count)

    def _terms(self, items: Index) -> dict[str, Tensor]:
        parts = [
            self.scorer.unweighted(self.histories[rows], items[rows], _DECAYS)
            for rows in self._chunks("terms", _BATCH)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _chunks(self, label: str, step: int) -> Iterator[slice]:
        step = max(1, min(_BATCH, step))
        for start in track(range(0, len(self.queries), step), label):
            yield slice(start, min(start + step, len(self.queries)))

    def _numbers(self, queries: Index, items: Index) -> Index:
        """One number per pair of query and item."""
        return queries * self.scorer.num_items + items


def _contains(ascending: Index, numbers: Index) -> npt.NDArray[np.bool_]:
    """Whether each number is in a sorted array."""
    places = np.searchsorted(ascending, numbers).clip(max=max(0, len(ascending) - 1))
    return ascending[places] == numbers if len(ascending) else np.zeros(numbers.shape, dtype=bool)


@torch.inference_mode()
def choose_weights(
    scorer: TermScorer, queries: Queries, policy: Policy, metric: str, starts: Sequence[Weights] = ()
) -> Choice:
    """Choose the weights of a scorer's terms by a coordinate search for the best metric on validation queries.

    A search over all N items would be slow, so each round searches over the items that were best under the
    weights of the rounds before, until no new weights are found. The first round searches from every start, the
    others from the best weights so far. Of all weights within one standard error (of the paired difference) of
    the best, in the metric and in HR and NDCG at its cutoff, those are chosen that are best for targets without
    interactions: these become more frequent the longer ago the training was. The weight of repeats is chosen
    under the policy ``all``, as the others leave no items of the history to be ranked.

    Args:
        scorer: Scorer with any weights.
        queries: Validation queries; a fixed sample of ``MAX_QUERIES`` is used if there are more.
        policy: Policy of the evaluation.
        metric: Metric such as ``hr@10``.
        starts: Weights from which the search starts; by default those of the scorer.

    Raises:
        DataError: There is no query that the policy ranks.
    """
    sample = queries.sample(MAX_QUERIES)
    candidates = Candidates(scorer, sample)
    if policy == "unseen" and candidates.target_seen.all():
        got = "no validation query with a target outside its history, to choose the weights of the terms on"
        raise DataError(got, "at least one", "choose the policy all, more validation users, or no anchor")
    depth = max(_CANDIDATES, 2 * int(metric.partition("@")[2]))

    def value(weights: Weights) -> float:
        return candidates.mean(weights, metric, policy)

    tried, found = list[Weights](), list(starts or [scorer.weights])
    rounds = 0
    while new := [weights for weights in found if weights not in tried]:
        for weights in new:
            candidates.extend(weights, depth)
        tried += new
        if rounds == _ROUNDS:
            break
        rounds += 1
        # The last weights may be good for the candidates of their round only.
        origins = new if rounds == 1 else [max(tried, key=value)]
        found = [_search(candidates, origin, policy, metric) for origin in origins]
    best, last = (max(each, key=value) for each in (tried, found))
    lost = candidates.values(best, [metric], policy)[metric] - candidates.values(last, [metric], policy)[metric]
    # The last weights, chosen for cold targets too, may not be as good as they were among fewer candidates.
    weights = last if candidates.within_error(lost) else best
    without = {name: value(_without(weights, name)) for name in _names(weights) if name != "decay"}
    record = {
        "metric": metric,
        "policy": policy,
        "queries": len(sample),
        "rounds": rounds,
        "candidates": candidates.count,
        "validation": value(weights),
        "without": without,
    }
    return Choice(weights, record)


def _search(candidates: Candidates, start: Weights, policy: Policy, metric: str) -> Weights:
    cutoff = metric.partition("@")[2]
    guarded = [metric, *({f"hr@{cutoff}", f"ndcg@{cutoff}"} - {metric})]
    names = _names(start)
    repeated = candidates.target_seen.any()
    if policy == "all" and repeated:
        names.append("repeats")
    best = _climb(start, names, lambda weights: candidates.mean(weights, metric, policy))
    top = candidates.values(best, guarded, policy)
    if np.isfinite(top[metric][candidates.cold]).any():

        def for_cold(weights: Weights) -> float:
            found = candidates.values(weights, guarded, policy)
            if not all(candidates.within_error(top[name] - values) for name, values in found.items()):
                return -np.inf
            return float(np.nanmean(found[metric][candidates.cold]))

        best = _climb(best, names, for_cold)
    if not repeated:
        return replace(best, repeats=REPEAT * _unit(best))
    if policy == "all":
        return best
    return max(_moves(best, "repeats"), key=lambda each: candidates.mean(each, metric, "all"))


def _unit(weights: Weights) -> float:
    """Scale of the terms that repeats are compared with."""
    return sum(weights.anchor.values()) or 1.0


def _climb(start: Weights, names: Sequence[str], value: Callable[[Weights], float]) -> Weights:
    """Change one weight at a time as long as the value rises."""
    best, best_value = start, value(start)
    improved = True
    while improved:
        improved = False
        for name in names:
            for weights in _moves(best, name):
                found = value(weights)
                if found > best_value:
                    best, best_value, improved = weights, found, True
        # A term that does not help is left out.
        for name in names:
            if name != "decay" and (found := value(bare := _without(best, name))) >= best_value:
                best, best_value = bare, found
    return best


def _names(weights: Weights) -> list[str]:
    """Names of the weights that are searched under every policy."""
    members = [f"member {number}" for number in range(1, len(weights.learned) + 1)]
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
    elif name == "repeats":
        values = [factor * _unit(weights) for factor in _REPEATS]
    elif current := _get(weights, name):
        values = [factor * current for factor in _FACTORS]
    else:
        # As large as it typically is beside the anchors.
        unit = max([*weights.anchor.values(), *weights.learned[:1], 0.0]) * _TYPICAL.get(name, 1.0)
        values = [factor * unit for factor in _FACTORS if factor]
    for value in values:
        yield _set(weights, name, value)
