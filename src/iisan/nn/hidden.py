"""Hidden states of one modality, the input of item encoders."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


class Hidden(NamedTuple):
    """Hidden states of the items that have a modality: ``values + mean``.

    Differences between items are small next to what all items share, and a low precision would spend its digits on
    the latter. So values of a low precision are differences from a mean, or from anything else that is shared.

    Attributes:
        values: Differences from the mean, ``[U_m, K, D]``.
        positions: Positions ``[U_m]`` of these items among the U distinct ones of a batch, ascending.
        mean: Mean ``[K, D]`` in fp32, or None for zeros.
    """

    values: Tensor
    positions: Tensor
    mean: Tensor | None = None

    def to(self, device: torch.device) -> "Hidden":
        """Return the same on a device."""
        mean = None if self.mean is None else sent(self.mean, device)
        return Hidden(sent(self.values, device), sent(self.positions, device), mean)

    def whole(self) -> Tensor:
        """Return the states themselves, ``[U_m, K, D]``."""
        return self.values if self.mean is None else self.values + self.mean

    def centred(self, dtype: torch.dtype) -> "Hidden":
        """Return the same states with values of a precision; rounded ones are differences from a mean."""
        if self.mean is not None:
            mean = self.mean.to(torch.promote_types(self.mean.dtype, dtype))
            return self._replace(values=self.values.to(dtype), mean=mean)
        if torch.promote_types(self.values.dtype, dtype) == dtype or not len(self.values):
            return self._replace(values=self.values.to(dtype))
        mean = self.values.detach().mean(0)
        return self._replace(values=(self.values - mean).to(dtype), mean=mean)

    def normalised(self) -> "Hidden":
        """Return every state normalised over its D channels, without parameters; differences stay differences."""
        values = layer_norm(self.whole(), self.values.shape[-1:])
        if self.mean is None:
            return self._replace(values=values)
        mean = layer_norm(self.mean, self.mean.shape[-1:])
        return self._replace(values=values - mean, mean=mean)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU it is copied from pinned memory while that computes."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def precision(device: torch.device, without: torch.dtype = torch.float32) -> torch.dtype:
    """Return the precision of matrix products here: that of autocast, or the one ``without`` autocast."""
    low = _has_autocast(device) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if low else without


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which every operator computes in the precision of its arguments."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device) else nullcontext()


def _has_autocast(device: torch.device) -> bool:
    """Tensors without storage, as in estimates, have no autocast."""
    return torch.amp.is_autocast_available(device.type)
