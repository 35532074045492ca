"""The number format of matrix products; the residual stream of an encoder stays fp32 in all of them.

``auto`` is measured, once for each store, run or captioned dataset, whose folder records the choice.
"""

import contextlib
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

#: How many times as fast as fp32 bf16 must be.
_GAIN = 1.2
#: How long products are repeated, and how often at least and at most.
_SECONDS, _LEAST, _MOST = 0.15, 3, 9
#: Largest products that are timed, in multiplications: those of more rows or larger widths compare alike.
_LARGEST = {"cpu": 2**28}
_LARGE = 2**32
_WIDTH = 1024

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(
    device: torch.device | str, requested: str, products: Sequence[Product], training: bool = False
) -> Precision:
    """Resolve the compute precision.

    Args:
        device: where the products are computed.
        requested: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``: bf16 where it computes ``products`` at least
            20% faster than fp32, else fp32.
        products: those that the computation mostly consists of; without any ``"auto"`` is fp32.
        training: whether their gradients are computed as well.

    Raises:
        ConfigError: not one of these.
    """
    if requested in _DTYPES:
        return requested  # type: ignore[return-value]
    if requested != "auto":
        raise ConfigError(f"precision {requested!r}", "auto, fp32, bf16 or fp16", "choose one of these")
    return faster(time_products(torch.device(device), products, training)) if products else "fp32"


def feed_forward(rows: int, width: int) -> Product:
    """The widest product of a transformer's layers, on that many tokens."""
    return rows, width, 4 * width


def timed_products(device: torch.device, products: Sequence[Product]) -> list[Product]:
    """The products that stand for others when these are timed: no larger than is quick."""
    most = _LARGEST.get(device.type, _LARGE)
    narrow = [(rows, min(inner, _WIDTH), min(outer, _WIDTH)) for rows, inner, outer in products]
    return [(min(rows, most // (inner * outer)), inner, outer) for rows, inner, outer in narrow]


def faster(seconds: Mapping[Precision, Sequence[float]]) -> Precision:
    """``bf16`` if it is faster by 20% in the median and in the best case of the repeats, else ``fp32``.

    On a busy machine some repeats take many times as long as others, so one of the two alone would often err.
    """
    full, low = seconds["fp32"], seconds["bf16"]
    return "bf16" if all(_GAIN * best(low) <= best(full) for best in (statistics.median, min)) else "fp32"


def time_products(
    device: torch.device, products: Sequence[Product], training: bool
) -> dict[Precision, list[float]]:
    """Seconds of every repeat of all ``timed_products``, by precision, in turns; about a fifth of a second in all.

    Weights are fp32 and cast for each product, as under autocast.
    """
    compared: tuple[Precision, ...] = ("fp32", "bf16")
    sizes = timed_products(device, products)
    weights = [torch.ones(outer, inner, device=device, requires_grad=training) for _, inner, outer in sizes]
    values = {
        precision: [
            torch.ones(rows, inner, device=device, dtype=_DTYPES[precision], requires_grad=training)
            for rows, inner, _ in sizes
        ]
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
        for precision in compared:
            seconds[precision].append(run(precision))
    return seconds


def autocast(device: torch.device | str, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Context in which matrix products run in ``precision``; nothing changes for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_DTYPES[precision])
