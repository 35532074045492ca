"""Whole runs on a tiny dataset: what each setting changes, resuming, refusing, live against cached."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from iisan.api import Recommender
from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.data.splits import Split, leave_one_out
from iisan.encoders import precision
from iisan.errors import ConfigError, DataError, IisanError, RunError, StoreError
from iisan.evaluate.baselines import most_popular
from iisan.evaluate.metrics import metrics_from_frame, summarise
from iisan.evaluate.ranks import rank_targets
from iisan.experiments.robustness import decline
from iisan.machine import choose_device, processor_name
from iisan.nested import flatten, read_yaml
from iisan.recipes import RECIPES, recipe
from iisan.runs import run as run_module
from iisan.runs.assess import assess
from iisan.runs.run import Run
from iisan.train import loop
from iisan.train.folder import write_config
from iisan.train.run import train, train_and_validate
from iisan.train.setup import build, resolve

QUICK = ("training.epochs=2", "training.batch_size=16", "loss.negatives=5", "training.precision=fp32")


@pytest.fixture
def quick(prepared):
    def config(name="default", *overrides):
        return prepared.config(name, *QUICK, *overrides)

    return config


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_runs_and_leaves_a_whole_folder(name, quick, prepared, tmp_path):
    # The tiny store was made under other settings than the papers'.
    own = ("text.pooling=mean", "text.max_tokens=null") if name in ("paper", "reference", "versa") else ()
    # Group layer-dropping suits no four blocks of which every other is stored.
    own += ("text.levels=[0,4]", "image.levels=[0,4]") if name == "versa" else ()
    # No store tells a live run what its encoders are.
    own += (f"text.encoder={prepared.text}", f"image.encoder={prepared.image}")
    said = []
    result = train(quick(name, *own), tmp_path / "run", say=said.append)
    assert result["status"] == "finished"
    assert not any("not used" in line for line in said)
    without_states = name in ("ids", "similarity")
    assert result["items_without_content"] == (0 if without_states else 1)  # item 5
    assert any("1 of 30 items have no content" in line for line in said) == (not without_states)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.yaml", "model.safetensors", "items.parquet", "per_user.parquet"}
    if name != "similarity":
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    frame = pl.read_parquet(tmp_path / "run" / "per_user.parquet")
    assert metrics_from_frame(frame, (5, 10, 20))["hr@10"] == pytest.approx(result["test"]["hr@10"])
    run = Run.load(tmp_path / "run")
    again = assess(run, run.config, with_baselines=False)[name]
    assert again.metrics == pytest.approx(result["test"])
    # Training measured its best epoch on the same validation targets.
    again = assess(run, run.config, "validation", with_baselines=False)[name]
    for metric in ("users", "hr@10", "ndcg@10"):
        assert again.metrics[metric] == pytest.approx(result["validation"][metric])


def test_contents_without_states_are_named(quick, prepared, tmp_path):
    """As after a `cache` that was stopped between two encoders."""
    (tmp_path / "states").mkdir()
    (image,) = prepared.states.glob("image-*")
    (tmp_path / "states" / image.name).symlink_to(image)
    said = []
    train(quick().model_copy(update={"states": tmp_path / "states"}), tmp_path / "run", say=said.append)
    assert "modalities: image; not used: text" in said


CHANGES = {
    "recipe": None,  # a label
    "dataset": None,  # other data; see test_bad_paths
    "images": None,  # of live states that moved; see test_moving.py
    "states": None,
    "source": None,  # the same numbers by another way; see test_live_states_equal_cached_ones
    "modalities": "[text]",
    "text.encoder": None,  # expectations; see test_states_made_otherwise_are_refused
    "text.pooling": None,
    "text.max_tokens": None,
    "image.encoder": None,
    "image.pooling": None,
    "image.max_tokens": None,
    "text.levels": "[0,4]",
    "image.levels": "[0,4]",
    "columns": None,  # see test_modalities.py
    "tuning.method": None,  # see test_methods.py
    "tuning.last_n_layers": None,
    "tuning.rank": None,
    "tuning.alpha": None,
    "tuning.bottleneck": None,
    "tuning.learning_rate": None,
    "tuning.refresh": None,
    "tuning.gradient_checkpointing": None,  # the same gradients with less memory; see test_tuning.py
    "items.kind": "projection",
    "items.embedding_dim": "32",
    "items.intra": "false",
    "items.inter": "false",
    "items.block": "low-rank",
    "items.bottleneck": "8",
    "items.bottlenecks": "{inter: 8}",
    "items.transform": None,  # of unequal widths; see test_side_network.py
    "items.phm": None,  # of block phm; see test_settings_of_one_kind_of_block_change_the_run
    "items.rank": None,  # of block low-rank
    "items.activation": "gelu",
    "items.gated": "false",
    "items.gate_on": None,  # the mirrored gate, hence the same training up to rounding; see test_side_network.py
    "items.first_block": "gated",
    "items.projection": "double",
    "items.concatenation": "inter-last",
    "items.fusion_scale": "1.0",
    "items.level_norm": "none",
    "sequence.kind": "gru4rec",
    "sequence.max_length": "4",
    "sequence.num_layers": "2",
    "sequence.num_heads": "4",
    "sequence.dropout": "0.5",
    "sequence.similarity": "dot",
    "sequence.temperature": "0.2",
    "anchor.enabled": "false",
    "anchor.modalities": "[text]",
    "anchor.width": "4",
    "anchor.shrinkage": "30",
    "loss.candidates": None,  # see test_full_softmax_changes_the_run
    "loss.negatives": "9",
    "loss.pool": None,  # every item of the tiny data is trained on; see test_loss_and_batches.py
    "loss.exclude": "window",
    "loss.reduction": "sum",
    "optimizer.learning_rate": "0.01",
    "optimizer.san_learning_rate": "0.01",
    "optimizer.gate_learning_rates": "{inter: 0.1}",
    "optimizer.projection_learning_rates": None,  # see test_rates_reach_their_parameters
    "training.batch_size": "8",
    "training.gradient_accumulation": "2",
    "training.epochs": "1",
    "training.early_stopping_patience": None,  # see test_training_stops_and_returns_the_best_epoch
    "training.windows": "last",
    "training.seed": "1",
    "training.precision": "bf16",
    "training.device": None,
    "training.resident_gb": None,  # see test_resident_states_are_those_that_are_read
    "training.max_grad_norm": "0.001",
    "training.ema_decay": "0",
    "training.modality_dropout": "0.5",
    "evaluation.split": "temporal",
    "evaluation.shares": None,  # see test_splits.py
    "evaluation.held_out_seed": None,  # see test_splits.py
    "evaluation.policy": "all",
    "evaluation.cutoffs": "[1, 10]",
    "evaluation.every": "2",
    "evaluation.validation_users": "20",
    "evaluation.select": None,  # see test_training_stops_and_returns_the_best_epoch
}


def test_the_list_of_changes_is_complete():
    assert set(CHANGES) == {key for key, _ in flatten(Config().model_dump(mode="json"))}


def outcome(config, folder):
    train(config, folder)
    metrics = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    steady = [{k: v for k, v in record.items() if "seconds" not in k} for record in metrics]
    return steady, json.loads((folder / "result.json").read_text())["test"]


@pytest.fixture(scope="session")
def plain_outcome(prepared, tmp_path_factory):
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    config = recipe("default").model_copy(update=folders).override(QUICK)
    return outcome(config, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("key", [key for key, value in CHANGES.items() if value is not None])
def test_every_setting_changes_something(key, quick, tmp_path, plain_outcome):
    assert outcome(quick("default", f"{key}={CHANGES[key]}"), tmp_path / "run") != plain_outcome


def test_the_same_configuration_gives_the_same_run(quick, tmp_path, plain_outcome):
    assert outcome(quick(), tmp_path / "run") == plain_outcome


def test_settings_of_one_kind_of_block_change_the_run(quick, tmp_path):
    for kind, setting, values in (("phm", "phm", "24"), ("low-rank", "rank", "12")):
        one, other = (
            outcome(
                quick("default", f"items.block={kind}", f"items.{setting}={value}"), tmp_path / f"{kind}{value}"
            )
            for value in values
        )
        assert one != other


def test_full_softmax_changes_the_run(quick, tmp_path, plain_outcome):
    found = outcome(quick("default", "loss.negatives=0", "loss.candidates=all"), tmp_path / "run")
    assert found != plain_outcome


def test_rates_reach_their_parameters(quick):
    config = quick(
        "reference", "text.pooling=mean", "text.max_tokens=null", "optimizer.projection_learning_rates.inter=0.5"
    )
    network = build(resolve(config)).network
    rates = {
        id(parameter): group["lr"]
        for group in loop.parameter_groups(network, config.optimizer, config.tuning.learning_rate)
        for parameter in group["params"]
    }
    by_name = {name: rates[id(parameter)] for name, parameter in network.trainable()}
    assert len(by_name) == len(rates)
    assert by_name["items.towers.text.blocks.down.weight"] == 1e-4
    assert by_name["items.towers.inter.blocks.up.bias"] == 1e-4
    assert by_name["items.towers.image.gates"] == 1e-4
    assert by_name["items.towers.text.gates"] == 2e-4
    assert by_name["items.dense.inter.weight"] == 0.5
    assert by_name["items.dense.text.weight"] == 5e-5
    assert by_name["items.dense.image.bias"] == 1e-4
    assert by_name["items.projections.image.weight"] == 2e-4
    assert by_name["sequence.blocks.0.query.weight"] == 2e-4


def fit_with(validation, quick, tmp_path, *overrides):
    """Train against a scripted validation metric; returns the trainer and its progress."""
    setup = build(resolve(quick("default", "training.epochs=9", *overrides)))
    batches = loop.Batches(
        setup.split, 10, 16, setup.config.loss, setup.config.training.windows, setup.config.training.seed
    )
    values, seen = iter(validation), []

    def validate(network):
        seen.append({name: value.detach().clone() for name, value in network.trainable()})
        return next(values)

    trainer = loop.Trainer(setup.network, batches, setup.config, validate, tmp_path)
    return trainer, trainer.fit(), seen


def test_the_optimizer_is_that_of_torch():
    torch.manual_seed(0)
    found = []
    for kind in (loop.Adam, torch.optim.Adam):
        weights = [torch.linspace(-1, 1, 7).requires_grad_(), torch.ones(3, 2).requires_grad_()]
        optimizer = kind([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.01}], fused=True)
        for step in range(4):
            if step == 2:
                state = optimizer.state_dict()
                optimizer = kind([{"params": [each]} for each in weights], fused=True)
                optimizer.load_state_dict(state)
            optimizer.zero_grad(set_to_none=True)
            sum((each**3).sum() for each in weights).backward()
            optimizer.step()
        found.append([*weights, *(state["exp_avg_sq"] for state in optimizer.state.values())])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_training_does_not_wait_for_the_compiler_of_torch(quick, tmp_path):
    write_config(tmp_path, quick("ids"))
    code = (
        "import sys; from pathlib import Path\n"
        "from iisan.recipes import load_config; from iisan.train.run import train\n"
        "train(load_config(sys.argv[1]), Path(sys.argv[2])); sys.exit('torch._dynamo' in sys.modules)"
    )
    arguments = [str(tmp_path / "config.yaml"), str(tmp_path / "run")]
    assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == 0


def test_training_stops_and_returns_the_best_epoch(quick, tmp_path):
    script = [{"hr@10": v, "ndcg@10": n} for v, n in [(1, 1), (3, 2), (3, 5), (2, 3), (1, 2), (1, 2)]]
    trainer, progress, seen = fit_with(script, quick, tmp_path / "a", "training.early_stopping_patience=2")
    assert (progress.best_epoch, progress.epoch) == (2, 4)
    for name, value in trainer.network.trainable():
        assert torch.equal(value, seen[1][name])
    _, progress, _ = fit_with(
        script, quick, tmp_path / "b", "training.early_stopping_patience=3", "evaluation.select=ndcg@10"
    )
    assert (progress.best_epoch, progress.epoch) == (3, 6)


def test_validation_every_few_epochs(quick, tmp_path):
    """Epochs 2, 4, 6, 8 are validated, and early stopping counts these; the last epoch is, too."""
    patience = "training.early_stopping_patience=2"
    script = [{"hr@10": value} for value in (2, 3, 1, 3)]
    trainer, progress, seen = fit_with(script, quick, tmp_path / "a", "evaluation.every=2", patience)
    assert (progress.best_epoch, progress.epoch, len(seen)) == (4, 8, 4)
    assert [record["epoch"] for record in progress.history if "hr@10" in record] == [2, 4, 6, 8]
    for name, value in trainer.network.trainable():
        assert torch.equal(value, seen[1][name])
    script = [{"hr@10": value} for value in (2, 1, 3)]
    _, progress, _ = fit_with(script, quick, tmp_path / "b", "evaluation.every=4", patience)
    assert (progress.best_epoch, progress.epoch) == (9, 9)


def test_validation_on_a_sample_of_users(quick, tmp_path):
    said = []
    few, more = (quick("default", f"evaluation.validation_users={n}", "evaluation.policy=all") for n in (20, 99))
    result = train(few, tmp_path / "run", say=said.append)
    assert (result["validation"]["users"], result["test"]["users"]) == (20, 50)
    selection = "hr@10 of the leave-one-out validation, 20 users, a fixed sample of 50"
    assert result["selection"] == selection
    assert f"the best epoch is selected by {selection}" in said
    assert train(more, tmp_path / "all")["validation"]["users"] == 50


def test_an_epoch_without_validation_is_logged_without_it(quick, tmp_path):
    said = []
    train(quick("default", "evaluation.every=2"), tmp_path / "run", say=said.append)
    one, two = (line for line in said if line.startswith("epoch"))
    assert "validation" not in one
    assert "validation HR@10" in two


class Killed(BaseException):
    pass


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_interrupted_run_resumes_bit_for_bit(epoch, quick, tmp_path, monkeypatch):
    config = quick("default", "training.epochs=3")
    train(config, tmp_path / "whole")
    step = loop.Trainer._step
    state = {"steps": 0}

    def dying_step(self, batch):
        state["steps"] += 1
        if state["steps"] == (epoch - 1) * len(self.batches) + 2:
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(loop.Trainer, "_step", dying_step)
    with pytest.raises(Killed):
        train(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    monkeypatch.setattr(loop.Trainer, "_step", step)
    train(config, tmp_path / "killed")
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_every_epoch_is_watched_even_if_its_checkpoint_was_not_written(quick, tmp_path, monkeypatch):
    config = quick("default", "training.epochs=3")
    save, watched = loop.save_checkpoint, []

    def dying_save(path, network, optimizer, best, average, progress, inputs):
        if progress.epoch == 2:
            raise Killed
        save(path, network, optimizer, best, average, progress, inputs)

    monkeypatch.setattr(loop, "save_checkpoint", dying_save)
    with pytest.raises(Killed):
        train_and_validate(config, tmp_path / "killed", watched.append)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    metrics = train_and_validate(config, tmp_path / "killed", watched.append)
    assert [record["epoch"] for record in watched] == [1, 2, 2, 3]
    assert watched[1]["hr@10"] == watched[2]["hr@10"]
    result = train(config, tmp_path / "run")
    assert {name: result["validation"][name] for name in ("hr@10", "ndcg@10", "epoch")} == {
        name: metrics[name] for name in ("hr@10", "ndcg@10", "epoch")
    }
    assert not (tmp_path / "killed" / "result.json").exists()


def test_a_finished_run_is_left_alone(quick, tmp_path):
    first = train(quick(), tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    lines = []
    assert train(quick(), tmp_path / "run", say=lines.append) == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    assert "finished already" in lines[0]


def test_one_process_writes_a_run_folder(quick, tmp_path, monkeypatch):
    config, out = quick("default", "training.epochs=1"), tmp_path / "run"
    write, refused = loop.Trainer._write_metrics, []

    def meanwhile(trainer):
        with pytest.raises(RunError) as error:
            train(config, out)
        refused.append(str(error.value))
        write(trainer)

    monkeypatch.setattr(loop.Trainer, "_write_metrics", meanwhile)
    assert train(config, out)["status"] == "finished"
    assert refused == [f"'{out}' is being written by another process; expected one writer: wait for it to end"]


def test_another_configuration_is_refused(quick, tmp_path):
    train(quick("default", "training.epochs=1"), tmp_path / "run")
    with pytest.raises(RunError, match=r"training\.seed = 0, not 4"):
        train(quick("default", "training.epochs=1", "training.seed=4"), tmp_path / "run")


@pytest.fixture
def timings(monkeypatch):
    """Seconds in either precision, which a test may change, and the products that were timed."""
    seconds = {"fp32": [2.0], "bf16": [1.0], "products": []}
    timer = lambda _, products, training: seconds["products"].append((products, training)) or seconds  # noqa: E731
    monkeypatch.setattr(precision, "time_products", timer)
    return seconds


def test_precision_is_measured_once_and_kept(quick, prepared, tmp_path, timings, monkeypatch):
    """By runs resumed after a kill in the first or second epoch, or after the end, and with a moved dataset."""
    out, config = tmp_path / "run", quick("default", "training.precision=auto", "training.epochs=2")
    step, steps = loop.Trainer._step, []

    def dying_step(self, batch):
        steps.append(self.network.autocast)
        chosen = read_yaml(out / "config.yaml")["training"]["precision"]
        assert chosen == "bf16"
        if len(steps) in (2, 2 + len(self.batches) + 2):
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(loop.Trainer, "_step", dying_step)
    for _ in range(2):
        with pytest.raises(Killed):
            train(config, out)
        timings["bf16"] = [9.0]
        moved = shutil.copytree(prepared.dataset, tmp_path / "moved", dirs_exist_ok=True)
        config = config.override([f"dataset={moved}"])
    result = train(config, out)
    assert all(steps)
    assert (result["precision"], result["status"]) == ("bf16", "finished")
    assert train(config, out) == result
    assert len(timings["products"]) == 1
    with pytest.raises(RunError, match=r"training\.precision = 'bf16', not 'fp32'"):
        train(quick("default", "training.precision=fp32", "training.epochs=2"), out)
    # Another run in a folder that was left before its first epoch measures again.
    monkeypatch.setattr(loop.Trainer, "_step", step)
    for path in set(out.iterdir()) - {out / "config.yaml"}:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    assert train(quick("default", "training.precision=auto", "training.epochs=1"), out)["precision"] == "fp32"


def test_the_products_of_a_method_are_timed(quick, prepared, tmp_path, timings):
    live = ("source=live", "modalities=[text]", f"text.encoder={prepared.text}")
    side, projection, fed = [(30, 16, 8), (30, 8, 16)], (30, 16, 64), (30, 16, 64)
    for name, *changes, expected in (
        ("default", "items.bottleneck=8", [*side, *side]),
        ("default", "items.bottleneck=8", "training.batch_size=1", "modalities=[text]", "loss.negatives=3",
         "sequence.max_length=4", [(8, 16, 8), (8, 8, 16)]),
        ("frozen", "items.embedding_dim=64", [projection, projection]),
        ("default", *live, "items.bottleneck=8", [fed, *side]),
    ):  # fmt: skip
        timings["products"].clear()
        config = quick(name, "training.precision=auto", *changes)
        assert build(resolve(config)).config.training.precision == "bf16"
        assert timings["products"] == [(expected, True)]
    timings["products"].clear()
    assert build(resolve(quick("ids", "training.precision=auto"))).config.training.precision == "fp32"
    assert timings["products"] == []


def test_a_result_says_what_was_computed_with(quick, tmp_path):
    result = train(quick("default", "training.precision=bf16", "training.device=cpu"), tmp_path / "run")
    assert result["device"] == processor_name()
    assert (result["precision"], result["memory"], result["threads"]) == (
        "bf16",
        "process",
        torch.get_num_threads(),
    )
    assert 1e8 < result["peak_memory_bytes"] < 1e11


def test_a_run_of_another_gpu_is_loaded_onto_the_default_device(quick, tmp_path):
    """And computed with there by whatever builds its network again."""
    train(quick(), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("device: auto", "device: cuda:1"))
    run = Run.load(tmp_path / "run")
    assert run.scorer.items.device == choose_device("auto")
    assert run.config.training.device == "auto"
    assert len(Recommender(run).recommend(history=["i3"], k=4)) == 4
    assert decline(tmp_path / "run", "text", [0.0], "remove").values("hr@10") == [run.result["test"]["hr@10"]]


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_a_run_is_loaded_onto_its_own_device_where_that_is(device, quick, tmp_path, monkeypatch):
    train(quick(), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("device: auto", f"device: {device}"))
    moved = []
    monkeypatch.setattr(run_module, "choose_device", lambda name: moved.append(name) or torch.device("cpu"))
    monkeypatch.setattr(run_module, "usable_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Run.load(tmp_path / "run").config.training.device == device
    assert moved == [device]


@pytest.fixture
def moved(prepared, tmp_path):
    """Prepares other data in the place of the run's: fewer interactions, or the items in another order."""
    folder = shutil.copytree(prepared.dataset, tmp_path / "data")

    def change(reorder):
        dataset = Dataset.load(folder)
        items = dataset.items.reverse() if reorder else dataset.items
        interactions = dataset.interactions() if reorder else dataset.interactions().slice(20)
        shutil.rmtree(folder)
        Dataset.from_frames(items, interactions).save(folder)

    return folder, change


