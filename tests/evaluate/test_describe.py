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
from iisan.data.splits import Queries, leave_one_out
from iisan.evaluate.baselines import FixedScorer
from iisan.evaluate.describe import describe, popularity_ranks
from iisan.evaluate.metrics import ranked_rows
from iisan.evaluate.ranks import rank_targets


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
        # Counts 0 1 1 2 3: sum of |difference| over all ordered pairs is 28, over 2 n² mean = 2 · 25 · 7/5.
        "gini": pytest.approx(28 / 70),
    }
    assert {name: description[name] for name in expected} == expected


def test_description_is_json_and_rows(small):
    description = describe(small, leave_one_out(small.sequences, 5))
    values = json.loads(json.dumps(description.to_json(), allow_nan=False))
    assert values["repeat_users_share"] == 0.5
    assert values["most_popular_hr@10_all"] == 1.0
    rows = {label: (value, why) for label, value, why in description.rows()}
    assert rows["users"] == ("2", "")
    assert rows["test targets already in the history"][0] == "1 (50.0%)"
    assert "misses under exclude-all" in rows["validation targets already in the history"][1]
    assert rows["test targets already in the history"][1] == "as above"
    assert {why for value, why in rows.values() if value.startswith("0 ")} <= {""}


def test_without_timestamps_their_ties_are_unknown(small):
    small.sequences = Sequences(small.sequences.offsets, small.sequences.items)
    description = describe(small, leave_one_out(small.sequences, 5))
    assert description["without_timestamp"] == 7
    assert description["equal_timestamps"] is None
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
    # The same hits among the 12,076 - 621 users that are not left out.
    of_all, of_ranked = (shares[f"most_popular_hr@10_{policy}"] for policy in ("exclude-all", "unseen"))
    assert of_ranked * 11_455 == pytest.approx(of_all * 12_076)
    assert scientific.split.train_counts().sum() == 57_559


def test_describing_does_not_import_torch():
    code = "import sys, iisan.evaluate.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
