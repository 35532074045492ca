"""Measured costs: stages add up to steps, a process of its own, failures in one sentence."""

import time

import numpy as np
import pytest

from iisan.config import Config
from iisan.efficiency.measure import STAGES, PeakMemory, StageClock, measure, measure_here
from iisan.errors import RunError
from iisan.machine import peak_resident_bytes
from iisan.recipes import recipe
from iisan.train.setup import build, resolve


@pytest.fixture
def config(prepared) -> Config:
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    return recipe("default").model_copy(update=folders).override(("loss.negatives=0", "training.batch_size=16"))


def test_a_clock_keeps_stages_apart_and_ends_a_step_with_its_update(monkeypatch):
    now = iter([10.0, 12.0, 17.0, 18.0, 18.0, 19.0, 30.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = StageClock()
    for stage in (*STAGES, "data"):
        clock.lap(stage)
    assert clock.steps == [{"data": 2.0, "forward": 5.0, "backward": 1.0, "update": 0.0}]
    clock.restart()
    assert clock.steps == []


def test_measured_costs_of_a_training(config):
    found = measure(config, steps=4, warm_up=1, threads=1)
    network = build(resolve(config)).network
    assert found.trainable_parameters == sum(value.numel() for _, value in network.trainable())
    assert found.total_parameters >= found.trainable_parameters
    # 50 users, batch 16.
    assert (found.steps, found.steps_per_epoch, found.threads) == (4, 4, 1)
    assert found.seconds_per_epoch == pytest.approx(4 * found.seconds_per_step)
    assert 0 < found.seconds_per_step < 60
    assert set(found.stages) == set(STAGES)
    assert found.peak_memory_bytes > found.baseline_memory_bytes > 1e7


def test_accumulation_makes_fewer_and_longer_steps(config):
    found = measure(config.override(("training.gradient_accumulation=2",)), steps=2, warm_up=0, threads=1)
    assert (found.steps, found.steps_per_epoch) == (2, 2)


def test_settings_by_tower_are_measured_as_they_are(config):
    # The recipe has a bottleneck of 512 for images, which this configuration has not.
    versa = recipe("versa").model_copy(update={"dataset": config.dataset, "states": config.states})
    changes = [f"{kind}.{key}" for kind in ("text", "image") for key in ("levels=layerdrop", "pooling=null")]
    versa = versa.override((*changes, "items.bottlenecks={text: 8}", "training.batch_size=16"))
    network = build(resolve(versa)).network
    found = measure(versa, steps=1, warm_up=0, threads=1)
    assert found.trainable_parameters == sum(value.numel() for _, value in network.trainable())


def test_a_training_that_cannot_start(config, tmp_path):
    with pytest.raises(RunError, match=r"the measurement failed .*absent"):
        measure(config.override((f"dataset={tmp_path / 'absent'}",)), steps=1)


def test_a_peak_is_seen_though_it_has_passed():
    memory = PeakMemory()
    before = memory.now()
    with memory:
        block = np.ones(25_000_000)
        time.sleep(0.1)
        del block
    assert 190_000_000 < memory.peak - before < 400_000_000
    assert memory.now() - before < 150_000_000
    assert peak_resident_bytes() >= memory.peak * 0.9


def test_a_peak_while_loading_counts(config, monkeypatch):
    from iisan.train import setup

    def build(config):
        block = np.ones(50_000_000)
        time.sleep(0.1)
        del block
        return setup_build(config)

    setup_build = setup.build
    monkeypatch.setattr(setup, "build", build)
    found = measure_here(resolve(config), steps=1, warm_up=0)
    assert found.peak_memory_bytes - found.baseline_memory_bytes > 390_000_000
