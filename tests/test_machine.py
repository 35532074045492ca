"""What the process is told about its machine, and tells it."""

import os
from pathlib import Path

import numpy as np
import pytest

from iisan.machine import forget_peak, peak_resident_bytes, wait_briefly


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps the peak of a process")
def test_the_peak_is_that_since_it_was_forgotten() -> None:
    forget_peak()
    before = peak_resident_bytes()
    np.ones(2**25)  # 256 MB
    high = peak_resident_bytes()
    forget_peak()
    assert high > before + 2e8
    assert peak_resident_bytes() < high - 1e8


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
