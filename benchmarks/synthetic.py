"""Data of real size for benchmarks: real sequences and titles, pictures of noise, encoders with random weights.

Costs do not depend on the values, so cached states are random numbers in a store of full size.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import transformers
from PIL import Image

from iisan.data.dataset import Dataset
from iisan.data.prepare import prepare
from iisan.encoders.contents import Contents
from iisan.encoders.encoder import Encoder
from iisan.encoders.levels import layer_drop
from iisan.names import IMAGE
from iisan.states.manifest import Manifest, fingerprint_of
from iisan.states.store import StateStore, store_folder
from iisan.states.writer import StateWriter, library_versions


def noise(item: int) -> bytes:
    pixels = np.random.default_rng(item).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def make_dataset(data: Path, folder: Path) -> Dataset:
    titles = prepare("reference", [data], folder / "titles")
    items = titles.items.with_columns(pl.Series(IMAGE, [noise(item) for item in range(titles.num_items)]))
    owners = np.repeat(np.arange(titles.num_users), titles.sequences.lengths)
    interactions = pl.DataFrame(
        {
            "user_id": titles.user_ids.gather(owners),
            "item_id": titles.items["item_id"].gather(np.asarray(titles.sequences.items)),
        }
    )
    return Dataset.from_frames(items, interactions).save(folder / "data")


def make_encoders(tokenizer: Path, folder: Path) -> dict[str, Path]:
    folders = {"text": folder / "bert-base", "image": folder / "vit-base"}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig()).save_pretrained(folders["text"])
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folders["text"])
    transformers.ViTModel(transformers.ViTConfig()).save_pretrained(folders["image"])
    transformers.ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folders["image"])
    return folders


def make_store(encoder: Encoder, dataset: Dataset, out: Path) -> StateStore:
    """A store as ``iisan cache`` would write it."""
    keys = Contents.of(dataset, encoder.kind).keys().drop_nulls().unique(maintain_order=True).to_list()
    return write_store(out, {"modality": encoder.kind, **encoder.settings}, encoder.depth, encoder.width, keys)


def write_store(
    out: Path, settings: dict[str, Any], depth: int, width: int, keys: Sequence[str], rows: int = 4096
) -> StateStore:
    """LayerDrop's levels in bf16, random numbers for states; the shards are alike, which no cost depends on."""
    levels = layer_drop(depth)
    manifest = Manifest(
        settings=settings, levels=levels, dtype="bf16", precision="fp32", width=width, depth=depth,
        error=[None] * len(levels), shards=[], made_with=library_versions(),
    )  # fmt: skip
    fingerprint = fingerprint_of(settings, levels, "bf16", "fp32")
    folder = store_folder(out, settings["modality"], fingerprint)
    # Small, as real differences between items are: extreme scores would slow both sides down by denormal numbers.
    states = 0.1 * torch.randn(rows, len(levels), width)
    with StateWriter(folder, (manifest, torch.zeros(len(levels), width)), print) as writer:
        for first in range(0, len(keys), rows):
            part = keys[first : first + rows]
            writer.append(part, states[: len(part)], [1] * len(part), str)
        writer.finish()
    return StateStore.open(folder)
