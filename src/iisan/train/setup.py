"""From a configuration to what a run needs: data, split, states, network."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from iisan.backbones.backbone import Backbone
from iisan.backbones.image import load_image
from iisan.backbones.levels import layer_drop
from iisan.backbones.precision import choose_precision
from iisan.backbones.text import load_text
from iisan.config import Config, Level, Levels, parse
from iisan.data.dataset import Dataset
from iisan.data.splits import Split, split
from iisan.errors import ConfigError
from iisan.model import SequentialRecommender
from iisan.names import IMAGE, TEXT
from iisan.states.contents import Contents
from iisan.states.sources import CachedStates, LiveStates, NoStates, StateSource
from iisan.states.store import StateStore

_STATES_CURE = "pass --states or set the key 'states'"


@dataclass(frozen=True)
class Setup:
    """A run's parts, before training.

    Attributes:
        config: complete.
        dataset: items and interactions.
        split: what is trained on and what is asked.
        stores: modality -> store; empty for ids and live states.
        network: with initial weights, on its device.
        device: where it computes.
        autocast: whether training computes in bf16.
    """

    config: Config
    dataset: Dataset
    split: Split
    stores: Mapping[str, StateStore]
    network: SequentialRecommender
    device: torch.device
    autocast: bool


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where it is there, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(
            f"training.device '{name}' cannot be used here",
            "a device that torch finds",
            "use 'auto' or 'cpu'",
        ) from None
    return device


def kept_levels(levels: Levels, depth: int) -> tuple[Level, ...]:
    """The levels that the model reads: LayerDrop's, all hidden states, or those listed."""
    if levels == "layerdrop":
        return layer_drop(depth)
    return tuple(range(depth + 1)) if levels == "all" else levels


def open_dataset(config: Config) -> Dataset:
    """Load the dataset that the configuration names.

    Raises:
        ConfigError: it names none.
    """
    if config.dataset is None:
        raise ConfigError(
            "no dataset is given",
            "the folder that `iisan prepare` wrote",
            "pass --dataset or set the key 'dataset'",
        )
    return Dataset.load(config.dataset)


def resolve(config: Config) -> Config:
    """Fill in what depends on the folders: absolute paths, and the modalities where none are named.

    Raises:
        ConfigError: no modality is named and none can be found.
    """
    paths = {name: path.resolve() for name in ("dataset", "states") if (path := getattr(config, name)) is not None}
    modalities: tuple[str, ...] | None = config.modalities
    if modalities is None and config.source == "cached" and config.states is not None:
        modalities = tuple(name for name in (IMAGE, TEXT) if StateStore.folders(config.states, name))
    if modalities is None:
        raise ConfigError(
            "no modality is named",
            "'modalities' (such as [image, text]), or a folder of state stores",
            _STATES_CURE,
        )
    return parse({**config.model_dump(), **paths, "modalities": modalities})


def open_stores(config: Config) -> dict[str, StateStore]:
    """Find the store of every modality that the configuration uses, and check that it is the expected one.

    Raises:
        ConfigError: no folder of stores is given.
        StoreError: a store is absent, damaged or was made under other settings.
    """
    if not config.modalities or config.source == "live":
        return {}
    if config.states is None:
        raise ConfigError("no state stores are given", "the folder that `iisan cache` wrote", _STATES_CURE)
    stores: dict[str, StateStore] = {}
    for modality in config.modalities:
        wanted = config.states_of(modality)
        expect = {
            key: value
            for key, value in wanted.model_dump(include={"backbone", "pooling", "max_tokens"}).items()
            if value is not None
        }
        stores[modality] = StateStore.find(config.states, modality, expect)
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
    parts: dict[str, tuple[Backbone, Contents, tuple[Level, ...]]] = {}
    for modality in config.modalities:
        backbone = _load_backbone(config, modality)
        levels = kept_levels(config.levels_of(modality), backbone.depth)
        parts[modality] = (backbone, Contents.of(dataset, modality), levels)
    return LiveStates(parts)


def _load_backbone(config: Config, modality: str) -> Backbone:
    wanted = config.states_of(modality)
    if wanted.backbone is None:
        raise ConfigError(
            f"source 'live' has no backbone for {modality}",
            "a hub id or a folder",
            f"set {modality}.backbone",
        )
    if modality == TEXT:
        return load_text(wanted.backbone, wanted.pooling or "mean", wanted.max_tokens)
    return load_image(wanted.backbone, wanted.pooling or "cls")


def missing_states(dataset: Dataset, modalities: tuple[str, ...]) -> bool:
    """Whether some item lacks one of the modalities."""
    return any(not Contents.of(dataset, modality).present.all() for modality in modalities)


def build(config: Config, dataset: Dataset | None = None) -> Setup:
    """Open everything that the configuration names and build the network.

    Args:
        config: complete.
        dataset: in the place of the one that the configuration names.
    """
    dataset = dataset or open_dataset(config)
    device = choose_device(config.training.device)
    stores = open_stores(config)
    source = state_source(config, dataset, stores)
    missing = missing_states(dataset, config.modalities or ())
    network = SequentialRecommender.build(config, dataset.num_items, source, missing).to(device)
    return Setup(
        config,
        dataset,
        split(dataset.sequences, dataset.num_items, config.evaluation.split),
        stores,
        network,
        device,
        choose_precision(device, config.training.precision) == "bf16",
    )
