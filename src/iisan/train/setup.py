"""From a configuration to what a run needs: data, split, states, network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from iisan.config import ColumnConfig, Config, parse
from iisan.data.dataset import Dataset
from iisan.data.splits import Split, split
from iisan.encoders.precision import choose_training_precision
from iisan.errors import ConfigError
from iisan.model import SequentialRecommender
from iisan.names import KINDS
from iisan.states.configured import STATES_CURE, open_dataset, open_stores, state_source
from iisan.states.sources import CachedStates
from iisan.states.store import StateStore


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
    """

    config: Config
    dataset: Dataset
    split: Split
    stores: Mapping[str, StateStore]
    network: SequentialRecommender
    device: torch.device


def fingerprints(dataset: Dataset, stores: Mapping[str, StateStore]) -> dict[str, Any]:
    """What is trained on, under the names that checkpoints, results and records have for it."""
    states = {modality: store.fingerprint for modality, store in stores.items()}
    return {"data": dataset.content_hash, "states": states}


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where it is there, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Tensors that have no numbers, as those of `meta`, can't be read back.
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError):
        raise ConfigError(
            f"training.device '{name}' cannot be used here",
            "a device that torch finds",
            "use 'auto' or 'cpu'",
        ) from None
    return device


def resolve(config: Config) -> Config:
    """Fill in what depends on the folders: absolute paths, and the modalities where none are named.

    Raises:
        ConfigError: no modality is named and none can be found.
    """
    paths = {name: path.resolve() for name in ("dataset", "states") if (path := getattr(config, name)) is not None}
    columns, modalities = dict(config.columns), config.modalities
    stored: dict[str, str] = {}
    # Names without a kind, and no names at all, are what the stores have an answer to; else they may be anything.
    asked = modalities is None or any(config.kind_of(name) is None for name in modalities)
    if asked and config.source != "live" and config.states is not None:
        stored = StateStore.kinds(config.states, tokens=config.source == "partial")
    if modalities is None and config.source == "live":
        named = dict.fromkeys((*KINDS, *columns))
        modalities = tuple(name for name in named if config.states_of(name).encoder is not None)
    elif modalities is None:
        modalities = tuple(stored)
    if not modalities and config.modalities is None:
        raise ConfigError(
            "no modality is named",
            "'modalities' (such as [image, text]), or a folder of state stores",
            STATES_CURE,
        )
    for name in modalities:
        if config.kind_of(name) is None and name in stored:
            columns[name] = columns.get(name, ColumnConfig()).model_copy(update={"kind": stored[name]})
    resolved = config.model_copy(update={"modalities": modalities, "columns": columns, **paths})
    return parse(resolved.model_dump())


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
    if device.type == "cuda" and isinstance(source, CachedStates):
        source.reside(device, config.training.resident_gb * 1e9)
    network = SequentialRecommender.build(config, dataset.num_items, source).to(device)
    widest = max(source.widths.values(), default=0)
    network.autocast = choose_training_precision(device, config.training.precision, widest) == "bf16"
    return Setup(
        config,
        dataset,
        split(dataset.sequences, dataset.num_items, config.evaluation.split),
        stores,
        network,
        device,
    )
