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

    def common(self, entry: Entry) -> tuple[Tensor, Tensor]:
        """What enters the blocks whatever the item is, ``[K, D]``, and what leaves the last one, ``[D]``.

        These are the means of the hidden states and the biases of ``up``. They run beside the items in fp32: next
        to them the differences between items are small, and a low precision would lose those.
        """
        biases = self.blocks.up.bias
        mixed = torch.zeros_like(biases)
        for share, hidden in zip(entry.shares, entry.hidden, strict=True):
            if hidden.mean is not None:
                mixed = mixed + share[:, None] * hidden.mean
        entered, state = [], None
        for level, (value, bias) in enumerate(zip(mixed, biases, strict=True)):
            if state is not None:
                value = value + (state if entry.keeps is None else entry.keeps[level] * state)
            entered.append(value)
            state = value + bias
        assert state is not None
        return torch.stack(entered), state


def answers(towers: Sequence[Tower], entries: Sequence[Entry], heads: Sequence[Tensor]) -> list[Tensor]:
    """What the heads ``[E, D]`` make of the towers' last states, ``[U, E]`` each, without the heads' biases."""
    groups: dict[Any, list[int]] = {}
    for number, (tower, entry) in enumerate(zip(towers, entries, strict=True)):
        values, blocks = entry.hidden[0].values, tower.blocks
        shape = values.shape, values.dtype, blocks.bottleneck, blocks.activation
        groups.setdefault(shape, []).append(number)
    found: dict[int, Tensor] = {}
    for group in groups.values():
        states, commons = _run([towers[number] for number in group], [entries[number] for number in group])
        for number, state, common in zip(group, states, commons, strict=True):
            head = heads[number]
            found[number] = state @ head.to(state.dtype).T + head.float() @ common
    return [found[number] for number in range(len(towers))]


