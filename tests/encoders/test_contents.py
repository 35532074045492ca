"""What a dataset offers to encoders: contents, their keys, and files that changed."""

import hashlib
from pathlib import Path

import polars as pl
import pytest

from contents import contents_of
from iisan.data.dataset import Dataset
from iisan.encoders.contents import Contents
from iisan.errors import ConfigError, DataError

TEXTS = ["red pump", None, "Überwurf", "red pump"]
IMAGES = [b"one", b"two", None, b"one"]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    for index, image in enumerate(IMAGES):
        if image is not None:
            (tmp_path / f"i{index}.png").write_bytes(image)
    items = pl.DataFrame({"item_id": [f"i{index}" for index in range(4)], "text": TEXTS, "more": TEXTS})
    interactions = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["i0", "i1", "i2"]})
    return Dataset.from_frames(items, interactions, images=tmp_path, check_images=False)


def test_keys_are_hashes_of_the_content(dataset: Dataset) -> None:
    text, image = Contents.of(dataset, "text"), Contents.of(dataset, "image")
    assert text.keys().to_list() == [None if text is None else digest(text.encode("utf-8")) for text in TEXTS]
    assert image.keys().to_list() == [None if image is None else digest(image) for image in IMAGES]
    assert text.present.tolist() == [True, False, True, True]
    assert image.present.tolist() == [True, True, False, True]
    assert (text.get(2), image.get(3)) == ("Überwurf", b"one")
    assert text.label(3) == "item 'i3'"


def test_imported_states_stand_for_items(dataset: Dataset) -> None:
    contents = Contents.of(dataset, "vectors", "imported")
    assert contents.keys().to_list() == [digest(f"i{index}".encode()) for index in range(4)]
    assert contents.present.all()


def test_plain_texts() -> None:
    contents = contents_of(["a", None])
    assert contents.keys().to_list() == [digest(b"a"), None]
    assert contents.present.tolist() == [True, False]


@pytest.mark.parametrize("column", ["caption", "more"])
def test_a_column_without_a_kind_has_no_contents(dataset: Dataset, column: str) -> None:
    with pytest.raises(ConfigError, match=f"no contents in a column '{column}'"):
        Contents.of(dataset, column)


def test_files_are_not_read_for_their_keys_and_are_checked_when_they_are_read(dataset: Dataset) -> None:
    contents = Contents.of(dataset, "image")
    assert dataset.image_root is not None
    (dataset.image_root / "i0.png").unlink()
    (dataset.image_root / "i1.png").write_bytes(b"another")
    assert contents.keys().to_list() == [None if image is None else digest(image) for image in IMAGES]
    with pytest.raises(DataError, match=r"i0\.png' cannot be read"):
        contents.get(0)
    with pytest.raises(DataError, match=r"the image of item 'i1' changed since `iisan prepare`.*prepare .* again"):
        contents.get(1)
    assert contents.get(3) == b"one"
