"""Metrics from two numbers per query: items scored above the target, and items tied with it.

Ties count as a random order: with g items above the target and t tied with it (itself
included) the ranks g+1 … g+t are equally likely, and each metric is its expectation over them.
"""

from collections.abc import Callable, Sequence
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
#: Columns of the per-user results: training interactions of the target, and length of the history.
POPULARITY, HISTORY_LENGTH = "popularity", "history_length"


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


def precision(above: Index, ties: Index, k: int) -> Values:
    """Expected share of the first ``k`` places with the target, ``[Q]``: ``HR@k / k``."""
    return hit_rate(above, ties, k) / k


#: Metrics by name. With one target per query, recall is the hit rate, and average precision the reciprocal rank.
METRICS = {
    "hr": hit_rate,
    "ndcg": ndcg,
    "mrr": mrr,
    "map": mrr,
    "precision": precision,
    "recall": hit_rate,
}
#: Metrics in every result; the others follow from them.
REPORTED = ("hr", "ndcg", "mrr")
#: Prefix of metrics over queries with cold targets.
COLD = "cold_"


def parse_metric(metric: str) -> tuple[Callable[[Index, Index, int], Values], int]:
    """Return function and cutoff of a metric such as ``"ndcg@10"``; raise a ``ConfigError`` if there is none."""
    name, _, cutoff = metric.partition("@")
    if name not in METRICS or not (cutoff.isascii() and cutoff.isdecimal()):
        raise ConfigError(
            f"the metric '{metric}'", f"one of {', '.join(METRICS)}, @ and a cutoff", "choose one such as ndcg@10"
        )
    return METRICS[name], _checked(int(cutoff))


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
        for name in REPORTED:
            summary[f"{name}@{k}"] = float(METRICS[name](above, ties, k).mean())
    if cold is None:
        return summary
    of_cold = summarise(above[cold], ties[cold], users.filter(pl.Series(cold)), cutoffs if cold.any() else ())
    return summary | {COLD + name: value for name, value in of_cold.items()}


def gini(counts: Index) -> float | None:
    """Gini coefficient of counts ``[N]``: 0 if all are equal, ``1 − 1/N`` if one has all; None if all are 0."""
    size, total = len(counts), counts.sum()
    weights = 2 * np.arange(1, size + 1) - size - 1
    return float((weights * np.sort(counts)).sum() / (size * total)) if total else None


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
    """Build a table with one row per query, from which all metrics of the ranks follow.

    ``ranks`` are those of the queries that were ranked (``rows``), ``train_counts`` ``[N]`` the training
    interactions of every item, and the ids are ordered by user and item index.

    Returns:
        ``user_id``, ``item_id`` (the target), ``above`` and ``ties`` (null for queries that were left out),
        ``cold`` (the target has no training interaction), ``seen`` (the target is in the history), ``popularity``
        (training interactions of the target), ``history_length``.
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
            POPULARITY: train_counts[queries.targets],
            HISTORY_LENGTH: queries.ends - queries.starts,
        }
    )


def metrics_from_frame(frame: pl.DataFrame, cutoffs: Sequence[int]) -> dict[str, float]:
    """Apply ``summarise`` to the ranked rows of a ``per_user_frame`` or of a selection of its rows."""
    frame = frame.drop_nulls("ties")
    above, ties, cold = (frame[name].to_numpy() for name in ("above", "ties", "cold"))
    return summarise(above, ties, frame[USER_ID], cutoffs, cold)


def rows_of(frame: pl.DataFrame, metric: str) -> tuple[pl.DataFrame, str]:
    """Return the ranked rows of a ``per_user_frame`` that a metric is about, and its name without ``cold_``."""
    rows = frame.drop_nulls("ties")
    return (rows.filter("cold"), metric.removeprefix(COLD)) if metric.startswith(COLD) else (rows, metric)


def named_metrics(frame: pl.DataFrame, metrics: Sequence[str]) -> dict[str, float]:
    """Average some metrics, such as ``"map@10"`` or ``"cold_hr@5"``, over the ranked rows of a ``per_user_frame``.

    A metric of no row is left out.

    Raises:
        ConfigError: An unknown metric.
    """
    found = {}
    for metric in metrics:
        rows, name = rows_of(frame, metric)
        function, k = parse_metric(name)
        if len(rows):
            found[metric] = float(function(rows["above"].to_numpy(), rows["ties"].to_numpy(), k).mean())
    return found
