"""Item encoders: from a batch's distinct items and their states to ``[U, E]`` embeddings.

All have the same door: ``forward(rows [U], states)``, rows being the items' indices in the catalogue.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iisan.names import INTER
from iisan.nn.blocks import SANBlocks, linear
from iisan.nn.hidden import Hidden, precision, without_autocast
from iisan.nn.towers import InterTower, IntraTower, answers

#: Modality -> hidden states of the items that have it.
States = Mapping[str, Hidden]
#: Tower or modality -> (its answers [U_p, E], their positions [U_p] among the U items).
Parts = Mapping[str, tuple[Tensor, Tensor]]


class Fusion(nn.Module):
    """Concatenate E-wide parts and map them to E (P1 eq. 3).

    Where an item lacks a part, a learned vector of that part stands in its place; an item with nothing at all is
    then a learned cold item.

    Args:
        parts: names, in the order of concatenation.
        width: E.
        missing: whether items may lack a part in training. Where they do so in evaluation alone, zeros stand in,
            which is where the learned vectors start.
        scale: factor on the initial weights.
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
        """Part -> ``([U_p, E], positions [U_p])``, and U; returns ``[U, E]``."""
        columns = []
        for name, absent in zip(self.parts, self.absent, strict=True):
            values, positions = parts[name]
            if len(positions) < count:
                values = absent.to(values.dtype).expand(count, -1).index_copy(0, positions, values)
            columns.append(values)
        return self.linear(torch.cat(columns, dim=1))


class ExpertFusion(nn.Module):
    """A mixture of experts over E-wide parts: each part has a linear E→E and a say in its own weight.

    ``e = Σ_p w_p · (W_p e_p + b_p)``, w a softmax of ``v_p · e_p + a_p`` over the parts that an item has, so what
    it lacks takes no part; an item with nothing at all is a learned cold vector.

    Args:
        parts: names.
        width: E.
        missing: whether items may have nothing at all in training; see ``Fusion``.
        scale: factor on the experts' initial weights.
    """

    def __init__(self, parts: tuple[str, ...], width: int, missing: bool, scale: float) -> None:
        super().__init__()
        self.parts = parts
        self.experts = nn.ModuleDict({name: linear(width, width) for name in parts})
        # Zeros: all parts start with the same weight.
        self.votes = nn.ParameterDict({name: torch.zeros(width + 1) for name in parts})
        with torch.no_grad():
            for expert in self.experts.values():
                expert.weight.mul_(scale)  # type: ignore[operator]
        if missing:
            self.cold = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("cold", torch.zeros(width), persistent=False)

    def forward(self, parts: Parts, count: int) -> Tensor:
        """Part -> ``([U_p, E], positions [U_p])``, and U; returns ``[U, E]``."""
        logits, answers = [], []
        for name in self.parts:
            values, positions = parts[name]
            vote, answer = self.votes[name], self.experts[name](values)
            logit = (values @ vote[:-1].to(values.dtype) + vote[-1]).float()
            logits.append(logit.new_full((count,), -torch.inf).index_copy(0, positions, logit))
            answers.append(answer.new_zeros(count, answer.shape[1]).index_copy(0, positions, answer))
        stacked = torch.stack(logits, dim=1)
        nothing = stacked.isneginf().all(1, keepdim=True)
        weights = stacked.masked_fill(nothing, 0.0).softmax(1)
        mixed = (weights.to(answers[0].dtype)[..., None] * torch.stack(answers, dim=1)).sum(1)
        return torch.where(nothing, self.cold.to(mixed.dtype), mixed)


FUSIONS: dict[str, type[Fusion] | type[ExpertFusion]] = {"linear": Fusion, "experts": ExpertFusion}


