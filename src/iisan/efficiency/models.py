"""Costs of a pretrained model, counted by running its code without weights.

Letters: n contents, S tokens, K levels, D width, T layers.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from iisan.config import Config
from iisan.efficiency.counting import Meter, Work, weightless
from iisan.encoders.encoder import Encoder
from iisan.encoders.hub import Source, locate
from iisan.encoders.layers import Pool, grid_means
from iisan.encoders.levels import Level, parse_levels
from iisan.encoders.loading import read_config, tower_without_weights
from iisan.encoders.tuning import add_modules, choose_trained, first_trained_layer
from iisan.errors import EncoderError, IisanError
from iisan.names import IMAGE, TEXT
from iisan.states.configured import kept_levels

#: Default tokens of a text, and default side of an image in pixels.
_TOKENS, _SIDE = 64, 224
#: Contents that a model encodes at once.
PIECE = 64
_UNNAMED = Source("the model", Path(), None)
_NOTHING = Work()


@dataclass(frozen=True)
class Blueprint:
    """Configuration of a model and shape of its inputs, which determine its costs.

    Attributes:
        modality: ``text`` or ``image``.
        config: Configuration of transformers; of a two-tower model the modality's tower is counted.
        shape: Shape of one content: ``(S,)`` tokens of a truncated and padded text, or ``(3, height, width)``.
        source: Origin of the model, for messages.
    """

    modality: str
    config: Any
    shape: tuple[int, ...]
    source: Source = _UNNAMED

    @classmethod
    def of_folder(cls, name_or_folder: str, modality: str, tokens: int | None = None) -> "Blueprint":
        """Read the configuration of a model: a folder, which needs no weights, or a hub id, which is downloaded.

        The ``tokens`` S of a text default to 64, or the model's maximum if that is less.

        Raises:
            EncoderError: Not found, no readable configuration, or an unknown type of model.
        """
        source = locate(name_or_folder)
        config = read_config(source)
        own = getattr(config, "vision_config" if modality == IMAGE else "text_config", None) or config
        if modality == TEXT:
            limit = getattr(own, "max_position_embeddings", None) or _TOKENS
            shape: tuple[int, ...] = (tokens or min(_TOKENS, limit),)
        else:
            side = _processed_side(source.folder) or getattr(own, "image_size", None) or _SIDE
            height, width = (side, side) if isinstance(side, int) else side
            shape = (getattr(own, "num_channels", 3), height, width)
        return cls(modality, config, shape, source)

    def build(self) -> "WeightlessEncoder":
        """Build the model on torch's meta device."""
        return WeightlessEncoder(tower_without_weights(self.config, self.source, self.modality), self)

    @property
    def width(self) -> int:
        """D."""
        with self.counted():
            return self.build().width

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Context that turns any error of the model's own code into an `EncoderError`."""
        try:
            yield
        except IisanError:
            raise
        except Exception as error:
            raise EncoderError(
                f"the costs of '{self.source.name}' cannot be counted ({' '.join(str(error).split())[:200]})",
                f"a model of transformers that reads {self.modality} of one size",
                "choose another model, or measure with iisan.efficiency.measure",
            ) from error


