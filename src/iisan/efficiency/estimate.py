"""What training with a configuration will cost, before paying: time, parameters, memory and disk (P1 table 1).

What is assumed, besides what the docstrings say:

- A pass is the sum of its products, attention, element-wise operators, and a constant for every operator started,
  each at the rate that the hardware was measured at. Tokenising, decoding images and validating are left out.
- Frozen weights that gradients flow through (LoRA, adapters, biases) cost one product in the backward pass,
  trained ones two, frozen encoders none. What a block writes and keeps is listed in ``transformer.py``.
- Memory is that of the largest batch; gradients grow while activations are given back, so the larger of the two
  counts. The process itself, and what its allocator keeps for later, do not count.

Legend: B windows in a batch, S positions of a history or tokens of a content, U distinct items in a batch,
K levels, D width of an encoder, F of its feed-forward, T blocks, E item embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from iisan.config import Config, TuningConfig
from iisan.efficiency.hardware import Hardware, Operators
from iisan.efficiency.shapes import DataShape, EncoderShape, expected_distinct
from iisan.efficiency.transformer import (
    ATTENTION_BACKWARD,
    BACKWARD_OPERATORS,
    FORWARD_OPERATORS,
    attention_flops,
    backward_elements,
    forward_elements,
    forward_flops,
    kept_bytes,
    patch_flops,
    product_flops,
    tuned_blocks,
    tuned_parameters,
    working_bytes,
)
from iisan.encoders.levels import Level
from iisan.errors import ConfigError, EncoderError
from iisan.losses import candidate_cross_entropy
from iisan.model import encode_histories, item_encoder, sequence_encoder
from iisan.names import IMAGE, LAST, TEXT
from iisan.nn.blocks import DenseMaps, LowRankMaps, PHMMaps, SANBlocks
from iisan.nn.hidden import Hidden
from iisan.states.configured import kept_levels

__all__ = [
    "DataShape",
    "EncoderShape",
    "Estimate",
    "Hardware",
    "estimate",
    "expected_distinct",
    "forward_flops",
    "store_bytes",
    "tuned_parameters",
]

_STORED_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_COMPUTED_BYTES = {"fp32": 4, "bf16": 2}
#: Contents that live states put through an encoder at once.
_PIECE = 64
_FROZEN = TuningConfig(method="none")
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


@dataclass
class _Pass:
    """What a pass through everything adds up to.

    Attributes:
        products: operations in products with weights.
        attention: operations in attention's own products.
        elements: numbers that element-wise operators write.
        operators: how many are started.
    """

    products: float = 0.0
    attention: float = 0.0
    elements: float = 0.0
    operators: float = 0.0

    @property
    def flops(self) -> float:
        return self.products + self.attention

    def seconds(self, hardware: Hardware) -> float:
        return (
            self.products / hardware.flops
            + self.attention / hardware.attention
            + self.elements / hardware.elements
            + self.operators * hardware.overhead
        )


@dataclass
class _Cost:
    """What one batch costs: both passes, and bytes that are kept, held at the widest moment, gathered and read."""

    forward: _Pass = field(default_factory=_Pass)
    backward: _Pass = field(default_factory=_Pass)
    kept: float = 0.0
    working: float = 0.0
    states: float = 0.0
    read: float = 0.0


def _run_blocks(
    work: _Pass, shape: EncoderShape, tuning: TuningConfig, contents: float, blocks: int, patches: bool = False
) -> None:
    """Add the forward pass of some blocks, and of the patches below them."""
    work.products += contents * (blocks * product_flops(shape) + (patch_flops(shape) if patches else 0))
    work.attention += contents * blocks * attention_flops(shape)
    work.elements += contents * shape.tokens * blocks * forward_elements(shape, tuning)
    work.operators += -(-contents // _PIECE) * blocks * FORWARD_OPERATORS


def _encoder_cost(
    cost: _Cost, shape: EncoderShape, config: Config, contents: float, blocks: int, size: int
) -> None:
    """Add a live encoder of which ``blocks`` run, on ``contents`` of one batch, with ``size`` bytes a number."""
    tuning, tokens = config.tuning, contents * shape.tokens
    live, tuned = config.source == "live", tuned_blocks(shape, config.tuning)
    _run_blocks(cost.forward, shape, _FROZEN, contents, blocks - tuned, patches=live)
    _run_blocks(cost.forward, shape, tuning, contents, tuned)
    pixels = 3 * shape.image_size**2 if live else 0
    piece = shape.tokens * working_bytes(shape, size) + 4 * pixels
    cost.working = max(cost.working, min(contents, _PIECE) * piece)
    if not tuned:
        return
    if tuning.gradient_checkpointing:
        _run_blocks(cost.backward, shape, tuning, contents, tuned)
    passes = 2 if tuning.method == "full" else 1
    cost.backward.products += contents * tuned * passes * product_flops(shape)
    cost.backward.attention += contents * tuned * ATTENTION_BACKWARD * attention_flops(shape)
    cost.backward.elements += tokens * tuned * backward_elements(shape, tuning)
    cost.backward.operators += -(-contents // _PIECE) * tuned * BACKWARD_OPERATORS
    if tuning.method in ("lora", "adapter"):
        small = 2 * tokens * tuned_parameters(shape, tuning)
        cost.forward.products += small
        cost.backward.products += 2 * small
    kept = tokens * kept_bytes(shape, tuning, size)
    cost.kept += tokens * 4 * tuned * shape.width + kept if tuning.gradient_checkpointing else tuned * kept
    if size < 4:
        # The weights in the precision of the products, which the backward pass needs again.
        cost.kept += size * tuned * shape.matrices


def _weights(module: nn.Module) -> int:
    """Weights that multiply every row of a module's input."""
    total = 0
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d)):
            total += part.weight.numel()
        elif isinstance(part, nn.GRU):
            total += sum(weight.numel() for weight in part.parameters() if weight.dim() == 2)
        elif isinstance(part, (DenseMaps, PHMMaps, LowRankMaps)):
            total += part.weight.numel()
    return total


