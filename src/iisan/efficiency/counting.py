"""What computing takes, counted operator by operator; numbers are not needed, the shapes of tensors suffice."""

import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
#: Fused attention on a CPU, which FlopCounterMode does not know.
_FUSED: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: (
        flop_counter.sdpa_flop_count(query, key, value)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        flop_counter.sdpa_backward_flop_count(grad, query, key, value)
    ),
}


def weightless() -> AbstractContextManager[Any]:
    """Where tensors have shapes but no numbers, and choose a CPU's operators (the meta device has others)."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class Work:
    """What some operators add up to.

    Attributes:
        products: floating-point operations in products with weights.
        attention: floating-point operations in products of activations with each other.
        elements: numbers that all other operators write.
        operators: how many were started.
    """

    products: float = 0.0
    attention: float = 0.0
    elements: float = 0.0
    operators: float = 0.0

    @property
    def flops(self) -> float:
        """All floating-point operations in products."""
        return self.products + self.attention

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * value for value in vars(self).values()))


class Meter(TorchDispatchMode):
    """Measures the operators that run while it is entered, those of a backward pass included.

    Attributes:
        held: bytes of the tensors made meanwhile that are still alive.
        peak: the most that ``held`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._elements = self._operators = 0
        self._counter = flop_counter.FlopCounterMode(display=False, custom_mapping=_FUSED)

    def __enter__(self) -> "Meter":
        self._counter.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._counter.__exit__(*error)

    @property
    def work(self) -> Work:
        """What has run so far."""
        flops = self._counter.get_flop_counts().get("Global", {})
        attention = sum(n for of, n in flops.items() if "bmm" in str(of) or "attention" in str(of))
        return Work(sum(flops.values()) - attention, attention, self._elements, self._operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count it."""
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out  # a question for a tensor's device
        self._operators += 1
        given = {_storage(each)._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        product = func._overloadpacket in self._counter.flop_registry
        for each in tree_leaves(out):
            if not isinstance(each, Tensor):
                continue
            fresh = _storage(each)._cdata not in given
            if not product and (fresh or func._schema.is_mutable):
                self._elements += each.numel()
            if fresh:
                size = _storage(each).nbytes()
                self.held += size
                self.peak = max(self.peak, self.held)
                weakref.finalize(_storage(each), self._free, size)
        return out

    def _free(self, size: int) -> None:
        self.held -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
