from math import log2

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iisan.errors import ConfigError, RunError
from iisan.evaluate import significance
from iisan.evaluate.significance import compare, holm, intervals, per_user

MISS = 99


def frame(above, ties=None, users=None, items=None):
    """Per-user results: ``above`` items stand before the target of each user."""
    count = len(above)
    return pl.DataFrame(
        {
            "user_id": users or [f"u{number:06}" for number in range(count)],
            "item_id": items or ["i"] * count,
            "above": np.asarray(above, dtype=np.int64),
            "ties": np.asarray([1] * count if ties is None else ties, dtype=np.int64),
            "cold": [False] * count,
            "seen": [False] * count,
        }
    )


def drawn(rate, users, seed):
    """Users who each are a hit with the chance ``rate``."""
    return frame(np.where(np.random.default_rng(seed).random(users) < rate, 0, MISS))


def test_value_of_every_user_by_hand():
    # First; fourth; ranks 10 and 11 equally likely; beyond the cutoff.
    result = per_user([frame([0, 3, 9, 10], ties=[1, 1, 2, 1])], "ndcg@10")
    assert result["user_id"].to_list() == ["u000000", "u000001", "u000002", "u000003"]
    assert result["value"].to_list() == pytest.approx([1, 1 / log2(5), 1 / log2(11) / 2, 0])
    assert per_user([frame([0, 3], ties=[1, 1])], "mrr@5")["value"].to_list() == pytest.approx([1, 1 / 4])


def test_seeds_are_averaged_first_whatever_the_order_of_rows():
    first = frame([0, MISS, 0], users=["a", "b", "c"])
    second = frame([MISS, MISS, 0], users=["c", "b", "a"])
    assert per_user([first, second], "hr@10").rows() == [("a", 1.0, 1), ("b", 0.0, 1), ("c", 0.5, 1)]
    other = frame([MISS, 0, 0], users=["a", "b", "c"])
    comparison = compare([first, second], [other], "hr@10")
    # 1, 0, 1/2 against 0, 1, 1: the users stay 3, not 6.
    assert comparison.users == 3
    assert comparison.mean_a == pytest.approx(1 / 2)
    assert comparison.mean_b == pytest.approx(2 / 3)
    assert comparison.p_t == pytest.approx(stats.ttest_rel([1, 0, 0.5], [0, 1, 1]).pvalue)


def several(rng, users=40):
    """Results of users with 1 to 5 queries each, in random order: two methods."""
    owners = [f"u{user}" for user in np.repeat(np.arange(users), rng.integers(1, 6, users))]
    items = [f"i{number}" for number in range(len(owners))]
    hits = rng.random((2, len(owners))) < [[0.3], [0.2]]
    return [frame(np.where(row, 0, MISS), users=owners, items=items) for row in hits]


