"""From a configuration to the states of items: stores opened and checked, backbones loaded and tuned."""

from collections.abc import Mapping
from typing import Any

import torch

from iisan.backbones.backbone import Backbone
from iisan.backbones.levels import named_levels
from iisan.backbones.load import load_backbone
from iisan.backbones.tuning import first_trained_block, tune
from iisan.config import Config, Level, Levels
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, StoreError
from iisan.names import IMPORTED, LAST
from iisan.states.contents import Contents
from iisan.states.sources import CachedStates, LiveStates, NoStates, PartialStates, StateSource
from iisan.states.store import StateStore

#: How much of a content a backbone takes in.
_LIMITS = ("max_tokens", "max_seconds", "frames", "jpeg_draft")

#: How to name the folder of stores.
STATES_CURE = "pass --states or set the key 'states'"


def kept_levels(levels: Levels, depth: int) -> tuple[Level, ...]:
    """The levels that the model reads: those that a name stands for, or those listed.

    Raises:
        BackboneError: group layer-dropping that does not fit the depth.
    """
    if not isinstance(levels, str):
        return levels
    named = named_levels(levels, depth)
    assert named is not None, "the configuration knows the names"
    return named


def _read_levels(config: Config, store: StateStore) -> tuple[Level, ...]:
    levels = config.levels_of(store.modality)
    # What was made elsewhere has the levels it came with, whatever they are called.
    if store.kind == IMPORTED and levels == "all":
        return store.levels
    if store.kind == IMPORTED and levels == (LAST,):
        return store.levels[-1:]
    return kept_levels(levels, store.depth)


def open_stores(config: Config) -> dict[str, StateStore]:
    """Find the store of every modality that the configuration uses, and check that it is the expected one.

    Raises:
        ConfigError: no folder of stores is given.
        StoreError: a store is absent, damaged or was made under other settings.
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
            for key, value in wanted.model_dump(include={"backbone", "pooling", *_LIMITS}).items()
            if value is not None and not (tokens and key == "pooling")
        }
        stores[modality] = StateStore.find(config.states, modality, expect, tokens)
    return stores


def state_source(config: Config, dataset: Dataset, stores: Mapping[str, StateStore]) -> StateSource:
    """The state source that the configuration names.

    Raises:
        ConfigError: live states without a backbone.
    """
    if not config.modalities:
        return NoStates()
    if config.source == "cached":
        return CachedStates(
            {
                modality: (store, store.rows_for(dataset), _read_levels(config, store))
                for modality, store in stores.items()
            }
        )
    # LoRA and adapters draw their initial weights.
    torch.manual_seed(config.training.seed)
    backbones: dict[str, Backbone] = {
        modality: _load_backbone(config, modality, stores.get(modality)) for modality in config.modalities
    }
    if config.source == "live":
        return LiveStates(
            {
                modality: (
                    backbone,
                    Contents.of(dataset, modality, config.kind_of(modality)),
                    kept_levels(config.levels_of(modality), backbone.depth),
                )
                for modality, backbone in backbones.items()
            }
        )
    return PartialStates(
        {
            modality: (
                backbones[modality],
                store,
                *store.spans_for(dataset),
            )
            for modality, store in stores.items()
        }
    )


def _load_backbone(config: Config, modality: str, store: StateStore | None) -> Backbone:
    """Load a backbone and set what of it is trained; ``store`` holds the tokens that enter its live blocks."""
    wanted, tuning = config.states_of(modality), config.tuning
    stored = store.settings if store else {}
    name = wanted.backbone or stored.get("backbone")
    if name is None:
        raise ConfigError(
            f"source '{config.source}' has no backbone for {modality}",
            "a hub id or a folder",
            f"set {modality}.backbone, or columns.{modality}.backbone",
        )
    limits: dict[str, Any] = {limit: getattr(wanted, limit) or stored.get(limit) for limit in _LIMITS}
    backbone = load_backbone(str(wanted.kind), name, pooling=wanted.pooling, **limits)
    if store is not None:
        _check_tokens(store, backbone, tuning.top)
    if tuning.method != "none":
        settings = tuning.model_dump(exclude={"method", "rate", "refresh"})
        tune(backbone, tuning.method, **settings)
    return backbone


def _check_tokens(store: StateStore, backbone: Backbone, top: int | None) -> None:
    level = first_trained_block(backbone, top)
    if store.levels != (level,):
        raise StoreError(
            f"the tokens in '{store.folder}' enter block {store.levels[0]} of {backbone.depth}",
            f"those that enter block {level}, for tuning.top {top}",
            f"run `iisan cache --top-blocks {top}`, or set tuning.top to {backbone.depth - int(store.levels[0])}",
        )
    settings = backbone.settings
    if any(store.settings.get(name) != settings[name] for name in ("weight_digest", "config_digest")):
        raise StoreError(
            f"the tokens in '{store.folder}' were made with other weights or another config.json than those of "
            f"'{backbone.source.name}'",
            "the same backbone",
            "run `iisan cache --top-blocks` again",
        )
