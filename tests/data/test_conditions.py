"""Conditions on columns of items, by hand."""

import datetime

import numpy as np
import polars as pl
import pytest

from iisan.data.conditions import allowed_items, matching, numbered_values
from iisan.errors import DataError

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "brand": ["x", "y", None, "x"],
        "kind": pl.Series(["shoe", "boot", "shoe", "boot"], dtype=pl.Categorical),
        "in_stock": [True, False, True, None],
        "size": [38, 40, None, 42],
        "price": [1.5, 2.0, 0.1, None],
        "tags": [["red", "new"], [], None, ["red"]],
        "weekdays": [[1], [2], [3], [4]],
        "nothing": pl.Series([None] * 4, dtype=pl.String),
        "launched": [datetime.date(2024, 1, day) for day in range(1, 5)],
    }
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, "abcd"),
        ({"brand": "x"}, "ad"),
        ({"brand": ["x", "y"]}, "abd"),
        ({"brand": ["x", "unheard of"]}, "ad"),
        ({"brand": pl.Series(["x", "y"])}, "abd"),
        ({"kind": "shoe"}, "ac"),
        ({"in_stock": True}, "ac"),
        ({"in_stock": "False"}, "b"),
        ({"in_stock": [True, False]}, "abc"),
        ({"size": 40}, "b"),
        ({"size": ["38", np.int64(42)]}, "ad"),
        ({"price": 0.1}, "c"),
        ({"price": "2"}, "b"),
        ({"tags": "red"}, "ad"),
        ({"tags": ["new", "old"]}, "a"),
        ({"brand": "x", "in_stock": True}, "a"),
        ({"brand": "y", "in_stock": True}, ""),
        ({"item_id": ["a", "d"]}, "ad"),
    ],
)
def test_matching_items(where, expected):
    assert "".join(ITEMS["item_id"].filter(pl.Series(matching(ITEMS, where)))) == expected


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ({"brend": "x"}, "no column 'brend'; expected one of item_id, brand, .*: did you mean 'brand'?"),
        ({"brand": "z"}, "no item has brand = 'z'; expected one of its values, such as 'x'"),
        ({"brand": ["z", "w"]}, "no item has brand = 'z' or 'w'"),
        ({"brand": []}, "no item has brand = one of no values"),
        ({"size": b"38"}, "the condition size = b'38'"),
        ({"nothing": "x"}, "no item has nothing = 'x'; expected a column with values"),
        ({"brand": True}, "the condition brand = True on a column of type String; .* such as 'x'"),
        ({"brand": None}, "the condition brand = None"),
        ({"in_stock": "yes"}, "the condition in_stock = 'yes' on a column of type Boolean"),
        ({"in_stock": 1}, "the condition in_stock = 1 "),
        ({"size": "large"}, "the condition size = 'large' on a column of type Int64"),
        ({"size": 38.5}, "the condition size = 38.5"),
        ({"size": True}, "the condition size = True"),
        ({"size": 10**30}, "size = 1000000"),
        ({"price": "cheap"}, "the condition price = 'cheap'"),
        ({"tags": "blue"}, "no item has tags = 'blue'; expected .* such as 'red', 'new'"),
        ({"weekdays": 1}, "a condition on the column 'weekdays' of type List"),
        (
            {"launched": "2024-01-01"},
            "the column 'launched' of type Date; expected texts, lists of texts",
        ),
        ("brand=x", "the conditions 'brand=x'; expected values by column"),
    ],
)
def test_conditions_that_mean_nothing(where, sentence):
    with pytest.raises(DataError, match=sentence):
        matching(ITEMS, where)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("brand", [0, 1, -1, 0]),
        ("kind", [0, 1, 0, 1]),
        ("in_stock", [0, 1, 0, -1]),
        ("size", [0, 1, -1, 2]),
        ("price", [0, 1, 2, -1]),
        ("launched", [0, 1, 2, 3]),
    ],
)
def test_values_are_numbered(column, expected):
    assert numbered_values(ITEMS, column).tolist() == expected


def test_allowed_and_excluded_items():
    ids = ITEMS["item_id"]
    assert allowed_items(ids, None, None).all()
    assert allowed_items(ids, ["c", "a", "a"], None).tolist() == [True, False, True, False]
    assert allowed_items(ids, np.array(["c", "a"]), ids.head(1)).tolist() == [False, False, True, False]
    assert allowed_items(ids, None, []).all()
    with pytest.warns(UserWarning, match="unknown items are left out of items_to_recommend: 'e', 'f'$"):
        assert allowed_items(ids, ["e", "d", "f", "e"], None).tolist() == [False, False, False, True]
    for arguments, sentence in (
        (("a", None), "items_to_recommend='a' is of type str"),
        (([], None), "items_to_recommend is empty"),
        ((None, "a"), "items_to_exclude='a' is of type str"),
        ((None, ["e"]), "unknown item 'e'"),
    ):
        with pytest.raises(DataError, match=sentence):
            allowed_items(ids, *arguments)
