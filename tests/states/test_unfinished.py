"""Stores that were not finished, or tell no items apart: refused everywhere, until the same command goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from contents import contents_of
from iisan.data.dataset import Dataset
from iisan.encoders.contents import Contents
from iisan.encoders.text import TextEncoder
from iisan.errors import StoreError
from iisan.recipes import load_config
from iisan.states.caching import cache
from iisan.states.extract import extract
from iisan.states.importing import import_states, open_source
from iisan.states.store import StateStore
from iisan.states.writer import StateWriter
from iisan.train.run import train

ROWS = 40


@pytest.fixture
def dataset() -> Dataset:
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(ROWS)]})
    pairs = [(f"u{user}", f"i{(7 * user + time) % ROWS}") for user in range(20) for time in range(4)]
    return Dataset.from_frames(items, pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row"))


def source(folder: Path, **bad: float) -> Any:
    """Vectors of all items; ``i5=nan`` puts a value into those of item i5."""
    vectors = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    for item, value in bad.items():
        vectors[int(item[1:]), 2] = value
    np.save(folder / "v.npy", vectors)
    (folder / "ids.txt").write_text("".join(f"i{n}\n" for n in range(ROWS)))
    return open_source(folder / "v.npy", folder / "ids.txt")


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the writing of a store stop after so many shards, by an error that no retry is about."""
    add = StateWriter.add

    def stop(shards: int) -> None:
        done = 0

        def few(self: StateWriter, *arguments: Any) -> None:
            nonlocal done
            done += 1
            if done > shards:
                raise KeyboardInterrupt
            add(self, *arguments)

        monkeypatch.setattr(StateWriter, "add", few)

    yield stop
    monkeypatch.setattr(StateWriter, "add", add)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sample", [ROWS, 3])
def test_a_value_that_is_no_number_names_its_item_and_leaves_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, sample: int
) -> None:
    monkeypatch.setattr("iisan.states.extract.SAMPLE", sample)
    with pytest.raises(StoreError, match=r"item 'i29' in .* infinite or not a number.*mend that entry"):
        import_states(dataset, source(tmp_path, i29=value), "v", tmp_path / "states", shard_rows=10)
    assert not (tmp_path / "states").exists()


def test_a_value_that_the_format_cannot_hold_names_its_item(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iisan.states.extract.SAMPLE", 3)
    with pytest.raises(StoreError, match="item 'i29' is infinite or not a number in fp16"):
        import_states(dataset, source(tmp_path, i29=1e6), "v", tmp_path / "states", dtype="fp16", shard_rows=10)
    assert not (tmp_path / "states").exists()


def test_a_value_that_is_no_number_outside_the_shards_first_item(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A computation that breaks for one text of the sample spoils the means, so every text's states."""
    forward = TextEncoder.forward

    def broken(self: TextEncoder, inputs: dict[str, torch.Tensor], levels: Any) -> torch.Tensor:
        states = forward(self, inputs, levels)
        states[3, 1, 0] = torch.nan
        return states

    monkeypatch.setattr(TextEncoder, "forward", broken)
    order = sorted(Contents.of(catalogue, "text").keys()[:36], key=str)
    lengths = dict(zip(catalogue.texts[:36], bert.lengths(catalogue.texts[:36]), strict=True))
    keys = Contents.of(catalogue, "text").keys()
    wanted = sorted(range(36), key=lambda n: (lengths[catalogue.texts[n]], order.index(keys[n])))[3]
    with pytest.raises(StoreError, match=f"level 2 of item 'i{wanted}' is infinite or not a number in fp32"):
        extract(bert, Contents.of(catalogue, "text"), tmp_path, batch_size=64)
    assert [*tmp_path.iterdir()] == []


def test_half_an_import_is_refused_by_training_and_goes_on(dataset: Dataset, tmp_path: Path, stopped: Any) -> None:
    states = tmp_path / "states"
    stopped(2)
    with pytest.raises(KeyboardInterrupt):
        import_states(dataset, source(tmp_path), "v", states, shard_rows=10)
    saved = dataset.save(tmp_path / "dataset")
    settings = [f"dataset={saved.folder}", f"states={states}", "training.epochs=1"]
    with pytest.raises(StoreError, match=r"20 rows are there; expected a finished store: .*`iisan import-states`"):
        train(load_config("default", settings), tmp_path / "run")
    stopped(2)
    store = import_states(dataset, source(tmp_path), "v", states, shard_rows=10)
    assert len(store) == ROWS
    assert len(StateStore.find(states, "v").manifest.shards) == 4


def test_an_interrupted_import_is_completed_by_that_of_a_smaller_dataset(
    dataset: Dataset, tmp_path: Path, stopped: Any
) -> None:
    stopped(1)
    with pytest.raises(KeyboardInterrupt):
        import_states(dataset, source(tmp_path), "v", tmp_path / "states", shard_rows=10)
    items = pl.DataFrame({"item_id": ["i0", "i1", "i2"]})
    log = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["i0", "i1", "i2"]})
    stopped(9)
    store = import_states(Dataset.from_frames(items, log), source(tmp_path), "v", tmp_path / "states")
    assert (store.rows_for(dataset) >= 0).all()


