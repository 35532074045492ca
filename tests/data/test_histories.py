"""Histories of users from frames, by hand."""

import datetime

import pandas as pd
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.data.histories import ids_of, in_the_form_of, known_rows, read_histories
from iisan.errors import DataError

IDS = pl.Series(["a", "b", "c", "7"])


def histories(frame, dataset=None):
    users, sequences = read_histories(frame, IDS, dataset)
    starts = sequences.offsets
    return {user: sequences.items[starts[n] : starts[n + 1]].tolist() for n, user in enumerate(users)}


@pytest.mark.parametrize("kind", [pl.DataFrame, pd.DataFrame])
def test_rows_are_in_order_of_time(kind):
    rows = {"user_id": ["u", "v", "u", "u"], "item_id": ["b", "c", "a", "b"]}
    assert histories(kind(rows)) == {"u": [1, 0, 1], "v": [2]}
    assert histories(kind(rows | {"timestamp": [5, 1, 3, 4]})) == {"u": [0, 1, 1], "v": [2]}
    moments = [datetime.datetime(2024, 1, day) for day in (9, 1, 2, 3)]
    assert histories(kind(rows | {"datetime": moments, "weight": 1.0})) == {"u": [0, 1, 1], "v": [2]}


def test_ids_may_be_numbers():
    assert histories(pd.DataFrame({"user_id": [1, 1], "item_id": [7.0, 7.0]})) == {"1": [3, 3]}
    assert histories(pl.LazyFrame({"user_id": [1], "item_id": [7]})) == {"1": [3]}


def test_unknown_items_are_named():
    frame = pl.DataFrame({"user_id": ["u", "u", "v", "u"], "item_id": ["x", "a", "b", "x"]})
    with pytest.warns(UserWarning, match="^unknown items are left out of the histories: 'x'$"):
        assert histories(frame) == {"u": [0], "v": [1]}
    with pytest.warns(UserWarning, match="^unknown items are left out of history: 'x', 'y'$"):
        assert known_rows(IDS, ["c", "x", "a", "y"], "history").tolist() == [2, 0]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"user_id": ["u", "v", "w"], "item_id": ["a", "x", "x"]}, "has only unknown items of user 'v', 'w'"),
        ({"user_id": ["u"], "item_id": [None]}, "zero-length item_id"),
        ({"user_id": ["u", " "], "item_id": ["a", "a"]}, "row 2: zero-length user_id"),
        ({"user_id": ["u"]}, "has no column 'item_id'.*name the columns user_id, item_id and"),
        ({"user_id": [], "item_id": []}, "the frame of histories is empty"),
        ({"user_id": ["u"], "item_id": ["a"], "timestamp": ["soon"]}, "row 1: unparsable timestamp 'soon'"),
        ({"user_id": ["u"], "item_id": [1.5]}, "item_id 1.5"),
    ],
)
def test_frames_that_are_no_histories(rows, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_histories(pl.DataFrame(rows), IDS)
    assert "--" not in str(caught.value), "an option of a command"


PAIRS = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "c"]}
LOG = PAIRS | {"event": ["view", "cart", "cart"], "rating": [1, 2, 3]}


@pytest.fixture
def prepared(tmp_path):
    """A function that writes a dataset of ``LOG`` with some rules, and returns its folder."""

    def write(log=LOG, **rules):
        items = pl.DataFrame({"item_id": IDS})
        return Dataset.from_frames(items, pl.DataFrame(log), min_length=0, **rules).save(tmp_path / "data").folder

    return write


