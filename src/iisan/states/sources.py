"""The doors of a model to its items' hidden states: stored, live, or none.

Legend: N items, U distinct items of a batch, U_m those with modality m, K levels, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iisan.backbones.backbone import Backbone
from iisan.backbones.levels import Level
from iisan.states.contents import Contents, prepare_items
from iisan.states.store import StateStore


@dataclass
class ItemBatch:
    """The distinct items of a batch and their states.

    Attributes:
        rows: item indices, int64 [U].
        modalities: per modality the states of the items that have it, fp32 [U_m, K, D], and their
            positions in ``rows``, int64 [U_m].
    """

    rows: Tensor
    modalities: dict[str, tuple[Tensor, Tensor]]


class StateSource(nn.Module):
    """Gives the states of items; a module of the model, so that live weights have an owner.

    Attributes:
        widths: D per modality.
        levels: the K levels per modality.
    """

    widths: dict[str, int]
    levels: dict[str, tuple[Level, ...]]

    def forward(self, rows: Tensor) -> ItemBatch:
        """States of the items ``rows``, int64 [U]."""
        raise NotImplementedError


class NoStates(StateSource):
    """For models that know items by their ids alone."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.levels = {}, {}

    def forward(self, rows: Tensor) -> ItemBatch:
        """No modality at all."""
        return ItemBatch(rows, {})


class CachedStates(StateSource):
    """States from memory-mapped stores.

    Args:
        stores: per modality the store, each item's row in it (int64 [N], -1 where it has none, see
            ``StateStore.rows_for``) and the wanted levels.
    """

    def __init__(self, stores: Mapping[str, tuple[StateStore, np.ndarray, tuple[Level, ...]]]) -> None:
        super().__init__()
        # Plain attributes: neither the store nor the table of rows belongs into a checkpoint.
        self._stores = {modality: store for modality, (store, _, _) in stores.items()}
        self._rows = {modality: torch.as_tensor(rows) for modality, (_, rows, _) in stores.items()}
        self.levels = {modality: tuple(levels) for modality, (_, _, levels) in stores.items()}
        self.widths = {modality: store.width for modality, store in self._stores.items()}
        for modality, store in self._stores.items():
            store.check_levels(self.levels[modality])

    def forward(self, rows: Tensor) -> ItemBatch:
        """States read from the stores, on the device of ``rows``."""
        modalities = {}
        for modality, store in self._stores.items():
            stored = self._rows[modality][rows.cpu()]
            positions = (stored >= 0).nonzero().squeeze(1)
            states = store.read(stored[positions], self.levels[modality])
            modalities[modality] = (states.to(rows.device), positions.to(rows.device))
        return ItemBatch(rows, modalities)


class LiveStates(StateSource):
    """States computed by the backbones themselves: the same numbers as the stored ones.

    Args:
        backbones: per modality the backbone, the items' contents and the wanted levels.
        trainable: let gradients reach the backbones; which of their parameters are trained is up to each
            one's ``requires_grad``. Otherwise they are frozen and stay in eval mode.
        batch_size: contents per forward pass.
    """

    def __init__(
        self,
        backbones: Mapping[str, tuple[Backbone, Contents, tuple[Level, ...]]],
        trainable: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict({modality: backbone for modality, (backbone, _, _) in backbones.items()})
        self.trainable = trainable
        self.levels = {modality: tuple(levels) for modality, (_, _, levels) in backbones.items()}
        self.widths = {modality: backbone.width for modality, (backbone, _, _) in backbones.items()}
        self._contents = {modality: contents for modality, (_, contents, _) in backbones.items()}
        self._present = {
            modality: torch.from_numpy(contents.present) for modality, contents in self._contents.items()
        }
        self._batch_size = batch_size
        if not trainable:
            self.backbones.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LiveStates":
        """Set the mode of trainable backbones; frozen ones stay in eval mode."""
        super().train(mode)
        if not self.trainable:
            self.backbones.eval()
        return self

    def forward(self, rows: Tensor) -> ItemBatch:
        """States computed on the device of ``rows``."""
        modalities = {}
        for modality in self.backbones:
            positions = self._present[modality][rows.cpu()].nonzero().squeeze(1)
            with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
                states = self._states(modality, rows.cpu()[positions], rows.device)
            modalities[modality] = (states, positions.to(rows.device))
        return ItemBatch(rows, modalities)

    def _states(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        backbone: Any = self.backbones[modality]
        levels = self.levels[modality]
        parts = [torch.empty(0, len(levels), self.widths[modality], device=device)]
        for batch in items.split(self._batch_size) if len(items) else ():
            inputs = prepare_items(backbone, self._contents[modality], batch.tolist())
            parts.append(backbone({name: tensor.to(device) for name, tensor in inputs.items()}, levels))
        return torch.cat(parts)
