"""Experiments leave one record a run, failures included, and run nothing twice."""

import json
from pathlib import Path

import pytest

from iisan.config import Config
from iisan.errors import ConfigError
from iisan.experiments import run as run_module
from iisan.experiments.records import read_records, table
from iisan.experiments.run import run_experiment
from iisan.experiments.tables import EXPERIMENTS, Scale, experiment, full_settings, kept_levels
from iisan.recipes import paper, recipe

QUICK = ("training.epochs=1", "training.batch=64", "loss.negatives=0", "training.precision=fp32")


@pytest.fixture
def scale(prepared):
    def method(name: str) -> Config:
        return recipe(name).override(QUICK)

    backbones = {"image": {"vit": str(prepared.image)}, "text": {"bert": str(prepared.text)}}
    return Scale("demo", method, prepared.dataset, prepared.states, backbones, depth=4)


def test_rows_are_recorded_failures_too_and_finished_ones_are_not_run_again(scale, tmp_path, monkeypatch):
    lines: list[str] = []
    folder = run_experiment("table-5", scale, tmp_path, seeds=(0, 1), say=lines.append)
    assert folder == tmp_path / "demo" / "table-5"
    two, four = table(read_records([folder]), order=list(experiment("table-5")(scale)))
    # The store holds levels 0, 2, 4 and the last one.
    assert (two.name, len(two.runs), len(two.failures)) == ("2 blocks", 2, 0)
    assert (four.name, len(four.runs), len(four.failures)) == ("4 blocks", 0, 2)
    assert "level 1 is not in the store" in four.failures[0].reason
    assert sum("FAILED" in line for line in lines) == 2
    record = json.loads((folder / "2-blocks-seed1.json").read_text())
    assert record["config"]["training"]["seed"] == 1
    assert record["config"]["text"]["backbone"] == "bert"
    assert str(tmp_path) not in json.dumps(record)
    assert record["test"]["hr@10"] == two.runs[1].test["hr@10"]
    assert [epoch["epoch"] for epoch in record["history"]] == [1]
    assert {tower: len(gates) for tower, gates in record["gates"].items()} == {"image": 2, "text": 2, "inter": 3}
    assert record["efficiency"]["trainable_parameters"] > 0

    monkeypatch.setattr(run_module, "train", lambda *_: pytest.fail("trained again"))
    lines.clear()
    monkeypatch.setitem(
        EXPERIMENTS,
        "table-5",
        lambda s: {"2 blocks": s.row("default", "text.levels=[0,2,4]", "image.levels=[0,2,4]")},
    )
    run_experiment("table-5", scale, tmp_path, seeds=(0, 1), say=lines.append)
    assert lines == ["2 blocks, seed 0: finished already", "2 blocks, seed 1: finished already"]


def test_equal_rows_of_two_experiments_share_a_training(scale, tmp_path):
    run_experiment("table-6", scale, tmp_path)
    run_experiment("balance", scale, tmp_path)
    one, other = (
        json.loads((tmp_path / "demo" / path).read_text())
        for path in ("table-6/adapter-sanb-seed0.json", "balance/intra-and-inter-seed0.json")
    )
    assert one["history"] == other["history"]
    # Three kinds of block and three further balances.
    assert len(list((tmp_path / "runs").iterdir())) == 6


def test_costs_are_measured_for_the_methods(scale, tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "table-3", lambda s: {"IISAN (cached)": s.row("default")})
    folder = run_experiment("table-3", scale, tmp_path, seeds=(0, 1))
    first, second = (record.efficiency for record in read_records([folder]))
    assert first["peak_memory_bytes"] > first["baseline_memory_bytes"] > 1e7
    assert first["seconds_per_step"] > 0
    stages = sum(first[f"{stage}_seconds"] for stage in ("data", "forward", "backward", "update"))
    assert stages == pytest.approx(first["seconds_per_step"], rel=0.5)
    # Trained and measured seconds are not the same thing and are never averaged.
    assert second.keys() == {"trainable_parameters", "total_parameters"}
    assert first["trainable_parameters"] == second["trainable_parameters"]


def test_kept_blocks_of_the_paper():
    assert kept_levels(12) == [
        (0, 6, 12), (0, 4, 8, 12), (0, 3, 6, 9, 12), (0, 2, 4, 6, 8, 10, 12), tuple(range(13)),
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_row_is_a_configuration_of_its_own(name, scale):
    rows = experiment(name)(scale)
    assert len({config.to_yaml() for config in rows.values()}) == len(rows) >= 1
    assert (experiment(name).__doc__ or "").strip()


def test_full_scale_takes_the_papers_settings():
    base = paper()
    assert full_settings("default").items == base.items
    for name in ("default", "fft", "lora", "frozen", "ids"):
        found = full_settings(name)
        assert (found.loss, found.training, found.evaluation) == (base.loss, base.training, base.evaluation)
        assert found.items.kind == recipe(name).items.kind
        assert found.items.width == 64
        assert found.tuning == recipe(name).tuning
    assert full_settings("frozen").text.levels == ("last",)
    assert full_settings("fft").text.max_tokens == 30


def test_an_unknown_experiment(scale, tmp_path):
    with pytest.raises(ConfigError, match=r"no experiment 'table-2'.*table-3"):
        run_experiment("table-2", scale, Path(tmp_path))
