"""The side networks: one tower within each modality, one between them (P1 eqs. 1 and 2).

All are SAN blocks in a row, each of which adds to the state that it gets:
``x_i = k_i · s_{i-1} + Σ_m w_mi · h_mi`` enters block i, which leaves ``s_i = x_i + up_i(act(down_i(x_i)))``.
Kinds of towers differ in how much they keep of the previous state and in what they weigh the hidden states of the
modalities with; that is their entry. Towers of one shape are computed together.

Legend: U items, M modalities, K levels, D width, H bottleneck, E width of a head's answer, T towers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iisan.nn.blocks import GATE_TEMPERATURE, Activation, SANBlocks, gate
from iisan.nn.hidden import Hidden


@dataclass(frozen=True)
class Entry:
    """What enters the blocks of a tower.

    Attributes:
        keeps: ``k [K]``, the first of which is not used; None for ones.
        shares: ``w`` of each of the M modalities, ``[K]``; or ``[K, U, 1]`` where items differ, and then the
            hidden states have no means.
        hidden: of the M modalities, as wide as the tower; their precision is that of all large products.
    """

    keeps: Tensor | None
    shares: Sequence[Tensor]
    hidden: Sequence[Hidden]


class Tower(nn.Module):
    """SAN blocks in a row.

    Args:
        levels: K.
        width: D.
        blocks: makes K SAN blocks of a width.
    """

    def __init__(self, levels: int, width: int, blocks: Callable[[int, int], SANBlocks]) -> None:
        super().__init__()
        self.width = width
        self.blocks = blocks(levels, width)


def answers(towers: Sequence[Tower], entries: Sequence[Entry], heads: Sequence[Tensor]) -> list[Tensor]:
    """What the heads ``[E, D]`` make of the towers' last states, ``[U, E]`` each, without the heads' biases."""
    groups: dict[Any, list[int]] = {}
    for number, (tower, entry) in enumerate(zip(towers, entries, strict=True)):
        values = entry.hidden[0].values
        shape = values.shape, values.dtype, tower.blocks.bottleneck, tower.blocks.activation
        groups.setdefault(shape, []).append(number)
    found: dict[int, Tensor] = {}
    for group in groups.values():
        blocks, within = [towers[number].blocks for number in group], [entries[number] for number in group]
        together = _run(blocks, within, torch.stack([heads[number] for number in group]))
        found.update(zip(group, together.unbind(), strict=True))
    return [found[number] for number in range(len(towers))]


def _run(blocks: Sequence[SANBlocks], entries: Sequence[Entry], heads: Tensor) -> Tensor:
    """What heads ``[T, E, D]`` make of the last states of T towers of one shape, ``[T, U, E]``."""
    gated = [number for number, entry in enumerate(entries) if entry.keeps is not None]
    ones = heads.new_ones(blocks[0].count)
    keeps = torch.stack([ones if entry.keeps is None else entry.keeps for entry in entries], dim=1)
    entered, last = _common(blocks, entries, keeps)
    biases = [
        each.down.bias + (each.down.weight @ common[..., None])[..., 0]
        for each, common in zip(blocks, entered.unbind(1), strict=True)
    ]
    sources = [
        (owner, share, hidden.values)
        for owner, entry in enumerate(entries)
        for share, hidden in zip(entry.shares, entry.hidden, strict=True)
    ]
    owners, shares, values = zip(*sources, strict=True)
    weights = [getattr(each, name).weight for name in ("down", "up") for each in blocks]
    states = _Chain.apply(
        blocks[0].activation, owners, gated, keeps, torch.stack(biases, dim=1), *weights, *shares, *values
    )
    return states @ heads.to(states.dtype).mT + (heads @ last[..., None]).mT


def _common(blocks: Sequence[SANBlocks], entries: Sequence[Entry], keeps: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the blocks of T towers whatever the item is, ``[K, T, D]``, and leaves the last, ``[T, D]``.

    These are the means of the hidden states and the biases of ``up``. They run beside the items in fp32: next to
    them the differences between items are small, and a low precision would lose those.
    """
    biases = torch.stack([each.up.bias for each in blocks], dim=1)
    added = list(biases.unbind(1))
    for tower, entry in enumerate(entries):
        for share, hidden in zip(entry.shares, entry.hidden, strict=True):
            if hidden.mean is not None:
                added[tower] = torch.addcmul(added[tower], share[:, None], hidden.mean)
    left: list[Tensor] = []
    for value, kept in zip(torch.stack(added, dim=1), keeps[..., None], strict=True):
        left.append(torch.addcmul(value, kept, left[-1]) if left else value)
    return torch.stack(left) - biases, left[-1]


