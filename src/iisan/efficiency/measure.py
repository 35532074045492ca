"""What training with a configuration costs: seconds, parameters, memory; each in a process of its own.

``measure`` starts ``python -m iisan.efficiency.measure``, so that the peak of one method never counts for another.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from iisan.config import Config
from iisan.errors import RunError
from iisan.machine import keep_freed_memory, peak_resident_bytes
from iisan.recipes import load_config
from iisan.train.loop import Clock

STAGES = ("data", "forward", "backward", "update")
_SAMPLING_SECONDS = 0.005


@dataclass(frozen=True)
class Efficiency:
    """What training costs.

    Attributes:
        seconds_per_step: median over the measured steps.
        stages: median seconds of ``data`` (waiting for the batch), ``forward``, ``backward`` and ``update``.
        steps: how many were measured, after the warm-up.
        steps_per_epoch: of the configuration's batch.
        seconds_per_epoch: of training, without validation: ``seconds_per_step × steps_per_epoch``.
        trainable_parameters: weights that are trained.
        total_parameters: weights in memory.
        peak_memory_bytes: the largest while loading and training; on a GPU the allocator's peak, on a CPU that of
            the process's own memory, seen every few milliseconds. Pages of mapped files do not count where the
            system tells them apart: they belong to its cache, are given back when something else needs room, and
            some kernels map two megabytes for one row that is read.
        baseline_memory_bytes: the same with all imports and nothing loaded; 0 on a GPU.
        peak_resident_bytes: on a CPU the peak resident memory of the process and its children, with mapped files.
        device: where it was measured.
        threads: of computation on a CPU.
    """

    seconds_per_step: float
    stages: dict[str, float]
    steps: int
    steps_per_epoch: int
    seconds_per_epoch: float
    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int
    baseline_memory_bytes: int
    peak_resident_bytes: int
    device: str
    threads: int


class StageClock(Clock):
    """Keeps the seconds of every stage of every step.

    Args:
        synchronize: waits for the device, so that a stage's time is its own.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize
        self.restart()

    def restart(self) -> None:
        """Forget all steps; the next one begins now."""
        self.steps: list[dict[str, float]] = []
        self._step = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the seconds since the previous lap for this stage; an update ends the step."""
        self._synchronize()
        now = time.perf_counter()
        self._step[stage] += now - self._last
        self._last = now
        if stage == "update":
            self.steps.append(self._step)
            self._step = dict.fromkeys(STAGES, 0.0)


def measure(config: Config, steps: int = 20, warm_up: int = 3, threads: int | None = None) -> Efficiency:
    """Train a few steps in a fresh process and say what they cost.

    Args:
        config: complete, with dataset and states.
        steps: measured steps, at most an epoch's.
        warm_up: steps before these that do not count.
        threads: of computation on a CPU; torch's choice if None.

    Raises:
        RunError: the process failed; its message is kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        out = Path(folder) / "efficiency.json"
        command = [sys.executable, "-m", "iisan.efficiency.measure", str(path), str(out)]
        command += [f"--steps={steps}", f"--warm-up={warm_up}"]
        command += [f"--threads={threads}"] if threads else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise RunError(f"the measurement failed ({last[0]})", "a configuration that trains", "try it alone")
        return Efficiency(**json.loads(out.read_text(encoding="utf-8")))


def measure_here(config: Config, steps: int, warm_up: int) -> Efficiency:
    """The same in this process, whose earlier peak then counts as well."""
    import torch

    from iisan.train.batches import Batches
    from iisan.train.loop import Trainer
    from iisan.train.setup import build, resolve

    memory = PeakMemory()
    baseline = memory.now()
    with tempfile.TemporaryDirectory() as folder, memory:
        setup = build(resolve(config))
        cuda = setup.device.type == "cuda"
        training = setup.config.training
        batches = Batches(
            setup.split,
            config.sequence.max_length,
            training.batch_size,
            config.loss,
            training.windows,
            training.seed,
        )
        clock = StageClock(torch.cuda.synchronize if cuda else lambda: None)
        trainer = Trainer(setup.network, batches, setup.config, lambda _: {}, Path(folder), clock=clock)
        setup.network.train()
        epochs = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count(1))
        trainer.run(itertools.islice(epochs, warm_up * training.gradient_accumulation))
        clock.restart()
        trainer.run(itertools.islice(epochs, steps * training.gradient_accumulation))
    seconds = statistics.median(sum(step.values()) for step in clock.steps)
    per_epoch = -(-len(batches) // training.gradient_accumulation)
    return Efficiency(
        seconds_per_step=seconds,
        stages={name: statistics.median(step[name] for step in clock.steps) for name in STAGES},
        steps=steps,
        steps_per_epoch=per_epoch,
        seconds_per_epoch=seconds * per_epoch,
        trainable_parameters=sum(value.numel() for _, value in setup.network.trainable()),
        total_parameters=sum(value.numel() for value in setup.network.parameters()),
        peak_memory_bytes=torch.cuda.max_memory_allocated() if cuda else memory.peak,
        baseline_memory_bytes=0 if cuda else baseline,
        peak_resident_bytes=peak_resident_bytes(),
        device=torch.cuda.get_device_name() if cuda else "cpu",
        threads=torch.get_num_threads(),
    )


class PeakMemory:
    """Watches the memory of this process from a thread while it is entered.

    Attributes:
        peak: largest memory seen so far, in bytes, without pages of mapped files where they can be told apart.
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
        while not self._stop.wait(_SAMPLING_SECONDS):
            self.peak = max(self.peak, self.now())

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self.now())


def main() -> None:
    """Measure one configuration and write it down."""
    parser = argparse.ArgumentParser(description="Measure what training with a configuration costs.")
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    # As the command line does before it trains.
    keep_freed_memory()
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    found = measure_here(load_config(arguments.config), arguments.steps, arguments.warm_up)
    arguments.out.write_text(json.dumps(asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