class WeightlessEncoder(Encoder):
    """A pretrained model without weights."""

    kind: ClassVar[str] = "any kind"
    poolings: ClassVar[tuple[str, ...]] = ("mean",)

    def __init__(self, tower: Any, blueprint: Blueprint) -> None:
        super().__init__(tower, blueprint.source, "mean")
        self._blueprint = blueprint

    def sample(self) -> None:
        """Return no sample, as contents have no values either."""

    def prepare(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """Return inputs for n contents, which are not looked at."""
        shape = (len(contents), *self._blueprint.shape)
        if self._blueprint.modality == IMAGE:
            return {"pixel_values": torch.zeros(shape)}
        ones = torch.ones(shape, dtype=torch.long)
        return {"input_ids": ones, "attention_mask": ones}

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """Pool by the mean over all tokens or positions."""
        return lambda hidden: grid_means(hidden, self.width) if hidden.ndim == 4 else hidden.float().mean(1)

    def tokens(self) -> int:
        """S, including class tokens."""
        seen: list[int] = []
        handle = self.replace_input(0, lambda hidden: seen.append(hidden.shape[1]) or hidden)  # type: ignore[func-returns-value]
        self(self.prepare([None]), [1])
        handle.remove()
        return seen[0]


@dataclass(frozen=True)
class ModelCosts:
    """Costs of a model under a configuration.

    Attributes:
        width: D.
        levels: The K levels that are read.
        parameters: Parameters in memory while training, including those that a method adds; 0 with cached states.
        trained: Number of these that are trained.
        rows: Stored rows per content: 1, or S for partial training.
        caching: Work of encoding one content for the state store.
        forward, backward: Work per training batch.
        kept: Bytes that a batch keeps for the backward pass.
        working: Further bytes at the peak of encoding one piece of a batch.
    """

    width: int
    levels: tuple[Level, ...]
    parameters: int = 0
    trained: int = 0
    rows: int = 1
    caching: Work = _NOTHING
    forward: Work = _NOTHING
    backward: Work = _NOTHING
    kept: float = 0.0
    working: float = 0.0


def model_costs(model: Blueprint, config: Config, contents: float, precision: str) -> ModelCosts:
    """Count the costs of a model under a configuration, for a mean number of contents per batch.

    Raises:
        EncoderError: Levels or layers that the model lacks, a method that it does not support, or a model that
            cannot be counted.
    """
    with model.counted():
        return _counted(model, config, contents, precision)


def _counted(model: Blueprint, config: Config, contents: float, precision: str) -> ModelCosts:
    frozen, tuning = model.build(), config.tuning
    tuned = frozen if config.source == "cached" else model.build()
    partial, trains = config.source == "partial", config.source != "cached" and tuning.method != "none"
    levels = parse_levels(kept_levels(config.levels_of(model.modality), frozen.depth), frozen.depth)
    first = first_trained_layer(frozen, tuning.last_n_layers) if partial else 0
    if trains:
        # Before `weightless`, in which new modules cannot be moved to the device of the others.
        add_modules(tuned, tuning.method, tuning.last_n_layers, tuning.rank, tuning.alpha, tuning.bottleneck)
    with weightless():
        costs = ModelCosts(frozen.width, levels)
        inputs = frozen.to_empty(device="cpu").prepare([None] * PIECE)
        if config.source != "live":
            with torch.no_grad(), Meter() as caching:
                frozen(inputs, [first] if partial else levels)
            rows = frozen.tokens() if partial else 1
            costs = replace(costs, caching=caching.work * (1 / PIECE), rows=rows)
        if config.source == "cached":
            return costs
        tuned.to_empty(device="cpu")
        if trains:
            choose_trained(tuned, tuning.method, tuning.last_n_layers, tuning.gradient_checkpointing)
        tuned.drop_below(first)
        tuned.train()
        count = max(1, round(contents))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), Meter() as forward:
            if partial:
                hidden = torch.zeros(count, costs.rows, tuned.width)
                states = tuned.resume(first, hidden, torch.ones(hidden.shape[:2], dtype=torch.long))
            else:
                states = tuned(tuned.prepare([None] * count), levels)
        kept = forward.held - states.untyped_storage().nbytes()
        working = forward.peak - forward.held
        with Meter() as backward:
            if states.requires_grad:
                states.sum().backward()
    pieces = math.ceil(count / PIECE)
    return replace(
        costs,
        parameters=sum(value.numel() for value in tuned.parameters()),
        trained=sum(value.numel() for value in tuned.parameters() if value.requires_grad),
        forward=replace(forward.work, operators=pieces * forward.work.operators),
        backward=replace(backward.work, operators=pieces * backward.work.operators),
        kept=kept,
        working=working * min(1.0, PIECE / count),
    )


def _processed_side(folder: Path) -> int | None:
    """Side in pixels of an image processor's output: its crop, else its size."""
    try:
        processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    side = crop or processor.get("size")
    side = side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else side
    return side if isinstance(side, int) else None
