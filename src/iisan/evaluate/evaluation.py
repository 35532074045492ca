"""From a scorer and queries to metrics, with the protocol they were measured under."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from iisan.config import Policy
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.errors import DataError
from iisan.evaluate.metrics import coverage, metrics_from_frame, per_user_frame, ranked_rows
from iisan.evaluate.ranks import rank_targets, top_k
from iisan.evaluate.scorer import Scorer

POLICIES: dict[Policy, str] = {
    "unseen": "history excluded (unseen)",
    "all": "nothing excluded (all)",
    "exclude-all": "history excluded, the target too (exclude-all)",
}
#: A protocol that leaves out more than this share of the queries carries a warning.
MANY = 0.2


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


def left_out(total: int, ranked: int) -> str:
    """How many of all queries the policy leaves out, for the protocol line; empty where it ranks them all.

    Raises:
        DataError: it leaves out every query.
    """
    count = total - ranked
    if not ranked:
        raise DataError(
            f"all {total:,} targets are in their users' histories",
            "at least one that is not, as the policy unseen leaves out the others",
            "choose the policy all",
        )
    if not count:
        return ""
    remark = f"{count:,} of {total:,} users left out because their target is in their history"
    if count > MANY * total:
        remark += f" (warning: more than {MANY:.0%}; the policy all ranks every target)"
    return remark


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
        policy: which items compete and which queries count, see ``rank_targets``.
        cutoffs: the k of HR@k, NDCG@k and MRR@k.
        train_counts: ``[N]`` training interactions of every item.
        user_ids: ``[users]`` in the order of the user indices.
        item_ids: ``[N]`` in the order of the item indices.
        coverage_k: length of the lists for ``coverage@k``, a second pass over the scores; None leaves it out.
        batch: users scored at a time.
        block: items scored at a time.

    Raises:
        RunError: a score is NaN or +inf.
        DataError: the policy leaves out every query.
    """
    rows = ranked_rows(queries, policy)
    remark = left_out(len(queries), len(rows))
    ranked = queries[rows]
    ranks = rank_targets(scorer, ranked, policy, batch=batch, block=block)
    frame = per_user_frame(ranks, rows, queries, train_counts, user_ids, item_ids)
    metrics = metrics_from_frame(frame, cutoffs)
    if coverage_k is not None:
        lists, _ = top_k(scorer, ranked, coverage_k, policy, batch=batch, block=block)
        metrics[f"coverage@{coverage_k}"] = coverage(lists, scorer.num_items)
    protocol = f"{name}, full ranking of {scorer.num_items:,} items, {POLICIES[policy]}, {len(rows):,} users"
    if remark:
        protocol += f"; {remark}"
    return Evaluation(metrics, frame, protocol)
