"""What item encoders read: the hidden states of one modality."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


class Hidden(NamedTuple):
    """Hidden states of the items that have a modality: ``values + mean``.

    Items differ little next to what all of them have in common, and a low precision would spend its digits on
    that. So values of a low precision are differences from a mean, or from anything else that all items share.

    Attributes:
        values: ``[U_m, K, D]``.
        positions: ``[U_m]``, ascending, of the items among the U distinct ones of a batch.
        mean: ``[K, D]`` fp32, or None for zeros.
    """

    values: Tensor
    positions: Tensor
    mean: Tensor | None = None

    def to(self, device: torch.device) -> "Hidden":
        """The same on a device."""
        mean = None if self.mean is None else sent(self.mean, device)
        return Hidden(sent(self.values, device), sent(self.positions, device), mean)

    def whole(self) -> Tensor:
        """The states themselves, ``[U_m, K, D]``."""
        return self.values if self.mean is None else self.values + self.mean

    def centred(self, dtype: torch.dtype) -> "Hidden":
        """The same with values of a precision: where that is a low one, as differences from a mean."""
        if self.mean is not None or self.values.dtype == dtype or not len(self.values):
            return self._replace(values=self.values.to(dtype))
        mean = self.values.detach().mean(0)
        return self._replace(values=(self.values - mean).to(dtype), mean=mean)

    def normalised(self) -> "Hidden":
        """Every state normalised over its D entries, without parameters; of differences, differences again."""
        values = layer_norm(self.whole(), self.values.shape[-1:])
        if self.mean is None:
            return self._replace(values=values)
        mean = layer_norm(self.mean, self.mean.shape[-1:])
        return self._replace(values=values - mean, mean=mean)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a GPU takes it from pinned memory while it computes."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def precision(device: torch.device) -> torch.dtype:
    """What matrices are multiplied in here: fp32, or what autocast has been told."""
    low = _has_autocast(device) and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if low else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where every operator computes in the precision of what it is given."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device) else nullcontext()


def _has_autocast(device: torch.device) -> bool:
    """Tensors without storage, as in estimates, have none."""
    return torch.amp.is_autocast_available(device.type)
