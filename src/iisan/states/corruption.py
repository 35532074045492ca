"""Missing or corrupted modalities: modality dropout in training, robustness in evaluation.

Legend: N items, U distinct items of a batch, M modalities, K levels, D width.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from iisan.errors import ConfigError
from iisan.nn.hidden import Hidden
from iisan.states.sources import ItemBatch, StateSource

Corruption = Literal["remove", "noise", "swap"]


def hide_modalities(batch: ItemBatch, probability: float) -> ItemBatch:
    """Hide each modality of each item with a probability; items that would lose all modalities keep all."""
    present = torch.zeros(len(batch.rows), len(batch.modalities), dtype=torch.bool, device=batch.rows.device)
    for column, hidden in enumerate(batch.modalities.values()):
        present[hidden.positions, column] = True
    mask = present & (torch.rand(present.shape, device=present.device) >= probability)
    mask |= present & ~mask.any(1, keepdim=True)
    return select_modalities(batch, mask)


def select_modalities(batch: ItemBatch, mask: Tensor) -> ItemBatch:
    """Restrict a batch to the modalities of a boolean mask [U, M]."""
    modalities = {}
    for column, (name, hidden) in enumerate(batch.modalities.items()):
        selected = mask[hidden.positions, column]
        modalities[name] = Hidden(hidden.values[selected], hidden.positions[selected], hidden.mean)
    return ItemBatch(batch.rows, modalities)


class CorruptedStates(StateSource):
    """A state source with one modality removed or corrupted for some items.

    Args:
        source: The original states.
        modality: Name of the modality.
        items: Mask [N] of the corrupted items, boolean.
        corruption: ``remove`` the modality, add ``noise`` with the standard deviation of each state over its D
            entries, or ``swap`` contents among the corrupted items.
        seed: Random seed; the corruption of an item does not depend on the batch.

    Raises:
        ConfigError: The source has no such modality.
    """

    def __init__(
        self, source: StateSource, modality: str, items: np.ndarray, corruption: Corruption, seed: int = 0
    ) -> None:
        super().__init__(source.widths, source.levels, source.present)
        if modality not in source.widths:
            got = f"the run has no modality '{modality}'"
            raise ConfigError(got, f"one of {', '.join(source.widths)}", "choose one of these")
        self.source = source
        if corruption == "remove":
            self.present[modality] = source.present[modality] & ~torch.from_numpy(items)
        self._modality, self._corruption, self._seed = modality, corruption, seed
        self._corrupted = torch.from_numpy(items)
        self._replacement = torch.arange(len(items))
        # A cyclic shift of a random order: no item keeps its own content unless it is the only one.
        order = np.random.default_rng(seed).permutation(np.flatnonzero(items))
        self._replacement[torch.from_numpy(order)] = torch.from_numpy(np.roll(order, 1))

    def forward(self, rows: Tensor) -> ItemBatch:
        """Return the corrupted states of the items ``rows``, int64 [U]."""
        batch = self.source(rows)
        corrupted = self._corrupted.to(rows.device)[rows]
        if self._corruption == "remove":
            mask = torch.ones(len(rows), len(batch.modalities), dtype=torch.bool, device=rows.device)
            mask[:, list(batch.modalities).index(self._modality)] = ~corrupted
            return select_modalities(batch, mask)
        if self._corruption == "swap":
            others = self.source(self._replacement.to(rows.device)[rows])
            return ItemBatch(rows, {**batch.modalities, self._modality: others.modalities[self._modality]})
        hidden = batch.modalities[self._modality]
        states, positions = hidden.whole().clone(), hidden.positions
        for index in corrupted[positions].nonzero().flatten().tolist():
            noise = self._noise(int(rows[positions[index]]), states.shape[1:])
            states[index] += states[index].std(-1, keepdim=True) * noise.to(states)
        return ItemBatch(rows, {**batch.modalities, self._modality: Hidden(states, positions)})

    def _noise(self, row: int, shape: torch.Size) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * len(self._corrupted) + row)
        return torch.randn(shape, generator=generator)