def test_training_says_how_many_items_have_no_imported_states(dataset: Dataset, tmp_path: Path) -> None:
    source(tmp_path)
    np.save(tmp_path / "v.npy", np.load(tmp_path / "v.npy")[:37])
    (tmp_path / "ids.txt").write_text("".join(f"i{n}\n" for n in range(37)))
    imported = open_source(tmp_path / "v.npy", tmp_path / "ids.txt")
    import_states(dataset, imported, "v", tmp_path / "states")
    saved = dataset.save(tmp_path / "dataset")
    settings = [f"dataset={saved.folder}", f"states={tmp_path / 'states'}", "training.epochs=1"]
    said: list[str] = []
    train(load_config("default", settings), tmp_path / "run", say=said.append)
    assert "3 of 40 items have no imported states of v" in said


@pytest.mark.parametrize("out", ["file", "file/states"])
def test_a_file_in_the_place_of_the_folder_is_noticed_before_anything_is_computed(
    dataset: Dataset, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file' is a file; expected a folder of state stores: choose another"):
        cache(dataset, tmp_path / out, {"text": "no such encoder"})
    with pytest.raises(StoreError, match="file' is a file"):
        import_states(dataset, source(tmp_path), "v", tmp_path / out)


def test_a_finished_store_that_is_added_to_stays_readable(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, stopped: Any
) -> None:
    contents = Contents.of(catalogue, "text")
    extract(bert, contents_of(catalogue.texts[:20]), tmp_path)
    stopped(1)
    with pytest.raises(KeyboardInterrupt):
        extract(bert, contents, tmp_path, shard_rows=10)
    assert len(StateStore.find(tmp_path, "text")) == 30
    stopped(1)
    assert len(extract(bert, contents, tmp_path)) == 36


def test_shards_that_are_dropped_leave_an_unfinished_store(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, stopped: Any
) -> None:
    store = extract(bert, Contents.of(catalogue, "text"), tmp_path, shard_rows=16)
    (store.folder / "shard-00001.safetensors").unlink()
    with StateWriter(store.folder, None, print):
        pass
    with pytest.raises(StoreError, match="20 rows are there"):
        StateStore.open(store.folder)


def test_a_store_from_before_this_was_recorded_is_finished(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = Contents.of(catalogue, "text")
    store = extract(bert, contents, tmp_path)
    path = store.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["finished"]
    path.write_text(json.dumps(manifest | {"schema": 1}))
    assert len(StateStore.find(tmp_path, "text")) == 36
    monkeypatch.setattr(TextEncoder, "forward", None)
    assert len(extract(bert, contents, tmp_path)) == 36


def test_contents_that_differ_at_no_level_are_refused_whatever_the_encoder(
    catalogue: Any, bert: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, contents = TextEncoder.forward, Contents.of(catalogue, "text")
    monkeypatch.setattr(TextEncoder, "forward", lambda *given: torch.ones_like(forward(*given)))
    with pytest.raises(StoreError, match="36 different contents of text have the same states at every level"):
        extract(bert, contents, tmp_path)
    assert [*tmp_path.iterdir()] == []
    # One content is like itself; it is found out when others are added.
    one = extract(bert, contents_of(["red pump"]), tmp_path)
    assert one.manifest.error == [None] * 4
    with pytest.raises(StoreError, match="36 different contents"):
        extract(bert, contents, tmp_path)


def test_vectors_that_are_the_same_for_all_items_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((ROWS, 8)))
    (tmp_path / "ids.txt").write_text("".join(f"i{n}\n" for n in range(ROWS)))
    with pytest.raises(StoreError, match="40 different contents of v have the same states"):
        import_states(dataset, open_source(tmp_path / "v.npy", tmp_path / "ids.txt"), "v", tmp_path / "states")
    assert not (tmp_path / "states").exists()
