"""The trainable block of all side networks."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from iisan.errors import ConfigError


class Activation(NamedTuple):
    """A function of single numbers.

    Attributes:
        forward: ``x`` -> its values.
        backward: the gradient of these, and ``x`` -> the gradient of ``x``.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS = {
    "relu": Activation(torch.relu, lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0)),
    "gelu": Activation(nn.functional.gelu, torch.ops.aten.gelu_backward),
}

#: A gate's parameter is divided by this before the sigmoid (published code).
GATE_TEMPERATURE = 0.1


#: Standard deviation of the initial weights of a SAN block (published code).
INITIAL_STD = 0.01


class DenseMaps(nn.Module):
    """K affine maps, each with a weight of its own.

    Args:
        count: K.
        width_in: D_in.
        width_out: D_out.
    """

    def __init__(self, count: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width_out, width_in) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(count, width_out))


class PHMMaps(nn.Module):
    """K affine maps whose weights are sums of n Kronecker products, ``Σ A_i ⊗ B_i`` (parameterised hypercomplex).

    Args:
        count: K.
        width_in: D_in, a multiple of n.
        width_out: D_out, a multiple of n.
        n: products; A is ``[n, n, n]``, B is ``[n, D_out / n, D_in / n]``.

    Raises:
        ConfigError: a width that n does not divide.
    """

    def __init__(self, count: int, width_in: int, width_out: int, n: int) -> None:
        super().__init__()
        if width_in % n or width_out % n:
            raise ConfigError(
                f"items.phm {n} with blocks between widths {width_in} and {width_out}",
                "a number that divides both",
                "choose items.phm and items.bottleneck so that it does",
            )
        # Each entry of a weight is a sum of n products, so it starts with the deviation INITIAL_STD.
        self.rules = nn.Parameter(torch.randn(count, n, n, n) / n**0.5)
        self.factors = nn.Parameter(torch.randn(count, n, width_out // n, width_in // n) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(count, width_out))

    @property
    def weight(self) -> Tensor:
        """``[K, D_out, D_in]``."""
        count, n, rows, columns = self.factors.shape
        return torch.einsum("kiab,kicd->kacbd", self.rules, self.factors).reshape(count, n * rows, n * columns)


class LowRankMaps(nn.Module):
    """K affine maps whose weights are products of two thin matrices.

    Args:
        count: K.
        width_in: D_in.
        width_out: D_out.
        rank: columns of the first, rows of the second.
    """

    def __init__(self, count: int, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(count, width_out, rank) / rank**0.5)
        self.right = nn.Parameter(torch.randn(count, rank, width_in) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(count, width_out))

    @property
    def weight(self) -> Tensor:
        """``[K, D_out, D_in]``."""
        return self.left @ self.right


class SANBlocks(nn.Module):
    """The SAN blocks of a tower, ``x + W_up · act(W_down · x + b) + b'`` (P1 §2.1): bottlenecks with a residual.

    They are parameters alone: :mod:`iisan.nn.towers` computes with all of a tower's blocks at once.

    Args:
        count: K.
        width: D.
        bottleneck: H.
        activation: ``relu`` or ``gelu``.
        kind: of the weights: ``adapter`` (dense), ``phm`` or ``low-rank`` (P1 table 6).
        phm: n of ``phm``.
        rank: of ``low-rank``.
    """

    def __init__(
        self,
        count: int,
        width: int,
        bottleneck: int,
        activation: str = "relu",
        kind: Literal["adapter", "phm", "low-rank"] = "adapter",
        phm: int = 8,
        rank: int = 1,
    ) -> None:
        super().__init__()
        match kind:
            case "adapter":
                make: Callable[[int, int, int], nn.Module] = DenseMaps
            case "phm":
                make = partial(PHMMaps, n=phm)
            case "low-rank":
                make = partial(LowRankMaps, rank=rank)
        self.count = count
        self.bottleneck = bottleneck
        self.down: Any = make(count, width, bottleneck)
        self.up: Any = make(count, bottleneck, width)
        self.activation = ACTIVATIONS[activation]


def gate(parameter: Tensor) -> Tensor:
    """Value of a scalar gate between 0 and 1; 0.5 for the initial parameter 0."""
    return torch.sigmoid(parameter / GATE_TEMPERATURE)


def linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear map with Xavier-normal weights and zero biases, as everywhere outside of SAN blocks."""
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