@pytest.mark.parametrize("kind", [pl.DataFrame, pd.DataFrame])
def test_the_rules_of_the_dataset_decide_what_counts(prepared, kind):
    folder, other = prepared(events="cart", min_weight=2), {"event_type": LOG["event"], "weight": [2, 2, 3]}
    text = "^1 of 3 interactions are left out of the histories, as only the events cart and weights of 2 or more c"
    for frame in (LOG, PAIRS | other):
        with pytest.warns(UserWarning, match=text):
            assert histories(kind(frame), folder) == {"u": [1], "v": [2]}
    # What is constant in one frame may be what the dataset leaves out.
    views = {"user_id": ["u"], "item_id": ["a"], "event": ["view"]}
    with pytest.raises(DataError, match=r"has no interaction that counts of user 'u'; .*, the events cart and w"):
        histories(kind(views | {"rating": [5]}), folder)
    assert histories(kind(LOG), prepared(events="all", min_weight="all")) == {"u": [0, 1], "v": [2]}


def test_rows_that_do_not_count_may_have_no_item(prepared):
    frame = {"user_id": ["u", "u"], "item_id": [None, "b"], "event": ["view", "cart"]}
    with pytest.warns(UserWarning, match="1 of . interactions are left out"):
        assert histories(pl.DataFrame(frame), prepared(events="cart", min_weight="all")) == {"u": [1]}


def test_the_columns_of_rules_are_named_as_in_the_dataset_or_by_default(prepared):
    named = {name if name != "event" else "kind": values for name, values in LOG.items()}
    folder = prepared(named, event="kind", events="cart", min_weight="all")
    for frame in (named, LOG, named | {"event": ["x", "y", "z"]}):
        with pytest.warns(UserWarning, match="1 of . interactions are left out"):
            assert histories(pl.DataFrame(frame), folder) == {"u": [1], "v": [2]}


@pytest.mark.parametrize("column", ["event", "rating"])
def test_without_a_rule_events_and_weights_do_not_differ(prepared, tmp_path, column):
    frame = pl.DataFrame(PAIRS | {column: LOG[column]})
    unruled = prepared(PAIRS)
    for folder in (unruled, tmp_path / "moved", None):
        with pytest.raises(DataError, match=r"has [23] different .*the run's dataset at hand") as caught:
            histories(frame, folder)
        assert "--" not in str(caught.value), "an option of a command"
        assert histories(frame.with_columns(pl.lit(1).alias(column)), folder) == {"u": [0, 1], "v": [2]}
    with pytest.raises(DataError, match=r"has the columns 'weight' and 'rating'.*: leave out the other one"):
        histories(pl.DataFrame(LOG | {"weight": 1}))
    with pytest.raises(DataError, match=r"row 1: missing event ''.*: correct it or leave that row out$"):
        histories(pl.DataFrame(PAIRS | {"event": [None, "cart", "cart"]}))


@pytest.mark.parametrize("values", [["1", "2"], (1, 2), pl.Series([1, 2]), pd.Series([1, 2]), range(1, 3)])
def test_sequences_of_ids(values):
    assert ids_of(values, "users", "user") == ["1", "2"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("12", r"users='12' is of type str; expected a sequence of user ids: pass users=\[…\]$"),
        (b"12", "users=b'12' is of type bytes"),
        (12, "users=12 is of type int"),
        (pd.DataFrame({"user_id": ["u"]}), "users is of type DataFrame"),
        ([], "users is empty; expected one user or more"),
    ],
)
def test_what_is_no_sequence_of_ids(values, sentence):
    with pytest.raises(DataError, match=sentence):
        ids_of(values, "users", "user")


def test_frames_come_back_in_the_form_of_what_was_given():
    frame = pl.DataFrame({"user_id": ["u"], "score": pl.Series([0.5], dtype=pl.Float32), "rank": [1]})
    for given in (pd.DataFrame(), pd.Series([1]), pd.Index([1])):
        found = in_the_form_of(given, frame)
        assert isinstance(found, pd.DataFrame)
        assert (found.to_dict("records"), found["score"].dtype) == (frame.to_dicts(), "float32")
    for given in (frame, frame["rank"], ["u"], frame.lazy()):
        assert in_the_form_of(given, frame) is frame
