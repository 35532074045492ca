"""Training from the cache, next to the published design re-created naively, in one run.

    python benchmarks/training.py DATA TOKENIZER --out benchmarks/results/training.json

DATA is the folder of the Scientific tables, TOKENIZER a folder with BERT's tokenizer. Two modalities of 13 ×
768 states with random values, the settings of the recipe ``reference``, real sequences.

The naive side does what the published code does, written anew: one file an item and modality with all 13
states, read by worker processes; every slot encoded, padding too, equation by equation; every slot a candidate;
the loss masks user by user in a Python loop; fp32. Ours is the training loop itself, in fp32 and in bf16. All
train the same network, and the losses of both designs on the same batch are compared first. Each side is a process
of its own. They take turns, so a busy machine slows all of them; medians over the turns are reported with their
quartiles, and processor seconds beside wall time.

The bound is what the products of a step would take at the speed of large matrix products of that precision, and
what Adam moves at the speed of a large copy, both measured in the same run.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import make_dataset, make_encoders, make_store
from timing import copy_speed, faster, peak, take_turns, told, write_record
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.data.sequences import padded
from iisan.encoders.image import load_image
from iisan.encoders.text import load_text
from iisan.model import SequentialRecommender
from iisan.names import PAD
from iisan.nn.items import SideNetwork
from iisan.recipes import recipe
from iisan.states.store import StateStore
from iisan.train.batches import Batches
from iisan.train.loop import Trainer, batch_loss, parameter_groups
from iisan.train.setup import build, resolve

LEVELS = (0, 2, 4, 6, 8, 10, 12)
WIDTH, USERS, LENGTH = 768, 64, 10
#: Our sides, which take five times the steps of the naive one in a turn.
OURS = {"iisan, fp32": "fp32", "iisan, bf16": "bf16"}
NAIVE = "the published design, re-created"


class Slots(TorchDataset[tuple[Tensor, ...]]):
    """One training row of the naive side: item indices [S + 1] and every slot's states, zeros for padding."""

    def __init__(self, windows: np.ndarray, folder: Path) -> None:
        self.windows = windows
        self.folder = folder

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        states = [torch.zeros(len(self.windows[row]), len(LEVELS), 768) for _ in ("image", "text")]
        for slot, item in enumerate(self.windows[row]):
            if item != PAD:
                for modality, values in zip(("image", "text"), states, strict=True):
                    every = np.load(self.folder / modality / f"{item}.npy")
                    values[slot] = torch.from_numpy(every)[list(LEVELS)]
        return torch.from_numpy(self.windows[row]), *states


def write_files(stores: dict[str, StateStore], dataset: Dataset, folder: Path) -> None:
    """The naive cache: 13 states an item and modality, the kept ones as the store has them."""
    for modality, store in stores.items():
        (folder / modality).mkdir(parents=True)
        rows = torch.from_numpy(store.rows_for(dataset))
        for first in range(0, len(rows), 1024):
            states = store.read(rows[first : first + 1024], LEVELS).numpy()
            for number, kept in enumerate(states):
                every = np.zeros((13, 768), np.float32)
                every[list(LEVELS)] = kept
                np.save(folder / modality / f"{first + number}.npy", every)


def naive_items(items: SideNetwork, image: Tensor, text: Tensor) -> Tensor:
    """Embeddings [n, E] of n slots from their states [n, K, D]: the equations one by one, with our weights."""
    levels = {"image": image.unbind(1), "text": text.unbind(1)}
    parts = []
    for name in items.fusion.parts:
        tower: Any = items.towers[name]
        state = torch.zeros_like(levels["image"][0])
        for level in range(len(LEVELS)):
            if name == "inter":
                gate = torch.sigmoid(tower.gates[level, 0] / 0.1)
                mixed = gate * levels["image"][level] + (1 - gate) * levels["text"][level] + state
            else:
                gate = torch.sigmoid(tower.gates[level] / 0.1)
                mixed = gate * levels[name][level] + (1 - gate) * state
            down, up = ((maps.weight[level], maps.bias[level]) for maps in (tower.blocks.down, tower.blocks.up))
            state = mixed + linear(torch.relu(linear(mixed, *down)), *up)
        parts.append(items.projections[name](items.dense[name](state)))
    return items.fusion.linear(torch.cat(parts, dim=1))


