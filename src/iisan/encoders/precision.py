"""The precision of matrix products; the residual stream of an encoder is always fp32.

``auto`` is resolved by measurement, once per store, run or captioned dataset, which records the choice.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch.nn.functional import linear

from iisan.errors import ConfigError

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
#: A matrix product ``[rows, input width] @ [input width, output width]``.
Product: TypeAlias = tuple[int, int, int]

#: Required speed of bf16 relative to fp32.
_GAIN = 1.2
#: Time limit of a measurement, minimum and maximum number of repeats.
_SECONDS, _LEAST, _MOST = 0.15, 3, 9
#: Limits of the timed products: multiplications on a CPU and on other devices, and width. The ratio of the times
#: of larger products is about the same.
_LARGEST = {"cpu": 2**28}
_LARGE = 2**32
_WIDTH = 1024

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(
    device: torch.device | str, requested: str, products: Sequence[Product], training: bool = False
) -> Precision:
    """Resolve the compute precision.

    Args:
        device: Device of the computation.
        requested: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``: bf16 if it computes ``products`` at least 20%
            faster than fp32, else fp32.
        products: Shapes of the dominant products; ``"auto"`` is fp32 if there are none.
        training: Whether gradients are computed as well.

    Raises:
        ConfigError: Any other value.
    """
    if requested in _DTYPES:
        return requested  # type: ignore[return-value]
    if requested != "auto":
        raise ConfigError(f"precision {requested!r}", "auto, fp32, bf16 or fp16", "choose one of these")
    return faster(time_products(torch.device(device), products, training)) if products else "fp32"


def feed_forward(rows: int, width: int) -> Product:
    """Return the widest product of a transformer layer, for a number of tokens."""
    return rows, width, 4 * width


def timed_products(device: torch.device, products: Sequence[Product]) -> list[Product]:
    """Return the products to be timed: the given ones, reduced to a size that is fast to compute."""
    most = _LARGEST.get(device.type, _LARGE)
    narrow = [(rows, min(inner, _WIDTH), min(outer, _WIDTH)) for rows, inner, outer in products]
    return [(min(rows, most // (inner * outer)), inner, outer) for rows, inner, outer in narrow]


def faster(seconds: Mapping[Precision, Sequence[float]]) -> Precision:
    """Return ``bf16`` if both its median and its minimum time are better by 20%, else ``fp32``.

    On a busy machine, either statistic alone is unreliable.
    """
    full, low = seconds["fp32"], seconds["bf16"]
    return "bf16" if all(_GAIN * best(low) <= best(full) for best in (statistics.median, min)) else "fp32"


def time_products(
    device: torch.device, products: Sequence[Product], training: bool
) -> dict[Precision, list[float]]:
    """Return the seconds of alternating repeats of all ``timed_products`` in fp32 and bf16; takes about 0.2 s.

    Weights are fp32 and cast for each product, as under autocast.
    """
    sizes = timed_products(device, products)
    ones = functools.partial(torch.ones, device=device, requires_grad=training)
    weights = [ones(outer, inner) for _, inner, outer in sizes]
    compared: tuple[Precision, ...] = ("fp32", "bf16")
    values = {
        precision: [ones(rows, inner, dtype=_DTYPES[precision]) for rows, inner, _ in sizes]
        for precision in compared
    }

    def run(precision: Precision) -> float:
        started = time.perf_counter()
        for x, weight in zip(values[precision], weights, strict=True):
            output = linear(x, weight.to(x.dtype))
            if training:
                torch.autograd.grad(output.square().sum(), (x, weight))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for precision in compared:
        run(precision)  # the first call of a kernel prepares it
    seconds: dict[Precision, list[float]] = {precision: [] for precision in compared}
    started = time.perf_counter()
    for repeat in range(_MOST):
        if repeat >= _LEAST and time.perf_counter() - started > _SECONDS:
            break
        for precision, measured in seconds.items():
            measured.append(run(precision))
    return seconds


def autocast(device: torch.device | str, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Return a context in which matrix products run in ``precision``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_DTYPES[precision])
