"""Measured costs: stages add up to steps, a process of its own, failures in one sentence."""

import time

import numpy as np
import pytest

from iisan.config import Config
from iisan.efficiency.measure import STAGES, PeakMemory, StageClock, joules, measure
from iisan.errors import RunError
from iisan.machine import peak_resident_bytes
from iisan.recipes import recipe
from iisan.train.setup import build, resolve


@pytest.fixture
def config(prepared) -> Config:
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    return recipe("default").model_copy(update=folders).override(("loss.negatives=0", "training.batch=16"))


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
    found = measure(config.override(("training.accumulate=2",)), steps=2, warm_up=0, threads=1)
    assert (found.steps, found.steps_per_epoch) == (2, 2)


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


def test_energy_is_what_the_system_says():
    found = joules()
    assert found is None or found >= 0
