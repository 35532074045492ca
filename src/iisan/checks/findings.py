"""Findings: what the numbers of a run rest on. They have intervals, and never fail.

Legend: Q queries, N items, V width of their vectors.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from torch import Tensor

from iisan.checks.subject import FEWEST, NotCheckedError, Outcome, Subject
from iisan.data.splits import Queries
from iisan.errors import ConfigError, StoreError
from iisan.evaluate.evaluation import evaluate
from iisan.evaluate.metrics import named_metrics
from iisan.evaluate.probes import ChangedHistories, in_random_order, of_other_users
from iisan.evaluate.ranks import top_k
from iisan.evaluate.scorer import Scorer
from iisan.evaluate.significance import compare, interval, intervals
from iisan.evaluate.terms import side_by_side
from iisan.names import ITEM_ID
from iisan.runs.assess import rivals

#: Length of the compared lists.
_LENGTH = 10
#: Items whose vectors determine the effective rank, at most.
_ITEMS = 20_000


def what_beats_what(subject: Subject) -> Outcome:
    """The run against the baselines and its own parts."""
    config = subject.config
    try:
        others = rivals(subject.run, config, subject.dataset, subject.split)
    except (ConfigError, StoreError):  # Without states, the baselines are those that read none.
        others = rivals(subject.run, config.model_copy(update={"modalities": ()}), subject.dataset, subject.split)
    return _against(subject, others)


def other_histories(subject: Subject) -> Outcome:
    """What the run loses with histories of other users."""
    return _against(subject, {"histories of other users": ChangedHistories(subject.run.scorer, of_other_users)})


def shuffled_histories(subject: Subject) -> Outcome:
    """What the run loses with the items of each history in random order."""
    return _against(subject, {"the items in random order": ChangedHistories(subject.run.scorer, in_random_order)})


def validation_and_test(subject: Subject) -> Outcome:
    """The quality on the validation queries, which something was chosen on, and on the test queries."""
    metric, values, texts = subject.metric, {}, []
    for name, every in (("validation", subject.split.validation), ("test", subject.split.test)):
        queries = _enough(subject.ranked_of(every))
        frame = _per_user(subject, subject.run.scorer, queries)
        mean = named_metrics(frame, [metric])[metric]
        low, high = intervals(frame, [metric])[metric]
        values[name] = {"mean": mean, "low": low, "high": high, "queries": len(queries)}
        texts.append(f"{name} {mean:.2%} ({low:.2%} to {high:.2%}, {queries})")
    return Outcome(f"{metric.upper()} of {', of '.join(texts)}", True, values)


def effective_ranks(subject: Subject) -> Outcome:
    """The number of directions that the item vectors fill."""
    run = subject.run
    some = slice(None, None, subject.num_items // _ITEMS + 1)
    vectors = {f"member {number}": member.items[some] for number, member in enumerate(run.members, start=1)}
    if run.anchoring is not None:
        vectors["anchor"] = side_by_side({name: each[some] for name, each in run.anchoring.scorer.anchors.items()})
    ranks = {name: effective_rank(each) for name, each in vectors.items()}
    names = {} if len(run.members) > 1 else {"member 1": "learned"}
    texts = [f"{names.get(name, name)} {rank:.1f} of {vectors[name].shape[1]}" for name, rank in ranks.items()]
    return Outcome(", ".join(texts), True, ranks)


def effective_rank(vectors: Tensor) -> float:
    """Exponential of the entropy of the singular values, as shares of their sum, of centred vectors ``[N, V]``."""
    centred = vectors.cpu().double() - vectors.cpu().double().mean(0)
    sizes = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    shares = sizes / sizes.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


def equal_lists(subject: Subject) -> Outcome:
    """The share of the lists that another user gets as well."""
    queries = _enough(subject.ranked)
    lists, _ = top_k(subject.run.scorer, queries, _LENGTH, subject.policy)
    _, which, counts = np.unique(np.sort(lists, axis=1), axis=0, return_inverse=True, return_counts=True)
    shared = (counts[which.ravel()] > 1).astype(np.float64)
    low, high = interval(shared, np.ones(len(shared)))
    share = f"{shared.mean():.1%} ({low:.1%} to {high:.1%}) of {len(lists):,} lists of {_LENGTH}"
    text = f"{share} have the same items as another"
    return Outcome(text, True, {"share": float(shared.mean()), "low": low, "high": high})


def _enough(queries: Queries) -> Queries:
    if queries.num_users < FEWEST:
        raise NotCheckedError(f"{queries}, too few for an interval: {FEWEST} users or more")
    return queries


def _per_user(subject: Subject, scorer: Scorer, queries: Queries) -> pl.DataFrame:
    return evaluate(
        scorer,
        queries,
        name="sample",
        policy=subject.policy,
        cutoffs=subject.config.evaluation.cutoffs,
        train_counts=subject.split.train_counts(),
        user_ids=subject.dataset.user_ids,
        item_ids=subject.dataset.items[ITEM_ID],
        list_length=None,
    ).per_user


def _against(subject: Subject, others: Mapping[str, Scorer]) -> Outcome:
    """Compare the run with other scorers, in pairs on a sample of the test queries."""
    queries, metric = _enough(subject.ranked), subject.metric
    own = _per_user(subject, subject.run.scorer, queries)
    values, texts = {}, []
    for name, scorer in others.items():
        found = compare([own], [_per_user(subject, scorer, queries)], metric)
        values[name] = {"mean": found.mean_b, "difference": found.difference, "low": found.low, "high": found.high}
        low, high = 100 * found.low, 100 * found.high
        texts.append(f"{name} {found.mean_b:.2%}: {100 * found.difference:+.2f} ({low:+.2f} to {high:+.2f})")
        mean = found.mean_a
    first = f"{metric.upper()} {mean:.2%} ({queries})\ndifference, in points, to"
    return Outcome("\n".join([first, *texts]), True, values)