def naive_loss(
    network: SequentialRecommender, popularity: Tensor, items: Tensor, image: Tensor, text: Tensor
) -> Tensor:
    """Loss of one batch, slot by slot: items [B, S + 1], states [B, S + 1, K, D]."""
    users, length = items.shape
    items_encoder: Any = network.items
    embeddings = naive_items(items_encoder, image.flatten(0, 1), text.flatten(0, 1))
    grid = embeddings.unflatten(0, (users, length))
    mask = items != PAD
    queries = network.sequence(grid[:, :-1] * mask[:, :-1, None], mask[:, :-1])
    log_popularity = torch.where(mask, popularity[items.clamp_min(0)].clamp_min(1e-12), 1.0).log().flatten()
    logits = queries.flatten(0, 1) @ embeddings.T - log_popularity
    flat = items.flatten()
    excluded = (~mask.flatten()).repeat(len(logits), 1)
    for user in range(users):
        own = torch.isin(flat, items[user][mask[user]])
        for position in range(length - 1):
            row = user * (length - 1) + position
            excluded[row, own] = True
            excluded[row, user * length + position + 1] = False
    logits = logits.masked_fill(excluded, -1e4)
    targets = torch.arange(users)[:, None] * length + torch.arange(1, length)
    valid = mask[:, :-1].flatten()
    return nn.functional.cross_entropy(logits[valid], targets.flatten()[valid])


def naive_steps(network: SequentialRecommender, batches: Batches, folder: Path, workers: int) -> Iterator[None]:
    """Train the naive way; every item is a step."""
    optimizer = torch.optim.Adam(parameter_groups(network, recipe("reference").optimizer, 1e-4))
    popularity = torch.from_numpy(batches.popularity).float()
    loader = DataLoader(
        Slots(windows_of(batches), folder), USERS, shuffle=True, num_workers=workers, drop_last=True
    )
    while True:
        for batch in loader:
            optimizer.zero_grad(set_to_none=True)
            naive_loss(network, popularity, *batch).backward()
            optimizer.step()
            yield


def windows_of(batches: Batches) -> np.ndarray:
    windows = batches.windows
    return padded(batches.split.sequences.items, windows.starts, windows.ends, LENGTH + 1)


def settings(folder: Path, precision: str) -> Config:
    folders = {"dataset": folder / "data", "states": folder / "states"}
    changes = (f"training.precision={precision}", "training.device=cpu", "modalities=[image, text]")
    return resolve(recipe("reference").model_copy(update=folders).override(changes))


def prepared(folder: Path, precision: str = "fp32") -> tuple[Config, SequentialRecommender, Batches]:
    config = settings(folder, precision)
    setup = build(config)
    return config, setup.network.train(), Batches(setup.split, LENGTH, USERS, config.loss, "last", 0)


def serve(pipe: Connection, name: str, threads: int, folder: Path) -> None:
    """A side's process: takes as many steps as it is told, again and again, until it is told none."""
    torch.set_num_threads(threads)
    config, network, batches = prepared(folder, OURS.get(name, "fp32"))
    run: Callable[[int], object]
    if name == NAIVE:
        steps = naive_steps(network, batches, folder / "files", threads)
        run = lambda count: [next(steps) for _ in range(count)]  # noqa: E731
    else:
        trainer = Trainer(network, batches, config, lambda _: {}, folder)
        stream = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count(1))
        run = lambda count: trainer.run(itertools.islice(stream, count))  # noqa: E731
    pipe.send(None)
    while count := pipe.recv():
        run(count)
        pipe.send(None)


