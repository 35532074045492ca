from collections import Counter
from datetime import date, datetime, time, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iisan.data.clean import clean_ids, clean_texts, clean_timestamps
from iisan.data.filters import Events, apply_filters, drop_repeats, k_core, keep_last, renumber
from iisan.data.options import Filters
from iisan.errors import DataError


def test_texts_are_unescaped_and_spaced_with_case_kept():
    raw = ["A &amp; B", " two\u00a0\u2003 Spaces\n", "&lt;i&gt; 5&#39;", "", " \u00a0", None, "R&D", "&nbsp;x"]
    expected = ["A & B", "two Spaces", "<i> 5'", None, None, None, "R&D", "x"]
    assert clean_texts(pl.Series(raw)).to_list() == expected
    assert clean_texts(pl.Series([None, None])).to_list() == [None, None]
    with pytest.raises(DataError, match=r"texts of type Struct.* in the column 'x'"):
        clean_texts(pl.Series("x", [{"a": "b"}]))
    with pytest.raises(DataError, match="texts of type Duration"):
        clean_texts(pl.Series([timedelta(1)]))


@pytest.mark.parametrize("inner", [pl.String, pl.Categorical])
def test_lists_of_texts_are_joined_and_empty_ones_are_missing(inner):
    lists = [["A &amp; B", "c"], [], None, ["", None], [None, " d "]]
    assert clean_texts(pl.Series("x", lists, dtype=pl.List(inner))).to_list() == ["A & B c", None, None, None, "d"]


def test_numbers_that_are_texts():
    assert clean_texts(pl.Series([1.5, float("nan"), None])).to_list() == ["1.5", None, None]
    assert clean_texts(pl.Series([["a", "b"]], dtype=pl.Array(pl.String, 2))).to_list() == ["a b"]
    assert clean_texts(pl.Series([[1, 2]])).to_list() == ["1 2"]
    for nested in ([[["a"]]], [[b"a"]], [[{"a": "b"}]]):
        with pytest.raises(DataError, match="expected strings, or lists of them"):
            clean_texts(pl.Series(nested))


def test_ids_are_strings_and_never_floats():
    assert clean_ids(pl.Series("id", ["007", None]), "t").to_list() == ["007", None]
    assert clean_ids(pl.Series("id", [7, 8]), "t").to_list() == ["7", "8"]
    assert clean_ids(pl.Series("id", [7.0, None, float("nan")]), "t").to_list() == ["7", None, None]
    for bad in ([7.5], [True], [[1]]):
        with pytest.raises(DataError, match="strings or whole numbers"):
            clean_ids(pl.Series("id", bad), "t")


SECOND = 1_000_000
MORNING = 1577934245 * SECOND  # 2020-01-02 03:04:05 UTC


@pytest.mark.parametrize(
    ("raw", "expected", "unit"),
    [
        ([3, 1], [3, 1], "as in the source"),
        (["3", " 1"], [3, 1], "as in the source"),
        (["3", "x", "1"], [3, None, 1], "as in the source"),
        ([3.0, None], [3, None], "as in the source"),
        ([3.5, 1.0, float("nan")], [3_500_000, 1_000_000, None], "millionths of the source's"),
        (["1e3", "2"], [1000, 2], "as in the source"),
        ([None, None, "2"], [None, None, 2], "as in the source"),
        (["1.25", "2"], [1_250_000, 2_000_000], "millionths of the source's"),
        (["2020-01-02", "2020-01-02 00:01"], [MORNING - 11045 * SECOND, MORNING - 10985 * SECOND], "microseconds"),
        (
            ["2020-01-02T03:04:05Z", "2020-01-02T03:04:05.25", "2020-01-02 05:04:05+02:00", "soon"],
            [MORNING, MORNING + SECOND // 4, MORNING, None],
            "microseconds",
        ),
        ([datetime(2020, 1, 2, 3, 4, 5), None], [MORNING, None], "microseconds"),
        ([date(1970, 1, 2)], [86_400 * SECOND], "microseconds"),
    ],
)
def test_timestamps(raw, expected, unit):
    moments, found = clean_timestamps(pl.Series("timestamp", raw))
    assert moments.dtype == pl.Int64
    assert (moments.to_list(), found) == (expected, unit)


@pytest.mark.parametrize("bad", [[1], timedelta(1), b"\xff", time(1), True])
def test_timestamps_of_other_types_are_refused(bad):
    with pytest.raises(DataError, match="timestamps of type"):
        clean_timestamps(pl.Series("timestamp", [bad]))


events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40).map(sorted)
#: In order of users only.
unordered = events.flatmap(st.permutations).map(lambda pairs: sorted(pairs, key=lambda pair: pair[0]))


