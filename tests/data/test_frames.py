"""DataFrames with columns of Python objects, as pandas makes them of mixed values."""

import uuid
from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.errors import DataError

LOG = pd.DataFrame({"user_id": [1, 1, 1], "item_id": ["a", "b", "7"]})


def make(items, log=LOG, **options):
    return Dataset.from_frames(items, log, **options)


def frames(**columns):
    """The same columns of objects in pandas and in polars."""
    yield pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    yield pl.DataFrame({name: pl.Series(values, dtype=pl.Object) for name, values in columns.items()})


def test_mixed_ids_and_texts_become_strings():
    for items in frames(item_id=["a", "b", 7], title=["x", 12.5, None], more=["12.99", 12.99, {"EUR": 1}]):
        dataset = make(items)
        assert dataset.items["item_id"].to_list() == ["a", "b", "7"]
        assert dataset.items["text"].to_list() == ["x", "12.5", None]
        assert dataset.items["more"].to_list() == ["12.99", "12.99", '{"EUR": 1}']


def test_mixed_columns_of_interactions():
    users, times = ["u", 7, 7.0], [pd.Timestamp(2020, 1, 2), "2020-01-01", date(2020, 1, 3)]
    for log in frames(user_id=users, item_id=["a", "b", 7], timestamp=times):
        dataset = make(pd.DataFrame({"item_id": ["a", "b", "7"]}), log, min_length=0)
        assert dataset.user_ids.to_list() == ["u", "7"]
        assert dataset.interactions()["item_id"].to_list() == ["a", "b", "7"]


def test_ids_that_are_uuids():
    ids = [uuid.UUID(int=number) for number in range(3)]
    pandas, polars = frames(item_id=ids, user_id=["u"] * 3)
    assert make(polars.select("item_id"), polars).items["item_id"].to_list() == [str(each) for each in ids]
    with pytest.raises(DataError, match="item_ids of type Binary; expected strings"):  # what pyarrow makes of them
        make(pandas, pandas)


def test_lists_of_texts_among_texts_are_joined():
    for title in (["x", ["a", "b"], []], [["x"], ["a", "b"], []], [("x",), ("a", "b"), None]):
        for items in frames(item_id=["a", "b", "7"], title=title):
            assert make(items).items["text"].to_list() == ["x", "a b", None]
    lists = pl.DataFrame({"item_id": ["a", "b", "7"], "title": [["x"], ["a", "b"], []]})
    assert make(lists).items["text"].to_list() == ["x", "a b", None]


def test_objects_are_a_bad_row_with_column_and_number():
    for items in frames(item_id=["a", "b", "7"], title=["x", {"en": "y"}, 1]):
        with pytest.raises(DataError, match=r"the items frame, row 2: unusable text '\{'en': 'y'\}'"):
            make(items)
    for items in frames(item_id=["a", "b", "7", ["c"]]):
        with pytest.raises(DataError, match="row 4: unusable item_id"):
            make(items)
        dataset = make(items, on_bad="skip")
        assert dataset.num_items == 3
        assert dataset.skipped["where"].to_list() == ["the items frame, row 4"]


def test_missing_values_of_pandas():
    title = pd.Series(["x", pd.NA, float("nan")], dtype=object)
    more = pd.Series([1, pd.NaT, {}], dtype=object)
    dataset = make(pd.DataFrame({"item_id": ["a", "b", "7"], "title": title, "more": more}))
    assert dataset.items["text"].to_list() == ["x", None, None]
    assert dataset.items["more"].to_list() == ["1", None, "{}"]
    numbers = pd.DataFrame({"item_id": ["a", "b", "7"], "title": [np.nan, np.nan, 1.5]})
    assert make(numbers).items["text"].to_list() == [None, None, "1.5"]


def test_objects_with_many_keys_are_one_column():
    details = [{f"key {n * 700 + k}": "value" for k in range(700)} for n in range(3)]
    items = pd.DataFrame({"item_id": ["a", "b", "7"], "details": details})
    assert make(items).items["details"].dtype == pl.String


def test_bytes_and_vectors_of_pandas_stay_what_they_are():
    items = pd.DataFrame({"item_id": ["a", "b", "7"], "raw": [b"x", None, b"y"], "v": [[1.0, 2.0]] * 3})
    dataset = make(items)
    assert dataset.items["raw"].to_list() == [b"x", None, b"y"]
    assert dataset.items["v"].dtype == pl.List(pl.Float64)


def test_two_columns_of_one_name():
    items = pd.DataFrame([["a", "x", "y"]], columns=["item_id", "title", "title"])
    with pytest.raises(DataError, match="the items frame has two columns of one name"):
        make(items)


def test_names_of_columns_that_are_numbers():
    items = pd.DataFrame({0: ["a", "b", "7"], 1: ["x", "y", "z"]})
    dataset = make(items, LOG.rename(columns={"item_id": "0"}), item_id="0", text="1")
    assert dataset.items["text"].to_list() == ["x", "y", "z"]