def _run(towers: Sequence[Tower], entries: Sequence[Entry]) -> tuple[Tensor, list[Tensor]]:
    """Last states of T towers of one shape, ``[T, U, D]``, and what is common to all items, ``[D]`` each."""
    blocks = [tower.blocks for tower in towers]
    dtype = entries[0].hidden[0].values.dtype
    commons, lasts = zip(*(tower.common(entry) for tower, entry in zip(towers, entries, strict=True)), strict=True)
    biases = [
        each.down.bias + (each.down.weight @ common[..., None])[..., 0]
        for each, common in zip(blocks, commons, strict=True)
    ]
    sources = [
        (owner, share, hidden.values.transpose(0, 1))
        for owner, entry in enumerate(entries)
        for share, hidden in zip(entry.shares, entry.hidden, strict=True)
    ]
    owners, shares, values = zip(*sources, strict=True)
    states = _Chain.apply(
        blocks[0].activation,
        owners,
        torch.stack(biases, dim=1),
        torch.stack([each.down.weight.to(dtype) for each in blocks], dim=1),
        torch.stack([each.up.weight.to(dtype) for each in blocks], dim=1),
        *(entry.keeps for entry in entries),
        *shares,
        *values,
    )
    return states, list(lasts)


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
        biases: Tensor,
        down: Tensor,
        up: Tensor,
        *rest: Tensor | None,
    ) -> Tensor:
        """Run T towers on S hidden states, of which each belongs to the tower that ``owners [S]`` names.

        Args:
            context: autograd's.
            activation: of the blocks.
            owners: ascending.
            biases: ``[K, T, H]``.
            down: ``[K, T, H, D]``.
            up: ``[K, T, D, H]``.
            rest: ``keeps`` T times ``[K]`` or None, shares S times ``[K]`` or ``[K, U, 1]``, hidden states S times
                ``[K, U, D]``.

        Returns:
            ``[T, U, D]``.
        """
        count, towers = down.shape[:2]
        keeps, shares, hidden = _Chain._sorted(rest, towers)
        low_shares = [share.to(down.dtype).unbind() for share in shares]
        low_keeps = [None if kept is None else kept.to(down.dtype).unbind() for kept in keeps]
        firsts = [owner not in owners[:number] for number, owner in enumerate(owners)]
        states: list[Tensor] = []
        entered: list[Tensor] = []
        inside: list[Tensor] = []
        after: list[Tensor] = []
        for level in range(count):
            x = down.new_empty(towers, *hidden[0].shape[1:])
            for owner, first, share, values in zip(owners, firsts, low_shares, hidden, strict=True):
                if first:
                    torch.mul(values[level], share[level], out=x[owner])
                else:
                    x[owner].addcmul_(values[level], share[level])
            if level:
                for into, state, kept in zip(x, states[-1], low_keeps, strict=True):
                    into.add_(state) if kept is None else into.addcmul_(state, kept[level])
            z = torch.bmm(x, down[level].mT) + biases[level][:, None]
            a = activation.forward(z).to(down.dtype)
            states.append(torch.baddbmm(x, a, up[level].mT))
            for saved, value in zip((entered, inside, after), (x, z, a), strict=True):
                saved.append(value)
        context.activation, context.owners = activation, owners
        context.save_for_backward(down, up, *states[:-1], *entered, *inside, *after, *rest)
        return states[-1]

    @staticmethod
    def _sorted(rest: Sequence[Any], towers: int) -> tuple[Sequence[Any], Sequence[Tensor], Sequence[Tensor]]:
        """Keeps of the towers, shares, hidden states."""
        sources = (len(rest) - towers) // 2
        return rest[:towers], rest[towers : towers + sources], rest[towers + sources :]

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Any, ...]:
        down, up, *saved = context.saved_tensors
        count, towers = down.shape[:2]
        states, saved = saved[: count - 1], saved[count - 1 :]
        entered, inside, after = (saved[number * count :][:count] for number in range(3))
        keeps, shares, hidden = _Chain._sorted(saved[3 * count :], towers)
        of_keeps = [None if kept is None else torch.zeros_like(kept) for kept in keeps]
        of_shares = [torch.empty_like(share) for share in shares]
        wanted = context.needs_input_grad[-len(hidden) :]
        of_hidden = [torch.empty_like(each) if need else None for each, need in zip(hidden, wanted, strict=True)]
        of_biases = inside[0].new_empty(count, towers, inside[0].shape[-1])
        of_down, of_up = torch.empty_like(down), torch.empty_like(up)
        grad = grad.contiguous()
        for level in reversed(range(count)):
            torch.bmm(grad.mT, after[level], out=of_up[level])
            of_inside = context.activation.backward(torch.bmm(grad, up[level]).float(), inside[level])
            torch.sum(of_inside, 1, out=of_biases[level])
            low = of_inside.to(down.dtype)
            torch.bmm(low.mT, entered[level], out=of_down[level])
            # The gradient that came in is not this function's to overwrite.
            grad = torch.baddbmm(grad, low, down[level]) if level == count - 1 else grad.baddbmm_(low, down[level])
            for owner, share, values, of_share, of_values in zip(
                context.owners, shares, hidden, of_shares, of_hidden, strict=True
            ):
                of_share[level] = (grad[owner] * values[level]).sum_to_size(share[level].shape)
                if of_values is not None:
                    torch.mul(grad[owner], share[level].to(grad.dtype), out=of_values[level])
            for tower, (kept, of_kept) in enumerate(zip(keeps, of_keeps, strict=True)):
                if level and of_kept is not None:
                    of_kept[level] = (grad[tower] * states[level - 1][tower]).sum()
                    grad[tower].mul_(kept[level].to(grad.dtype))
        return None, None, of_biases, of_down, of_up, *of_keeps, *of_shares, *of_hidden


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
        alone = int(self.alone)
        keeps = nn.functional.pad(torch.sigmoid(logits), (alone, 0))
        enters = nn.functional.pad(torch.sigmoid(-logits), (alone, 0), value=1.0)
        return Entry(keeps, [enters], [hidden])


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
            else transform(level)
            for transform, level in zip(transforms, states, strict=True)
        ]
    )
