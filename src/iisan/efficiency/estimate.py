"""What training with a configuration will cost, before paying: time, parameters, memory and disk (P1 table 1).

What is assumed, besides what the docstrings say:

- Matrix products run at the hardware's rate for large ones, all else at the rate of its memory, one after the
  other. Starting operations, tokenising, decoding images and validating are left out: short steps take longer.
- Frozen weights that gradients flow through (LoRA, adapters, biases) cost one product in the backward pass,
  trained ones two, attention's own products two in both cases, frozen backbones none.
- Attention is fused, so no S × S matrix is kept; dropout's masks and the process itself do not count.

Legend: B windows in a batch, S positions of a history or tokens of a content, U distinct items in a batch,
K levels, D width of a backbone, F of its feed-forward, T blocks, E item embedding width.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from iisan.backbones.levels import Level
from iisan.backbones.precision import choose_precision
from iisan.config import Config, TuningConfig
from iisan.efficiency.shapes import BackboneShape, DataShape, expected_distinct
from iisan.errors import BackboneError, ConfigError
from iisan.machine import processor_name
from iisan.model import item_encoder, sequence_encoder
from iisan.names import IMAGE, LAST, TEXT
from iisan.nn.blocks import LowRankLinear, PHMLinear, SANBlock
from iisan.train.setup import choose_device
from iisan.train.sources import kept_levels

__all__ = [
    "BackboneShape",
    "DataShape",
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
#: Contents that live states put through a backbone at once.
_PIECE = 64
#: Adam reads weight, gradient and two moments and writes all but the gradient, in fp32.
_UPDATE_BYTES = 7 * 4


@dataclass(frozen=True)
class Hardware:
    """What predictions of time rest on.

    Attributes:
        flops: operations a second in large matrix products; a product and its sum are two.
        bandwidth: bytes a second that memory reads and writes, together.
        name: of the device.
        precision: of these products, ``fp32`` or ``bf16``.
    """

    flops: float
    bandwidth: float
    name: str = "hardware"
    precision: str = "fp32"

    @classmethod
    def measure(cls, device: str = "auto", precision: str = "auto", seconds: float = 1.0) -> "Hardware":
        """The best of what fits into about ``seconds``: products of 1024² matrices, copies of 128 MB.

        Raises:
            ConfigError: a device or precision that cannot be used here.
        """
        where = choose_device(device)
        kind = choose_precision(where, precision)
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        side = 1024 if where.type == "cpu" else 8192
        left, right = torch.ones(2, side, side, dtype=dtype, device=where)
        source = torch.ones(2**25, device=where)
        target = torch.empty_like(source)
        product = _best(lambda: left @ right, where, seconds / 2)
        copy = _best(lambda: target.copy_(source), where, seconds / 2)
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else processor_name()
        threads = "" if where.type == "cuda" else f", {torch.get_num_threads()} threads"
        return cls(2 * side**3 / product, 2 * 4 * len(source) / copy, name + threads, kind)


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Shortest time of some repetitions, at least three; the first ones warm up."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found)


@dataclass(frozen=True)
class Estimate:
    """What training will cost; of one step where nothing else is said, an update being one step.

    Attributes:
        flops: operations in ``forward`` and ``backward``.
        stages: seconds of ``forward``, ``backward`` and ``update``.
        steps_per_epoch: updates.
        trainable_parameters: exact.
        total_parameters: exact.
        memory: bytes of ``weights``, ``gradients``, ``moments`` (Adam's two), ``activations`` kept for the
            backward pass, ``states`` of the batch's items, and ``working`` space of a piece of contents.
        disk_bytes: of the stores, with the levels that the configuration reads; 0 with live states.
        caching_seconds: of the one pass over all contents that fills them.
        hardware: on whose figures all seconds rest.
    """

    flops: dict[str, float]
    stages: dict[str, float]
    steps_per_epoch: int
    trainable_parameters: int
    total_parameters: int
    memory: dict[str, float]
    disk_bytes: int
    caching_seconds: float
    hardware: Hardware

    @property
    def seconds_per_step(self) -> float:
        """Sum of the stages."""
        return sum(self.stages.values())

    @property
    def seconds_per_epoch(self) -> float:
        """Of training, without validation."""
        return self.seconds_per_step * self.steps_per_epoch

    @property
    def peak_memory_bytes(self) -> float:
        """Sum of the parts of memory, as the end of a backward pass holds all of them."""
        return sum(self.memory.values())


def forward_flops(shape: BackboneShape, blocks: int | None = None) -> float:
    """Operations of one content's forward pass: ``T · (2 · weights · S + 4 · S² · D)``, and those of the patches.

    Args:
        shape: of the backbone.
        blocks: only so many of them, without patches; None is the whole backbone.
    """
    products, attention = _block_flops(shape)
    patches = 2 * 3 * shape.image_size**2 * shape.width if blocks is None else 0
    return (shape.depth if blocks is None else blocks) * (products + attention) + patches


def _block_flops(shape: BackboneShape) -> tuple[float, float]:
    """One block's products with weights, and attention's own."""
    return 2 * shape.matrices * shape.tokens, 4 * shape.tokens**2 * shape.width


def tuned_parameters(shape: BackboneShape, tuning: TuningConfig) -> int:
    """How many parameters of a backbone are trained; exact.

    Raises:
        BackboneError: more blocks than there are, or LoRA or adapters for a fused projection.
    """
    blocks, whole = _tuned_blocks(shape, tuning), tuning.top is None
    match tuning.method:
        case "none":
            return 0
        case "full":
            return blocks * shape.block + shape.final + whole * shape.embeddings
        case "bias":
            return blocks * shape.biases + shape.final_biases + whole * shape.embedding_biases
    if shape.fused:
        raise BackboneError(
            f"tuning.method '{tuning.method}' for a {shape.modality} backbone with a fused projection",
            "separate projections to query and value",
            "use 'full' or 'bias', or another backbone",
        )
    if tuning.method == "lora":
        return blocks * tuning.rank * (3 * shape.width + (shape.key_width or shape.width))
    return blocks * 2 * (2 * shape.width * tuning.bottleneck + tuning.bottleneck + shape.width)


def _tuned_blocks(shape: BackboneShape, tuning: TuningConfig) -> int:
    """How many blocks gradients flow through."""
    if tuning.top is not None and tuning.top > shape.depth:
        raise BackboneError(
            f"tuning.top {tuning.top} for {shape.modality}", f"1 to {shape.depth} blocks", "choose fewer"
        )
    return 0 if tuning.method == "none" else tuning.top or shape.depth


def store_bytes(rows: float, levels: int, width: int, dtype: str) -> int:
    """Disk of ``rows`` stored states ``[K, D]``; int8 adds an fp32 scale a row and level.

    Raises:
        ConfigError: not a storage format.
    """
    if dtype not in _STORED_BYTES:
        raise ConfigError(f"storage dtype '{dtype}'", ", ".join(_STORED_BYTES), "choose one of these")
    return round(rows * levels * (width * _STORED_BYTES[dtype] + (4 if dtype == "int8" else 0)))


def _kept_floats(shape: BackboneShape, tuning: TuningConfig) -> int:
    """Numbers that a block keeps of a token for its backward pass.

    Trained: the inputs of the projections, query, key, value, attention's answer, both norms' inputs, the
    feed-forward's input, and what stands before and behind its activation. Frozen linears keep no input.
    """
    width, wide = shape.width, shape.feed_forward
    gates = 2 * wide if shape.gated else 0
    match tuning.method:
        case "full":
            return 8 * width + 2 * wide + gates
        case "lora":
            return 7 * width + wide + gates + 2 * tuning.rank
        case "adapter":
            return 8 * width + wide + gates + 4 * tuning.bottleneck
        case _:
            return 6 * width + wide + gates


@dataclass
class _Cost:
    """What one forward and backward pass adds up to; numbers that are moved count once for writing and reading."""

    forward: float = 0.0
    backward: float = 0.0
    moved_forward: float = 0.0
    moved_backward: float = 0.0
    kept: float = 0.0
    working: float = 0.0
    states: float = 0.0
    read: float = 0.0


def _backbone_cost(
    cost: _Cost, shape: BackboneShape, config: Config, contents: float, blocks: int, size: int
) -> None:
    """Add a live backbone of which ``blocks`` run, on ``contents`` of one batch, with ``size`` bytes a number."""
    tuning, tokens = config.tuning, contents * shape.tokens
    below = config.source == "live"
    cost.forward += contents * (
        forward_flops(shape, blocks) + (forward_flops(shape) - forward_flops(shape, shape.depth)) * below
    )
    all_floats = 8 * shape.width + 2 * shape.feed_forward
    cost.moved_forward += tokens * blocks * all_floats
    pixels = 3 * shape.image_size**2 if below else 0
    cost.working = max(cost.working, min(contents, _PIECE) * (shape.tokens * all_floats * size + 4 * pixels))
    tuned = _tuned_blocks(shape, tuning)
    if not tuned:
        return
    products, attention = _block_flops(shape)
    passes = 2 if tuning.method == "full" else 1
    cost.backward += contents * tuned * (passes * products + 2 * attention)
    if tuning.method in ("lora", "adapter"):
        small = 2 * tokens * tuned_parameters(shape, tuning)
        cost.forward += small
        cost.backward += 2 * small
    cost.moved_backward += 2 * tokens * tuned * all_floats
    kept = _kept_floats(shape, tuning)
    if tuning.checkpointing:
        cost.backward += contents * forward_flops(shape, tuned)
        cost.kept += tokens * size * (tuned * shape.width + kept)
    else:
        cost.kept += tokens * size * tuned * kept


def _weights(module: nn.Module) -> int:
    """Weights that multiply every row of a module's input."""
    total = 0
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d)):
            total += part.weight.numel()
        elif isinstance(part, nn.GRU):
            total += sum(weight.numel() for weight in part.parameters() if weight.dim() == 2)
        elif isinstance(part, PHMLinear):
            total += part.factors.shape[0] * part.factors.numel()
        elif isinstance(part, LowRankLinear):
            total += part.left.numel() + part.right.numel()
    return total


