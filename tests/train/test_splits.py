"""Runs under every split: what is recorded, what is printed, and which targets another split leaves."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, DataError, RunError
from iisan.nested import read_yaml
from iisan.recipes import recipe
from iisan.runs.assess import assess
from iisan.runs.compare import compare_runs
from iisan.runs.run import Run
from iisan.train.run import train

QUICK = ("training.epochs=1", "training.batch_size=16", "training.precision=fp32", "evaluation.policy=all")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """30 users with 10 interactions each; the later the user, the later the times."""
    folder = tmp_path_factory.mktemp("splits") / "dataset"
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(12)], "title": ["a pump"] * 12})
    log = pl.DataFrame(
        {
            "user_id": [f"u{n // 10}" for n in range(300)],
            "item_id": [f"i{n * 7 % 11}" for n in range(300)],
            "timestamp": [n // 10 * 3 + n % 10 * 20 for n in range(300)],
        }
    )
    return Dataset.from_frames(items, log).save(folder)


def config_of(dataset, *overrides):
    return recipe("ids").override([*QUICK, f"dataset={dataset.folder}", *overrides])


def run_of(dataset, folder, *overrides):
    train(config_of(dataset, *overrides), folder)
    return Run.load(folder)


@pytest.mark.parametrize(
    ("settings", "protocol", "targets"),
    [
        (["ratio"], "ratio test, full ranking of 12 items, nothing excluded (all), 30 users", 30),
        (
            ["ratio", "shares=[0.6,0.1,0.3]"],
            "ratio 60/10/30 test, full ranking of 12 items, nothing excluded (all), 90 queries of 30 users",
            90,
        ),
        (
            ["users", "held_out_seed=3"],
            "users (seed 3) test, full ranking of 12 items, nothing excluded (all), 3 users",
            3,
        ),
        (
            ["temporal", "shares=[0.5,0.2,0.3]"],
            "temporal 50/20/30 test, full ranking of 12 items, nothing excluded",
            30,
        ),
    ],
)
def test_a_run_names_its_split(dataset, tmp_path, settings, protocol, targets):
    run = run_of(
        dataset, tmp_path / "run", *(f"evaluation.{each}" for each in [f"split={settings[0]}", *settings[1:]])
    )
    assert run.result["protocol"].startswith(protocol)
    assert run.result["test"].get("queries", run.result["test"]["users"]) <= targets
    assert run.result["selection"].startswith(f"hr@10 of the {protocol.split(' test')[0]} validation")
    # It evaluates to the same numbers, and other shares are another protocol.
    assert assess(run, run.config)["ids"].metrics == run.result["test"]
    assert read_yaml(run.folder / "config.yaml")["evaluation"]["shares"] == list(run.config.evaluation.shares)


def test_other_shares_are_another_split(dataset, tmp_path):
    run = run_of(dataset, tmp_path / "run", "evaluation.split=ratio")
    other = run.config.override(["evaluation.shares=[0.6,0.1,0.3]"])
    found = assess(run, other)["ids"]
    # Of the last three interactions, the second was selected on and the first trained on.
    assert found.protocol.startswith(
        "ratio 60/10/30 test of a run trained under ratio (60 of 90 targets left out, "
    )
    assert found.metrics == run.result["test"]
    with pytest.raises(RunError, match="under the split ratio, not ratio 60/10/30"):
        train(other, tmp_path / "more", start=run)
    wider = run_of(dataset, tmp_path / "wider", "evaluation.split=ratio", "evaluation.shares=[0.6,0.1,0.3]")
    with pytest.raises(ConfigError, match="have different protocol"):
        compare_runs([run.folder, wider.folder], None)


def test_held_out_users_are_new_to_a_run(dataset, tmp_path):
    run = run_of(dataset, tmp_path / "run", "evaluation.split=users")
    ranks = pl.read_parquet(run.folder / "per_user.parquet")
    held_out = [int(user[1:]) for user in ranks["user_id"]]
    split = dataset.split(run.config.evaluation)
    assert held_out == split.test.users.tolist()
    # Under another split, their targets but those that were selected on are new, and those of no other user.
    found = assess(run, run.config.override(["evaluation.split=ratio", "evaluation.shares=[0.4,0.3,0.3]"]))["ids"]
    validated, tested = len(split.validation), len(split.test)
    assert (found.metrics["queries"], found.metrics["users"]) == (2 * validated + 3 * tested, validated + tested)


def test_what_training_knows_of_the_future_is_said_once(dataset, tmp_path, iisan):
    run = run_of(dataset, tmp_path / "run")
    split = dataset.split("leave-one-out")
    times = dataset.sequences.timestamps
    trained = np.concatenate([times[a:b] for a, b in zip(split.train_starts, split.train_ends, strict=True)])
    later = [(trained > times[end]).mean() for end in split.test.ends]
    expected = (
        f"{np.mean(np.array(later) > 0):.1%} of the 30 targets are earlier than a training interaction "
        f"({np.mean(later):.1%} of all training interactions are later than a target, on average)"
    )
    assert 0 < np.mean(np.array(later) > 0) < 1
    assert run.result["future"] == expected
    assert assess(run, run.config)["most popular"].future == expected
    code, out, _ = iisan("evaluate", run.folder)
    assert (code, " ".join(out.split()).count(f"future: {expected}")) == (0, 1)
    code, out, _ = iisan("evaluate", run.folder, "--json")
    assert json.loads(out)["ids"]["future"] == expected
    # Printed again for a finished run, as its protocol is.
    code, out, _ = iisan(
        "train", "ids", "--dataset", dataset.folder, "--out", run.folder, *(f"--set={e}" for e in QUICK)
    )
    assert f"future: {expected}" in " ".join(out.split())
    facts = json.loads(iisan("describe", dataset.folder, "--json")[1])
    assert facts["future_test_targets"] == np.count_nonzero(later)
    assert facts["trained_later"] == pytest.approx(np.mean(later))
    # A temporal split never knows, and without timestamps nobody does.
    facts = json.loads(iisan("describe", dataset.folder, "--split", "temporal", "--json")[1])
    assert (facts["future_test_targets"], facts["trained_later"]) == (0, 0)
    temporal = run_of(dataset, tmp_path / "temporal", "evaluation.split=temporal")
    assert temporal.result["future"] == ""
    assert "future:" not in iisan("evaluate", temporal.folder)[1]


def test_runs_from_before_there_were_shares_go_on(dataset, tmp_path):
    run = run_of(dataset, tmp_path / "run")
    text = (run.folder / "config.yaml").read_text().splitlines()
    at = text.index("  shares:")
    older = "\n".join(line for n, line in enumerate(text) if not at <= n <= at + 3 and "held_out_seed" not in line)
    assert "0.8" not in older
    (run.folder / "config.yaml").write_text(older + "\n")
    assert Run.load(run.folder).config == run.config
    said = []
    train(config_of(dataset), run.folder, say=said.append)
    assert "finished already" in said[0]
    with pytest.raises(RunError, match=r"evaluation.shares = \[0.8, 0.1, 0.1\], not \[0.7, 0.1, 0.2\]"):
        train(config_of(dataset, "evaluation.shares=[0.7,0.1,0.2]"), run.folder)


def test_the_command_line(dataset, tmp_path, iisan):
    run = run_of(dataset, tmp_path / "run")
    code, out, _ = iisan("evaluate", run.folder, "--split", "ratio", "--shares", "0.5,0.2,0.3", "--no-baselines")
    assert code == 0
    assert "ratio 50/20/30 test of a run trained under leave-one-out (60 of 90 targets" in " ".join(out.split())
    code, out, _ = iisan("describe", dataset.folder, "--split", "users", "--shares", "0.5,0.25,0.25")
    assert (code, "users 50/25/25 split" in out) == (0, True)
    for shares, sentence in (
        ("0.8,0.1", "configuration key 'evaluation.shares.2' is missing in [0.8, 0.1]"),
        ("0.8,0.1,0", "expected greater than 0"),
        ("0.8,0.1,-0.1", "expected greater than 0"),
        ("0.8,0.1,0.2", "shares [0.8, 0.1, 0.2] sum to 1.1, not 1"),
        ("80,10,10", "sum to 100, not 1"),
        ("a,b,c", "'evaluation.shares.0' has the value 'a'"),
    ):
        for command in (["describe", dataset.folder], ["evaluate", run.folder]):
            code, out, error = iisan(*command, "--split", "ratio", "--shares", shares)
            assert (code, out, error.count("\n")) == (2, "", 1)
            assert sentence in error
    code, _, error = iisan("evaluate", run.folder, "--queries", tmp_path / "no.tsv", "--shares", "0.8,0.1,0.1")
    assert (code, "--queries together with --shares" in error) == (2, True)


def test_users_to_hold_out_from_a_file(dataset, tmp_path, iisan):
    names = dataset.user_ids.to_list()
    dataset.items.select("item_id", "text").write_csv(tmp_path / "items.csv")
    dataset.interactions().write_csv(tmp_path / "log.csv")
    held_out = pl.DataFrame({"user_id": names[:5], "subset": ["test", "test", "test", "validation", "validation"]})
    held_out.write_csv(tmp_path / "held.csv")
    command = [
        "prepare",
        "table",
        tmp_path / "items.csv",
        tmp_path / "log.csv",
        "--held-out",
        tmp_path / "held.csv",
    ]
    code, out, error = iisan(*command, "--repeats", "drop-consecutive", "--out", tmp_path / "data")
    assert code == 0, error
    assert "held-out users: validation 2, test 3" in out
    assert "repeats=drop-consecutive" in out
    run = run_of(Dataset.load(tmp_path / "data"), tmp_path / "run")
    assert run.config.evaluation.split == "users"
    assert run.result["protocol"].startswith("users (given) test, ")
    assert pl.read_parquet(run.folder / "per_user.parquet")["user_id"].to_list() == names[:3]
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "held.csv").write_text("user_id,subset\nnobody,test\n")
    code, out, error = iisan(*command, "--out", tmp_path / "data")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "held.csv, line 2: unknown user 'nobody'" in error
    assert not (tmp_path / "data").exists()


def test_too_few_users_or_interactions(tmp_path):
    items = pl.DataFrame({"item_id": ["a", "b"]})
    log = pl.DataFrame({"user_id": ["u", "u", "v", "v"], "item_id": list("abab")})
    dataset = Dataset.from_frames(items, log, min_length=0).save(tmp_path / "data")
    for split, sentence in (
        ("users", "2 users with 2 interactions or more, under the split users"),
        ("ratio", "the validation part under the split ratio has no target"),
        ("temporal", "the dataset has no timestamps"),
    ):
        with pytest.raises(DataError, match=sentence):
            train(config_of(dataset, f"evaluation.split={split}"), tmp_path / "run")
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
