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

A step of ``default`` takes its turns too, with two modalities and the negatives that it draws; the anchor, fitted
once, has no part in it.

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
from iisan.machine import keep_freed_memory
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
#: Our sides, a recipe and a precision each.
OURS = {
    f"{name}, {precision}": (name, precision)
    for name in ("reference", "default")
    for precision in ("fp32", "bf16")
}
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


def settings(folder: Path, name: str, precision: str) -> Config:
    folders = {"dataset": folder / "data", "states": folder / "states"}
    changes = [f"training.precision={precision}", "training.device=cpu", "modalities=[image, text]"]
    if name == "reference":
        changes.append(f"training.batch_size={USERS}")
    else:
        # The states are those of the published code, which reads them as they were pooled for it.
        changes += ["anchor.enabled=false", "text.pooling=cls", "text.max_tokens=30", "image.pooling=cls"]
    return resolve(recipe(name).model_copy(update=folders).override(changes))


def prepared(
    folder: Path, name: str = "reference", precision: str = "fp32"
) -> tuple[Config, SequentialRecommender, Batches]:
    config = settings(folder, name, precision)
    setup, training = build(config), config.training
    batches = Batches(setup.split, LENGTH, training.batch_size, config.loss, training.windows, 0)
    return config, setup.network.train(), batches


def serve(pipe: Connection, name: str, threads: int, folder: Path) -> None:
    """A side's process: takes as many steps as it is told, again and again, until it is told none."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as ``iisan train`` does
    config, network, batches = prepared(folder, *OURS.get(name, ()))
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


def bound(config: Config, network: SequentialRecommender, batches: Batches) -> dict[str, float]:
    """Seconds of a step's products at the peak of products, and of what Adam moves at that of copies."""
    some = list(itertools.islice(batches.epoch(1), 50))
    distinct = statistics.mean(len(batch.rows) for batch in some)
    users, predicted = config.training.batch_size, statistics.mean(batch.predicted for batch in some)
    width, towers = config.items.embedding_dim, 3
    item = towers * ((2 * len(LEVELS) * config.items.bottleneck + width) * WIDTH + width**2)
    products = distinct * item + users * LENGTH * config.sequence.num_layers * 12 * width**2
    products += predicted * distinct * width
    if config.items.projection == "double":
        # The two linears behind a tower are multiplied with each other first.
        products += towers * width * WIDTH**2
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    moved = 28 * sum(value.numel() for _, value in network.trainable())
    # The backward pass takes twice the forward pass.
    return {"products": 3 * 2 * products / peak(dtype), "adam": moved / copy_speed(), "items": distinct}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=8, help="of the naive side a turn; ours have up to 5 times as many"
    )
    parser.add_argument("--threads", type=int, nargs="*", default=[1, os.cpu_count() or 1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(arguments, folder)
        results: dict[str, Any] = {"loss_difference": loss_difference(folder), "threads": {}}
        for threads in arguments.threads:
            results["threads"][str(threads)] = measure(arguments, folder, threads)
    training, loss = recipe("default").training, recipe("default").loss
    lines = [
        f"Two modalities of {len(LEVELS)} kept states of {WIDTH}; {USERS} users a batch, in `default` "
        f"{training.batch_size} and {loss.negatives} negatives. Milliseconds a step, median (quartiles); times "
        "faster than the published design in wall time and in processor time. The losses of the same batch differ "
        f"by {results['loss_difference']:.0e} of their size.",
        "",
        "| threads | | ms a step | times faster | in processor time | items | bound, ms | times the bound |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for threads, each in results["threads"].items():
        for name, seconds in each["seconds"].items():
            cells = [threads, name, told(seconds, unit=1e3 / each["steps"][name]), *5 * [""]]
            if ratios := each["times_faster"].get(name):
                cells[3:5] = f"{ratios['wall']:.1f}", f"{ratios['processor']:.1f}"
            if bounds := each["bounds"].get(name):
                least = bounds["products"] + bounds["adam"]
                behind = seconds["wall"]["median"] / each["steps"][name] / least
                cells[5:] = f"{bounds['items']:.0f}", f"{1e3 * least:.1f}", f"{behind:.2f}"
            lines.append(f"| {' | '.join(cells)} |")
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
    steps = {
        NAIVE: arguments.steps,
        **{name: (5 if name.startswith("reference") else 3) * arguments.steps for name in OURS},
    }
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
    found = {
        "seconds": seconds,
        "steps": steps,
        "times_faster": {
            name: {kind: 5 * ratio for kind, ratio in faster(seconds, NAIVE, name).items()}
            for name in OURS
            if name.startswith("reference")
        },
        "bounds": {name: bound(*prepared(folder, *side)) for name, side in OURS.items()},
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