def test_a_run_does_not_go_on_with_other_data(quick, tmp_path, moved):
    folder, change = moved
    config, out = quick("default", f"dataset={folder}"), tmp_path / "run"
    train(config, out)
    (out / "result.json").rename(tmp_path / "result.json")
    change(reorder=False)
    with pytest.raises(RunError, match=r"checkpoint.*was trained with other data than are given now"):
        train(config, out)
    (tmp_path / "result.json").rename(out / "result.json")
    with pytest.raises(RunError, match="was trained with other data"):
        train(config, out)


def test_a_run_is_not_evaluated_on_other_items(quick, tmp_path, moved):
    folder, change = moved
    train(quick("default", f"dataset={folder}"), tmp_path / "run")
    change(reorder=True)
    run = Run.load(tmp_path / "run")
    with pytest.raises(DataError, match="its items have another order"):
        assess(run, run.config, with_baselines=False)
    # Histories are read by item ids, whatever their order.
    recommender = Recommender(run)
    history = recommender.dataset.interactions().filter(user_id="u3")["item_id"].to_list()
    by_id = recommender.recommend(history=history, k=4)
    assert recommender.recommend(user="u3", k=4)["item_id"].to_list() == by_id["item_id"].to_list()


def test_under_another_split_the_run_ranks_only_what_is_new_to_it(quick, tmp_path):
    train(quick(), tmp_path / "run")
    run = Run.load(tmp_path / "run")
    other = run.config.override(["evaluation.split=temporal", "evaluation.policy=all"])
    found = assess(run, other)
    popular, found = found["most popular"], found["default"]
    setup = build(resolve(quick("default", "evaluation.split=temporal")))
    sequences, queries = setup.dataset.sequences, setup.split.test
    trained = leave_one_out(sequences, 30)
    # Its own test targets alone: the item before was selected on.
    new = queries.ends == sequences.offsets[1:][queries.users] - 1
    assert 0 < new.sum() < (queries.ends >= trained.train_ends[queries.users]).sum() < len(queries)
    assert found.metrics["users"] == new.sum()
    times = sequences.timestamps
    learned = np.concatenate([times[a:b] for a, b in zip(trained.train_starts, trained.train_ends, strict=True)])
    later = np.mean([(learned > times[end]).mean() for end in queries.ends[new]])
    assert found.protocol.startswith(
        f"temporal test of a run trained under leave-one-out ({(~new).sum()} of {len(new)} targets left out, "
        "which it was trained or selected on), full ranking"
    )
    assert f"({later:.1%} of all training interactions are later than a target, on average)" in found.future
    # The baselines know what the run knows.
    queries = queries[np.flatnonzero(new)]
    ranks = rank_targets(most_popular(trained), queries, "all")
    assert popular.metrics["hr@10"] == summarise(ranks.above, ranks.ties, pl.Series(queries.users), (10,))["hr@10"]


