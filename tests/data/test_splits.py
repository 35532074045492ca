from dataclasses import replace

import numpy as np
import pytest

from iisan.data.sequences import Sequences
from iisan.data.splits import leave_one_out, split, temporal
from iisan.errors import DataError
from iisan.names import PAD

# Three users: 4, 2 and 3 interactions.
OFFSETS = np.array([0, 4, 6, 9])
ITEMS = np.array([4, 1, 4, 2, 0, 3, 3, 3, 1], dtype=np.int32)
TIMES = np.array([10, 30, 60, 80, 20, 90, 40, 50, 70])


def test_leave_one_out_by_hand():
    parts = leave_one_out(Sequences(OFFSETS, ITEMS), 5)
    assert parts.test.users.tolist() == [0, 2]
    assert parts.test.targets.tolist() == [2, 1]
    assert parts.validation.targets.tolist() == [4, 3]
    assert parts.test.histories(4).tolist() == [[PAD, 4, 1, 4], [PAD, PAD, 3, 3]]
    assert parts.validation.histories(1).tolist() == [[1], [3]]
    # The short user only trains, with all it has.
    assert parts.train_ends.tolist() == [2, 6, 7]
    assert parts.train_counts().tolist() == [1, 1, 0, 2, 1]
    rows, items = parts.test.seen()
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
    parts = temporal(Sequences(OFFSETS, ITEMS, TIMES), 5, shares=(0.4, 0.7))
    moments = np.quantile(TIMES, (0.4, 0.7), method="higher")
    assert moments.tolist() == [50, 70]
    assert parts.train_ends.tolist() == [2, 5, 7]
    # Validation [50, 70): user 0 takes item 4 at 60; user 2 takes 3 at 50; user 1 nothing.
    assert (parts.validation.users.tolist(), parts.validation.targets.tolist()) == ([0, 2], [4, 3])
    # Test [70, …): user 0 takes 2 at 80, user 1 takes 3 at 90, user 2 takes 1 at 70.
    assert (parts.test.users.tolist(), parts.test.targets.tolist()) == ([0, 1, 2], [2, 3, 1])
    assert parts.test.histories(3).tolist() == [[4, 1, 4], [PAD, PAD, 0], [PAD, 3, 3]]


def test_temporal_never_trains_on_what_comes_later():
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 201, 10)
    times = np.sort(rng.integers(0, 1000, (20, 10)), axis=1).ravel()
    sequences = Sequences(offsets, rng.integers(0, 9, 200).astype(np.int32), times)
    parts = split(sequences, 9, "temporal")
    moment = np.quantile(times, 0.8, method="higher")
    trained = np.concatenate([times[a:b] for a, b in zip(parts.train_starts, parts.train_ends, strict=True)])
    assert trained.max() < moment
    assert (times[parts.validation.ends] >= moment).all()


def test_temporal_needs_timestamps():
    with pytest.raises(DataError, match="no timestamps") as caught:
        split(Sequences(OFFSETS, ITEMS), 5, "temporal")
    assert "leave-one-out" in caught.value.cure


def test_temporal_without_targets_is_refused():
    same = np.full(9, 5)
    with pytest.raises(DataError, match="no user has an interaction before and inside"):
        temporal(Sequences(OFFSETS, ITEMS, same), 5)


def test_of_another_split_only_targets_that_were_not_trained_on_are_asked():
    # Moments 1 and 5: the first user's target of the test period is one that leave-one-out trains on.
    sequences = Sequences(np.array([0, 5, 9]), np.array([0, 1, 2, 3, 4, 0, 1, 2, 3], np.int32), None)
    trained = leave_one_out(sequences, 5)
    assert trained.train_ends.tolist() == [3, 7]
    asked = replace(
        trained, name="temporal", train_ends=np.array([1, 6]), validation=trained.test, test=trained.validation
    )
    early = replace(asked, test=replace(asked.test, ends=np.array([2, 7]), targets=np.array([2, 2])))
    found = early.after(trained)
    assert found.test.users.tolist() == [1]
    assert found.validation.users.tolist() == [0, 1]
    assert found.train_counts().tolist() == trained.train_counts().tolist()
    assert found.name == "temporal"
