from dataclasses import replace

import numpy as np
import pytest

from iisan.data.sequences import Sequences
from iisan.data.splits import given, given_queries, leave_one_out, split, temporal
from iisan.errors import DataError
from iisan.names import PAD

# Three users: 4, 2 and 3 interactions.
OFFSETS = np.array([0, 4, 6, 9])
ITEMS = np.array([4, 1, 4, 2, 0, 3, 3, 3, 1], dtype=np.int32)
TIMES = np.array([10, 30, 60, 80, 20, 90, 40, 50, 70])


def test_leave_one_out_by_hand():
    subsets = leave_one_out(Sequences(OFFSETS, ITEMS), 5)
    assert subsets.test.users.tolist() == [0, 2]
    assert subsets.test.targets.tolist() == [2, 1]
    assert subsets.validation.targets.tolist() == [4, 3]
    assert subsets.test.histories(4).tolist() == [[PAD, 4, 1, 4], [PAD, PAD, 3, 3]]
    assert subsets.validation.histories(1).tolist() == [[1], [3]]
    # The short user only trains, with all it has.
    assert subsets.train_ends.tolist() == [2, 6, 7]
    assert subsets.train_counts().tolist() == [1, 1, 0, 2, 1]
    rows, items = subsets.test.seen()
    assert (rows.tolist(), items.tolist()) == ([0, 0, 0, 1, 1], [4, 1, 4, 3, 3])


def test_queries_can_be_cut():
    test = leave_one_out(Sequences(OFFSETS, ITEMS), 5).test
    assert test[1:].targets.tolist() == [1]
    assert len(test[np.array([0])]) == 1


def test_leave_one_out_without_long_users_is_refused():
    with pytest.raises(DataError, match="no user among 1 has 3 interactions"):
        leave_one_out(Sequences(np.array([0, 2]), ITEMS[:2]), 5)


def test_temporal_by_hand():
    # Sorted times 10 20 | 30 … : with shares (.4, .7) the moments are 50 and 70 ("higher" quantiles of 9 values).
    subsets = temporal(Sequences(OFFSETS, ITEMS, TIMES), 5, shares=(0.4, 0.7))
    moments = np.quantile(TIMES, (0.4, 0.7), method="higher")
    assert moments.tolist() == [50, 70]
    assert subsets.train_ends.tolist() == [2, 5, 7]
    # Validation [50, 70): user 0 takes item 4 at 60; user 2 takes 3 at 50; user 1 nothing.
    assert (subsets.validation.users.tolist(), subsets.validation.targets.tolist()) == ([0, 2], [4, 3])
    # Test [70, …): user 0 takes 2 at 80, user 1 takes 3 at 90, user 2 takes 1 at 70.
    assert (subsets.test.users.tolist(), subsets.test.targets.tolist()) == ([0, 1, 2], [2, 3, 1])
    assert subsets.test.histories(3).tolist() == [[4, 1, 4], [PAD, PAD, 0], [PAD, 3, 3]]


def test_temporal_never_trains_on_what_comes_later():
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 201, 10)
    times = np.sort(rng.integers(0, 1000, (20, 10)), axis=1).ravel()
    sequences = Sequences(offsets, rng.integers(0, 9, 200).astype(np.int32), times)
    subsets = split(sequences, 9, "temporal")
    moment = np.quantile(times, 0.8, method="higher")
    trained = np.concatenate([times[a:b] for a, b in zip(subsets.train_starts, subsets.train_ends, strict=True)])
    assert trained.max() < moment
    assert (times[subsets.validation.ends] >= moment).all()


def test_temporal_needs_timestamps():
    with pytest.raises(DataError, match="no timestamps") as caught:
        split(Sequences(OFFSETS, ITEMS), 5, "temporal")
    assert "leave-one-out" in caught.value.cure


def test_temporal_without_targets_is_refused():
    same = np.full(9, 5)
    with pytest.raises(DataError, match="no user has an interaction before and inside"):
        temporal(Sequences(OFFSETS, ITEMS, same), 5)


def test_of_another_split_only_targets_that_are_new_to_the_run_are_left():
    items = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3], np.int32)
    sequences = Sequences(np.array([0, 5, 9, 13]), items)
    trained = leave_one_out(sequences, 5)
    assert trained.train_ends.tolist() == [3, 7, 11]
    assert trained.validation.ends.tolist() == [3, 7, 11]
    # Under the other split the targets are one that was trained on, one that was selected on and one that is new.
    test = replace(trained.test, ends=np.array([2, 7, 12]), targets=np.array([2, 2, 3]))
    other = replace(trained, name="temporal", train_ends=np.array([1, 6, 10]), validation=trained.test, test=test)
    found = other.after(trained)
    assert found.test.users.tolist() == [2]
    assert found.validation.users.tolist() == [0, 1, 2]
    assert found.train_counts().tolist() == trained.train_counts().tolist()
    assert found.name == "temporal"


def test_share_of_the_training_after_the_targets_by_hand():
    sequences = Sequences(OFFSETS, ITEMS, TIMES)
    trained = leave_one_out(sequences, 5)
    # Trained on at 10 30, 20 90 and 40; the targets are at 80, 90 and 70.
    test = temporal(sequences, 5, shares=(0.4, 0.7)).test
    assert trained.trained_later(test) == pytest.approx((1 / 5 + 0 + 1 / 5) / 3)
    assert leave_one_out(Sequences(OFFSETS, ITEMS), 5).trained_later(test) is None


# Of user 2, then two of user 0: 3 -> 1, 4 0 -> 2, 4 -> 4.
GIVEN = given_queries(
    Sequences(np.array([0, 2, 5, 7]), np.array([3, 1, 4, 0, 2, 4, 4], np.int32)), np.array([2, 0, 0])
)


def test_given_by_hand():
    sequences = Sequences(OFFSETS, ITEMS)
    subsets = split(sequences, 5, "given", {"validation": GIVEN[:1], "test": GIVEN[1:]})
    assert (subsets.name, subsets.validation.targets.tolist(), subsets.test.targets.tolist()) == (
        "given",
        [1],
        [2, 4],
    )
    assert subsets.test.histories(3).tolist() == [[PAD, 4, 0], [PAD, PAD, 4]]
    # Everything is trained on, and nothing but interactions.
    assert subsets.train_ends.tolist() == [4, 6, 9]
    assert subsets.train_counts().tolist() == np.bincount(ITEMS).tolist()
    assert [str(subsets.validation), str(subsets.test), str(GIVEN)] == [
        "1 users",
        "2 queries of 1 users",
        "3 queries of 2 users",
    ]
    with pytest.raises(DataError, match="the dataset has no given queries") as caught:
        split(sequences, 5, "given")
    assert "--validation FILE and --test FILE" in caught.value.cure


def test_given_queries_under_another_split():
    sequences = Sequences(OFFSETS, ITEMS, TIMES)
    other = given(sequences, 5, {"validation": GIVEN, "test": GIVEN})
    trained = leave_one_out(sequences, 5)
    # All are new to a run that was trained on less than all interactions, and its training is as it was.
    found = other.after(trained)
    assert (found.name, len(found.test), len(found.validation)) == ("given", 3, 3)
    assert found.train_counts().tolist() == trained.train_counts().tolist()
    assert found.trained_later(found.test) is None
    # A run that was trained on all of them has nothing new among them.
    for rule in (trained, temporal(sequences, 5)):
        with pytest.raises(
            DataError, match=f"trained on all interactions .* under the split {rule.name}"
        ) as caught:
            rule.after(other)
        assert caught.value.cure == f"evaluate it under given, or train a run under {rule.name}"
