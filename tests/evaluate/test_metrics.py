from fractions import Fraction
from itertools import permutations
from math import log2

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iisan.data.sequences import Sequences
from iisan.data.splits import leave_one_out
from iisan.errors import ConfigError
from iisan.evaluate.metrics import (
    Ranks,
    gini,
    hit_rate,
    metrics_from_frame,
    mrr,
    named_metrics,
    ndcg,
    parse_metric,
    per_user_frame,
    ranked_rows,
    summarise,
    target_seen,
)

# Five users: first, fourth, eleventh; a tie of 3 from rank 9 on; all of 20 items tied.
ABOVE = np.array([0, 3, 10, 8, 0])
TIES = np.array([1, 1, 1, 3, 20])


def test_hit_rate_by_hand():
    expected = [Fraction(1), Fraction(1), Fraction(0), Fraction(2, 3), Fraction(10, 20)]
    assert hit_rate(ABOVE, TIES, 10) == pytest.approx([float(value) for value in expected], abs=1e-15)


def test_ndcg_by_hand():
    gains = [1 / log2(rank + 1) for rank in range(1, 11)]
    expected = [1, 1 / log2(5), 0, (gains[8] + gains[9]) / 3, sum(gains) / 20]
    assert ndcg(ABOVE, TIES, 10) == pytest.approx(expected, abs=1e-12)


def test_mrr_by_hand():
    harmonic = sum(Fraction(1, rank) for rank in range(1, 11)) / 20
    expected = [Fraction(1), Fraction(1, 4), Fraction(0), (Fraction(1, 9) + Fraction(1, 10)) / 3, harmonic]
    assert mrr(ABOVE, TIES, 10) == pytest.approx([float(value) for value in expected], abs=1e-12)


@given(
    scores=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    k=st.integers(1, 8),
    data=st.data(),
)
def test_expectation_over_all_orders_of_ties(scores, k, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    above = np.array([sum(score > scores[target] for score in scores)])
    ties = np.array([sum(score == scores[target] for score in scores)])
    ranks = []
    for order in permutations(range(len(scores))):
        # The permutation is the random key among equal scores.
        ranking = sorted(range(len(scores)), key=lambda item: (-scores[item], order[item]))
        ranks.append(ranking.index(target) + 1)
    assert hit_rate(above, ties, k)[0] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    assert ndcg(above, ties, k)[0] == pytest.approx(
        np.mean([(rank <= k) / log2(rank + 1) for rank in ranks]), abs=1e-12
    )
    assert mrr(above, ties, k)[0] == pytest.approx(np.mean([(rank <= k) / rank for rank in ranks]), abs=1e-12)


def test_summarise_averages_and_splits_off_cold_targets():
    cold = np.array([True, False, False, True, False])
    users = pl.Series(range(5))
    summary = summarise(ABOVE, TIES, users, [1, 10], cold)
    assert summary["users"] == 5
    assert summary["hr@10"] == pytest.approx((1 + 1 + 0 + 2 / 3 + 1 / 2) / 5)
    assert summary["hr@1"] == pytest.approx((1 + 1 / 20) / 5)
    assert summary["ndcg@1"] == summary["mrr@1"] == pytest.approx(summary["hr@1"])
    assert summary["cold_users"] == 2
    assert summary["cold_hr@10"] == pytest.approx((1 + 2 / 3) / 2)
    without = summarise(ABOVE, TIES, users, [10], np.zeros(5, dtype=bool))
    assert without["cold_users"] == 0
    assert "cold_hr@10" not in without
    assert "queries" not in summary | without
    several = summarise(ABOVE, TIES, pl.Series(["a", "b", "c", "a", "b"]), [10], cold)
    assert (several["users"], several["queries"], several["cold_users"], several["cold_queries"]) == (3, 5, 1, 2)
    assert several["hr@10"] == summary["hr@10"]


def test_a_cutoff_below_one_is_refused():
    with pytest.raises(ConfigError, match="cutoff 0"):
        hit_rate(ABOVE, TIES, 0)
    with pytest.raises(ConfigError, match="cutoff 0"):
        parse_metric("hr@0")
    with pytest.raises(ConfigError, match="the metric 'auc@3'"):
        parse_metric("auc@3")


def test_named_metrics_by_hand():
    frame = pl.DataFrame(
        {"above": [0, 3, None, 8, 10], "ties": [1, 1, None, 3, 1], "cold": [False, True, True, True, False]}
    )
    names = ["precision@10", "recall@10", "map@10", "cold_precision@5", "cold_map@10"]
    # First, fourth, ninth to eleventh with equal chances, and eleventh.
    expected = {
        "precision@10": Fraction(1, 40) * (1 + 1 + Fraction(2, 3) + 0),
        "recall@10": Fraction(1, 4) * (1 + 1 + Fraction(2, 3) + 0),
        "map@10": Fraction(1, 4) * (1 + Fraction(1, 4) + (Fraction(1, 9) + Fraction(1, 10)) / 3 + 0),
        "cold_precision@5": Fraction(1, 2) * Fraction(1, 5),
        "cold_map@10": Fraction(1, 2) * (Fraction(1, 4) + (Fraction(1, 9) + Fraction(1, 10)) / 3),
    }
    assert named_metrics(frame, names) == pytest.approx({name: float(each) for name, each in expected.items()})
    assert named_metrics(frame.filter(~pl.col("cold")), ["cold_hr@10", "hr@1"]) == {"hr@1": 0.5}


def test_gini_by_hand():
    assert gini(np.array([2, 2, 2])) == 0
    assert gini(np.array([0, 6, 0])) == pytest.approx(1 - 1 / 3)
    # Mean difference of all pairs, |1−3| twice of 4, over twice the mean of 2.
    assert gini(np.array([3, 1])) == pytest.approx((2 * 2 / 4) / (2 * 2))
    assert gini(np.array([0, 0])) is None


def test_frame_holds_all_that_the_metrics_need():
    # User 0's test target 2 is in the history; user 1's target 4 is in nobody's training.
    items = np.array([2, 0, 1, 2, 0, 1, 3, 4], dtype=np.int32)
    split = leave_one_out(Sequences(np.array([0, 4, 8]), items), 5)
    assert target_seen(split.test).tolist() == [True, False]
    assert target_seen(split.validation).tolist() == [False, False]
    ranks = Ranks(np.array([1, 0]), np.array([1, 2]))
    names = (split.train_counts(), pl.Series(["ann", "bob"]), pl.Series(list("abcde")))
    frame = per_user_frame(ranks, ranked_rows(split.test, "all"), split.test, *names)
    assert frame.to_dict(as_series=False) == {
        "user_id": ["ann", "bob"],
        "item_id": ["c", "e"],
        "above": [1, 0],
        "ties": [1, 2],
        "cold": [False, True],
        "seen": [True, False],
        "popularity": [1, 0],
        "history_length": [3, 3],
    }
    metrics = metrics_from_frame(frame, [1])
    assert metrics["hr@1"] == 0.25
    assert metrics["cold_hr@1"] == 0.5
    assert metrics == summarise(ranks.above, ranks.ties, frame["user_id"], [1], np.array([False, True]))
    rows = ranked_rows(split.test, "unseen")
    assert rows.tolist() == [1]
    frame = per_user_frame(Ranks(np.array([3]), np.array([2])), rows, split.test, *names)
    assert frame.select("above", "ties", "seen").rows() == [(None, None, True), (3, 2, False)]
    one = summarise(np.array([3]), np.array([2]), pl.Series(["bob"]), [4], np.array([True]))
    assert metrics_from_frame(frame, [4]) == one
