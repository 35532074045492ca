"""Runs on given queries: the split is recorded, a file is evaluated, and what makes no sense is refused."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.efficiency.workload import DataShape
from iisan.errors import DataError, RunError
from iisan.evaluate.tpme import PAPER
from iisan.nested import read_yaml
from iisan.recipes import recipe
from iisan.runs.assess import assess
from iisan.runs.compare import compare_runs
from iisan.runs.run import Run
from iisan.train.run import train

QUICK = ("training.epochs=1", "training.batch_size=16", "training.precision=fp32", "evaluation.policy=all")
ITEMS = pl.DataFrame({"item_id": [f"i{n}" for n in range(12)], "title": ["a pump"] * 12})
LOG = pl.DataFrame(
    {"user_id": [f"u{n // 4}" for n in range(40)], "item_id": [f"i{n * 7 % 11}" for n in range(40)]}
)
VALIDATION = pl.DataFrame(
    {
        "user_id": ["u0", "u0", "u1", "new"],
        "history": ["i1", "i1 i2", "i3 i4", "i5"],
        "target": ["i2", "i3", "i0", "i11"],
    }
)
TEST = pl.DataFrame(
    {"user_id": ["u2", "u2", "u3"], "history": ["i1", "i0 i0 i7", "i7"], "target": ["i0", "i3", "i11"]}
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given") / "dataset"
    return Dataset.from_frames(ITEMS, LOG, VALIDATION, TEST).save(folder)


def config_of(dataset, *overrides):
    return recipe("ids").override([*QUICK, f"dataset={dataset.folder}", *overrides])


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("given") / "run"
    train(config_of(dataset), folder)
    return Run.load(folder)


def test_a_run_records_the_split_and_evaluates_the_rows(dataset, run):
    assert read_yaml(run.folder / "config.yaml")["evaluation"]["split"] == "given"
    assert run.result["protocol"] == (
        "given test, full ranking of 12 items, nothing excluded (all), 3 queries of 2 users"
    )
    assert run.result["selection"] == "hr@10 of the given validation, 4 queries of 3 users"
    assert (run.result["validation"]["users"], run.result["validation"]["queries"]) == (3, 4)
    assert (run.result["test"]["users"], run.result["test"]["queries"]) == (2, 3)
    # Item 11 is in no interaction.
    assert (run.result["test"]["cold_users"], run.result["data"]) == (1, dataset.content_hash)
    ranks = pl.read_parquet(run.folder / "per_user.parquet")
    assert ranks.select("user_id", "item_id", "cold", "seen").rows() == [
        ("u2", "i0", False, False),
        ("u2", "i3", False, False),
        ("u3", "i11", True, False),
    ]
    # Ten users with four interactions each, one window each.
    assert DataShape.of_dataset(dataset, config_of(dataset)).windows == 10


def test_a_finished_run_is_found_again_without_its_dataset(dataset, tmp_path):
    copy = Dataset.load(shutil.copytree(dataset.folder, tmp_path / "copy"))
    train(config_of(copy), tmp_path / "run")
    shutil.rmtree(copy.folder)
    said = []
    train(config_of(copy), tmp_path / "run", say=said.append)
    assert "finished already" in said[0]
    with pytest.raises(RunError, match=r"evaluation\.split = 'given', not 'leave-one-out'"):
        train(config_of(copy, "evaluation.split=leave-one-out"), tmp_path / "run")


def test_a_file_with_the_rows_of_the_test_gives_its_metrics(run, tmp_path):
    words, lists = tmp_path / "rows.tsv", tmp_path / "rows.jsonl"
    TEST.write_csv(words, separator="\t", include_header=False)
    TEST.with_columns(pl.col("history").str.split(" ")).write_ndjson(lists)
    TEST.write_csv(tmp_path / "rows.csv")
    expected = assess(run, run.config)
    for path in (words, lists, tmp_path / "rows.csv"):
        found = assess(run, run.config, queries=path)
        assert list(found) == ["most popular", "recently popular", "Markov", "item-kNN", "ids"]
        assert {name: each.metrics for name, each in found.items()} == {
            name: each.metrics for name, each in expected.items()
        }
        assert found["ids"].protocol == (
            f"given queries {path.name}, full ranking of 12 items, nothing excluded (all), 3 queries of 2 users"
        )
    assert run.result["test"] == expected["ids"].metrics


def test_baselines_on_given_queries_by_hand(run, tmp_path):
    path = tmp_path / "one.csv"
    # New users; their items are those of the run's catalogue.
    path.write_text("user_id,history,target\nx,i8 i7,i3\ny,i3,i11\n")
    found = assess(run, run.config, queries=path)["Markov"].per_user
    follows = sum(a == "i7" and b == "i3" for a, b in zip(LOG["item_id"], LOG["item_id"][1:], strict=False))
    assert follows  # and nothing else ever follows 7
    assert found.select("user_id", "above", "ties", "cold").rows() == [("x", 0, 1, False), ("y", 11, 1, True)]


def test_runs_on_given_queries_are_compared_over_users(run, dataset, tmp_path):
    train(config_of(dataset, "optimizer.learning_rate=0.1"), tmp_path / "other")
    report = compare_runs([run.folder, tmp_path / "other"], PAPER)
    assert {found.users for _, found, _ in report.tests} == {2}
    assert {found.p_mcnemar for _, found, _ in report.tests} == {None}
    test = Run.load(tmp_path / "other").result["test"]
    hits = next(found for _, found, _ in report.tests if found.metric == "hr@10")
    assert (hits.mean_a, hits.mean_b) == pytest.approx((run.result["test"]["hr@10"], test["hr@10"]))


def test_splits_that_are_not_there(run, dataset, prepared, tmp_path):
    plain = recipe("ids").override([*QUICK, f"dataset={prepared.dataset}", "evaluation.split=given"])
    with pytest.raises(DataError, match="the dataset has no given queries"):
        train(plain, tmp_path / "plain")
    with pytest.raises(DataError, match="a run that was trained on all interactions"):
        assess(run, run.config.override(["evaluation.split=leave-one-out"]))
    # The other way around all given queries are new.
    train(config_of(dataset, "evaluation.split=leave-one-out"), tmp_path / "run")
    other = Run.load(tmp_path / "run")
    assert other.result["protocol"].startswith("leave-one-out test, ")
    found = assess(other, other.config.override(["evaluation.split=given"]))["ids"]
    assert found.protocol.startswith("given test of a run trained under leave-one-out (0 of 3 targets left out, ")
    assert found.metrics["queries"] == 3


def test_describe_counts_rows_and_users(dataset, iisan):
    code, out, _ = iisan("describe", dataset.folder, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["users"], facts["users_without_interactions"]) == (11, 1)
    assert (facts["validation_queries"], facts["validation_users"]) == (4, 3)
    assert (facts["test_queries"], facts["test_users"]) == (3, 2)
    # Of those who have interactions.
    assert (facts["mean_length"], facts["min_length"]) == (4, 4)
    code, out, _ = iisan("describe", dataset.folder, "--split", "leave-one-out", "--json")
    assert (code, "test_queries" in json.loads(out)) == (0, False)


def test_recommending_for_users_of_queries(dataset, run, iisan, tmp_path):
    code, out, error = iisan("recommend", run.folder, "--user", "new")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "user 'new' has given queries only, no interactions" in error
    code, _, _ = iisan("recommend", run.folder, "--all-users", "--out", tmp_path / "all.parquet")
    assert (code, pl.read_parquet(tmp_path / "all.parquet")["user_id"].n_unique()) == (0, 10)


def test_the_command_line(iisan, tmp_path):
    ITEMS.write_csv(tmp_path / "items.tsv", separator="\t", include_header=False)
    users = LOG.group_by("user_id", maintain_order=True).agg(pl.col("item_id").str.join(" "))
    users.write_csv(tmp_path / "users.tsv", separator="\t", include_header=False)
    for name, frame in (("validation", VALIDATION), ("test", TEST)):
        frame.write_csv(tmp_path / f"{name}.tsv", separator="\t", include_header=False)
    out, run = tmp_path / "dataset", tmp_path / "run"
    files = ["--validation", tmp_path / "validation.tsv", "--test", tmp_path / "test.tsv"]
    code, said, error = iisan("prepare", "reference", tmp_path, *files, "--out", out)
    assert code == 0, error
    assert "given queries: validation, 4 queries of 3 users; test, 3 queries of 2 users" in said
    assert iisan("train", "ids", "--dataset", out, "--out", run, *(f"--set={each}" for each in QUICK))[0] == 0
    rows = ["--queries", tmp_path / "validation.tsv"]
    code, said, _ = iisan("evaluate", run, *rows, "--policy", "unseen", "--json")
    assert code == 0
    found = json.loads(said)
    assert {each["protocol"] for each in found.values()} == {
        "given queries validation.tsv, full ranking of 12 items, history excluded (unseen), 4 queries of 3 users"
    }
    code, said, _ = iisan("evaluate", run, *rows)
    assert "cold: the 1 users whose target was never trained on" in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("u0\ti1\ti2\nu0\ti1 i99\ti2\n", "bad.tsv, line 2: unknown item 'i99' (1 such row)"),
        ("u0\ti1\ti99\n", "expected an item id of the run's catalogue: correct it"),
        ("u0\t\ti1\n", "bad.tsv, line 1: empty history of user 'u0'"),
        ("u0\ti1\t\n", "bad.tsv, line 1: zero-length target"),
        ("u0\ti1\n", "bad.tsv, line 1: malformed row"),
        ("user_id\thistory\nu0\ti1\n", "bad.tsv' has no column 'target'"),
        ("user_id\thistory\ttarget\n", "bad.tsv' is empty"),
        ("", "bad.tsv' is empty"),
    ],
)
def test_bad_files_of_queries(run, iisan, tmp_path, content, sentence):
    bad, out = tmp_path / "bad.tsv", tmp_path / "ranks.csv"
    bad.write_text(content)
    code, said, error = iisan("evaluate", run.folder, "--queries", bad, "--out", out)
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert sentence in error
    assert "skip" not in error
    assert not out.exists()


def test_queries_and_a_subset_or_split_exclude_each_other(run, iisan, tmp_path):
    for option, value in (("--subset", "test"), ("--split", "given")):
        code, _, error = iisan("evaluate", run.folder, "--queries", tmp_path / "no.tsv", option, value)
        assert (code, error.count("\n")) == (2, 1)
        assert f"--queries together with {option}" in error
    code, _, error = iisan("evaluate", run.folder, "--queries", tmp_path / "no.tsv")
    assert (code, "no file" in error) == (2, True)


def test_a_sample_of_the_rows_selects(dataset, tmp_path):
    result = train(config_of(dataset, "evaluation.validation_users=2"), tmp_path / "run")
    assert result["selection"].endswith(", a fixed sample of 4")
    chosen = np.sort(np.random.default_rng(0).choice(4, 2, replace=False))
    users = VALIDATION["user_id"].gather(chosen).n_unique()
    assert result["validation"]["users"] == users
