"""What the compared methods cost at real size, measured in one run, each method in a process of its own.

    python benchmarks/methods.py DATA TOKENIZER --out benchmarks/results/methods.json

DATA is the folder of the Scientific tables, TOKENIZER a folder with BERT's tokenizer (any BERT-like model has it).
The encoders have the shapes of bert-base and vit-base and random weights, since the cost does not depend on the
weights; pictures are noise, one an item; cached states are random numbers in a store of full size. Sequences and
titles are real. fp32, the settings of the recipe ``paper`` but for the batch.
"""

import argparse
import datetime
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from synthetic import make_dataset, make_encoders, make_store

from iisan.efficiency.estimate import Estimate, estimate
from iisan.efficiency.hardware import Hardware
from iisan.efficiency.measure import Efficiency, measure
from iisan.efficiency.models import Blueprint
from iisan.efficiency.workload import DataShape
from iisan.encoders.image import load_image
from iisan.encoders.text import load_text
from iisan.evaluate.tpme import Measurement, tpme
from iisan.experiments.tables import full_settings
from iisan.files import aside, write_json
from iisan.machine import processor_name
from iisan.names import TEXT

#: Of a text, special ones included (IISAN): most titles are as long or longer.
TOKENS = 30
METHODS = {
    "FFT": ("fft", 3, 1),
    "Adapter": ("adapter", 3, 1),
    "LoRA": ("lora", 3, 1),
    "BitFit": ("bitfit", 3, 1),
    "IISAN (uncached)": ("uncached", 3, 1),
    "IISAN (cached)": ("default", 100, 10),
}
#: What the paper measured on an A6000 with batch 32 (seconds an epoch, GB), and the published code's design on a
#: two-core server CPU at 4 users a batch (seconds a step, GB).
PAPER = {
    "FFT": (443, 46.76, 27.0, 12.5),
    "Adapter": (354, 37.82, 22.3, 10.0),
    "LoRA": (378, 39.07, 20.5, 9.1),
    "BitFit": (403, 36.97, 20.3, 7.9),
    "IISAN (uncached)": (179, 8.32, 8.3, 2.5),
    "IISAN (cached)": (22, 3.11, 0.030, 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=4, help="users a batch")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations of trained encoders")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, help="measured steps of every method but the cached one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = make_dataset(arguments.data, folder)
        models = make_encoders(arguments.tokenizer, folder)
        make_store(load_text(str(models["text"]), "cls", 30), dataset, folder / "states")
        make_store(load_image(str(models["image"]), "cls"), dataset, folder / "states")
        hardware = Hardware.measure("cpu", "fp32")
        blueprints = {
            modality: Blueprint.of_folder(str(path), modality, TOKENS if modality == TEXT else None)
            for modality, path in models.items()
        }
        found: dict[str, Efficiency] = {}
        predicted: dict[str, Estimate] = {}
        for name in arguments.methods:
            recipe, steps, warm_up = METHODS[name]
            checkpointing = arguments.checkpointing and recipe not in ("uncached", "default")
            config = full_settings(recipe).override(
                (
                    f"dataset={folder / 'data'}",
                    f"states={folder / 'states'}",
                    "modalities=[image, text]",
                    *(f"{modality}.encoder={path}" for modality, path in models.items()),
                    f"training.batch_size={arguments.users}",
                    "training.precision=fp32",
                    f"tuning.gradient_checkpointing={checkpointing}",
                )
            )
            if arguments.steps and recipe != "default":
                steps, warm_up = arguments.steps, 0
            predicted[name] = estimate(config, blueprints, DataShape.of_dataset(dataset, config), hardware)
            found[name] = measure(config, steps, warm_up)
            print(name, json.dumps(asdict(found[name])), flush=True)
    record = make_record(arguments.users, arguments.checkpointing, hardware, found, predicted)
    write_json(arguments.out, record)
    with aside(arguments.out.with_suffix(".md")) as path:
        path.write_text(markdown(record), encoding="utf-8")


def make_record(
    users: int,
    checkpointing: bool,
    hardware: Hardware,
    found: dict[str, Efficiency],
    predicted: dict[str, Estimate],
) -> dict[str, Any]:
    above = {name: cost.peak_memory_bytes - cost.baseline_memory_bytes for name, cost in found.items()}
    costs = [
        Measurement(name, cost.seconds_per_step, cost.trainable_parameters, above[name])
        for name, cost in found.items()
    ]
    scores = tpme(costs) if len(costs) > 1 else {}
    fastest = min(cost.seconds_per_step for cost in found.values())
    names = ("s_per_epoch_a6000", "gb_a6000", "s_per_step_cpu", "gb_cpu")
    return {
        "what": "cost of a training step, bert-base and vit-base shapes, Scientific sequences, fp32",
        "date": datetime.date.today().isoformat(),
        "users_a_batch": users,
        "gradient_checkpointing": checkpointing,
        "machine": {"processor": processor_name(), "cores": os.cpu_count(), "torch": torch.__version__},
        "hardware": asdict(hardware),
        "methods": {
            name: {
                **asdict(cost),
                "memory_above_imports": above[name],
                "times_slower_than_the_fastest": cost.seconds_per_step / fastest,
                "times_the_least_memory": above[name] / min(above.values()),
                "tpme": scores.get(name),
                "predicted": {
                    "seconds_per_step": predicted[name].seconds_per_step,
                    "memory_bytes": predicted[name].peak_memory_bytes,
                    "trainable_parameters": predicted[name].trainable_parameters,
                },
                "published": dict(zip(names, PAPER[name], strict=True)),
            }
            for name, cost in found.items()
        },
    }


def markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    lines = [
        f"# {record['what']}",
        "",
        f"{record['date']}, {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, no GPU; "
        f"{record['users_a_batch']} users a batch"
        + (
            ", gradient checkpointing for methods that train the encoders."
            if record["gradient_checkpointing"]
            else "."
        )
        + f" Predictions rest on {record['hardware']['flops'] / 1e9:,.0f} GFLOP/s and "
        f"{record['hardware']['bandwidth'] / 1e9:,.0f} GB/s.",
        "",
        "| method | s / step | times the fastest | predicted s | memory GB | times the least | predicted GB "
        "| trained parameters | TPME % | published code, CPU: s / step, GB | paper, A6000: s / epoch, GB |",
        "|---" + "|---:" * 10 + "|",
    ]
    for name, cost in record["methods"].items():
        published, predicted = cost["published"], cost["predicted"]
        cells = [
            name,
            f"{cost['seconds_per_step']:.3f}",
            f"{cost['times_slower_than_the_fastest']:,.0f}",
            f"{predicted['seconds_per_step']:.3f}",
            f"{cost['memory_above_imports'] / 1e9:.2f}",
            f"{cost['times_the_least_memory']:.1f}",
            f"{predicted['memory_bytes'] / 1e9:.2f}",
            f"{cost['trainable_parameters']:,}",
            "–" if cost["tpme"] is None else f"{100 * cost['tpme']:.2f}",
            f"{published['s_per_step_cpu']}, {published['gb_cpu']}",
            f"{published['s_per_epoch_a6000']}, {published['gb_a6000']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