def _small_cost(cost: _Cost, items: nn.Module, sequence: nn.Module, config: Config, data: DataShape) -> None:
    """Add item encoder, sequence encoder and loss, all trained."""
    batch, width, length = min(config.training.batch, data.windows), config.items.width, config.sequence.length
    forward = 2 * _weights(items) * data.distinct + 2 * _weights(sequence) * batch * length
    if config.sequence.kind == "sasrec":
        forward += batch * config.sequence.blocks * 4 * length**2 * width
    logits = batch * data.positions * data.distinct
    forward += 2 * logits * width
    blocks = [part for part in items.modules() if isinstance(part, SANBlock)]
    # The two states that a gate mixes, the mixture, and what stands before and behind the activation.
    sizes: list[Any] = [(block.up, block.down) for block in blocks]
    kept = data.distinct * sum(3 * up.bias.numel() + 2 * down.bias.numel() for up, down in sizes)
    kept += 16 * width * batch * length * config.sequence.blocks + 3 * logits
    cost.forward += forward
    cost.backward += 2 * forward
    cost.moved_forward += kept
    cost.moved_backward += 2 * kept
    cost.kept += 4 * kept


def estimate(
    config: Config,
    backbones: Mapping[str, BackboneShape],
    data: DataShape,
    hardware: Hardware,
    dtype: str = "bf16",
) -> Estimate:
    """Predict what training with a configuration costs.

    Parameters are exact: those of the backbones by formula, all others from a network without storage. Operations
    count products and sums. Every number kept is moved once each way forward, twice backward. Adam's update moves
    28 bytes a trained parameter. Live states take one forward pass of every distinct item a batch.

    Args:
        config: complete; ``modalities`` None means all of ``backbones``.
        backbones: by modality; ids need none.
        data: under the same configuration.
        hardware: what seconds rest on.
        dtype: of the stores: ``fp32``, ``bf16``, ``fp16`` or ``int8``.

    Raises:
        ConfigError: a modality without a backbone, a backbone of another modality, or another precision than the
            hardware's.
        BackboneError: levels or blocks that a backbone has not, or a method that it does not take.
    """
    levels = _checked_levels(config, backbones, hardware)
    shapes = {modality: backbones[modality] for modality in levels}
    missing = any(data.present.get(modality, 1.0) < 1 for modality in shapes)
    source: Any = SimpleNamespace(widths={name: shape.width for name, shape in shapes.items()}, levels=levels)
    # Sizes without storage: the very modules that training builds, so that no count can differ.
    with torch.device("meta"):
        items = item_encoder(config.items, data.items, source, missing)
        sequence = sequence_encoder(config.sequence, config.items.width)
    trained = total = sum(value.numel() for part in (items, sequence) for value in part.parameters())
    cost, size = _Cost(), _COMPUTED_BYTES[hardware.precision]
    disk, caching = 0, 0.0
    for modality, shape in shapes.items():
        share = data.present.get(modality, 1.0)
        kept, contents = levels[modality], share * data.distinct
        partial = config.source == "partial"
        whole = max((shape.depth if isinstance(level, str) else level) for level in kept)
        blocks = _tuned_blocks(shape, config.tuning) if partial else whole
        cost.states += 4 * contents * len(kept) * shape.width * (2 if config.items.level_norm == "layer" else 1)
        if config.source != "live":
            rows = (shape.tokens if partial else 1.0, 1 if partial else len(kept))
            disk += store_bytes(share * data.items * rows[0], rows[1], shape.width, dtype)
            cost.read += store_bytes(contents * rows[0], rows[1], shape.width, dtype)
            cost.read += 4 * contents * rows[0] * rows[1] * shape.width
            below = shape.depth - blocks if partial else whole
            once = forward_flops(shape) - forward_flops(shape, shape.depth - below)
            moved = 2 * size * shape.tokens * below * (8 * shape.width + 2 * shape.feed_forward)
            caching += share * data.items * (once / hardware.flops + moved / hardware.bandwidth)
        if config.source != "cached":
            _backbone_cost(cost, shape, config, contents, blocks, size)
            trained += tuned_parameters(shape, config.tuning)
            added = tuned_parameters(shape, config.tuning) if config.tuning.method in ("lora", "adapter") else 0
            total += shape.parameters + added - (shape.depth - blocks if partial else 0) * shape.block
    _small_cost(cost, items, sequence, config, data)
    again = config.training.accumulate
    batches = -(-data.windows // config.training.batch)
    seconds = {
        "forward": cost.forward / hardware.flops
        + (2 * size * cost.moved_forward + cost.read) / hardware.bandwidth,
        "backward": cost.backward / hardware.flops + 2 * size * cost.moved_backward / hardware.bandwidth,
    }
    return Estimate(
        flops={"forward": again * cost.forward, "backward": again * cost.backward},
        stages={
            **{stage: again * value for stage, value in seconds.items()},
            "update": _UPDATE_BYTES * trained / hardware.bandwidth,
        },
        steps_per_epoch=-(-batches // again),
        trainable_parameters=trained,
        total_parameters=total,
        memory={
            "weights": 4.0 * total,
            "gradients": 4.0 * trained,
            "moments": 8.0 * trained,
            "activations": cost.kept,
            "states": cost.states,
            "working": cost.working,
        },
        disk_bytes=disk,
        caching_seconds=caching,
        hardware=hardware,
    )


def _checked_levels(
    config: Config, backbones: Mapping[str, BackboneShape], hardware: Hardware
) -> dict[str, tuple[Level, ...]]:
    """The levels that are read of every modality, which has a fitting backbone."""
    table = config.items.kind == "table"
    given: tuple[str, ...] = () if table else tuple(name for name in (IMAGE, TEXT) if name in backbones)
    wanted = config.modalities or given
    if not wanted and not table:
        raise ConfigError("no backbone is given", "at least one for items.kind " + config.items.kind, "add one")
    if config.training.precision not in ("auto", hardware.precision):
        raise ConfigError(
            f"training.precision '{config.training.precision}' on hardware measured in {hardware.precision}",
            "the same",
            "measure in the precision that is trained in",
        )
    levels: dict[str, tuple[Level, ...]] = {}
    for modality in wanted:
        shape = backbones.get(modality)
        if shape is None or shape.modality != modality:
            got = "no backbone" if shape is None else f"a backbone for {shape.modality}"
            raise ConfigError(f"{got} as that of {modality}", f"one for {modality}", "give its BackboneShape")
        levels[modality] = kept_levels(config.levels_of(modality), shape.depth)
        beyond = [level for level in levels[modality] if level != LAST and int(level) > shape.depth]
        if beyond:
            raise BackboneError(
                f"level {beyond[0]} of {modality}", f"0 to {shape.depth}, or '{LAST}'", "choose other levels"
            )
    return levels
