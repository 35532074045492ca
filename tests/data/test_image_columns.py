"""Which column holds images, and what lies in the folder of images."""

import json

import polars as pl
import pytest
from PIL import Image

from iisan.data.prepare import PrepareOptions, prepare
from iisan.errors import DataError
from pictures import encoded

IDS = ["a", "b", "c"]
ADDRESS = "https://m.example.com/x.jpg"


def png(shade):
    return encoded(Image.new("RGB", (3, 3), (shade, 0, 0)))


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "p").mkdir(parents=True)
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    (tmp_path / "photos" / "p" / "b.png").write_bytes(png(2))
    return tmp_path / "photos"


def run(folder, items, ending="csv", **options):
    (folder / "log.csv").write_text("user_id,item_id\nu,a\nu,b\nu,c\n")
    path = folder / f"items.{ending}"
    match ending:
        case "csv":
            items.write_csv(path)
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in items.to_dicts()))
        case "parquet":
            items.write_parquet(path)
    return prepare("table", [path, folder / "log.csv"], folder / "out", PrepareOptions(**options))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_images_by_id_where_the_column_holds_addresses(tmp_path, photos, ending):
    items = pl.DataFrame({"item_id": IDS, "image": [ADDRESS, None, ADDRESS.upper()]})
    dataset = run(tmp_path, items, ending, images=photos)
    assert dataset.items["image"].to_list() == ["a.png", "p/b.png", None]
    assert dataset.items["image_original"].to_list() == [ADDRESS, None, ADDRESS.upper()]
    assert dataset.content_bytes("image", 1) == png(2)
    without = run(tmp_path, items, ending)
    assert without.items["image"].null_count() == 3


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_lists_of_addresses(tmp_path, photos, ending):
    items = pl.DataFrame({"item_id": IDS, "image": [[ADDRESS, ADDRESS], [], None]})
    assert run(tmp_path, items, ending, images=photos).items["image"].to_list() == ["a.png", "p/b.png", None]


def test_no_column_holds_images(tmp_path, photos):
    items = pl.DataFrame({"item_id": IDS, "image": ["front", "back", "front"]})
    dataset = run(tmp_path, items, images=photos, image="none")
    assert dataset.items["image"].to_list() == ["a.png", "p/b.png", None]
    assert dataset.items["image_original"].to_list() == ["front", "back", "front"]
    assert run(tmp_path, items, image="none").items["image"].null_count() == 3


def test_another_column_holds_images(tmp_path, photos):
    items = pl.DataFrame({"item_id": IDS, "image": [ADDRESS] * 3, "file": ["p/b.png", "", "a.png"]})
    dataset = run(tmp_path, items, images=photos, image="file")
    assert dataset.items["image"].to_list() == ["p/b.png", None, "a.png"]


def test_addresses_where_files_are_asked_for(tmp_path, photos):
    items = pl.DataFrame({"item_id": IDS, "image": [ADDRESS, "a.png", "p/b.png"]})
    for options in ({}, {"image": "image"}):
        with pytest.raises(DataError, match=f"item 'a': bad image 'the web address '{ADDRESS}'.* download-images"):
            run(tmp_path, items, images=photos, **options)
    dataset = run(tmp_path, items, images=photos, on_bad="skip")
    assert dataset.items["image"].to_list() == [None, "a.png", "p/b.png"]


def test_a_folder_of_images_that_are_no_items(tmp_path, photos):
    with pytest.raises(DataError, match=r"none of the 3 items has an image in .* holds 'a\.png' for example"):
        run(tmp_path, pl.DataFrame({"item_id": ["a0", "b0", "c0"]}), images=photos)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images_where_no_item_is_left(tmp_path, photos):
    with pytest.raises(DataError, match="no user is left"):
        run(tmp_path, pl.DataFrame({"item_id": [None, ""], "title": ["x", "y"]}), images=photos, on_bad="skip")


def test_a_folder_of_other_files_need_have_no_images(tmp_path, photos):
    items = pl.DataFrame({"item_id": IDS, "photo": ["p/b.png", None, None], "title": ["x"] * 3})
    dataset = run(tmp_path, items, images=photos / "p", columns={"photo": "image"}, on_bad="skip")
    assert dataset.manifest["counts"]["missing"]["photo"] == 3
    (photos / "a.png").unlink()
    (photos / "p" / "b.png").rename(photos / "z.png")
    found = run(tmp_path, items.with_columns(photo=pl.lit("z.png")), images=photos, columns={"photo": "image"})
    assert found.manifest["counts"]["missing"] == {"text": 0, "image": 3, "photo": 0}


def test_bytes_in_columns_that_nobody_asked_for_stop_nothing(tmp_path):
    held = pl.Series([[{"bytes": b"x", "path": None}]] * 3)
    items = pl.DataFrame({"item_id": IDS, "images": held, "title": [["a", "b"], [], None]})
    dataset = run(tmp_path, items, "parquet")
    assert dataset.items.columns == ["item_id", "text", "image"]
    assert dataset.items["text"].to_list() == ["a b", None, None]
