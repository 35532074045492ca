"""Training from the cache, next to the published design re-created naively, in one run.

    python benchmarks/training.py DATA TOKENIZER --out benchmarks/results/training.json

DATA is the folder of the Scientific tables, TOKENIZER a folder with BERT's tokenizer. Two modalities of 13 ×
768 states with random values, the settings of the recipe ``reference``, real sequences, fp32.

The naive side does what the published code does, written anew: one file an item and modality with all 13
states, read by worker processes; every slot encoded, padding too; every slot a candidate; the loss masks user
by user in a Python loop. Both sides train the same network, and their losses on the same batch are compared
first; a third side is ours in bf16 with ``training.compile``. Sides take turns, so a busy machine slows both;
medians over the turns are reported with their quartiles, and processor seconds beside wall time.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import make_backbones, make_dataset, make_store
from timing import faster, take_turns, told, write_record
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from iisan.backbones.image import load_image
from iisan.backbones.text import load_text
from iisan.data.dataset import Dataset
from iisan.data.sequences import padded
from iisan.model import SequentialRecommender
from iisan.names import PAD
from iisan.recipes import recipe
from iisan.states.store import StateStore
from iisan.train.batches import Batches
from iisan.train.loop import batch_loss, parameter_groups
from iisan.train.setup import build, resolve

LEVELS = (0, 2, 4, 6, 8, 10, 12)
#: Our sides, which take five times the steps of the naive one in a turn.
OURS = ("iisan", "iisan, bf16, compiled")


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


def naive_loss(
    network: SequentialRecommender, popularity: Tensor, items: Tensor, image: Tensor, text: Tensor
) -> Tensor:
    """Loss of one batch, slot by slot: items [B, S + 1], states [B, S + 1, K, D]."""
    users, length = items.shape
    slots = torch.arange(users * length)
    states = {"image": (image.flatten(0, 1), slots), "text": (text.flatten(0, 1), slots)}
    embeddings = network.items(slots, states)
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


def optimizer_of(network: SequentialRecommender, fused: bool) -> torch.optim.Adam:
    return torch.optim.Adam(parameter_groups(network, recipe("reference").optimizer, 1e-4), fused=fused)


def take(losses: Iterator[Tensor], optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train some steps."""
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        next(losses).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10, help="of the naive side a turn; ours has 5 times as many")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, os.cpu_count() or 1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = measure(arguments, Path(temporary))
    lines = [
        "64 users a batch, two modalities of 7 kept states of 768, fp32; milliseconds a step, median (quartiles). "
        f"The losses of the same batch differ by {results['loss_difference']:.0e} of their size.",
        "",
        "| threads | | ms a step | times faster, wall | in processor seconds |",
        "|---:|---|---:|---:|---:|",
    ]
    for threads, each in results["threads"].items():
        for name, seconds in each["seconds"].items():
            ratios = each["times_faster"].get(name, {"wall": 1.0, "processor": 1.0})
            said = "the published design, re-created" if name == "naive" else name
            milliseconds = told(seconds, unit=1e3 / each["steps"][name])
            lines.append(
                f"| {threads} | {said} | {milliseconds} | {ratios['wall']:.1f} | {ratios['processor']:.1f} |"
            )
    write_record(arguments.out, "A training step from the cache", results, lines)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides, in turns."""
    dataset = make_dataset(arguments.data, folder)
    models = make_backbones(arguments.tokenizer, folder)
    stores = {
        "image": make_store(load_image(str(models["image"]), "cls"), dataset, folder / "states"),
        "text": make_store(load_text(str(models["text"]), "cls", 30), dataset, folder / "states"),
    }
    write_files(stores, dataset, folder / "files")
    folders = {"dataset": folder / "data", "states": folder / "states"}
    changes = ("training.precision=fp32", "training.device=cpu", "modalities=[image, text]")
    config = resolve(recipe("reference").model_copy(update=folders).override(changes))
    network = build(config).network
    split = build(config).split
    batches = Batches(split, 10, 64, config.loss, "last", 0)
    popularity = torch.from_numpy(batches.popularity).float()
    windows = batches.windows
    items = padded(split.sequences.items, windows.starts, windows.ends, 11)

    def naive_losses(workers: int) -> Iterator[Tensor]:
        loader = DataLoader(Slots(items, folder / "files"), 64, shuffle=True, num_workers=workers, drop_last=True)
        while True:
            for batch in loader:
                yield naive_loss(network, popularity, *batch)

    def our_losses(network: SequentialRecommender, bf16: bool = False) -> Iterator[Tensor]:
        epoch = 0
        while True:
            epoch += 1
            for batch in batches.epoch(epoch):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = batch_loss(network, batch, config.loss.reduction)
                yield loss

    difference = _difference(network, batches, Slots(items, folder / "files"), popularity)
    print(f"losses of the same batch differ by {difference:.1e}")
    found: dict[str, Any] = {"loss_difference": difference, "threads": {}}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        compiled = build(config.override(["training.compile=true"])).network
        networks = {"naive": network.train(), "iisan": network, "iisan, bf16, compiled": compiled.train()}
        losses = {
            "naive": naive_losses(threads),
            "iisan": our_losses(network),
            "iisan, bf16, compiled": our_losses(compiled, bf16=True),
        }
        steps = {name: arguments.steps if name == "naive" else 5 * arguments.steps for name in losses}
        sides = {
            name: partial(take, losses[name], optimizer_of(networks[name], name != "naive"), steps[name])
            for name in losses
        }
        summary: dict[str, Any] = {
            "seconds": take_turns(sides, arguments.turns),
            "steps": steps,
            "times_faster": {},
        }
        for name in OURS:
            ratios = faster(summary["seconds"], "naive", name)
            summary["times_faster"][name] = {kind: 5 * ratio for kind, ratio in ratios.items()}
        found["threads"][str(threads)] = summary
        print(threads, json.dumps(summary), flush=True)
    return found


def _difference(network: SequentialRecommender, batches: Batches, slots: Slots, popularity: Tensor) -> float:
    network.eval()
    chosen = np.arange(64)
    rows = [slots[row] for row in chosen]
    with torch.no_grad():
        theirs = naive_loss(network, popularity, *(torch.stack(part) for part in zip(*rows, strict=True)))
        ours = batch_loss(network, batches.collate(chosen, np.empty(0, np.int64)), "mean")
    return float((theirs - ours).abs() / ours)


if __name__ == "__main__":
    main()