def test_means_are_over_queries_by_hand():
    queries = frame([0, MISS, 0], users=["a", "a", "b"], items=["x", "y", "z"])
    assert per_user([queries], "hr@10").rows() == [("a", 0.5, 2), ("b", 1.0, 1)]
    assert per_user([queries, queries], "hr@10").rows() == [("a", 0.5, 2), ("b", 1.0, 1)]
    other = frame([MISS, MISS, 0], users=["b", "a", "a"], items=["z", "y", "x"])
    found = compare([queries], [other], "hr@10")
    assert (found.users, found.mean_a, found.mean_b) == (2, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.difference == pytest.approx(1 / 3)
    # Both queries of a user are drawn together: none, one or two times b of a, a and b.
    assert (found.low, found.high) == pytest.approx((0, 1))
    assert found.p_mcnemar is None
    # A user's runs may differ, the weights stay those of the queries.
    assert compare([queries, other], [other], "hr@10").difference == pytest.approx(1 / 6)


def test_t_of_users_with_several_queries_is_cluster_robust():
    """Against the sandwich estimator with clusters, computed from its sum over queries."""
    a, b = several(np.random.default_rng(1))
    found = compare([a], [b], "hr@10")
    differences = (a["above"] == 0).cast(pl.Float64) - (b["above"] == 0).cast(pl.Float64)
    assert found.difference == pytest.approx(differences.mean())
    residuals = pl.DataFrame({"user": a["user_id"], "of": differences - differences.mean()})
    scores = residuals.group_by("user").agg(pl.col("of").sum())["of"]
    clusters = len(scores)
    error = np.sqrt(clusters / (clusters - 1) * (scores**2).sum()) / len(a)
    expected = 2 * stats.t.sf(abs(found.difference) / error, clusters - 1)
    assert found.p_t == pytest.approx(expected, rel=1e-9)
    # The interval is that of this error, where the normal holds; queries as the unit would make it narrower.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_correlated_queries_of_a_user_widen_the_interval():
    a, b = drawn(0.3, 100, 1), drawn(0.2, 100, 2)
    # Every user 9 times with the same result: no new knowledge.
    again_a, again_b = (
        pl.concat([each.with_columns(item_id=pl.lit(f"i{copy}")) for copy in range(9)]) for each in (a, b)
    )
    once, nine = compare([a], [b], "hr@10"), compare([again_a], [again_b], "hr@10")
    assert (nine.users, nine.low, nine.high) == (100, pytest.approx(once.low), pytest.approx(once.high))
    assert nine.p_t == pytest.approx(once.p_t)
    assert nine.p_mcnemar is None


def test_with_one_query_a_user_nothing_is_weighted():
    """To the bit what unweighted means, resamples and the t-test of the values give."""
    rng = np.random.default_rng(5)
    a, b = (frame(rng.integers(0, 20, 300), rng.integers(1, 4, 300)) for _ in range(2))
    found = compare([a], [b], "ndcg@10")
    values_a, values_b = (per_user([each], "ndcg@10")["value"].to_numpy() for each in (a, b))
    differences = values_a - values_b
    rng = np.random.default_rng(0)
    means = [differences[rng.integers(300, size=(2000, 300))].mean(axis=1)]
    assert (found.low, found.high) == tuple(np.quantile(np.concatenate(means), [0.025, 0.975]))
    assert (found.mean_a, found.mean_b, found.difference) == (values_a.mean(), values_b.mean(), differences.mean())
    assert found.p_t == stats.ttest_rel(values_a, values_b).pvalue


def test_queries_that_were_left_out_take_no_part():
    """And frames without nulls, as written before, are compared as they are."""
    a, b = frame([0, MISS, 0, 3]), frame([MISS, MISS, 0, 0])
    out = pl.when(pl.col("user_id") != "u000001").then(pl.col("above", "ties"))
    found = compare([a.with_columns(out)], [b.with_columns(out)], "hr@10")
    ranked = pl.col("user_id") != "u000001"
    assert found == compare([a.filter(ranked)], [b.filter(ranked)], "hr@10")
    assert (found.users, found.mean_a, found.mean_b) == (3, 1, pytest.approx(2 / 3))
    with pytest.raises(RunError, match=r"ranks other users or targets than the first \(4 against 3 rows\)"):
        compare([a.with_columns(out)], [b], "hr@10")
    nobody = a.with_columns(pl.lit(None, pl.Int64).alias("ties"))
    with pytest.raises(RunError, match="at least one row with ranks"):
        compare([nobody], [nobody], "hr@10")


def test_t_is_that_of_the_values():
    rng = np.random.default_rng(5)
    a, b = (frame(rng.integers(0, 20, 50), rng.integers(1, 4, 50)) for _ in range(2))
    comparison = compare([a], [b], "ndcg@10")
    expected = stats.ttest_rel(per_user([a], "ndcg@10")["value"], per_user([b], "ndcg@10")["value"])
    assert comparison.p_t == pytest.approx(expected.pvalue, rel=1e-12)
    assert comparison.difference == pytest.approx(comparison.mean_a - comparison.mean_b)
    assert comparison.p_mcnemar is None


def test_interval_is_that_of_the_normal_where_users_are_many():
    a, b = drawn(0.12, 5000, 1), drawn(0.07, 5000, 2)
    comparison = compare([a], [b], "hr@10")
    differences = per_user([a], "hr@10")["value"].to_numpy() - per_user([b], "hr@10")["value"].to_numpy()
    half = 1.96 * differences.std() / np.sqrt(5000)
    assert comparison.low == pytest.approx(comparison.difference - half, abs=0.1 * half)
    assert comparison.high == pytest.approx(comparison.difference + half, abs=0.1 * half)


def test_interval_covers_the_true_difference_about_95_times_in_100():
    covered = 0
    for seed in range(100):
        comparison = compare([drawn(0.3, 300, 2 * seed)], [drawn(0.2, 300, 2 * seed + 1)], "hr@10")
        covered += comparison.low <= 0.1 <= comparison.high
    # Binomial(100, 0.95) lies in 88..100 with a chance of 99.9%; the data is seeded, so this never flickers.
    assert 88 <= covered <= 100


def test_the_same_input_gives_the_same_answer(monkeypatch):
    a, b = drawn(0.2, 200, 1), drawn(0.1, 200, 2)
    comparison = compare([a], [b], "hr@10")
    assert compare([a], [b], "hr@10") == comparison
    assert compare([a.reverse()], [b.sample(fraction=1, shuffle=True, seed=3)], "hr@10") == comparison
    # How many resamples are held at a time decides about memory, not about the result.
    monkeypatch.setattr(significance, "_DRAWN", 7 * 200)
    assert compare([a], [b], "hr@10") == comparison


def test_exchanging_the_methods_turns_the_signs():
    a, b = drawn(0.2, 200, 1), drawn(0.1, 200, 2)
    forth, back = compare([a], [b], "hr@10"), compare([b], [a], "hr@10")
    assert back.difference == pytest.approx(-forth.difference)
    assert back.low == pytest.approx(-forth.high)
    assert (back.p_t, back.p_mcnemar) == pytest.approx((forth.p_t, forth.p_mcnemar))


def test_mcnemar_by_hand():
    # Both hit, only a hits five times, only b once, both miss: 2 · (C(6,0) + C(6,1)) / 2^6.
    a = frame([0, 0, 0, 0, 0, 0, MISS, MISS])
    b = frame([0, MISS, MISS, MISS, MISS, MISS, 0, MISS])
    assert compare([a], [b], "hr@10").p_mcnemar == pytest.approx(2 * (1 + 6) / 2**6)
    assert compare([a], [b], "ndcg@10").p_mcnemar is None
    assert compare([a, a], [b], "hr@10").p_mcnemar is None
    assert compare([a], [b, b], "hr@10").p_mcnemar is None


def test_mcnemar_counts_a_tie_as_a_hit_above_one_half():
    # Within the first ten with the chances 1/2 and 2/3.
    a = frame([9, 8, 0], ties=[2, 3, 1])
    nothing = frame([MISS, MISS, 0])
    # One discordant user alone cannot tell anything; two would give 1/2.
    assert compare([a], [nothing], "hr@10").p_mcnemar == 1
    surer = frame([8, 8, 0], ties=[3, 3, 1])
    assert compare([surer], [nothing], "hr@10").p_mcnemar == pytest.approx(1 / 2)


def test_identical_runs_do_not_differ():
    a = drawn(0.2, 50, 1)
    comparison = compare([a], [a], "hr@10")
    assert (comparison.difference, comparison.low, comparison.high) == (0, 0, 0)
    assert (comparison.p_t, comparison.p_mcnemar) == (1, 1)
    # The mean of three seeds depends on their order in the last bit, which is no difference between methods.
    seeds = [frame(np.random.default_rng(seed).integers(0, 15, 50)) for seed in range(3)]
    assert compare(seeds, [seeds[2], seeds[0], seeds[1]], "ndcg@10").p_t == 1


def test_a_difference_without_spread_is_certain():
    comparison = compare([frame([0] * 4)], [frame([MISS] * 4)], "hr@10")
    assert comparison.p_t == 0
    assert (comparison.low, comparison.high) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        frame([0, 0], users=["a", "c"]),
        frame([0], users=["a"]),
        frame([0, 0, 0], users=["a", "b", "b"]),
        frame([0, 0], users=["a", "b"], items=["i", "j"]),
        frame([0, 0], users=[1, 2]),
    ],
)
def test_other_users_or_targets_are_refused(other):
    first = frame([0, 0], users=["a", "b"])
    with pytest.raises(RunError, match="ranks other users or targets"):
        per_user([first, other], "hr@10")
    with pytest.raises(RunError, match=r"one dataset with one split|at least 2 users"):
        compare([first], [other], "hr@10")


