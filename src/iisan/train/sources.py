"""From a configuration to the states of items: stores opened and checked, backbones loaded and tuned."""

from collections.abc import Mapping

import torch

from iisan.backbones.backbone import Backbone
from iisan.backbones.image import load_image
from iisan.backbones.levels import layer_drop
from iisan.backbones.text import load_text
from iisan.backbones.tuning import first_trained_block, tune
from iisan.config import Config, Level, Levels
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, StoreError
from iisan.names import TEXT
from iisan.states.contents import Contents
from iisan.states.sources import CachedStates, LiveStates, NoStates, PartialStates, StateSource
from iisan.states.store import StateStore

#: How to name the folder of stores.
STATES_CURE = "pass --states or set the key 'states'"


def kept_levels(levels: Levels, depth: int) -> tuple[Level, ...]:
    """The levels that the model reads: LayerDrop's, all hidden states, or those listed."""
    if levels == "layerdrop":
        return layer_drop(depth)
    return tuple(range(depth + 1)) if levels == "all" else levels


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
            for key, value in wanted.model_dump(include={"backbone", "pooling", "max_tokens"}).items()
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
                modality: (
                    store,
                    store.rows_for(dataset),
                    kept_levels(config.levels_of(modality), store.depth),
                )
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
                    Contents.of(dataset, modality),
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
            f"set {modality}.backbone",
        )
    if modality == TEXT:
        max_tokens = wanted.max_tokens or stored.get("max_tokens")
        backbone: Backbone = load_text(name, wanted.pooling or "mean", max_tokens)
    else:
        backbone = load_image(name, wanted.pooling or "cls")
    if store is not None:
        _check_tokens(store, backbone, tuning.top)
    if tuning.method != "none":
        settings = tuning.model_dump(exclude={"method", "rate"})
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
    if store.settings["weight_digest"] != backbone.weight_digest:
        raise StoreError(
            f"the tokens in '{store.folder}' were made with other weights than those of '{backbone.source.name}'",
            "the same backbone",
            "run `iisan cache --top-blocks` again",
        )


def missing_states(dataset: Dataset, modalities: tuple[str, ...]) -> bool:
    """Whether some item lacks one of the modalities."""
    return any(not Contents.of(dataset, modality).present.all() for modality in modalities)
