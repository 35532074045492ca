"""The one network: state source + item encoder + sequence encoder."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from iisan.config import Config, SequenceConfig
from iisan.errors import ConfigError, RunError
from iisan.names import PAD
from iisan.nn.hidden import without_autocast
from iisan.nn.items import ItemTable, Projection, SideNetwork
from iisan.nn.sequences import GRU4Rec, NextItNet, SASRec
from iisan.states.corruption import hide_modalities
from iisan.states.sources import ItemBatch, StateSource

#: Items are encoded in multiples of this many.
_EVEN = 32


def sequence_encoder(config: SequenceConfig, width: int) -> nn.Module:
    """The sequence encoder that the configuration names, for embeddings of width E."""
    match config.kind:
        case "sasrec":
            return SASRec(width, config.max_length, config.num_layers, config.num_heads, config.dropout)
        case "gru4rec":
            return GRU4Rec(width, config.num_layers, config.dropout)
        case "nextitnet":
            return NextItNet(width, config.num_layers, config.dropout)


def item_encoder(config: Config, num_items: int, source: StateSource) -> nn.Module:
    """The item encoder that the configuration names.

    Args:
        config: complete.
        num_items: N.
        source: gives the states, and says how many, how wide, and whether every item has them.

    Raises:
        ConfigError: a modality whose name torch has taken.
    """
    for name in source.widths:
        if hasattr(nn.ModuleDict, name):
            raise ConfigError(
                f"a modality named '{name}'", "a name that torch's ModuleDict does not use", "rename that column"
            )
    items = config.items
    # Modality dropout takes away what every item has.
    missing = source.missing or config.training.modality_dropout > 0
    match items.kind:
        case "table":
            return ItemTable(num_items, items.embedding_dim)
        case "projection":
            return Projection(source.widths, items.embedding_dim, missing, items.fusion_scale)
        case "side":
            levels = {name: len(kept) for name, kept in source.levels.items()}
            settings = items.model_dump(exclude={"kind", "embedding_dim"})
            return SideNetwork(levels, source.widths, items.embedding_dim, **settings, missing=missing)


class SequentialRecommender(nn.Module):
    """Scores the next item of a history as a dot product.

    Args:
        source: rows of the catalogue -> hidden states.
        items: hidden states -> ``[U, E]``.
        sequence: ``[B, S, E]`` -> ``[B, S, E]``.
        num_items: N.
        length: S.
        modality_dropout: probability that a modality of an item is hidden in training.

    Attributes:
        autocast: whether items are encoded in bf16 in training.
    """

    autocast = False

    def __init__(
        self,
        source: StateSource,
        items: nn.Module,
        sequence: nn.Module,
        num_items: int,
        length: int,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.source = source
        self.items = items
        self.sequence = sequence
        self.num_items = num_items
        self.length = length
        self.modality_dropout = modality_dropout

    @classmethod
    def build(cls, config: Config, num_items: int, source: StateSource) -> "SequentialRecommender":
        """Build what the configuration says, with weights drawn from ``config.training.seed``."""
        torch.manual_seed(config.training.seed)
        items = item_encoder(config, num_items, source)
        sequence = sequence_encoder(config.sequence, config.items.embedding_dim)
        return cls(
            source, items, sequence, num_items, config.sequence.max_length, config.training.modality_dropout
        )

    def read_items(self, rows: Tensor) -> ItemBatch:
        """Hidden states of distinct items ``[U]``, and of some more where that is quicker."""
        # Kernels of low precision want even sizes, and are made anew for each size that they meet.
        beyond = -len(rows) % _EVEN if self._low and self.source.stored else 0
        with self._precision(rows.device):
            batch: ItemBatch = self.source(nn.functional.pad(rows, (0, beyond)))
        return batch

    def encode_items(self, rows: Tensor, batch: ItemBatch | None = None) -> Tensor:
        """Embeddings of distinct items, ``[U] -> [U, E]`` fp32; ``batch`` is what ``read_items`` gave for them."""
        batch = self.read_items(rows) if batch is None else batch
        if self.training and self.modality_dropout:
            batch = hide_modalities(batch, self.modality_dropout)
        with self._precision(rows.device):
            embeddings: Tensor = self.items(batch.rows, batch.modalities)
        return embeddings[: len(rows)].float()

    @property
    def _low(self) -> bool:
        return self.training and self.autocast

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Only encoders and item encoders multiply matrices wide enough for a low precision to pay."""
        return torch.autocast(device.type, torch.bfloat16) if self._low else without_autocast(device)

    def forward(self, items: Tensor, slots: Tensor) -> Tensor:
        """Query vectors of histories.

        Args:
            items: ``[U, E]`` embeddings of distinct items.
            slots: ``[B, S]`` position in ``items``, or ``PAD``.

        Returns:
            ``[B, S, E]``; at padded positions anything finite.
        """
        return encode_histories(self.sequence, items, slots)

    @torch.no_grad()
    def item_embeddings(self, block: int = 512) -> Tensor:
        """Embeddings of the whole catalogue, ``[N, E]`` fp32, in evaluation mode, block by block."""
        self.eval()
        device = next(self.items.parameters()).device
        rows = torch.arange(self.num_items, device=device)
        return torch.cat([self.encode_items(part) for part in rows.split(block)])

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of the parameters that are trained, and hence saved."""
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)


def trainable_state(network: SequentialRecommender) -> dict[str, Tensor]:
    """A copy of the trained parameters, by name, on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in network.trainable()}


def load_trainable(network: SequentialRecommender, state: dict[str, Tensor]) -> None:
    """Put saved parameters back.

    Raises:
        RunError: names or shapes differ from the network's.
    """
    parameters = dict(network.trainable())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    saved = {name: tuple(value.shape) for name, value in state.items()}
    if shapes != saved:
        differing = sorted(set(shapes.items()) ^ set(saved.items()))[0][0]
        raise RunError(
            f"the saved parameter '{differing}' does not fit the network",
            "weights of the same configuration, data and state stores",
            "train into another folder",
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(state[name])


def encode_histories(sequence: nn.Module, items: Tensor, slots: Tensor) -> Tensor:
    """Gather ``items [U, E]`` at ``slots [B, S]`` (``PAD`` = nothing) and encode -> ``[B, S, E]``."""
    mask = slots != PAD
    # index_select, because the gradient of items[slots] adds up repeats in whatever order the threads come.
    x = items.index_select(0, slots.clamp_min(0).flatten()).unflatten(0, slots.shape) * mask[..., None]
    return sequence(x, mask)


@torch.no_grad()
def encode_queries(sequence: nn.Module, items: Tensor, histories: npt.NDArray[np.int64]) -> Tensor:
    """Query vector of each history's end, in evaluation mode.

    Args:
        sequence: a sequence encoder.
        items: ``[N, E]`` embeddings of the catalogue.
        histories: ``[B, S]`` item indices, left-padded with ``PAD``.

    Returns:
        ``[B, E]`` fp32.
    """
    sequence.eval()
    return encode_histories(sequence, items, torch.from_numpy(histories).to(items.device))[:, -1].float()
