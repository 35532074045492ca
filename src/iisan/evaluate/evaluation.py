"""Evaluation of a scorer on queries: metrics, with the protocol under which they were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
from torch import Tensor

from iisan.config import Policy
from iisan.data.sequences import Index
from iisan.data.splits import Queries, Split
from iisan.errors import DataError
from iisan.evaluate.list_metrics import list_metrics
from iisan.evaluate.metrics import metrics_from_frame, per_user_frame, ranked_rows, summarise
from iisan.evaluate.ranks import rank_targets, top_k
from iisan.evaluate.sampled import SAMPLED, rank_among_sampled
from iisan.evaluate.scorer import Scorer

POLICIES: dict[Policy, str] = {
    "unseen": "history excluded (unseen)",
    "all": "nothing excluded (all)",
    "exclude-all": "history excluded, the target too (exclude-all)",
}
#: Share of the queries above which leaving them out causes a warning in the protocol line.
MANY = 0.2


@dataclass(frozen=True)
class Evaluation:
    """Quality of a scorer.

    Attributes:
        metrics: Metrics by name, as shares of 1 or counts, see ``summarise``; and those of ``list_metrics``.
        per_user: One row per query, see ``per_user_frame``; all metrics of ranks follow from it.
        protocol: Split, catalogue, policy and number of users and queries, in one line.
        future: See ``known_future``.
    """

    metrics: dict[str, float]
    per_user: pl.DataFrame
    protocol: str
    future: str = ""


def left_out(name: str, total: int, ranked: int, unit: str = "users") -> str:
    """State how many of the named queries the policy leaves out; raise a ``DataError`` if it leaves out all.

    ``unit`` is that of ``Queries``.
    """
    count = total - ranked
    if not ranked:
        got = f"all {total:,} targets of the {name} are in their users' histories"
        raise DataError(got, "at least one that is not", "choose the policy all")
    if not count:
        return ""
    many = count > MANY * total
    warning = f" (warning: more than {MANY:.0%}; the policy all ranks every target)" if many else ""
    return f"{count:,} of {total:,} {unit} left out because their target is in their history{warning}"


def known_future(split: Split, queries: Queries) -> str:
    """State how often training has interactions later than a target; empty if never, or without timestamps."""
    later = split.trained_later(queries)
    if later is None or not later.any():
        return ""
    return (
        f"{(later > 0).mean():.1%} of the {len(later):,} targets are earlier than a training interaction "
        f"({later.mean():.1%} of all training interactions are later than a target, on average)"
    )


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
    list_length: int | None = 10,
    anchors: Mapping[str, Tensor] | None = None,
    sampled: int | None = None,
    batch: int = 128,
    block: int = 32768,
) -> Evaluation:
    """Rank the whole catalogue for every query and average the metrics.

    ``name`` is that of the queries in the protocol line, such as ``"leave-one-out test"``; ``policy``, ``batch``
    and ``block`` are as in ``rank_targets``, ``train_counts``, ``user_ids`` and ``item_ids`` as in
    ``per_user_frame``. The metrics of lists, for which ``anchors`` are as in ``list_metrics``, take a second pass
    over the scores, which ``list_length=None`` omits. With ``sampled``, there are also metrics such as
    ``sampled_hr@10``, of the target's rank among that many drawn items (``sampled_negatives``), see
    ``rank_among_sampled``.

    Raises:
        RunError: A score is NaN or +inf.
        DataError: The policy leaves out every query.
        ConfigError: A query has fewer than ``sampled`` candidates.
    """
    rows = ranked_rows(queries, policy)
    remark = left_out(name, len(queries), len(rows), queries.unit)
    ranked = queries[rows]
    ranks = rank_targets(scorer, ranked, policy, batch=batch, block=block)
    frame = per_user_frame(ranks, rows, queries, train_counts, user_ids, item_ids)
    metrics = metrics_from_frame(frame, cutoffs)
    if list_length is not None:
        lists, _ = top_k(scorer, ranked, list_length, policy, batch=batch, block=block)
        metrics |= list_metrics(lists, ranked, train_counts, anchors)
    if sampled is not None:
        among = rank_among_sampled(scorer, ranked, sampled, policy)
        of_sampled = summarise(among.above, among.ties, user_ids.gather(ranked.users), cutoffs)
        metrics |= {SAMPLED + name: value for name, value in of_sampled.items() if "@" in name}
        metrics[f"{SAMPLED}negatives"] = sampled
    protocol = f"{name}, full ranking of {scorer.num_items:,} items, {POLICIES[policy]}, {ranked}"
    return Evaluation(metrics, frame, f"{protocol}; {remark}" if remark else protocol)
