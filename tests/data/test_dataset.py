import hashlib
import json

import numpy as np
import pandas as pd
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.data.ids import index_of
from iisan.errors import DataError

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A &amp; B", None, "C"], "price": [1.5, None, 2.0]})
INTERACTIONS = pl.DataFrame(
    {
        "user_id": ["u", "v", "u", "v", "u", "v"],
        "item_id": ["c", "a", "b", "b", "a", "a"],
        "timestamp": [3, 1, 2, 2, 1, 2],
    }
)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def make():
    return Dataset.from_frames(ITEMS, INTERACTIONS)


def test_round_trip(tmp_path):
    made = make()
    assert made.folder is None
    loaded = made.save(tmp_path / "dataset")
    assert loaded.folder == tmp_path / "dataset"
    assert loaded.items.equals(made.items)
    assert loaded.items["price"].to_list() == [1.5, None, 2.0]
    assert loaded.user_ids.to_list() == ["u", "v"]
    assert isinstance(loaded.sequences.items, np.memmap)
    assert loaded.sequences.items.tolist() == [0, 1, 2, 0, 1, 0]
    assert (loaded.num_items, loaded.num_users, loaded.num_interactions) == (3, 2, 6)
    assert (loaded.text(0), loaded.text(1)) == ("A & B", None)
    written = {"files", "folder", "image_root"}
    assert {name: value for name, value in loaded.manifest.items() if name not in written} == made.manifest
    assert loaded.manifest["folder"] == str(tmp_path / "dataset")
    stored = pl.read_parquet(tmp_path / "dataset" / "interactions.parquet")
    assert stored.equals(loaded.interactions())
    assert stored.rows()[:3] == [("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]
    again = loaded.save(tmp_path / "dataset")  # onto the files it is mapped from
    assert again.interactions().equals(stored)


def test_captions_are_one_more_column_of_texts(tmp_path):
    made = make()
    texts = pl.Series(["a  pump", None, " "])
    captioned = made.with_captions("seen", texts, {"column": "image", "model": "m"}).save(tmp_path / "dataset")
    assert captioned.items["seen"].to_list() == ["a pump", None, None]
    assert captioned.kinds == {"text": "text", "image": "image", "seen": "text"}
    assert captioned.captions == {"seen": "image"}
    assert captioned.manifest["counts"]["missing"] == {"text": 1, "image": 3, "seen": 2}
    with_column = ITEMS.with_columns(seen=texts)
    assert (
        captioned.manifest["content_hash"]
        == Dataset.from_frames(with_column, INTERACTIONS, columns={"seen": "text"}).manifest["content_hash"]
    )
    assert (made.captions, made.items.columns) == ({}, ["item_id", "text", "image", "price"])
    for name, given, match in (
        ("price", texts, "a column 'price' already"),
        ("inter", texts, "a column named 'inter'"),
        ("seen", texts[:2], "2 texts"),
    ):
        with pytest.raises(DataError, match=match):
            made.with_captions(name, given, {"column": "image"})


@pytest.mark.parametrize(("name", "kind"), [("../note", "text"), ("inter", "text"), ("image", "text")])
def test_names_that_no_modality_can_have(name, kind, tmp_path):
    items = ITEMS.with_columns(pl.lit("red").alias(name))
    with pytest.raises(DataError, match=f"a column named '{name}'"):
        Dataset.from_frames(items, INTERACTIONS, columns={name: kind})
    made = make().save(tmp_path / "dataset")
    manifest = tmp_path / "dataset" / "dataset.json"
    manifest.write_text(json.dumps(made.manifest | {"kinds": {name: kind}}))
    with pytest.raises(DataError, match=f"a column named '{name}'"):
        Dataset.load(tmp_path / "dataset")


def test_content_hash_sees_every_part():
    hashes = {make().manifest["content_hash"]}
    assert make().manifest["content_hash"] in hashes
    changes = [
        (ITEMS.with_columns(title=pl.lit("x")), INTERACTIONS),
        (ITEMS.with_columns(price=pl.lit(0.0)), INTERACTIONS),
        (ITEMS, INTERACTIONS.with_columns(timestamp=pl.col("timestamp") + 1)),
        (ITEMS, INTERACTIONS.with_columns(pl.col("user_id").str.to_uppercase())),
        (ITEMS, INTERACTIONS.with_columns(item_id=pl.lit("a"))),
    ]
    hashes |= {Dataset.from_frames(*frames).manifest["content_hash"] for frames in changes}
    assert len(hashes) == 6


def test_content_hash_sees_the_files_and_not_where_they_lie(tmp_path):
    paths = ITEMS.with_columns(image=pl.Series(["a.png", None, "deep/c.png"]))
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").write_bytes(b"A")
    (tmp_path / "deep" / "c.png").write_bytes(b"C")
    options = {"images": tmp_path, "check_images": False}
    by_path = Dataset.from_frames(paths, INTERACTIONS, **options)
    assert by_path.keys.to_dict(as_series=False) == {"image": [sha256(b"A"), None, sha256(b"C")]}
    bytes_ = ITEMS.with_columns(image=pl.Series([b"A", None, b"C"]))
    by_bytes = Dataset.from_frames(bytes_, INTERACTIONS, check_images=False)
    assert by_bytes.content_hash == by_path.content_hash
    (tmp_path / "a.png").write_bytes(b"B")
    assert Dataset.from_frames(paths, INTERACTIONS, **options).content_hash != by_path.content_hash
    # Bytes that are no content of an encoder count as they are.
    thumbs = [by_bytes.items.with_columns(thumb=pl.Series([thumb, None, b""])) for thumb in (b"x", b"y")]
    hashes = {Dataset.from_frames(each, INTERACTIONS, check_images=False).content_hash for each in thumbs}
    assert len(hashes | {by_bytes.content_hash}) == 3


def test_pandas_gives_the_same_as_polars():
    items = pd.DataFrame({"item_id": [7.0, 8.0], "title": ["x", None]})
    interactions = pd.DataFrame({"who": [1, 1, 1], "item_id": [8, 7, 7]})
    dataset = Dataset.from_frames(items, interactions, user_id="who")
    assert dataset.items["item_id"].to_list() == ["7", "8"]
    assert dataset.items["text"].to_list() == ["x", None]
    assert dataset.sequences.items.tolist() == [1, 0, 0]
    lazy = Dataset.from_frames(pl.from_pandas(items).lazy(), pl.from_pandas(interactions), user_id="who")
    assert lazy.manifest["content_hash"] == dataset.manifest["content_hash"]


def test_frames_that_cannot_be_used():
    with pytest.raises(DataError, match="the interactions frame, row 2: unknown item 'a'"):
        Dataset.from_frames(ITEMS.filter(pl.col("item_id") != "a"), INTERACTIONS)
    with pytest.raises(DataError, match="the items frame is of type list"):
        Dataset.from_frames([1], INTERACTIONS)
    with pytest.raises(DataError, match="the items frame is empty"):
        Dataset.from_frames(ITEMS.clear(), INTERACTIONS)
    with pytest.raises(DataError, match="unknown option 'mode'"):
        Dataset.from_frames(ITEMS, INTERACTIONS, mode=1)
    with pytest.raises(DataError, match="option 'on_bad' has the value 'ignore'"):
        Dataset.from_frames(ITEMS, INTERACTIONS, on_bad="ignore")
    with pytest.raises(DataError, match="images=FOLDER"):
        Dataset.from_frames(ITEMS.with_columns(image=pl.lit("a.png")), INTERACTIONS)
    with pytest.raises(DataError, match="'image' of type Int32"):
        Dataset.from_frames(ITEMS.with_columns(image=pl.lit(1)), INTERACTIONS)


def test_skipped_rows_of_frames_are_kept(tmp_path):
    interactions = pl.concat([INTERACTIONS, INTERACTIONS.head(1).with_columns(item_id=pl.lit("zz"))])
    dataset = Dataset.from_frames(ITEMS, interactions, on_bad="skip")
    assert dataset.skipped.rows() == [("unknown item", "the interactions frame, row 7", "zz")]
    assert dataset.save(tmp_path / "d").skipped.equals(dataset.skipped)


def test_index_of_items_and_users():
    dataset = make()
    assert dataset.item_index(["c", "a", "c"]).tolist() == [2, 0, 2]
    assert dataset.item_index([]).tolist() == []
    assert dataset.user_index("v") == 1
    with pytest.raises(DataError, match="unknown user 'w'; expected one of the 2 users"):
        dataset.user_index("w")
    with pytest.raises(DataError, match="unknown item 'x', 'y'; "):
        dataset.item_index(["x", "a", "y", "x"])
    with pytest.raises(DataError, match="did you mean 'B0001'"):
        index_of(pl.Series(["B0001", "zzz"]), ["B0002"], "item")


def test_an_unfinished_folder_is_refused_and_can_be_written_again(tmp_path):
    folder = tmp_path / "dataset"
    make().save(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match="iisan prepare") as caught:
        Dataset.load(folder)
    assert "writing was finished" in caught.value.expected
    with pytest.raises(DataError, match="empty that folder"):
        make().save(folder)  # nothing says that these files are a dataset's
    (folder / "dataset.unfinished").touch()
    (folder / ".items.parquet.x.part").touch()
    assert make().save(folder).num_items == 3
    assert not list(folder.glob("*unfinished")) + list(folder.glob(".*.part"))


def test_foreign_files_in_the_folder_are_not_the_datasets(tmp_path):
    folder = tmp_path / "d"
    make().save(folder)
    foreign = [folder / "mine.parquet", folder / "sequences" / "mine.npy"]
    for path in foreign:
        path.write_bytes(b"mine")
    files = make().save(folder).manifest["files"]
    assert sorted(files) == [
        "interactions.parquet",
        "items.parquet",
        "keys.parquet",
        *(f"sequences/{name}.npy" for name in ("items", "offsets", "timestamps")),
        "skipped.jsonl",
        "users.parquet",
    ]
    for path in foreign:
        path.unlink()
    assert Dataset.load(folder).num_items == 3


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([{"bytes": b"x", "path": "a.png"}] * 3),
        pl.Series([[b"x"]] * 3),
        pl.Series([[{"deep": [b"x"]}]] * 3),
        pl.Series([object()] * 3, dtype=pl.Object),
        pl.Series([{}] * 3, dtype=pl.Struct([])),
        pl.Series([[{}]] * 3, dtype=pl.List(pl.Struct([]))),
    ],
)
def test_further_columns_that_cannot_be_stored_are_left_out(values, tmp_path):
    dataset = Dataset.from_frames(ITEMS.with_columns(more=values), INTERACTIONS).save(tmp_path / "d")
    assert dataset.items.columns == ["item_id", "text", "image", "price"]
    kept = ITEMS.with_columns(more=pl.Series([{"Binary": ["x"]}] * 3))
    assert "more" in Dataset.from_frames(kept, INTERACTIONS).items.columns


