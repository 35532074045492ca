import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iisan.data.sequences import Sequences
from iisan.data.splits import Queries, given_queries, leave_one_out
from iisan.evaluate.baselines import FixedScorer
from iisan.evaluate.describe import (
    DISAGREEMENT,
    describe,
    half_interval,
    independent_queries,
    popularity_ranks,
    smallest_difference,
)
from iisan.evaluate.metrics import ranked_rows
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.significance import _linearised, paired_t


def make_dataset(items, sequences):
    return SimpleNamespace(
        items=items,
        kinds={"text": "text", "image": "image"},
        sequences=sequences,
        num_items=len(items),
        num_users=sequences.num_users,
        num_interactions=len(sequences.items),
    )


@pytest.fixture
def small():
    items = pl.DataFrame(
        {
            "item_id": list("abcde"),
            "text": ["Lamp", " Lamp ", "lamp", None, " "],
            "image": ["a.jpg", None, "c.jpg", "d.jpg", None],
        }
    )
    sequences = Sequences(
        np.array([0, 4, 7]),
        np.array([0, 1, 0, 1, 2, 0, 3], dtype=np.int32),
        np.array([1, 1, 5, 5, 5, 6, 7]),
    )
    return make_dataset(items, sequences)


def test_facts_by_hand(small):
    description = describe(small, leave_one_out(small.sequences, 5))
    expected = {
        "users": 2,
        "items": 5,
        "interactions": 7,
        "mean_length": 3.5,
        "min_length": 3,
        "max_length": 4,
        "repeat_users": 1,
        "validation_targets_seen": 1,
        "test_targets_seen": 1,
        "cold_items": 2,
        "cold_test_targets": 1,
        "redundant_texts": 1,
        "missing_text": 2,
        "missing_image": 2,
        "missing_all": 1,
        "max_characters": 4,
        "without_timestamp": 0,
        "equal_timestamps": 2,
        "top_1_percent": 3,
        "top_10_percent": 3,
        # Trained on at 1, 1, 5; the targets are at 5 and 7.
        "future_test_targets": 0,
        "trained_later": 0,
        # One query is left, and its target is among the first ten of five items.
        "most_popular_hr@10_interval": 0,
        "smallest_difference_hr@10": pytest.approx((1.95996 + 0.84162) * 0.05**0.5),
        # Counts 0 1 1 2 3: sum of |difference| over all ordered pairs is 28, over 2 n² mean = 2 · 25 · 7/5.
        "gini": pytest.approx(28 / 70),
    }
    assert {name: description[name] for name in expected} == expected


def test_the_training_that_is_later_than_a_target_is_counted():
    # Trained on at 1 and 6; the targets are at 5 and 9.
    sequences = Sequences(np.array([0, 3, 6]), np.arange(6, dtype=np.int32), np.array([1, 2, 5, 6, 7, 9]))
    items = pl.DataFrame({"item_id": list("abcdef"), "text": list("abcdef"), "image": [None] * 6})
    description = describe(make_dataset(items, sequences), leave_one_out(sequences, 6))
    assert (description["future_test_targets"], description["trained_later"]) == (1, 0.25)
    rows = {label: value for label, value, _ in description.rows()}
    assert rows["test targets earlier than a training interaction"] == "1 (50.0%)"


def queries_of(users):
    """One query for each of these users."""
    offsets = np.arange(0, 2 * len(users) + 1, 2)
    sequences = Sequences(offsets, np.tile(np.array([0, 1], np.int32), len(users)))
    return given_queries(sequences, np.array(users))


def test_queries_of_one_user_count_as_one():
    assert independent_queries(queries_of([0, 1, 2, 5])) == 4
    assert independent_queries(queries_of([0, 0, 0, 7, 7, 7])) == 2
    # Three queries and one: 4² / (3² + 1²).
    assert independent_queries(queries_of([1, 1, 1, 0])) == pytest.approx(1.6)


@pytest.mark.parametrize("users", [range(1000), [*range(600), *range(600), *range(300)]])
def test_a_paired_test_finds_the_smallest_difference_four_times_in_five(users):
    queries, samples = queries_of(list(users)), 800
    smallest = smallest_difference(independent_queries(queries))
    sizes = np.bincount(queries.users)
    rng, nothing = np.random.default_rng(0), np.zeros(len(sizes))
    for true, low, high in ((smallest, 0.76, 0.84), (0, 0.03, 0.07)):
        # One method alone hits, the other alone, or neither or both; the same for all queries of a user.
        chances = [(DISAGREEMENT + true) / 2, (DISAGREEMENT - true) / 2, 1 - DISAGREEMENT]
        outcomes = rng.choice([1.0, -1.0, 0.0], p=chances, size=(samples, queries.num_users))
        p = np.array([paired_t(_linearised(each, sizes / sizes.mean()), nothing) for each in outcomes])
        assert low < (p < 0.05).mean() < high


