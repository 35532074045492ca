"""Side networks: an intra-modal tower for each modality and one inter-modal tower (IISAN, eqs. 1 and 2).

A tower is a recurrence over the levels of frozen encoders. Each level has a SAN block, whose input is a weighted
sum of the tower's previous state and the hidden states of that level::

    x_i = carry_i · s_{i-1} + Σ_m weight_{m,i} · h_i^m
    s_i = SANB_i(x_i) = x_i + W_up · act(W_down · x_i + b) + b'

The two kinds of towers differ in these coefficients only:

- Intra-modal, ``b_i = SANB_i(μ_i · b_{i-1} + (1 − μ_i) · h_i)`` (eq. 1): carry μ, weight 1 − μ.
- Inter-modal, ``c_i = SANB_i(β_i · h_i^image + (1 − β_i) · h_i^text + c_{i-1})`` (eq. 2): carry 1, weights β and
  1 − β.

``Tower.forward`` implements the recurrence as written here. Training uses :mod:`iisan.nn.fused`, which computes
the same outputs and gradients faster.

Legend: U items, M modalities, K levels, D tower width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from iisan.nn.blocks import SANBlocks
from iisan.nn.hidden import Hidden

#: Gate parameters are divided by this temperature before the sigmoid (published code).
GATE_TEMPERATURE = 0.1

#: Creates K SAN blocks of width D.
BlockFactory: TypeAlias = Callable[[int, int], SANBlocks]


@dataclass(frozen=True)
class TowerInputs:
    """Coefficients and hidden states of a tower's recurrence.

    Attributes:
        carry: Weight of the previous state at each level, ``[K]``, or None for 1. The initial state is zero.
        mixing_weights: Weights of each of the M modalities, ``[K]``. If some items lack a modality, the weights
            differ between items, ``[K, U, 1]``, and the hidden states are not split into a mean and differences.
        hidden: Hidden states of each modality, ``[U, K, D]``.
    """

    carry: Tensor | None
    mixing_weights: Sequence[Tensor]
    hidden: Sequence[Hidden]


class Tower(nn.Module):
    """One SAN block per level, connected by the recurrence.

    Args:
        levels: Number of levels, K.
        width: Tower width, D.
        blocks: Factory of the SAN blocks.
    """

    def __init__(self, levels: int, width: int, blocks: BlockFactory) -> None:
        super().__init__()
        self.levels = levels
        self.width = width
        self.blocks = blocks(levels, width)

    def forward(self, inputs: TowerInputs) -> Tensor:
        """Compute the tower's last state, ``[U, D]``."""
        states = [hidden.whole() for hidden in inputs.hidden]
        state = torch.zeros_like(states[0][:, 0])
        for i in range(self.levels):
            x = state if inputs.carry is None else inputs.carry[i] * state
            for weight, h in zip(inputs.mixing_weights, states, strict=True):
                x = x + weight[i] * h[:, i]
            state = self.blocks(x, i)
        return state


class IntraTower(Tower):
    """The tower within one modality, ``b_i = SANB_i(μ_i · b_{i-1} + (1 − μ_i) · h_i)`` (IISAN, eq. 1).

    Args:
        levels: Number of levels, K.
        width: Width of the encoder and of the tower, D.
        blocks: Factory of the SAN blocks.
        gated: Whether to learn μ. Without gates, the input of a block is ``b_{i-1} + h_i``.
        gate_on: Term that the sigmoid of the gate parameter multiplies: the ``previous`` state (eq. 1) or the
            ``hidden`` state (published code). In both cases, μ is the weight of the previous state.
        first_block: Input of the first block: h_0 ``alone``, or ``gated``, ``(1 − μ_0) · h_0``.
    """

    def __init__(
        self,
        levels: int,
        width: int,
        blocks: BlockFactory,
        gated: bool,
        gate_on: Literal["previous", "hidden"],
        first_block: Literal["alone", "gated"],
    ) -> None:
        super().__init__(levels, width, blocks)
        self.sign = 1 if gate_on == "previous" else -1
        self.ungated_levels = 1 if first_block == "alone" else 0
        self.gates = nn.Parameter(torch.zeros(levels - self.ungated_levels)) if gated else None

    def inputs(self, hidden: Hidden) -> TowerInputs:
        """Return the gates as coefficients of the hidden states ``[U, K, D]``."""
        if self.gates is None:
            return TowerInputs(None, [self.blocks.up.bias.new_ones(self.levels)], [hidden])
        # A first block without a gate has μ = 0.
        logits, ungated = self._logits(self.gates), (self.ungated_levels, 0)
        carry = nn.functional.pad(torch.sigmoid(logits), ungated)
        weight = nn.functional.pad(torch.sigmoid(-logits), ungated, value=1.0)
        return TowerInputs(carry, [weight], [hidden])

    def gate_values(self) -> Tensor | None:
        """Return μ, the weight of the previous state, at each gated level; None without gates."""
        return None if self.gates is None else torch.sigmoid(self._logits(self.gates)).detach()

    def _logits(self, gates: Tensor) -> Tensor:
        """Logits of μ."""
        return gates / GATE_TEMPERATURE * self.sign


