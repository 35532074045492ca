"""The trainable block of all side networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": nn.functional.gelu}

#: A gate's parameter is divided by this before the sigmoid (published code).
GATE_TEMPERATURE = 0.1


class SANBlock(nn.Module):
    """``x + W_up · act(W_down · x + b) + b'`` (P1 §2.1): a bottleneck of width H with a residual.

    Args:
        width: D.
        bottleneck: H.
        activation: ``relu`` or ``gelu``.
    """

    def __init__(self, width: int, bottleneck: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.activation = ACTIVATIONS[activation]
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

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
