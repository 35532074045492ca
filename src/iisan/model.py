"""The model: state source, item encoder and sequence encoder."""

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
from iisan.nn.anchor import BLOCK
from iisan.nn.hidden import without_autocast
from iisan.nn.items import ItemTable, Projection, SideNetwork
from iisan.nn.sequences import GRU4Rec, NextItNet, Normalised, SASRec
from iisan.states.corruption import hide_modalities
from iisan.states.sources import ItemBatch, StateSource

#: Items are encoded in batches of a multiple of this size.
_MULTIPLE = 32
#: Most items whose states determine the means of ``items.level_norm: centred``.
_MEASURED = 512


def sequence_encoder(config: SequenceConfig, width: int) -> nn.Module:
    """Build the configured sequence encoder for embeddings of width E."""
    encoder: nn.Module
    match config.kind:
        case "sasrec":
            encoder = SASRec(width, config.max_length, config.num_layers, config.num_heads, config.dropout)
        case "gru4rec":
            encoder = GRU4Rec(width, config.num_layers, config.dropout)
        case "nextitnet":
            encoder = NextItNet(width, config.num_layers, config.dropout)
    return Normalised(encoder, config.temperature) if config.similarity == "cosine" else encoder


def item_encoder(config: Config, num_items: int, source: StateSource) -> nn.Module:
    """Build the configured item encoder for N items and the modalities, levels and widths of a state source.

    Raises:
        ConfigError: Nothing is trained, or a modality has the name of an attribute of ``torch.nn.ModuleDict``.
    """
    for name in source.widths:
        if hasattr(nn.ModuleDict, name):
            raise ConfigError(
                f"a modality named '{name}'", "a name that torch's ModuleDict does not use", "rename that column"
            )
    items = config.items
    missing = source.missing or config.training.modality_dropout > 0
    match items.kind:
        case "table":
            return ItemTable(num_items, items.embedding_dim)
        case "projection":
            width, scale = items.embedding_dim, items.fusion_scale
            return Projection(source.widths, width, missing, scale, items.level_norm)
        case "none":
            got, cure = "items.kind 'none', which has no network", "choose another recipe, such as default"
            raise ConfigError(got, "a recipe that trains something", cure)
        case "side":
            levels = {name: len(kept) for name, kept in source.levels.items()}
            settings = items.model_dump(exclude={"kind", "embedding_dim"})
            return SideNetwork(levels, source.widths, items.embedding_dim, **settings, missing=missing)


