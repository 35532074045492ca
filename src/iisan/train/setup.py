"""Setup of a run from its configuration: data, split, states, network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from iisan.config import FOLDERS, ColumnConfig, Config, parse
from iisan.data.dataset import Dataset, default_split, manifest_of
from iisan.data.splits import Split
from iisan.encoders.precision import Product, choose_precision, feed_forward
from iisan.errors import ConfigError
from iisan.machine import choose_device
from iisan.model import SequentialRecommender
from iisan.names import IMPORTED, KINDS
from iisan.states.configured import STATES_CURE, anchor_config, open_dataset, open_stores, state_source
from iisan.states.sources import CachedStates
from iisan.states.store import StateStore
from iisan.train.processes import ALONE, Processes


@dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
        config: Complete configuration.
        dataset: Items and interactions.
        split: Training part, validation and test queries.
        stores: State stores by modality; empty for item ids and live states.
    """

    config: Config
    dataset: Dataset
    split: Split
    stores: Mapping[str, StateStore]


@dataclass(frozen=True)
class Setup(Inputs):
    """Parts of a run before training; the configuration has the chosen precision.

    Attributes:
        network: Network with initial weights.
        device: Device of the network.
    """

    network: SequentialRecommender
    device: torch.device


def fingerprints(config: Config, dataset: Dataset, stores: Mapping[str, StateStore]) -> dict[str, Any]:
    """Hashes that identify dataset and states in checkpoints, results and records."""
    found: dict[str, Any] = {"data": dataset.content_hash, "states": _fingerprints(stores)}
    if (previous := dataset.manifest.get("previous_hash")) is not None:
        found["previous_data"] = previous
    if config.anchor.enabled and config.states is not None:
        anchored = _fingerprints(open_stores(anchor_config(config)))
        # Only what the learned part does not read as well: other modalities, or tokens instead of states.
        states = found["states"]
        found["anchor_states"] = {name: each for name, each in anchored.items() if states.get(name) != each}
    return found


def _fingerprints(stores: Mapping[str, StateStore]) -> dict[str, str]:
    return {modality: store.fingerprint for modality, store in stores.items()}


def resolve(config: Config) -> Config:
    """Fill in absolute paths, the split, and missing modalities and their kinds from the state store.

    Raises:
        ConfigError: No modality is named and none is found, one has an unknown kind, or an anchor has no states.
    """
    paths = {name: path.resolve() for name in FOLDERS if (path := getattr(config, name)) is not None}
    columns, modalities = dict(config.columns), config.modalities
    stored: dict[str, str] = {}
    # The stores are opened only if something is missing that they record.
    incomplete = modalities is None or any(config.kind_of(name) is None for name in modalities)
    if incomplete and config.source != "live" and config.states is not None:
        stored = StateStore.kinds(config.states, tokens=config.source == "partial")
    if modalities is None:
        if config.source == "live":
            possible = dict.fromkeys((*KINDS, *columns))
            modalities = tuple(name for name in possible if config.states_of(name).encoder is not None)
        else:
            modalities = _stored_for(config, stored)
        if not modalities:
            got, expected = "no modality is named", "'modalities' (such as [text]), or a folder of state stores"
            if config.source == "live":
                raise ConfigError(got, "an encoder of each", "set text.encoder, image.encoder or both")
            if config.states is not None:
                got = f"'{config.states}' holds no {'token ' * (config.source == 'partial')}states of this dataset"
            raise ConfigError(got, expected, STATES_CURE)
    anchor = config.anchor
    if anchor.enabled:
        anchored = modalities if anchor.modalities is None else anchor.modalities
        unknown = any(config.kind_of(name) is None and name not in stored for name in anchored)
        if config.states is not None and (unknown or not anchored):
            stored = StateStore.kinds(config.states) | stored
        if anchor.modalities is None:
            anchor = anchor.model_copy(update={"modalities": anchored or _stored_for(config, stored)})
    named = dict.fromkeys((*modalities, *(anchor.modalities or ())))
    for name in named:
        if config.kind_of(name) is None and name in stored:
            columns[name] = columns.get(name, ColumnConfig()).model_copy(update={"kind": stored[name]})
    changes = {"modalities": modalities, "columns": columns, "anchor": anchor, **paths}
    resolved = parse(with_split(config).model_copy(update=changes).model_dump())
    for name in named:
        resolved.states_of(name)
    if anchor.enabled:
        anchor_config(resolved)
    return resolved


def _stored_for(config: Config, stored: Mapping[str, str]) -> tuple[str, ...]:
    """The stored modalities of a dataset; a folder of stores may serve several, which lack some columns."""
    kinds = open_dataset(config).kinds if stored else {}
    return tuple(name for name, kind in stored.items() if kind == IMPORTED or name in kinds)


def with_split(config: Config) -> Config:
    """Replace the split ``auto`` by the one that it stands for, if the dataset exists."""
    if config.evaluation.split != "auto" or config.dataset is None or not config.dataset.exists():
        return config
    return config.override([f"evaluation.split={default_split(manifest_of(config.dataset))}"])


def main_products(config: Config, widths: Mapping[str, int], num_items: int) -> list[Product]:
    """List the main matrix products of a training step, given the encoders' widths; none for item ids."""
    items, training = config.items, config.training
    slots = training.batch_size * (config.sequence.max_length + 1) + config.loss.negatives
    rows = num_items if config.loss.candidates == "all" else min(num_items, slots)
    products: list[Product] = []
    for modality, width in widths.items():
        if config.source != "cached":
            products.append(feed_forward(rows, width))
        if items.kind == "side":
            inner = items.bottlenecks.get(modality, items.bottleneck)
            products += [(rows, width, inner), (rows, inner, width)]
        else:
            products.append((rows, width, items.embedding_dim))
    return products


def open_inputs(config: Config) -> Inputs:
    """Open the folders of a complete configuration."""
    dataset = open_dataset(config)
    return Inputs(config, dataset, dataset.split(config.evaluation), open_stores(config))


def build(config: Config, processes: Processes = ALONE) -> Setup:
    """Open the folders of a complete configuration, and build its network in the precision chosen by process 0."""
    inputs = open_inputs(config)
    dataset, stores = inputs.dataset, inputs.stores
    device = choose_device(config.training.device)
    source = state_source(config, dataset, stores)
    if device.type == "cuda" and isinstance(source, CachedStates):
        source.reside(device, config.training.resident_gb * 1e9)
    network = SequentialRecommender.build(config, dataset.num_items, source).to(device)
    network.measure_means()
    products = main_products(config, source.widths, dataset.num_items)
    low = processes.first and choose_precision(device, config.training.precision, products, True) == "bf16"
    network.autocast = bool(processes.add(torch.tensor(float(low), device=device)))
    config = config.override([f"training.precision={'bf16' if network.autocast else 'fp32'}"])
    return Setup(config, dataset, inputs.split, stores, network, device)