class SideNetwork(nn.Module):
    """Intra- and inter-modal towers, their heads, and the fusion (P1 §2; P2 for unequal depths and widths).

    Args:
        levels: K of each modality.
        widths: D of each modality.
        width: E.
        intra: a tower per modality.
        inter: a tower across modalities (where there are at least two).
        block: kind of the SAN blocks, with ``bottleneck`` (H), ``phm`` (n), ``rank`` and ``activation``: see
            ``SANBlocks``.
        bottlenecks: H of single towers.
        transform: see ``InterTower``.
        gated: learned gates, or plain addition.
        gate_on: see ``IntraTower``.
        first_block: see ``IntraTower``.
        head: linears between a tower and the fusion: ``one`` D→E; ``two`` D→D, D→E; or ``narrow``, which is D→E,
            E→E for intra towers and ``two`` for the inter tower.
        fusion: ``linear`` (see ``Fusion``) or ``experts`` (see ``ExpertFusion``).
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
        bottlenecks: Mapping[str, int] | None = None,
        transform: Literal["linear", "pool"] = "linear",
        phm: int = 8,
        rank: int = 1,
        activation: str = "relu",
        gated: bool = True,
        gate_on: Literal["previous", "hidden"] = "previous",
        first_block: Literal["alone", "gated"] = "alone",
        head: Literal["one", "two", "narrow"] = "one",
        fusion: Literal["linear", "experts"] = "linear",
        concatenation: Literal["inter-between", "inter-last"] = "inter-between",
        fusion_scale: float = 1.0,
        level_norm: Literal["none", "layer"] = "none",
        missing: bool = False,
    ) -> None:
        super().__init__()
        self.level_norm = level_norm
        blocks_of = partial(SANBlocks, activation=activation, kind=block, phm=phm, rank=rank)
        order = list(levels) if intra else []
        if inter and len(levels) > 1:
            order.insert(min(1, len(order)) if concatenation == "inter-between" else len(order), INTER)
        self.towers = nn.ModuleDict()
        self.dense = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for name in order:
            tower: InterTower | IntraTower
            make = partial(blocks_of, bottleneck=(bottlenecks or {}).get(name, bottleneck))
            if name == INTER:
                tower = InterTower(levels, widths, make, gated, transform)
            else:
                tower = IntraTower(levels[name], widths[name], make, gated, gate_on, first_block)
            self.towers[name] = tower
            between = width if head == "narrow" and name != INTER else tower.width
            self.dense[name] = nn.Identity() if head == "one" else linear(tower.width, between)
            self.heads[name] = linear(between, width)
        self.fusion = FUSIONS[fusion](tuple(order), width, missing, fusion_scale)

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """See the module's head."""
        if self.level_norm == "layer":
            states = {name: hidden.normalised() for name, hidden in states.items()}
        dtype = precision(rows.device)
        # The towers take the precision of the states for what is as large as these, and fp32 for the rest.
        with without_autocast(rows.device):
            heads = [self._head(name, dtype) for name in self.towers]
            states = {name: hidden.centred(dtype) for name, hidden in states.items()}
            inter, everyone = self._inter(states, len(rows))
            towers: list[Any] = list(self.towers.values())
            entries = [tower(inter if name == INTER else states[name]) for name, tower in self.towers.items()]
            found = answers(towers, entries, [weight for weight, _ in heads])
            parts = {}
            for name, answer, (_, bias) in zip(self.towers, found, heads, strict=True):
                having = everyone if name == INTER else states[name].positions
                answer = answer if len(answer) == len(having) else answer.index_select(0, having)
                parts[name] = answer + bias, having
            return self.fusion(parts, len(rows))

    def _head(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``[E, D]`` and ``[E]``; two linears in a row are multiplied first, which is cheaper from E items on."""
        head: Any = self.heads[name]
        dense: Any = self.dense[name]
        if isinstance(dense, nn.Identity):
            return head.weight, head.bias
        weight = head.weight.to(dtype) @ dense.weight.to(dtype)
        return weight.float(), torch.addmv(head.bias, head.weight, dense.bias)

    def gate_values(self) -> dict[str, list[float] | list[list[float]]]:
        """Gates of each tower that has some: see the towers' ``gate_values``."""
        found = {name: tower.gate_values() for name, tower in self.towers.items()}  # type: ignore[operator]
        return {name: values.tolist() for name, values in found.items() if values is not None}

    def _inter(self, states: States, count: int) -> tuple[Mapping[str, tuple[Hidden, Tensor | None]], Tensor]:
        """What the tower across modalities reads, and the positions of the items that have any modality."""
        everyone = max((hidden.positions for hidden in states.values()), key=len)
        if all(len(hidden.positions) == count for hidden in states.values()):
            return {name: (hidden, None) for name, hidden in states.items()}, everyone
        dense, owners = {}, everyone.new_zeros(count, dtype=torch.bool)
        for name, hidden in states.items():
            values, positions = hidden.values, hidden.positions
            present = values.new_zeros(count, 1, dtype=torch.float32).index_fill(0, positions, 1.0)
            whole = values.new_zeros(count, *values.shape[1:]).index_copy(0, positions, values)
            dense[name] = hidden._replace(values=whole), present
            owners = owners.index_fill(0, positions, True)
        # A GPU is asked for them only where every modality lacks some items.
        return dense, everyone if len(everyone) == count else owners.nonzero().squeeze(1)


class Projection(nn.Module):
    """Linear D→E and GELU on each modality's last state, concatenated, linear M·E→E (METHOD §2).

    Args:
        widths: D of each modality.
        width: E.
        missing: whether items may lack a modality.
        fusion_scale: factor on the fusion's initial weights.
        fusion: see ``SideNetwork``.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        width: int = 64,
        missing: bool = False,
        fusion_scale: float = 1.0,
        fusion: Literal["linear", "experts"] = "linear",
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: linear(value, width) for name, value in widths.items()})
        self.fusion = FUSIONS[fusion](tuple(widths), width, missing, fusion_scale)

    def forward(self, rows: Tensor, states: States) -> Tensor:
        """See the module's head; of the states the last level counts."""
        parts = {
            name: (nn.functional.gelu(self.heads[name](hidden.whole()[:, -1])), hidden.positions)
            for name, hidden in states.items()
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
