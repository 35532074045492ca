"""Hidden states of one modality, the input of item encoders."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


class Hidden(NamedTuple):
    """Hidden states of the items that have a modality: ``values + mean``.

    Differences between items are small compared to their mean and would be lost in a low precision. So
    low-precision values are differences from a mean.

    Attributes:
        values: Differences from the mean, ``[U_m, K, D]``.
        positions: Positions ``[U_m]`` of these items among the U distinct ones of a batch, ascending.
        mean: Mean ``[K, D]`` in fp32, or None for zeros.
    """

    values: Tensor
    positions: Tensor
    mean: Tensor | None = None

    def to(self, device: torch.device) -> "Hidden":
        """Return the same states on a device."""
        return self.map(lambda tensor: sent(tensor, device))._replace(positions=sent(self.positions, device))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Hidden":
        """Apply a linear function to values and mean."""
        mean = None if self.mean is None else function(self.mean)
        return self._replace(values=function(self.values), mean=mean)

    def whole(self) -> Tensor:
        """Return the sum of values and mean, ``[U_m, K, D]``."""
        return self.values if self.mean is None else self.values + self.mean

    def centred(self, dtype: torch.dtype) -> "Hidden":
        """Return the same states with values of a dtype, centred first if the conversion rounds them."""
        if self.mean is not None:
            mean = self.mean.to(torch.promote_types(self.mean.dtype, dtype))
            return self._replace(values=self.values.to(dtype), mean=mean)
        if torch.promote_types(self.values.dtype, dtype) == dtype or not len(self.values):
            return self._replace(values=self.values.to(dtype))
        mean = self.values.detach().mean(0)
        return self._replace(values=(self.values - mean).to(dtype), mean=mean)

    def centred_on(self, mean: Tensor) -> "Hidden":
        """Return the differences of the states from a mean ``[K, D]``, in the precision of the values."""
        # The means are subtracted from each other first: a pass over all states costs as much as a product, and
        # what is left is as small as the differences between items.
        between = mean if self.mean is None else mean - self.mean
        return Hidden(self.values - between.to(self.values.dtype), self.positions)

    def normalised(self) -> "Hidden":
        """Return each state normalised over its D channels, without parameters, split as before."""
        values = layer_norm(self.whole(), self.values.shape[-1:])
        if self.mean is None:
            return self._replace(values=values)
        mean = layer_norm(self.mean, self.mean.shape[-1:])
        return self._replace(values=values - mean, mean=mean)


LevelNormKind = Literal["none", "layer", "centred"]
#: Prefix of the names of buffers, as a modality may have the name of an attribute.
_MEAN = "mean_"


class LevelNorm(nn.Module):
    """Normalisation of hidden states without trained parameters.

    Args:
        kind: ``none``, ``layer`` (see ``Hidden.normalised``), or ``centred``, of the differences from the mean of
            the states that ``measure`` was given.
        shapes: Number of levels and width ``(K, D)`` of each modality.
    """

    def __init__(self, kind: LevelNormKind, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.kind = kind
        for name, shape in shapes.items() if kind == "centred" else ():
            self.register_buffer(_MEAN + name, torch.zeros(shape))

    def measure(self, name: str, hidden: Hidden) -> None:
        """Set the mean of ``centred`` for a modality to that of some items' states."""
        dict(self.named_buffers())[_MEAN + name].copy_(hidden.whole().mean(0))

    def forward(self, states: Mapping[str, Hidden], dtype: torch.dtype) -> Mapping[str, Hidden]:
        """Normalise the states of each modality; values have a dtype, see ``Hidden.centred``."""
        means = dict(self.named_buffers())
        found = {}
        for name, hidden in states.items():
            match self.kind:
                case "none":
                    found[name] = hidden.centred(dtype)
                case "layer":
                    found[name] = hidden.normalised().centred(dtype)
                case "centred":
                    # Their mean is close to zero already.
                    normalised = hidden.centred_on(means[_MEAN + name]).normalised()
                    found[name] = normalised._replace(values=normalised.values.to(dtype))
        return found


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; copies to a GPU are asynchronous, from pinned memory."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def precision(device: torch.device, without: torch.dtype = torch.float32) -> torch.dtype:
    """Return the dtype of matrix products: that of autocast if enabled, else ``without``."""
    low = _has_autocast(device) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if low else without


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that disables autocast."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device) else nullcontext()


def _has_autocast(device: torch.device) -> bool:
    """Whether a device supports autocast; the meta device of estimates does not."""
    return torch.amp.is_autocast_available(device.type)
