"""What a model costs, counted on its own code from its configuration; no weights are read or held.

Legend: n contents, S tokens, K levels, D width, T blocks.
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
from iisan.encoders.loading import model_without_weights, read_config
from iisan.encoders.tuning import add_modules, choose_trained, first_trained_layer
from iisan.errors import EncoderError, IisanError
from iisan.names import IMAGE, TEXT
from iisan.states.configured import kept_levels

#: The longest text, and the side of a picture, where nothing else is said.
_TOKENS, _SIDE = 64, 224
#: Contents that are put through a model at once.
PIECE = 64


_UNNAMED = Source("the model", Path(), None)
_NOTHING = Work()


@dataclass(frozen=True)
class Blueprint:
    """A model's configuration and the size of what it reads: all that its costs depend on.

    Attributes:
        modality: ``text`` or ``image``.
        config: configuration of transformers; of a two-tower model the modality's tower is counted.
        shape: of one content: ``(S,)`` tokens of a text after cutting and with padding, or ``(3, height, width)``.
        source: where it comes from, for messages.
    """

    modality: str
    config: Any
    shape: tuple[int, ...]
    source: Source = _UNNAMED

    @classmethod
    def of_folder(cls, name_or_folder: str, modality: str, tokens: int | None = None) -> "Blueprint":
        """Read a model's configuration, without loading weights.

        A hub model that is not on this machine is fetched first, as for training; a folder needs no weights.

        Args:
            name_or_folder: hub id or folder.
            modality: ``text`` or ``image``.
            tokens: S of a text; None is 64, or less where the model takes less.

        Raises:
            EncoderError: not found, no readable configuration, or a model of another kind.
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
        """The model on torch's meta device."""
        return WeightlessEncoder(model_without_weights(self.config, self.source, self.modality), self)

    @property
    def width(self) -> int:
        """D."""
        with self.counted():
            return self.build().width

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Say in a sentence what the model's own code raises.

        Raises:
            EncoderError: whatever it was.
        """
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
    """A model of which only the shapes are known."""

    kind: ClassVar[str] = "any kind"
    poolings: ClassVar[tuple[str, ...]] = ("mean",)

    def __init__(self, tower: Any, blueprint: Blueprint) -> None:
        super().__init__(tower, blueprint.source, "mean")
        self._blueprint = blueprint

    def sample(self) -> None:
        """Contents have no values either."""

    def prepare(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """Inputs for n contents, whatever they are."""
        shape = (len(contents), *self._blueprint.shape)
        if self._blueprint.modality == IMAGE:
            return {"pixel_values": torch.zeros(shape)}
        ones = torch.ones(shape, dtype=torch.long)
        return {"input_ids": ones, "attention_mask": ones}

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """The mean over all tokens or places."""
        return lambda hidden: grid_means(hidden, self.width) if hidden.ndim == 4 else hidden.float().mean(1)

    def tokens(self) -> int:
        """S, class tokens included."""
        seen: list[int] = []
        handle = self.replace_input(0, lambda hidden: seen.append(hidden.shape[1]) or hidden)  # type: ignore[func-returns-value]
        self(self.prepare([None]), [1])
        handle.remove()
        return seen[0]


@dataclass(frozen=True)
class ModelCosts:
    """What a model costs under a configuration.

    Attributes:
        width: D.
        levels: the K levels that are read.
        parameters: that are held while training, with those that a method adds; 0 with cached states.
        trained: how many of these are trained; exact.
        rows: stored rows of a content: 1, or S for partial training.
        caching: of one content, for the store.
        forward, backward: of the contents of a batch, while training.
        kept: bytes that a batch keeps for the backward pass.
        working: bytes that are held besides at the widest moment of a piece of contents.
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
    """Count what a model costs under a configuration.

    Args:
        model: what it is.
        config: complete.
        contents: that a batch encodes, mean.
        precision: of the products, ``fp32`` or ``bf16``.

    Raises:
        EncoderError: levels or blocks that the model has not, a method that it does not take, or a model that
            cannot be counted.
    """
    with model.counted():
        return _counted(model, config, contents, precision)


def _counted(model: Blueprint, config: Config, contents: float, precision: str) -> ModelCosts:
    frozen, tuned, tuning = model.build(), model.build(), config.tuning
    partial, trains = config.source == "partial", config.source != "cached" and tuning.method != "none"
    levels = parse_levels(kept_levels(config.levels_of(model.modality), frozen.depth), frozen.depth)
    first = first_trained_layer(frozen, tuning.last_n_layers) if partial else 0
    if trains:
        # Outside: a weightless module cannot be moved, as these are to the device of the others.
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
    """Pixels of the side of what an image processor gives: its crop, else its size."""
    try:
        processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    side = crop or processor.get("size")
    side = side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else side
    return side if isinstance(side, int) else None
