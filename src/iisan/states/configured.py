"""From a configuration to the states of items: opens and checks stores, loads and tunes encoders."""

from collections.abc import Mapping
from typing import Any

import torch

from iisan.config import Config, ItemEncoderConfig, Level, Levels, TuningConfig
from iisan.data.dataset import Dataset
from iisan.encoders.contents import Contents
from iisan.encoders.encoder import Encoder
from iisan.encoders.levels import named_levels
from iisan.encoders.load import load_encoder
from iisan.encoders.tuning import first_trained_layer, tune
from iisan.errors import ConfigError, StoreError
from iisan.names import IMPORTED, LAST
from iisan.states.sources import CachedStates, LiveStates, NoStates, PartialStates, StateSource
from iisan.states.store import StateStore

#: Settings that limit the encoded part of a content.
_LIMITS = ("max_tokens", "max_seconds", "frames")

#: Cure for errors about a missing folder of stores.
STATES_CURE = "pass --states or set the key 'states'"


def open_dataset(config: Config) -> Dataset:
    """Load the dataset of a configuration.

    Raises:
        ConfigError: The configuration has none, or its folder does not exist.
    """
    expected = "the folder that `iisan prepare` wrote"
    if config.dataset is None:
        raise ConfigError("no dataset is given", expected, "pass --dataset or set the key 'dataset'")
    if not config.dataset.exists():
        got = f"the dataset folder '{config.dataset}' does not exist"
        raise ConfigError(got, expected, "pass --dataset FOLDER if it moved")
    return Dataset.load(config.dataset, config.images)


def kept_levels(levels: Levels, depth: int) -> tuple[Level, ...]:
    """Resolve the levels that a model reads.

    Raises:
        EncoderError: Group layer-dropping that does not fit the depth.
    """
    if not isinstance(levels, str):
        return levels
    named = named_levels(levels, depth)
    assert named is not None, "the configuration knows the names"
    return named


def _read_levels(config: Config, store: StateStore) -> tuple[Level, ...]:
    levels = config.levels_of(store.modality)
    # Imported states have the levels they came with.
    if store.kind == IMPORTED and levels in ("all", (LAST,)):
        return store.levels if levels == "all" else store.levels[-1:]
    return kept_levels(levels, store.depth)


def open_stores(config: Config) -> dict[str, StateStore]:
    """Open the store of every modality of a configuration and check its settings.

    Raises:
        ConfigError: The configuration has no folder of stores.
        StoreError: A store is absent, damaged or was made with other settings.
    """
    if not config.modalities or config.source == "live":
        return {}
    tokens = config.source == "partial"
    if config.states is None:
        raise ConfigError("no state stores are given", "the folder that `iisan cache` wrote", STATES_CURE)
    stores: dict[str, StateStore] = {}
    for modality in config.modalities:
        wanted = config.states_of(modality)
        expect = {
            key: value
            for key, value in wanted.model_dump(include={"encoder", "pooling", *_LIMITS}).items()
            if value is not None and not (tokens and key == "pooling")
        }
        stores[modality] = StateStore.find(config.states, modality, expect, tokens)
    return stores


def state_shapes(config: Config) -> dict[str, tuple[tuple[Level, ...], int]]:
    """Levels and width of the states that a configuration reads, by modality.

    Raises:
        ConfigError: The configuration has no folder of stores.
        StoreError: A store is absent, damaged or was made with other settings.
        EncoderError: The encoder of live states cannot be loaded.
    """
    if config.source == "live":
        encoders = {name: _load_encoder(config, name, None) for name in config.modalities or ()}
        return {
            name: (kept_levels(config.levels_of(name), each.depth), each.width) for name, each in encoders.items()
        }
    partial = config.source == "partial"
    return {
        name: ((LAST,) if partial else _read_levels(config, store), store.width)
        for name, store in open_stores(config).items()
    }


def levels_stored(config: Config) -> bool:
    """Whether the stores of a configuration have all levels that it reads."""
    return all({*_read_levels(config, store)} <= {*store.levels} for store in open_stores(config).values())


