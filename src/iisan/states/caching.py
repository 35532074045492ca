"""From a dataset and the names of models to state stores: what ``iisan cache`` does."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from iisan.backbones.backbone import Backbone
from iisan.backbones.image import load_image
from iisan.backbones.levels import Level
from iisan.backbones.text import load_text
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
    loaders: dict[str, tuple[Callable[[], Backbone], int]] = {}
    if text is not None:
        loaders[TEXT] = (
            functools.partial(load_text, text, text_pooling, max_tokens, trust_remote_code),
            text_batch_size,
        )
    if image is not None:
        loaders[IMAGE] = (
            functools.partial(load_image, image, image_pooling, trust_remote_code),
            image_batch_size,
        )
    if not loaders:
        raise ConfigError("no backbone", "one for text, for images or for both", "pass --text or --image")
    stores = {}
    for modality, (load, batch_size) in loaders.items():
        stores[modality] = extract(
            load(),
            Contents.of(dataset, modality),
            Path(out),
            levels=levels,
            dtype=dtype,
            precision=precision,
            batch_size=batch_size,
            shard_rows=shard_rows,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            say=say,
        )
    return stores
