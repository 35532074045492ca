"""What training with a configuration will cost, before paying: time, parameters, memory and disk (P1 table 1).

A pass is the sum of its products, attention, element-wise operators, and a constant for every operator started,
each at the rate that the hardware was measured at. What is computed is counted while training's own code runs on
tensors without numbers (``counting.py``). Left out are tokenising, decoding images and validating, and of the
memory the process itself and what its allocator keeps for later.

Memory is that of the largest batch; gradients grow while activations are given back, so the larger of the two
counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from iisan.config import Config, TuningConfig
from iisan.efficiency.counting import Meter, Work
from iisan.efficiency.hardware import Hardware
from iisan.efficiency.models import Blueprint, ModelCosts, model_costs
from iisan.efficiency.workload import DataShape
from iisan.errors import ConfigError
from iisan.model import SequentialRecommender
from iisan.names import IMAGE, TEXT
from iisan.nn.hidden import Hidden
from iisan.states.sources import ItemBatch
from iisan.train.batches import Batch
from iisan.train.loop import batch_loss

_STORED_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
#: Adam reads weight, gradient and two moments and writes all but the gradient, in fp32.
_UPDATE_BYTES = 7 * 4


@dataclass(frozen=True)
class Estimate:
    """What training will cost; of one step where nothing else is said, an update being one step.

    Steps and memory are those of epochs that train the encoders, where ``tuning.refresh`` has others too.

    Attributes:
        flops: operations in ``forward`` and ``backward``.
        stages: seconds of ``forward``, ``backward`` and ``update``.
        steps_per_epoch: updates.
        refresh: epochs of a cycle, of which the first trains the encoders.
        held_seconds_per_step: in the others, which train on their last states in memory; 0 if there are none.
        trainable_parameters: exact.
        total_parameters: exact.
        memory: bytes of ``weights``, ``gradients``, ``moments`` (Adam's two), ``activations`` kept for the
            backward pass, ``states`` of the batch's items, and ``working`` space of a piece of contents.
        peak_memory_bytes: the most that is held at once.
        mapped_bytes: frozen weights that on a CPU stay pages of their file: the system's cache, not this memory.
        disk_bytes: of the stores, with the levels that the configuration reads; 0 with live states.
        caching_seconds: of the one pass over all contents that fills them.
        hardware: on whose figures all seconds rest.
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
        """Of training, without validation, which computes the states that are held; mean over a cycle."""
        cycle = self.seconds_per_step + (self.refresh - 1) * self.held_seconds_per_step
        return cycle / self.refresh * self.steps_per_epoch


def store_bytes(rows: float, levels: int, width: int, dtype: str) -> int:
    """Disk of ``rows`` stored states ``[K, D]``; int8 adds an fp32 scale a row and level.

    Raises:
        ConfigError: not a storage format.
    """
    if dtype not in _STORED_BYTES:
        raise ConfigError(f"storage dtype '{dtype}'", ", ".join(_STORED_BYTES), "choose one of these")
    return round(rows * levels * (width * _STORED_BYTES[dtype] + (4 if dtype == "int8" else 0)))


def estimate(
    config: Config,
    models: Mapping[str, Blueprint],
    data: DataShape,
    hardware: Hardware,
    dtype: str = "bf16",
) -> Estimate:
    """Predict what training with a configuration costs.

    Parameters are exact. Adam's update moves 28 bytes a trained parameter. Live states take one forward pass of
    every distinct item a batch.

    Args:
        config: complete; ``modalities`` None means all of ``models``.
        models: by modality; ids need none.
        data: under the same configuration.
        hardware: what seconds rest on.
        dtype: of the stores: ``fp32``, ``bf16``, ``fp16`` or ``int8``.

    Raises:
        ConfigError: a modality without a model, a model of another modality, or another precision than the
            hardware's.
        EncoderError: levels or blocks that a model has not, or a method that it does not take.
    """
    share = {modality: data.present.get(modality, 1.0) for modality in _modalities(config, models, hardware)}
    costs = {
        modality: model_costs(models[modality], config, present * data.distinct, hardware.precision)
        for modality, present in share.items()
    }
    small, forward, backward = _small_costs(config, costs, data, min(share.values(), default=1) < 1)
    states = read = disk = 0.0
    caching, kept, working = Work(), float(forward.held), float(forward.peak - forward.held)
    passes = {"forward": forward.work, "backward": backward.work}
    trained = total = sum(value.numel() for value in small.parameters())
    for modality, each in costs.items():
        contents = share[modality] * data.distinct
        states += 4 * contents * len(each.levels) * each.width
        if config.source != "live":
            kinds = 1 if config.source == "partial" else len(each.levels)
            disk += store_bytes(share[modality] * data.items * each.rows, kinds, each.width, dtype)
            read += store_bytes(contents * each.rows, kinds, each.width, dtype)
            read += 4 * contents * each.rows * kinds * each.width
        caching += each.caching * (share[modality] * data.items)
        passes = {"forward": passes["forward"] + each.forward, "backward": passes["backward"] + each.backward}
        kept, working = kept + each.kept, max(working, each.working)
        trained, total = trained + each.trained, total + each.parameters
    again = config.training.gradient_accumulation
    batches = -(-data.windows // config.training.batch_size)
    seconds = {stage: hardware.seconds(work) for stage, work in passes.items()}
    seconds["forward"] += read / hardware.bandwidth
    largest = max(data.largest / data.distinct, 1.0)
    mapped = 4.0 * (total - trained) if hardware.device == "cpu" else 0.0
    memory = {
        "weights": 4.0 * total - mapped,
        "gradients": 4.0 * trained,
        "moments": 8.0 * trained,
        "activations": largest * kept,
        "states": largest * states,
        "working": working,
    }
    refresh, held = config.tuning.refresh, 0.0
    if refresh > 1:
        frozen = config.model_copy(update={"source": "cached", "tuning": TuningConfig(method="none")})
        held = estimate(frozen, models, data, hardware, "fp32").seconds_per_step
    # Gradients are there during the next forward pass only where several batches make an update.
    never_together = min(memory["gradients"], memory["activations"]) if again == 1 else 0.0
    return Estimate(
        flops={stage: again * work.flops for stage, work in passes.items()},
        stages={
            **{stage: again * value for stage, value in seconds.items()},
            "update": _UPDATE_BYTES * trained / hardware.bandwidth,
        },
        steps_per_epoch=-(-batches // again),
        refresh=refresh,
        held_seconds_per_step=held,
        trainable_parameters=trained,
        total_parameters=total,
        memory=memory,
        peak_memory_bytes=sum(memory.values()) - never_together,
        mapped_bytes=mapped,
        disk_bytes=round(disk),
        caching_seconds=hardware.seconds(caching),
        hardware=hardware,
    )


def _small_costs(
    config: Config, models: Mapping[str, ModelCosts], data: DataShape, missing: bool
) -> tuple[SequentialRecommender, Meter, Meter]:
    """Item encoder, sequence encoder and loss, and what both passes of a batch through them take.

    As if no item lacked a modality and no position were padded: which ones are cannot be known without values. In
    fp32, as the meta device has no other precision of its own.
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
    """The modalities that are read; each has a fitting model."""
    table = config.items.kind == "table"
    wanted = config.modalities or (() if table else tuple(name for name in (IMAGE, TEXT) if name in models))
    if not wanted and not table:
        raise ConfigError("no model is given", f"at least one for items.kind {config.items.kind}", "add one")
    if config.training.precision not in ("auto", hardware.precision):
        raise ConfigError(
            f"training.precision '{config.training.precision}' on hardware measured in {hardware.precision}",
            "the same",
            "measure in the precision that is trained in",
        )
    for modality in wanted:
        model = models.get(modality)
        if model is None or model.modality != modality:
            got = "no model" if model is None else f"a model for {model.modality}"
            raise ConfigError(f"{got} as that of {modality}", f"one for {modality}", "give its Blueprint")
    return wanted