def bound(network: SequentialRecommender, distinct: float, precision: str) -> dict[str, float]:
    """Seconds of a step's products at the peak of products, and of what Adam moves at that of copies."""
    items, sequence = 3 * (2 * len(LEVELS) * 64 + 64) * WIDTH, 2 * 12 * 64**2
    # The two linears behind a tower are multiplied with each other first; backward takes twice the forward pass.
    products = 3 * 2 * (distinct * items + 3 * 64 * WIDTH**2 + USERS * LENGTH * sequence)
    moved = 28 * sum(value.numel() for _, value in network.trainable())
    return {
        "products": products / peak(torch.float32 if precision == "fp32" else torch.bfloat16),
        "adam": moved / copy_speed(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="of the naive side a turn; ours have 5 times as many")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, os.cpu_count() or 1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(arguments, folder)
        results: dict[str, Any] = {"loss_difference": loss_difference(folder), "threads": {}}
        for threads in arguments.threads:
            results["threads"][str(threads)] = measure(arguments, folder, threads)
    lines = [
        f"{USERS} users a batch, two modalities of {len(LEVELS)} kept states of {WIDTH}; milliseconds a step, "
        f"median (quartiles). The losses of the same batch differ by {results['loss_difference']:.0e} of their "
        "size.",
        "",
        "| threads | | ms a step | times faster, wall | in processor seconds | bound, ms | times the bound |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for threads, each in results["threads"].items():
        for name, seconds in each["seconds"].items():
            ratios = each["times_faster"].get(name, {"wall": 1.0, "processor": 1.0})
            milliseconds = told(seconds, unit=1e3 / each["steps"][name])
            least = sum(each["bounds"][name].values()) if name in OURS else None
            behind = seconds["wall"]["median"] / each["steps"][name] / least if least else None
            lines.append(
                f"| {threads} | {name} | {milliseconds} | {ratios['wall']:.1f} | {ratios['processor']:.1f} "
                + (f"| {1e3 * least:.1f} | {behind:.1f} |" if least else "| | |")
            )
    write_record(arguments.out, "A training step from the cache", results, lines)


def write_data(arguments: argparse.Namespace, folder: Path) -> None:
    dataset = make_dataset(arguments.data, folder)
    models = make_encoders(arguments.tokenizer, folder)
    stores = {
        "image": make_store(load_image(str(models["image"]), "cls"), dataset, folder / "states"),
        "text": make_store(load_text(str(models["text"]), "cls", 30), dataset, folder / "states"),
    }
    write_files(stores, dataset, folder / "files")


def measure(arguments: argparse.Namespace, folder: Path, threads: int) -> dict[str, Any]:
    """All sides, in turns."""
    steps = {NAIVE: arguments.steps, **dict.fromkeys(OURS, 5 * arguments.steps)}
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Callable[[], object]] = {}
    processes = []
    for name, count in steps.items():
        pipe, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, name, threads, folder))
        process.start()
        pipe.recv()
        processes.append((process, pipe))
        sides[name] = partial(_turn, pipe, count)
    seconds = take_turns(sides, arguments.turns)
    for process, pipe in processes:
        pipe.send(0)
        process.join()
    torch.set_num_threads(threads)
    _, network, batches = prepared(folder)
    distinct = statistics.mean(len(batch.rows) for batch in itertools.islice(batches.epoch(1), 50))
    ratios = {name: faster(seconds, NAIVE, name) for name in OURS}
    found = {
        "seconds": seconds,
        "steps": steps,
        "times_faster": {name: {kind: 5 * ratio for kind, ratio in each.items()} for name, each in ratios.items()},
        "bounds": {name: bound(network, distinct, precision) for name, precision in OURS.items()},
        "distinct_items_a_batch": distinct,
    }
    print(threads, json.dumps(found), flush=True)
    return found


def _turn(pipe: Connection, steps: int) -> None:
    pipe.send(steps)
    pipe.recv()


def loss_difference(folder: Path) -> float:
    """Of both designs on one batch, next to its size."""
    _, network, batches = prepared(folder)
    slots = Slots(windows_of(batches), folder / "files")
    popularity = torch.from_numpy(batches.popularity).float()
    network.eval()
    chosen = np.arange(USERS)
    rows = [slots[row] for row in chosen.tolist()]
    with torch.no_grad():
        theirs = naive_loss(network, popularity, *(torch.stack(part) for part in zip(*rows, strict=True)))
        ours = batch_loss(network, batches.collate(chosen, np.empty(0, np.int64)), "mean")
    difference = float((theirs - ours).abs() / ours)
    print(f"losses of the same batch differ by {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
