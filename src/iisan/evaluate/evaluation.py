"""From a scorer and queries to metrics, with the protocol they were measured under."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from iisan.config import Policy
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.evaluate.metrics import coverage, metrics_from_frame, per_user_frame
from iisan.evaluate.ranks import rank_targets, top_k
from iisan.evaluate.scorer import Scorer

POLICIES: dict[Policy, str] = {
    "exclude-all": "history excluded, the target too (exclude-all)",
    "keep-target": "history excluded, the target kept (keep-target)",
    "none": "nothing excluded (none)",
}


@dataclass(frozen=True)
class Evaluation:
    """How good a scorer is.

    Attributes:
        metrics: name -> share of 1 or count, see ``summarise``.
        per_user: one row a query, see ``per_user_frame``; all metrics but coverage follow from it.
        protocol: what the numbers mean, in one line.
    """

    metrics: dict[str, float]
    per_user: pl.DataFrame
    protocol: str


def evaluate(
    scorer: Scorer,
    queries: Queries,
    *,
    name: str,
    policy: Policy,
    cutoffs: Sequence[int],
    train_counts: Index,
    user_ids: pl.Series,
    item_ids: pl.Series,
    coverage_k: int | None = 10,
    batch: int = 128,
    block: int = 32768,
) -> Evaluation:
    """Rank the whole catalogue for every query and average the metrics.

    Args:
        scorer: what is measured.
        queries: ``Q`` histories with their targets.
        name: what the queries are, such as ``"leave-one-out test"``.
        policy: which items of the history are excluded, see ``rank_targets``.
        cutoffs: the k of HR@k, NDCG@k and MRR@k.
        train_counts: ``[N]`` training interactions of every item.
        user_ids: ``[users]`` in the order of the user indices.
        item_ids: ``[N]`` in the order of the item indices.
        coverage_k: length of the lists for ``coverage@k``, a second pass over the scores; None leaves it out.
        batch: users scored at a time.
        block: items scored at a time.

    Raises:
        RunError: a score is NaN or +inf.
    """
    ranks = rank_targets(scorer, queries, policy, batch=batch, block=block)
    frame = per_user_frame(ranks, queries, train_counts, user_ids, item_ids)
    metrics = metrics_from_frame(frame, cutoffs)
    if coverage_k is not None:
        lists, _ = top_k(scorer, queries, coverage_k, policy, batch=batch, block=block)
        metrics[f"coverage@{coverage_k}"] = coverage(lists, scorer.num_items)
    protocol = f"{name}, full ranking of {scorer.num_items:,} items, {POLICIES[policy]}, {len(queries):,} users"
    return Evaluation(metrics, frame, protocol)
