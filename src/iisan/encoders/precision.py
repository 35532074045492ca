"""The number format an encoder computes in; its residual stream stays fp32 in all of them."""

import contextlib
from typing import Literal, TypeAlias

import torch

from iisan.errors import ConfigError

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

#: Width from which bf16 pays in training on a processor.
_WIDE = 256

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(device: torch.device | str, requested: str = "auto") -> Precision:
    """Resolve the compute precision for a device.

    Args:
        device: where the encoder runs.
        requested: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``: bf16 where the hardware multiplies it
            natively (AMX or AVX512-BF16 processors, GPUs of compute capability 8 and later), else fp32.

    Raises:
        ConfigError: not one of these.
    """
    if requested in ("fp32", "bf16", "fp16"):
        return requested  # type: ignore[return-value]
    if requested != "auto":
        raise ConfigError(f"precision {requested!r}", "auto, fp32, bf16 or fp16", "choose one of these")
    return "bf16" if _multiplies_bf16(torch.device(device)) else "fp32"


def choose_training_precision(device: torch.device | str, requested: str, width: int) -> Precision:
    """The same for training, where on a processor ``"auto"`` is bf16 only for states of width 256 and more.

    Below, casts of weights, activations and gradients cost more than the products save: on two threads of a
    processor with AVX512-BF16 a step of full fine-tuning took 0.72 s in bf16 and 0.45 s in fp32 at width 64, and
    one of side networks 0.147 s and 0.160 s at width 768.

    Args:
        device: where the network is trained.
        requested: as above.
        width: of the widest states; 0 for ids.
    """
    narrow = torch.device(device).type == "cpu" and width < _WIDE
    return choose_precision(device, "fp32" if requested == "auto" and narrow else requested)


def autocast(device: torch.device | str, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Context in which matrix products run in ``precision``; nothing changes for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_AUTOCAST_DTYPES[precision])


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
