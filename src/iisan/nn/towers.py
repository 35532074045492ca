"""The side networks: a tower within each modality and one across them ("IISAN", eqs. 1 and 2).

A tower climbs the K levels of its encoders. At level i it mixes the state that it has reached with the encoders'
hidden states, and a SAN block adapts the mixture::

    x_i = carry_i · s_{i-1} + Σ_m weight_{m,i} · h_{m,i}        (s starts at zero)
    s_i = SANB_i(x_i) = x_i + W_up · act(W_down · x_i + b) + b'

The two equations differ in these factors alone:

- within a modality (eq. 1), ``carry`` is the gate μ and the only ``weight`` is 1 − μ;
- across modalities (eq. 2), ``carry`` is 1 and the weights are β and 1 − β.

``Tower.forward`` computes this as it stands here. Training calls :mod:`iisan.nn.fused` instead, which computes the
same faster.

Legend: U items, M modalities, K levels, D tower width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iisan.nn.blocks import SANBlocks
from iisan.nn.hidden import Hidden

#: A gate's parameter is divided by this before the sigmoid (published code).
GATE_TEMPERATURE = 0.1


@dataclass(frozen=True)
class TowerInputs:
    """What a tower mixes at its levels.

    Attributes:
        carry: Weight of the previous state, ``[K]``, or None where it is 1; the first level has no previous state.
        mixing_weights: Weight of each of the M modalities: ``[K]``, or ``[K, U, 1]`` where some items lack a
            modality, in which case the hidden states have no mean.
        hidden: Hidden states of each modality at the tower's width, ``[U, K, D]``.
    """

    carry: Tensor | None
    mixing_weights: Sequence[Tensor]
    hidden: Sequence[Hidden]


class Tower(nn.Module):
    """A SAN block per level, each applied to a mixture of the previous state and the level's hidden states.

    Args:
        levels: Number of levels, K.
        width: Tower width, D.
        blocks: Function that makes K SAN blocks of a width.
    """

    def __init__(self, levels: int, width: int, blocks: Callable[[int, int], SANBlocks]) -> None:
        super().__init__()
        self.levels = levels
        self.width = width
        self.blocks = blocks(levels, width)

    def forward(self, inputs: TowerInputs) -> Tensor:
        """Return the last state, ``[U, D]``."""
        states = [hidden.whole() for hidden in inputs.hidden]
        state = torch.zeros_like(states[0][:, 0])
        for i in range(self.levels):
            x = state if inputs.carry is None else inputs.carry[i] * state
            for weight, h in zip(inputs.mixing_weights, states, strict=True):
                x = x + weight[i] * h[:, i]
            state = self.blocks(x, i)
        return state


class IntraTower(Tower):
    """The tower within one modality, ``b_i = SANB_i(μ_i · b_{i-1} + (1 − μ_i) · h_i)`` ("IISAN", eq. 1).

    Args:
        levels: Number of levels, K.
        width: Tower width, D, which is the encoder's.
        blocks: Function that makes K SAN blocks of a width.
        gated: Whether μ is learned; without gates a block's input is ``b_{i-1} + h_i``.
        gate_on: State that the sigmoid of a gate's parameter multiplies: the ``previous`` one (eq. 1) or the
            ``hidden`` one (published code). The gate μ is the weight of the previous state in both.
        first_block: Input of the first block: ``h_0`` ``alone``, or ``gated`` with a previous state of zeros.
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
        self.sign = 1 if gate_on == "previous" else -1
        self.ungated_levels = 1 if first_block == "alone" else 0
        self.gates = nn.Parameter(torch.zeros(levels - self.ungated_levels)) if gated else None

    def inputs(self, hidden: Hidden) -> TowerInputs:
        """Combine the modality's states ``[U, K, D]`` with the gates."""
        if self.gates is None:
            return TowerInputs(None, [self.blocks.up.bias.new_ones(self.levels)], [hidden])
        # A first block that sees h_0 alone has μ = sigmoid(−∞) = 0.
        logits = nn.functional.pad(self._logits(self.gates), (self.ungated_levels, 0), value=-torch.inf)
        return TowerInputs(torch.sigmoid(logits), [torch.sigmoid(-logits)], [hidden])

    def gate_values(self) -> Tensor | None:
        """Return μ, the weight of the previous state, at every gated level; None without gates."""
        return None if self.gates is None else torch.sigmoid(self._logits(self.gates)).detach()

    def _logits(self, gates: Tensor) -> Tensor:
        """Logits of μ."""
        return gates / GATE_TEMPERATURE * self.sign


def inter_width(levels: Mapping[str, int], widths: Mapping[str, int]) -> int:
    """Return the width of the tower across modalities: that of the narrowest encoder.

    A modality of a single vector (K = 1) does not narrow the others; it is mapped to their width.
    """
    hidden = [widths[name] for name, count in levels.items() if count > 1]
    return min(hidden or widths.values())


