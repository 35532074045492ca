"""Several trained runs joined into one."""

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import RunError
from iisan.evaluate.tpme import Weights
from iisan.experiments.robustness import decline
from iisan.recipes import recipe
from iisan.runs.assess import assess
from iisan.runs.compare import compare_runs
from iisan.runs.run import Run
from iisan.train.members import join
from iisan.train.run import train

QUICK = ("training.epochs=2", "loss.negatives=5", "training.batch_size=16")


@pytest.fixture(scope="module")
def members(prepared, tmp_path_factory):
    """Two seeds of default, and one run of item ids, all anchored."""
    folder = tmp_path_factory.mktemp("members")
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    rows = {
        "one": ("default",),
        "two": ("default", "training.seed=1", "items.embedding_dim=32"),
        "ids": ("ids", "anchor=true"),
    }
    for name, (base, *overrides) in rows.items():
        train(recipe(base).model_copy(update=folders).override((*QUICK, *overrides)), folder / name)
    return {name: Run.load(folder / name) for name in rows}


def test_the_score_of_a_joined_run_is_the_weighted_sum_of_its_members(members, tmp_path):
    result = join([*members.values()], tmp_path / "run")
    run = Run.load(tmp_path / "run")
    histories = np.array([[-1, -1, 3, 7], [-1, -1, -1, -1], [1, 2, 1, 9]])
    everything = slice(0, run.scorer.num_items)

    def scores(scorer):
        return scorer.score(scorer.start(histories), everything)

    weights = run.result["terms"]["weights"]
    terms = replace(members["one"].anchoring.scorer.weights, **{**weights, "learned": ()})
    expected = scores(members["one"].anchoring.scorer.reweighted(terms))
    for weight, member in zip(weights["learned"], members.values(), strict=True):
        expected = expected + weight * scores(member.only_member())
    torch.testing.assert_close(scores(run.scorer), expected)
    again = assess(run, run.config)
    assert again[run.config.recipe].metrics == pytest.approx(result["test"])
    assert again["learned part alone"].metrics == pytest.approx(result["parts"]["learned part alone"])


def test_the_result_has_the_gain_and_the_cost_of_every_member(members, tmp_path):
    result = join([*members.values()], tmp_path / "run")
    assert [each["config"]["recipe"] for each in result["members"]] == ["default", "default", "ids"]
    for each, run in zip(result["members"], members.values(), strict=True):
        assert each["trainable_parameters"] == run.result["trainable_parameters"]
        assert each["fingerprint"] == run.fingerprint
    assert result["trainable_parameters"] == sum(run.result["trainable_parameters"] for run in members.values())
    assert result["peak_memory_bytes"] == max(run.result["peak_memory_bytes"] for run in members.values())
    (group,) = compare_runs([tmp_path / "run"], Weights(0.45, 0.1, 0.45)).groups
    seconds = sum(run.result["train_seconds"] / run.result["epochs"] for run in members.values())
    assert group.measurement().seconds == pytest.approx(seconds)
    assert {*result["terms"]["without"]} >= {"member 2", "member 3"}
    assert result["terms"]["validation"] == pytest.approx(result["validation"]["hr@10"])


def test_a_joined_run_recommends_and_is_not_joined_again(members, tmp_path):
    runs = [members["one"], members["two"]]
    said = []
    first = join(runs, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    assert join(runs, tmp_path / "run", say=said.append)["test"] == first["test"]
    assert "finished already" in said[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == before
    assert len(Recommender.load(tmp_path / "run").recommend(history=["i3"], k=4)) == 4
    with pytest.raises(RunError, match="holds a run"):
        join([members["two"], members["one"]], tmp_path / "run")


def test_what_needs_a_single_member_says_so(members, tmp_path):
    join([members["one"], members["two"]], tmp_path / "run")
    run = Run.load(tmp_path / "run")
    for use in (
        run.weights,
        lambda: Recommender(run).item_embeddings,
        lambda: decline(tmp_path / "run", "text", [0.5], "remove"),
        lambda: join([run, members["one"]], tmp_path / "other"),
        lambda: train(members["one"].config, tmp_path / "other", start=run),
    ):
        with pytest.raises(RunError, match="has 2 trained members"):
            use()
    assert not (tmp_path / "other").exists()


def test_runs_that_do_not_fit_together_are_refused(members, prepared, tmp_path):
    folders = {"dataset": prepared.dataset, "states": prepared.states}

    def other(*overrides):
        config = recipe("default").model_copy(update=folders).override((*QUICK, *overrides))
        train(config, tmp_path / overrides[0])
        return Run.load(tmp_path / overrides[0])

    cases = (
        ([members["one"]], "1 run; expected two or more"),
        ([members["one"], members["two"], members["one"]], "one run several times"),
        ([members["one"], other("anchor=false")], "no anchor"),
        ([members["one"], other("evaluation.policy=all")], "differ in evaluation.policy"),
        ([members["one"], other("modalities=[text]")], "differ in"),
    )
    for runs, sentence in cases:
        with pytest.raises(RunError, match=sentence):
            join(runs, tmp_path / "joined")
        assert not (tmp_path / "joined").exists()


def test_members_are_joined_on_the_data_they_were_trained_on(members, prepared, tmp_path, iisan):
    dataset = Dataset.load(prepared.dataset)
    later = dataset.interactions().head(1).with_columns(timestamp=pl.lit(1_800_000_000, pl.Int64))
    grown = Dataset.from_frames(dataset.items, pl.concat([dataset.interactions(), later])).save(tmp_path / "grown")
    shutil.copytree(prepared.dataset, tmp_path / "moved")
    command = ["join", members["one"].folder, members["two"].folder, "--out", tmp_path / "run", "--dataset"]
    code, _, said = iisan(*command, grown.folder)
    assert (code, "has changed since the run in" in said) == (2, True)
    assert not (tmp_path / "run").exists()
    code, _, said = iisan(*command, tmp_path / "moved", "--states", prepared.states)
    assert code == 0, said
    assert Run.load(tmp_path / "run").config.dataset == tmp_path / "moved"
