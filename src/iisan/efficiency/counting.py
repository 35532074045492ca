"""Counting operations operator by operator, for which the shapes of tensors suffice."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
#: Fused attention on a CPU, which FlopCounterMode does not count.
_FUSED: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: (
        flop_counter.sdpa_flop_count(query, key, value)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        flop_counter.sdpa_backward_flop_count(grad, query, key, value)
    ),
}


def weightless() -> FakeTensorMode:
    """Context in which tensors have shapes but no data, and use the operators of a CPU, unlike the meta device."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class Work:
    """Work of some operators.

    Attributes:
        products: Floating-point operations in products with weights.
        attention: Floating-point operations in products of activations with each other.
        elements: Number of elements that all other operators write.
        operators: Number of operators started.
    """

    products: float = 0.0
    attention: float = 0.0
    elements: float = 0.0
    operators: float = 0.0

    @property
    def flops(self) -> float:
        """Floating-point operations in all products."""
        return self.products + self.attention

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * value for value in vars(self).values()))


class Meter(TorchDispatchMode):
    """Context that counts the operators run in it, including those of a backward pass.

    Attributes:
        held: Bytes of the tensors made in it that are still alive.
        peak: Maximum of ``held``.
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
        """Work so far."""
        flops = self._counter.get_flop_counts().get("Global", {})
        attention = sum(n for of, n in flops.items() if "bmm" in str(of) or "attention" in str(of))
        return Work(sum(flops.values()) - attention, attention, self._elements, self._operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count it."""
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out  # only asks for the device of a tensor
        self._operators += 1
        inputs = tree_leaves((args, kwargs))
        given = {each.untyped_storage()._cdata for each in inputs if isinstance(each, Tensor)}
        product = func._overloadpacket in self._counter.flop_registry
        for each in tree_leaves(out):
            if not isinstance(each, Tensor):
                continue
            storage = each.untyped_storage()
            fresh = storage._cdata not in given
            if not product and (fresh or func._schema.is_mutable):
                self._elements += each.numel()
            if fresh:
                self.held += storage.nbytes()
                self.peak = max(self.peak, self.held)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, size: int) -> None:
        self.held -= size