class InterTower(Tower):
    """The tower across modalities (IISAN, eq. 2).

    ``c_i = SANB_i(β_i · h_i^image + (1 − β_i) · h_i^text + c_{i-1})``

    Any number of modalities is supported: their weights are the softmax of one parameter per modality, the last of
    which is fixed at zero. For two modalities this is the sigmoid gate of eq. 2. The weights are renormalised over
    the modalities that an item has.

    Encoders may differ in depth and width: levels are aligned at the last one, and a dimension transform layer
    (IISAN-Versa) maps hidden states of another width to that of the tower, which is the narrowest encoder's.

    Args:
        levels: Number of levels of each modality; β is the weight of the first modality.
        widths: Width of each modality's encoder.
        blocks: Factory of the SAN blocks.
        gated: Whether to learn the weights. Without gates, hidden states are added.
        transform: Dimension transform: a ``linear`` map per level, or ``pool``, adaptive average pooling over
            channels.
    """

    def __init__(
        self,
        levels: Mapping[str, int],
        widths: Mapping[str, int],
        blocks: BlockFactory,
        gated: bool,
        transform: Literal["linear", "pool"] = "linear",
    ) -> None:
        # A modality with a single vector (K = 1) is mapped to the width of the others instead of narrowing them.
        width = min([widths[name] for name, count in levels.items() if count > 1] or widths.values())
        # The tower has as many levels as at least two modalities have.
        super().__init__(sorted(levels.values())[-2], width, blocks)
        self.kept = {name: min(count, self.levels) for name, count in levels.items()}
        self.gates = nn.Parameter(torch.zeros(self.levels, len(levels) - 1)) if gated else None
        transform_from = nn.Linear if transform == "linear" else lambda _, width: nn.AdaptiveAvgPool1d(width)
        self.transforms = nn.ModuleDict(
            {
                name: nn.ModuleList(transform_from(widths[name], width) for _ in range(kept))
                for name, kept in self.kept.items()
                if widths[name] != width
            }
        )

    def inputs(self, states: Mapping[str, tuple[Hidden, Tensor | None]]) -> TowerInputs:
        """Transform the hidden states of all modalities to the tower's width and compute their weights.

        Args:
            states: For each modality, hidden states ``[U, K, D]`` and a mask ``[U, 1]``, 1 for items that have it
                and 0 for others, or None if all have it. Hidden states of missing modalities may be any finite
                values. The output of an item without any modality is meaningless.
        """
        weights = self._mixing_weights([present for _, present in states.values()]).permute(2, 1, 0)
        hidden = [self._transformed(name, states[name][0]) for name in self.kept]
        if weights.shape[-1] == 1:
            return TowerInputs(None, weights[..., 0].unbind(), hidden)
        whole = [each._replace(values=each.whole(), mean=None) for each in hidden]
        return TowerInputs(None, weights[..., None].unbind(), whole)

    def gate_values(self) -> Tensor | None:
        """Return the weights of all modalities, ``[K, M]``, the first of which is β; None without gates."""
        return None if self.gates is None else self._softmax(self.gates).detach()

    def _softmax(self, gates: Tensor) -> Tensor:
        return nn.functional.pad(gates / GATE_TEMPERATURE, (0, 1)).softmax(-1)

    def _mixing_weights(self, present: Sequence[Tensor | None]) -> Tensor:
        """Weights of all modalities, ``[U, K, M]``, or ``[1, K, M]`` if no item lacks a modality."""
        bias = self.blocks.up.bias
        has_level = bias.new_zeros(self.levels, len(self.kept))
        for column, kept in enumerate(self.kept.values()):
            has_level[-kept:, column] = 1
        masks = [bias.new_ones(1, 1) if mask is None else mask for mask in present]
        available = torch.cat(torch.broadcast_tensors(*masks), dim=1)[:, None] * has_level
        if self.gates is None:
            return available
        weights = self._softmax(self.gates) * available
        # The weights of an item without any modality are all zero; its output is replaced by the fusion.
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)

    def _transformed(self, name: str, hidden: Hidden) -> Hidden:
        """The last K states of a modality at the tower's width, preceded by zeros if it has fewer levels."""
        kept = self.kept[name]
        hidden = hidden.map(lambda states: states[..., -kept:, :])
        if name in self.transforms:
            transforms: Any = self.transforms[name]
            hidden = hidden.map(lambda states: _each_level(transforms, states))
            if isinstance(transforms[0], nn.Linear):
                biases = torch.stack([transform.bias for transform in transforms])
                hidden = hidden._replace(mean=biases if hidden.mean is None else hidden.mean + biases)
        if kept < self.levels:
            hidden = hidden.map(lambda states: nn.functional.pad(states, (0, 0, self.levels - kept, 0)))
        return hidden


def _each_level(transforms: Sequence[nn.Module], states: Tensor) -> Tensor:
    """Apply each level's transform, without its bias: ``[…, K, D_in] -> […, K, D]``."""
    transformed = [
        nn.functional.linear(level, transform.weight.to(level.dtype))
        if isinstance(transform, nn.Linear)
        else transform(level[None])[0]
        for transform, level in zip(transforms, states.unbind(-2), strict=True)
    ]
    return torch.stack(transformed).movedim(0, -2)
