"""The same numbers on a GPU as on a processor; skipped where CUDA finds none."""

import json

import numpy as np
import pytest
import torch

from iisan.data.dataset import Dataset
from iisan.encoders.precision import choose_precision, feed_forward, time_products
from iisan.recipes import recipe
from iisan.runs.run import Run
from iisan.states.caching import cache
from iisan.states.sources import LiveStates
from iisan.train.run import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA finds no GPU here")

DEVICES = ("cpu", "cuda")


@pytest.mark.parametrize(
    ("method", "resident"), [("default", 8), ("default", 0), ("frozen", 8), ("frozen", 0), ("ids", 8)]
)
def test_training_gives_the_same_losses(prepared, tmp_path, method, resident):
    """States that lie on the GPU, and states that a thread reads and sends."""
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    steady = ["training.precision=fp32", "training.epochs=3", "training.batch_size=16", "sequence.dropout=0"]
    steady.append(f"training.resident_gb={resident}")
    losses = []
    for device in DEVICES:
        config = recipe(method).model_copy(update=folders).override([*steady, f"training.device={device}"])
        result = train(config, tmp_path / device)
        assert result["memory"] == {"cpu": "process", "cuda": "gpu"}[device]
        assert (result["device"] == torch.cuda.get_device_name()) == (device == "cuda")
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_caching_gives_the_same_states(prepared, tmp_path):
    dataset = Dataset.load(prepared.dataset)
    models = {"text": str(prepared.text), "image": str(prepared.image)}
    stores = [
        cache(dataset, tmp_path / device, models, dtype="fp32", precision="fp32", device=device)
        for device in DEVICES
    ]
    for modality in models:
        rows = torch.arange(len(stores[0][modality]))
        ours, theirs = (store[modality].read(rows) for store in stores)
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))


def test_training_computes_in_bf16(prepared, tmp_path):
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    quick = ["training.epochs=1", "training.batch_size=16", "training.precision=bf16"]
    result = train(recipe("default").model_copy(update=folders).override(quick), tmp_path / "run")
    assert (result["memory"], result["precision"]) == ("gpu", "bf16")
    assert np.isfinite(result["test"]["hr@10"])
    assert result["peak_memory_bytes"] > 0


def test_precision_is_measured():
    wide = time_products(torch.device("cuda"), [feed_forward(4096, 1024)], False)
    assert min(map(min, wide.values())) > 0
    assert choose_precision("cuda", "auto", [feed_forward(4096, 1024)]) in ("fp32", "bf16")


def test_a_run_of_a_numbered_gpu_is_loaded_onto_it(prepared, tmp_path):
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    quick = ["training.epochs=1", "training.batch_size=16", "training.device=cuda:0"]
    train(recipe("default").model_copy(update=folders).override(quick), tmp_path / "run")
    assert Run.load(tmp_path / "run").scorer.items.device == torch.device("cuda", 0)


def test_live_encoders_of_an_anchor_compute_on_the_gpu(prepared, tmp_path, monkeypatch):
    devices, compute = set(), LiveStates._compute

    def recorded(source, modality, items, device):
        devices.add(device.type)
        return compute(source, modality, items, device)

    monkeypatch.setattr(LiveStates, "_compute", recorded)
    config = recipe("uncached").model_copy(update={"dataset": prepared.dataset})
    quick = ("modalities=[text]", f"text.encoder={prepared.text}", "training.epochs=1", "training.batch_size=16")
    train(config.override((*quick, "training.device=cuda")), tmp_path / "run")
    assert devices == {"cuda"}
    assert Run.load(tmp_path / "run").anchoring.scorer.anchors["text"].device.type == "cpu"
