import dataclasses
import hashlib
from typing import Any

import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.errors import DataError
from iisan.states.contents import Contents, content_key


def test_keys_are_hashes_of_the_content(catalogue: Any) -> None:
    text, image = Contents.of(catalogue, "text"), Contents.of(catalogue, "image")
    assert text.keys() == [
        None if t is None else hashlib.sha256(t.encode("utf-8")).hexdigest() for t in catalogue.texts
    ]
    assert image.keys() == [None if i is None else hashlib.sha256(i).hexdigest() for i in catalogue.images]
    assert text.present.sum() == 37
    assert image.present.sum() == 9
    assert text.get(3) == catalogue.texts[3]
    assert image.get(3) == catalogue.images[3]
    assert text.label(3) == "item 'i3'"


def test_plain_texts() -> None:
    contents = Contents.of_texts(["a", None])
    assert contents.keys() == [content_key("a"), None]
    assert contents.present.tolist() == [True, False]


def test_an_absent_column_is_missing_everywhere(catalogue: Any) -> None:
    class TextOnly:
        items = catalogue.items.drop("image")

        def content_bytes(self, column: str, index: int) -> bytes:
            raise AssertionError

    contents = Contents.of(TextOnly(), "image")
    assert not contents.present.any()
    assert contents.keys() == [None] * 38


def test_an_unreadable_image_names_its_item(catalogue: Any) -> None:
    def gone(index: int) -> bytes:
        raise FileNotFoundError("gone.jpg")

    contents = dataclasses.replace(Contents.of(catalogue, "image"), get=gone)
    with pytest.raises(DataError, match=r"item 'i0' .*gone\.jpg"):
        contents.keys()


def test_a_real_dataset(catalogue: Any) -> None:
    items = catalogue.items.drop_nulls("text")
    interactions = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["i0", "i1"], "timestamp": [1, 2]})
    dataset = Dataset.from_frames(items, interactions, min_length=0)
    for modality in ("text", "image"):
        wanted = dict(zip(catalogue.items["item_id"], Contents.of(catalogue, modality).keys(), strict=True))
        got = dict(zip(dataset.items["item_id"], Contents.of(dataset, modality).keys(), strict=True))
        assert got == {item: wanted[item] for item in got}
        assert any(got.values())
