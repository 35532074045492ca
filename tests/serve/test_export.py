"""Exports of finished runs: what is in them, what must not be, and the same scores in onnxruntime."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import iisan
from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, MissingExtraError, RunError
from iisan.evaluate.terms import TermScorer, Weights
from iisan.recipes import recipe
from iisan.runs.run import Run
from iisan.serve import export as export_module
from iisan.serve.items import add_items, remove_items
from iisan.states.configured import anchor_config, open_dataset, open_stores, state_source
from iisan.train.members import join
from iisan.train.run import train

QUICK = ("training.epochs=1", "training.batch_size=64", "loss.negatives=0", "training.precision=fp32")
USER = "customer-{:06d}"


@pytest.fixture(scope="module")
def dataset(prepared, tmp_path_factory):
    """The shared dataset, with ids of users that no other bytes look like."""
    given = Dataset.load(prepared.dataset)
    log = given.interactions()
    named = log.with_columns(user_id=pl.format(USER.replace(":06d", ""), pl.col("user_id").str.slice(1)))
    folder = tmp_path_factory.mktemp("private") / "data"
    return Dataset.from_frames(given.items, named).save(folder)


@pytest.fixture(scope="module")
def trained(dataset, prepared, tmp_path_factory):
    """Trains a method once, with the encoder as a local folder; returns its run folder."""
    folder = tmp_path_factory.mktemp("runs")
    states = shutil.copytree(prepared.states, folder / "states")
    runs = {}

    def run(name, *settings):
        if (key := (name, *settings)) not in runs:
            folders = {"dataset": dataset.folder, "states": states}
            config = recipe(name).model_copy(update=folders).override((*QUICK, *settings))
            out = folder / str(len(runs))
            train(config, out)
            runs[key] = out
        return runs[key]

    return run


@pytest.fixture(scope="module")
def changed(trained, dataset, prepared, tmp_path_factory):
    """A run with an item that was added and one that was removed."""
    out = tmp_path_factory.mktemp("changed") / "run"
    shutil.copytree(trained("default", f"text.encoder={prepared.text}"), out)
    new = dataset.items.head(1).with_columns(item_id=pl.lit("new"), file=pl.lit(str(out)))
    add_items(out, new)
    remove_items(out, ["i3"])
    return out


def contents(folder):
    """Bytes of all files below a folder, and the values of tables, which are compressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.name, path.read_bytes()
        if path.suffix == ".parquet":
            yield path.name, repr(pl.read_parquet(path).rows()).encode()


def histories(run, rng):
    """Histories of all lengths, an empty one included."""
    length = run.scorer.history_length
    rows = rng.integers(0, len(run.items), (12, length))
    padding = np.arange(12)[:, None] % (length + 1)
    return np.where(np.arange(length) >= padding, rows, -1)


def dense_query(run, rows):
    query = run.scorer.start(rows)
    return query.vectors if isinstance(run.scorer, TermScorer) else query


def weighted(run):
    """A run in whose score every term has a weight, whatever was chosen on the few queries."""
    if not isinstance(run.scorer, TermScorer):
        return run
    anchors = {name: 2.0 + place for place, name in enumerate(run.scorer.anchors)}
    learned = tuple(0.5 + place for place in range(len(run.members)))
    return replace(run, scorer=run.scorer.reweighted(Weights(learned, anchors, 0.7, 0.3, 1.5, -0.5)))


def test_vectors_are_those_that_the_run_scores_with(changed, tmp_path):
    recommender = Recommender.load(changed)
    run, out = recommender.run, tmp_path / "out"
    manifest = recommender.export(out)
    assert manifest == json.loads((out / "config.json").read_text())
    table, parts = pl.read_parquet(out / "vectors.parquet"), load_file(out / "vectors.safetensors")
    offered = [item for item in run.items["item_id"] if item != "i3"]
    assert table["item_id"].to_list() == offered
    assert (len(offered), offered[-1], manifest["items"]) == (30, "new", 30)
    rows = torch.tensor([row for row, item in enumerate(run.items["item_id"]) if item != "i3"])
    vectors = torch.tensor(table["vector"].to_numpy())
    assert torch.equal(vectors, run.scorer.items[rows])
    for part in manifest["parts"]:
        assert torch.equal(parts[part["name"]], vectors[:, slice(*part["columns"])])
    assert [part["name"] for part in manifest["parts"]] == ["learned", "anchor.image", "anchor.text", "popularity"]
    # With the terms that the manifest names, the dot product is the score.
    weights = run.scorer.weights
    assert manifest["not_in_vectors"] == {"transitions": weights.transitions, "repeats": weights.repeats}
    assert [part["weight"] for part in manifest["parts"]][-1] == weights.popularity


