from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as given_property
from hypothesis import strategies as st

from iisan.data.sequences import Sequences
from iisan.data.splits import draw_users, given, given_queries, leave_one_out, ratio, split, temporal, users
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
    subsets = temporal(Sequences(OFFSETS, ITEMS, TIMES), 5, shares=(0.4, 0.3, 0.3))
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
    with pytest.raises(DataError, match="the validation part under the split temporal has no target"):
        temporal(Sequences(OFFSETS, ITEMS, same), 5)
    # All of the last interactions are of users without a history.
    late = Sequences(np.array([0, 3, 4]), ITEMS[:4], np.array([1, 2, 3, 4]))
    with pytest.raises(DataError, match="the test part under the split temporal 40/30/30 has no target") as caught:
        temporal(late, 5, (0.4, 0.3, 0.3))
    assert "evaluation.shares" in caught.value.cure


def test_the_moments_do_not_depend_on_rounding():
    # 0.1 + 0.2 is more than 0.3, and would point behind the fourth of eleven moments.
    sequences = Sequences(np.array([0, 11]), np.arange(11, dtype=np.int32), np.arange(11))
    assert temporal(sequences, 11, (0.1, 0.2, 0.7)).test.targets.tolist() == [3]


# Numbers of interactions and of those in training, validation and test.
@pytest.mark.parametrize(
    ("length", "parts"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (9, (7, 1, 1)), (19, (17, 1, 1)), (20, (16, 2, 2))],
)
def test_ratio_divides_every_user(length, parts):
    # The other user has targets in both parts, without which the split is refused.
    lengths = np.array([length, 5])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    subsets = ratio(Sequences(offsets, np.arange(offsets[-1], dtype=np.int32)), 40)
    counts = [(queries.users == 0).sum() for queries in (subsets.validation, subsets.test)]
    assert (subsets.train_ends[0], *counts) == parts
    assert str(subsets) == "ratio"


def test_ratio_by_hand():
    subsets = ratio(Sequences(OFFSETS, ITEMS), 5, (0.5, 0.25, 0.25))
    assert subsets.train_ends.tolist() == [2, 5, 7]
    assert (subsets.validation.users.tolist(), subsets.validation.targets.tolist()) == ([0, 2], [4, 3])
    assert (subsets.test.users.tolist(), subsets.test.targets.tolist()) == ([0, 1, 2], [2, 3, 1])
    # Every interaction of a part is a target, after all that the user did before.
    many = ratio(Sequences(OFFSETS, ITEMS), 5, (0.4, 0.1, 0.5)).test
    assert (many.users.tolist(), many.targets.tolist()) == ([0, 0, 1, 2], [4, 2, 3, 1])
    assert many.histories(3).tolist() == [[PAD, 4, 1], [4, 1, 4], [PAD, PAD, 0], [PAD, 3, 3]]
    assert str(many) == "4 queries of 3 users"


@given_property(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 98), st.data())
def test_parts_of_a_ratio_follow_each_other(lengths, training, data):
    validation = data.draw(st.integers(1, 99 - training))
    shares = (training / 100, validation / 100, (100 - training - validation) / 100)
    offsets = np.concatenate([[0], np.cumsum([*lengths, 300])])
    subsets = ratio(Sequences(offsets, np.arange(offsets[-1], dtype=np.int32)), 500, shares)
    for user, length in enumerate([*lengths, 300]):
        trained = np.arange(offsets[user], subsets.train_ends[user])
        parts = [queries.targets[queries.users == user] for queries in (subsets.validation, subsets.test)]
        assert np.concatenate([trained, *parts]).tolist() == list(range(offsets[user], offsets[user + 1]))
        assert len(trained) >= min(length, 1)
        # A part is only empty where training would be.
        assert len(trained) == 1 or all(map(len, parts)) or not length
    assert [len(parts[0]), len(parts[1])] == [3 * validation, 3 * (100 - training - validation)]


def test_ratio_without_targets_is_refused():
    with pytest.raises(DataError, match="the validation part under the split ratio has no target") as caught:
        ratio(Sequences(np.array([0, 2]), ITEMS[:2]), 5)
    assert "leave-one-out" in caught.value.cure


