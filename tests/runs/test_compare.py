"""Runs side by side."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from iisan.errors import ConfigError
from iisan.evaluate.significance import holm
from iisan.evaluate.tpme import PAPER
from iisan.printing import print_comparison
from iisan.recipes import recipe
from iisan.runs.compare import compare_runs
from iisan.runs.conditions import conditions, why_not_compared
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


def elsewhere(folder, **facts):
    """Let a run's result say that it was trained under other conditions."""
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    return folder


OTHER = {"machine": {"processor": "Abacus", "cores": 8}, "device": "Abacus"}


def test_costs_are_compared_under_one_condition(runs, capsys):
    report = compare_runs([runs("default"), runs("ids")], PAPER)
    result = report.groups[0].runs[0].result
    same = f"{result['device']}, {result['machine']['cores']} cores, 1 thread, fp32"
    assert report.conditions == {"default": [same], "ids": [same]}
    assert list(report.costs) == ["default", "ids"]
    assert report.as_json()["costs_left_out"] is None
    print_comparison(report)
    said = " ".join(capsys.readouterr().out.split())
    assert "TPME" in said
    assert f"trained on {same}" in said


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        (OTHER, "Abacus, 8 cores, "),
        ({"precision": "bf16"}, "bf16"),
        ({"threads": 77}, "77 threads"),
        ({"processes": 2}, "2 processes"),
        ({"device": "GPU 9000"}, "GPU 9000, "),
        ({"precision": None}, "unknown precision"),
    ],
)
def test_costs_of_unlike_conditions_are_left_out_with_one_line(runs, capsys, facts, named):
    folders = [runs("default"), elsewhere(runs("ids"), **facts)]
    report = compare_runs(folders, PAPER)
    assert (report.costs, report.tpme) == ({}, {})
    assert len(report.tests) == 2
    print_comparison(report)
    out = capsys.readouterr().out
    assert "s / epoch" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("costs and TPME are left out")]
    assert named in line
    assert "(default); " in line
    assert line.endswith("(ids): train all alike, such as with --set training.precision=fp32")
    found = report.as_json()
    assert named in found["costs_left_out"]
    assert [named in found["methods"][name]["conditions"][0] for name in ("default", "ids")] == [False, True]
    assert found["methods"]["ids"].keys() == {"runs", "conditions", "test", "parameters", "tpme"}


def test_quality_is_averaged_over_machines_and_moved_folders(runs, prepared, tmp_path):
    """One configuration, whose second seed was trained on another machine with the folders elsewhere."""
    first, second = runs("ids"), elsewhere(runs("ids", 1), **OTHER, precision="bf16")
    config = second / "config.yaml"
    text = config.read_text().replace(str(prepared.dataset), "/data/dataset")
    config.write_text(text.replace("device: auto", "device: cpu").replace("precision: fp32", "precision: bf16"))
    report = compare_runs([first, second], PAPER)
    (group,) = report.groups
    assert group.metric("hr@10").count == 2
    assert report.costs == {}
    assert [condition.startswith("Abacus, 8 cores") for condition in report.conditions["ids"]] == [False, True]


def test_runs_asked_for_other_precisions_are_other_methods(runs):
    fp32 = runs("ids", 0, "training.precision=fp32")
    assert len(compare_runs([fp32, runs("ids", 1)], PAPER).groups) == 2


def test_runs_on_other_states_are_other_methods(runs):
    """Though nothing in their settings tells: the folders of states may have any name."""
    first, second = runs("default"), elsewhere(runs("default", 1), states={"text": "another fingerprint"})
    assert len(compare_runs([first, second], PAPER).groups) == 2


def test_runs_of_version_0_1_are_compared_with_each_other():
    old = {"machine": {"processor": "AMD EPYC", "cores": 2}, "device": "cpu", "threads": 1, "processes": 1}
    assert conditions(old) == "AMD EPYC, 2 cores, 1 thread, unknown precision"
    assert why_not_compared({"A": [conditions(old)], "B": [conditions(old)] * 2}) == ""
    gpu = {**old, "device": "GPU 9000", "precision": "bf16", "processes": 2}
    assert conditions(gpu) == "GPU 9000, AMD EPYC, 2 cores, 1 thread, 2 processes, bf16"
    assert conditions({}) == "unknown processor, unknown precision"
