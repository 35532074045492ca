"""From a dataset and encoders to state stores: ``iisan cache``."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from iisan.data.dataset import Dataset
from iisan.encoders.contents import Contents, kind_of
from iisan.encoders.encoder import Encoder
from iisan.encoders.levels import Level
from iisan.encoders.load import load_encoder
from iisan.encoders.loading import PLAIN, Loading
from iisan.encoders.tuning import first_trained_layer
from iisan.errors import ConfigError
from iisan.names import AUDIO, IMAGE, TEXT, VIDEO
from iisan.remote.opening import addressed
from iisan.states.extract import Extractor, Job, extract
from iisan.states.store import StateStore, check_out

#: Contents per forward pass, by kind: an image has many times the tokens of a text.
_BATCH_SIZE = {TEXT: 64, IMAGE: 32, AUDIO: 16, VIDEO: 8}


@addressed(out="out")
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
    spread: Callable[[Callable[..., Encoder], Job], Extractor] = lambda _, job: job,
) -> dict[str, StateStore]:
    """Encode a dataset's contents once and store the hidden states.

    Existing stores are brought up to date. Modalities are processed one after the other, and finished ones are
    kept when another fails. For ``dtype``, ``precision``, ``shard_rows``, ``say`` and errors see
    :func:`iisan.states.extract.extract`.

    Args:
        dataset: Dataset with the items.
        out: Folder of stores.
        models: Hub id or folder of an encoder, by modality (a column of the dataset with contents).
        levels: See :func:`iisan.encoders.levels.parse_levels`; resolved for each encoder.
        poolings: Pooling by modality, see :func:`iisan.encoders.load.load_encoder`; by default the model's.
        max_tokens: Maximum number of tokens of a text, special tokens included (IISAN uses 30).
        max_seconds: Maximum duration of a sound that is encoded.
        frames: Number of frames of a video that are encoded.
        dtype: Storage format.
        precision: Number format of the computation.
        shard_rows: Contents per shard.
        last_n_layers: Also store all token states below the last ``last_n_layers`` layers, for partial training
            (source ``partial``); they take far more space than pooled states.
        device: Device of the encoders; defaults to a GPU if there is one.
        trust_remote_code: Run program code that comes with the models.
        loading: Storage of the weights of large models.
        say: Receives messages about automatic decisions.
        spread: Returns what computes the states, from a function that loads the encoder by its name and pooling,
            and the job on this machine; see :class:`iisan.scale.extraction.ClusterJob`.

    Returns:
        The store of each modality.

    Raises:
        ConfigError: No model, or a column without contents.
    """
    check_out(Path(out))
    if not models:
        raise ConfigError("no encoder", "one for text, for images or for both", "pass --text or --image")
    kinds = {modality: kind_of(dataset, modality) for modality in models}
    stores = {}
    for modality, kind in kinds.items():
        load = functools.partial(
            load_encoder,
            kind,
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
            extractor=functools.partial(spread, load),
        )
        stores[modality] = encode(load(models[modality], pooling=(poolings or {}).get(modality)), levels=levels)
        if last_n_layers is not None:
            encoder = load(models[modality], pooling="tokens")
            encode(encoder, levels=[first_trained_layer(encoder, last_n_layers)])
    return stores
