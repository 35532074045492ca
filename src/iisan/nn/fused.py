"""The recurrence of :mod:`iisan.nn.towers` as used in training: fused, with a hand-written gradient.

:func:`tower_outputs` returns the same values as ``Tower.forward`` followed by a projection, but faster:

- Towers of the same shape run as one batch.
- The item-independent part of the recurrence, which comes from the means of the hidden states and the biases, is
  computed once, in the precision of the parameters, and enters each activation as a bias. Only differences between
  items have a low precision.
- The gradient is written by hand. Time is spent on reading and writing ``[U, D]`` tensors rather than on matrix
  products, and autograd would do so several times as often.

Legend: U items, K levels, D tower width, H bottleneck, E embedding width, T towers, N pairs of tower and modality.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from iisan.nn.blocks import ACTIVATIONS, SANBlocks
from iisan.nn.towers import Tower, TowerInputs

#: Gradient of an activation's input from that of its output and the input.
ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "gelu": torch.ops.aten.gelu_backward,
}


def tower_outputs(
    towers: Sequence[Tower], inputs: Sequence[TowerInputs], projections: Sequence[Tensor]
) -> list[Tensor]:
    """Run towers and project their last states by weights ``[E, D]``: ``tower(inputs) @ projection.mT``."""
    groups: dict[Any, list[int]] = {}
    for number, (tower, each) in enumerate(zip(towers, inputs, strict=True)):
        values = each.hidden[0].values
        shape = values.shape, values.dtype, tower.blocks.bottleneck, tower.blocks.activation
        groups.setdefault(shape, []).append(number)
    outputs: dict[int, Tensor] = {}
    for group in groups.values():
        blocks, within = [towers[number].blocks for number in group], [inputs[number] for number in group]
        found = _outputs_of_one_shape(blocks, within, torch.stack([projections[number] for number in group]))
        outputs.update(zip(group, found.unbind(), strict=True))
    return [outputs[number] for number in range(len(towers))]


def _outputs_of_one_shape(
    blocks: Sequence[SANBlocks], inputs: Sequence[TowerInputs], projections: Tensor
) -> Tensor:
    """Project the last states of T towers of one shape with ``projections [T, E, D]``, ``[T, U, E]``."""
    gated = [number for number, each in enumerate(inputs) if each.carry is not None]
    ones = projections.new_ones(blocks[0].count)
    carry = torch.stack([ones if each.carry is None else each.carry for each in inputs], dim=1)
    shared_inputs, shared_state = _item_independent(blocks, inputs, carry)
    biases = torch.stack([each.down.bias for each in blocks], dim=1)
    sources = [
        (owner, weight, hidden.values)
        for owner, each in enumerate(inputs)
        for weight, hidden in zip(each.mixing_weights, each.hidden, strict=True)
    ]
    owners, mixing_weights, values = zip(*sources, strict=True)
    weights = [getattr(each, name).weight for name in ("down", "up") for each in blocks]
    states = _Recurrence.apply(
        blocks[0].activation, owners, gated, carry, biases, shared_inputs, *weights, *mixing_weights, *values
    )
    return states @ projections.to(states.dtype).mT + (projections @ shared_state[..., None]).mT


def _item_independent(
    blocks: Sequence[SANBlocks], inputs: Sequence[TowerInputs], carry: Tensor
) -> tuple[Tensor, Tensor]:
    """The item-independent part of the recurrence: inputs per level ``[K, T, D]``, last state ``[T, D]``."""
    biases = torch.stack([each.up.bias for each in blocks], dim=1)
    added = list(biases.unbind(1))
    for tower, each in enumerate(inputs):
        for weight, hidden in zip(each.mixing_weights, each.hidden, strict=True):
            if hidden.mean is not None:
                added[tower] = torch.addcmul(added[tower], weight[:, None], hidden.mean)
    states: list[Tensor] = []
    for value, factor in zip(torch.stack(added, dim=1), carry[..., None], strict=True):
        states.append(torch.addcmul(value, factor, states[-1]) if states else value)
    return torch.stack(states) - biases, states[-1]


class _Recurrence(torch.autograd.Function):
    """The item-dependent part of the recurrence, in the precision of the hidden states.

    Inputs and gradients of activations have the precision of the parameters.
    """

    @staticmethod
    def forward(
        context: Any,
        activation: str,
        owners: Sequence[int],
        gated: Sequence[int],
        carry: Tensor,
        biases: Tensor,
        shared: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        """Run T towers on the hidden states of N pairs of tower and modality.

        Args:
            context: Context of autograd.
            activation: Name of the activation function.
            owners: Index of each pair's tower, ascending.
            gated: Indices of the towers whose carry needs a gradient.
            carry: Weight of the previous state, ``[K, T]``.
            biases: Biases of ``down``, ``[K, T, H]``.
            shared: Item-independent part of the blocks' inputs, ``[K, T, D]``, which enters as biases too.
            rest: Weights of ``down``, T times ``[K, H, D]``, and of ``up``, T times ``[K, D, H]``; mixing weights,
                N times ``[K]`` or ``[K, U, 1]``; hidden states, N times ``[U, K, D]``.

        Returns:
            Last states, ``[T, U, D]``.
        """
        count, towers = carry.shape
        ends = (0, towers, 2 * towers, towers + len(rest) // 2, len(rest))
        downs, ups, mixing_weights, hidden = (rest[start:end] for start, end in pairwise(ends))
        items, dtype = len(hidden[0]), hidden[0].dtype
        biases = biases + torch.stack(
            [vecdot(each, x[:, None]) for each, x in zip(downs, shared.unbind(1), strict=True)], dim=1
        )
        down, up = (torch.stack([each.to(dtype) for each in maps], dim=1) for maps in (downs, ups))
        factors, weights = carry.to(dtype)[..., None, None], [each.to(dtype).unbind() for each in mixing_weights]
        firsts = [owner not in owners[:number] for number, owner in enumerate(owners)]
        # A tensor for each level: the C library keeps freed memory of up to 32 MB for the next step.
        mixed = [down.new_empty(towers, items, down.shape[-1]) for _ in range(count)]
        inside = biases.new_empty(count, towers, items, down.shape[-2])
        activated = torch.empty_like(inside, dtype=dtype)
        for level, x in enumerate(mixed):
            for owner, first, weight, values in zip(owners, firsts, weights, hidden, strict=True):
                if first:
                    torch.mul(values[:, level], weight[level], out=x[owner])
                else:
                    x[owner].addcmul_(values[:, level], weight[level])
            if level:
                x.addcmul_(mixed[level - 1], factors[level])
                _multiply(activated[level - 1] * factors[level], up[level - 1].mT, out=x, add=True)
            products = _multiply(x, down[level].mT, out=activated[level])
            torch.add(products, biases[level][:, None], out=inside[level])
            activated[level] = ACTIVATIONS[activation](inside[level])
        context.activation, context.owners, context.gated = activation, owners, gated
        context.save_for_backward(
            carry, shared, down, up, inside, activated, *mixed, *downs, *mixing_weights, *hidden
        )
        return _multiply(activated[-1], up[-1].mT, out=mixed[-1].clone(), add=True)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Any, ...]:
        carry, shared, down, up, inside, activated, *saved = context.saved_tensors
        ends = accumulate((0, *carry.shape, len(context.owners), len(context.owners)))
        mixed, downs, mixing_weights, hidden = (saved[start:end] for start, end in pairwise(ends))
        factors, weights = carry.to(down.dtype)[..., None, None], [each.to(down.dtype) for each in mixing_weights]
        grad_carry, grad_weights = torch.zeros_like(carry), [torch.empty_like(each) for each in mixing_weights]
        wanted = context.needs_input_grad[-len(hidden) :]
        grad_hidden = [torch.empty_like(each) if need else None for each, need in zip(hidden, wanted, strict=True)]
        grad_inside, grad_activated = torch.empty_like(inside), torch.empty_like(activated)
        # Tower by tower in memory, as the parameters are.
        grad_down, grad_up = (
            torch.empty_like(each.transpose(0, 1), memory_format=torch.contiguous_format).transpose(0, 1)
            for each in (down, up)
        )
        grad, last = grad.contiguous(), len(mixed) - 1
        through = _multiply(grad, up[last], out=grad_activated[last])
        for level in range(last, -1, -1):
            _multiply(grad.mT, activated[level], out=grad_up[level])
            grad_inside[level] = ACTIVATION_GRADIENTS[context.activation](through.to(inside.dtype), inside[level])
            low = grad_inside[level].to(down.dtype)
            _multiply(low.mT, mixed[level], out=grad_down[level])
            # The incoming gradient must not be overwritten.
            grad = _multiply(low, down[level], out=grad.clone() if level == last else grad, add=True)
            for owner, weight, values, grad_weight, grad_values in zip(
                context.owners, weights, hidden, grad_weights, grad_hidden, strict=True
            ):
                grad_weight[level] = (grad[owner] * values[:, level]).sum_to_size(grad_weight[level].shape)
                if grad_values is not None:
                    torch.mul(grad[owner], weight[level], out=grad_values[:, level])
            if level:
                through = _multiply(grad, up[level - 1], out=grad_activated[level - 1]) * factors[level]
                for tower in context.gated:
                    grad_carry[level, tower] = (grad[tower] * mixed[level - 1][tower]).sum()
                    grad[tower].mul_(factors[level, tower])
        # A previous state is the sum of its block's input, handled above, and output.
        grad_carry[1:] += (grad_activated * activated)[:-1].sum((2, 3))
        grad_biases = grad_inside.sum(2)
        grad_down, grad_up = grad_down.to(inside.dtype), grad_up.to(inside.dtype)
        grad_down.addcmul_(grad_biases[..., None], shared[:, :, None])
        grad_shared = torch.stack(
            [vecdot(each, x[..., None], dim=1) for each, x in zip(downs, grad_biases.unbind(1), strict=True)],
            dim=1,
        )
        grad_maps = [*grad_down.unbind(1), *grad_up.unbind(1)]
        return None, None, None, grad_carry, grad_biases, grad_shared, *grad_maps, *grad_weights, *grad_hidden


def _multiply(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """Write products of T matrices each to ``out``, or add them to it, and return it."""
    # MKL gives every thread whole products of a batch: two threads are busy with three for as long as with four.
    if out.device.type == "cpu" and out.dtype != torch.bfloat16:
        for one, other, each in zip(left, right, out, strict=True):
            each.addmm_(one, other, beta=int(add))
        return out
    return out.baddbmm_(left, right, beta=int(add))
