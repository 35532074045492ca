"""Training steps from stores of growing size: memory that does not grow, and time that hardly does.

    python benchmarks/store.py --out benchmarks/results/store.json --folder FOLDER

Two modalities of 7 kept levels of 768 in bf16, the settings of the recipe ``reference``, batches of 64 users
drawn evenly from the catalogue, the worst case for a cache of pages. The catalogues have as many items as
Scientific has, 400,000, and 1,000,000: the first rows of stores of the largest (21.5 GB, which FOLDER must have
room for; they are removed afterwards). Every catalogue is measured in a process of its own. ``anonymous`` memory
is the process's own; the pages of the mapped store belong to the system's cache. The bound of reading is a copy of
as many bytes as a batch's states have.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import write_store
from timing import PeakMemory, write_record

from iisan.config import Config
from iisan.data.sequences import Sequences
from iisan.data.splits import leave_one_out
from iisan.efficiency.measure import STAGES, StageClock
from iisan.files import write_json
from iisan.model import SequentialRecommender
from iisan.recipes import recipe
from iisan.states.sources import CachedStates
from iisan.states.store import StateStore
from iisan.train.batches import Batches
from iisan.train.loop import Trainer

CATALOGUES = (20_314, 400_000, 1_000_000)
USERS, LENGTH, DEPTH, WIDTH = 20_000, 11, 12, 768
MODALITIES = ("image", "text")
SHARD = 16_384


def settings() -> Config:
    return recipe("reference").override(["training.precision=fp32", "training.device=cpu"])


def measure(folder: Path, items: int, steps: int) -> dict[str, Any]:
    """Steps after as many that warm up, in this process."""
    memory = PeakMemory()
    imports = memory.now()
    with memory, tempfile.TemporaryDirectory() as run:
        config = settings()
        stores = {modality: StateStore.find(folder, modality) for modality in MODALITIES}
        rows = np.arange(items)
        source = CachedStates({name: (store, rows, store.levels) for name, store in stores.items()})
        drawn = np.random.default_rng(0).integers(0, items, USERS * (LENGTH + 2), dtype=np.int32)
        split = leave_one_out(Sequences(np.arange(USERS + 1) * (LENGTH + 2), drawn), items)
        network = SequentialRecommender.build(config, items, source).train()
        batches = Batches(split, config.sequence.max_length, config.training.batch_size, config.loss, "last", 0)
        clock = StageClock()
        trainer = Trainer(network, batches, config, lambda _: {}, Path(run), clock=clock)
        # The same batches twice: the second time their pages are in the system's cache.
        wanted = [batch for batch, _ in zip(batches.epoch(1), range(steps), strict=False)]
        trainer.run(wanted)
        clock.restart()
        trainer.run(wanted)
        read = []
        for batch in wanted:
            started = time.perf_counter()
            network.source(batch.rows)
            read.append(time.perf_counter() - started)
        distinct = statistics.median(len(batch.rows) for batch in wanted)
    totals = [sum(step.values()) for step in clock.steps]
    low, middle, high = statistics.quantiles(totals, n=4)
    copied = torch.zeros(int(distinct) * len(MODALITIES) * 7 * WIDTH, dtype=torch.bfloat16)
    copies = []
    for _ in range(20):
        started = time.perf_counter()
        copied.clone()
        copies.append(time.perf_counter() - started)
    return {
        "items": items,
        "bytes_on_disk": sum(store.size * items // len(store) for store in stores.values()),
        "distinct_items_a_batch": distinct,
        "seconds_per_step": {"median": middle, "quartiles": [low, high]},
        "stages": {stage: statistics.median(step[stage] for step in clock.steps) for stage in STAGES},
        "seconds_of_reading": statistics.median(read),
        "seconds_of_copying_as_much": statistics.median(copies),
        "anonymous_bytes": memory.peak,
        "anonymous_bytes_above_imports": memory.peak - imports,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="where the stores are written; by default a temporary folder")
    parser.add_argument("--items", type=int, nargs="*", default=list(CATALOGUES))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        write_json(arguments.out, measure(arguments.folder, arguments.measure, arguments.steps))
        return
    found = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        keys = [str(number) for number in range(max(arguments.items))]
        for modality in MODALITIES:
            write_store(folder, {"modality": modality}, DEPTH, WIDTH, keys, SHARD)
        for items in arguments.items:
            command = [sys.executable, __file__, f"--out={folder / 'found.json'}", f"--folder={folder}"]
            subprocess.run([*command, f"--measure={items}", f"--steps={arguments.steps}"], check=True)
            found.append(json.loads((folder / "found.json").read_text()))
            print(json.dumps(found[-1]), flush=True)
    smallest = found[0]["seconds_per_step"]["median"]
    lines = [
        f"Two modalities, 7 levels of {WIDTH}, bf16, 64 users a batch, {torch.get_num_threads()} threads.",
        "",
        "| items | GB on disk | ms a step (quartiles) | times the smallest | ms of reading | ms of a copy "
        "| anonymous GB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        step = each["seconds_per_step"]
        low, high = step["quartiles"]
        cells = [
            f"{each['items']:,}",
            f"{each['bytes_on_disk'] / 1e9:.1f}",
            f"{1e3 * step['median']:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})",
            f"{step['median'] / smallest:.2f}",
            f"{1e3 * each['seconds_of_reading']:.1f}",
            f"{1e3 * each['seconds_of_copying_as_much']:.1f}",
            f"{each['anonymous_bytes'] / 1e9:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    write_record(arguments.out, "Training from stores of growing size", {"catalogues": found}, lines)


if __name__ == "__main__":
    main()