def test_results_that_cannot_be_tested_are_refused():
    good = frame([0, 0])
    with pytest.raises(ConfigError, match="no runs"):
        compare([good], [], "hr@10")
    with pytest.raises(RunError, match="columns user_id, above, ties"):
        per_user([good.select("user_id", "above", "ties")], "hr@10")
    with pytest.raises(RunError, match="0 rows"):
        per_user([good.clear()], "hr@10")
    with pytest.raises(RunError, match="single user"):
        compare([good.head(1)], [good.head(1)], "hr@10")


@pytest.mark.parametrize("metric", ["auc@10", "hr", "hr@", "hr@ten", "hr@-1", "hr@0", "hr@1.5", "hr@²"])
def test_unknown_metrics_are_refused(metric):
    with pytest.raises(ConfigError, match="choose"):
        per_user([frame([0, 0])], metric)


def test_holm_by_hand():
    # Sorted 0.01·4, 0.02·3, 0.03·2, 0.04·1, each at least its predecessor.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.4, 0.5, 0.001]) == pytest.approx([0.8, 0.8, 0.003])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_stays_between_the_value_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for value, result in zip(p_values, adjusted, strict=True):
        assert value <= result <= min(1, len(p_values) * value) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_p_value(value):
    with pytest.raises(ConfigError, match="p-value"):
        holm([0.5, value])


def test_intervals_of_a_single_run_cover_the_mean_as_often_as_they_say():
    covered = 0
    for seed in range(60):
        low, high = intervals(drawn(0.2, 400, seed), ["hr@10"])["hr@10"]
        # As wide as the normal approximation says.
        assert high - low == pytest.approx(2 * 1.96 * (0.2 * 0.8 / 400) ** 0.5, rel=0.3)
        covered += low <= 0.2 <= high
    assert covered >= 52


def test_intervals_of_cold_targets_are_those_of_their_users_alone():
    mixed = frame([0, MISS, 0, MISS, 0, 0]).with_columns(cold=pl.Series([True] * 4 + [False] * 2))
    alone = intervals(mixed.head(4), ["hr@5"])["hr@5"]
    found = intervals(mixed, ["hr@5", "cold_hr@5"])
    assert found["cold_hr@5"] == alone != found["hr@5"]
    # No user, or a single one, has no interval.
    assert intervals(mixed.with_columns(cold=pl.lit(False)), ["cold_hr@5"]) == {}
    assert intervals(mixed.head(1), ["hr@5"]) == {}
    with pytest.raises(ConfigError, match="the metric 'hr'"):
        intervals(mixed, ["hr"])
