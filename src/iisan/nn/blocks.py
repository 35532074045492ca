"""SAN blocks, the trainable part of every side network (IISAN, sec. 2.1)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iisan.errors import ConfigError

#: Activation functions inside a SAN block.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": nn.functional.gelu}

#: Standard deviation of the initial weights of a SAN block (published code).
INITIAL_STD = 0.01


class DenseMaps(nn.Module):
    """K affine maps of width D_in to D_out with unconstrained weights."""

    def __init__(self, count: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width_out, width_in) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(count, width_out))


class PHMMaps(nn.Module):
    """K affine maps whose weights are sums of n Kronecker products, ``Σ A_i ⊗ B_i`` (parameterised hypercomplex).

    A is ``[n, n, n]``, B is ``[n, D_out / n, D_in / n]``.

    Raises:
        ConfigError: If n does not divide both widths.
    """

    def __init__(self, count: int, width_in: int, width_out: int, n: int) -> None:
        super().__init__()
        if width_in % n or width_out % n:
            raise ConfigError(
                f"items.phm {n} with blocks between widths {width_in} and {width_out}",
                "a number that divides both",
                "choose items.phm and items.bottleneck so that it does",
            )
        # Each element of a weight is a sum of n products, so its initial standard deviation is INITIAL_STD.
        self.rules = nn.Parameter(torch.randn(count, n, n, n) / n**0.5)
        self.factors = nn.Parameter(torch.randn(count, n, width_out // n, width_in // n) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(count, width_out))

    @property
    def weight(self) -> Tensor:
        """Weights of all maps, ``[K, D_out, D_in]``."""
        count, n, rows, columns = self.factors.shape
        return torch.einsum("kiab,kicd->kacbd", self.rules, self.factors).reshape(count, n * rows, n * columns)


class LowRankMaps(nn.Module):
    """K affine maps whose weights are products of matrices ``[D_out, rank]`` and ``[rank, D_in]``."""

    def __init__(self, count: int, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(count, width_out, rank) / rank**0.5)
        self.right = nn.Parameter(torch.randn(count, rank, width_in) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(count, width_out))

    @property
    def weight(self) -> Tensor:
        """Weights of all maps, ``[K, D_out, D_in]``."""
        return self.left @ self.right


class SANBlocks(nn.Module):
    """The K SAN blocks of a tower, residual bottlenecks ``x + W_up · act(W_down · x + b) + b'``.

    Args:
        count: Number of blocks, K.
        width: Tower width, D.
        bottleneck: Bottleneck width, H.
        activation: Name of an activation function in ``ACTIVATIONS``.
        kind: Parameterisation of the weights: ``dense``, ``phm`` or ``low-rank`` (IISAN, table 6).
        phm: Number of Kronecker products of a ``phm`` weight.
        rank: Rank of a ``low-rank`` weight.
    """

    def __init__(
        self,
        count: int,
        width: int,
        bottleneck: int,
        activation: str = "relu",
        kind: Literal["dense", "phm", "low-rank"] = "dense",
        phm: int = 8,
        rank: int = 1,
    ) -> None:
        super().__init__()

        def maps(width_in: int, width_out: int) -> nn.Module:
            match kind:
                case "dense":
                    return DenseMaps(count, width_in, width_out)
                case "phm":
                    return PHMMaps(count, width_in, width_out, phm)
                case "low-rank":
                    return LowRankMaps(count, width_in, width_out, rank)

        self.count = count
        self.bottleneck = bottleneck
        self.down: Any = maps(width, bottleneck)
        self.up: Any = maps(bottleneck, width)
        self.activation = activation

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Apply the block of a level, ``[U, D] -> [U, D]``."""
        inside = nn.functional.linear(x, self.down.weight[level], self.down.bias[level])
        activated = ACTIVATIONS[self.activation](inside)
        return x + nn.functional.linear(activated, self.up.weight[level], self.up.bias[level])


def linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear layer with Xavier-normal weights and zero biases, the initialisation outside SAN blocks."""
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
