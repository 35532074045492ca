"""What a GPU makes of training and extraction, and whether its numbers are those of the processor.

    python benchmarks/gpu.py DATA TOKENIZER --out benchmarks/results/gpu.json

DATA is the folder of the Scientific tables, TOKENIZER a folder with BERT's tokenizer. Encoders have the shapes of
bert-base and vit-base and random weights, cached states are random numbers in a store of full size, sequences and
titles are real. First come the tests in ``tests/test_gpu.py``; then

- a step from the cache, with the states on the GPU and, for comparison, read per batch, and one of full
  fine-tuning: seconds, times an epoch's steps, and peak memory of the GPU;
- titles and pictures a second through the encoders, decoding and writing included.

Without a GPU everything runs on the processor at reduced size, which shows that the script works, nothing else.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from extraction import BATCH, TOKENS, contents_of, jpeg
from synthetic import make_dataset, make_encoders, make_store
from timing import write_record

from iisan.efficiency.measure import measure
from iisan.encoders.image import load_image
from iisan.encoders.text import load_text
from iisan.experiments.tables import full_settings
from iisan.names import IMAGE, TEXT
from iisan.states import extract as extraction_module
from iisan.states.extract import extract

TESTS = Path(__file__).parents[1] / "tests" / "test_gpu.py"
#: Name -> recipe, changes, measured steps on a GPU and on a processor.
SIDES: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "cached, states on the device": ("default", (), 200, 10),
    "cached, states read per batch": ("default", ("training.resident_gb=0",), 200, 10),
    "cached, settings of the published code": ("reference", (), 200, 10),
    "full fine-tuning": ("fft", ("training.batch_size=32",), 20, 1),
}


def test_output() -> str:
    """Last line of the tests that compare a GPU with the processor."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parents[1])
    return (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def training(folder: Path, models: dict[str, Path], device: str) -> dict[str, Any]:
    """Costs of every side."""
    found = {}
    for name, (recipe, changes, on_gpu, on_processor) in SIDES.items():
        settings = [
            f"dataset={folder / 'data'}", f"states={folder / 'states'}", "modalities=[image, text]",
            f"training.device={device}", *(f"{kind}.encoder={path}" for kind, path in models.items()), *changes,
        ]  # fmt: skip
        if recipe == "fft" and device == "cpu":
            settings.append("training.batch_size=2")
        steps = on_gpu if device == "cuda" else on_processor
        found[name] = asdict(measure(full_settings(recipe).override(settings), steps, steps // 10))
        print(name, found[name], flush=True)
    return found


def extraction(folder: Path, models: dict[str, Path], counts: dict[str, int], device: str) -> dict[str, Any]:
    """Contents a second, after a few that warm up."""
    values: dict[str, list[Any]] = {
        TEXT: [f"{number} " + "stainless steel valve " * 20 for number in range(counts[TEXT])],
        IMAGE: [jpeg(number) for number in range(counts[IMAGE])],
    }
    encoders = {TEXT: load_text(str(models[TEXT]), "mean", TOKENS), IMAGE: load_image(str(models[IMAGE]), "cls")}
    found = {}
    for kind, encoder in encoders.items():
        size = BATCH[kind] * (8 if device == "cuda" else 1)
        contents = contents_of(values[kind], kind)
        few = contents_of(values[kind], kind)
        few.present[min(size, counts[kind] // 2) :] = False
        extract(encoder, few, folder / "extracted", batch_size=size, device=device)
        started = time.perf_counter()
        extract(encoder, contents, folder / "extracted", batch_size=size, device=device)
        count = int(contents.present.sum() - few.present.sum())
        found[kind] = {"contents": count, "a_second": count / (time.perf_counter() - started)}
        print(kind, found[kind], flush=True)
    return found


def main() -> None:
    # Contents are nearly alike to random weights, so bf16 would be refused; the time does not depend on it.
    extraction_module.MAX_ERROR = 1.0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = {TEXT: 20_000, IMAGE: 8_000} if device == "cuda" else {TEXT: 128, IMAGE: 64}
    tests = test_output()
    print(tests, flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = make_dataset(arguments.data, folder)
        models = make_encoders(arguments.tokenizer, folder)
        make_store(load_text(str(models[TEXT]), "cls", TOKENS), dataset, folder / "states")
        make_store(load_image(str(models[IMAGE]), "cls"), dataset, folder / "states")
        trained = training(folder, models, device)
        extracted = extraction(folder, models, counts, device)
    reduced = ["No GPU: on the processor, at reduced size. These are no figures of a GPU.", ""]
    lines = [
        *(reduced if device == "cpu" else []),
        f"`tests/test_gpu.py`: {tests}",
        "",
        "| | precision | ms a step | steps an epoch | s an epoch | peak memory, GB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, cost in trained.items():
        lines.append(
            f"| {name} | {cost['precision']} | {1e3 * cost['seconds_per_step']:.1f} | {cost['steps_per_epoch']:,} "
            f"| {cost['seconds_per_epoch']:.2f} | {cost['peak_memory_bytes'] / 1e9:.2f} ({cost['memory']}) |"
        )
    a_second = {kind: f"{each['a_second']:,.0f}" for kind, each in extracted.items()}
    lines += [
        "",
        f"Extraction of LayerDrop's levels: {a_second[TEXT]} titles of {TOKENS} tokens and {a_second[IMAGE]} "
        "pictures of 256² pixels a second.",
    ]
    results = {"device": device, "tests": tests, "training": trained, "extraction": extracted}
    write_record(arguments.out, "Training and extraction on a GPU", results, lines)


if __name__ == "__main__":
    main()
