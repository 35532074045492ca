"""Fitting the anchor and the transitions: seconds and memory at 20 thousand and at a million items.

    python benchmarks/anchor.py --out benchmarks/results/anchor.json [--dataset D --states S]

One modality of 4 levels of 384 (LayerDrop's of all-MiniLM-L6-v2), random states that are sums of two vectors, so
that items have similar ones; ten interactions an item; the default anchor width. States are made in memory, as
reading a store is what `store.py` measures. Every size is measured in a process of its own, and each stage by
itself: memory is what the process holds at most beside what it held before any of them.

With a dataset and its states, widths of the anchor are compared, too: `similarity` is trained with each, and the
quality is that on its validation subset.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import PeakMemory, write_record
from torch import Tensor

from iisan.config import AnchorConfig
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import leave_one_out
from iisan.evaluate.terms import TermScorer, Transitions, Weights, smoothing, transition_shares
from iisan.files import write_json
from iisan.nn.anchor import BLOCK, fit_whitening
from iisan.nn.hidden import Hidden
from iisan.recipes import recipe
from iisan.runs.anchoring import item_anchors
from iisan.runs.run import Run
from iisan.states.configured import open_dataset
from iisan.states.sources import ItemBatch, StateSource
from iisan.train.run import train

CATALOGUES = (20_000, 1_000_000)
LEVELS, WIDTH, NAME = 4, 384, "text"
PARTS = 1_024
LENGTH, HISTORY, LISTS = 10, 10, 256
WIDTHS = ("256", "512", "1024", "null")


class Sums(StateSource):
    """States that are sums of a vector per group of items and one per place in the group."""

    stored = True

    def __init__(self, items: int) -> None:
        super().__init__({NAME: WIDTH}, {NAME: tuple(range(LEVELS))}, {NAME: torch.ones(items, dtype=torch.bool)})
        draw = torch.Generator().manual_seed(0)
        self.groups = torch.randn(-(-items // PARTS), LEVELS, WIDTH, generator=draw)
        self.places = torch.randn(PARTS, LEVELS, WIDTH, generator=draw)

    def states(self, rows: Tensor) -> Tensor:
        return self.groups[rows // PARTS] + self.places[rows % PARTS]

    def forward(self, rows: Tensor) -> ItemBatch:
        return ItemBatch(rows, {NAME: Hidden(self.states(rows), torch.arange(len(rows)))})


def measure(items: int) -> dict[str, Any]:
    """Every stage once, in this process."""
    settings = AnchorConfig()
    source = Sums(items)
    rng = np.random.default_rng(0)
    users = items
    drawn = rng.integers(0, items, users * (LENGTH + 2), dtype=np.int32)
    split = leave_one_out(Sequences(np.arange(users + 1) * (LENGTH + 2), drawn), items)
    memory = PeakMemory()
    held = memory.now()
    found: dict[str, Any] = {"items": items, "interactions": users * LENGTH, "stages": {}}

    def timed(name: str, work: Any) -> Any:
        started = time.perf_counter()
        result = work()
        found["stages"][name] = time.perf_counter() - started
        return result

    def blocks() -> Any:
        for rows in torch.arange(items).split(4 * BLOCK):
            yield source.states(rows)

    with memory, torch.inference_mode():
        whitening = timed("whitening", lambda: fit_whitening(blocks, settings.width, settings.shrinkage, NAME))
        anchors = timed("projection", lambda: item_anchors(source, {NAME: whitening}, items))
        shares = timed("transitions", lambda: transition_shares(split))
        neighbours = timed("similar items", lambda: smoothing(anchors))
        counts = torch.from_numpy(split.train_counts())
        weights = Weights(anchor={NAME: 1.0}, popularity=0.05, transitions=1.0)
        scorer = TermScorer((), anchors, counts, Transitions(shares, neighbours), weights, HISTORY)
        found["seconds_per_list"] = seconds_per_list(scorer, split.test.sample(LISTS).histories(HISTORY))
    found |= {
        "anchor_width": anchors[NAME].shape[1],
        "anchor_bytes": anchors[NAME].numel() * 4,
        "bytes_above_inputs": memory.peak - held,
        "threads": torch.get_num_threads(),
    }
    return found


def seconds_per_list(scorer: TermScorer, histories: Index) -> float:
    """Seconds of a list of ten items, one history at a time."""
    started = time.perf_counter()
    for each in histories:
        scorer.score(scorer.start(each[None]), slice(0, scorer.num_items)).topk(10)
    return (time.perf_counter() - started) / len(histories)


def compare_widths(dataset: Path, states: Path) -> list[dict[str, Any]]:
    """Train `similarity` with every width."""
    found = []
    for width in WIDTHS:
        config = recipe("similarity").override([f"anchor.width={width}"])
        config = config.model_copy(update={"dataset": dataset, "states": states})
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            result = train(config, Path(folder) / "run")
            seconds = time.perf_counter() - started
            run = Run.load(Path(folder) / "run")
        scorer = run.scorer
        assert isinstance(scorer, TermScorer)
        split = open_dataset(run.config).split(run.config.evaluation.split)
        histories = split.validation.sample(LISTS).histories(scorer.history_length)
        anchors = list(scorer.anchors.values())
        found.append(
            {
                "width": sum(each.shape[1] for each in anchors),
                "selection": result["selection"],
                "validation": {key: result["validation"][key] for key in ("hr@10", "ndcg@10")},
                "seconds": seconds,
                "bytes": sum(each.numel() * each.element_size() for each in anchors),
                "seconds_per_list": seconds_per_list(scorer, histories),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--states", type=Path)
    parser.add_argument("--items", type=int, nargs="*", default=list(CATALOGUES))
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        write_json(arguments.out, measure(arguments.measure))
        return
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "found.json"
        for items in arguments.items:
            subprocess.run([sys.executable, __file__, f"--out={out}", f"--measure={items}"], check=True)
            found.append(json.loads(out.read_text()))
            print(json.dumps(found[-1]), flush=True)
    stages = list(found[0]["stages"])
    lines = [
        f"{LEVELS} levels of {WIDTH}, anchor width {found[0]['anchor_width']}, {LENGTH} training interactions an "
        f"item, {found[0]['threads']} threads. Above 100,000 items, similar ones are found by FAISS.",
        "",
        f"| items | {' | '.join(f'{stage}, s' for stage in stages)} | all, s | anchors, GB | peak memory, GB "
        "| ms a list |",
        f"|---:|{'---:|' * (len(stages) + 4)}",
    ]
    for each in found:
        seconds = [f"{each['stages'][stage]:.1f}" for stage in stages]
        cells = [
            f"{each['items']:,}",
            *seconds,
            f"{sum(each['stages'].values()):.0f}",
            f"{each['anchor_bytes'] / 1e9:.2f}",
            f"{each['bytes_above_inputs'] / 1e9:.2f}",
            f"{1e3 * each['seconds_per_list']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    widths = compare_widths(arguments.dataset, arguments.states) if arguments.dataset else []
    if widths:
        lines += [
            "",
            f"`similarity` with anchors of other widths; {widths[0]['selection']}.",
            "",
            "| numbers | HR@10, % | NDCG@10, % | anchors, MB | s to train and test | ms a list |",
            "|---:|---:|---:|---:|---:|---:|",
        ]
    for each in widths:
        quality = [f"{100 * value:.2f}" for value in each["validation"].values()]
        costs = [each["bytes"] / 1e6, each["seconds"], 1e3 * each["seconds_per_list"]]
        lines.append(f"| {each['width']:,} | {' | '.join([*quality, *(f'{cost:.1f}' for cost in costs)])} |")
    results = {"catalogues": found, "widths": widths}
    write_record(arguments.out, "Fitting the anchor and the transitions", results, lines)


if __name__ == "__main__":
    main()