def test_held_out_users_are_in_no_training():
    sequences = Sequences(np.array([0, 4, 6, 9, 10]), np.append(ITEMS, 0).astype(np.int32))
    subsets = users(sequences, 5, {"validation": np.array([1]), "test": np.array([2, 3])})
    assert (subsets.train_ends - subsets.train_starts).tolist() == [4, 0, 0, 0]
    assert subsets.train_counts().tolist() == [0, 1, 1, 0, 2]
    # The last user has a single interaction, so no query.
    assert (subsets.test.users.tolist(), subsets.test.targets.tolist()) == ([2], [1])
    assert subsets.test.histories(3).tolist() == [[PAD, 3, 3]]
    assert subsets.validation.targets.tolist() == [3]
    assert sequences.offsets.tolist() == [0, 4, 6, 9, 10]
    with pytest.raises(DataError, match="no test user of the split users has 2 interactions"):
        users(sequences, 5, {"validation": np.array([1]), "test": np.array([3])})
    with pytest.raises(DataError, match="holds out every user"):
        users(sequences, 5, {"validation": np.array([0, 1]), "test": np.array([2, 3])})


def test_drawn_users_depend_on_the_seed_alone():
    sequences = Sequences(np.arange(0, 301, 3), np.zeros(300, np.int32))
    first, again, other = (draw_users(sequences, (0.7, 0.1, 0.2), seed) for seed in (0, 0, 1))
    assert [len(first[subset]) for subset in ("validation", "test")] == [10, 20]
    assert not set(first["validation"]) & set(first["test"])
    assert {subset: drawn.tolist() for subset, drawn in first.items()} == {
        subset: drawn.tolist() for subset, drawn in again.items()
    }
    assert first["test"].tolist() != other["test"].tolist()
    named = [
        str(split(sequences, 1, "users", shares, seed))
        for shares, seed in (
            ((0.8, 0.1, 0.1), 0),
            ((0.7, 0.1, 0.2), 0),
            ((0.8, 0.1, 0.1), 3),
            ((0.7, 0.1, 0.2), 3),
        )
    ]
    assert named == ["users", "users 70/10/20", "users (seed 3)", "users 70/10/20 (seed 3)"]
    with pytest.raises(
        DataError, match="2 users with 2 interactions or more, under the split users; expected more"
    ):
        draw_users(Sequences(np.array([0, 2, 4, 5]), np.zeros(5, np.int32)))


def test_a_ratio_after_another_split_has_new_targets_only():
    sequences = Sequences(np.array([0, 10]), np.arange(10, dtype=np.int32))
    trained, other = ratio(sequences, 10), ratio(sequences, 10, (0.5, 0.2, 0.3))
    assert (trained.validation.targets.tolist(), trained.test.targets.tolist()) == ([8], [9])
    found = other.after(trained)
    assert (other.test.targets.tolist(), found.test.targets.tolist()) == ([7, 8, 9], [9])
    assert (len(found.validation), str(found)) == (0, "ratio 50/20/30")


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
    test = temporal(sequences, 5, shares=(0.4, 0.3, 0.3)).test
    assert trained.trained_later(test) == pytest.approx([1 / 5, 0, 1 / 5])
    # Under temporal it never happens.
    assert not temporal(sequences, 5, shares=(0.4, 0.3, 0.3)).trained_later(test).any()
    assert leave_one_out(Sequences(OFFSETS, ITEMS), 5).trained_later(test) is None


# Of user 2, then two of user 0: 3 -> 1, 4 0 -> 2, 4 -> 4.
GIVEN = given_queries(
    Sequences(np.array([0, 2, 5, 7]), np.array([3, 1, 4, 0, 2, 4, 4], np.int32)), np.array([2, 0, 0])
)


def test_given_by_hand():
    sequences = Sequences(OFFSETS, ITEMS)
    subsets = split(sequences, 5, "given", queries={"validation": GIVEN[:1], "test": GIVEN[1:]})
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
