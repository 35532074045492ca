"""The trainable block of all side networks."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from iisan.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": nn.functional.gelu}

#: A gate's parameter is divided by this before the sigmoid (published code).
GATE_TEMPERATURE = 0.1


#: Standard deviation of the initial weights of a SAN block (published code).
INITIAL_STD = 0.01


class PHMLinear(nn.Module):
    """A linear map whose weight is a sum of n Kronecker products, ``Σ A_i ⊗ B_i`` (parameterised hypercomplex).

    Args:
        width_in: D_in, a multiple of n.
        width_out: D_out, a multiple of n.
        n: products; A is ``[n, n, n]``, B is ``[n, D_out / n, D_in / n]``.

    Raises:
        ConfigError: a width that n does not divide.
    """

    def __init__(self, width_in: int, width_out: int, n: int) -> None:
        super().__init__()
        if width_in % n or width_out % n:
            raise ConfigError(
                f"items.phm {n} with blocks between widths {width_in} and {width_out}",
                "a number that divides both",
                "choose items.phm and items.bottleneck so that it does",
            )
        # Each entry of the weight is a sum of n products, so it starts with the deviation INITIAL_STD.
        self.rules = nn.Parameter(torch.randn(n, n, n) / n**0.5)
        self.factors = nn.Parameter(torch.randn(n, width_out // n, width_in // n) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(width_out))

    @property
    def weight(self) -> Tensor:
        """``[D_out, D_in]``."""
        n, rows, columns = self.factors.shape
        return torch.einsum("iab,icd->acbd", self.rules, self.factors).reshape(n * rows, n * columns)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D_in] -> [..., D_out]``."""
        return nn.functional.linear(x, self.weight, self.bias)


class LowRankLinear(nn.Module):
    """A linear map whose weight is a product of two thin matrices.

    Args:
        width_in: D_in.
        width_out: D_out.
        rank: columns of the first, rows of the second.
    """

    def __init__(self, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(width_out, rank) / rank**0.5)
        self.right = nn.Parameter(torch.randn(rank, width_in) * INITIAL_STD)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D_in] -> [..., D_out]``."""
        return nn.functional.linear(x @ self.right.T, self.left, self.bias)


def _dense(width_in: int, width_out: int) -> nn.Linear:
    layer = nn.Linear(width_in, width_out)
    nn.init.normal_(layer.weight, std=INITIAL_STD)
    nn.init.zeros_(layer.bias)
    return layer


class SANBlock(nn.Module):
    """``x + W_up · act(W_down · x + b) + b'`` (P1 §2.1): a bottleneck of width H with a residual.

    Args:
        width: D.
        bottleneck: H.
        activation: ``relu`` or ``gelu``.
        kind: of the two weights: ``adapter`` (dense), ``phm`` or ``low-rank`` (P1 table 6).
        phm: n of ``phm``.
        rank: of ``low-rank``.
    """

    def __init__(
        self,
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
                make: Callable[[int, int], nn.Module] = _dense
            case "phm":
                make = partial(PHMLinear, n=phm)
            case "low-rank":
                make = partial(LowRankLinear, rank=rank)
        self.down = make(width, bottleneck)
        self.up = make(bottleneck, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """``[U, D] -> [U, D]``."""
        return x + self.up(self.activation(self.down(x)))


def gate(parameter: Tensor) -> Tensor:
    """Value of a scalar gate between 0 and 1; 0.5 for the initial parameter 0."""
    return torch.sigmoid(parameter / GATE_TEMPERATURE)


def linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear map with Xavier-normal weights and zero biases, as everywhere outside of SAN blocks."""
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
