"""Metrics from two numbers a user: items scored above the target, and items tied with it.

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
    """Where the targets stand in the full ranking.

    Attributes:
        above: ``[Q]`` int64, items scored above the target.
        ties: ``[Q]`` int64, items that share the target's score, itself included (so at least 1).
    """

    above: Index
    ties: Index


def hit_rate(above: Index, ties: Index, k: int) -> Values:
    """Chance that the target is among the first ``k``, ``[Q]``: ``clip(k − g, 0, t) / t``."""
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
    above: Index, ties: Index, cutoffs: Sequence[int], cold: npt.NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Average the metrics over users.

    Args:
        above: ``[Q]`` items above the target.
        ties: ``[Q]`` items tied with the target, itself included.
        cutoffs: values of k.
        cold: ``[Q]`` whether the target has no training interaction.

    Returns:
        ``hr@k``, ``ndcg@k``, ``mrr@k`` as shares of 1 and the number of ``users``; with ``cold`` also
        ``cold_users`` and, where there are any, ``cold_hr@k`` and so on over these users alone.
    """
    summary: dict[str, float] = {"users": len(above)}
    for k in cutoffs:
        for name, metric in METRICS.items():
            summary[f"{name}@{k}"] = float(metric(above, ties, k).mean())
    if cold is None:
        return summary
    if not cold.any():
        return summary | {"cold_users": 0}
    of_cold = summarise(above[cold], ties[cold], cutoffs)
    return summary | {f"cold_{name}": value for name, value in of_cold.items()}


def coverage(recommended: Index, num_items: int) -> float:
    """Share of the catalogue that stands in at least one user's list.

    Args:
        recommended: ``[Q, k]`` item indices, ``PAD`` where a list is shorter.
        num_items: items in the catalogue, ``N``.
    """
    return len(np.unique(recommended[recommended >= 0])) / num_items


def target_seen(queries: Queries) -> npt.NDArray[np.bool_]:
    """Whether the target is in its own history, of any length, ``[Q]``."""
    rows, items = queries.seen()
    return np.bincount(rows[items == queries.targets[rows]], minlength=len(queries)) > 0


def ranked_rows(queries: Queries, policy: Policy) -> Index:
    """Rows of the queries that a policy ranks: under ``unseen`` those whose target is not in their own history.

    The others are left out of all means and tests.
    """
    return np.flatnonzero(~target_seen(queries)) if policy == "unseen" else np.arange(len(queries))


def per_user_frame(
    ranks: Ranks, rows: Index, queries: Queries, train_counts: Index, user_ids: pl.Series, item_ids: pl.Series
) -> pl.DataFrame:
    """One row a query: all that the metrics need, and what to slice them by.

    Args:
        ranks: where the targets of the ranked queries stand.
        rows: the queries that were ranked, see ``ranked_rows``.
        queries: all queries, ``Q``.
        train_counts: ``[N]`` training interactions of every item.
        user_ids: ``[users]`` in the order of the user indices.
        item_ids: ``[N]`` in the order of the item indices.

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
    """``summarise`` for the ranked rows of a ``per_user_frame``, or of any selection of them."""
    frame = frame.drop_nulls("ties")
    return summarise(frame["above"].to_numpy(), frame["ties"].to_numpy(), cutoffs, cold=frame["cold"].to_numpy())