def test_what_would_rank_nobody_is_refused_before_the_first_epoch(tmp_path):
    items = pl.DataFrame({"item_id": ["a", "b", "c"]})
    # Everyone's last two items are known to them.
    log = pl.DataFrame({"user_id": list("uuuuvvvv"), "item_id": list("abababab")})
    Dataset.from_frames(items, log).save(tmp_path / "data")
    config = recipe("ids").override([*QUICK, f"dataset={tmp_path / 'data'}"])
    with pytest.raises(DataError, match="all 2 targets of the leave-one-out test are in their") as caught:
        train(config, tmp_path / "run")
    assert "the policy all" in caught.value.cure
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    everything = config.override(["evaluation.policy=all"])
    assert train(everything, tmp_path / "run")["test"]["users"] == 2


def test_a_protocol_with_nothing_unknown_is_refused(quick, tmp_path, monkeypatch):
    train(quick(), tmp_path / "run")
    run = Run.load(tmp_path / "run")
    monkeypatch.setattr(Split, "after", lambda self, trained: replace(self, test=self.test[:0]))
    other = run.config.override(["evaluation.split=temporal"])
    with pytest.raises(DataError, match=r"trained or selected on all \d+ targets of the temporal test"):
        assess(run, other)
    assert assess(run, other, "validation", with_baselines=False)


