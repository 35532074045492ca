"""Item encoders: from the distinct items of a batch and their hidden states to embeddings ``[U, E]``.

All have the same interface, ``forward(rows [U], states)``, where rows are the items' indices in the catalogue.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iisan.names import INTER
from iisan.nn.blocks import SANBlocks, linear
from iisan.nn.fused import tower_outputs
from iisan.nn.hidden import Hidden, LevelNorm, LevelNormKind, precision, without_autocast
from iisan.nn.towers import InterTower, IntraTower

#: Hidden states of the items that have a modality, by modality.
States = Mapping[str, Hidden]
#: Projected output ``[U_p, E]`` of each tower or modality and its positions ``[U_p]`` among the U items.
Parts = Mapping[str, tuple[Tensor, Tensor]]


class Fusion(nn.Module):
    """A linear map of concatenated parts, ``[U, P · E] -> [U, E]`` (IISAN, eq. 3).

    Args:
        parts: Names of the P parts, in the order of concatenation.
        width: Embedding width, E.
        missing: Whether items may lack a part in training. If so, a learned vector, initially zero, replaces each
            missing part; otherwise zeros do.
        scale: Factor on the initial weights.
    """

    def __init__(self, parts: tuple[str, ...], width: int, missing: bool, scale: float) -> None:
        super().__init__()
        self.parts = parts
        absent = torch.zeros(len(parts), width)
        if missing:
            self.absent = nn.Parameter(absent)
        else:
            self.register_buffer("absent", absent, persistent=False)
        self.linear = linear(len(parts) * width, width)
        with torch.no_grad():
            self.linear.weight.mul_(scale)

    def forward(self, parts: Parts, count: int) -> Tensor:
        """Return ``[U, E]`` for U = ``count`` items."""
        columns = []
        for name, absent in zip(self.parts, self.absent, strict=True):
            values, positions = parts[name]
            if len(positions) < count:
                values = absent.to(values.dtype).expand(count, -1).index_copy(0, positions, values)
            columns.append(values)
        return self.linear(torch.cat(columns, dim=1))


class SideNetwork(nn.Module):
    """Intra- and inter-modal towers, their projections, and the fusion (IISAN, sec. 2; IISAN-Versa).

    Args:
        levels: Number of levels of each modality.
        widths: Width of each modality's encoder.
        width: Embedding width, E.
        intra: Whether each modality has an intra-modal tower.
        inter: Whether there is an inter-modal tower, if there are at least two modalities.
        block: Kind of the SAN blocks. See ``SANBlocks`` for this, ``bottleneck``, ``phm``, ``rank`` and
            ``activation``.
        bottlenecks: Bottleneck widths of individual towers, by name.
        transform: See ``InterTower``.
        gated: See ``IntraTower``; also ``gate_on`` and ``first_block``.
        projection: Linear layers between a tower and the fusion: ``single`` (D→E), ``double`` (D→D, D→E) or
            ``narrow`` (D→E, E→E for intra-modal towers, ``double`` for the inter-modal one).
        concatenation: Position of the inter-modal tower: after the first modality, or last.
        fusion_scale: Factor on the initial weights of the fusion.
        level_norm: See ``LevelNorm``.
        missing: Whether items may lack a modality in training.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        widths: Mapping[str, int],
        width: int = 64,
        intra: bool = True,
        inter: bool = True,
        block: Literal["dense", "phm", "low-rank"] = "dense",
        bottleneck: int = 64,
        bottlenecks: Mapping[str, int] | None = None,
        transform: Literal["linear", "pool"] = "linear",
        phm: int = 8,
        rank: int = 1,
        activation: str = "relu",
        gated: bool = True,
        gate_on: Literal["previous", "hidden"] = "previous",
        first_block: Literal["alone", "gated"] = "alone",
        projection: Literal["single", "double", "narrow"] = "single",
        concatenation: Literal["inter-between", "inter-last"] = "inter-between",
        fusion_scale: float = 1.0,
        level_norm: LevelNormKind = "none",
        missing: bool = False,
    ) -> None:
        super().__init__()
        self.norm = LevelNorm(level_norm, {name: (count, widths[name]) for name, count in levels.items()})
        order = list(levels) if intra else []
        if inter and len(levels) > 1:
            order.insert(min(1, len(order)) if concatenation == "inter-between" else len(order), INTER)
        self.towers = nn.ModuleDict()
        self.dense = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        for name in order:
            tower: InterTower | IntraTower
            own = (bottlenecks or {}).get(name, bottleneck)
            blocks = partial(SANBlocks, bottleneck=own, activation=activation, kind=block, phm=phm, rank=rank)
            if name == INTER:
                tower = InterTower(levels, widths, blocks, gated, transform)
            else:
                tower = IntraTower(levels[name], widths[name], blocks, gated, gate_on, first_block)
            self.towers[name] = tower
            between = width if projection == "narrow" and name != INTER else tower.width
            self.dense[name] = nn.Identity() if projection == "single" else linear(tower.width, between)
            self.projections[name] = linear(between, width)
        self.fusion = Fusion(tuple(order), width, missing, fusion_scale)

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """Return embeddings ``[U, E]``."""
        dtype = precision(rows.device, self.fusion.linear.weight.dtype)
        # Tensors as large as the hidden states have their precision, all others that of the parameters.
        with without_autocast(rows.device):
            projections = [self._projection(name, dtype) for name in self.towers]
            states = self.norm(states, dtype)
            across, present_items = self._across_modalities(states, len(rows))
            towers: list[Any] = list(self.towers.values())
            inputs = [
                tower.inputs(across if name == INTER else states[name])
                for name, tower in zip(self.towers, towers, strict=True)
            ]
            outputs = tower_outputs(towers, inputs, [weight for weight, _ in projections])
            parts = {}
            for name, output, (_, bias) in zip(self.towers, outputs, projections, strict=True):
                positions = present_items if name == INTER else states[name].positions
                output = output if len(output) == len(positions) else output.index_select(0, positions)
                parts[name] = output + bias, positions
            return self.fusion(parts, len(rows))

    def gate_values(self) -> dict[str, list[float] | list[list[float]]]:
        """Return the gate values of each tower with gates, see ``IntraTower`` and ``InterTower``."""
        found = {name: tower.gate_values() for name, tower in self.towers.items()}  # type: ignore[operator]
        return {name: values.tolist() for name, values in found.items() if values is not None}

    def _projection(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight ``[E, D]`` and bias ``[E]``; two layers are multiplied, which is cheaper from E items on."""
        last: Any = self.projections[name]
        first: Any = self.dense[name]
        if isinstance(first, nn.Identity):
            return last.weight, last.bias
        weight = last.weight.to(dtype) @ first.weight.to(dtype)
        return weight.to(last.weight.dtype), torch.addmv(last.bias, last.weight, first.bias)

    def _across_modalities(
        self, states: States, count: int
    ) -> tuple[Mapping[str, tuple[Hidden, Tensor | None]], Tensor]:
        """Input of ``InterTower.inputs``, and positions of the items with at least one modality."""
        longest = max((hidden.positions for hidden in states.values()), key=len)
        if all(len(hidden.positions) == count for hidden in states.values()):
            return {name: (hidden, None) for name, hidden in states.items()}, longest
        whole, has_any = {}, longest.new_zeros(count, dtype=torch.bool)
        for name, hidden in states.items():
            values, positions = hidden.values, hidden.positions
            present = values.new_zeros(count, 1, dtype=torch.float32).index_fill(0, positions, 1.0)
            padded = values.new_zeros(count, *values.shape[1:]).index_copy(0, positions, values)
            whole[name] = hidden._replace(values=padded), present
            has_any = has_any.index_fill(0, positions, True)
        # On a GPU, ``nonzero`` waits for the device: it is called only if every modality lacks some items.
        return whole, longest if len(longest) == count else has_any.nonzero().squeeze(1)


class Projection(nn.Module):
    """Item encoder of the last states: linear D→E and GELU per modality, concatenated, linear M·E→E.

    See ``SideNetwork`` for the arguments.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        width: int = 64,
        missing: bool = False,
        fusion_scale: float = 1.0,
        level_norm: LevelNormKind = "none",
    ) -> None:
        super().__init__()
        self.norm = LevelNorm(level_norm, {name: (1, value) for name, value in widths.items()})
        self.projections = nn.ModuleDict({name: linear(value, width) for name, value in widths.items()})
        self.fusion = Fusion(tuple(widths), width, missing, fusion_scale)

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """Return embeddings ``[U, E]`` of the last level of the states."""
        dtype = precision(rows.device, self.fusion.linear.weight.dtype)
        parts = {
            name: (nn.functional.gelu(self.projections[name](hidden.whole()[:, -1])), hidden.positions)
            for name, hidden in self.norm(states, dtype).items()
        }
        return self.fusion(parts, len(rows))


class ItemTable(nn.Module):
    """Item encoder of ids: a learned embedding of width E for each of N items."""

    def __init__(self, num_items: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_items, width)
        nn.init.xavier_normal_(self.embedding.weight)

    @torch.no_grad()
    def clear(self, rows: Tensor) -> None:
        """Set the embeddings of items ``[n]`` that training cannot reach to zero, so that they say nothing."""
        self.embedding.weight[rows] = 0

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """Return embeddings ``[U, E]``; ``states`` is ignored."""
        return self.embedding(rows)
