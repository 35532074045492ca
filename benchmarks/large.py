"""What a decoder of eight billion weights needs in `iisan cache`: measured on groups of its layers, and on paper.

    python benchmarks/large.py TOKENIZER --out benchmarks/results/large.json

Shapes of Llama 3 8B (32 layers of width 4,096, 32 heads of which 8 hold keys and values, 14,336 inside), random
weights in bf16, the small vocabulary of TOKENIZER. Models with 1, 2 and 4 of the layers encode titles of 30
tokens, each in a process of its own. What a layer costs is the slope between the smallest and the largest; 32
layers are the sum. ``on the disk`` leaves the layers in their file, from where accelerate fetches one at a time.
Next to the seconds is the prediction of ``iisan estimate``, from the configuration and the rates of this machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from extraction import TOKENS, contents_of
from timing import write_record

from iisan.efficiency.hardware import Hardware
from iisan.efficiency.models import Blueprint, model_costs
from iisan.encoders.levels import parse_levels
from iisan.encoders.loading import Loading
from iisan.encoders.text import load_text
from iisan.machine import forget_peak, peak_resident_bytes
from iisan.names import TEXT
from iisan.recipes import recipe
from iisan.states import extract as extraction_module
from iisan.states.extract import extract

SHAPE: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip
LAYERS, VOCABULARY = 32, 128_256
GROUPS = (1, 2, 4)
ON_DISK = {"embed_tokens": "cpu", "rotary_emb": "cpu", "layers": "disk", "norm": "cpu"}


def make_model(folder: Path, layers: int, tokenizer: str) -> Path:
    """A folder with some of the layers."""
    found = transformers.AutoTokenizer.from_pretrained(tokenizer)
    config = transformers.LlamaConfig(**SHAPE, num_hidden_layers=layers, vocab_size=len(found))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    transformers.LlamaModel(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    found.save_pretrained(folder)
    return folder


def serve(model: Path, out: Path, count: int, on_disk: bool) -> dict[str, float]:
    """Encode titles in this process, after four that warm up."""
    titles = [f"{number} " + "stainless steel valve " * 20 for number in range(count + 4)]
    contents, few = contents_of(titles, TEXT), contents_of(titles, TEXT)
    few.present[4:] = False
    forget_peak(torch.device("cpu"))
    before, started = peak_resident_bytes(), time.perf_counter()
    encoder = load_text(str(model), "mean", TOKENS, loading=Loading("bf16", ON_DISK if on_disk else None))
    loaded = time.perf_counter() - started
    # Contents are nearly alike to random weights, so their storage error would be refused.
    extraction_module.MAX_ERROR = 1.0
    extract(encoder, few, out, precision="bf16", batch_size=count)
    started = time.perf_counter()
    store = extract(encoder, contents, out, precision="bf16", batch_size=count)
    return {
        "load_seconds": loaded,
        "seconds_an_item": (time.perf_counter() - started) / count,
        "peak_bytes": peak_resident_bytes() - before,
        "levels": len(store.levels),
        "state_bytes_an_item": 2 * len(store.levels) * encoder.width,
    }


def predicted(model: Path, hardware: Hardware) -> float:
    """Seconds an item, as ``iisan estimate`` counts them."""
    return hardware.seconds(
        model_costs(Blueprint.of_folder(str(model), TEXT, TOKENS), recipe("default"), 1, "bf16").caching
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--serve", type=int, nargs=2, metavar=("ITEMS", "ON_DISK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        items, on_disk = arguments.serve
        print(json.dumps(serve(arguments.tokenizer, arguments.out, items, bool(on_disk))))
        return
    hardware = Hardware.measure("cpu", "bf16")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for layers in GROUPS:
            model = make_model(Path(temporary) / str(layers), layers, str(arguments.tokenizer))
            for name, on_disk in ((f"{layers}", 0), (f"{layers}, on the disk", 1)):
                command = [sys.executable, __file__, str(model), "--out", f"{model}-states-{on_disk}"]
                done = subprocess.run(
                    [*command, "--serve", str(arguments.items), str(on_disk)],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[name] = json.loads(done.stdout.splitlines()[-1]) | {
                    "layers": layers,
                    "file_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
                    "predicted_seconds_an_item": predicted(model, hardware),
                }
                print(name, found[name], flush=True)
    whole = extrapolated(found, len(transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)))
    lines = [
        f"{arguments.items} titles of {TOKENS} tokens in one batch, weights and products in bf16, "
        f"{torch.get_num_threads()} threads, {hardware.flops / 1e9:,.0f} GFLOP/s in products.",
        "",
        "| layers | weights, GB | s an item | predicted | peak memory, GB | bytes an item |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {each['file_bytes'] / 1e9:.2f} | {each['seconds_an_item']:.2f} "
            f"| {each['predicted_seconds_an_item']:.2f} | {each['peak_bytes'] / 1e9:.2f} "
            f"| {each['state_bytes_an_item']:,} |"
            for name, each in {**found, f"{LAYERS}, by the slope": whole}.items()
        ),
        "",
        f"The whole model has {VOCABULARY:,} tokens, whose embeddings are counted in the last row; its peak is "
        "for weights in memory.",
    ]
    write_record(arguments.out, "A decoder of eight billion weights", {"groups": found, "whole": whole}, lines)


def extrapolated(found: dict[str, dict[str, Any]], vocabulary: int) -> dict[str, float]:
    """All layers: what the smallest group has, and the slope to the largest for the others; and all tokens."""
    first, last = found[str(GROUPS[0])], found[str(GROUPS[-1])]
    more = (LAYERS - GROUPS[0]) / (GROUPS[-1] - GROUPS[0])
    whole = {
        name: first[name] + more * (last[name] - first[name])
        for name in ("file_bytes", "seconds_an_item", "predicted_seconds_an_item", "peak_bytes")
    }
    rest = 2 * (VOCABULARY - vocabulary) * SHAPE["hidden_size"]
    return {
        **whole,
        "file_bytes": whole["file_bytes"] + rest,
        "peak_bytes": whole["peak_bytes"] + rest,
        "state_bytes_an_item": 2 * len(parse_levels("layerdrop", LAYERS)) * SHAPE["hidden_size"],
    }


if __name__ == "__main__":
    main()
