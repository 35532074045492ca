"""Item encoders: from a batch's distinct items and their states to ``[U, E]`` embeddings.

All have the same door: ``forward(rows [U], states)``, rows being the items' indices in the catalogue.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from iisan.nn.blocks import SANBlock, linear
from iisan.nn.towers import InterTower, IntraTower

INTER = "inter"

#: Modality -> (states [U_m, K, D] of the items that have it, their positions [U_m] among the U items).
States = Mapping[str, tuple[Tensor, Tensor]]


class Fusion(nn.Module):
    """Concatenate E-wide parts and map them to E (P1 eq. 3).

    Where an item lacks a part, a learned vector of that part stands in its place; an item with nothing at all is
    then a learned cold item.

    Args:
        parts: names, in the order of concatenation.
        width: E.
        missing: whether items may lack a part.
        scale: factor on the initial weights.
    """

    def __init__(self, parts: tuple[str, ...], width: int, missing: bool, scale: float) -> None:
        super().__init__()
        self.parts = parts
        self.absent = nn.Parameter(torch.zeros(len(parts), width)) if missing else None
        self.linear = linear(len(parts) * width, width)
        with torch.no_grad():
            self.linear.weight.mul_(scale)

    def forward(self, parts: Mapping[str, tuple[Tensor, Tensor]], count: int) -> Tensor:
        """Part -> ``([U_p, E], positions [U_p])``, and U; returns ``[U, E]``."""
        columns = []
        for index, name in enumerate(self.parts):
            values, positions = parts[name]
            if self.absent is not None:
                empty = self.absent[index].to(values.dtype).expand(count, -1)
                values = empty.index_copy(0, positions, values)
            columns.append(values)
        return self.linear(torch.cat(columns, dim=1))


class SideNetwork(nn.Module):
    """Intra- and inter-modal towers, their heads, and the fusion (P1 §2; P2 for unequal depths and widths).

    Args:
        levels: K of each modality.
        widths: D of each modality.
        width: E.
        intra: a tower per modality.
        inter: a tower across modalities (where there are at least two).
        block: kind of the SAN blocks, with ``bottleneck`` (H), ``phm`` (n), ``rank`` and ``activation``: see
            ``SANBlock``.
        gated: learned gates, or plain addition.
        gate_on: see ``IntraTower``.
        first_block: see ``IntraTower``.
        head: linears between a tower and the fusion: ``one`` D→E, or ``two`` D→D, D→E.
        concatenation: the inter tower's place: after the first modality, or last.
        fusion_scale: factor on the fusion's initial weights.
        level_norm: ``layer`` normalises every state over its D entries before the gates, without parameters.
        missing: whether items may lack a modality.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        widths: Mapping[str, int],
        width: int = 64,
        intra: bool = True,
        inter: bool = True,
        block: Literal["adapter", "phm", "low-rank"] = "adapter",
        bottleneck: int = 64,
        phm: int = 8,
        rank: int = 1,
        activation: str = "relu",
        gated: bool = True,
        gate_on: Literal["previous", "hidden"] = "previous",
        first_block: Literal["alone", "gated"] = "alone",
        head: Literal["one", "two"] = "one",
        concatenation: Literal["inter-between", "inter-last"] = "inter-between",
        fusion_scale: float = 1.0,
        level_norm: Literal["none", "layer"] = "none",
        missing: bool = False,
    ) -> None:
        super().__init__()
        self.level_norm = level_norm
        self.missing = missing
        make = partial(SANBlock, bottleneck=bottleneck, activation=activation, kind=block, phm=phm, rank=rank)
        order = list(levels) if intra else []
        if inter and len(levels) > 1:
            order.insert(min(1, len(order)) if concatenation == "inter-between" else len(order), INTER)
        self.towers = nn.ModuleDict()
        self.dense = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for name in order:
            tower: InterTower | IntraTower
            if name == INTER:
                tower = InterTower(levels, widths, make, gated)
            else:
                tower = IntraTower(levels[name], widths[name], make, gated, gate_on, first_block)
            self.towers[name] = tower
            self.dense[name] = linear(tower.width, tower.width) if head == "two" else nn.Identity()
            self.heads[name] = linear(tower.width, width)
        self.fusion = Fusion(tuple(order), width, missing, fusion_scale)

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """See the module's head."""
        if self.level_norm == "layer":
            states = {
                name: (nn.functional.layer_norm(values, values.shape[-1:]), positions)
                for name, (values, positions) in states.items()
            }
        parts = {}
        for name, tower in self.towers.items():
            if name == INTER:
                output, positions = self._inter(states, len(rows))
            else:
                values, positions = states[name]
                output = tower(values)
            parts[name] = (self.heads[name](self.dense[name](output)), positions)
        return self.fusion(parts, len(rows))

    def gate_values(self) -> dict[str, list[float] | list[list[float]]]:
        """Gates of each tower that has some: see the towers' ``gate_values``."""
        found = {name: tower.gate_values() for name, tower in self.towers.items()}  # type: ignore[operator]
        return {name: values.tolist() for name, values in found.items() if values is not None}

    def _inter(self, states: States, count: int) -> tuple[Tensor, Tensor]:
        first = next(iter(states.values()))[1]
        if not self.missing:
            return self.towers[INTER]({name: (values, None) for name, (values, _) in states.items()}), first
        dense, owners = {}, first.new_zeros(count, dtype=torch.bool)
        for name, (values, positions) in states.items():
            present = values.new_zeros(count, 1).index_fill(0, positions, 1.0)
            dense[name] = values.new_zeros(count, *values.shape[1:]).index_copy(0, positions, values), present
            owners = owners.index_fill(0, positions, True)
        having = owners.nonzero().squeeze(1)
        return self.towers[INTER](dense)[having], having


class Projection(nn.Module):
    """Linear D→E and GELU on each modality's last state, concatenated, linear M·E→E (METHOD §2).

    Args:
        widths: D of each modality.
        width: E.
        missing: whether items may lack a modality.
        fusion_scale: factor on the fusion's initial weights.
    """

    def __init__(
        self, widths: Mapping[str, int], width: int = 64, missing: bool = False, fusion_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: linear(value, width) for name, value in widths.items()})
        self.fusion = Fusion(tuple(widths), width, missing, fusion_scale)

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """See the module's head; of the states the last level counts."""
        parts = {
            name: (nn.functional.gelu(self.heads[name](values[:, -1])), positions)
            for name, (values, positions) in states.items()
        }
        return self.fusion(parts, len(rows))


class ItemTable(nn.Module):
    """A free embedding per item: the id-based model.

    Args:
        num_items: N.
        width: E.
    """

    def __init__(self, num_items: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_items, width)
        nn.init.xavier_normal_(self.embedding.weight)

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """See the module's head; states are not used."""
        return self.embedding(rows)
