"""Modalities that are missing or wrong: hidden in training, taken away or spoilt in evaluation.

Legend: N items, U distinct items of a batch, M modalities, K levels, D width.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from iisan.errors import ConfigError
from iisan.nn.hidden import Hidden
from iisan.states.sources import ItemBatch, StateSource

Harm = Literal["remove", "noise", "swap"]


def hide_modalities(batch: ItemBatch, probability: float) -> ItemBatch:
    """Hide each modality of each item with a probability; an item that would lose all keeps all."""
    present = torch.zeros(len(batch.rows), len(batch.modalities), dtype=torch.bool, device=batch.rows.device)
    for column, hidden in enumerate(batch.modalities.values()):
        present[hidden.positions, column] = True
    kept = present & (torch.rand(present.shape, device=present.device) >= probability)
    kept |= present & ~kept.any(1, keepdim=True)
    return select_modalities(batch, kept)


def select_modalities(batch: ItemBatch, kept: Tensor) -> ItemBatch:
    """What is left of a batch when only the marked modalities are kept, bool [U, M]."""
    modalities = {}
    for column, (name, hidden) in enumerate(batch.modalities.items()):
        chosen = kept[hidden.positions, column]
        modalities[name] = Hidden(hidden.values[chosen], hidden.positions[chosen], hidden.mean)
    return ItemBatch(batch.rows, modalities)


class CorruptedStates(StateSource):
    """Another source with one modality taken away from, or spoilt for, some items.

    Args:
        source: the whole states.
        modality: which one.
        items: bool [N], whose.
        harm: ``remove`` it; add ``noise`` as strong as each level's own spread over its D entries; or ``swap`` the
            contents among the chosen items.
        seed: of noise and swapping; what an item gets depends on no batch.

    Raises:
        ConfigError: the source has no such modality.
    """

    def __init__(self, source: StateSource, modality: str, items: np.ndarray, harm: Harm, seed: int = 0) -> None:
        super().__init__()
        if modality not in source.widths:
            raise ConfigError(
                f"the run has no modality '{modality}'",
                f"one of {', '.join(source.widths)}",
                "choose one of these",
            )
        self.source = source
        self.widths, self.levels = source.widths, source.levels
        self.present = dict(source.present)
        if harm == "remove":
            self.present[modality] = source.present[modality] & ~torch.from_numpy(items)
        self._modality, self._harm, self._seed = modality, harm, seed
        self._chosen = torch.from_numpy(items)
        chosen = np.flatnonzero(items)
        self._instead = torch.arange(len(items))
        # A turn of a random order: nobody keeps the own content, unless alone.
        order = np.random.default_rng(seed).permutation(chosen)
        self._instead[torch.from_numpy(order)] = torch.from_numpy(np.roll(order, 1))

    def forward(self, rows: Tensor) -> ItemBatch:
        """See the class."""
        batch = self.source(rows)
        chosen = self._chosen.to(rows.device)[rows]
        if self._harm == "remove":
            kept = torch.ones(len(rows), len(batch.modalities), dtype=torch.bool, device=rows.device)
            kept[:, list(batch.modalities).index(self._modality)] = ~chosen
            return select_modalities(batch, kept)
        if self._harm == "swap":
            others = self.source(self._instead.to(rows.device)[rows])
            return ItemBatch(rows, {**batch.modalities, self._modality: others.modalities[self._modality]})
        hidden = batch.modalities[self._modality]
        states, positions = hidden.whole().clone(), hidden.positions
        for place in chosen[positions].nonzero().flatten().tolist():
            noise = self._noise(int(rows[positions[place]]), states.shape[1:])
            states[place] += states[place].std(-1, keepdim=True) * noise.to(states)
        return ItemBatch(rows, {**batch.modalities, self._modality: Hidden(states, positions)})

    def _noise(self, row: int, shape: torch.Size) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * len(self._chosen) + row)
        return torch.randn(shape, generator=generator)
