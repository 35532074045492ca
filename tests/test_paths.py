"""Files and folders on the command line: endings that say a format, and folders that are not there."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from iisan.recipes import load_config
from iisan.train.run import train


@pytest.fixture
def refused(iisan):
    """Run a command that must end with one sentence."""

    def run(*arguments):
        code, out, error = iisan(*arguments)
        assert (code, out) == (2, ""), (arguments, out)
        assert error.startswith("error: "), error
        assert len(error.splitlines()) == 1, error
        return error

    return run


@pytest.fixture(scope="module")
def run_folder(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths") / "run"
    settings = [f"dataset={prepared.dataset}", f"states={prepared.states}", "training.epochs=1"]
    train(load_config("default", settings), folder)
    return folder


READERS = {"parquet": pl.read_parquet, "csv": pl.read_csv, "CSV": pl.read_csv, "jsonl": pl.read_ndjson}


@pytest.mark.parametrize("ending", READERS)
def test_the_ending_of_a_table_decides_its_format(iisan, run_folder, tmp_path, ending):
    lists, ranks = tmp_path / f"recs.{ending}", tmp_path / f"ranks.{ending}"
    assert iisan("recommend", run_folder, "--all-users", "--k", 3, "--out", lists)[0] == 0
    assert iisan("evaluate", run_folder, "--no-baselines", "--out", ranks)[0] == 0
    found = READERS[ending](lists)
    assert (found.columns, found.height) == (["user_id", "item_id", "score", "rank"], 150)
    assert {"user_id", "above", "ties"} <= {*READERS[ending](ranks).columns}


@pytest.mark.parametrize(
    ("command", "known"),
    [
        (["recommend", "RUN", "--all-users", "--out", "recs.xlsx"], ".parquet, .csv, .jsonl, .ndjson"),
        (["recommend", "RUN", "--user", "u3", "--out", "recs"], ".parquet, .csv"),
        (["evaluate", "RUN", "--out", "ranks.pq"], ".parquet, .csv"),
        (["robustness", "RUN", "--modality", "text", "--out", "x.png"], ".svg"),
        (["report", "RUN", "--out", "report.pdf"], ".html, .htm"),
    ],
)
def test_other_endings_are_refused_before_anything_is_computed(
    refused, run_folder, tmp_path, monkeypatch, command, known
):
    monkeypatch.chdir(tmp_path)
    error = refused(*(str(run_folder) if each == "RUN" else each for each in command))
    assert f"error: --out '{command[-1]}' has the ending" in error
    assert known in error
    assert [*tmp_path.iterdir()] == []


def test_a_chart_is_svg_in_capitals_too(iisan, run_folder, tmp_path):
    chart = tmp_path / "x.SVG"
    code, _, error = iisan("robustness", run_folder, "--modality", "text", "--rates", "0,1", "--out", chart)
    assert code == 0, error
    assert chart.read_text().startswith("<svg")


@pytest.mark.parametrize("name", ["TYPO", "file", "file/below"])
def test_folders_that_are_not_there_are_named(refused, prepared, run_folder, tmp_path, name):
    (tmp_path / "file").touch()
    wrong, out = tmp_path / name, tmp_path / "out"
    data = ["--dataset", prepared.dataset, "--states", wrong, "--out", out]
    for options in (
        ["train", "default", *data],
        ["train", "default", *data, "--set", "modalities=[text]"],
        ["train", "partial", *data],
        ["evaluate", run_folder, "--states", wrong],
    ):
        assert f"no folder '{wrong}'; expected a folder of state stores: check the path" in refused(*options)
    for options in (
        ["train", "ids", "--dataset", wrong, "--out", out],
        ["evaluate", run_folder, "--dataset", wrong],
        ["recommend", run_folder, "--user", "u3", "--dataset", wrong],
        ["describe", wrong],
        ["cache", wrong, "--text", prepared.text, "--out", out],
        ["caption", wrong, "--model", "x", "--out", out],
        ["import-states", wrong, "--name", "v", "--out", out],
        ["estimate", wrong, "--text", prepared.text],
        ["evaluate", wrong],
        ["recommend", wrong, "--user", "u3"],
        ["robustness", wrong, "--modality", "text"],
        ["compare", wrong],
        ["report", wrong],
    ):
        error = refused(*options)
        assert str(wrong) in error
        assert name != "TYPO" or f"'{wrong}' does not exist" in error


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_where_a_folder_is_going_to_be_written(refused, prepared, tmp_path, name):
    file, items, log = (tmp_path / name for name in ("file", "items.csv", "log.csv"))
    file.write_text("mine")
    items.write_text("item_id\na\n")
    log.write_text("user_id,item_id\nu,a\nu,a\nu,a\n")
    for options in (
        ["prepare", "table", items, log],
        ["cache", prepared.dataset, "--text", prepared.text, "--precision", "fp32"],
        ["train", "ids", "--dataset", prepared.dataset],
    ):
        assert f"'{file}" in refused(*options, "--out", tmp_path / name)
    assert file.read_text() == "mine"


def test_training_refuses_a_store_that_is_not_finished(refused, prepared, tmp_path):
    states = Path(shutil.copytree(prepared.states, tmp_path / "states"))
    (manifest,) = states.glob("text-*/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"finished": False}))
    folders = ["--dataset", prepared.dataset, "--states", states, "--out", tmp_path / "run"]
    error = refused("train", "default", *folders)
    assert "was interrupted or is in progress" in error
    assert "`iisan cache`" in error