class SequentialRecommender(nn.Module):
    """Scores the next item of a history by a dot product.

    Args:
        source: State source.
        items: Item encoder.
        sequence: Sequence encoder.
        num_items: Number of items N.
        length: Maximum history length S.
        modality_dropout: Probability of hiding a modality of an item in training.
        normalised: Whether item embeddings are scaled to length 1.
    """

    #: Whether items are encoded in bf16 in training.
    autocast = False

    def __init__(
        self,
        source: StateSource,
        items: nn.Module,
        sequence: nn.Module,
        num_items: int,
        length: int,
        modality_dropout: float = 0.0,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.normalised = normalised
        self.source = source
        self.items = items
        self.sequence = sequence
        self.num_items = num_items
        self.length = length
        self.modality_dropout = modality_dropout

    @classmethod
    def build(cls, config: Config, num_items: int, source: StateSource) -> "SequentialRecommender":
        """Build the configured model; ``config.training.seed`` determines the initial weights."""
        torch.manual_seed(config.training.seed)
        items = item_encoder(config, num_items, source)
        sequence = sequence_encoder(config.sequence, config.items.embedding_dim)
        normalised, dropout = config.sequence.similarity == "cosine", config.training.modality_dropout
        return cls(source, items, sequence, num_items, config.sequence.max_length, dropout, normalised)

    @torch.no_grad()
    def measure_means(self) -> None:
        """Measure the means of ``items.level_norm: centred`` on the states of some items; see ``LevelNorm``."""
        norm = getattr(self.items, "norm", None)
        if norm is not None and norm.kind == "centred":
            self.eval()
            device = next(self.items.parameters()).device
            for name, present in self.source.present.items():
                items = present.nonzero().squeeze(1)
                some = items[:: max(1, -(-len(items) // _MEASURED))].to(device)
                if len(some):
                    norm.measure(name, self.read_items(some).modalities[name])

    def read_items(self, rows: Tensor) -> ItemBatch:
        """Read the hidden states of distinct items ``[U]``, padded by copies of item 0 if that is faster."""
        # bf16 kernels are compiled for each size and fastest for multiples of a power of two.
        padding = -len(rows) % _MULTIPLE if self._in_bf16 and self.source.stored else 0
        with self._precision(rows.device):
            batch: ItemBatch = self.source(nn.functional.pad(rows, (0, padding)))
        return batch

    def encode_items(self, rows: Tensor, batch: ItemBatch | None = None) -> Tensor:
        """Encode distinct items ``[U]`` to fp32 ``[U, E]``; ``batch`` is the output of ``read_items``, if any."""
        batch = self.read_items(rows) if batch is None else batch
        if self.training and self.modality_dropout:
            batch = hide_modalities(batch, self.modality_dropout)
        with self._precision(rows.device):
            embeddings: Tensor = self.items(batch.rows, batch.modalities)
        embeddings = embeddings[: len(rows)].float()
        return nn.functional.normalize(embeddings, dim=1) if self.normalised else embeddings

    @property
    def _in_bf16(self) -> bool:
        return self.training and self.autocast

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Precision of encoders and item encoder; the sequence encoder is too narrow to benefit from bf16."""
        return torch.autocast(device.type, torch.bfloat16) if self._in_bf16 else without_autocast(device)

    def forward(self, items: Tensor, slots: Tensor) -> Tensor:
        """Encode histories to query vectors ``[B, S, E]``, arbitrary but finite at padded positions.

        Args:
            items: Embeddings ``[U, E]`` of distinct items.
            slots: Positions ``[B, S]`` in ``items``, or ``PAD``.
        """
        return encode_histories(self.sequence, items, slots)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        """Encode the whole catalogue to fp32 ``[N, E]``, in evaluation mode and in blocks of items.

        A block of stored states holds items of the same modalities and is padded to one size, see ``BLOCK``: an
        embedding does not depend on the other items.
        """
        self.eval()
        device = next(self.items.parameters()).device
        if not self.source.stored:
            every = torch.arange(self.num_items, device=device)
            return torch.cat([self.encode_items(rows) for rows in every.split(BLOCK)])
        which = torch.zeros(self.num_items, dtype=torch.int64)
        for number, present in enumerate(self.source.present.values()):
            which += present.cpu().long() << number
        found: Tensor | None = None
        for kind in which.unique():
            for rows in (which == kind).nonzero()[:, 0].to(device).split(BLOCK):
                embeddings = self.encode_items(torch.cat([rows, rows[:1].expand(BLOCK - len(rows))]))
                if found is None:
                    found = embeddings.new_empty(self.num_items, embeddings.shape[1])
                found[rows] = embeddings[: len(rows)]
        assert found is not None, "a catalogue has items"
        return found

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over names and values of the trained parameters."""
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over names and values of what is saved: the trained parameters and measured means."""
        yield from self.trainable()
        kept = self.items.state_dict().keys()
        yield from ((f"items.{name}", value) for name, value in self.items.named_buffers() if name in kept)


def trainable_state(network: SequentialRecommender) -> dict[str, Tensor]:
    """Copy what training determines to the CPU, by name."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in network.saved()}


def load_trainable(network: SequentialRecommender, state: dict[str, Tensor]) -> None:
    """Load the values of ``trainable_state`` into a network.

    Raises:
        RunError: Names or shapes differ from those of the network.
    """
    parameters = dict(network.saved())
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
    """Gather ``items [U, E]`` at ``slots [B, S]`` (or ``PAD``) and encode them to ``[B, S, E]``."""
    mask = slots != PAD
    # Unlike items[slots], index_select has a deterministic gradient for repeated items.
    x = items.index_select(0, slots.clamp_min(0).flatten()).unflatten(0, slots.shape) * mask[..., None]
    return sequence(x, mask)


@torch.no_grad()
def encode_queries(sequence: nn.Module, items: Tensor, histories: npt.NDArray[np.int64]) -> Tensor:
    """Encode histories to the fp32 query vectors ``[B, E]`` of their last positions, in evaluation mode.

    Args:
        sequence: A sequence encoder.
        items: Embeddings ``[N, E]`` of the catalogue.
        histories: Item indices ``[B, S]``, left-padded with ``PAD``.
    """
    sequence.eval()
    return encode_histories(sequence, items, torch.from_numpy(histories).to(items.device))[:, -1].float()
