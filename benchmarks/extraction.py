"""What extraction makes of the machine: its share of the matrix products' peak, and the usual library next to it.

    python benchmarks/extraction.py DATA MINILM --out benchmarks/results/extraction.json

DATA is the folder of the Scientific tables, MINILM one of the model all-MiniLM-L6-v2.

- ``text``: titles of exactly 30 tokens through a model of bert-base's shape; ``image``: JPEG files of 256²
  pixels, decoded and cropped on the way, through one of vit-base's shape. Operations are counted by formula
  (products only), and divided by the seconds of the whole extraction: decoding, the model, encoding and
  writing. The peak is that of large matrix products in the same number format, which take their turns with the
  extraction.
- ``preparation``: photographs of 1000² pixels, decoded and brought to 224² by as many threads as there are cores:
  what would keep a GPU waiting.
- ``titles``: real titles through MiniLM, next to ``SentenceTransformer.encode`` (where that library is
  installed) on the same titles and model. It gives one vector a title, a store has all kept levels. Extraction
  includes the check of the storage error on 512 titles.
"""

import argparse
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from timing import PRODUCT, faster, products, take_turns, told, write_record

from iisan.ahead import ahead
from iisan.data.prepare import prepare
from iisan.encoders.contents import Contents
from iisan.encoders.encoder import Encoder
from iisan.encoders.image import load_image
from iisan.encoders.text import load_text
from iisan.names import IMAGE, TEXT
from iisan.states import extract as extraction_module
from iisan.states.extract import extract

TOKENS, PATCHES, WIDTH, DEPTH = 30, 197, 768, 12
BATCH = {TEXT: 64, IMAGE: 32}
#: Large products that are the peak, in each turn about two seconds of them.
PRODUCTS = {"fp32": 30, "bf16": 120}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def operations(tokens: int) -> float:
    """Of one content through bert-base's or vit-base's blocks: the products, and those of attention."""
    return DEPTH * (24 * tokens * WIDTH**2 + 4 * tokens**2 * WIDTH)


def contents_of(values: list[Any], kind: str) -> Contents:
    return Contents(kind, kind, np.ones(len(values), dtype=bool), values.__getitem__, str)


def jpeg(number: int, edge: int = 256) -> bytes:
    rng = np.random.default_rng(number)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((edge, edge)))
    grain = rng.normal(0, 6, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_model(folder: Path, kind: str, tokenizer: str) -> Encoder:
    """Of bert-base's or vit-base's shape, with random weights."""
    torch.manual_seed(0)
    if kind == TEXT:
        transformers.BertModel(transformers.BertConfig()).save_pretrained(folder / kind)
        transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / kind)
        return load_text(str(folder / kind), "mean", TOKENS)
    transformers.ViTModel(transformers.ViTConfig()).save_pretrained(folder / kind)
    transformers.ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder / kind)
    return load_image(str(folder / kind), "cls")


def extraction(encoder: Encoder, contents: Contents, folder: Path, precision: str) -> Callable[[], object]:
    """Each call fills a new store, of which a few contents were there before: the error is measured on these."""
    few = Contents(contents.modality, contents.kind, contents.present.copy(), contents.get, contents.label)
    few.present[8:] = False
    made = 0

    def run() -> None:
        nonlocal made
        made += 1
        for part in (few, contents):
            extract(
                encoder,
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
    found: dict[str, Any] = {}
    for kind, tokens in ((TEXT, TOKENS), (IMAGE, PATCHES)):
        encoder = make_model(folder, kind, tokenizer)
        contents = contents_of(values[kind], kind)
        sides: dict[str, Callable[[], object]] = {}
        for precision, dtype in DTYPES.items():
            sides[precision] = extraction(encoder, contents, folder / f"{kind}-{precision}", precision)
            sides[f"peak {precision}"] = products(dtype, PRODUCTS[precision])
        seconds = take_turns(sides, turns)
        found[kind] = {"contents": counts[kind], "seconds": seconds}
        for precision, count in PRODUCTS.items():
            done = counts[kind] * operations(tokens) / seconds[precision]["wall"]["median"]
            peak = PRODUCT * count / seconds[f"peak {precision}"]["wall"]["median"]
            found[kind][precision] = {"operations_a_second": done, "peak": peak, "share_of_peak": done / peak}
        found[kind]["bf16_times_faster"] = faster(seconds, "fp32", "bf16")
    return found


def preparation(folder: Path, count: int, turns: int) -> dict[str, Any]:
    """Decoding and shrinking photographs for the model of ``utilisation``."""
    photographs = [jpeg(number, 1000) for number in range(count)]
    batches = [photographs[first : first + 8] for first in range(0, count, 8)]
    prepare = load_image(str(folder / IMAGE), "cls").prepare
    return take_turns({"whole": lambda: list(ahead(prepare, batches, os.cpu_count() or 1))}, turns)


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
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    counts = {TEXT: arguments.texts, IMAGE: arguments.images}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        used = utilisation(folder, str(arguments.minilm), counts, arguments.turns)
        prepared = preparation(folder, arguments.images, arguments.turns)
        titles = next_to_sentence_transformers(
            arguments.data, arguments.minilm, folder, arguments.titles, arguments.turns
        )
    lines = [
        f"{torch.get_num_threads()} threads; medians (quartiles). The peak is that of large products in the "
        "same turns.",
        "",
        "| | contents | format | seconds | GFLOP/s | peak | share of it |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for kind, what in ((TEXT, f"texts of {TOKENS} tokens, bert-base"), (IMAGE, "pictures of 224², vit-base")):
        for precision in DTYPES:
            each = used[kind][precision]
            lines.append(
                f"| {what} | {counts[kind]:,} | {precision} | {told(used[kind]['seconds'][precision])} "
                f"| {each['operations_a_second'] / 1e9:,.0f} | {each['peak'] / 1e9:,.0f} "
                f"| {each['share_of_peak']:.0%} |"
            )
    lines += [
        "",
        f"{arguments.images:,} photographs of 1000² pixels decoded and brought to 224²: "
        + ", ".join(
            f"{arguments.images / each['wall']['median']:.0f} a second {name}" for name, each in prepared.items()
        )
        + ".",
    ]
    lines += [
        "",
        f"{arguments.titles:,} titles through MiniLM:",
        "",
        "| | seconds | processor seconds |",
        "|---|---:|---:|",
    ]
    lines += [f"| {name} | {told(each)} | {told(each, 'processor')} |" for name, each in titles["seconds"].items()]
    results = {"utilisation": used, "preparation": prepared, "minilm": titles}
    write_record(arguments.out, "Extraction of hidden states", results, lines)


if __name__ == "__main__":
    main()
