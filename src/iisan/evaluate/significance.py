"""Paired significance tests of two methods, with the user as the unit.

Means are over queries. Those of one user depend on each other, so users are resampled, each with all queries.
Seeds of a method are averaged per user first. So intervals and p-values generalise to other users of the same
kind, given these trained models; only the spread over seeds shows how much another seed would change.

Letters: ``G`` users.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from iisan.errors import ConfigError, RunError
from iisan.evaluate.metrics import Values, parse_metric, rows_of
from iisan.names import ITEM_ID, USER_ID

VALUE, QUERIES = "value", "queries"
_COLUMNS = (USER_ID, ITEM_ID, "above", "ties")
_RESAMPLES = 2000
#: Users resampled at a time, 8 bytes each for index, value and weight: 96 MB however many users there are.
_DRAWN = 4_000_000
#: Smaller differences are rounding errors of sums: metrics differ by 1/(ties × runs) or more.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """Method a against method b on one metric.

    Attributes:
        metric: Metric name, such as ``"ndcg@10"``.
        users: Number of users.
        mean_a, mean_b: Means over queries, shares of 1.
        difference: ``mean_a − mean_b``.
        low, high: 95% interval of the difference, by bootstrap over users (percentiles), each with all queries.
        p_t: Two-sided paired t-test, cluster-robust where users have several queries: 1.0 if no user differs, 0.0
            if all differ by the same amount.
        p_mcnemar: Two-sided exact McNemar test for HR of single runs with one query per user, else None. A user is
            a hit if the expected hit rate over ties is above 0.5.
    """

    metric: str
    users: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_t: float
    p_mcnemar: float | None


def per_user(frames: Sequence[pl.DataFrame], metric: str) -> pl.DataFrame:
    """Compute a metric, such as ``"ndcg@10"``, of every user, averaged over the runs of one method.

    Args:
        frames: One ``per_user_frame`` per run, usually the seeds, in any row order. Rows without ranks are left
            out.
        metric: Metric name and cutoff.

    Returns:
        ``user_id``, ``value`` (a share of 1, the mean of the user's queries) and ``queries`` (their number),
        sorted by user.

    Raises:
        ConfigError: The metric is unknown, or there are no frames.
        RunError: A frame lacks a column, has no rows, or ranks other users or targets than the first.
    """
    _check_same_queries(frames)
    function, k = parse_metric(metric)
    values = [
        frame.select(USER_ID, pl.Series(VALUE, function(frame["above"].to_numpy(), frame["ties"].to_numpy(), k)))
        for frame in (each.drop_nulls("ties") for each in frames)
    ]
    # Sorted, so that the resampling below does not depend on how a run ordered its users.
    mean, rows = pl.col(VALUE).mean(), (pl.len() // len(frames)).alias(QUERIES)
    return pl.concat(values).group_by(USER_ID).agg(mean, rows).sort(USER_ID)


def compare(a: Sequence[pl.DataFrame], b: Sequence[pl.DataFrame], metric: str) -> Comparison:
    """Test whether two methods, each given by the frames of its runs (see ``per_user``), differ on the same users.

    Returns:
        Means, difference, interval and p-values, which are not corrected for the number of comparisons (see
        ``holm``). Resampling is seeded, so equal input gives equal results.

    Raises:
        ConfigError: See ``per_user``.
        RunError: See ``per_user``; or a and b rank other users or targets, or there are fewer than 2 users.
    """
    of_a, of_b = per_user(a, metric), per_user(b, metric)
    _check_same_queries([a[0], b[0]])
    if len(of_a) < 2:
        raise RunError("results of a single user", "at least 2 users", "compare runs on more users")
    values_a, values_b = of_a[VALUE].to_numpy(), of_b[VALUE].to_numpy()
    queries = of_a[QUERIES].to_numpy()
    weights = queries / queries.mean()
    differences = values_a - values_b
    low, high = interval(differences, weights)
    single_hits = metric.startswith("hr@") and len(a) == len(b) == 1 and (queries == 1).all()
    return Comparison(
        metric=metric,
        users=len(differences),
        mean_a=float((weights * values_a).mean()),
        mean_b=float((weights * values_b).mean()),
        difference=float((weights * differences).mean()),
        low=low,
        high=high,
        p_t=paired_t(_linearised(values_a, weights), _linearised(values_b, weights)),
        p_mcnemar=_mcnemar(values_a > 0.5, values_b > 0.5) if single_hits else None,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979): rejecting those below α keeps the chance of any error below α.

    The i-th smallest of m is multiplied by ``m − i + 1``; none may fall below a smaller one's, nor exceed 1.

    Raises:
        ConfigError: A value is not between 0 and 1.
    """
    given = np.asarray(p_values, dtype=np.float64)
    # NaN, which compares false with everything, is refused as well.
    wrong = given[~((given >= 0) & (given <= 1))]
    if len(wrong):
        raise ConfigError(f"the p-value {wrong[0]}", "a number from 0 to 1", "leave out what was not tested")
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1)
    return [float(value) for value in adjusted]


