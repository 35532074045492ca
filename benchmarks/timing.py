"""What the benchmarks share: sides that take turns, medians with quartiles, and records that name the machine."""

import datetime
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from iisan.files import aside, write_json
from iisan.machine import processor_name

Side = Callable[[], object]

#: Rows and columns of large matrices, and the operations of their product.
SIZE = 2048
PRODUCT = 2 * SIZE**3
#: Between two looks at the memory.
SAMPLING_SECONDS = 0.005


def take_turns(sides: Mapping[str, Side], turns: int) -> dict[str, dict[str, Any]]:
    """Run the sides in turns, so that a busy machine slows all of them, after one turn that warms up.

    Returns:
        Side -> ``wall`` and ``processor`` (worker processes included) -> ``median`` and ``quartiles`` in seconds.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            started, worked = time.perf_counter(), _processor_seconds()
            side()
            if turn:
                seconds[name].append((time.perf_counter() - started, _processor_seconds() - worked))
    return {name: _spread(values) for name, values in seconds.items()}


def faster(found: Mapping[str, Mapping[str, Any]], slow: str, quick: str) -> dict[str, float]:
    """How many times one side's median is another's, in wall time and in processor seconds."""
    return {kind: found[slow][kind]["median"] / found[quick][kind]["median"] for kind in ("wall", "processor")}


def machine() -> dict[str, Any]:
    """What a record says of where it was made."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor_name(), "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__}


def write_record(out: Path, what: str, results: Mapping[str, Any], lines: list[str]) -> None:
    """Write ``out`` (JSON) and a page of the same name for a reader, and print that."""
    here = machine()
    record = {"what": what, "date": datetime.date.today().isoformat(), "machine": here, **results}
    write_json(out, record)
    where = f"{here['processor']}, {here['cores']} cores" + (f", {here['gpu']}" if here["gpu"] else "")
    page = [f"# {what}", "", f"{record['date']}, {where}, torch {here['torch']}.", "", *lines]
    with aside(out.with_suffix(".md")) as path:
        path.write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))


def told(seconds: Mapping[str, Any], kind: str = "wall", unit: float = 1.0) -> str:
    """``median (lower quartile to upper quartile)``, times ``unit``."""
    low, high = seconds[kind]["quartiles"]
    return f"{unit * seconds[kind]['median']:.4g} ({unit * low:.4g} to {unit * high:.4g})"


def peak(dtype: torch.dtype) -> float:
    """Operations a second of large matrix products, the best of some."""
    return PRODUCT / _best(products(dtype, 1))


def products(dtype: torch.dtype, count: int) -> Side:
    """A side that multiplies large matrices ``count`` times, ``PRODUCT`` operations each."""
    left, right = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    out = torch.empty(SIZE, SIZE, dtype=dtype)

    def run() -> None:
        for _ in range(count):
            torch.mm(left, right, out=out)

    return run


def copy_speed(size: int = 2**26) -> float:
    """Bytes a second that a copy of a large tensor reads and writes, together, the best of some."""
    source, out = torch.ones(size // 4), torch.empty(size // 4)
    return 2 * size / _best(lambda: out.copy_(source))


def _best(work: Side) -> float:
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _processor_seconds() -> float:
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _spread(values: list[tuple[float, float]]) -> dict[str, dict[str, Any]]:
    found = {}
    for kind, column in zip(("wall", "processor"), zip(*values, strict=True), strict=True):
        low, middle, high = statistics.quantiles(column, n=4) if len(column) > 1 else 3 * [column[0]]
        found[kind] = {"median": middle, "quartiles": [low, high]}
    return found


class PeakMemory:
    """Watches the memory of this process from a thread while it is entered.

    Attributes:
        peak: largest memory seen so far, in bytes, without pages of mapped files, which the system may take back.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def now(self) -> int:
        """The memory at this moment."""
        info = self._process.memory_info()
        return info.rss - getattr(info, "shared", 0)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_SECONDS):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self.now())