def test_what_failed_before_its_first_epoch_leaves_its_folder_free(quick, tmp_path):
    with pytest.raises(StoreError):
        train(quick("default", f"states={tmp_path}", "modalities=[text]"), tmp_path / "run")
    (tmp_path / "run" / ".config.yaml.x.part").touch()
    (tmp_path / "run" / "tensorboard").mkdir()
    assert train(quick(), tmp_path / "run")["status"] == "finished"
    assert not list((tmp_path / "run").glob(".*.part"))


def test_metrics_that_a_kill_kept_back_are_written_later(quick, tmp_path):
    out = tmp_path / "run"
    train(quick(), out)
    metrics = out / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.unlink()
    (out / "result.json").unlink()
    train(quick(), out)
    assert metrics.read_text() == whole


def test_a_damaged_result_says_what_to_do(quick, tmp_path):
    out = tmp_path / "run"
    train(quick(), out)
    (out / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"is damaged .*delete it"):
        train(quick(), out)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"photo.jpg": "", ".photo.part": "", ".config.yaml.x.part": ""}, "neither a run folder nor empty"),
        ({"config.yaml": "recipe: default # mine\n"}, "neither a run folder nor empty"),
        ({"config.yaml": "whole", "thesis.txt": ""}, "holds a run with"),
    ],
)
def test_a_folder_with_something_else_is_refused(files, sentence, quick, tmp_path):
    """And left as it is."""
    files = {name: recipe("ids").to_yaml() if text == "whole" else text for name, text in files.items()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=sentence):
        train(quick(), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_damaged_configuration_is_one_sentence(quick, tmp_path):
    train(quick(), tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        train(quick(), tmp_path / "run")


def test_a_failure_is_written_down(quick, tmp_path):
    config = quick("default", "optimizer.learning_rate=1e30", "training.epochs=3")
    with pytest.raises(IisanError, match=r"not finite|finite (loss|numbers)"):
        train(config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "finite" in result["error"]
    with pytest.raises(RunError, match="failed"):
        Run.load(tmp_path / "run")


def test_live_states_equal_cached_ones(quick, model_folders):
    live = quick(
        "default",
        "source=live",
        "modalities=[image, text]",
        f"text.encoder={model_folders['bert']}",
        f"image.encoder={model_folders['vit']}",
    )
    cached, live = build(resolve(quick())).network, build(resolve(live)).network
    torch.testing.assert_close(live.item_embeddings(), cached.item_embeddings(), atol=1e-5, rtol=1e-5)
    assert [name for name, _ in live.trainable()] == [name for name, _ in cached.trainable()]


def test_scores_do_not_depend_on_the_batch(quick):
    setup = build(resolve(quick()))
    from iisan.runs.run import network_scorer

    scorer = network_scorer(setup.network)
    histories = setup.split.test.histories(10)
    together = scorer.start(histories)
    for row in range(0, len(histories), 7):
        torch.testing.assert_close(scorer.start(histories[row : row + 1]), together[row : row + 1])
    one = rank_targets(scorer, setup.split.test, "all", batch=3, block=7)
    two = rank_targets(scorer, setup.split.test, "all")
    assert (one.above == two.above).mean() > 0.98  # ranks may flip where scores differ by rounding alone


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("text.pooling=cls", "pooling 'mean'; expected pooling 'cls'"),
        ("text.max_tokens=7", "max_tokens .*; expected max_tokens 7"),
        ("text.encoder=other/model", "expected encoder 'other/model'"),
        ("image.pooling=mean", "pooling 'cls'; expected pooling 'mean'"),
        ("text.levels=[0, 3]", "level 3 is not in the store"),
    ],
)
def test_states_made_otherwise_are_refused(override, sentence, quick, tmp_path):
    overrides = ("text.pooling=null",) if "pooling" not in override else ()
    with pytest.raises(StoreError, match=sentence):
        train(quick("default", *overrides, override), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "error", "sentence"),
    [
        ("dataset=null", ConfigError, "no dataset is given"),
        ("states=null", ConfigError, "no modality is named"),
        ("training.device=warp", ConfigError, "training.device 'warp' cannot be used here"),
        ("training.device=meta", ConfigError, "training.device 'meta' cannot be used here"),
    ],
)
def test_bad_paths(override, error, sentence, quick, tmp_path):
    with pytest.raises(error, match=sentence):
        train(quick("default", override), tmp_path / "run")


