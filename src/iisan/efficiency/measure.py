"""Measured costs of training with a configuration: seconds, parameters and memory.

``measure`` starts ``python -m iisan.efficiency.measure``, as the memory peak of a process covers all its past.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from iisan.config import Config
from iisan.errors import RunError
from iisan.machine import choose_device, device_name, forget_peak, keep_freed_memory, peak_memory
from iisan.recipes import load_config
from iisan.train.loop import Clock

STAGES = ("data", "forward", "backward", "update")


@dataclass(frozen=True)
class Efficiency:
    """Measured costs of training.

    Attributes:
        seconds_per_step: Median over the measured steps.
        stages: Median seconds of ``data`` (waiting for the batch), ``forward``, ``backward`` and ``update``.
        steps: Number of measured steps, without the warm-up.
        steps_per_epoch: Number of updates per epoch.
        seconds_per_epoch: ``seconds_per_step × steps_per_epoch``, without validation.
        trainable_parameters, total_parameters: Number of weights.
        peak_memory_bytes: Peak while loading and training, as in ``result.json`` of a run.
        memory: Kind of that memory: allocated on the ``gpu``, or resident in the ``process``.
        baseline_memory_bytes: The same after all imports, with nothing loaded; 0 on a GPU.
        precision, device, threads: As in ``result.json`` of a run.
    """

    seconds_per_step: float
    stages: dict[str, float]
    steps: int
    steps_per_epoch: int
    seconds_per_epoch: float
    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int
    memory: str
    baseline_memory_bytes: int
    precision: str
    device: str
    threads: int


class StageClock(Clock):
    """Clock that keeps the seconds of every stage of every step.

    Args:
        synchronize: Function that waits for the device, so that each stage is charged its own time.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize
        self.restart()

    def restart(self) -> None:
        """Forget all steps and start the next one now."""
        self.steps: list[dict[str, float]] = []
        self._step = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the seconds since the previous lap to this stage; an update ends the step."""
        self._synchronize()
        now = time.perf_counter()
        self._step[stage] += now - self._last
        self._last = now
        if stage == "update":
            self.steps.append(self._step)
            self._step = dict.fromkeys(STAGES, 0.0)


def measure(config: Config, steps: int = 20, warm_up: int = 3, threads: int | None = None) -> Efficiency:
    """Train a few steps in a new process and measure their costs; ``threads`` None leaves that to torch.

    Raises:
        RunError: The process failed; the message includes its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "config.yaml", Path(folder) / "efficiency.json"
        path.write_text(config.to_yaml(), encoding="utf-8")
        arguments = [path, out, steps, warm_up, threads or 0]
        command = [sys.executable, "-m", "iisan.efficiency.measure", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise RunError(f"the measurement failed ({last[0]})", "a configuration that trains", "try it alone")
        return Efficiency(**json.loads(out.read_text(encoding="utf-8")))


def measure_here(config: Config, steps: int, warm_up: int) -> Efficiency:
    """Measure in this process; outside Linux an earlier, higher peak of its memory is counted."""
    import torch

    from iisan.train.batches import Batches
    from iisan.train.loop import Trainer
    from iisan.train.setup import build, resolve

    device = choose_device(config.training.device)
    forget_peak(device)
    baseline = peak_memory(device)["peak_memory_bytes"]
    with tempfile.TemporaryDirectory() as folder:
        setup = build(resolve(config))
        training = setup.config.training
        length, seed = config.sequence.max_length, training.seed
        batches = Batches(setup.split, length, training.batch_size, config.loss, training.windows, seed)
        clock = StageClock((lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None)
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
        **peak_memory(device),
        baseline_memory_bytes=baseline,
        precision=training.precision,
        device=device_name(device),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    given, written = sys.argv[1:3]
    count, before, cpu_threads = map(int, sys.argv[3:])
    keep_freed_memory()  # as ``iisan train`` does
    if cpu_threads:
        import torch

        torch.set_num_threads(cpu_threads)
    Path(written).write_text(json.dumps(asdict(measure_here(load_config(given), count, before))), encoding="utf-8")
