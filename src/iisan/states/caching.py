"""From a dataset and the names of models to state stores: what ``iisan cache`` does."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from iisan.backbones.backbone import Backbone
from iisan.backbones.image import load_image
from iisan.backbones.levels import Level
from iisan.backbones.text import load_text
from iisan.backbones.tuning import first_trained_block
from iisan.errors import ConfigError
from iisan.names import IMAGE, TEXT
from iisan.states.contents import Catalogue, Contents
from iisan.states.extract import extract
from iisan.states.store import StateStore


def cache(
    dataset: Catalogue,
    out: Path | str,
    text: str | None = None,
    image: str | None = None,
    *,
    levels: str | Sequence[Level] = "layerdrop",
    text_pooling: str = "mean",
    image_pooling: str = "cls",
    max_tokens: int | None = None,
    dtype: str = "bf16",
    precision: str = "auto",
    text_batch_size: int = 64,
    image_batch_size: int = 32,
    shard_rows: int = 4096,
    top_blocks: int | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, StateStore]:
    """Encode a dataset's contents once and store the hidden states.

    Stores that exist are brought up to date. The modalities are done one after the other, and what one has
    finished stays when another fails.

    Args:
        dataset: the items.
        out: folder of stores.
        text: hub id or folder of the text backbone, ``None`` to leave text out.
        image: the same for images.
        levels: see :func:`iisan.backbones.levels.parse_levels`; resolved for each backbone.
        text_pooling: ``"mean"`` or ``"cls"``.
        image_pooling: ``"cls"`` or ``"mean"``.
        max_tokens: longest token sequence, special tokens included (P1 uses 30).
        dtype: storage format, ``"bf16"``, ``"fp16"``, ``"int8"`` or ``"fp32"``.
        precision: number format of the computation; ``"auto"`` takes bf16 where it is fast and fine enough.
        text_batch_size: texts per forward pass.
        image_batch_size: images per forward pass.
        shard_rows: contents per shard, the most that a kill can lose.
        top_blocks: also store every token's state below the last ``top_blocks`` blocks, for partial training
            (source ``partial``); that many tokens take far more room than the pooled states.
        device: where the backbones run; a GPU if there is one.
        trust_remote_code: run program code that comes with the models.
        say: told about what was decided on the user's behalf.

    Returns:
        The store of each modality.

    Raises:
        BackboneError: a model that cannot be used.
        StoreError: states that cannot be stored.
        DataError: an image that cannot be read.
    """
    loaders: dict[str, tuple[Callable[[str], Backbone], str, int]] = {}
    if text is not None:
        loaders[TEXT] = (
            lambda pooling: load_text(text, pooling, max_tokens, trust_remote_code),
            text_pooling,
            text_batch_size,
        )
    if image is not None:
        loaders[IMAGE] = (
            lambda pooling: load_image(image, pooling, trust_remote_code),
            image_pooling,
            image_batch_size,
        )
    if not loaders:
        raise ConfigError("no backbone", "one for text, for images or for both", "pass --text or --image")
    stores = {}
    for modality, (load, pooling, batch_size) in loaders.items():
        encode = functools.partial(
            extract,
            contents=Contents.of(dataset, modality),
            out=Path(out),
            dtype=dtype,
            precision=precision,
            batch_size=batch_size,
            shard_rows=shard_rows,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            say=say,
        )
        stores[modality] = encode(load(pooling), levels=levels)
        if top_blocks is not None:
            backbone = load("tokens")
            encode(backbone, levels=[first_trained_block(backbone, top_blocks)])
    return stores