def test_intervals_of_the_most_popular_items_hold_the_true_rate_in_95_of_100_samples():
    # The formula at the observed level, with which `describe` prints it.
    rng, number, rate = np.random.default_rng(0), 400, 0.2
    observed = rng.binomial(number, rate, size=4000) / number
    covered = np.abs(observed - rate) <= [half_interval(level, number) for level in observed]
    assert 0.93 < covered.mean() < 0.965


def test_description_is_json_and_rows(small):
    description = describe(small, leave_one_out(small.sequences, 5))
    values = json.loads(json.dumps(description.to_json(), allow_nan=False))
    assert values["repeat_users_share"] == 0.5
    assert values["most_popular_hr@10_all"] == 1.0
    assert "smallest_difference_hr@10" in values
    rows = {label: (value, why) for label, value, why in description.rows()}
    assert rows["users"] == ("2", "")
    value, why = rows["difference of test HR@10 that a paired test finds 4 times in 5"]
    assert (value, "hits 5% of the targets" in why) == ("62.65 points", True)
    assert rows["test targets already in the history"][0] == "1 (50.0%)"
    assert "misses under exclude-all" in rows["validation targets already in the history"][1]
    assert rows["test targets already in the history"][1] == "as above"
    assert {why for value, why in rows.values() if value.startswith("0 ")} <= {""}


def test_without_timestamps_their_ties_are_unknown(small):
    small.sequences = Sequences(small.sequences.offsets, small.sequences.items)
    description = describe(small, leave_one_out(small.sequences, 5))
    assert description["without_timestamp"] == 7
    assert description["equal_timestamps"] is None
    assert (description["future_test_targets"], description["trained_later"]) == (None, None)
    label = "interactions at the same time as the user's previous one"
    assert (label, "unknown") in [row[:2] for row in description.rows()]


@given(
    histories=st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=6),
    counts=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    policy=st.sampled_from(["unseen", "all", "exclude-all"]),
    data=st.data(),
)
def test_popularity_ranks_equal_the_full_ranking(histories, counts, policy, data):
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    targets = np.array([data.draw(st.integers(0, 7)) for _ in histories])
    queries = Queries(Sequences(offsets, items), np.arange(len(histories)), offsets[:-1], offsets[1:], targets)
    queries = queries[ranked_rows(queries, policy)]
    quick = popularity_ranks(np.array(counts), queries, policy)
    full = rank_targets(FixedScorer(np.array(counts)), queries, policy)
    assert quick.above.tolist() == full.above.tolist()
    assert quick.ties.tolist() == full.ties.tolist()


def test_facts_of_the_real_data(scientific):
    items = pl.DataFrame(
        {
            "item_id": scientific.item_ids,
            "text": scientific.titles,
            "image": pl.Series([None] * len(scientific.item_ids), dtype=pl.String),
        }
    )
    description = describe(make_dataset(items, scientific.sequences), scientific.split)
    expected = {
        "users": 12_076,
        "items": 20_314,
        "interactions": 81_711,
        "validation_targets_seen": 723,
        "test_targets_seen": 621,
        "cold_items": 4_008,
        "cold_test_targets": 2_443,
        "redundant_texts": 163,
    }
    assert {name: description[name] for name in expected} == expected
    shares = description.to_json()
    assert shares["repeat_users_share"] == pytest.approx(0.228, abs=0.0005)
    assert shares["test_targets_seen_share"] == pytest.approx(0.051, abs=0.0005)
    assert shares["cold_test_targets_share"] == pytest.approx(0.202, abs=0.0005)
    assert 100 * shares["most_popular_hr@10_exclude-all"] == pytest.approx(1.507, abs=0.001)
    assert 100 * shares["most_popular_ndcg@10_exclude-all"] == pytest.approx(0.945, abs=0.001)
    # 2.80 · √(0.05 / 11,455) and 1.96 · √(p (1 − p) / 11,455).
    assert 100 * shares["smallest_difference_hr@10"] == pytest.approx(0.585, abs=0.001)
    popular = shares["most_popular_hr@10_unseen"]
    expected = 1.96 * (popular * (1 - popular) / 11_455) ** 0.5
    assert shares["most_popular_hr@10_interval"] == pytest.approx(expected, rel=1e-4)
    # The same hits among the 12,076 - 621 users that are not left out.
    of_all, of_ranked = (shares[f"most_popular_hr@10_{policy}"] for policy in ("exclude-all", "unseen"))
    assert of_ranked * 11_455 == pytest.approx(of_all * 12_076)
    assert scientific.split.train_counts().sum() == 57_559


def test_describing_does_not_import_torch():
    code = "import sys, iisan.evaluate.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
