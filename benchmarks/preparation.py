"""Ten million interactions from raw tables to a dataset folder, and the start of a training on it.

    python benchmarks/preparation.py --out benchmarks/results/preparation.json

Interactions of one million users with 200,000 items, as CSV and as Parquet, in no order; ids are strings,
timestamps seconds. Every step is a process of its own, as a user would start it: its wall time, processor
seconds and largest resident memory; of what takes seconds, the medians of five turns. ``read`` is what polars
alone needs to read the two tables, the bound of any preparation. ``torch and tables`` imports torch and reads the
tables of the dataset, the bound of the start of any training.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from timing import write_record

USERS, ITEMS, TURNS = 1_000_000, 200_000, 5

_READ = """
import sys, polars as pl
for path in sys.argv[1:]:
    pl.read_csv(path) if path.endswith("csv") else pl.read_parquet(path)
"""

_LEAST = "import torch" + _READ

_START = """
import sys
from iisan.recipes import recipe
from iisan.train.batches import Batches
from iisan.train.loop import Trainer
from iisan.train.setup import build, resolve
config = resolve(recipe("ids").override([f"dataset={sys.argv[1]}"]))
setup, drawn, length = build(config), config.training, config.sequence.max_length
batches = Batches(setup.split, length, drawn.batch_size, config.loss, drawn.windows, drawn.seed)
Trainer(setup.network, batches, config, lambda _: {}, None).run([next(batches.epoch(1))])
"""


@dataclass(frozen=True)
class Cost:
    """Of one process.

    Attributes:
        wall: seconds.
        processor: seconds.
        peak_bytes: largest resident memory.
    """

    wall: float
    processor: float
    peak_bytes: int


def run(*command: str | Path) -> Cost:
    """Run a Python process to its end.

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def in_turns(commands: Mapping[str, Sequence[str | Path]]) -> dict[str, Cost]:
    """Run processes in turns; return the medians."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            costs[name].append(run(*command))
    return {
        name: Cost(*(statistics.median(column) for column in zip(*map(astuple, each), strict=True)))
        for name, each in costs.items()
    }


def write_tables(folder: Path, interactions: int) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5_000)])
    titles = [" ".join(row) for row in words[rng.integers(0, len(words), (ITEMS, 8))]]
    items = pl.DataFrame({"item_id": [f"item-{number}" for number in range(ITEMS)], "title": titles})
    log = pl.DataFrame(
        {
            "user_id": pl.Series(rng.integers(0, USERS, interactions)),
            "item_id": pl.Series((ITEMS * rng.random(interactions) ** 2).astype(np.int64)),
            "timestamp": rng.integers(1_500_000_000, 1_700_000_000, interactions),
        }
    ).with_columns(
        pl.format("user-{}", "user_id").alias("user_id"), pl.format("item-{}", "item_id").alias("item_id")
    )
    for table, name in ((items, "items"), (log, "interactions")):
        table.write_csv(folder / f"{name}.csv")
        table.write_parquet(folder / f"{name}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_tables(arguments.out, arguments.interactions)
        return
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In a process of its own: the peak of a child is at least what its parent holds when it starts it.
        run(__file__, f"--out={folder}", f"--interactions={arguments.interactions}", "--write")
        for form in ("csv", "parquet"):
            tables = [folder / f"{name}.{form}" for name in ("items", "interactions")]
            costs[f"read {form}"] = run("-c", _READ, *tables)
            costs[f"prepare {form}"] = run("-m", "iisan.cli", "prepare", "table", *tables, "--out", folder / form)
        data = folder / "parquet"
        costs |= in_turns(
            {
                "torch and tables": ("-c", _LEAST, *sorted(data.glob("*.parquet"))),
                "start": ("-c", _START, data),
                "help": ("-m", "iisan.cli", "--help"),
            }
        )
    times = costs["start"].wall / costs["torch and tables"].wall
    lines = [
        f"{arguments.interactions:,} interactions, {USERS:,} users, {ITEMS:,} items.",
        "",
        "| | seconds | processor seconds | peak GB |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {cost.wall:.2f} | {cost.processor:.2f} | {cost.peak_bytes / 1e9:.2f} |"
            for name, cost in costs.items()
        ),
        "",
        "`torch and tables`: a new process imports torch and reads the tables of the dataset. `start`: one loads "
        f"the dataset and makes the first step of training, in {times:.2f} times that. `help`: `iisan --help`.",
    ]
    results = {"interactions": arguments.interactions, "costs": {name: vars(cost) for name, cost in costs.items()}}
    write_record(arguments.out, "Preparing ten million interactions", results, lines)


if __name__ == "__main__":
    main()