@pytest.mark.parametrize(("name", "what"), [("default", "states"), ("partial", "token states")])
def test_a_folder_without_stores_is_named(name, what, quick, tmp_path):
    with pytest.raises(ConfigError, match=f"'{tmp_path}' holds no {what} of this dataset; expected"):
        train(quick(name, f"states={tmp_path}"), tmp_path / "run")


def test_items_that_are_not_in_the_store_are_counted(prepared, quick, tmp_path):
    dataset = Dataset.load(prepared.dataset)
    items = dataset.items.with_columns(text=pl.concat_str(pl.lit("new "), "text"))
    changed = Dataset.from_frames(items, dataset.interactions()).save(tmp_path / "dataset")
    with pytest.raises(StoreError, match="28 items are not in the store"):
        train(quick("default", f"dataset={changed.folder}"), tmp_path / "run")


def test_a_damaged_run_is_refused(quick, tmp_path):
    train(quick("default", "training.epochs=1"), tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    shutil.copy(model, tmp_path / "model")
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(RunError, match="is damaged"):
        Run.load(tmp_path / "run")
    with pytest.raises(RunError, match="does not exist"):
        Run.load(tmp_path / "nothing")


def test_a_damaged_checkpoint_says_what_to_do(quick, tmp_path):
    out = tmp_path / "run"
    train(quick("default", "training.epochs=1"), out)
    (out / "result.json").unlink()
    (out / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"cannot be read.*delete it"):
        train(quick("default", "training.epochs=1"), out)


def test_epochs_are_tensorboard_events(quick, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(quick(), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("hr@10")] == [1, 2]