def test_the_readme_computes_the_anchors_part_of_a_query(trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = weighted(Run.load(trained("similarity")))
    Recommender(run).export(out)
    text = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(out)
    found = {}
    exec(code, found)
    rows = np.array([[-1] * (run.scorer.history_length - 3) + [0, 1, 2]])
    np.testing.assert_allclose(found["query"], dense_query(run, rows)[0], rtol=1e-5, atol=1e-6)
    weights = run.scorer.weights
    for name, weight in (("transitions", weights.transitions), ("repeats", weights.repeats)):
        assert f"- {name}, {weight:+g}" in text


def test_a_learned_part_alone_lacks_nothing(trained, tmp_path):
    run = Run.load(trained("ids"))
    manifest = Recommender(run).export(tmp_path / "out")
    assert [part["name"] for part in manifest["parts"]] == ["learned"]
    assert "Nothing: all other terms" in (tmp_path / "out" / "README.md").read_text()
    assert torch.equal(load_file(tmp_path / "out" / "vectors.safetensors")["learned"], run.members[0].items)


@pytest.mark.parametrize("kind", ["vectors", "onnx", "hub"])
def test_an_export_holds_no_user_and_no_path(changed, dataset, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    Recommender.load(changed).export(tmp_path / "out", kind)
    users = [user.encode() for user in dataset.user_ids]
    assert len(users) == 50
    assert users[0].startswith(b"customer-")
    # The folders of the run, its data, states and encoders are all below the first of these.
    temporary = changed.parents[1]
    paths = [str(path).encode() for path in (temporary, Path(iisan.__file__).parent, Path.home(), Path.cwd())]
    assert temporary in dataset.folder.parents
    seen = set()
    for name, held in contents(tmp_path / "out"):
        seen.add(name)
        assert not [secret for secret in (*users, *paths) if len(secret) > 1 and secret in held], name
    assert {"config.json", "README.md"} <= seen
    assert not seen & {"per_user.parquet", "checkpoint.safetensors", "metrics.jsonl", "users.parquet"}


def test_a_hub_folder_recommends_as_the_run_does(changed, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recommender = Recommender.load(changed)
    recommender.save_pretrained(tmp_path / "out", model_card_kwargs={"license": "mit"})
    again = Recommender.from_pretrained(tmp_path / "out")
    for history in (["i0"], ["i7", "new", "i3"], [f"i{n}" for n in range(15)]):
        lists = recommender.recommend(history=history, k=31, filter_viewed=False)
        found = again.recommend(history=history, k=31, filter_viewed=False)
        assert found.equals(lists)
        assert "i3" not in found["item_id"].to_list()
    assert again.similar_items(["new"], k=3).equals(recommender.similar_items(["new"], k=3))
    assert again.explain("i1", history=["i0"]).terms == recommender.explain("i1", history=["i0"]).terms
    assert (again.metrics, again.run.num_trained) == (recommender.metrics, 30)
    with pytest.raises(ConfigError, match="no state stores are given"):
        again.add_items(pl.DataFrame({"item_id": ["more"], "text": ["red pump"]}))
    # And again from what was exported.
    again.save_pretrained(tmp_path / "second")
    assert (
        Recommender.from_pretrained(tmp_path / "second")
        .recommend(history=["new"])
        .equals(recommender.recommend(history=["new"]))
    )


def test_the_card_says_what_a_reader_has_to_know(changed, prepared, tmp_path):
    recommender = Recommender.load(changed)
    card = recommender.generate_model_card(license="mit")
    data, text = card.data, card.text
    assert (data.license, data.library_name) == ("mit", "iisan")
    assert "sequential-recommendation" in data.tags
    values = {each.metric_type: each.metric_value for each in data.eval_results}
    assert values["hr@10"] == recommender.metrics["hr@10"]
    result = recommender.run.result
    assert {each.dataset_config for each in data.eval_results} == {result["protocol"]}
    assert f"Protocol: {result['protocol']}." in text
    row = next(line for line in text.splitlines() if line.startswith("| default |"))
    assert f"{100 * recommender.metrics['ndcg@10']:.2f}" in row
    assert "learned part alone" in text
    assert "30 items, 50 users" in text.replace("\n", " ")
    assert "added after training: 1." in text
    assert "| text | an encoder in a local folder | unknown, look it up |" in text
    assert f"| {result['trainable_parameters']:,} | 1 |" in text
    # A licence that the encoder's own card states is taken from there.
    (prepared.text / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    try:
        assert "| text | an encoder in a local folder | apache-2.0 |" in recommender.generate_model_card().text
    finally:
        (prepared.text / "README.md").unlink()
    assert recommender.generate_model_card().data.license == "unknown"
    recommender.save_pretrained(tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "unknown"


def test_joined_runs_and_hub_ids(trained, tmp_path):
    members = [Run.load(trained("default", f"training.seed={seed}")) for seed in (0, 1)]
    join(members, tmp_path / "joined")
    run = Run.load(tmp_path / "joined")
    found = Recommender(run)
    found.save_pretrained(tmp_path / "out")
    again = Recommender.from_pretrained(tmp_path / "out")
    assert again.recommend(history=["i0"]).equals(found.recommend(history=["i0"]))
    assert [len(each) for each in (again.run.members, again.run.result["members"])] == [2, 2]
    named = run.config.override(["text.encoder=owner/name"])
    text = Recommender(replace(run, config=named.model_copy(update={"states": None}))).generate_model_card().text
    assert "| text | owner/name | unknown, look it up on https://huggingface.co/owner/name |" in text


METHODS = [
    ("default",),
    ("default", "modalities=[text]", "items.block=phm", "sequence.kind=nextitnet", "items.projection=double"),
    ("frozen", "anchor=false", "sequence.kind=gru4rec"),
    ("similarity",),
    ("ids", "anchor=true"),
]


def states_of(config, run):
    """Hidden states of all items of a run's dataset and masks, as inputs of a graph."""
    dataset = open_dataset(config)
    source = state_source(config, dataset, open_stores(config))
    inputs = {}
    for name, hidden in source(torch.arange(dataset.num_items)).modalities.items():
        # What stands where a modality is lacking must not matter.
        values = torch.full((dataset.num_items, *hidden.values.shape[1:]), 7.0)
        values[hidden.positions] = hidden.whole()
        mask = torch.zeros(dataset.num_items, dtype=torch.bool)
        mask[hidden.positions] = True
        inputs |= {name: values.numpy(), f"has_{name}": mask.numpy()}
    return inputs


def check_graphs(run, out):
    """Compare the graphs of an export with the run: queries, embeddings, anchors, whole lists."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    manifest = Recommender(run).export(out, "onnx")

    def computed(file, inputs):
        session = onnxruntime.InferenceSession(out / file, providers=["CPUExecutionProvider"])
        assert {each.name for each in session.get_inputs()} == inputs.keys()
        return session.run(None, inputs)[0]

    vectors = pl.read_parquet(out / "vectors.parquet")["vector"].to_numpy()
    rows = histories(run, np.random.default_rng(0))
    past = np.where((rows == -1)[..., None], 7, vectors[rows]).astype(np.float32)
    expected = dense_query(run, rows).numpy()
    for count in (1, 2, len(rows)):
        query = computed("query.onnx", {"vectors": past[:count], "mask": rows[:count] != -1})
        np.testing.assert_allclose(query, expected[:count], rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    scores, ours = query @ vectors.T, expected @ vectors.T
    for one, other in zip(scores, ours, strict=True):
        order, theirs = np.argsort(-one, kind="stable"), np.argsort(-other, kind="stable")
        near = np.abs(other[order] - other[theirs]) <= 1e-5 * np.abs(other).max()
        assert near.all(), (order, theirs)
    embeddings = {graph["output"]: graph["file"] for graph in manifest["graphs"]}
    learned = 0
    for part in manifest["parts"]:
        if part["name"] in embeddings and part["name"].startswith("learned"):
            number = int(part["name"].partition(".")[2] or 1) - 1
            found = computed(embeddings[part["name"]], states_of(run.config, run))
            target = run.members[number].items.numpy()
            np.testing.assert_allclose(found, target, rtol=1e-5, atol=1e-5 * np.abs(target).max())
            learned += 1
    if run.anchoring is not None:
        inputs = states_of(anchor_config(run.config), run)
        found = computed("anchor.onnx", inputs)
        target = np.concatenate([each.numpy() for each in run.anchoring.scorer.anchors.values()], axis=1)
        np.testing.assert_allclose(found, target, rtol=1e-5, atol=1e-5)
        alone = computed("anchor.onnx", {name: each[:1] for name, each in inputs.items()})
        np.testing.assert_allclose(alone, target[:1], rtol=1e-5, atol=1e-5)
    # The README's own code, the last of it, for the first three items.
    found = {}
    with contextlib.chdir(out):
        exec(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[-1], found)
    first = np.array([[-1] * (run.scorer.history_length - 3) + [0, 1, 2]])
    target = dense_query(run, first)[0].numpy()
    np.testing.assert_allclose(found["query"][0], target, rtol=1e-5, atol=1e-5 * np.abs(target).max())
    return learned, manifest


@pytest.mark.parametrize("settings", METHODS, ids=" ".join)
def test_graphs_compute_what_the_run_does(settings, trained, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    run = weighted(Run.load(trained(*settings)))
    learned, _ = check_graphs(run, tmp_path / "out")
    assert learned == (0 if settings[0] in ("similarity", "ids") else 1)


def test_graphs_of_a_joined_run(trained, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runs = [Run.load(trained("default", "training.seed=0")), Run.load(trained("ids", "anchor=true"))]
    join(runs, tmp_path / "joined")
    learned, manifest = check_graphs(weighted(Run.load(tmp_path / "joined")), tmp_path / "out")
    assert learned == 1
    assert [graph["file"] for graph in manifest["graphs"]] == ["query.onnx", "items.1.onnx", "anchor.onnx"]


def test_without_its_states_a_run_has_no_item_encoder(trained, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    folder, said = trained("default"), []
    found = Recommender.load(folder)
    found.export(tmp_path / "out", "onnx", states=tmp_path / "none", say=said.append)
    assert re.fullmatch(r"the item encoder of 'learned' is left out: .*", said[0])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.onnx")) == ["anchor.onnx", "query.onnx"]
    Recommender.load(trained("ids")).export(tmp_path / "ids", "onnx", say=said.append)
    assert said[1:] == ["'learned' knows items by their ids only: it has no item encoder"]
    assert [path.name for path in (tmp_path / "ids").glob("*.onnx")] == ["query.onnx"]


def test_a_folder_that_holds_something_else_is_refused_and_kept(trained, tmp_path, iisan):
    folder = trained("ids")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for out in (other, folder, folder / "config.yaml"):
        before = sorted(out.rglob("*"))
        code, printed, error = iisan("export", folder, "--out", out)
        assert (code, printed) == (2, "")
        assert "is neither empty nor an earlier export to vectors" in error
        assert (sorted(out.rglob("*")), len(error.splitlines())) == (before, 1)
    recommender = Recommender.load(folder)
    with pytest.raises(RunError, match="neither empty nor an earlier export to hub"):
        recommender.save_pretrained(folder)
    with pytest.raises(ConfigError, match="'pickle'; expected one of vectors, onnx, hub"):
        recommender.export(tmp_path / "out", "pickle")
    with pytest.raises(RunError, match="'/no/such folder' is no readable folder"):
        Recommender.from_pretrained("/no/such folder")
    # An earlier export is replaced, but not by one to another format.
    (tmp_path / "empty").mkdir()
    assert iisan("export", folder, "--out", tmp_path / "empty")[0] == 0
    code, printed, _ = iisan("export", folder, "--out", tmp_path / "empty", "--json")
    assert (code, json.loads(printed)["items"]) == (0, 30)
    assert iisan("export", folder, "--out", tmp_path / "empty", "--format", "hub")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "other"]


def test_an_export_that_is_interrupted_leaves_what_was_there(trained, tmp_path, monkeypatch):
    recommender, out = Recommender.load(trained("ids")), tmp_path / "out"
    recommender.export(out)
    before = dict(contents(out))

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "write_json", fail)
    for target in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            recommender.export(target)
    assert dict(contents(out)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_extra_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[onnx\]"'):
        Recommender.load(trained("ids")).export(tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())