def as_events(pairs):
    users, items = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    return Events(users, items, np.arange(len(users)))


@given(events, st.integers(1, 4))
def test_k_core_is_the_largest_set_in_which_all_have_k(pairs, k):
    left = list(pairs)
    while True:
        users, items = [u for u, _ in left], [i for _, i in left]
        smaller = [(u, i) for u, i in left if users.count(u) >= k and items.count(i) >= k]
        if smaller == left:
            break
        left = smaller
    core = k_core(as_events(pairs), k)
    assert list(zip(core.users.tolist(), core.items.tolist(), strict=True)) == left


@given(events, st.sampled_from(["keep", "drop-consecutive", "drop-all"]))
def test_repeats_are_those_of_a_naive_loop(pairs, repeats):
    # Ordered by user, in any order of items.
    pairs = sorted(pairs, key=lambda pair: pair[0])
    left = []
    for pair in pairs:
        earlier = [each for each in left if each[0] == pair[0]]
        known = {"keep": [], "drop-consecutive": earlier[-1:], "drop-all": earlier}[repeats]
        if pair not in known:
            left.append(pair)
    found = drop_repeats(as_events(pairs), repeats)
    assert list(zip(found.users.tolist(), found.items.tolist(), strict=True)) == left
    assert (np.diff(found.timestamps) > 0).all()


@given(unordered, st.integers(1, 4), st.sampled_from(["keep", "drop-consecutive", "drop-all"]))
def test_the_core_is_a_fixed_point_drop_repeats(pairs, k, repeats):
    left, _ = apply_filters(as_events(pairs), Filters(repeats=repeats, k_core=k, min_length=0))
    again, steps = apply_filters(left, Filters(repeats=repeats, k_core=k, min_length=0))
    assert again is left
    assert {step["interactions"] for step in steps} == {len(left.users)}
    found = list(zip(left.users.tolist(), left.items.tolist(), strict=True))
    if k > 1:
        assert all(count >= k for counts in map(Counter, zip(*found, strict=True)) for count in counts.values())
    if repeats == "drop-consecutive":
        assert all(one != other for one, other in pairwise(found))
    if repeats == "drop-all":
        assert len(set(found)) == len(found)


def test_an_item_that_the_core_drops_leaves_no_repeat():
    # Without item 9, which occurs once, user 0 has item 1 twice in a row, and then too few.
    pairs = [(0, 1), (0, 9), (0, 1), (1, 1), (1, 2), (2, 2), (2, 1)]
    left, steps = apply_filters(as_events(pairs), Filters(repeats="drop-consecutive", k_core=2, min_length=0))
    assert list(zip(left.users.tolist(), left.items.tolist(), strict=True)) == pairs[3:]
    assert [(step["step"], step["interactions"]) for step in steps] == [
        ("read", 7),
        ("repeats=drop-consecutive", 7),
        ("k_core=2", 4),
    ]
    kept, _ = apply_filters(as_events(pairs), Filters(k_core=2, min_length=0))
    assert kept.items.tolist() == [1, 1, 1, 2, 2, 1]


@given(events, st.integers(1, 4))
def test_keep_last_keeps_the_tail_of_every_user(pairs, most):
    kept = keep_last(as_events(pairs), most)
    for user in {u for u, _ in pairs}:
        mine = [position for position, (u, _) in enumerate(pairs) if u == user]
        assert kept.timestamps[kept.users == user].tolist() == mine[-most:]


def test_filters_act_in_order_and_are_counted():
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 3), (2, 1)]
    left, steps = apply_filters(as_events(pairs), Filters(min_length=2, keep_last=1))
    assert left.items.tolist() == [2, 3]
    assert steps == [
        {"step": "read", "users": 3, "items": 4, "interactions": 6},
        {"step": "min_length=2", "users": 2, "items": 4, "interactions": 5},
        {"step": "keep_last=1", "users": 2, "items": 2, "interactions": 2},
    ]


def test_renumber():
    old, new = renumber(np.array([5, 2, 5]), 7)
    assert (old.tolist(), new.tolist()) == ([2, 5], [1, 0, 1])
