"""What extraction makes of the machine: its share of the matrix products' peak, and the usual library next to it.

    python benchmarks/extraction.py DATA MINILM --out benchmarks/results/extraction.json

DATA is the folder of the Scientific tables, MINILM one of the model all-MiniLM-L6-v2.

- ``text``: titles of exactly 30 tokens through a model of bert-base's shape; ``image``: JPEG files of 256²
  pixels, decoded and cropped on the way, through one of vit-base's shape. Operations are counted by formula
  (products only), and divided by the seconds of the whole extraction: decoding, the model, encoding and
  writing. The peak is that of large matrix products in the same run, in the same number format.
- ``titles``: real titles through MiniLM, next to ``SentenceTransformer.encode`` (where that library is
  installed) on the same titles and model. It gives one vector a title, a store has all kept levels. Extraction
  includes the check of the storage error on 512 titles.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from timing import faster, peak, take_turns, told, write_record

from iisan.backbones.backbone import Backbone
from iisan.backbones.image import load_image
from iisan.backbones.text import load_text
from iisan.data.prepare import prepare
from iisan.names import IMAGE, TEXT
from iisan.states import extract as extraction_module
from iisan.states.contents import Contents
from iisan.states.extract import extract

TOKENS, PATCHES, WIDTH, DEPTH = 30, 197, 768, 12
BATCH = {TEXT: 64, IMAGE: 32}


def operations(tokens: int) -> float:
    """Of one content through bert-base's or vit-base's blocks: the products, and those of attention."""
    return DEPTH * (24 * tokens * WIDTH**2 + 4 * tokens**2 * WIDTH)


def contents_of(values: list[Any], kind: str) -> Contents:
    return Contents(kind, kind, np.ones(len(values), dtype=bool), values.__getitem__, str)


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((256, 256)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_model(folder: Path, kind: str, tokenizer: str) -> Backbone:
    torch.manual_seed(0)
    if kind == TEXT:
        transformers.BertModel(transformers.BertConfig()).save_pretrained(folder / kind)
        transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / kind)
        return load_text(str(folder / kind), "mean", TOKENS)
    transformers.ViTModel(transformers.ViTConfig()).save_pretrained(folder / kind)
    transformers.ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder / kind)
    return load_image(str(folder / kind), "cls")


def extraction(backbone: Backbone, contents: Contents, folder: Path, precision: str) -> Callable[[], object]:
    """Each call fills a new store, of which a few contents were there before: the error is measured on these."""
    few = Contents(contents.modality, contents.kind, contents.present.copy(), contents.get, contents.label)
    few.present[8:] = False
    made = 0

    def run() -> None:
        nonlocal made
        made += 1
        for part in (few, contents):
            extract(
                backbone,
                part,
                folder / str(made),
                precision=precision,
                batch_size=BATCH[part.kind],
                shard_rows=1024,
            )

    return run


def utilisation(folder: Path, tokenizer: str, counts: dict[str, int], turns: int) -> dict[str, Any]:
    """Of both kinds in both formats."""
    rng = np.random.default_rng(0)
    words = [
        f"{word}" for word in ("red", "pump", "steel", "valve", "glove", "box", "tape", "small", "mask", "large")
    ]
    values: dict[str, list[Any]] = {
        TEXT: [" ".join([f"{number}", *rng.choice(words, 40)]) for number in range(counts[TEXT])],
        IMAGE: [jpeg(number) for number in range(counts[IMAGE])],
    }
    peaks = {"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16)}
    found: dict[str, Any] = {"peak_operations_a_second": peaks}
    for kind, tokens in ((TEXT, TOKENS), (IMAGE, PATCHES)):
        backbone = make_model(folder, kind, tokenizer)
        contents = contents_of(values[kind], kind)
        sides = {
            precision: extraction(backbone, contents, folder / f"{kind}-{precision}", precision)
            for precision in peaks
        }
        seconds = take_turns(sides, turns)
        found[kind] = {"contents": counts[kind], "seconds": seconds}
        for precision in peaks:
            done = counts[kind] * operations(tokens) / seconds[precision]["wall"]["median"]
            found[kind][precision] = {"operations_a_second": done, "share_of_peak": done / peaks[precision]}
        found[kind]["bf16_times_faster"] = faster(seconds, "fp32", "bf16")
    return found


def next_to_sentence_transformers(data: Path, model: Path, folder: Path, count: int, turns: int) -> dict[str, Any]:
    """Real titles through MiniLM; only extraction where the library is not installed."""
    titles = prepare("reference", [data], folder / "titles").items[TEXT].drop_nulls().unique(maintain_order=True)
    chosen = titles.sample(count, seed=0).to_list()
    contents = contents_of(chosen, TEXT)
    sides: dict[str, Callable[[], object]] = {}
    for precision in ("fp32", "bf16"):
        made = iter(range(1000))

        def run(precision: str = precision, made: Any = made) -> None:
            place = folder / f"minilm-{precision}-{next(made)}"
            extract(load_text(str(model), None, 256), contents, place, precision=precision)

        sides[f"iisan {precision}"] = run
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        print("sentence-transformers is not installed: extraction alone is measured")
    else:
        encoder = SentenceTransformer(str(model), device="cpu")
        sides["sentence-transformers"] = lambda: encoder.encode(chosen, batch_size=64, show_progress_bar=False)
    seconds = take_turns(sides, turns)
    found: dict[str, Any] = {"titles": count, "seconds": seconds}
    if "sentence-transformers" in sides:
        found["times_faster"] = {
            name: faster(seconds, "sentence-transformers", name) for name in sides if name.startswith("iisan")
        }
    return found


def main() -> None:
    # Contents are nearly alike to random weights, so bf16 would be refused; the time does not depend on it.
    extraction_module.MAX_ERROR = 1.0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--titles", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    counts = {TEXT: arguments.texts, IMAGE: arguments.images}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        used = utilisation(folder, str(arguments.minilm), counts, arguments.turns)
        titles = next_to_sentence_transformers(
            arguments.data, arguments.minilm, folder, arguments.titles, arguments.turns
        )
    peaks = used["peak_operations_a_second"]
    lines = [
        f"Large matrix products: {peaks['fp32'] / 1e9:,.0f} GFLOP/s in fp32, {peaks['bf16'] / 1e9:,.0f} in bf16, "
        f"{torch.get_num_threads()} threads; medians (quartiles).",
        "",
        "| | contents | format | seconds | GFLOP/s | share of the peak |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for kind, what in ((TEXT, f"texts of {TOKENS} tokens, bert-base"), (IMAGE, "pictures of 224², vit-base")):
        for precision in peaks:
            each = used[kind][precision]
            lines.append(
                f"| {what} | {counts[kind]:,} | {precision} | {told(used[kind]['seconds'][precision])} "
                f"| {each['operations_a_second'] / 1e9:,.0f} | {each['share_of_peak']:.0%} |"
            )
    lines += [
        "",
        f"{arguments.titles:,} titles through MiniLM:",
        "",
        "| | seconds | processor seconds |",
        "|---|---:|---:|",
    ]
    lines += [f"| {name} | {told(each)} | {told(each, 'processor')} |" for name, each in titles["seconds"].items()]
    write_record(arguments.out, "Extraction of hidden states", {"utilisation": used, "minilm": titles}, lines)


if __name__ == "__main__":
    main()
