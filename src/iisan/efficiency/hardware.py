"""What a machine reaches in the work that training consists of, measured in a second or two."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from iisan.efficiency.counting import Meter, Work
from iisan.encoders.precision import choose_training_precision
from iisan.machine import processor_name
from iisan.train.setup import choose_device

#: Width of the blocks that are imitated, and tokens at once: so many that their tensors, like those of training,
#: are fresh pages of memory each time (CPU), or fill the device (GPU).
_WIDTH = 768
_TOKENS = {"cpu": 3072}
_MANY_TOKENS = 65536
#: Contents, heads, tokens and width of a head, as in a ViT of 224 pixels.
_ATTENTION = (8, 12, 197, 64)


@dataclass(frozen=True)
class Hardware:
    """What predictions of time rest on; what is not given costs nothing.

    Attributes:
        flops: operations a second in the products of a feed-forward; a product and its sum are two.
        bandwidth: bytes a second that copies of large tensors read and write, together.
        elements: numbers a second that norms, sums and activations write, in the mixture of a block.
        attention: operations a second in fused attention, its softmax included in the time.
        overhead: seconds that an operator takes however little it computes.
        name: of the device.
        precision: of the products, ``fp32`` or ``bf16``.
        device: ``cpu`` or ``cuda``; on a CPU, frozen weights stay pages of their file.
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
        """Medians of what fits into about ``seconds``, and of three repetitions at least.

        Args:
            device: ``auto``, ``cpu``, ``cuda`` or a device of torch.
            precision: ``auto``, ``fp32`` or ``bf16``.
            seconds: in all.

        Raises:
            ConfigError: a device or precision that cannot be used here.
        """
        where = choose_device(device)
        kind = choose_training_precision(where, precision, _WIDTH)
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        tokens, wide = _TOKENS.get(where.type, _MANY_TOKENS), 4 * _WIDTH
        # The residual stream and the norms stay fp32 in every precision.
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

        with torch.inference_mode():
            product = _typical(products, where, 0.5 * seconds)
            copy = _typical(lambda: target.copy_(source), where, 0.1 * seconds)
            attended = _typical(attention, where, 0.1 * seconds)
            element = _typical(passes, where, 0.2 * seconds)
        contents, heads, length, width = _ATTENTION
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else processor_name()
        threads = "" if where.type == "cuda" else f", {torch.get_num_threads()} threads"
        return cls(
            flops=2 * 2 * tokens * _WIDTH * wide / product,
            bandwidth=2 * 4 * len(source) / copy,
            elements=tokens * (2 * _WIDTH + wide) / element,
            attention=4 * contents * heads * length**2 * width / attended,
            overhead=_overhead(where, 0.1 * seconds),
            name=name + threads,
            precision=kind,
            device=where.type,
        )

    def seconds(self, work: Work) -> float:
        """How long this hardware takes for some work."""
        return (
            work.products / self.flops
            + work.attention / self.attention
            + work.elements / self.elements
            + work.operators * self.overhead
        )


def _overhead(device: torch.device, seconds: float) -> float:
    """Seconds an operator, in both passes of a network that computes next to nothing."""
    network = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(16))).to(device)
    x = torch.ones(2, 8, device=device)

    def step() -> Tensor:
        loss: Tensor = network(x).sum()
        loss.backward()
        return loss

    step()
    with Meter() as meter:
        step()
    return _typical(step, device, seconds) / meter.work.operators


def _typical(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median time of some repetitions, at least three, after one that warms up."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 4 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])
