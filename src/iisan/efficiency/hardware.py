"""Speed of a machine at the kinds of work that training consists of, measured in a second or two."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from iisan.efficiency.counting import Meter, Work
from iisan.encoders.precision import choose_precision, feed_forward
from iisan.machine import choose_device, device_name

#: Width of the measured blocks.
_WIDTH = 768
#: Tokens at once: tensors need new pages of memory each time as in training (CPU), or fill the device (GPU).
_CPU_TOKENS, _GPU_TOKENS = 3072, 65536
#: Images, heads, tokens and width of a head of a ViT at 224 pixels.
_ATTENTION = (8, 12, 197, 64)


@dataclass(frozen=True)
class Hardware:
    """Rates that predictions of time are based on; the defaults cost nothing.

    Attributes:
        flops: Operations per second in the products of a feed-forward layer; multiply-add counts as two.
        bandwidth: Bytes per second, read and written, of copying large tensors.
        elements: Elements per second written by norms, additions and activations, as mixed in a block.
        attention: Operations per second in fused attention, whose time includes the softmax.
        overhead: Seconds per operator, however little it computes.
        name: Name of the device.
        precision: Precision of the products, ``fp32`` or ``bf16``.
        device: ``cpu`` or ``cuda``.
    """

    flops: float
    bandwidth: float
    elements: float = float("inf")
    attention: float = float("inf")
    overhead: float = 0.0
    name: str = "hardware"
    precision: str = "fp32"
    device: str = "cpu"

    @classmethod
    def measure(cls, device: str = "auto", precision: str = "auto", seconds: float = 1.0) -> "Hardware":
        """Measure medians over about ``seconds`` in total, and at least three repetitions each.

        Raises:
            ConfigError: A device or precision that cannot be used here.
        """
        where = choose_device(device)
        tokens, wide = _CPU_TOKENS if where.type == "cpu" else _GPU_TOKENS, 4 * _WIDTH
        kind = choose_precision(where, precision, [feed_forward(tokens, _WIDTH)], training=True)
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        # The residual stream and the norms are fp32 in every precision.
        stream = torch.ones(tokens, _WIDTH, device=where)
        hidden = torch.ones(tokens, wide, dtype=dtype, device=where)
        up = torch.ones(wide, _WIDTH, dtype=dtype, device=where)
        bias = torch.zeros(wide, dtype=dtype, device=where)
        narrow = stream.to(dtype)
        queries = torch.ones(_ATTENTION, dtype=dtype, device=where)
        source = torch.ones(2**25, device=where)
        target = torch.empty_like(source)

        def products() -> None:
            functional.linear(narrow, up, bias)
            functional.linear(hidden, up.T, bias[:_WIDTH])

        def passes() -> None:
            functional.layer_norm(stream, (_WIDTH,))
            torch.add(stream, stream)
            functional.gelu(hidden)

        def attention() -> None:
            functional.scaled_dot_product_attention(queries, queries, queries)

        images, heads, length, width = _ATTENTION
        threads = "" if where.type == "cuda" else f", {torch.get_num_threads()} threads"
        with torch.inference_mode():
            rates = {
                "flops": 2 * 2 * tokens * _WIDTH * wide / _typical(products, where, 0.5 * seconds),
                "bandwidth": 2 * source.nbytes / _typical(lambda: target.copy_(source), where, 0.1 * seconds),
                "attention": 4 * images * heads * length**2 * width / _typical(attention, where, 0.1 * seconds),
                "elements": tokens * (2 * _WIDTH + wide) / _typical(passes, where, 0.2 * seconds),
            }
        rates["overhead"] = _overhead(where, 0.1 * seconds)
        return cls(**rates, name=device_name(where) + threads, precision=kind, device=where.type)

    def seconds(self, work: Work) -> float:
        """Predicted time of some work."""
        return (
            work.products / self.flops
            + work.attention / self.attention
            + work.elements / self.elements
            + work.operators * self.overhead
        )


def _overhead(device: torch.device, seconds: float) -> float:
    """Seconds per operator, in both passes of a network that computes next to nothing."""
    network = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(16))).to(device)
    x = torch.ones(2, 8, device=device)

    def step() -> None:
        network(x).sum().backward()

    step()
    with Meter() as meter:
        step()
    return _typical(step, device, seconds) / meter.work.operators


def _typical(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median time of at least three repetitions, after one to warm up."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 4 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])
