"""Several processes on one batch each do a part of what one does alone, and together exactly that."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iisan.config import Config
from iisan.encoders import precision
from iisan.errors import ConfigError
from iisan.train.batches import Batches
from iisan.train.loop import batch_loss
from iisan.train.processes import Processes, joined
from iisan.train.run import train
from iisan.train.setup import build, resolve

#: Dropout off: each process draws its own.
STEADY = ("training.precision=fp32", "training.device=cpu", "sequence.dropout=0", "training.batch_size=16")


def configured(prepared, *changes: str) -> Config:
    return prepared.config("default", *STEADY, *changes)


def together(*arguments: str | Path, count: int = 2) -> str:
    """Standard output of some processes that torchrun starts."""
    # Loopback alone: a machine's own name need not lead anywhere.
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1")
    command = [sys.executable, *torchrun, f"--nproc-per-node={count}", *map(str, arguments)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_shared_gradients_are_those_of_the_whole_batch(prepared, tmp_path):
    # Items without text or image are in the data; three processes have unequal shares.
    path = tmp_path / "config.yaml"
    path.write_text(configured(prepared, "loss.negatives=7").to_yaml())
    out = together(__file__, path, count=3)
    assert out.count("the same loss and gradients") == 3


def compare_gradients(path: Path) -> None:
    """What each process checks: the loss and the gradient of every weight; of two windows one process has none."""
    from iisan.recipes import load_config

    config = load_config(str(path), [])
    with joined(torch.device("cpu")) as processes:
        assert processes.size == 3
        setup = build(resolve(config))
        network = setup.network.train()
        batches = Batches(
            setup.split, config.sequence.max_length, config.training.batch_size, config.loss, "last", 0
        )
        full, few = batches.collate(np.arange(16), np.arange(7)), batches.collate(np.array([3, 4]), np.array([9]))
        for batch, reduction in itertools.product((full, few), ("mean", "sum")):
            found = []
            for who in (Processes(), processes):
                network.zero_grad()
                value = batch_loss(network, batch.part(who), reduction, who)
                value.backward()
                who.add_gradients(weight for _, weight in network.trainable())
                gradients = {name: weight.grad for name, weight in network.trainable()}
                found.append((who.add(value.detach()), gradients))
            (alone, own), (shared, summed) = found
            torch.testing.assert_close(shared, alone)
            for name, gradient in own.items():
                rounding = 1e-5 * float(gradient.abs().max())
                torch.testing.assert_close(summed[name], gradient, rtol=1e-4, atol=rounding, msg=name)
    print("the same loss and gradients")


def test_two_processes_train_the_same_run(prepared, tmp_path):
    changes = ("training.epochs=3", "loss.negatives=5", "training.gradient_accumulation=2")
    alone = train(configured(prepared, *changes), tmp_path / "alone")
    path = tmp_path / "config.yaml"
    path.write_text(configured(prepared, *changes).to_yaml())
    out = together("-m", "iisan.cli", "train", path, "--out", tmp_path / "two")
    assert out.count("best epoch") == 1  # one of them speaks
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert (alone["processes"], two["processes"]) == (1, 2)
    histories = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("alone", "two")
    ]
    for ours, theirs in zip(*histories, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["hr@10"] == pytest.approx(ours["hr@10"], abs=0.021)  # one of 50 users, by rounding
    assert two["best_epoch"] == alone["best_epoch"]
    again = together("-m", "iisan.cli", "train", path, "--out", tmp_path / "two")
    assert again.count("is finished already") == 1


def test_two_processes_share_an_anchor(prepared, tmp_path):
    """The first one fits it; the others only train, here at a rate that leaves everything as it was."""
    still = ("optimizer.learning_rate=1e-30", "optimizer.san_learning_rate=1e-30")
    config = configured(prepared, "training.epochs=1", "loss.negatives=5", *still)
    alone = train(config, tmp_path / "alone")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    out = together("-m", "iisan.cli", "train", path, "--out", tmp_path / "two")
    assert out.count("with the anchor") == out.count("similarity  validation") == 1
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["terms"]["weights"] == alone["terms"]["weights"]
    assert (two["test"], two["parts"]) == (alone["test"], alone["parts"])
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("alone", "two"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6, msg=name)


def test_each_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="process 3 on a machine with 2 GPUs"), joined(torch.device("cuda")):
        pass


def test_one_gpu_is_not_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ConfigError, match=r"training\.device 'cuda:1' for 2 processes"),
        joined(torch.device("cuda:1")),
    ):
        pass


def test_all_processes_compute_in_the_precision_of_the_first(prepared, monkeypatch):
    """The sum of what each adds is taken here from the others' choices, as all_reduce would."""
    timed = []
    monkeypatch.setattr(precision, "time_products", lambda *_: timed.append(1) or {"fp32": [2.0], "bf16": [1.0]})
    config = resolve(configured(prepared, "training.precision=auto"))

    class Told(Processes):
        def add(self, values):
            assert float(values) == float(self.first)
            return values + (not self.first)

    found = [build(config, processes=Told(rank, 2)) for rank in (0, 1)]
    assert [each.config.training.precision for each in found] == ["bf16", "bf16"]
    assert [each.network.autocast for each in found] == [True, True]
    assert timed == [1]


if __name__ == "__main__":
    compare_gradients(Path(sys.argv[1]))
