"""Metrics from two numbers per query: items scored above the target, and items tied with it.

Ties count as a random order: with g items above the target and t tied with it (itself
included) the ranks g+1 … g+t are equally likely, and each metric is its expectation over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from iisan.config import Policy
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.errors import ConfigError
from iisan.names import ITEM_ID, USER_ID

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """Positions of the targets in the full ranking.

    Attributes:
        above: Number of items scored above the target, ``[Q]``.
        ties: Number of items with the target's score, itself included (so at least 1), ``[Q]``.
    """

    above: Index
    ties: Index


def hit_rate(above: Index, ties: Index, k: int) -> Values:
    """Probability that the target is among the first ``k``, ``[Q]``: ``clip(k − g, 0, t) / t``."""
    return _expected(above, ties, np.ones(_checked(k)))


def ndcg(above: Index, ties: Index, k: int) -> Values:
    """Expected ``1 / log2(rank + 1)`` within the first ``k``, ``[Q]`` (one relevant item, so IDCG = 1)."""
    return _expected(above, ties, 1 / np.log2(np.arange(_checked(k)) + 2))


def mrr(above: Index, ties: Index, k: int) -> Values:
    """Expected ``1 / rank`` within the first ``k``, ``[Q]``."""
    return _expected(above, ties, 1 / (np.arange(_checked(k)) + 1))


METRICS = {"hr": hit_rate, "ndcg": ndcg, "mrr": mrr}


def _checked(k: int) -> int:
    if k < 1:
        raise ConfigError(f"the cutoff {k}", "a whole number of 1 or more", "choose cutoffs such as 5, 10, 20")
    return k


def _expected(above: Index, ties: Index, gains: Values) -> Values:
    """Mean of ``gains[rank - 1]`` over the ranks ``above + 1 … above + ties``; zero beyond ``len(gains)``."""
    cumulative = np.concatenate([[0.0], np.cumsum(gains)])
    last = len(gains)
    total: Values = cumulative[np.minimum(above + ties, last)] - cumulative[np.minimum(above, last)]
    return total / ties


def summarise(
    above: Index, ties: Index, users: pl.Series, cutoffs: Sequence[int], cold: npt.NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Average the metrics over queries; ``above`` and ``ties`` as in ``Ranks``, ``users`` ``[Q]`` are of any type.

    Returns:
        ``hr@k``, ``ndcg@k``, ``mrr@k`` as shares of 1, the number of ``users`` and, if one has several, that of
        ``queries``. With ``cold`` ``[Q]`` (whether the target has no training interaction) also ``cold_users``
        and, if any, their ``cold_hr@k`` and so on.
    """
    summary: dict[str, float] = {"users": users.n_unique()}
    if summary["users"] < len(users):
        summary["queries"] = len(users)
    for k in cutoffs:
        for name, metric in METRICS.items():
            summary[f"{name}@{k}"] = float(metric(above, ties, k).mean())
    if cold is None:
        return summary
    of_cold = summarise(above[cold], ties[cold], users.filter(pl.Series(cold)), cutoffs if cold.any() else ())
    return summary | {f"cold_{name}": value for name, value in of_cold.items()}


def coverage(recommended: Index, num_items: int) -> float:
    """Share of the catalogue in at least one of the lists ``[Q, k]`` of item indices, padded with ``PAD``."""
    return len(np.unique(recommended[recommended >= 0])) / num_items


def target_seen(queries: Queries) -> npt.NDArray[np.bool_]:
    """Whether the target is anywhere in its own whole history, ``[Q]``."""
    rows, items = queries.seen()
    return np.bincount(rows[items == queries.targets[rows]], minlength=len(queries)) > 0


def ranked_rows(queries: Queries, policy: Policy) -> Index:
    """Return the rows of the queries that a policy ranks; the others are left out of all means and tests.

    Under ``unseen`` these are the queries whose target is not in their own history.
    """
    return np.flatnonzero(~target_seen(queries)) if policy == "unseen" else np.arange(len(queries))


def per_user_frame(
    ranks: Ranks, rows: Index, queries: Queries, train_counts: Index, user_ids: pl.Series, item_ids: pl.Series
) -> pl.DataFrame:
    """Build a table with one row per query, from which all metrics but coverage follow.

    ``ranks`` are those of the queries that were ranked (``rows``), ``train_counts`` ``[N]`` the training
    interactions of every item, and the ids are ordered by user and item index.

    Returns:
        ``user_id``, ``item_id`` (the target), ``above`` and ``ties`` (null for queries that were left out),
        ``cold`` (the target has no training interaction), ``seen`` (the target is in the history).
    """

    def column(values: Index) -> pl.Series:
        return pl.repeat(None, len(queries), dtype=pl.Int64, eager=True).scatter(rows, values)

    return pl.DataFrame(
        {
            USER_ID: user_ids.gather(queries.users),
            ITEM_ID: item_ids.gather(queries.targets),
            "above": column(ranks.above),
            "ties": column(ranks.ties),
            "cold": train_counts[queries.targets] == 0,
            "seen": target_seen(queries),
        }
    )


def metrics_from_frame(frame: pl.DataFrame, cutoffs: Sequence[int]) -> dict[str, float]:
    """Apply ``summarise`` to the ranked rows of a ``per_user_frame`` or of a selection of its rows."""
    frame = frame.drop_nulls("ties")
    above, ties, cold = (frame[name].to_numpy() for name in ("above", "ties", "cold"))
    return summarise(above, ties, frame[USER_ID], cutoffs, cold)
