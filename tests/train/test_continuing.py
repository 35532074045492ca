"""Runs that start from another run's weights: what is taken over, what is refused, what is said about it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import RunError
from iisan.evaluate.ranks import top_k
from iisan.evaluate.tpme import Weights
from iisan.files import sha256_file
from iisan.names import PAD
from iisan.runs.compare import compare_runs
from iisan.runs.run import Run, network_scorer
from iisan.train import loop
from iisan.train.continuing import EarlierScorer, list_overlap, start_from
from iisan.train.run import train
from iisan.train.setup import build, resolve

QUICK = ("training.epochs=1", "training.batch_size=16", "loss.negatives=5", "training.precision=fp32")
#: Weights stay what they were, but for rounding.
STILL = ("optimizer.learning_rate=1e-30", "optimizer.san_learning_rate=1e-30")


@pytest.fixture(scope="session")
def configured(prepared):
    def config(name="default", *overrides):
        return prepared.config(name, *QUICK, *overrides)

    return config


@pytest.fixture(scope="session")
def earlier(configured, tmp_path_factory):
    """A finished run of a recipe, trained once for all tests."""
    made = {}

    def run(name="default", *overrides):
        if (name, *overrides) not in made:
            folder = tmp_path_factory.mktemp("earlier") / "run"
            train(configured(name, *overrides), folder)
            made[name, *overrides] = Run.load(folder)
        return made[name, *overrides]

    return run


@pytest.fixture
def grown(prepared, tmp_path):
    """The same data a month later: other order, items 0 to 2 gone, two new items, new users and interactions."""
    dataset = Dataset.load(prepared.dataset)
    new = dataset.items.slice(7, 2).with_columns(item_id=pl.Series(["new a", "new b"]))
    items = pl.concat([new, dataset.items.slice(3).reverse()])
    log = dataset.interactions().filter(pl.col("item_id").is_in(items["item_id"].implode()))
    later = pl.DataFrame(
        {
            "user_id": ["u1", "u2", "fresh", "fresh", "fresh", "fresh"],
            "item_id": ["new a", "i9", "i8", "new b", "i4", "i9"],
            "timestamp": range(1_800_000_000, 1_800_000_006),
        }
    )
    return Dataset.from_frames(items, pl.concat([log, later])).save(tmp_path / "grown")


def test_the_same_weights_give_the_same_lists(earlier, configured, tmp_path):
    run, said = earlier(), []
    result = train(run.config.override(STILL), tmp_path / "run", say=said.append, start=run)
    assert result["continued_from"] == sha256_file(run.folder / "model.safetensors")
    assert result["lists"] == {"overlap@10": 1.0, "users": 50}
    assert "10.0 of 10 recommended items are the same as before (mean of 50 users)" in said
    before, after = (load_file(folder / "model.safetensors") for folder in (run.folder, tmp_path / "run"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6, msg=name)
    fresh = train(configured("default", *STILL), tmp_path / "fresh")
    assert fresh["continued_from"] is None
    assert "lists" not in fresh


@pytest.mark.parametrize("name", ["ids", "default"])
def test_a_run_goes_on_with_newer_data(name, earlier, grown, tmp_path):
    run, said = earlier(name), []
    config = run.config.override([f"dataset={grown.folder}", "training.epochs=2"])
    result = train(config, tmp_path / "run", say=said.append, start=run)
    assert f"starting from '{run.folder}', which knows 27 of 29 items" in said
    assert 0 < result["lists"]["overlap@10"] < 1
    assert 40 < result["lists"]["users"] <= 50  # not the fresh one
    found = Recommender.load(tmp_path / "run").recommend(history=["new a", "i9"], k=29, filter_viewed=False)
    assert {"new a", "new b"} < set(found["item_id"])


def test_rows_of_ids_follow_their_items(earlier, grown):
    run = earlier("ids")
    config = resolve(run.config.override([f"dataset={grown.folder}"]))
    fresh = dict(build(config).network.trainable())
    setup = build(config)
    assert start_from(run, setup) == 27
    saved, table = run.weights(), "items.embedding.weight"
    for name, value in setup.network.trainable():
        if name != table:
            assert torch.equal(value, saved[name]), name
    found = dict(setup.network.trainable())[table]
    for row, item in enumerate(grown.items["item_id"]):
        expected = fresh[table][row] if item.startswith("new") else saved[table][int(item[1:])]
        assert torch.equal(found[row], expected), item


def test_what_newer_data_need_starts_as_usual(configured, prepared, tmp_path):
    """All items of the earlier run have both modalities; three of the later do not."""
    whole = Dataset.load(prepared.dataset)
    items = whole.items.drop_nulls(["text", "image"])
    log = whole.interactions().filter(pl.col("item_id").is_in(items["item_id"].implode()))
    dataset = Dataset.from_frames(items, log).save(tmp_path / "dataset")
    train(configured("default", f"dataset={dataset.folder}"), tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert "items.fusion.absent" not in run.weights()
    setup = build(resolve(configured()))
    start_from(run, setup)
    found = dict(setup.network.trainable())
    assert not found.pop("items.fusion.absent").any()
    assert all(torch.equal(value, run.weights()[name]) for name, value in found.items())


def test_no_weight_is_left_behind(earlier):
    run = earlier()
    with pytest.raises(RunError, match=r"has a parameter 'items\.towers\.\w+\.gates', which the network lacks"):
        start_from(run, build(run.config.override(["items.gated=false"])))


def test_no_weight_is_made_up(earlier, tmp_path):
    run, lost = earlier(), "items.fusion.linear.bias"
    shutil.copytree(run.folder, tmp_path / "run")
    weights = load_file(run.folder / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "run" / "model.safetensors")
    with pytest.raises(RunError, match=f"lacks the parameter '{lost}' of the network"):
        start_from(Run.load(tmp_path / "run"), build(run.config))


def test_lists_are_compared_by_hand(earlier, grown):
    run = earlier()
    setup = build(resolve(run.config.override([f"dataset={grown.folder}"])))
    start_from(run, setup)
    scorer, queries = network_scorer(setup.network), setup.split.test
    ids, lists = grown.items["item_id"], top_k(EarlierScorer(run, grown), queries, 10)[0]
    later = top_k(scorer, queries, 10)[0]
    kept = []
    for number, user in enumerate(grown.user_ids.gather(queries.users)):
        history = ids.gather(grown.sequences.items[queries.starts[number] : queries.ends[number]])
        known = [item for item in history if not item.startswith("new")]
        found = ids.gather(lists[number][lists[number] != PAD]).to_list()
        # Of the earlier catalogue, items 0 to 2 are gone.
        expected = Recommender(run).recommend(history=known, k=30)["item_id"].to_list()
        assert found == [item for item in expected if item in set(ids)][:10]
        if user != "fresh":
            kept.append(len(set(found) & set(ids.gather(later[number]))) / len(found))
    overlap, compared = list_overlap(run, scorer, grown, queries)
    assert len(compared) == compared.num_users == len(kept) == len(queries) - 1
    assert overlap == pytest.approx(np.mean(kept))


def test_nobody_to_compare(earlier, grown):
    run = earlier()
    setup = build(resolve(run.config.override([f"dataset={grown.folder}"])))
    fresh = grown.user_index("fresh")
    queries = setup.split.test[np.flatnonzero(setup.split.test.users == fresh)]
    overlap, compared = list_overlap(run, network_scorer(setup.network), grown, queries)
    assert (overlap, len(compared)) == (None, 0)


@pytest.mark.parametrize(
    "change",
    [
        "items.embedding_dim=64",
        "items.kind=projection",
        "items.gated=false",
        "items.bottlenecks={inter: 8}",
        "sequence.kind=gru4rec",
        "sequence.max_length=4",
        "modalities=[text]",
        "modalities=[text, image]",
        "text.levels=[0, 4]",
    ],
)
def test_another_model_is_refused(change, earlier, tmp_path):
    run = earlier()
    key = change.partition("=")[0].replace("bottlenecks", "bottlenecks(.inter)?")
    with pytest.raises(RunError, match=rf"{key} = .* it would be another model"):
        train(run.config.override([change]), tmp_path / "run", start=run)
    assert not (tmp_path / "run").exists()


def test_other_training_is_the_same_model(earlier, tmp_path):
    changes = ("sequence.dropout=0.5", "items.fusion_scale=1", "loss.negatives=9", "training.windows=last")
    run = earlier()
    result = train(run.config.override((*changes, "training.modality_dropout=0.5")), tmp_path / "run", start=run)
    assert result["status"] == "finished"


def test_another_split_of_the_same_data_is_refused(earlier, tmp_path):
    """Its targets may have been trained on."""
    run = earlier("ids")
    other = run.config.override(["evaluation.split=temporal"])
    with pytest.raises(RunError, match="was trained on this dataset under the split leave-one-out, not temporal"):
        train(other, tmp_path / "run", start=run)


def test_states_of_another_encoder_are_refused(earlier):
    run = earlier()
    setup = build(run.config)
    changed = json.loads(json.dumps(run.result["state_origins"]))
    assert changed["text"].keys() == {"weight_digest", "pooling"}
    changed["text"]["pooling"] = "cls"
    with pytest.raises(RunError, match=r"text\.pooling is 'mean'; expected 'cls'"):
        start_from(replace(run, result=run.result | {"state_origins": changed}), setup)
    # Earlier versions noted less.
    old = {name: value for name, value in run.result.items() if name != "state_origins"}
    assert start_from(replace(run, result=old), setup) == 30
    with pytest.raises(RunError, match=r"states\.image is .*; expected 'other'"):
        start_from(replace(run, result=old | {"states": old["states"] | {"image": "other"}}), setup)


def test_a_frozen_encoder_may_be_trained_but_not_the_other_way_round(earlier, prepared, tmp_path):
    live = ("source=live", "modalities=[text]", f"text.encoder={prepared.text}")
    run = earlier("frozen", *live)
    train(run.config.override(["tuning.method=bias"]), tmp_path / "tuned", start=run)
    tuned = Run.load(tmp_path / "tuned")
    assert any(name.startswith("source.") for name in tuned.weights())
    for method in ("none", "full"):
        with pytest.raises(RunError, match=r"tuning\.method = 'bias'"):
            train(tuned.config.override([f"tuning.method={method}"]), tmp_path / method, start=tuned)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_continuation_resumes_bit_for_bit(epoch, earlier, tmp_path, monkeypatch):
    run = earlier()
    config = run.config.override(["training.epochs=2"])
    train(config, tmp_path / "whole", start=run)

    def dying(trainer, number, real=loop.Trainer._epoch):
        if number == epoch:
            raise Killed
        return real(trainer, number)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_epoch", dying)
        with pytest.raises(Killed):
            train(config, tmp_path / "killed", start=run)
    if epoch > 1:
        with pytest.raises(RunError, match="was trained with other initial weights than are given now"):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed", start=run)
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    said = []
    train(config, tmp_path / "killed", say=said.append, start=run)
    assert "finished already" in said[0]
    with pytest.raises(RunError, match="was trained with other initial weights"):
        train(config, tmp_path / "killed")


def test_a_run_and_its_continuation_are_two_methods(earlier, tmp_path):
    run = earlier()
    train(run.config, tmp_path / "run", start=run)
    compared = compare_runs([run.folder, tmp_path / "run"], Weights(0.45, 0.1, 0.45))
    assert len(compared.groups) == 2


def test_fit_continues_a_recommender(earlier, grown, tmp_path):
    run = earlier()
    later = Recommender.fit(grown, run.config.states, out=tmp_path / "run", start=Recommender(run))
    assert later.run.result["continued_from"] == run.fingerprint
    assert later.run.config.items == run.config.items
    assert later.run.config.dataset == grown.folder
