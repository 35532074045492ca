"""What the process is told about its machine, and tells it."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from iisan.machine import (
    choose_device,
    device_name,
    forget_peak,
    peak_memory,
    peak_resident_bytes,
    processor_name,
    usable_device,
    wait_briefly,
)

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps the peak of a process")
def test_the_peak_is_that_since_it_was_forgotten() -> None:
    forget_peak(CPU)
    before = peak_resident_bytes()
    # Not from the allocator, which may have been told to keep what is freed.
    with mmap.mmap(-1, 2**28) as memory:
        np.frombuffer(memory, np.uint8).fill(1)
    high = peak_resident_bytes()
    forget_peak(CPU)
    assert high > before + 2e8
    assert peak_resident_bytes() < high - 1e8


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps the peak of a process")
def test_the_peak_of_a_child_is_not_the_processs_own() -> None:
    forget_peak(CPU)
    before = peak_resident_bytes()
    subprocess.run([sys.executable, "-c", "b' ' * 2**29"], check=True)
    assert peak_resident_bytes() < before + 2e8
    assert peak_memory(CPU) == {"peak_memory_bytes": peak_resident_bytes(), "memory": "process"}


def test_the_peak_of_a_gpu_is_that_of_the_one_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 if device == second else 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert peak_memory(second) == {"peak_memory_bytes": 7, "memory": "gpu"}
    assert device_name(second) == "GPU 1"
    assert device_name(CPU) == processor_name()


def test_a_device_that_is_not_here_gives_way_to_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [usable_device(name) for name in ("cpu", "auto", "meta", "cuda:77", "abacus")] == [
        "cpu",
        "auto",
        "auto",
        "auto",
        "auto",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_wait_briefly_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