def _small_cost(
    cost: _Cost, items: nn.Module, sequence: nn.Module, config: Config, source: Any, data: DataShape
) -> None:
    """Add item encoder, sequence encoder and loss, all trained."""
    batch, width, length = (
        min(config.training.batch_size, data.windows),
        config.items.embedding_dim,
        config.sequence.max_length,
    )
    forward = 2 * _weights(items) * data.distinct + 2 * _weights(sequence) * batch * length
    if config.sequence.kind == "sasrec":
        forward += batch * config.sequence.num_layers * 4 * length**2 * width
    logits = batch * data.positions * data.distinct
    forward += 2 * logits * width
    blocks = [part for part in items.modules() if isinstance(part, SANBlocks)]
    # What enters a block, and what stands before and behind the activation.
    kept = data.distinct * sum(each.up.bias.numel() + 2 * each.down.bias.numel() for each in blocks)
    kept += 16 * width * batch * length * config.sequence.num_layers + 3 * logits
    # What leaves a block is passed over, too, but not kept.
    passed = kept + data.distinct * sum(each.up.bias.numel() for each in blocks)
    for work, passes, started in zip(
        (cost.forward, cost.backward), (1, 2), _operators(sequence, config, source, data), strict=True
    ):
        work.products += passes * forward
        work.elements += passes * passed
        work.operators += started
    cost.kept += 4 * kept


def _operators(sequence: nn.Module, config: Config, source: Any, data: DataShape) -> tuple[int, int]:
    """Operators that the small network and the loss start in both passes, which run here without storage.

    As if no item lacked a modality: which ones do cannot be known without values.
    """
    count, batch, length = max(2, round(data.distinct)), config.training.batch_size, config.sequence.max_length
    predicted = max(1, round(batch * data.positions))
    with torch.device("meta"):
        items = item_encoder(config, data.items, source)
    with torch.device("meta"), Operators() as forward:
        rows = torch.zeros(count, dtype=torch.long)
        states = {
            name: Hidden(torch.zeros(count, len(source.levels[name]), width), rows)
            for name, width in source.widths.items()
        }
        embeddings = items(rows, states)
        slots = torch.zeros(batch, length, dtype=torch.long)
        queries = encode_histories(sequence, embeddings, slots).flatten(0, 1)[:predicted]
        targets, logs = slots.flatten()[:predicted], torch.zeros(count)
        excluded = torch.zeros(len(targets), count, dtype=torch.bool)
        loss = candidate_cross_entropy(queries, targets, embeddings, logs, logs, excluded)
    with Operators() as backward:
        loss.backward()
    return forward.count, backward.count


