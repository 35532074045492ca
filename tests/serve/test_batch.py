"""Lists for all users: the same as one by one, in shards that survive a kill, in one file at the end."""

import json
import shutil
import weakref

import numpy as np
import polars as pl
import pytest

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, DataError, RunError
from iisan.files import locked
from iisan.serve import batch
from iisan.serve.items import remove_items
from iisan.serve.lists import ListMaker

SHARDS = 8


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of 7 users, the last one of a single user."""
    monkeypatch.setattr(batch, "_USERS", 7)


@pytest.fixture
def recommender(anchored_run, tmp_path):
    return Recommender.load(shutil.copytree(anchored_run, tmp_path / "run"))


@pytest.fixture
def made(monkeypatch):
    """The first user of every shard that is made, as it is made; a place to say before which one it ends."""
    shards, ends = [], []

    def recommend_shard(maker, users, *options):
        if len(shards) in ends:
            ends.clear()
            raise KeyboardInterrupt
        shards.append(int(users[0]))
        return original(maker, users, *options)

    original = batch.recommend_shard
    monkeypatch.setattr(batch, "recommend_shard", recommend_shard)
    return shards, ends


def files_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "run")


OPTIONS = [
    {},
    {"filter_viewed": False, "k": 30},
    {"where": {"item_id": [f"i{n}" for n in range(5)]}, "k": 3},
    {"max_per": "text", "items_to_exclude": ["i0"]},
    {"near_duplicates": 0.5, "k": 4},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_all_users_get_the_lists_that_each_gets_alone(recommender, options, tmp_path):
    lists, alone = recommender.recommend_all(**options), []
    for user in recommender.dataset.user_ids:
        if user in lists["user_id"]:
            alone.append(recommender.recommend(users=[user], **options))
            continue
        with pytest.raises(DataError, match="history and filters leave none"):
            recommender.recommend(users=[user], **options)
    alone = pl.concat(alone)
    assert alone["user_id"].n_unique() == (48 if "where" in options else 50)
    assert lists.schema == alone.schema == batch.SCHEMA
    assert lists.drop("score").equals(alone.drop("score"))
    np.testing.assert_allclose(lists["score"], alone["score"], rtol=1e-5, atol=1e-6)
    assert recommender.recommend_all(out=tmp_path / "lists.parquet", **options).collect().equals(lists)


@pytest.mark.parametrize(
    ("ending", "read"),
    [
        ("parquet", pl.read_parquet),
        ("csv", lambda file: pl.read_csv(file, schema_overrides=batch.SCHEMA)),
        ("JSONL", lambda file: pl.read_ndjson(file, schema_overrides=batch.SCHEMA)),
        ("ndjson", lambda file: pl.read_ndjson(file, schema_overrides=batch.SCHEMA)),
    ],
)
def test_the_file_holds_all_lists_in_order(recommender, tmp_path, made, ending, read):
    out = tmp_path / "new" / f"lists [1].{ending}"
    found = recommender.recommend_all(3, out=str(out))
    assert made[0] == list(range(0, 50, 7))
    lists = recommender.recommend_all(3)
    with out.open("rb") as file:
        assert read(file).equals(lists)
    assert found.collect().equals(lists)
    assert files_in(out.parent) == [out.name]


def test_finished_shards_survive_an_interruption(recommender, tmp_path, made):
    shards, ends = made
    out = tmp_path / "lists.parquet"
    out.write_bytes(b"lists of yesterday")
    for end in (3, 3, 5):
        ends.append(end)
        with pytest.raises(KeyboardInterrupt):
            recommender.recommend_all(out=out)
        assert out.read_bytes() == b"lists of yesterday"
        assert files_in(tmp_path) == [".lists.parquet.shards", "lists.parquet"]
    # A killed process also leaves what it was writing.
    (tmp_path / ".lists.parquet.shards" / ".000005.parquet.abc.part").write_bytes(b"half")
    (tmp_path / ".lists.parquet.shards" / "whole").write_bytes(b"half")
    found = recommender.recommend_all(out=out).collect()
    assert shards == list(range(0, 50, 7))
    assert found.equals(recommender.recommend_all())
    assert files_in(tmp_path) == ["lists.parquet"]


def test_an_interruption_at_the_end_costs_no_shard(recommender, tmp_path, made, monkeypatch):
    def full(self, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    out = tmp_path / "lists.csv"
    with monkeypatch.context() as patch:
        patch.setattr(pl.LazyFrame, "sink_csv", full)
        with pytest.raises(OSError, match="No space"):
            recommender.recommend_all(out=out)
    assert files_in(tmp_path) == [".lists.csv.shards"]
    assert recommender.recommend_all(out=out).collect().height == 500
    assert len(made[0]) == SHARDS
    assert files_in(tmp_path) == ["lists.csv"]


def newer_dataset(prepared, folder):
    data = Dataset.load(prepared.dataset)
    later = pl.DataFrame({"user_id": ["u0"], "item_id": ["i9"], "timestamp": [1_800_000_000]})
    return Dataset.from_frames(data.items, pl.concat([data.interactions(), later])).save(folder).folder


CHANGES = {
    "k": lambda *_: {"k": 9},
    "policy": lambda *_: {"filter_viewed": False},
    "selection of items": lambda *_: {"where": {"item_id": ["i1", "i2", "i3"]}},
    "max_per": lambda *_: {"max_per": {"text": 2}},
    "near_duplicates": lambda *_: {"near_duplicates": 0.9},
    "run": lambda folder, *_: retrained(folder),
    "selection of items, state": lambda folder, *_: remove_items(folder, ["i7"]) and {},
    "dataset": lambda _, prepared, tmp: {"dataset": newer_dataset(prepared, tmp / "newer")},
}


def retrained(folder):
    """Other weights of the terms, which are in the result alone."""
    result = json.loads((folder / "result.json").read_text())
    result["terms"]["weights"]["repeats"] -= 1
    (folder / "result.json").write_text(json.dumps(result))
    return {}


@pytest.mark.parametrize("change", CHANGES)
def test_other_lists_are_not_mixed_with_earlier_shards(recommender, prepared, tmp_path, made, change):
    shards, ends = made
    out, folder = tmp_path / "lists.parquet", recommender.run.folder
    ends.append(3)
    with pytest.raises(KeyboardInterrupt):
        recommender.recommend_all(out=out)
    shards.clear()
    options = CHANGES[change](folder, prepared, tmp_path)
    other = Recommender.load(folder, options.pop("dataset", None))
    with pytest.warns(UserWarning, match=f"made anew: 3 finished shards have another {change.split(',')[0]}"):
        found = other.recommend_all(out=out, **options).collect()
    assert len(shards) == SHARDS
    assert found.equals(other.recommend_all(**options))


def test_an_index_of_cells_finds_the_lists_of_all_users(recommender, tmp_path, made):
    pytest.importorskip("faiss")
    from iisan.serve.index import build_index

    out, folder = tmp_path / "lists.parquet", recommender.run.folder
    made[1].append(3)
    with pytest.raises(KeyboardInterrupt):
        recommender.recommend_all(out=out)
    build_index(recommender.run, kind="ivf", recall=0.01)
    indexed = Recommender.load(folder)
    with pytest.warns(UserWarning, match="another index"):
        found = indexed.recommend_all(out=out).collect()
    alone = pl.concat([indexed.recommend(users=[user]) for user in indexed.dataset.user_ids])
    assert found.drop("score").equals(alone.drop("score"))


def test_shards_are_bounded_and_not_kept_in_memory(recommender, tmp_path, monkeypatch):
    maker = ListMaker(recommender.run)
    assert [len(shard) for shard in batch.shards_of(maker, 10)] == [7] * 7 + [1]
    monkeypatch.setattr(batch, "_ROWS", 40)
    assert {len(shard) for shard in batch.shards_of(maker, 10)} == {4, 2}
    assert {len(shard) for shard in batch.shards_of(maker, 10**6)} == {1}
    monkeypatch.setattr(batch, "_ROWS", 300)
    assert {len(shard) for shard in batch.shards_of(maker, 10**6)} == {7, 1}  # lists of all 30 items
    monkeypatch.setattr(batch, "_ROWS", 40)
    alive = []
    original = batch.recommend_shard

    def recommend_shard(*arguments):
        assert not [each for each in alive if each() is not None]
        table = original(*arguments)
        assert table.height <= 40
        alive.append(weakref.ref(table))
        return table

    monkeypatch.setattr(batch, "recommend_shard", recommend_shard)
    recommender.recommend_all(10, out=tmp_path / "lists.parquet")
    assert len(alive) == 13


def test_lists_that_cannot_be_written(recommender, tmp_path):
    out = tmp_path / "lists.parquet"
    every = recommender.dataset.items["item_id"].to_list()
    for options in ({}, {"out": out}):
        with pytest.raises(DataError, match="history and filters leave none of the 30 items"):
            recommender.recommend_all(items_to_exclude=every, **options)
        with pytest.raises(ConfigError, match="lists of 0 items"):
            recommender.recommend_all(0, **options)
    with pytest.raises(ConfigError, match=r"'lists.pq' has the ending '.pq'; expected one of .parquet"):
        recommender.recommend_all(out="lists.pq")
    assert files_in(tmp_path) == []
    with locked(tmp_path / ".lists.parquet.shards", RunError), pytest.raises(RunError, match="another process"):
        recommender.recommend_all(out=out)