def _check_same_queries(frames: Sequence[pl.DataFrame]) -> None:
    """Check that frames can be paired row by row."""
    if not frames:
        raise ConfigError("no runs", "the per-user results of at least one run", "pass one frame a run")
    first: pl.DataFrame | None = None
    for number, frame in enumerate(frames, start=1):
        if not {*_COLUMNS} <= {*frame.columns} or frame["ties"].null_count() == len(frame):
            raise RunError(
                f"per-user results of {len(frame):,} rows with the columns {', '.join(frame.columns)}",
                f"at least one row with ranks, and {', '.join(_COLUMNS)}",
                "pass the per_user.parquet of a finished run",
            )
        queries = frame.drop_nulls("ties").select(USER_ID, ITEM_ID).sort(USER_ID, ITEM_ID)
        first = queries if first is None else first
        if not queries.equals(first):
            raise RunError(
                f"result {number} of {len(frames)} ranks other users or targets than the first "
                f"({len(queries):,} against {len(first):,} rows)",
                "runs evaluated on the same targets",
                "compare runs on one dataset with one split and one policy",
            )


def intervals(frame: pl.DataFrame, metrics: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Compute the 95% bootstrap interval over users of metrics of one ``per_user_frame``.

    Metrics that begin with ``cold_`` are those of the users with cold targets. A metric of fewer than two users
    has no interval.

    Raises:
        ConfigError: An unknown metric.
        RunError: See ``per_user``.
    """
    found = {}
    for metric in metrics:
        rows, name = rows_of(frame, metric)
        if rows.is_empty():
            continue
        values = per_user([rows], name)
        queries = values[QUERIES].to_numpy()
        if len(values) > 1:
            found[metric] = interval(values[VALUE].to_numpy(), queries / queries.mean())
    return found


def interval(values: Values, weights: Values) -> tuple[float, float]:
    """Ends of the 95% percentile bootstrap interval of the weighted mean of the users' values ``[G]``."""
    users = len(values)
    rng = np.random.default_rng(0)
    batch = max(1, _DRAWN // users)
    means = []
    for done in range(0, _RESAMPLES, batch):
        drawn = rng.integers(users, size=(min(batch, _RESAMPLES - done), users))
        means.append((weights * values)[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _linearised(values: Values, weights: Values) -> Values:
    """Values ``[G]`` with the plain mean and, as its standard error, the cluster-robust one of the weighted mean.

    The weights have mean 1. The weighted mean is a ratio of sums over users, linearised here around itself.
    """
    mean = (weights * values).mean()
    linearised: Values = weights * values + (1 - weights) * mean
    return linearised


def paired_t(a: Values, b: Values) -> float:
    """Two-sided p-value of the paired t-test; 1.0 if nothing differs, 0.0 if all differ by the same amount."""
    differences = a - b
    # Without spread the statistic is 0/0 or x/0, of which scipy warns.
    if np.ptp(differences) <= _ROUNDING:
        return 1.0 if abs(differences[0]) <= _ROUNDING else 0.0
    return float(stats.ttest_rel(a, b).pvalue)


def _mcnemar(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Two-sided exact binomial test on the users who are a hit of exactly one method."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for a single value) and number of some values."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """Compute mean and sample standard deviation; None without values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))