def state_source(config: Config, dataset: Dataset, stores: Mapping[str, StateStore]) -> StateSource:
    """Build the state source of a configuration.

    Raises:
        ConfigError: Live states without an encoder.
    """
    if not config.modalities:
        return NoStates()
    if config.source == "cached":
        cached = {
            modality: (store, store.rows_for(dataset), _read_levels(config, store))
            for modality, store in stores.items()
        }
        return CachedStates(cached)
    # LoRA and adapters draw their initial weights.
    torch.manual_seed(config.training.seed)
    encoders: dict[str, Encoder] = {
        modality: _load_encoder(config, modality, stores.get(modality)) for modality in config.modalities
    }
    if config.source == "live":
        live = {
            modality: (
                encoder,
                Contents.of(dataset, modality, config.kind_of(modality)),
                kept_levels(config.levels_of(modality), encoder.depth),
            )
            for modality, encoder in encoders.items()
        }
        return LiveStates(live)
    return PartialStates(
        {name: (encoders[name], store, *store.spans_for(dataset)) for name, store in stores.items()}
    )


def anchor_config(config: Config) -> Config:
    """The configuration of the frozen states that a resolved configuration's anchor is fitted on.

    They are stored states if there are any, else those of the encoders before any tuning.

    Raises:
        ConfigError: There are neither states nor encoders.
    """
    modalities = config.anchor.modalities
    if not modalities and config.states is not None:
        got = f"an anchor on none of the states in '{config.states}'"
        cure = "name some in anchor.modalities, pass another --states, or set anchor to false"
        raise ConfigError(got, "states of this dataset", cure)
    if not modalities or (config.states is None and config.source != "live"):
        got = "an anchor without states to fit it on"
        raise ConfigError(got, "the folder that `iisan cache` wrote", f"{STATES_CURE}, or set anchor to false")
    changes = {
        "source": "cached" if config.states is not None else "live",
        "modalities": modalities,
        "tuning": TuningConfig(),
        # The levels that towers would read.
        "items": ItemEncoderConfig(),
    }
    return config.model_copy(update=changes)


def _load_encoder(config: Config, modality: str, store: StateStore | None) -> Encoder:
    """Load an encoder and make weights trainable; ``store`` holds the tokens that enter its live layers."""
    wanted, tuning = config.states_of(modality), config.tuning
    stored = store.settings if store else {}
    name = wanted.encoder or stored.get("encoder")
    if name is None:
        got = f"source '{config.source}' has no encoder for {modality}"
        raise ConfigError(got, "a hub id or a folder", f"set {modality}.encoder, or columns.{modality}.encoder")
    limits: dict[str, Any] = {limit: getattr(wanted, limit) or stored.get(limit) for limit in _LIMITS}
    encoder = load_encoder(str(wanted.kind), name, pooling=wanted.pooling, **limits)
    if store is not None:
        _check_tokens(store, encoder, tuning.last_n_layers)
    if tuning.method != "none":
        tune(encoder, tuning.method, **tuning.model_dump(exclude={"method", "learning_rate", "refresh"}))
    return encoder


def _check_tokens(store: StateStore, encoder: Encoder, last_n_layers: int | None) -> None:
    level = first_trained_layer(encoder, last_n_layers)
    if store.levels != (level,):
        raise StoreError(
            f"the tokens in '{store.folder}' enter layer {store.levels[0]} of {encoder.depth}",
            f"those that enter layer {level}, for tuning.last_n_layers {last_n_layers}",
            f"run `iisan cache --last-n-layers {last_n_layers}`, or set tuning.last_n_layers to "
            f"{encoder.depth - int(store.levels[0])}",
        )
    settings = encoder.settings
    if any(store.settings.get(name) != settings[name] for name in ("weight_digest", "config_digest")):
        raise StoreError(
            f"the tokens in '{store.folder}' were made with other weights or another config.json than those of "
            f"'{encoder.source.name}'",
            "the same encoder",
            "run `iisan cache --last-n-layers` again",
        )