class InterTower(Tower):
    """The tower across modalities ("IISAN", eq. 2).

    ``c_i = SANB_i(β_i · h_i^image + (1 − β_i) · h_i^text + c_{i-1})``

    For any number of modalities the weights are a softmax over one parameter per modality, the last of which is
    fixed at zero, so that two modalities have the sigmoid gate of eq. 2. They are renormalised over the modalities
    that an item has. Levels are counted from the last. Hidden states of another width are brought to the tower's
    first ("IISAN-Versa", dimension transform layer).

    Args:
        levels: Number of levels of each modality, in order; β multiplies the first modality.
        widths: Width of each modality's encoder.
        blocks: Function that makes K SAN blocks of a width.
        gated: Whether the weights are learned; without gates the states are added.
        transform: How another width is brought to the tower's: a ``linear`` map per level, or ``pool``, the means
            of neighbouring channels.
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
        super().__init__(sorted(levels.values())[-2], inter_width(levels, widths), blocks)
        self.kept = {name: min(count, self.levels) for name, count in levels.items()}
        self.gates = nn.Parameter(torch.zeros(self.levels, len(levels) - 1)) if gated else None
        narrow = nn.Linear if transform == "linear" else lambda _, width: nn.AdaptiveAvgPool1d(width)
        self.transforms = nn.ModuleDict(
            {
                name: nn.ModuleList(narrow(widths[name], self.width) for _ in range(kept))
                for name, kept in self.kept.items()
                if widths[name] != self.width
            }
        )

    def inputs(self, states: Mapping[str, tuple[Hidden, Tensor | None]]) -> TowerInputs:
        """Bring all modalities to the tower's width and weigh them.

        Args:
            states: States ``[U, K, D]`` of each modality and which items have it, ``[U, 1]`` of 0 and 1, or None
                where all do. Rows of items without it may hold any finite values. The output of an item without
                any modality is meaningless.
        """
        weights = self._mixing_weights([present for _, present in states.values()]).permute(2, 1, 0)
        hidden = [self._transformed(name, states[name][0]) for name in self.kept]
        if weights.shape[-1] == 1:
            return TowerInputs(None, weights[..., 0].unbind(), hidden)
        # Where the weights differ between items, so does what becomes of the mean.
        whole = [each._replace(values=each.whole(), mean=None) for each in hidden]
        return TowerInputs(None, weights[..., None].unbind(), whole)

    def gate_values(self) -> Tensor | None:
        """Return the weight of every modality, ``[K, M]``, the first of which is β; None without gates."""
        return None if self.gates is None else self._softmax(self.gates).detach()

    def _softmax(self, gates: Tensor) -> Tensor:
        return nn.functional.pad(gates / GATE_TEMPERATURE, (0, 1)).softmax(-1)

    def _mixing_weights(self, present: Sequence[Tensor | None]) -> Tensor:
        """Weight of every modality at every level, ``[U, K, M]``; ``[1, K, M]`` where all items have the same."""
        bias = self.blocks.up.bias
        has_level = bias.new_zeros(self.levels, len(self.kept))
        for column, kept in enumerate(self.kept.values()):
            has_level[-kept:, column] = 1
        masks = [bias.new_ones(1, 1) if mask is None else mask for mask in present]
        available = torch.cat(torch.broadcast_tensors(*masks), dim=1)[:, None] * has_level
        if self.gates is None:
            return available
        weights = self._softmax(self.gates) * available
        # An item without any modality has no weight at all; it is replaced later, not divided by zero.
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)

    def _transformed(self, name: str, hidden: Hidden) -> Hidden:
        """Last K states of a modality at the tower's width; where it has fewer, zeros stand before them."""
        values, mean = hidden.values[:, -self.kept[name] :], hidden.mean
        mean = None if mean is None else mean[-self.kept[name] :]
        if name in self.transforms:
            transforms: Any = self.transforms[name]
            values = _each_level(transforms, values.transpose(0, 1)).transpose(0, 1)
            mean = None if mean is None else _each_level(transforms, mean)
            if isinstance(transforms[0], nn.Linear):
                biases = torch.stack([transform.bias for transform in transforms])
                mean = biases if mean is None else mean + biases
        beyond = self.levels - self.kept[name]
        if beyond:
            values = nn.functional.pad(values, (0, 0, beyond, 0))
            mean = None if mean is None else nn.functional.pad(mean, (0, 0, beyond, 0))
        return hidden._replace(values=values, mean=mean)


def _each_level(transforms: Sequence[nn.Module], states: Tensor) -> Tensor:
    """Apply every level's own transform without its bias, ``[K, …, D_in] -> [K, …, D]``."""
    return torch.stack(
        [
            nn.functional.linear(level, transform.weight.to(level.dtype))
            if isinstance(transform, nn.Linear)
            else transform(level[None])[0]
            for transform, level in zip(transforms, states, strict=True)
        ]
    )