class _Chain(torch.autograd.Function):
    """The recurrence of the module's head for what differs between items, with a gradient written by hand.

    Its cost is not in the products but in passing over ``[U, D]`` numbers, which autograd would do several times
    as often. Everything is in the precision of the hidden states, but for what stands around an activation.
    """

    @staticmethod
    def forward(
        context: Any,
        activation: Activation,
        owners: Sequence[int],
        gated: Sequence[int],
        keeps: Tensor,
        biases: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        """Run T towers on S hidden states, of which each belongs to the tower that ``owners [S]`` names.

        Args:
            context: autograd's.
            activation: of the blocks.
            owners: ascending.
            gated: towers whose keeps are not simply ones; those of the others get no whole gradient.
            keeps: ``[K, T]``.
            biases: ``[K, T, H]``.
            rest: weights, T times down ``[K, H, D]`` and T times up ``[K, D, H]``; shares, S times ``[K]`` or
                ``[K, U, 1]``; hidden states, S times ``[U, K, D]``.

        Returns:
            ``[T, U, D]``.
        """
        count, towers = keeps.shape
        downs, ups, shares, hidden = _Chain._sorted(rest, towers)
        items, dtype = len(hidden[0]), hidden[0].dtype
        down, up = _together(downs, dtype), _together(ups, dtype)
        kept, weights = keeps.to(dtype)[..., None, None], [share.to(dtype).unbind() for share in shares]
        firsts = [owner not in owners[:number] for number, owner in enumerate(owners)]
        entered = down.new_empty(count, towers, items, down.shape[-1])
        inside = biases.new_empty(count, towers, items, down.shape[-2])
        after = torch.empty_like(inside, dtype=dtype)
        for level, x in enumerate(entered):
            for owner, first, weight, values in zip(owners, firsts, weights, hidden, strict=True):
                if first:
                    torch.mul(values[:, level], weight[level], out=x[owner])
                else:
                    x[owner].addcmul_(values[:, level], weight[level])
            if level:
                x.addcmul_(entered[level - 1], kept[level])
                x.baddbmm_(after[level - 1] * kept[level], up[level - 1].mT)
            torch.add(torch.bmm(x, down[level].mT), biases[level][:, None], out=inside[level])
            after[level] = activation.forward(inside[level])
        context.activation, context.owners, context.gated = activation, owners, gated
        context.save_for_backward(keeps, down, up, entered, inside, after, *shares, *hidden)
        return torch.baddbmm(entered[-1], after[-1], up[-1].mT)

    @staticmethod
    def _sorted(rest: Sequence[Tensor], towers: int) -> tuple[Sequence[Tensor], ...]:
        """Down, up, shares, hidden states."""
        sources = len(rest) // 2 - towers
        ends = towers, 2 * towers, 2 * towers + sources
        return rest[: ends[0]], rest[ends[0] : ends[1]], rest[ends[1] : ends[2]], rest[ends[2] :]

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Any, ...]:
        keeps, down, up, entered, inside, after, *saved = context.saved_tensors
        shares, hidden = saved[: len(context.owners)], saved[len(context.owners) :]
        kept, weights = keeps.to(down.dtype)[..., None, None], [share.to(down.dtype) for share in shares]
        of_keeps, of_shares = torch.zeros_like(keeps), [torch.empty_like(share) for share in shares]
        wanted = context.needs_input_grad[-len(hidden) :]
        of_hidden = [torch.empty_like(each) if need else None for each, need in zip(hidden, wanted, strict=True)]
        of_down, of_up, of_inside, of_after = (torch.empty_like(each) for each in (down, up, inside, after))
        grad, last = grad.contiguous(), len(entered) - 1
        through = torch.bmm(grad, up[last], out=of_after[last])
        for level in range(last, -1, -1):
            torch.bmm(grad.mT, after[level], out=of_up[level])
            of_inside[level] = context.activation.backward(through.float(), inside[level])
            low = of_inside[level].to(down.dtype)
            torch.bmm(low.mT, entered[level], out=of_down[level])
            # The gradient that came in is not this function's to overwrite.
            grad = torch.baddbmm(grad, low, down[level]) if level == last else grad.baddbmm_(low, down[level])
            for owner, weight, values, of_share, of_values in zip(
                context.owners, weights, hidden, of_shares, of_hidden, strict=True
            ):
                of_share[level] = (grad[owner] * values[:, level]).sum_to_size(of_share[level].shape)
                if of_values is not None:
                    torch.mul(grad[owner], weight[level], out=of_values[:, level])
            if level:
                through = torch.bmm(grad, up[level - 1], out=of_after[level - 1]) * kept[level]
                for tower in context.gated:
                    of_keeps[level, tower] = (grad[tower] * entered[level - 1, tower]).sum()
                    grad[tower].mul_(kept[level, tower])
        # The state that is kept of is what entered a block, and what the block added to it.
        of_keeps[1:] += (of_after * after)[:-1].sum((2, 3))
        of_weights = [each.float() for weight in (of_down, of_up) for each in weight.unbind(1)]
        return None, None, None, of_keeps, of_inside.sum(2), *of_weights, *of_shares, *of_hidden