def estimate(
    config: Config,
    encoders: Mapping[str, EncoderShape],
    data: DataShape,
    hardware: Hardware,
    dtype: str = "bf16",
) -> Estimate:
    """Predict what training with a configuration costs.

    Parameters are exact: those of the encoders by formula, all others from a network without storage. Operations
    count products and sums. The small network writes the numbers that it keeps, twice as many backward. Adam's
    update moves 28 bytes a trained parameter. Live states take one forward pass of every distinct item a batch.

    Args:
        config: complete; ``modalities`` None means all of ``encoders``.
        encoders: by modality; ids need none.
        data: under the same configuration.
        hardware: what seconds rest on.
        dtype: of the stores: ``fp32``, ``bf16``, ``fp16`` or ``int8``.

    Raises:
        ConfigError: a modality without an encoder, an encoder of another modality, or another precision than the
            hardware's.
        EncoderError: levels or blocks that an encoder has not, or a method that it does not take.
    """
    levels = _checked_levels(config, encoders, hardware)
    shapes = {modality: encoders[modality] for modality in levels}
    missing = any(data.present.get(modality, 1.0) < 1 for modality in shapes)
    widths = {name: shape.width for name, shape in shapes.items()}
    source: Any = SimpleNamespace(widths=widths, levels=levels, missing=missing)
    # Sizes without storage: the very modules that training builds, so that no count can differ.
    with torch.device("meta"):
        items = item_encoder(config, data.items, source)
        sequence = sequence_encoder(config.sequence, config.items.embedding_dim)
    trained = total = sum(value.numel() for part in (items, sequence) for value in part.parameters())
    cost, size = _Cost(), _COMPUTED_BYTES[hardware.precision]
    disk, frozen, caching = 0, 0, _Pass()
    for modality, shape in shapes.items():
        share = data.present.get(modality, 1.0)
        kept, contents = levels[modality], share * data.distinct
        partial = config.source == "partial"
        whole = max((shape.depth if isinstance(level, str) else level) for level in kept)
        blocks = tuned_blocks(shape, config.tuning) if partial else whole
        cost.states += 4 * contents * len(kept) * shape.width * (2 if config.items.level_norm == "layer" else 1)
        if config.source != "live":
            rows = (shape.tokens if partial else 1.0, 1 if partial else len(kept))
            disk += store_bytes(share * data.items * rows[0], rows[1], shape.width, dtype)
            cost.read += store_bytes(contents * rows[0], rows[1], shape.width, dtype)
            cost.read += 4 * contents * rows[0] * rows[1] * shape.width
            below = shape.depth - blocks if partial else whole
            _run_blocks(caching, shape, _FROZEN, share * data.items, below, patches=True)
        if config.source != "cached":
            _encoder_cost(cost, shape, config, contents, blocks, size)
            tuned = tuned_parameters(shape, config.tuning)
            added = tuned if config.tuning.method in ("lora", "adapter") else 0
            weights = shape.parameters + added - (shape.depth - blocks if partial else 0) * shape.block
            trained, total, frozen = trained + tuned, total + weights, frozen + weights - tuned
    _small_cost(cost, items, sequence, config, source, data)
    again = config.training.gradient_accumulation
    batches = -(-data.windows // config.training.batch_size)
    seconds = {
        "forward": cost.forward.seconds(hardware) + cost.read / hardware.bandwidth,
        "backward": cost.backward.seconds(hardware),
    }
    largest = max(data.largest / data.distinct, 1.0)
    mapped = 4.0 * frozen if hardware.device == "cpu" else 0.0
    memory = {
        "weights": 4.0 * total - mapped,
        "gradients": 4.0 * trained,
        "moments": 8.0 * trained,
        "activations": largest * cost.kept,
        "states": largest * cost.states,
        "working": cost.working,
    }
    refresh, held = config.tuning.refresh, 0.0
    if refresh > 1:
        frozen_config = config.model_copy(update={"source": "cached", "tuning": _FROZEN})
        held = estimate(frozen_config, encoders, data, hardware, "fp32").seconds_per_step
    # Gradients are there during the next forward pass only where several batches make an update.
    never_together = min(memory["gradients"], memory["activations"]) if again == 1 else 0.0
    return Estimate(
        flops={"forward": again * cost.forward.flops, "backward": again * cost.backward.flops},
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
        disk_bytes=disk,
        caching_seconds=caching.seconds(hardware),
        hardware=hardware,
    )


def _checked_levels(
    config: Config, encoders: Mapping[str, EncoderShape], hardware: Hardware
) -> dict[str, tuple[Level, ...]]:
    """The levels that are read of every modality, which has a fitting encoder."""
    table = config.items.kind == "table"
    given: tuple[str, ...] = () if table else tuple(name for name in (IMAGE, TEXT) if name in encoders)
    wanted = config.modalities or given
    if not wanted and not table:
        raise ConfigError("no encoder is given", "at least one for items.kind " + config.items.kind, "add one")
    if config.training.precision not in ("auto", hardware.precision):
        raise ConfigError(
            f"training.precision '{config.training.precision}' on hardware measured in {hardware.precision}",
            "the same",
            "measure in the precision that is trained in",
        )
    levels: dict[str, tuple[Level, ...]] = {}
    for modality in wanted:
        shape = encoders.get(modality)
        if shape is None or shape.modality != modality:
            got = "no encoder" if shape is None else f"an encoder for {shape.modality}"
            raise ConfigError(f"{got} as that of {modality}", f"one for {modality}", "give its EncoderShape")
        levels[modality] = kept_levels(config.levels_of(modality), shape.depth)
        beyond = [level for level in levels[modality] if level != LAST and int(level) > shape.depth]
        if beyond:
            raise EncoderError(
                f"level {beyond[0]} of {modality}", f"0 to {shape.depth}, or '{LAST}'", "choose other levels"
            )
    return levels
