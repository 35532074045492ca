"""Runs side by side."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from iisan.errors import ConfigError
from iisan.evaluate.significance import holm
from iisan.evaluate.tpme import PAPER
from iisan.recipes import recipe
from iisan.runs.compare import compare_runs
from iisan.runs.run import Run
from iisan.train.run import train

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "schema-1" / "run"


@pytest.fixture
def runs(prepared, tmp_path):
    def run(name: str, seed: int = 0, *overrides: str):
        config = recipe(name).model_copy(update={"dataset": prepared.dataset, "states": prepared.states})
        quick = ("training.epochs=1", f"training.seed={seed}", "loss.negatives=0")
        folder = tmp_path / f"{name}-{seed}-{len(overrides)}"
        train(config.override((*quick, *overrides)), folder)
        return folder

    return run


def test_runs_of_one_method_are_seeds_of_one_group(runs):
    folders = [runs("default", 0), runs("ids"), runs("default", 1)]
    report = compare_runs(folders, PAPER)
    assert [(group.name, len(group.runs)) for group in report.groups] == [("default", 2), ("ids", 1)]
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    found = report.groups[0].metric("hr@10")
    assert found.mean == pytest.approx((results[0]["test"]["hr@10"] + results[2]["test"]["hr@10"]) / 2)
    assert [(other, test.metric) for other, test, _ in report.tests] == [("ids", "hr@10"), ("ids", "ndcg@10")]
    for _, test, _ in report.tests:
        assert test.mean_a == pytest.approx(report.groups[0].metric(test.metric).mean)
        assert test.mean_b == pytest.approx(results[1]["test"][test.metric])
        assert test.users == pl.read_parquet(folders[0] / "per_user.parquet")["ties"].count()
        assert test.p_mcnemar is None
    assert [p for _, _, p in report.tests] == holm([test.p_t for _, test, _ in report.tests])
    assert set(report.tpme) == {"default", "ids"}
    assert json.loads(json.dumps(report.as_json()))["methods"]["default"]["runs"] == [
        str(folders[0]), str(folders[2]),
    ]  # fmt: skip


def test_groups_of_one_recipe_bear_their_folders_names(runs):
    report = compare_runs([runs("ids"), runs("ids", 0, "items.embedding_dim=32")], PAPER)
    assert [group.name for group in report.groups] == ["ids-0-0", "ids-0-1"]
    assert report.tests[0][1].p_mcnemar is not None


def test_one_method_has_nothing_to_be_tested_against(runs):
    report = compare_runs([runs("ids")], PAPER)
    assert (report.tpme, report.tests) == ({}, [])


def test_a_run_counts_once(runs, tmp_path):
    first = runs("ids")
    copy = shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(ConfigError, match="have the same settings and the same seed"):
        compare_runs([first, copy], PAPER)


def test_runs_of_version_0_1_are_compared_under_their_recorded_protocol(tmp_path):
    first, second = (shutil.copytree(OLD_RUN, tmp_path / name) for name in ("first", "second"))
    config = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(config.replace("policy: keep-target", "policy: none"))
    assert [Run.load(folder).config.evaluation.policy for folder in (first, second)] == ["unseen", "all"]
    report = compare_runs([first, second], PAPER)
    assert report.protocol.endswith("history excluded, the target kept (keep-target), 30 users")
    assert [(test.users, test.difference) for _, test, _ in report.tests] == [(30, 0), (30, 0)]
    result = (first / "result.json").read_text()
    kept = "history excluded, the target kept (keep-target)"
    (first / "result.json").write_text(result.replace(kept, "nothing excluded (none)"))
    assert "nothing excluded (all), 30 users" in Run.load(first).result["protocol"]


def test_runs_under_different_protocols_are_refused(runs):
    folders = [runs("ids"), runs("default", 0, "evaluation.policy=all")]
    with pytest.raises(ConfigError, match="different protocol"):
        compare_runs(folders, PAPER)