def test_names_that_would_be_there_twice():
    items = ITEMS.with_columns(pl.lit("x").alias("text"), pl.lit("y").alias("text_original"))
    with pytest.raises(DataError, match="the items frame has a column in the way of 'text_original'"):
        Dataset.from_frames(items, INTERACTIONS, text="title")
    with pytest.raises(DataError, match="in the way of '__line__'"):
        Dataset.from_frames(ITEMS.with_columns(__line__=1), INTERACTIONS)
    with pytest.raises(DataError, match="the items frame has one column 'item_id'"):
        Dataset.from_frames(ITEMS, INTERACTIONS, text="item_id")
    with pytest.raises(DataError, match="the interactions frame has one column 'item_id'"):
        Dataset.from_frames(ITEMS, INTERACTIONS, user_id="item_id")


@pytest.mark.parametrize("name", ["items.parquet", "interactions.parquet", "sequences/items.npy"])
def test_truncated_and_missing_files_are_refused(tmp_path, name):
    make().save(tmp_path / "d")
    path = tmp_path / "d" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="bytes, as its manifest says"):
        Dataset.load(tmp_path / "d")
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        Dataset.load(tmp_path / "d")


@pytest.mark.parametrize("name", ["items.parquet", "sequences/items.npy"])
def test_damage_of_equal_size_is_refused(tmp_path, name):
    make().save(tmp_path / "d")
    path = tmp_path / "d" / name
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match="is damaged"):
        Dataset.load(tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "other"}, "was not written as an iisan-dataset"),
        ({"schema": 4}, "schema 4"),
        ({"files": {"../x": 1}}, "leads out"),
        ({"files": None}, "is damaged"),
        ({"counts": {"items": 4, "users": 2, "interactions": 6}}, "expected .4, 2, 2, 6."),
    ],
)
def test_foreign_newer_and_inconsistent_manifests_are_refused(tmp_path, change, match):
    manifest = make().save(tmp_path / "d").manifest
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DataError, match=match):
        Dataset.load(tmp_path / "d")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "d").touch()
    with pytest.raises(DataError, match="is a file"):
        make().save(tmp_path / "d")
    with pytest.raises(DataError):
        Dataset.load(tmp_path / "d")
