"""The index of a run: chosen, stored, opened, kept up to date."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, MissingExtraError, RunError
from iisan.recipes import recipe
from iisan.runs.run import Run
from iisan.serve import index as index_module
from iisan.serve.index import build_index, open_index
from iisan.serve.items import add_items, remove_items
from iisan.train.run import train

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    shutil.copytree(prepared.states, folder / "states")
    settings = {"dataset": prepared.dataset, "states": folder / "states"}
    train(recipe("similarity").model_copy(update=settings), folder / "run")
    return folder / "run"


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def opened(folder):
    return Run.load(folder, with_additions=True)


def build(folder, kind="ivf", **options):
    return build_index(opened(folder), kind=kind, **options)


def manifest_of(folder):
    return json.loads((folder / "index" / "index.json").read_text())


@pytest.mark.parametrize(
    ("milliseconds", "recall", "search"),
    [((4.0, 2.0), 0.01, "ivf"), ((4.0, 2.1), 0.01, "exact"), ((4.0, 0.1), 1.0, "exact")],
)
def test_the_kind_is_chosen_by_measured_time_and_recall(milliseconds, recall, search, folder, monkeypatch):
    monkeypatch.setattr(index_module, "_timed", lambda sides, _: dict(zip(sides, milliseconds, strict=True)))
    monkeypatch.setattr(index_module, "share_found", lambda *_: 0.5)
    manifest = build(folder, "auto", recall=recall)
    assert manifest == manifest_of(folder)
    assert manifest["search"] == search
    assert manifest["measured"]["ivf"]["recall@10"] == 0.5
    assert manifest["queries_of"] == "histories"
    files = {path.name for path in (folder / "index").iterdir()} - {".lock", "index.json"}
    assert files == ({manifest["file"]} if search == "ivf" else set())
    assert (open_index(opened(folder)) is None) == (search == "exact")


def test_an_index_recommends_and_follows_what_is_added_and_removed(folder, prepared):
    exact = Recommender.load(folder)
    before = exact.recommend(user="u1", k=5)
    manifest = build(folder)
    assert 0 < manifest["measured"]["ivf"]["recall@10"] <= 1
    assert manifest["measured"]["ivf"]["bytes"] == (folder / "index" / manifest["file"]).stat().st_size
    recommender = Recommender.load(folder)
    assert recommender._maker.index is not None
    # So many items are wanted that all are read.
    whole = recommender.recommend(user="u1", k=30)
    assert whole["item_id"].head(5).to_list() == before["item_id"].to_list()
    assert whole["score"].head(5).to_list() == pytest.approx(before["score"].to_list())
    best = before["item_id"][0]
    new = Dataset.load(prepared.dataset).items.head(1).with_columns(item_id=pl.lit("new"))
    recommender.add_items(new)
    recommender.remove_items([best])
    assert recommender._maker.index._changed.tolist() == [30]
    lists = [recommender.recommend(history=["i1", best], k=k)["item_id"].to_list() for k in (3, 31)]
    assert best not in lists[1]
    assert "new" in lists[1]
    # The cells take in what is new without being determined again.
    old = open_index(opened(folder))
    centres = old.cells.quantizer.reconstruct_n(0, manifest["cells"])
    build(folder)
    index = open_index(opened(folder))
    assert (index.cells.ntotal, index._changed.tolist()) == (31, [])
    np.testing.assert_array_equal(index.cells.quantizer.reconstruct_n(0, manifest["cells"]), centres)


def test_an_index_of_another_state(folder, prepared):
    items = Dataset.load(prepared.dataset).items.head(1)
    before = opened(folder)
    add_items(folder, items.with_columns(item_id=pl.lit("one")))
    build(folder)
    # A run that was opened before has rows that the index does not know: it is searched exactly.
    assert open_index(before) is None
    shutil.rmtree(folder / "additions")
    assert open_index(opened(folder)) is None
    add_items(folder, items.with_columns(item_id=pl.lit("other"), text=pl.lit("blue box")))
    with pytest.raises(RunError, match=r"of another run, or of items that were since deleted; .*iisan index"):
        open_index(opened(folder))
    assert build(folder)["search"] == "ivf"
    assert open_index(opened(folder)) is not None


def test_indexes_that_are_refused(folder, monkeypatch):
    with pytest.raises(ConfigError, match=r"a recall of 1\.5"):
        build(folder, recall=1.5)
    name = build(folder)["file"]
    path = folder / "index" / name
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(RunError, match="absent or damaged"):
        open_index(opened(folder))
    path.write_bytes(b"none" + content[4:])
    with pytest.raises(RunError, match="is damaged"):
        open_index(opened(folder))
    path.write_bytes(content)
    manifest = manifest_of(folder)
    (folder / "index" / "index.json").write_text(json.dumps(manifest | {"run": "other"}))
    with pytest.raises(RunError, match="of another run"):
        Recommender.load(folder).recommend(history=["i1"])
    (folder / "index" / "index.json").write_text("{")
    with pytest.raises(RunError, match="not a readable manifest"):
        open_index(opened(folder))
    monkeypatch.setattr(index_module, "divide", _missing)
    with pytest.raises(MissingExtraError, match="the extra 'index'"):
        build(folder)
    said = []
    assert build(folder, "auto", say=said.append)["search"] == "exact"
    assert "faiss is not installed" in said[0]


def _missing(*_):
    raise MissingExtraError("faiss", "index", "a test")


def test_the_command(folder, iisan):
    remove_items(folder, ["i2"])
    code, printed, _ = iisan("index", folder, "--kind", "ivf")
    assert code == 0
    assert "ivf (chosen)" in printed
    assert "cells" in printed
    code, printed, _ = iisan("index", folder, "--kind", "exact", "--json", "--dataset", folder / "nowhere")
    assert code == 0
    found = json.loads(printed)
    assert (found["search"], found["queries_of"]) == ("exact", "single items")
    code, _, said = iisan("index", folder, "--recall", "0")
    assert code == 2
    assert said.startswith("error: a recall of 0.0; expected more than 0")
