"""The side networks: one tower within each modality, one between them (P1 eqs. 1 and 2)."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from iisan.nn.blocks import GATE_TEMPERATURE, gate


class IntraTower(nn.Module):
    """SAN blocks over the kept states of one modality (P1 eq. 1).

    ``b_i = SANB_i(μ_i · b_{i-1} + (1 − μ_i) · h_i)`` with ``gate_on="previous"``;
    the published code has ``μ_i`` on ``h_i`` (``gate_on="hidden"``).

    Args:
        levels: K.
        width: D.
        block: makes a SAN block of a width.
        gated: otherwise ``b_{i-1} + h_i`` enters a block.
        gate_on: the summand that the gate multiplies.
        first_block: the first block sees ``h_0`` ``alone``, or ``gated`` with a previous state of zeros.
    """

    def __init__(
        self,
        levels: int,
        width: int,
        block: Callable[[int], nn.Module],
        gated: bool,
        gate_on: Literal["previous", "hidden"],
        first_block: Literal["alone", "gated"],
    ) -> None:
        super().__init__()
        self.width = width
        self.gate_on = gate_on
        self.blocks = nn.ModuleList(block(width) for _ in range(levels))
        self.alone = first_block == "alone" or not gated
        self.gates = nn.Parameter(torch.zeros(levels - self.alone)) if gated else None

    def gate_values(self) -> Tensor | None:
        """Gates of the levels that have one, from the first level on, or None without gates."""
        return None if self.gates is None else gate(self.gates).detach()

    def forward(self, states: Tensor) -> Tensor:
        """``[U, K, D] -> [U, D]``."""
        levels = states.unbind(1)
        gates = None if self.gates is None else gate(self.gates).unbind()
        state = None if self.alone else torch.zeros_like(levels[0])
        for index, (block, hidden) in enumerate(zip(self.blocks, levels, strict=True)):
            if state is None:
                mixed = hidden
            elif gates is None:
                mixed = state + hidden
            else:
                on, off = (state, hidden) if self.gate_on == "previous" else (hidden, state)
                # off + g (on − off) = g · on + (1 − g) · off
                mixed = torch.lerp(off, on, gates[index - self.alone])
            state = block(mixed)
        assert state is not None
        return state


def inter_width(levels: Mapping[str, int], widths: Mapping[str, int]) -> int:
    """The inter-modal tower's width: the narrowest of the modalities with hidden states.

    A lone vector (K = 1) does not narrow the others; it is mapped to them.
    """
    hidden = [widths[name] for name, count in levels.items() if count > 1]
    return min(hidden or widths.values())


class InterTower(nn.Module):
    """SAN blocks over the states of all modalities, level by level (P1 eq. 2).

    ``c_i = SANB_i(β_i · h_i^image + (1 − β_i) · h_i^text + c_{i-1})``, c starts at zero. For any number of
    modalities the weights are a softmax over one parameter per modality, the last one's fixed at zero, which for
    two is the sigmoid gate; they are renormalised over the modalities that an item has. Levels are counted from
    the last; where widths differ, states are brought to the tower's own width first (P2, dimension transform).

    Args:
        levels: K of each modality, in order; β multiplies the first.
        widths: D of each modality.
        block: makes a SAN block of a width.
        gated: otherwise the states are added.
        transform: of wider states: a ``linear`` map per level, or ``pool``, the means of neighbouring channels.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        widths: Mapping[str, int],
        block: Callable[[int], nn.Module],
        gated: bool,
        transform: Literal["linear", "pool"] = "linear",
    ) -> None:
        super().__init__()
        self.width = inter_width(levels, widths)
        # A level exists where at least two modalities have one.
        self.steps = sorted(levels.values())[-2]
        self.blocks = nn.ModuleList(block(self.width) for _ in range(self.steps))
        self.gates = nn.Parameter(torch.zeros(self.steps, len(levels) - 1)) if gated else None
        narrow = nn.Linear if transform == "linear" else lambda _, width: nn.AdaptiveAvgPool1d(width)
        self.transforms = nn.ModuleDict(
            {
                name: nn.ModuleList(narrow(widths[name], self.width) for _ in range(min(count, self.steps)))
                for name, count in levels.items()
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

    def forward(self, states: Mapping[str, tuple[Tensor, Tensor | None]]) -> Tensor:
        """Mix and transform.

        Args:
            states: modality -> ``(states [U, K, D], present [U, 1] of 0 and 1)``; rows of absent items may hold
                anything finite; ``present`` None means that every item has it.

        Returns:
            ``[U, D]``, D the tower's width; meaningless for items without any modality.
        """
        levels = {name: values.unbind(1)[-self.steps :] for name, (values, _) in states.items()}
        present = {name: mask for name, (_, mask) in states.items()}
        weights = self._weights()
        state = None
        for step, block in enumerate(self.blocks):
            mixed = self._mix(step, levels, present, weights)
            state = block(mixed if state is None else mixed + state)
        assert state is not None
        return state

    def _mix(
        self,
        step: int,
        levels: Mapping[str, Sequence[Tensor]],
        present: Mapping[str, Tensor | None],
        weights: Tensor | None,
    ) -> Tensor:
        """Weighted sum of the states at one level, ``[U, D]``, over the modalities that have them."""
        terms, shares = [], []
        for column, (name, kept) in enumerate(levels.items()):
            level = step - (self.steps - len(kept))
            if level < 0:
                continue
            hidden = self.transforms[name][level](kept[level]) if name in self.transforms else kept[level]  # type: ignore[index]
            share = hidden.new_ones(()) if weights is None else weights[step, column]
            mask = present[name]
            share = share if mask is None else share * mask
            terms.append(share * hidden)
            shares.append(share)
        mixed = reduce(torch.add, terms)
        complete = len(terms) == len(levels) and all(mask is None for mask in present.values())
        if weights is None or complete:
            return mixed
        # An item without any modality has no weight at all; it is replaced later, not divided by zero.
        return mixed / reduce(torch.add, shares).clamp_min(1e-12)
