"""Anchored runs and runs of ``similarity``, from training to evaluation, lists and comparison."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from iisan import model
from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, DataError, RunError, StoreError
from iisan.evaluate import terms
from iisan.evaluate.metrics import ranked_rows, summarise
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.terms import REPEAT, Weights
from iisan.evaluate.tpme import PAPER
from iisan.experiments.robustness import decline
from iisan.nested import read_yaml
from iisan.recipes import recipe
from iisan.runs.anchoring import LEARNED, SIMILARITY, Anchoring
from iisan.runs.assess import assess
from iisan.runs.compare import compare_runs
from iisan.runs.run import Run
from iisan.states.caching import cache
from iisan.states.importing import column_source, import_states, open_source
from iisan.states.store import StateStore
from iisan.train import run as training
from iisan.train.run import train
from iisan.train.setup import build, open_inputs, resolve

QUICK = ("training.epochs=1", "training.batch_size=16", "loss.negatives=5", "training.precision=fp32")


@pytest.fixture(scope="module")
def configured(prepared):
    def config(name="default", *overrides):
        return prepared.config(name, *QUICK, *overrides)

    return config


@pytest.fixture(scope="module")
def finished(configured, tmp_path_factory):
    """A finished run of a recipe, trained once for all tests."""
    made = {}

    def run(name="default", *overrides):
        if (name, *overrides) not in made:
            folder = tmp_path_factory.mktemp("anchored") / name
            train(configured(name, *overrides), folder)
            made[name, *overrides] = Run.load(folder)
        return made[name, *overrides]

    return run


ANCHORED = [
    ("similarity",),
    ("similarity", "anchor.modalities=[text]", "anchor.width=null"),
    ("default",),
    ("frozen",),
    ("ids", "anchor=true", "evaluation.select=ndcg@10"),
    ("default", "modalities=[text]", "anchor.modalities=[image]", "evaluation.select=ndcg@10"),
    ("default", "sequence.similarity=dot", "items.level_norm=layer"),
]


@pytest.mark.parametrize("method", ANCHORED, ids=" ".join)
def test_a_loaded_run_is_the_one_that_was_trained(method, finished):
    run = finished(*method)
    result, terms = run.result, run.result["terms"]
    found = assess(run, run.config)
    assert found[run.config.recipe].metrics == result["test"]
    assert {name: found[name].metrics for name in run.parts} == result["parts"]
    assert list(run.parts) == ([] if method[0] == "similarity" else [LEARNED, SIMILARITY])
    assert terms["validation"] == pytest.approx(result["validation"][run.config.evaluation.select])
    again = assess(run, run.config, "validation", with_baselines=False)[run.config.recipe]
    assert again.metrics[run.config.evaluation.select] == pytest.approx(terms["validation"])
    anchored = run.config.anchor.modalities
    assert len(anchored) == (1 if any("anchor.modalities" in setting for setting in method) else 2)
    assert tuple(run.anchoring.whitenings) == anchored
    # Item 3 lacks a text, item 4 an image, item 5 both.
    for name, bare in (("text", [3, 5]), ("image", [4, 5])):
        if name in anchored:
            lengths = run.anchoring.scorer.anchors[name].norm(dim=1)
            assert (lengths == 0).nonzero().flatten().tolist() == bare
            assert lengths.max() < 1 + 1e-5
    assert Recommender(run).recommend(history=["i3", "i5"], k=30, filter_viewed=False)["score"].is_finite().all()


def test_similarity_trains_nothing(finished, configured, tmp_path):
    run = finished("similarity")
    result = run.result
    assert (result["epochs"], result["trainable_parameters"], result["precision"]) == (0, 0, "fp32")
    with pytest.raises(RunError, match="no trained members"):
        run.weights()
    assert result["terms"]["weights"] == result["terms"]["similarity"]["weights"]
    assert run.anchoring.scorer.weights == Weights.from_json(result["terms"]["weights"])
    with pytest.raises(RunError, match="has no trained members"):
        _ = Recommender(run).item_embeddings
    automatic, folder = configured("similarity", "training.precision=auto"), tmp_path / "auto"
    assert train(automatic, folder)["precision"] == "fp32"
    assert train(automatic, folder)["epochs"] == 0


def test_the_command_line_takes_similarity_as_any_recipe(prepared, finished, tmp_path, iisan):
    out = tmp_path / "run"
    folders = ("--dataset", prepared.dataset, "--states", prepared.states)
    code, printed, _ = iisan("train", "similarity", *folders, "--out", out)
    assert (code, "nothing to train: test HR@10" in printed) == (0, True)
    code, printed, said = iisan("train", "similarity", *folders, "--out", out, "--json")
    result = json.loads(printed)
    assert (code, "finished already" in said, result["status"]) == (0, True, "finished")
    code, printed, _ = iisan("evaluate", out, "--json")
    found = json.loads(printed)
    assert (code, list(found)[-1]) == (0, "similarity")
    assert found["similarity"]["hr@10"] == result["test"]["hr@10"]
    assert "last item, frozen states" in found
    code, printed, _ = iisan("evaluate", finished().folder)
    assert (code, LEARNED in " ".join(printed.split()), "similarity" in printed) == (0, True, True)
    code, printed, _ = iisan("recommend", out, "--user", "u3", "--json")
    assert (code, len(json.loads(printed))) == (0, 10)
    others = [finished(*method).folder for method in (("default",), ("ids",))]
    code, printed, _ = iisan("compare", out, *others, "--json")
    compared = json.loads(printed)
    assert (code, compared["costs_left_out"]) == (0, None)
    costs = compared["methods"]["similarity"]
    assert (costs["seconds"], costs["parameters"]) == (0, 0)
    assert compared["methods"]["default"]["seconds"] > 0
    assert iisan("compare", out, *others)[0] == 0


@pytest.mark.parametrize("policy", ["unseen", "all", "exclude-all"])
def test_weights_are_chosen_for_the_policy_and_that_of_repeats_on_every_query(policy, finished):
    run = finished("similarity", f"evaluation.policy={policy}")
    queries = open_inputs(run.config).split.validation
    ranked = queries[ranked_rows(queries, policy)]
    ranks = rank_targets(run.scorer, ranked, policy)
    exact = summarise(ranks.above, ranks.ties, pl.Series(ranked.users), (10,))["hr@10"]
    assert run.result["terms"]["validation"] == pytest.approx(exact)
    # 14 of 50 validation targets are in their histories, and the choice is by rank among all items.
    weights = Weights.from_json(run.result["terms"]["weights"])
    assert run.result["terms"]["queries"] == len(queries) == 50

    def under_all(repeats):
        ranks = rank_targets(run.scorer.reweighted(replace(weights, repeats=repeats)), queries, "all")
        return summarise(ranks.above, ranks.ties, pl.Series(queries.users), (10,))["hr@10"]

    unit = sum(weights.anchor.values()) or 1.0
    assert under_all(weights.repeats) >= under_all(REPEAT * unit) - 1e-9
    assert under_all(weights.repeats) >= under_all(0.0) - 1e-9


def test_live_encoders_are_anchored_before_they_are_tuned(prepared, configured, tmp_path, finished):
    """By their frozen states, computed or stored; the same anchor as of a cached run."""
    live = ("modalities=[text]", f"text.encoder={prepared.text}")
    anchors = {}
    for name, states in (("uncached", None), ("fft", None), ("fft", prepared.states)):
        config = configured(name, *live).model_copy(update={"states": states})
        folder = tmp_path / f"{name} {states is None}"
        result = train(config, folder)
        run = Run.load(folder)
        assert assess(run, run.config, with_baselines=False)[name].metrics == result["test"]
        anchors[folder.name] = run.anchoring.scorer.anchors["text"]
        assert decline(folder, "text", [0.0], "remove").evaluations[0].metrics == pytest.approx(result["test"])
    cached = finished("frozen", "modalities=[text]").anchoring.scorer.anchors["text"]
    for found in anchors.values():
        torch.testing.assert_close(found @ found.T, cached @ cached.T, atol=1e-4, rtol=0)
    assert Run.load(tmp_path / "fft False").result["anchor_states"].keys() == {"text"}


def test_partial_training_is_anchored_by_whole_states(finished):
    run = finished("partial")
    for name, anchors in finished("frozen").anchoring.scorer.anchors.items():
        assert torch.equal(run.anchoring.scorer.anchors[name], anchors)
    assert run.result["anchor_states"].keys() == {"image", "text"}
    assert finished().result["anchor_states"] == {}


def test_imported_vectors_are_an_anchor(prepared, tmp_path):
    dataset = Dataset.load(prepared.dataset)
    vectors = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.txt").write_text("\n".join(dataset.items["item_id"]))
    source = open_source(tmp_path / "v.npy", tmp_path / "ids.txt")
    import_states(dataset, source, "v", tmp_path / "s", dtype="fp32")
    (text,) = prepared.states.glob("text-*")
    shutil.copytree(text, tmp_path / "s" / text.name)
    config = recipe("similarity").override([f"dataset={prepared.dataset}", f"states={tmp_path / 's'}"])
    train(config, tmp_path / "run")
    anchors = Run.load(tmp_path / "run").anchoring.scorer.anchors
    assert anchors.keys() == {"text", "v"}
    centred = vectors - vectors.mean(0)
    values, rotation = np.linalg.eigh(centred.T @ centred / 30)
    whitened = centred @ rotation / np.sqrt(values + 0.3 * values.mean())
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    np.testing.assert_allclose(anchors["v"] @ anchors["v"].T, whitened @ whitened.T, atol=1e-5)
    # A modality of the anchor alone, of a kind that the store knows.
    config = recipe("frozen").override([*QUICK, f"dataset={prepared.dataset}", f"states={tmp_path / 's'}"])
    found = resolve(config.override(["modalities=[text]", "anchor.modalities=[v]"]))
    assert found.columns["v"].kind == "imported"
    assert train(found, tmp_path / "other")["terms"]["weights"]["anchor"].keys() == {"v"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["default", "similarity"])
def test_a_run_that_was_killed_before_its_terms_resumes(name, configured, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(training, "_joined", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(configured(name), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    result, whole = train(configured(name), tmp_path / "run"), finished(name)
    assert (result["test"], result["terms"]["weights"]) == (whole.result["test"], whole.result["terms"]["weights"])
    one, other = (load_file(folder / "model.safetensors") for folder in (whole.folder, tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_anchored_run_goes_on_with_newer_data(configured, finished, prepared, tmp_path):
    """Its anchor is fitted again, on the items that there are now."""
    dataset = Dataset.load(prepared.dataset)
    items = dataset.items.slice(2)
    log = dataset.interactions().filter(pl.col("item_id").is_in(items["item_id"].implode()))
    grown = Dataset.from_frames(items, log).save(tmp_path / "data")
    earlier = finished()
    result = train(earlier.config.override([f"dataset={grown.folder}"]), tmp_path / "run", start=earlier)
    assert 0 < result["lists"]["overlap@10"] < 1
    run = Run.load(tmp_path / "run")
    assert len(run.anchoring.scorer.anchors["text"]) == 28
    saved, before = run.weights(), earlier.weights()
    assert torch.equal(saved["items.norm.mean_text"], before["items.norm.mean_text"])
    assert saved["sequence.log_temperature"] != before["sequence.log_temperature"]


@pytest.mark.parametrize("method", [*ANCHORED[:1], *ANCHORED[2:]], ids=" ".join)
def test_robustness_of_an_anchored_run(method, finished):
    """Without corruption it is the run; without any content the anchor says nothing."""
    run = finished(*method)
    weights = run.result["terms"]["weights"]
    anchor = weights["anchor"]
    modality = max(anchor, key=lambda name: anchor[name])
    found = decline(run.folder, modality, [0.0, 1.0], "remove")
    assert found.evaluations[0].metrics == pytest.approx(run.result["test"])
    assert found.evaluations[0].per_user.equals(pl.read_parquet(run.folder / "per_user.parquet"))
    # The search may have found that neither the anchor nor transitions between similar items help.
    heard = bool(anchor[modality] or weights["transitions"] or modality in run.config.modalities)
    assert found.evaluations[1].per_user.equals(found.evaluations[0].per_user) != heard
    for corruption in ("swap", "noise"):
        decline(run.folder, modality, [0.5], corruption)
    with pytest.raises(ConfigError, match=r"has no modality 'sound'; expected one of \w+"):
        decline(run.folder, "sound", [0.0], "remove")


def test_an_anchor_whose_modality_goes_is_zero(finished):
    run = finished("similarity", "anchor.modalities=[text]", "anchor.width=null")
    found = decline(run.folder, "text", [1.0], "remove").evaluations[0]
    anchoring, weights = run.anchoring, run.anchoring.scorer.weights
    for each in anchoring.scorer.anchors.values():
        each.zero_()
    counts = torch.log1p(anchoring.scorer.counts.float())
    shares = torch.from_numpy(anchoring.scorer.transitions.shares.toarray())
    queries = open_inputs(run.config).split.test
    queries = queries[ranked_rows(queries, "unseen")]
    scores = weights.popularity * counts + weights.transitions * shares[queries.histories(1)[:, 0]]
    scores[queries.seen()] = -torch.inf
    own = scores.gather(1, torch.from_numpy(queries.targets)[:, None])
    assert found.per_user.drop_nulls("ties")["above"].to_list() == (scores > own).sum(1).tolist()


def test_states_that_changed_are_noticed(configured, prepared, tmp_path):
    """Those of the anchor as well as those of the learned part."""
    states = shutil.copytree(prepared.states, tmp_path / "states")
    config = configured("ids", "anchor=true", f"states={states}")
    train(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").rename(tmp_path / "result.json")
    shutil.rmtree(next(states.glob("text-*")))
    cache(Dataset.load(prepared.dataset), states, {"text": str(prepared.text)}, dtype="bf16", precision="fp32")
    with pytest.raises(RunError, match="was trained with other states of the anchor than are given now"):
        train(config, tmp_path / "run")
    (tmp_path / "result.json").rename(tmp_path / "run" / "result.json")
    with pytest.raises(RunError, match="was trained with other states of the anchor than are given now"):
        train(config, tmp_path / "run")
    shutil.rmtree(states)
    assert train(Run.load(tmp_path / "run").config, tmp_path / "run")["status"] == "finished"


def test_a_run_without_a_tensor_of_its_terms_is_damaged(finished, tmp_path):
    folder = shutil.copytree(finished("similarity").folder, tmp_path / "run")
    tensors = load_file(folder / "model.safetensors")
    del tensors["anchor.text.maps"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(RunError, match=r"is damaged .*anchor\.text\.maps"):
        Run.load(folder)


@pytest.mark.parametrize("policy", ["unseen", "all"])
def test_similarity_beside_a_run_without_an_anchor_is_that_of_the_recipe(policy, finished, monkeypatch):
    plain = finished("default", "anchor=false", f"evaluation.policy={policy}")
    similarity = finished("similarity", f"evaluation.policy={policy}")
    found = assess(plain, plain.config)
    assert found["similarity"].metrics == pytest.approx(similarity.result["test"])
    assert list(found)[-2:] == ["similarity", "default"]
    # A missing extra, or states that give no anchor, leave the row out.
    with monkeypatch.context() as patch:
        patch.setattr(terms, "_EXACT", 2)
        patch.setitem(sys.modules, "faiss", None)
        assert "similarity" not in assess(plain, plain.config)
    read = StateStore.read
    monkeypatch.setattr(
        StateStore, "read", lambda store, rows, levels=None: read(store, torch.zeros_like(rows), levels)
    )
    assert "similarity" not in assess(plain, plain.config)


def test_runs_with_anchors_of_other_states_are_two_methods(finished, prepared, tmp_path):
    one = finished("default", "modalities=[text]", "anchor.modalities=[image]", "evaluation.select=ndcg@10")
    states = shutil.copytree(prepared.states, tmp_path / "states")
    shutil.rmtree(next(states.glob("image-*")))
    cache(Dataset.load(prepared.dataset), states, {"image": str(prepared.image)}, dtype="bf16", precision="fp32")
    train(one.config.override([f"states={states}"]), tmp_path / "other")
    assert len(compare_runs([one.folder, tmp_path / "other"], PAPER).groups) == 2
    with pytest.raises(ConfigError, match="have the same settings and the same seed"):
        compare_runs([one.folder, shutil.copytree(one.folder, tmp_path / "copy")], PAPER)


def failed(iisan, out, *arguments):
    """The message of a command that fails: one sentence, and nothing is left that looks like a run."""
    code, _, error = iisan("train", *arguments, "--out", out)
    message = error.splitlines()[-1]
    assert (code, message.startswith("error: "), "Traceback" in error) == (2, True, False)
    assert not out.exists() or {path.name for path in out.iterdir()} <= {".lock", "config.yaml", "result.json"}
    return message


@pytest.mark.parametrize(
    ("arguments", "stored", "sentence"),
    [
        (["similarity"], False, "no modality is named; expected .* folder of state stores: pass --states"),
        (["ids", "--set", "anchor=true"], False, "an anchor without states to fit it on; .*pass --states"),
        (["similarity", "--set", "anchor=false"], True, "items.kind 'none' with anchor 'false'"),
        (["--set", "anchor.modalities=[nonsense]"], True, "the kind of the modality 'nonsense' is not known"),
        (
            ["--set", "anchor.modalities=[text,text]"],
            True,
            r"anchor\.modalities \['text', 'text'\] names one",
        ),
        (["--set", "anchor.modalities=[]"], True, "an anchor on none of the states in .*; .*anchor.modalities"),
        (["--set", "anchor.width=0"], True, r"'anchor\.width' has the value 0; expected greater than 0"),
        (["--set", "anchor.shrinkage=0"], True, r"'anchor\.shrinkage' has the value 0"),
        (["--set", "anchor.shrinkage=.inf"], True, "expected a finite number: change that value"),
        (["--set", "anchor=maybe"], True, "'anchor' has the value 'maybe'; expected true, false, or keys"),
        (
            ["similarity", "--set", "items.kind=side"],
            True,
            "'side' with recipe 'similarity', which trains nothing",
        ),
    ],
)
def test_anchors_that_cannot_be(arguments, stored, sentence, prepared, tmp_path, iisan):
    name = [] if arguments[0] in ("similarity", "ids") else ["default"]
    folders = ["--dataset", prepared.dataset, *(["--states", prepared.states] if stored else [])]
    message = failed(iisan, tmp_path / "run", *name, *arguments, *folders)
    assert re.search(sentence, message), message
    assert not (tmp_path / "run").exists()


def test_a_folder_without_states_has_no_anchor(prepared, tmp_path, iisan):
    (tmp_path / "empty").mkdir()
    folders = ["--dataset", prepared.dataset, "--states", tmp_path / "empty"]
    message = failed(iisan, tmp_path / "run", "ids", "--set", "anchor=true", *folders)
    assert f"an anchor on none of the states in '{tmp_path / 'empty'}'; expected states of this dataset" in message


def test_terms_that_were_damaged(finished, tmp_path):
    shutil.copytree(finished("similarity").folder, tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    tensors = load_file(model)
    beyond = {name: tensors[name] + 30 for name in ("terms.shares.indices", "terms.neighbours.indices")}
    for name in tensors:
        save_file({other: value for other, value in tensors.items() if other != name}, model)
        with pytest.raises(RunError, match=f"is damaged .*{name}"):
            Run.load(tmp_path / "run")
    for name, indices in beyond.items():
        save_file({**tensors, name: indices}, model)
        with pytest.raises(RunError, match=r"is damaged \(.*ind(ex|ices).*\)"):
            Run.load(tmp_path / "run")
    save_file(tensors, model)
    pl.read_parquet(tmp_path / "run" / "items.parquet").head(29).write_parquet(tmp_path / "run" / "items.parquet")
    with pytest.raises(RunError, match=r"30 items in model.safetensors, 29 in items.parquet"):
        Run.load(tmp_path / "run")


def test_an_evaluation_on_changed_data_says_so(finished, prepared, tmp_path):
    """With the last interaction of every user gone, targets are those that the weights were chosen on."""
    dataset, run = Dataset.load(prepared.dataset), finished("similarity")
    log = dataset.interactions()
    last = pl.int_range(pl.len()).over("user_id") == pl.len().over("user_id") - 1
    changed = Dataset.from_frames(dataset.items, log.filter(~last)).save(tmp_path / "changed")
    remark = "test of another version of the dataset than the run was trained on, full ranking"
    config = run.config.model_copy(update={"dataset": changed.folder})
    assert remark in assess(run, config, with_baselines=False)["similarity"].protocol
    moved = {"dataset": changed.folder}
    (found,) = decline(run.folder, "text", [0.5], "remove", moved=moved).evaluations
    assert remark in found.protocol
    assert "version" not in assess(run, run.config, with_baselines=False)["similarity"].protocol


def test_a_run_without_training_starts_nothing(finished, tmp_path, iisan):
    message = failed(iisan, tmp_path / "run", "--from", finished("similarity").folder)
    assert "has no trained weights; expected a trained run to start from: train the recipe" in message
    assert not (tmp_path / "run").exists()


def test_stores_without_what_the_anchor_needs(prepared, tmp_path, iisan):
    dataset, folders = Dataset.load(prepared.dataset), ["--dataset", prepared.dataset]
    cache(dataset, tmp_path / "last", {"text": str(prepared.text)}, levels=("last",), precision="fp32")
    last = [*folders, "--states", tmp_path / "last"]
    quick = [each for setting in QUICK for each in ("--set", setting)]
    message = failed(iisan, tmp_path / "run", "frozen", *last, *quick)
    assert "level 0 is not in the store" in message
    assert "set text.levels to some of these, or run `iisan cache` again" in message
    assert message.endswith("or set anchor to false")
    # The folder stays free, and each cure works.
    assert iisan("train", "frozen", *last, *quick, "--set", "anchor=false", "--out", tmp_path / "run")[0] == 0
    assert (
        iisan("train", "frozen", *last, *quick, "--set", "text.levels=[last]", "--out", tmp_path / "two")[0] == 0
    )
    message = failed(iisan, tmp_path / "sim", "similarity", *last)
    assert "set text.levels" in message
    assert "anchor" not in message
    tokens = tmp_path / "tokens"
    for folder in prepared.states.glob("tokens-*"):
        shutil.copytree(folder, tokens / folder.name)
    message = failed(iisan, tmp_path / "partial", "partial", *folders, "--states", tokens, *quick)
    assert "holds no image states; expected a folder of state stores: run `iisan cache` again" in message
    assert message.endswith("or set anchor to false")


def test_contents_that_are_no_anchor(prepared, tmp_path, monkeypatch, configured):
    """States that are the same or not finite, and fewer than two items that have any."""
    read = StateStore.read

    def constant(store, rows, levels=None):
        return read(store, torch.zeros_like(rows), levels)

    def infinite(store, rows, levels=None):
        return read(store, rows, levels).index_fill(0, torch.tensor([len(rows) - 1]), torch.nan)

    for change, sentence in ((constant, "are the same for all 28 items"), (infinite, "infinite or not a number")):
        with monkeypatch.context() as patched:
            patched.setattr(StateStore, "read", change)
            with pytest.raises(StoreError, match=sentence):
                train(configured("similarity"), tmp_path / change.__name__)
    dataset = Dataset.load(prepared.dataset)
    texts = [text if row == 7 else None for row, text in enumerate(dataset.items["text"])]
    items = dataset.items.select("item_id").with_columns(text=pl.Series(texts))
    alone = Dataset.from_frames(items, dataset.interactions()).save(tmp_path / "alone")
    config = configured("similarity", f"dataset={alone.folder}", "modalities=[text]")
    with pytest.raises(ConfigError, match=r"too few items with states of text \(1\); expected 2 or more"):
        train(config, tmp_path / "one")


def test_no_validation_query_is_left(tmp_path, prepared):
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "v": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]})
    log = pl.DataFrame({"user_id": list("uuuuvvvv"), "item_id": list("ababbaba")})
    given = {"history": ["a b", "b"], "user_id": ["u", "v"]}
    seen, new = (pl.DataFrame({**given, "target": targets}) for targets in (["a", "b"], ["c", "c"]))
    dataset = Dataset.from_frames(items, log, seen, new).save(tmp_path / "data")
    import_states(dataset, column_source(dataset.items, "v", "items"), "v", tmp_path / "states", dtype="fp32")
    config = recipe("similarity").override([f"dataset={tmp_path / 'data'}", f"states={tmp_path / 'states'}"])
    with pytest.raises(DataError, match="all 2 targets of the given validation are in their users' histories"):
        train(config, tmp_path / "run")
    assert train(config.override(["evaluation.policy=all"]), tmp_path / "run")["test"]["users"] == 2


def test_cached_and_uncached_runs_of_centred_cosines_are_the_same(configured, prepared, tmp_path):
    changes = ("sequence.similarity=cosine", "items.level_norm=centred", "sequence.dropout=0", "modalities=[text]")
    live = ("source=live", f"text.encoder={prepared.text}")
    networks = [build(resolve(configured("default", *changes, *more))).network for more in ((), live)]
    one, other = (network.item_embeddings() for network in networks)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    # Without a text, items 3 and 5 have zeros before training.
    lengths = one.norm(dim=1)
    np.testing.assert_allclose(lengths[[row for row in range(30) if row not in (3, 5)]], 1, rtol=1e-5)
    losses = []
    for number, more in enumerate(((), live)):
        train(configured("default", *changes, *more), tmp_path / str(number))
        losses.append(json.loads((tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("method", ["default", "frozen"])
def test_a_content_that_is_in_the_catalogue_gives_its_embedding_bit_for_bit(
    method, prepared, tmp_path, monkeypatch
):
    dataset = Dataset.load(prepared.dataset)
    again = dataset.items.with_columns(item_id="new " + pl.col("item_id"))
    grown = Dataset.from_frames(pl.concat([dataset.items, again]), dataset.interactions()).save(tmp_path / "data")
    config = recipe(method).override([f"dataset={grown.folder}", f"states={prepared.states}"])
    # The last block holds a single item, for which kernels of matrix products round differently.
    monkeypatch.setattr(model, "BLOCK", 2 * dataset.num_items - 1)
    found = build(resolve(config)).network.item_embeddings()
    assert torch.equal(found[: dataset.num_items], found[dataset.num_items :])


def test_rows_of_ids_without_training_score_nothing(prepared, tmp_path):
    dataset = Dataset.load(prepared.dataset)
    new = dataset.items.slice(7, 2).with_columns(item_id=pl.Series(["new a", "new b"]))
    grown = Dataset.from_frames(pl.concat([dataset.items, new]), dataset.interactions()).save(tmp_path / "data")
    folders = [f"dataset={grown.folder}", f"states={prepared.states}"]
    for name, changes in (("plain", []), ("anchored", ["anchor=true", "sequence.similarity=cosine"])):
        config = recipe("ids").override([*QUICK, *folders, *changes, "training.epochs=2"])
        train(config, tmp_path / name)
        run = Run.load(tmp_path / name)
        learned = run.only_member()
        scores = learned.score(learned.start(np.array([[-1, 3, 7], [-1, -1, 30]])), slice(0, 32))
        assert not scores[:, 30:].any()
        assert (scores[0, :30] != 0).sum() > 20
    assert read_yaml(tmp_path / "anchored" / "config.yaml")["anchor"]["modalities"] == ["image", "text"]
    assert isinstance(run.anchoring, Anchoring)
