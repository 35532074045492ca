"""`iisan check`: sound runs pass, and each planted fault makes it fail."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from iisan.checks.check import FINDINGS, INVARIANTS, check_run
from iisan.data.dataset import Dataset
from iisan.data.sequences import padded
from iisan.data.splits import Queries, Split, split
from iisan.evaluate import ranks as ranks_module
from iisan.evaluate.metrics import Ranks
from iisan.evaluate.scorer import DotProducts, EmbeddingScorer
from iisan.runs.run import Run
from iisan.serve import lists as lists_module
from iisan.states.caching import cache
from iisan.train import run as training
from iisan.train.members import join

QUICK = ("training.epochs=1", "training.batch_size=64", "loss.negatives=0", "training.precision=fp32")
KINDS = {
    "default": ("default",),
    "frozen": ("frozen", "anchor=false"),
    "similarity": ("similarity",),
    "ids": ("ids",),
    "anchored ids": ("ids", "anchor=true"),
    "lora": ("lora",),
    "partial": ("partial",),
    "all": ("default", "evaluation.policy=all"),
    "exclude-all": ("default", "evaluation.policy=exclude-all"),
    "temporal": ("default", "evaluation.split=temporal"),
    "ratio": ("frozen", "anchor=false", "evaluation.split=ratio", "evaluation.shares=[0.5,0.2,0.3]"),
    "users": (
        *("frozen", "anchor=false", "evaluation.split=users", "evaluation.policy=exclude-all"),
        *("evaluation.shares=[0.1,0.45,0.45]", "evaluation.held_out_seed=3"),
    ),
}
#: Kinds of runs that nothing is stored of, or nothing but ids.
NOT_CHECKED = {
    "ids": ["cached equals live", "an added item equals itself"],
    "lora": [],
    "all": ["no target is in its own history"],
}


@pytest.fixture(scope="module")
def sound(prepared, tmp_path_factory):
    """A function that trains a run of a kind, once."""
    place = tmp_path_factory.mktemp("sound")

    def run(kind):
        folder = place / kind
        if not folder.exists():
            method, *changes = KINDS[kind]
            live = [f"{each}.encoder={getattr(prepared, each)}" for each in ("text", "image")]
            encoders = live if method in ("lora", "partial") else []
            training.train(prepared.config(method, *QUICK, *encoders, *changes), folder)
        return folder

    return run


@pytest.fixture
def copied(sound, tmp_path):
    """A function that copies the run of a kind, to plant a fault in it."""

    def run(kind):
        return shutil.copytree(sound(kind), tmp_path / "faulty")

    return run


def statuses(found):
    return {check.name: check.status for check in found.checks}


def failed(found):
    return {check.name for check in found.checks if check.status == "failed"}


def seen(found, name):
    return next(check.seen for check in found.checks if check.name == name)


def edit(path, change):
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_runs_pass(kind, sound):
    folder = sound(kind)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = check_run(folder)
    assert not failed(found), found
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [check.name for check in found.checks] == [*INVARIANTS, *FINDINGS]
    results = statuses(found)
    assert [name for name in INVARIANTS if results[name] == "not checked"] == NOT_CHECKED.get(kind, [])
    assert {results[name] for name in FINDINGS} == {"finding"}


def test_joined_runs_pass(sound, tmp_path):
    join([Run.load(sound(kind)) for kind in ("default", "anchored ids")], tmp_path / "joined")
    found = check_run(tmp_path / "joined")
    assert not failed(found), found
    assert statuses(found)["an added item equals itself"] == "passed"


def test_given_queries_pass_and_too_few_have_no_interval(tmp_path):
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(12)], "title": ["a pump"] * 12})
    log = pl.DataFrame(
        {"user_id": [f"u{n // 4}" for n in range(40)], "item_id": [f"i{n * 7 % 11}" for n in range(40)]}
    )
    rows = [(f"u{n}", f"i{n % 5} i{n % 7}", f"i{n + 1}") for n in range(10)]
    queries = pl.DataFrame(rows, schema=["user_id", "history", "target"], orient="row")
    dataset = Dataset.from_frames(items, log, queries, queries).save(tmp_path / "dataset")
    from iisan.recipes import recipe

    config = recipe("ids").override([*QUICK, f"dataset={dataset.folder}", "evaluation.policy=all"])
    training.train(config, tmp_path / "run")
    found = check_run(tmp_path / "run")
    assert not failed(found), found
    assert seen(found, "against the baselines") == "10 users, too few for an interval: 20 users or more"
    trained = {user: set(items) for user, items in log.group_by("user_id").agg("item_id").iter_rows()}
    known = sum(target in trained[user] - set(history.split()) for user, history, target in rows)
    assert 0 < known < len(rows)
    expected = f"{known / len(rows):.1%} of the test targets are also training interactions of their user"
    assert expected in seen(found, "the queries follow the split")
    # No pair of these histories is compared if the model cannot tell them apart.
    assert statuses(found)["repeated items rank as counted"] == "passed"


def test_a_target_that_reaches_the_model(sound, monkeypatch):
    def leaking(queries, length):
        ends = np.minimum(queries.ends + 1, len(queries.sequences.items))
        return padded(queries.sequences.items, queries.starts, ends, length)

    monkeypatch.setattr(Queries, "histories", leaking)
    found = check_run(sound("default"))
    assert failed(found) >= {"the queries follow the split", "repeated items rank as counted"}
    assert "reach a model with other items" in seen(found, "the queries follow the split")
    # Every target is the best of the history, and no repetition is left to count.
    assert seen(found, "repeated items rank as counted").startswith("HR@10 100.00%, by counting")


def test_a_split_whose_histories_hold_the_target(sound, monkeypatch):
    def leaking(sequences, users, positions):
        targets = sequences.items[positions].astype(np.int64)
        return Queries(sequences, users, sequences.offsets[users], positions + 1, targets)

    monkeypatch.setattr("iisan.data.splits._queries", leaking)
    for kind in ("default", "all"):
        found = check_run(sound(kind))
        assert "the queries follow the split" in failed(found)
        text = seen(found, "the queries follow the split")
        assert " test histories do not end right before their target" in text


def test_targets_that_were_trained_on(sound, monkeypatch):
    def on_everything(*given):
        made = split(*given)
        return replace(made, train_ends=made.sequences.offsets[1:])

    monkeypatch.setattr("iisan.data.dataset.split", on_everything)
    found = check_run(sound("default"))
    assert "50 test targets are in the training part" in seen(found, "the queries follow the split")
    assert failed(found) >= {"the queries follow the split", "popularity is that of the data"}


def test_a_masked_target(sound, monkeypatch):
    def masking(queries, policy):
        rows, items = excluded(queries, policy)
        rows, items = np.append(rows, np.arange(len(queries))), np.append(items, queries.targets)
        order = np.argsort(items, kind="stable")
        return rows[order], items[order]

    excluded = ranks_module.excluded_pairs
    monkeypatch.setattr(ranks_module, "excluded_pairs", masking)
    found = check_run(sound("default"))
    wanted = {"random scores give chance", "equal scores tie", "the recorded ranks are found again"}
    assert failed(found) >= wanted
    text = seen(found, "random scores give chance")
    assert re.search(r"HR@\d 0.00%, by chance .*: \d+ standard errors off", text)


def test_ranks_by_index_instead_of_ties(sound, monkeypatch):
    monkeypatch.setattr(ranks_module, "Ranks", lambda above, ties: Ranks(above + ties - 1, np.ones_like(ties)))
    assert failed(check_run(sound("default"))) >= {"equal scores tie", "repeated items rank as counted"}


def test_a_scorer_that_breaks_ties_by_index(prepared, tmp_path, monkeypatch):
    items = Dataset.load(prepared.dataset).items.rename({"text": "title"})
    twins = items.head(2).with_columns(item_id="twin " + pl.col("item_id"))
    again = twins.with_columns(item_id="second " + pl.col("item_id"))
    log = Dataset.load(prepared.dataset).interactions()
    dataset = Dataset.from_frames(pl.concat([items, twins, again]), log, min_length=1).save(tmp_path / "data")
    cache(dataset, tmp_path / "states", {"text": str(prepared.text)}, dtype="fp32", precision="fp32")
    folders = {"dataset": dataset.folder, "states": tmp_path / "states"}
    config = prepared.config("frozen", *QUICK, "anchor=false").model_copy(update=folders)
    training.train(config, tmp_path / "run")
    found = check_run(tmp_path / "run")
    assert not failed(found), found
    assert "0 of 80 scores of items with equal vectors differ" in seen(found, "equal scores tie")
    scores = DotProducts.score

    def breaking(self, query, items):
        found = scores(self, query, items)
        return found - 1e-6 * torch.arange(self.num_items)[items]

    monkeypatch.setattr(EmbeddingScorer, "score", breaking)
    found = check_run(tmp_path / "run")
    assert "equal scores tie" in failed(found)
    assert "80 of 80 scores of items with equal vectors differ, by up to" in seen(found, "equal scores tie")


def test_a_model_that_ignores_the_history(copied):
    folder = copied("default")
    result = json.loads((folder / "result.json").read_text())
    weights = result["terms"]["weights"]
    zero = {"learned": [0.0], "anchor": dict.fromkeys(weights["anchor"], 0.0), "transitions": 0.0, "repeats": -9.0}
    result["terms"]["weights"] = weights | zero | {"popularity": 1.0}
    (folder / "result.json").write_text(json.dumps(result))
    found = check_run(folder)
    assert failed(found) == {"scores depend on the history", "the recorded ranks are found again"}
    text = seen(found, "scores depend on the history")
    assert re.fullmatch(r"(\d+) of \1 pairs of histories have the same order of all items", text)


def test_a_network_that_ignores_the_history(copied):
    folder = copied("ids")

    def silence(tensors):
        for name in tensors:
            if name.startswith("sequence.") and "norm" in name:
                tensors[name].zero_()

    edit(folder / "model.safetensors", silence)
    assert "scores depend on the history" in failed(check_run(folder))


def test_a_wrong_popularity(copied):
    folder = copied("default")

    def shift(tensors):
        tensors["terms.counts"] = tensors["terms.counts"].roll(1)

    edit(folder / "model.safetensors", shift)
    found = check_run(folder)
    assert "popularity is that of the data" in failed(found)
    assert re.search(r"\d+ wrong counts of the run$", seen(found, "popularity is that of the data"))


def test_a_popularity_that_counts_the_targets(sound, monkeypatch):
    def every(split):
        return np.bincount(split.sequences.items, minlength=split.num_items)

    monkeypatch.setattr(Split, "train_counts", every)
    found = check_run(sound("similarity"))
    assert failed(found) == {"popularity is that of the data"}
    assert "wrong counts of the split" in seen(found, "popularity is that of the data")


def test_a_shuffled_store(copied, prepared, tmp_path):
    folder, states = copied("default"), tmp_path / "states"
    shutil.copytree(prepared.states, states)
    (path,) = states.glob("text-*/shard-*.safetensors")

    def shuffle(tensors):
        tensors["states"] = tensors["states"].roll(1, 0)

    edit(path, shuffle)
    found = check_run(folder, {"states": states})
    assert failed(found) == {"cached equals live", "an added item equals itself"}
    assert re.search(r"text: 28 contents encoded again differ by 1\d\d\.", seen(found, "cached equals live"))
    assert "image: 28 contents encoded again differ by 0.00%" in seen(found, "cached equals live")


def test_lists_that_are_not_those_of_the_evaluation(sound, monkeypatch):
    lists = lists_module.diverse_top_k
    monkeypatch.setattr(
        lists_module,
        "diverse_top_k",
        lambda scorer, queries, k, policy, allowed, **rest: lists(scorer, queries, k, "all", allowed, **rest),
    )
    assert failed(check_run(sound("default"))) == {"evaluation equals recommendation"}


def test_metrics_and_ranks_that_were_not_measured(copied):
    folder = copied("frozen")
    result = json.loads((folder / "result.json").read_text())
    value = result["test"]["hr@10"]
    (folder / "result.json").write_text(json.dumps(result | {"test": result["test"] | {"hr@10": value + 0.01}}))
    found = check_run(folder)
    assert failed(found) == {"the recorded ranks are found again"}
    expected = f"hr@10 is recorded as {value + 0.01:.4%}, the recorded ranks give {value:.4%}"
    assert seen(found, "the recorded ranks are found again") == expected


def test_what_is_not_there_is_not_checked(sound, copied, prepared, tmp_path, iisan):
    folder = sound("default")
    found = check_run(folder, {"states": tmp_path / "gone"})
    assert not failed(found)
    for name in ("cached equals live", "an added item equals itself"):
        assert statuses(found)[name] == "not checked"
        assert f"no folder '{tmp_path / 'gone'}'" in seen(found, name)
    assert "most popular" in seen(found, "against the baselines")
    code, printed, said = iisan("check", folder, "--dataset", tmp_path / "gone")
    assert (code, printed) == (2, "")
    assert "does not exist" in said.splitlines()[-1]
    code, _, said = iisan("check", tmp_path / "gone")
    assert code == 2


def test_a_newer_dataset_and_a_run_without_users(copied, prepared, tmp_path):
    folder, dataset = copied("default"), Dataset.load(prepared.dataset)
    more = pl.DataFrame({"user_id": ["new"] * 4, "item_id": ["i1", "i2", "i3", "i4"], "timestamp": [1, 2, 3, 4]})
    log = pl.concat([dataset.interactions().select(more.columns), more], how="vertical_relaxed")
    newer = Dataset.from_frames(dataset.items.rename({"text": "title"}), log).save(tmp_path / "newer")
    found = check_run(folder, {"dataset": newer.folder, "images": None})
    assert not failed(found), found
    for name in ("the recorded ranks are found again", "an added item equals itself"):
        assert seen(found, name) == "the dataset has changed since the run was trained on it"
    assert "those of the run are not compared" in seen(found, "popularity is that of the data")
    (folder / "per_user.parquet").unlink()
    found = check_run(folder)
    assert not failed(found), found
    assert statuses(found)["the recorded ranks are found again"] == "not checked"


def test_an_encoder_that_is_gone_is_not_downloaded(copied, prepared):
    folder = copied("default")
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("text:\n  encoder: null", "text:\n  encoder: owner/gone"))
    found = check_run(folder)
    name = "cached equals live"
    # The store is that of another encoder then, so nothing of it is opened.
    assert statuses(found)[name] == "not checked"


def test_the_command_prints_writes_and_exits(sound, copied, tmp_path, iisan):
    folder, out = sound("similarity"), tmp_path / "check.json"
    code, printed, _ = iisan("check", folder, "--out", out)
    assert code == 0
    assert "random scores give chance" in printed
    assert "─" not in printed  # No rule below empty heads.
    assert printed.splitlines()[-1] == "11 passed, 0 failed, 0 not checked"
    value = json.loads(out.read_text())
    assert (value["kind"], value["failed"], len(value["checks"])) == ("iisan-check", 0, len(INVARIANTS | FINDINGS))
    broken = copied("similarity")

    def shift(tensors):
        tensors["terms.counts"] = tensors["terms.counts"].roll(1)

    edit(broken / "model.safetensors", shift)
    code, printed, _ = iisan("check", broken, "--json")
    assert code == 1
    assert json.loads(printed)["failed"] >= 1
    code, _, said = iisan("check", folder, "--out", tmp_path / "check.txt")
    assert code == 2
    assert ".json" in said