def _together(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Weights ``[K, …]`` of T towers, ``[K, T, …]``, in a precision."""
    together = weights[0].new_empty(len(weights[0]), len(weights), *weights[0].shape[1:], dtype=dtype)
    for number, weight in enumerate(weights):
        together[:, number] = weight
    return together


class IntraTower(Tower):
    """SAN blocks over the kept states of one modality (P1 eq. 1).

    ``b_i = SANB_i(μ_i · b_{i-1} + (1 − μ_i) · h_i)`` with ``gate_on="previous"``;
    the published code has ``μ_i`` on ``h_i`` (``gate_on="hidden"``).

    Args:
        levels: K.
        width: D.
        blocks: makes K SAN blocks of a width.
        gated: otherwise ``b_{i-1} + h_i`` enters a block.
        gate_on: the summand that the gate multiplies.
        first_block: the first block sees ``h_0`` ``alone``, or ``gated`` with a previous state of zeros.
    """

    def __init__(
        self,
        levels: int,
        width: int,
        blocks: Callable[[int, int], SANBlocks],
        gated: bool,
        gate_on: Literal["previous", "hidden"],
        first_block: Literal["alone", "gated"],
    ) -> None:
        super().__init__(levels, width, blocks)
        self.gate_on = gate_on
        self.alone = first_block == "alone" or not gated
        self.gates = nn.Parameter(torch.zeros(levels - self.alone)) if gated else None

    def gate_values(self) -> Tensor | None:
        """Gates of the levels that have one, from the first level on, or None without gates."""
        return None if self.gates is None else gate(self.gates).detach()

    def forward(self, hidden: Hidden) -> Entry:
        """What enters the blocks of the states ``[U, K, D]``."""
        if self.gates is None:
            return Entry(None, [torch.ones(self.blocks.count, device=hidden.values.device)], [hidden])
        logits = self.gates / GATE_TEMPERATURE * (1 if self.gate_on == "previous" else -1)
        # A first block that sees its state alone keeps nothing.
        logits = nn.functional.pad(logits, (int(self.alone), 0), value=-torch.inf)
        return Entry(torch.sigmoid(logits), [torch.sigmoid(-logits)], [hidden])


def inter_width(levels: Mapping[str, int], widths: Mapping[str, int]) -> int:
    """The inter-modal tower's width: the narrowest of the modalities with hidden states.

    A lone vector (K = 1) does not narrow the others; it is mapped to them.
    """
    hidden = [widths[name] for name, count in levels.items() if count > 1]
    return min(hidden or widths.values())


class InterTower(Tower):
    """SAN blocks over the states of all modalities, level by level (P1 eq. 2).

    ``c_i = SANB_i(β_i · h_i^image + (1 − β_i) · h_i^text + c_{i-1})``, c starts at zero. For any number of
    modalities the weights are a softmax over one parameter per modality, the last one's fixed at zero, which for
    two is the sigmoid gate; they are renormalised over the modalities that an item has. Levels are counted from
    the last; where widths differ, states are brought to the tower's own width first (P2, dimension transform).

    Args:
        levels: K of each modality, in order; β multiplies the first.
        widths: D of each modality.
        blocks: makes K SAN blocks of a width.
        gated: otherwise the states are added.
        transform: of wider states: a ``linear`` map per level, or ``pool``, the means of neighbouring channels.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        widths: Mapping[str, int],
        blocks: Callable[[int, int], SANBlocks],
        gated: bool,
        transform: Literal["linear", "pool"] = "linear",
    ) -> None:
        # A level exists where at least two modalities have one.
        steps = sorted(levels.values())[-2]
        super().__init__(steps, inter_width(levels, widths), blocks)
        self.steps = steps
        self.kept = {name: min(count, steps) for name, count in levels.items()}
        self.gates = nn.Parameter(torch.zeros(steps, len(levels) - 1)) if gated else None
        narrow = nn.Linear if transform == "linear" else lambda _, width: nn.AdaptiveAvgPool1d(width)
        self.transforms = nn.ModuleDict(
            {
                name: nn.ModuleList(narrow(widths[name], self.width) for _ in range(kept))
                for name, kept in self.kept.items()
                if widths[name] != self.width
            }
        )

    def _weights(self) -> Tensor | None:
        if self.gates is None:
            return None
        logits = nn.functional.pad(self.gates / GATE_TEMPERATURE, (0, 1))
        return logits.softmax(-1)

    def gate_values(self) -> Tensor | None:
        """Weight of every modality at every level, ``[K, M]``, or None without gates."""
        weights = self._weights()
        return None if weights is None else weights.detach()

    def forward(self, states: Mapping[str, tuple[Hidden, Tensor | None]]) -> Entry:
        """What enters the blocks: all modalities at the tower's width.

        Args:
            states: modality -> ``[U, K, D]`` states and ``present [U, 1]`` of 0 and 1, or None where every item
                has it; rows of absent items may hold anything finite, and what comes of an item without any
                modality is meaningless.
        """
        shares = self._shares([present for _, present in states.values()]).permute(2, 1, 0)
        hidden = [self._fitted(name, states[name][0]) for name in self.kept]
        if shares.shape[-1] == 1:
            return Entry(None, shares[..., 0].unbind(), hidden)
        # Then no mean is common to all items.
        whole = [each._replace(values=each.whole(), mean=None) for each in hidden]
        return Entry(None, shares[..., None].unbind(), whole)

    def _fitted(self, name: str, hidden: Hidden) -> Hidden:
        """The last states of a modality at the tower's width, one for each of its levels, or zeros."""
        values, mean = hidden.values[:, -self.kept[name] :], hidden.mean
        mean = None if mean is None else mean[-self.kept[name] :]
        if name in self.transforms:
            transforms: Any = self.transforms[name]
            values = _each_level(transforms, values.transpose(0, 1)).transpose(0, 1)
            mean = None if mean is None else _each_level(transforms, mean)
            if isinstance(transforms[0], nn.Linear):
                biases = torch.stack([transform.bias for transform in transforms])
                mean = biases if mean is None else mean + biases
        beyond = self.steps - self.kept[name]
        if beyond:
            values = nn.functional.pad(values, (0, 0, beyond, 0))
            mean = None if mean is None else nn.functional.pad(mean, (0, 0, beyond, 0))
        return hidden._replace(values=values, mean=mean)

    def _shares(self, present: Sequence[Tensor | None]) -> Tensor:
        """Weight of every modality at every level, ``[U, K, M]``; ``[1, K, M]`` where items are alike."""
        weights, like = self._weights(), self.blocks.up.bias
        there = like.new_zeros(self.steps, len(self.kept))
        for column, kept in enumerate(self.kept.values()):
            there[-kept:, column] = 1
        having = [like.new_ones(1, 1) if mask is None else mask for mask in present]
        available = torch.cat(torch.broadcast_tensors(*having), dim=1)[:, None] * there
        if weights is None:
            return available
        shares = weights * available
        # An item without any modality has no weight at all; it is replaced later, not divided by zero.
        return shares / shares.sum(-1, keepdim=True).clamp_min(1e-12)


def _each_level(transforms: Sequence[nn.Module], states: Tensor) -> Tensor:
    """Every level's own transform without its bias, ``[K, …, D_in] -> [K, …, D_out]``."""
    return torch.stack(
        [
            nn.functional.linear(level, transform.weight.to(level.dtype))
            if isinstance(transform, nn.Linear)
            else transform(level[None])[0]
            for transform, level in zip(transforms, states, strict=True)
        ]
    )
