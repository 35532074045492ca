"""Experiments leave one record a run, failures included, and run nothing twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError
from iisan.experiments import run as run_module
from iisan.experiments.records import read_records, table
from iisan.experiments.run import _typical, run_experiment
from iisan.experiments.tables import EXPERIMENTS, Scale, even_levels, experiment, full_settings, kept_levels
from iisan.machine import processor_name
from iisan.nested import flatten
from iisan.recipes import paper, recipe
from iisan.states.caching import cache

QUICK = ("training.epochs=1", "training.batch_size=64", "loss.negatives=0", "training.precision=fp32")


@pytest.fixture
def scale(prepared):
    def method(name: str) -> Config:
        return recipe(name).override(QUICK)

    encoders = {"image": {"vit": str(prepared.image)}, "text": {"bert": str(prepared.text)}}
    return Scale(
        "demo",
        method,
        prepared.dataset,
        prepared.states,
        encoders,
        depths={"image": {"vit": 4}, "text": {"bert": 4}},
        captions=("seen",),
    )


def test_rows_are_recorded_failures_too_and_finished_ones_are_not_run_again(scale, tmp_path, monkeypatch):
    lines: list[str] = []
    folder = run_experiment("table-5", scale, tmp_path, seeds=(0, 1), say=lines.append)
    assert folder == tmp_path / "demo" / "table-5"
    two, four = table(read_records([folder]))
    # The store holds levels 0, 2, 4 and the last one.
    assert (two.name, len(two.runs), len(two.failures)) == ("2 blocks", 2, 0)
    assert (four.name, len(four.runs), len(four.failures)) == ("4 blocks", 0, 2)
    assert "level 1 is not in the store" in four.failures[0].reason
    assert sum("FAILED" in line for line in lines) == 2
    record = json.loads((folder / "2-blocks-seed1.json").read_text())
    assert record["config"]["training"]["seed"] == 1
    assert record["config"]["text"]["encoder"] == "bert"
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


def test_rows_that_run_the_encoders_have_one_seed_where_they_are_cut_short(scale, tmp_path, monkeypatch):
    monkeypatch.setitem(
        EXPERIMENTS, "table-3", lambda s: {"live": s.row("uncached"), "cached": s.row("ids", "modalities=[]")}
    )
    folder = run_experiment("table-3", replace(scale, live=("training.epochs=2",)), tmp_path, seeds=(3, 4))
    live, cached = table(read_records([folder]))
    assert ([run.seed for run in live.runs], live.runs[0].epochs, live.limited) == ([3], 2, True)
    assert [run.seed for run in cached.runs] == [3, 4]


@pytest.fixture
def again(scale, tmp_path, monkeypatch):
    """Runs one row, on the scale with changes, and returns its record and whether it was finished already."""

    def run(*overrides, **changes):
        monkeypatch.setitem(EXPERIMENTS, "table-6", lambda s: {"row": s.row("frozen", *overrides)})
        lines: list[str] = []
        folder = run_experiment("table-6", replace(scale, **changes), tmp_path, say=lines.append)
        record = json.loads((folder / "row-seed0.json").read_text())
        assert record["status"] == "finished", lines
        return record, lines == ["row, seed 0: finished already"]

    return run


def test_other_data_and_other_states_are_not_finished_though_their_folders_are_called_the_same(
    again, prepared, model_folders, tmp_path
):
    folders = {name: shutil.copytree(getattr(prepared, name), tmp_path / name) for name in ("dataset", "states")}
    first, _ = again(**folders)
    assert again(**folders) == (first, True)
    dataset = Dataset.load(prepared.dataset)
    dataset.with_captions("more", dataset.items["item_id"], {"column": "image"}).save(folders["dataset"])
    second, finished = again(**folders)
    assert (second["data"] != first["data"], second["states"] == first["states"], finished) == (True, True, False)
    shutil.rmtree(folders["states"])
    models = {name: str(getattr(prepared, name)) for name in ("image", "text")}
    cache(dataset, folders["states"], models, dtype="bf16")
    third, finished = again(**folders)
    assert (third["data"], finished) == (second["data"], False)
    assert third["states"].keys() == first["states"].keys()
    assert not set(third["states"].values()) & set(first["states"].values())


def test_other_states_of_an_anchor_alone_are_not_finished(again, prepared, tmp_path):
    states = shutil.copytree(prepared.states, tmp_path / "states")
    anchored = ("modalities=[text]", "anchor={enabled: true, modalities: [image]}")
    first, _ = again(*anchored, states=states)
    assert again(*anchored, states=states) == (first, True)
    shutil.rmtree(next(states.glob("image-*")))
    cache(Dataset.load(prepared.dataset), states, {"image": str(prepared.image)}, dtype="bf16")
    second, finished = again(*anchored, states=states)
    assert (second["states"] == first["states"], finished) == (True, False)
    assert second["anchor_states"] != first["anchor_states"]


def test_a_live_model_with_other_weights_is_not_finished(again, prepared, tmp_path):
    model = shutil.copytree(prepared.text, tmp_path / "bert")
    live = ("source=live", "modalities=[text]", f"text.encoder={model}")
    first, _ = again(*live)
    assert again(*live) == (first, True)
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    second, finished = again(*live)
    assert (second["encoders"] == first["encoders"], finished) == (False, False)


def test_records_that_name_no_data_count_as_before(again, tmp_path):
    record, _ = again()
    del record["data"], record["states"]
    (tmp_path / "demo" / "table-6" / "row-seed0.json").write_text(json.dumps(record))
    assert again() == (record, True)


def test_records_from_before_a_setting_existed_have_its_default(again, tmp_path):
    record, _ = again("evaluation.cutoffs=[1, 10]")
    del record["config"]["evaluation"]["shares"]
    (tmp_path / "demo" / "table-6" / "row-seed0.json").write_text(json.dumps(record))
    assert again("evaluation.cutoffs=[1, 10]") == (record, True)
    assert not again("evaluation.cutoffs=[1, 10]", "evaluation.shares=[0.7,0.1,0.2]")[1]


def test_rows_of_a_table_are_computed_in_one_precision(scale, tmp_path, monkeypatch):
    """Unless a row names another; what is measured may differ from row to row."""
    rows = {name: scale.row("default", f"training.precision={name}") for name in ("auto", "fp32", "bf16")}

    def failing(config, *_):
        return {"status": "failed", "error": "not run", "config": config.model_dump(mode="json")}

    monkeypatch.setitem(EXPERIMENTS, "table-6", lambda s: rows)
    monkeypatch.setattr(run_module, "_run", failing)
    records = read_records([run_experiment("table-6", scale, tmp_path)])
    found = {record.row: record.config["training"]["precision"] for record in records}
    assert found == {"auto": "fp32", "fp32": "fp32", "bf16": "bf16"}


def test_costs_are_measured_for_the_methods(scale, tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "table-3", lambda s: {"IISAN (cached)": s.row("default")})
    folder = run_experiment("table-3", scale, tmp_path, seeds=(0, 1))
    first, second = (record.efficiency for record in read_records([folder]))
    assert first["peak_memory_bytes"] > first["baseline_memory_bytes"] > 1e7
    records = read_records([folder])
    assert {(each.precision, each.device, each.processes) for each in records} == {("fp32", processor_name(), 1)}
    # Medians need not add up on a busy machine.
    seconds = [f"{stage}_seconds" for stage in ("data", "forward", "backward", "update")]
    assert all(first[name] > 0 for name in ("seconds_per_step", *seconds))
    # Trained and measured seconds are not the same thing and are never averaged.
    assert second.keys() == {"trainable_parameters", "total_parameters"}
    assert first["trainable_parameters"] == second["trainable_parameters"]


def test_seconds_of_an_epoch_are_typical_of_a_whole_cycle():
    # Training the encoders takes 9 and 11 seconds, the epochs between 1 and 2, once 50 as the machine was busy.
    assert _typical([9.0, 1.0, 2.0, 11.0, 1.0, 2.0, 10.0, 50.0], 3) == pytest.approx((10 + 1 + 2) / 3)
    assert _typical([4.0, 1.0, 5.0], 1) == 4.0
    assert _typical([4.0], 3) == 4.0


def test_kept_layers_of_the_paper():
    assert kept_levels(12) == [
        (0, 6, 12), (0, 4, 8, 12), (0, 3, 6, 9, 12), (0, 2, 4, 6, 8, 10, 12), tuple(range(13)),
    ]  # fmt: skip


def test_deeper_encoders_keep_about_as_many_layers():
    assert even_levels(12, 6) == even_levels(2, 6) == "layerdrop"
    assert even_levels(24, 6) == even_levels(80, 6) == "group-6"
    # LayerDrop keeps 3 of 6 layers; two evenly spaced ones are the first and the last.
    assert even_levels(6, 2) == "group-2"
    # Group layer-dropping cannot keep 7 of 16 layers, but 6.
    assert even_levels(16, 7) == "group-6"


@pytest.fixture
def unlike(scale):
    """Encoders of three sizes for text and two for images, of which only names and depths count."""
    depths = {"image": {"vit": 12, "deep vit": 24}, "text": {"bert": 12, "large": 24, "tiny": 2}}
    names = {modality: {short: f"org/{short}" for short in named} for modality, named in depths.items()}
    return replace(scale, encoders=names, depths=depths)


def test_scaling_changes_one_side_or_both(unlike):
    def seen(name):
        return {
            row: [(config.states_of(side).encoder, config.states_of(side).levels) for side in ("text", "image")]
            for row, config in experiment(name)(unlike).items()
        }

    bert, vit = ("org/bert", "layerdrop"), ("org/vit", "layerdrop")
    large, tiny, deep = ("org/large", "group-6"), ("org/tiny", "layerdrop"), ("org/deep vit", "group-6")
    assert seen("versa-scaling-text") == {"bert": [bert, vit], "large": [large, vit], "tiny": [tiny, vit]}
    assert seen("versa-scaling-image") == {"vit": [bert, vit], "deep vit": [bert, deep]}
    assert seen("versa-scaling-joint") == {"vit + bert": [bert, vit], "deep vit + large": [large, deep]}


def test_the_ablation_differs_from_its_first_row_in_one_thing_each(unlike):
    first, *others = (dict(flat) for flat in map(_flat, experiment("versa-ablation")(unlike).values()))
    assert (first["text.levels"], first["image.levels"]) == ("layerdrop", "group-6")
    assert [{key: other[key] for key in other if other[key] != first[key]} for other in others] == [
        {"image.levels": [0, 19, 20, 21, 22, 23, 24]},
        {"image.levels": [0, 1, 2, 3, 4, 5, 6]},
        {"items.transform": "pool"},
        {"items.intra": False},
        {"items.inter": False},
        {"source": "live"},
    ]


def _flat(config):
    return flatten(config.model_dump(mode="json"))


def test_the_published_settings_are_taken_as_they_are(unlike):
    assert full_settings("versa") == recipe("versa")
    rows = experiment("versa-microlens")(replace(unlike, method=full_settings))
    changed = {"dataset", "states", "modalities", "text.encoder", "image.encoder"}
    ours, published = dict(_flat(rows["IISAN-Versa"])), dict(_flat(recipe("versa")))
    assert {key for key in ours if ours[key] != published[key]} == changed
    assert [config.modalities for config in rows.values()] == [("image", "text"), ("text",), ("image",), ()]


def test_the_parts_of_versa_run_and_leave_sizes_and_costs(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "WITH_COSTS", ())
    kept = [f"{kind}.levels=[0,2,4]" for kind in ("text", "image")]
    monkeypatch.setitem(
        EXPERIMENTS,
        "versa-ablation",
        lambda s: {name: s.row("default", *kept, f"source={name}") for name in ("cached", "live")},
    )
    cached, live = read_records([run_experiment("versa-ablation", scale, tmp_path)])
    assert cached.encoder_parameters == live.encoder_parameters
    assert cached.encoder_parameters.keys() == {"text", "image"}
    assert cached.store_bytes["text"] > 1000
    assert live.store_bytes == {}
    assert cached.test == pytest.approx(live.test)


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
        assert found.items.embedding_dim == 64
        assert found.tuning == recipe(name).tuning
    assert full_settings("frozen").levels_of("text") == ("last",)
    assert full_settings("fft").text.max_tokens == 30


def test_an_unknown_experiment(scale, tmp_path):
    with pytest.raises(ConfigError, match=r"no experiment 'table-2'.*table-3"):
        run_experiment("table-2", scale, Path(tmp_path))
