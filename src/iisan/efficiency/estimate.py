"""Predicted costs of training with a configuration: time, parameters, memory and disk (IISAN, table 1).

The time of a pass is the sum over its matrix products, attention, element-wise operators and number of operators,
each at the rate measured on the hardware. They are counted while the code of training runs on tensors without
data (``counting.py``). Not included: tokenising, decoding images, validation, and the memory of the process itself
and of what its allocator keeps for later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from iisan.config import Config, TuningConfig
from iisan.data.dataset import Dataset
from iisan.efficiency.counting import Meter
from iisan.efficiency.hardware import Hardware
from iisan.efficiency.models import Blueprint, ModelCosts, model_costs
from iisan.efficiency.workload import DataShape
from iisan.encoders.precision import choose_precision
from iisan.errors import ConfigError
from iisan.machine import choose_device
from iisan.model import SequentialRecommender
from iisan.names import IMAGE, TEXT
from iisan.nn.hidden import Hidden
from iisan.recipes import recipe
from iisan.states.sources import ItemBatch
from iisan.train.batches import Batch
from iisan.train.loop import batch_loss
from iisan.train.setup import main_products

_STORED_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
#: Adam reads weight, gradient and two moments and writes all but the gradient, in fp32.
_UPDATE_BYTES = 7 * 4


@dataclass(frozen=True)
class Estimate:
    """Predicted costs of training; per step unless stated otherwise, where a step is an update of the weights.

    With ``tuning.refresh``, steps and memory are those of epochs that train the encoders.

    Attributes:
        flops: Operations of ``forward`` and ``backward``.
        stages: Seconds of ``forward``, ``backward`` and ``update``.
        steps_per_epoch: Number of updates.
        refresh: Length of a cycle of epochs, of which the first trains the encoders.
        held_seconds_per_step: Seconds per step in the other epochs, which read last states from memory; 0 if none.
        trainable_parameters, total_parameters: Exact.
        memory: Bytes of ``weights``, ``gradients``, ``moments`` (Adam's two), ``activations`` kept for the
            backward pass, ``states`` of the batch's items, and ``working`` space; for the largest batch.
        peak_memory_bytes: The most that is held at once.
        mapped_bytes: Frozen weights that on a CPU stay in memory-mapped files and are not counted as memory.
        disk_bytes: Size of the state stores with the levels that are read; 0 with live states.
        caching_seconds: Time of the one pass over all items that fills them.
        hardware: Hardware that all seconds are based on.
    """

    flops: dict[str, float]
    stages: dict[str, float]
    steps_per_epoch: int
    refresh: int
    held_seconds_per_step: float
    trainable_parameters: int
    total_parameters: int
    memory: dict[str, float]
    peak_memory_bytes: float
    mapped_bytes: float
    disk_bytes: int
    caching_seconds: float
    hardware: Hardware

    @property
    def seconds_per_step(self) -> float:
        """Sum of the stages."""
        return sum(self.stages.values())

    @property
    def seconds_per_epoch(self) -> float:
        """Seconds of training, without validation; the mean over a cycle."""
        cycle = self.seconds_per_step + (self.refresh - 1) * self.held_seconds_per_step
        return cycle / self.refresh * self.steps_per_epoch


def store_bytes(rows: float, levels: int, width: int, dtype: str) -> int:
    """Size of ``rows`` stored states ``[K, D]``; int8 adds an fp32 scale per row and level.

    Raises:
        ConfigError: Unknown storage format.
    """
    if dtype not in _STORED_BYTES:
        raise ConfigError(f"storage dtype '{dtype}'", ", ".join(_STORED_BYTES), "choose one of these")
    return round(rows * levels * (width * _STORED_BYTES[dtype] + (4 if dtype == "int8" else 0)))


def estimate(
    config: Config, models: Mapping[str, Blueprint], data: DataShape, hardware: Hardware, dtype: str = "bf16"
) -> Estimate:
    """Predict what training with a configuration costs.

    Args:
        config: Complete configuration; ``modalities`` None means all of ``models``.
        models: Modality -> model; not needed for ids.
        data: Sizes of the dataset under this configuration.
        hardware: Hardware to predict times for.
        dtype: Storage format of the state stores: ``fp32``, ``bf16``, ``fp16`` or ``int8``.

    Raises:
        ConfigError: A modality without a model, a model of another modality, or a precision other than the
            hardware's.
        EncoderError: Levels or layers that a model lacks, or a method that it does not support.
    """
    present = {name: data.present.get(name, 1.0) for name in _modalities(config, models, hardware)}
    costs = {
        name: model_costs(models[name], config, share * data.distinct, hardware.precision)
        for name, share in present.items()
    }
    network, forward, backward = _network_costs(config, costs, data, min(present.values(), default=1) < 1)
    work = {
        "forward": sum((each.forward for each in costs.values()), forward.work),
        "backward": sum((each.backward for each in costs.values()), backward.work),
    }
    states = disk = read = 0
    for name, each in costs.items():
        batch, catalogue = present[name] * data.distinct, present[name] * data.items
        states += store_bytes(batch, len(each.levels), each.width, "fp32")
        if config.source != "live":
            levels = 1 if config.source == "partial" else len(each.levels)
            disk += store_bytes(catalogue * each.rows, levels, each.width, dtype)
            read += sum(store_bytes(batch * each.rows, levels, each.width, form) for form in (dtype, "fp32"))
    own = sum(value.numel() for value in network.parameters())
    trained = own + sum(each.trained for each in costs.values())
    total = own + sum(each.parameters for each in costs.values())
    mapped = 4.0 * (total - trained) if hardware.device == "cpu" else 0.0
    largest = max(data.largest / data.distinct, 1.0)
    memory = {
        "weights": 4.0 * total - mapped,
        "gradients": 4.0 * trained,
        "moments": 8.0 * trained,
        "activations": largest * (forward.held + sum(each.kept for each in costs.values())),
        "states": largest * states,
        "working": max([forward.peak - forward.held, *(each.working for each in costs.values())]),
    }
    refresh, held = config.tuning.refresh, 0.0
    if refresh > 1:
        frozen = config.model_copy(update={"source": "cached", "tuning": TuningConfig(method="none")})
        held = estimate(frozen, models, data, hardware, "fp32").seconds_per_step
    batches = config.training.gradient_accumulation
    # Gradients grow while activations are freed; with several batches per update both are held at once.
    never_together = min(memory["gradients"], memory["activations"]) if batches == 1 else 0.0
    return Estimate(
        flops={stage: batches * each.flops for stage, each in work.items()},
        stages={
            "forward": batches * (hardware.seconds(work["forward"]) + read / hardware.bandwidth),
            "backward": batches * hardware.seconds(work["backward"]),
            "update": _UPDATE_BYTES * trained / hardware.bandwidth,
        },
        steps_per_epoch=-(-data.windows // config.training.batch_size // batches),
        refresh=refresh,
        held_seconds_per_step=held,
        trainable_parameters=trained,
        total_parameters=total,
        memory=memory,
        peak_memory_bytes=sum(memory.values()) - never_together,
        mapped_bytes=mapped,
        disk_bytes=disk,
        caching_seconds=sum(
            hardware.seconds(each.caching * (present[name] * data.items)) for name, each in costs.items()
        ),
        hardware=hardware,
    )


def plan(
    dataset: Dataset,
    models: Mapping[str, str],
    recipes: Iterable[str],
    overrides: Iterable[str] = (),
    tokens: int | None = None,
) -> dict[str, Estimate]:
    """Estimate recipes on this machine, whose speed is measured for a second or two.

    Args:
        dataset: Dataset to train on.
        models: Modality -> hub id or folder; only their configurations are read.
        recipes: Names of recipes.
        overrides: Settings for all recipes.
        tokens: Mean tokens per text; defaults to the recipe's maximum.

    Raises:
        ConfigError: An unknown recipe or setting, or a recipe that trains nothing.
        EncoderError: A model that is not found or not supported.
    """
    configs = {name: recipe(name).override(overrides) for name in recipes}
    for name, config in configs.items():
        if config.items.kind == "none":  # Said before the machine is measured.
            got = f"the recipe '{name}' with items.kind 'none', which trains nothing"
            raise ConfigError(got, "a recipe that trains something", "leave it out, or choose another recipe")
    measured: dict[str, Hardware] = {}
    found = {}
    for name, config in configs.items():
        blueprints = {
            modality: Blueprint.of_folder(model, modality, tokens or config.text.max_tokens)
            for modality, model in models.items()
        }
        widths = {} if config.items.kind == "table" else {name: each.width for name, each in blueprints.items()}
        device, products = choose_device(config.training.device), main_products(config, widths, dataset.num_items)
        precision = choose_precision(device, config.training.precision, products, training=True)
        if precision not in measured:
            measured[precision] = Hardware.measure(config.training.device, precision)
        found[name] = estimate(config, blueprints, DataShape.of_dataset(dataset, config), measured[precision])
    return found


def _network_costs(
    config: Config, models: Mapping[str, ModelCosts], data: DataShape, missing: bool
) -> tuple[SequentialRecommender, Meter, Meter]:
    """Item encoder, sequence encoder and loss, and what the forward and backward pass of a batch cost.

    Counted as if all modalities were present and no position were padded, which depends on data, and in fp32, as
    the meta device has no precision of its own.
    """
    items, windows, length = max(2, round(data.distinct)), config.training.batch_size, config.sequence.max_length
    predicted = max(1, round(min(windows, data.windows) * data.positions))
    widths, levels = ({name: getattr(each, of) for name, each in models.items()} for of in ("width", "levels"))
    source: Any = SimpleNamespace(widths=widths, levels=levels, missing=missing)
    with torch.device("meta"):
        network = SequentialRecommender.build(config, data.items, source).train()
        network.modality_dropout = 0.0
        rows, logs = torch.zeros(items, dtype=torch.long), torch.zeros(items)
        slots = torch.zeros(windows, length + 1, dtype=torch.long)
        excluded = torch.zeros(windows, items, dtype=torch.bool)
        positions = torch.zeros(predicted, dtype=torch.long)
        batch = Batch(rows, slots, positions, predicted, logs, logs, excluded)
        states = {
            name: Hidden(torch.zeros(items, len(each.levels), each.width), rows) for name, each in models.items()
        }
        with Meter() as forward:
            loss = batch_loss(network, batch, config.loss.reduction, states=ItemBatch(rows, states))
        held = forward.held
        with Meter() as backward:
            loss.backward()
        forward.held = held
    return network, forward, backward


def _modalities(config: Config, models: Mapping[str, Blueprint], hardware: Hardware) -> tuple[str, ...]:
    """The modalities that are read, each of which has a suitable model."""
    table = config.items.kind == "table"
    wanted = config.modalities or (() if table else tuple(name for name in (IMAGE, TEXT) if name in models))
    if not wanted and not table:
        raise ConfigError("no model is given", f"at least one for items.kind {config.items.kind}", "add one")
    if config.training.precision not in ("auto", hardware.precision):
        got = f"training.precision '{config.training.precision}' on hardware measured in {hardware.precision}"
        raise ConfigError(got, "the same", "measure in the precision that is trained in")
    for modality in wanted:
        model = models.get(modality)
        if model is None or model.modality != modality:
            got = "no model" if model is None else f"a model for {model.modality}"
            raise ConfigError(f"{got} as that of {modality}", f"one for {modality}", "give its Blueprint")
    return wanted
