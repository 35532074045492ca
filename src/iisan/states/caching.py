"""From a dataset and the names of models to state stores: what ``iisan cache`` does."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from iisan.data.dataset import Dataset
from iisan.encoders.contents import Contents, kind_of
from iisan.encoders.levels import Level
from iisan.encoders.load import load_encoder
from iisan.encoders.loading import PLAIN, Loading
from iisan.encoders.tuning import first_trained_layer
from iisan.errors import ConfigError
from iisan.names import AUDIO, IMAGE, TEXT, VIDEO
from iisan.states.extract import extract
from iisan.states.store import StateStore

#: Contents per forward pass: a picture has many times the tokens of a text.
_BATCH_SIZE = {TEXT: 64, IMAGE: 32, AUDIO: 16, VIDEO: 8}


def cache(
    dataset: Dataset,
    out: Path | str,
    models: Mapping[str, str],
    *,
    levels: str | Sequence[Level] = "layerdrop",
    poolings: Mapping[str, str | None] | None = None,
    max_tokens: int | None = None,
    max_seconds: float | None = None,
    frames: int | None = None,
    dtype: str = "bf16",
    precision: str = "auto",
    shard_rows: int = 4096,
    last_n_layers: int | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, StateStore]:
    """Encode a dataset's contents once and store the hidden states.

    Stores that exist are brought up to date. The modalities are done one after the other, and what one has
    finished stays when another fails.

    Args:
        dataset: the items.
        out: folder of stores.
        models: modality (a column of the dataset that has a kind) -> hub id or folder of its encoder.
        levels: see :func:`iisan.encoders.levels.parse_levels`; resolved for each encoder.
        poolings: modality -> pooling, see :func:`iisan.encoders.load.load_encoder`; what is not named takes what
            suits its model.
        max_tokens: longest token sequence of texts, special tokens included (P1 uses 30).
        max_seconds: longest part of a sound that is heard.
        frames: of a video that are looked at.
        dtype: storage format, ``"bf16"``, ``"fp16"``, ``"int8"`` or ``"fp32"``.
        precision: number format of the computation; ``"auto"`` takes bf16 where it is measured to be faster and is
            fine enough. A store that exists is continued in its own.
        shard_rows: contents per shard, the most that a kill can lose.
        last_n_layers: also store every token's state below the last ``last_n_layers`` blocks, for partial training
            (source ``partial``); that many tokens take far more room than the pooled states.
        device: where the encoders run; a GPU if there is one.
        trust_remote_code: run program code that comes with the models.
        loading: how the weights of large models are held.
        say: told about what was decided on the user's behalf.

    Returns:
        The store of each modality.

    Raises:
        ConfigError: no model, or a column without a kind.
        EncoderError: a model that cannot be used.
        StoreError: states that cannot be stored.
        DataError: a file that cannot be read, or changed since the dataset was prepared.
    """
    if not models:
        raise ConfigError("no encoder", "one for text, for images or for both", "pass --text or --image")
    kinds = {modality: kind_of(dataset, modality) for modality in models}
    stores = {}
    for modality, kind in kinds.items():
        load = functools.partial(
            load_encoder,
            kind,
            models[modality],
            max_tokens=max_tokens,
            max_seconds=max_seconds,
            frames=frames,
            trust_remote_code=trust_remote_code,
            loading=loading,
        )
        encode = functools.partial(
            extract,
            contents=Contents.of(dataset, modality, kind),
            out=Path(out),
            dtype=dtype,
            precision=precision,
            batch_size=_BATCH_SIZE[kind],
            shard_rows=shard_rows,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            say=say,
        )
        stores[modality] = encode(load(pooling=(poolings or {}).get(modality)), levels=levels)
        if last_n_layers is not None:
            encoder = load(pooling="tokens")
            encode(encoder, levels=[first_trained_layer(encoder, last_n_layers)])
    return stores
