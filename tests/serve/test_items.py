"""Items that are added to a finished run, updated and removed."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import DataError, RunError
from iisan.runs import additions as additions_module
from iisan.runs.assess import assess
from iisan.runs.run import Run
from iisan.serve import items as items_module
from iisan.serve.items import add_items, remove_items
from iisan.states.importing import column_source, import_states
from iisan.states.store import StateStore
from iisan.states.writer import StateWriter
from iisan.train.members import join
from iisan.train.run import train

METHODS = [
    ("default",),
    ("default", "modalities=[text]"),
    ("frozen", "anchor=false"),
    ("similarity",),
    ("ids", "anchor=true"),
    ("lora",),
    ("partial",),
]


QUICK = ("training.epochs=1", "training.batch_size=64", "loss.negatives=0", "training.precision=fp32")


@pytest.fixture
def configured(prepared):
    def config(name="default", *overrides):
        return prepared.config(name, *QUICK, *overrides)

    return config


@pytest.fixture
def trained(configured, prepared, tmp_path):
    """Trains a method on states of its own, as items are added to these."""

    def run(*settings, name="run"):
        states = tmp_path / "states"
        if not states.exists():
            shutil.copytree(prepared.states, states)
        method, *changes = settings
        live = [f"{kind}.encoder={getattr(prepared, kind)}" for kind in ("text", "image")]
        more = live if method in ("lora", "partial") else []
        train(configured(method, f"states={states}", *more, *changes), tmp_path / name)
        return tmp_path / name

    return run


@pytest.fixture
def catalogue(prepared):
    return Dataset.load(prepared.dataset).items


def vectors(run):
    """All vectors of items by their names."""
    found = {f"member {number}": member.items for number, member in enumerate(run.members)}
    return found | (run.anchoring.scorer.anchors if run.anchoring else {})


def after(run, row):
    return run.anchoring.scorer.transitions.after(np.array([row])).toarray()[0]


@pytest.mark.parametrize("settings", METHODS, ids=" ".join)
def test_a_content_that_is_in_the_catalogue_gives_its_vectors_bit_for_bit(settings, trained, catalogue):
    folder = trained(*settings)
    before = Run.load(folder)
    # Items 3 and 5 lack texts, 4 and 5 images.
    again = catalogue.head(8).with_columns(item_id="new " + pl.col("item_id"))
    change = add_items(folder, again)
    assert (change.added, change.updated) == (8, 0)
    run = Run.load(folder, with_additions=True)
    assert (len(run.items), run.num_trained, run.scorer.num_items) == (38, 30, 38)
    assert run.items["item_id"].to_list() == [*catalogue["item_id"], *again["item_id"]]
    for name, found in vectors(run).items():
        assert torch.equal(found[:30], vectors(before)[name])
        if settings[0] == "ids" and name.startswith("member"):
            assert not found[30:].any()
        elif settings[0] in ("lora", "partial"):
            torch.testing.assert_close(found[30:], found[:8], atol=1e-5, rtol=1e-4)
        else:
            assert torch.equal(found[30:], found[:8])
    assert Run.load(folder).items.equals(before.items)


def test_a_new_item_is_scored_as_one_of_the_catalogue_that_nobody_bought(trained, catalogue):
    folder = trained("default")
    add_items(folder, catalogue.head(3).with_columns(item_id="new " + pl.col("item_id")))
    run = Run.load(folder, with_additions=True)
    counts = run.anchoring.scorer.counts
    assert counts[30:].tolist() == [0, 0, 0]
    # Item 0 and its copy are each other's nearest, so their histories are the same but for their own transitions.
    neighbours = run.anchoring.scorer.transitions.neighbours.toarray()
    assert neighbours.shape == (34, 33)
    assert neighbours[:33].sum(1) == pytest.approx(np.ones(33))
    assert not neighbours[33].any()
    assert neighbours[30, 0] == pytest.approx(neighbours[30, 30])
    assert after(run, 30).sum() > 0
    histories = np.array([[-1] * 9 + [30], [-1] * 10])
    scores = run.scorer.score(run.scorer.start(histories), slice(0, 33))
    assert torch.isfinite(scores).all()
    # An empty history has no transitions.
    assert run.anchoring.scorer.transitions.after(np.array([-1])).nnz == 0


def test_a_known_item_is_updated_in_its_place(trained, catalogue):
    folder = trained("default")
    before = Run.load(folder)
    changed = catalogue[[7, 8]].with_columns(text=catalogue["text"][[1, 2]], image=catalogue["image"][[1, 2]])
    new = changed.head(1).with_columns(item_id=pl.lit("new"))
    change = add_items(folder, pl.concat([changed, new]))
    assert (change.added, change.updated) == (1, 2)
    run = Run.load(folder, with_additions=True)
    assert run.items["text"][7] == catalogue["text"][1]
    assert run.items["item_id"].to_list() == [*catalogue["item_id"], "new"]
    for name, found in vectors(run).items():
        assert torch.equal(found[[7, 8, 30]], vectors(before)[name][[1, 2, 1]])
        kept = [row for row in range(30) if row not in (7, 8)]
        assert torch.equal(found[kept], vectors(before)[name][kept])
    # Its interactions stay its own.
    assert torch.equal(run.anchoring.scorer.counts[:30], before.anchoring.scorer.counts)
    # Added and updated once more.
    add_items(folder, new.with_columns(text=catalogue["text"][[9]], image=catalogue["image"][[9]]))
    again = Run.load(folder, with_additions=True)
    assert len(again.items) == 31
    assert torch.equal(again.members[0].items[30], before.members[0].items[9])


def test_no_new_item_has_a_modality_of_the_run(trained, catalogue):
    folder = trained("default")
    add_items(folder, catalogue[[7]].drop("image").with_columns(item_id=pl.lit("new")))
    run = Run.load(folder, with_additions=True)
    assert not run.anchoring.scorer.anchors["image"][30].any()
    assert torch.equal(run.anchoring.scorer.anchors["text"][30], run.anchoring.scorer.anchors["text"][7])


def test_states_go_into_the_stores_once(trained, catalogue):
    folder = trained("default")
    store = StateStore.find(Run.load(folder).config.states, "text")
    count, new = len(store), catalogue.head(1).with_columns(item_id=pl.lit("new"), text=pl.lit("red red red pump"))
    add_items(folder, new)
    add_items(folder, new)
    assert len(StateStore.find(Run.load(folder).config.states, "text")) == count + 1


def test_items_of_joined_runs(trained, catalogue, tmp_path):
    runs = [Run.load(trained("default", f"training.seed={seed}", name=str(seed))) for seed in (0, 1)]
    runs.append(Run.load(trained("ids", "anchor=true", name="ids")))
    join(runs, tmp_path / "joined")
    add_items(tmp_path / "joined", catalogue.head(2).with_columns(item_id="new " + pl.col("item_id")))
    run = Run.load(tmp_path / "joined", with_additions=True)
    for member, own in zip(run.members[:2], runs[:2], strict=True):
        assert torch.equal(member.items[30:], own.members[0].items[:2])
    assert not run.members[2].items[30:].any()


def test_removed_items_stay_in_histories(trained, catalogue):
    folder = trained("similarity")
    assert remove_items(folder, ["i1", "i2"]).removed == 2
    assert Run.load(folder, with_additions=True).removed == {"i1", "i2"}
    assert Run.load(folder).removed == frozenset()
    # An item that is added again is there again.
    add_items(folder, catalogue[[1]])
    assert Run.load(folder, with_additions=True).removed == {"i2"}
    with pytest.raises(DataError, match="unknown item 'none'"):
        remove_items(folder, ["none"])
    with pytest.raises(RunError, match="removal of all items"):
        remove_items(folder, catalogue["item_id"].to_list())


@pytest.mark.parametrize("place", ["save_file", "write_json"])
def test_a_change_that_is_interrupted_leaves_the_old_state(place, trained, catalogue, monkeypatch):
    folder = trained("similarity")
    first = catalogue.head(1).with_columns(item_id=pl.lit("first"))
    add_items(folder, first)

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(additions_module, place, fail)
        with pytest.raises(KeyboardInterrupt):
            add_items(folder, first.with_columns(item_id=pl.lit("second")))
    assert Run.load(folder, with_additions=True).items["item_id"][-1] == "first"
    add_items(folder, first.with_columns(item_id=pl.lit("third")))
    run = Run.load(folder, with_additions=True)
    assert run.items["item_id"][-2:].to_list() == ["first", "third"]
    held = json.loads((folder / "additions" / "additions.json").read_text())["segments"]
    assert sorted(path.name for path in (folder / "additions").iterdir() if path.is_dir()) == sorted(held)


def test_states_whose_writing_was_interrupted_are_completed_by_the_next_call(trained, catalogue, monkeypatch):
    folder = trained("default")
    new = catalogue.head(2).with_columns(item_id="new " + pl.col("item_id"), text=pl.Series(["a pump", "a lamp"]))
    add = StateWriter.add

    def stop(*arguments):
        add(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StateWriter, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            add_items(folder, new)
    # Others read the store meanwhile.
    assert assess(Run.load(folder), Run.load(folder).config)
    assert add_items(folder, new).added == 2


def test_new_items_are_similar_to_those_that_were_added_before(trained, catalogue):
    folder = trained("default")
    for name in ("first", "second"):
        add_items(folder, catalogue.head(1).with_columns(item_id=pl.lit(name)))
    neighbours = Run.load(folder, with_additions=True).anchoring.scorer.transitions.neighbours.toarray()
    assert neighbours[31, 30] == neighbours[31, 0] == neighbours[31, 31] > 0


def test_a_run_that_knows_ids_only_is_refused(configured, tmp_path, catalogue):
    train(configured("ids", "modalities=[]"), tmp_path / "run")
    with pytest.raises(RunError, match="knows items by their ids only"):
        add_items(tmp_path / "run", catalogue.head(1))
    assert not list((tmp_path / "run" / "additions").glob("0*"))


def test_an_item_lacks_what_every_item_of_the_training_had(configured, prepared, tmp_path):
    dataset = Dataset.load(prepared.dataset)
    whole = dataset.items.filter(pl.col("text").is_not_null())
    log = dataset.interactions().filter(pl.col("item_id").is_in(whole["item_id"].to_list()))
    kept = Dataset.from_frames(whole, log, min_length=3).save(tmp_path / "data")
    states = shutil.copytree(prepared.states, tmp_path / "states")
    settings = ("modalities=[text]", "anchor=false", f"dataset={kept.folder}", f"states={states}")
    train(configured("default", *settings), tmp_path / "run")
    with pytest.raises(RunError, match="item 'bare' has no text, which every item of the training had"):
        add_items(tmp_path / "run", pl.DataFrame({"item_id": ["full", "bare"], "text": ["red pump", None]}))
    assert add_items(tmp_path / "run", pl.DataFrame({"item_id": ["full"], "text": ["red pump"]})).added == 1


def test_a_second_writer_is_refused(trained, catalogue):
    folder = trained("similarity")
    with additions_module.writing(folder), pytest.raises(RunError, match="written by another process"):
        add_items(folder, catalogue.head(1))


def test_a_damaged_segment(trained, catalogue):
    folder = trained("similarity")
    add_items(folder, catalogue.head(1).with_columns(item_id=pl.lit("new")))
    path = folder / "additions" / "000001" / "vectors.safetensors"
    assert load_file(path)["rows"].tolist() == [30]
    assert path.stat().st_mode & 0o777 == 0o644
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RunError, match="is damaged"):
        Run.load(folder, with_additions=True)
    with pytest.raises(RunError, match="is damaged"):
        add_items(folder, catalogue.head(1).with_columns(item_id=pl.lit("newer")))
    assert Run.load(folder).num_trained == 30


def test_states_outside_the_fit_are_reported(trained, catalogue, monkeypatch):
    folder = trained("similarity")
    change = add_items(folder, catalogue.head(2).with_columns(item_id="new " + pl.col("item_id")))
    assert change.outside.keys() == {"text", "image"}
    assert all(0 <= share < 1e-3 for share in change.outside.values()), change.outside
    assert items_module.Change().outside is None


def test_new_items_are_recommended_found_and_explained(trained, catalogue, iisan):
    folder = trained("default")
    new = catalogue.head(1).with_columns(item_id=pl.lit("new"))
    recommender = Recommender.load(folder)
    old = recommender.recommend(user="u1", k=30)
    assert recommender.add_items(new).added == 1
    assert recommender.recommend(history=["i7"], items_to_recommend=["new"])["item_id"].to_list() == ["new"]
    assert recommender.recommend(history=["new"])["score"].is_finite().all()
    # The others' scores are as before.
    lists = recommender.recommend(user="u1", k=31).filter(pl.col("item_id") != "new")
    assert lists["item_id"].to_list() == old["item_id"].to_list()
    np.testing.assert_allclose(lists["score"], old["score"], rtol=1e-6, atol=1e-6)
    similar = recommender.similar_items(["i0"], k=1, by="anchor")
    assert (similar["similar_id"][0], similar["score"][0]) == ("new", pytest.approx(1))
    assert recommender.explain("new", history=["i7", "i0"]).rank >= 1
    # An update changes the text that is shown.
    recommender.add_items(new.with_columns(text=pl.lit("blue lamp")))
    shown = recommender.recommend(history=["i7"], items_to_recommend=["new"])
    assert shown["text"].to_list() == ["blue lamp"]
    assert recommender.remove_items(["new", "i3"]).removed == 2
    assert not {"new", "i3"} & set(recommender.recommend(history=["i7"], k=31, filter_viewed=False)["item_id"])
    assert "new" not in recommender.similar_items(["i0"], k=31, by="text")["similar_id"].to_list()
    assert recommender.recommend(history=["new"])["score"].is_finite().all()
    again = Recommender.load(folder)
    assert again.recommend(user="u1", k=5).equals(recommender.recommend(user="u1", k=5))
    # The metrics of the run are those of its own items.
    code, printed, _ = iisan("evaluate", folder, "--no-baselines", "--json")
    assert (code, json.loads(printed)["default"]["hr@10"]) == (0, again.metrics["hr@10"])


def test_columns_of_new_items_are_conditions_and_limits(trained, catalogue, prepared, tmp_path):
    dataset = Dataset.load(prepared.dataset)
    branded = dataset.items.with_columns(brand=pl.lit("old"), price=pl.lit(3.0))
    data = Dataset.from_frames(branded, dataset.interactions()).save(tmp_path / "data")
    folder = trained("similarity", f"dataset={data.folder}")
    recommender = Recommender.load(folder)
    columns = {"brand": pl.lit("new"), "price": pl.Series(["4.5", "dear"])}
    recommender.add_items(catalogue.head(2).with_columns(item_id="new " + pl.col("item_id"), **columns))
    assert recommender.recommend(history=["i7"], where={"price": 4.5})["item_id"].to_list() == ["new i0"]
    # What another process adds is not seen until the run is opened again.
    add_items(folder, catalogue.head(1).with_columns(item_id=pl.lit("later"), brand=pl.lit("new")))
    found = recommender.recommend(history=["i7"], where={"brand": "new"})
    assert sorted(found["item_id"]) == ["new i0", "new i1"]
    assert len(recommender.recommend(history=["i7"], max_per="brand")) == 2
    # A column that no other item has is one, too.
    recommender.add_items(catalogue.head(1).with_columns(item_id=pl.lit("organic"), label=pl.lit("eco")))
    found = recommender.recommend(history=["i7"], where={"label": "eco"})
    assert found["item_id"].to_list() == ["organic"]


def test_newer_interactions_of_old_and_new_users_and_items(trained, catalogue, prepared, tmp_path):
    folder = trained("similarity")
    dataset = Dataset.load(prepared.dataset)
    new = catalogue.head(1).with_columns(item_id=pl.lit("new"))
    log = pl.DataFrame({"user_id": ["u1", "fresh", "fresh", "fresh"], "item_id": ["new", "i7", "new", "i8"]})
    every = pl.concat([dataset.interactions().select("user_id", "item_id"), log])
    items = pl.concat([new, catalogue[::-1]])
    newer = Dataset.from_frames(items, every, min_length=1).save(tmp_path / "newer")
    with pytest.warns(UserWarning, match=r"2 of \d+ interactions are left out.*iisan add-items"):
        before = Recommender.load(folder, newer.folder).recommend(user="fresh")
    by_hand = Recommender.load(folder).recommend(history=["i7", "i8"])
    assert before["item_id"].to_list() == by_hand["item_id"].to_list()
    alone = pl.concat([every, pl.DataFrame({"user_id": ["stranger"], "item_id": ["new"]})])
    strangers = Dataset.from_frames(items, alone, min_length=1).save(tmp_path / "strangers")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="user 'stranger' has interactions with unknown items only"),
    ):
        Recommender.load(folder, strangers.folder).recommend(user="stranger")
    Recommender.load(folder).add_items(new)
    after = Recommender.load(folder, newer.folder).recommend(user="fresh")
    assert after.equals(Recommender.load(folder).recommend(history=["i7", "new", "i8"]))
    strange = Dataset.from_frames(
        pl.DataFrame({"item_id": ["x", "y", "z"]}),
        pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["x", "y", "z"]}),
    ).save(tmp_path / "strange")
    with pytest.raises(DataError, match="has none of the run's items"):
        Recommender.load(folder, strange.folder).recommend(user="u")


def test_the_command_line_adds_and_removes(trained, tmp_path, iisan):
    folder, table = trained("default", "modalities=[text]"), tmp_path / "new.csv"
    table.write_text("item_id,title\na1,red pump\ni2,blue pump\n")
    code, printed, _ = iisan("add-items", folder, table)
    assert (code, printed.strip()) == (0, "1 added, 1 updated")
    code, printed, _ = iisan("add-items", folder, table, "--json")
    assert (code, json.loads(printed)["updated"]) == (0, 2)
    code, printed, _ = iisan("remove-items", folder, "a1")
    assert (code, printed.strip()) == (0, "1 removed")
    code, printed, _ = iisan("remove-items", folder, "a1")
    assert (code, printed.strip()) == (0, "nothing to change")
    table.write_text("item_id,title\n,red pump\n")
    code, _, said = iisan("add-items", folder, table)
    assert (code, "new.csv, line 2" in said) == (2, True)


def test_imported_vectors_come_with_the_items(configured, prepared, tmp_path):
    dataset, rng = Dataset.load(prepared.dataset), np.random.default_rng(0)
    rows = dataset.items.select("item_id", v=pl.Series(rng.normal(size=(30, 4)).tolist()))
    import_states(dataset, column_source(rows, "v", "rows"), "v", tmp_path / "states", dtype="fp32")
    train(configured("default", f"states={tmp_path / 'states'}", "modalities=[v]"), tmp_path / "run")
    again = rows.head(3).with_columns(item_id="new " + pl.col("item_id"))
    assert add_items(tmp_path / "run", again).added == 3
    run = Run.load(tmp_path / "run", with_additions=True)
    for found in vectors(run).values():
        assert torch.equal(found[30:], found[:3])
    with pytest.raises(DataError, match=r"1 levels of 2.*1 of 4, as in training"):
        add_items(tmp_path / "run", pl.DataFrame({"item_id": ["w"], "v": [[1.0, 2.0]]}))
