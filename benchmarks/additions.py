"""Items that are added to a finished run: seconds, memory and bytes at 20 thousand and at a million items.

    python benchmarks/additions.py MODEL --out benchmarks/results/additions.json

A run of `default` is trained on a few thousand items and grown to the size: its embeddings, anchors and similar
items are repeated with some noise, and its store holds random states of the encoder's width for every title. 100
items with new titles are added several times, in turns by the command, measured from outside, and by the function,
whose stages are measured. Every size has a process of its own. In the end all files that were there before, but
for the manifest of the store, must be the same: not written to and not replaced.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import psutil
import torch
from safetensors.torch import load_file, save_file
from synthetic import write_store
from timing import PeakMemory, write_record
from torch.nn.functional import normalize

from iisan.data.dataset import Dataset
from iisan.encoders.load import load_encoder
from iisan.files import content_key, write_json
from iisan.names import ITEM_ID, TEXT, USER_ID
from iisan.recipes import recipe
from iisan.runs.additions import Additions
from iisan.runs.anchoring import ANCHOR, TERMS
from iisan.runs.run import EMBEDDINGS, ITEMS, MODEL, Run
from iisan.serve import items as adding
from iisan.train.run import train

CATALOGUES = (20_000, 1_000_000)
#: Items that are trained on, of which the catalogues are multiples, and their users.
BASE, USERS, LENGTH = 4_000, 1_000, 8
NEW, TURNS = 100, 3
NOISE = 0.2
WORDS = 20_000
#: Stage -> functions of the module that adds items.
STAGES = {
    "reading the run": (Run, "load"),
    "earlier additions": (Additions, "changes"),
    "encoding": (adding, "_stored"),
    "learned vectors": (adding, "_embeddings"),
    "anchors": (adding, "item_anchors"),
    "similar items": (adding, "similar_items"),
    "writing": (adding, "write_segment"),
}


def titles(count: int, seed: int) -> list[str]:
    """Titles of twelve words."""
    numbers = np.random.default_rng(seed).integers(0, WORDS, (count, 12))
    return [" ".join(f"word{number}" for number in row) for row in numbers.tolist()]


def frame(texts: list[str], prefix: str = "item") -> pl.DataFrame:
    return pl.DataFrame({ITEM_ID: [f"{prefix}{row}" for row in range(len(texts))], TEXT: texts})


def build(count: int, model: Path, folder: Path) -> None:
    """A run of so many items, and the store of its states."""
    texts = titles(count, 0)
    encoder = load_encoder(TEXT, str(model))
    settings = {"modality": TEXT, **encoder.settings}
    write_store(folder / "states", settings, encoder.depth, encoder.width, list(map(content_key, texts)))
    rng = np.random.default_rng(0)
    log = pl.DataFrame(
        {
            USER_ID: [f"user{row}" for row in np.arange(USERS).repeat(LENGTH)],
            ITEM_ID: [f"item{row}" for row in rng.integers(0, BASE, USERS * LENGTH)],
        }
    )
    Dataset.from_frames(frame(texts[:BASE]), log).save(folder / "data")
    config = recipe("default").override(["training.epochs=1"])
    train(config.model_copy(update={"dataset": folder / "data", "states": folder / "states"}), folder / "run")
    grow(folder / "run", texts)


def grow(run: Path, texts: list[str]) -> None:
    """Repeat the items of a trained run, with some noise, so that it has one for each text."""
    count = len(texts)
    times = count // BASE
    tensors = load_file(run / MODEL)
    vectors = [EMBEDDINGS, *(name for name in tensors if name.startswith(ANCHOR) and name.endswith(".vectors"))]
    for name in vectors:
        values = tensors[name].repeat(times, 1)
        for rows in torch.arange(count).split(2**16):
            noise = torch.randn(len(rows), values.shape[1]).mul_(NOISE / values.shape[1] ** 0.5)
            values[rows] = normalize(values[rows] + noise, dim=1)
        tensors[name] = values
    tensors[f"{TERMS}counts"] = tensors[f"{TERMS}counts"].repeat(times)
    # No item of the other repetitions was bought.
    offsets = tensors[f"{TERMS}shares.indptr"]
    tensors[f"{TERMS}shares.indptr"] = torch.cat([offsets, offsets[-1:].expand(count - BASE)])
    neighbours = f"{TERMS}neighbours."
    tensors[f"{neighbours}data"] = tensors[f"{neighbours}data"].repeat(times)
    found = tensors[f"{neighbours}indices"]
    tensors[f"{neighbours}indices"] = torch.cat([found + first for first in range(0, count, BASE)])
    offsets = tensors[f"{neighbours}indptr"][:-1]
    starts = [offsets[:-1] + number * len(found) for number in range(times)]
    tensors[f"{neighbours}indptr"] = torch.cat([*starts, *2 * [torch.tensor([times * len(found)])]]).to(offsets)
    save_file(tensors, run / MODEL)
    frame(texts).write_parquet(run / ITEMS)


def files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What would tell that a file was written to or replaced."""
    found = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (each.st_ino, each.st_size, each.st_mtime_ns) for name, each in found.items()}


def clock() -> np.ndarray:
    """Wall time and processor seconds of this process and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime])


def since(began: np.ndarray) -> dict[str, float]:
    return dict(zip(("wall", "processor"), (clock() - began).tolist(), strict=True))


@contextmanager
def stages() -> Iterator[dict[str, Any]]:
    """Measure the functions of ``STAGES``, each called once, while it is entered."""
    found: dict[str, Any] = {}

    def measured(stage: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            began = clock()
            result = function(*arguments, **options)
            found[stage] = since(began)
            return result

        return call

    with ExitStack() as patches:
        for stage, (place, name) in STAGES.items():
            patches.enter_context(patch.object(place, name, measured(stage, getattr(place, name))))
        yield found


def by_function(folder: Path, turn: int) -> dict[str, Any]:
    """Add items in this process."""
    process, memory = psutil.Process(), PeakMemory()
    items = frame(titles(NEW, 1_000 + turn), f"new{turn}-")
    held, written, began = memory.now(), process.io_counters().write_chars, clock()
    with memory, stages() as found:
        adding.add_items(folder / "run", items)
    return {
        "seconds": since(began),
        "stages": found,
        "bytes_above_start": memory.peak - held,
        "bytes_written": process.io_counters().write_chars - written,
    }


def by_command(folder: Path, turn: int) -> dict[str, float]:
    """Add items by the command line."""
    table = folder / "new.csv"
    frame(titles(NEW, 2_000 + turn), f"command{turn}-").write_csv(table)
    began = clock()
    subprocess.run([sys.executable, "-m", "iisan.cli", "add-items", folder / "run", table], check=True)
    return since(began)


def measure(count: int, folder: Path) -> dict[str, Any]:
    """Add items several times, by the command and by the function."""
    before = files(folder)
    commands, functions, openings = [], [], []
    for turn in range(TURNS):
        commands.append(by_command(folder, turn))
        functions.append(by_function(folder, turn))
        began = clock()
        run = Run.load(folder / "run", with_additions=True)
        openings.append(since(began))
        assert len(run.items) == count + (2 * turn + 2) * NEW
        del run
    after = files(folder)
    changed = {Path(name).name for name, found in before.items() if after[name] != found}
    assert changed == {"manifest.json"}, changed
    return {
        "items": count,
        "command": commands,
        "function": functions,
        "opening": openings,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs="*", default=list(CATALOGUES), help=f"multiples of {BASE:,}")
    parser.add_argument("--folder", type=Path, help="where runs are built; by default a temporary folder")
    parser.add_argument("--step", choices=["build", "measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "build":
        build(arguments.items[0], arguments.model, arguments.folder)
        return
    if arguments.step == "measure":
        write_json(arguments.out, measure(arguments.items[0], arguments.folder))
        return
    found = []
    for count in arguments.items:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
            out = Path(temporary) / "found.json"
            for step in ("build", "measure"):
                options = [f"--items={count}", f"--step={step}", f"--folder={temporary}", f"--out={out}"]
                subprocess.run([sys.executable, __file__, arguments.model, *options], check=True)
            found.append(json.loads(out.read_text()))
    lines = [
        f"{NEW} items with new titles, {found[0]['threads']} thread; processor seconds and, in brackets, seconds, "
        f"each the least of {TURNS}; in the function without the libraries' start. Stages in processor seconds.",
        "",
        f"| items | `iisan add-items` | the function | {' | '.join(STAGES)} | opening the run after it | "
        "MB of memory | MB written |",
        f"|---:|{'---:|' * (len(STAGES) + 5)}",
    ]
    for each in found:
        function = each["function"]
        parts = [min(turn["stages"][stage]["processor"] for turn in function) for stage in STAGES]
        cells = [
            f"{each['items']:,}",
            least(each["command"]),
            least([turn["seconds"] for turn in function]),
            *(f"{part:.2f}" for part in parts),
            least(each["opening"]),
            f"{max(turn['bytes_above_start'] for turn in function) / 1e6:,.0f}",
            f"{max(turn['bytes_written'] for turn in function) / 1e6:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    write_record(arguments.out, "Adding items to a finished run", {"catalogues": found}, lines)


def least(seconds: list[dict[str, float]]) -> str:
    """Least processor seconds and, in brackets, least seconds: on a busy machine the rest is waiting."""
    processor, wall = (min(each[kind] for each in seconds) for kind in ("processor", "wall"))
    return f"{processor:.1f} ({wall:.1f})"


if __name__ == "__main__":
    main()
