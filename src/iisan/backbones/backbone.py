"""A backbone, frozen until it is tuned: contents in, pooled states of the wanted levels out.

Legend: n contents in the batch, S tokens, K wanted levels, D width, T blocks.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from iisan.backbones.blocks import Pool, find_blocks, pooled_states
from iisan.backbones.levels import Level
from iisan.backbones.loading import Source
from iisan.errors import BackboneError
from iisan.names import LAST

#: ``tokens`` keeps every token's state: one row per token, the contents one after the other.
POOLINGS = ("cls", "mean", "tokens")


class Backbone(nn.Module):
    """One tower with its preprocessing; use :func:`load_text` or :func:`load_image` to get one.

    Attributes:
        modality: ``"text"`` or ``"image"``.
        pooling: ``"cls"``, ``"mean"`` or ``"tokens"``.
        width: D.
        depth: T, the number of blocks.
    """

    modality: ClassVar[str]

    def __init__(self, tower: nn.Module, source: Source, pooling: str) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise BackboneError(f"pooling {pooling!r}", " or ".join(POOLINGS), "choose one of these")
        config: Any = tower.config
        self.tower = tower
        self.source = source
        self.pooling = pooling
        self.block_path = find_blocks(tower, getattr(config, "num_hidden_layers", None))
        self.depth = len(self.blocks)
        width = getattr(config, "hidden_size", None)
        if not isinstance(width, int):
            raise BackboneError(
                f"'{source.name}' ({type(tower).__name__}) has hidden_size {width!r}",
                "one width for all levels",
                "use a transformer of constant width, not a hierarchical or convolutional model",
            )
        self.width = width
        #: Modules that take part in training mode; the others stay in evaluation mode, so that frozen weights
        #: compute what a store of their states holds. Filled by ``tune``.
        self.active: list[nn.Module] = []
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of the modules that are trained."""
        super().train(False)
        for module in self.active if mode else ():
            module.train()
        return self

    @property
    def blocks(self) -> nn.ModuleList:
        """The T blocks."""
        blocks = self.tower.get_submodule(self.block_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @cached_property
    def weight_digest(self) -> str:
        """SHA-256 over the tower's parameters as they are when first asked, or before they are tuned.

        Tensors are hashed one by one and their digests sorted, so that parameter names, which change between
        versions of transformers, do not matter.
        """
        with ThreadPoolExecutor() as pool:
            digests = sorted(pool.map(_tensor_digest, self.tower.parameters()))
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the states' values, as JSON."""
        return {
            "modality": self.modality,
            "backbone": self.source.name,
            "revision": self.source.revision,
            "architecture": type(self.tower).__name__,
            "weight_digest": self.weight_digest,
            "processor_digest": self.processor_digest,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
        }

    @property
    def max_tokens(self) -> int | None:
        """Longest token sequence, special tokens included; ``None`` where contents are not cut."""
        return None

    @property
    def processor_digest(self) -> str:
        """SHA-256 over the preprocessing's settings."""
        raise NotImplementedError

    def prepare(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """Turn n contents into the tower's inputs, on the CPU."""
        raise NotImplementedError

    def sample(self) -> Any:
        """Some content, to try the tower with."""
        raise NotImplementedError

    def inputs_like(self, mask: Tensor) -> dict[str, Tensor]:
        """Inputs of n contents with the tokens of ``mask`` [n, S] (1 = real) and values that do not matter."""
        raise NotImplementedError

    def lengths(self, contents: Sequence[Any]) -> list[int]:
        """Relative cost of every content, by which they are put into batches."""
        return [1] * len(contents)

    def row_counts(self, inputs: dict[str, Tensor], rows: int) -> list[int]:
        """How many of the pooled ``rows`` each of n contents has: all equally many, but for tokens of texts."""
        contents = len(next(iter(inputs.values())))
        return [rows // contents] * contents

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """The pooling for one batch of inputs."""
        raise NotImplementedError

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states of some levels; blocks above the highest are not run.

        Args:
            inputs: what :meth:`prepare` gave, on the tower's device.
            levels: the K wanted levels.

        Returns:
            States [n, K, D] in fp32, in the order of ``levels``.
        """
        return pooled_states(self.tower, self.blocks, inputs, levels, self.pool(inputs), self.width)

    def replace_input(self, index: int, function: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Let block ``index`` (0-based) see ``function(hidden)`` in the place of its hidden states [n, S, D]."""

        def hook(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (function(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

        return self.blocks[index].register_forward_pre_hook(hook, with_kwargs=True)

    def drop_below(self, first: int) -> None:
        """Let the first ``first`` blocks pass their input on and forget their weights, for :meth:`resume`."""
        if not first:
            return
        outputs: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        with torch.no_grad():
            self(self.prepare([self.sample()]), [LAST])
        handle.remove()
        # Some models' blocks return a tuple, whose further members nobody reads.
        extra = (None,) * (len(outputs[0]) - 1) if isinstance(outputs[0], tuple) else None
        for block in self.blocks[:first]:
            block._modules.clear()
            block._parameters.clear()
            block.forward = functools.partial(_pass_on, extra)

    def resume(self, first: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """The backbone's answer from the input of block ``first`` on; the blocks below are best dropped before.

        Args:
            first: 0-based.
            hidden: hidden states h_first, [n, S, D], real tokens on the left.
            mask: [n, S], 1 for real tokens.

        Returns:
            Pooled last states [n, 1, D] in fp32.
        """
        handle = self.replace_input(first, lambda _: hidden)
        try:
            return self(self.inputs_like(mask), [LAST])
        finally:
            handle.remove()


def _pass_on(
    extra: tuple[None, ...] | None, hidden_states: Tensor, *_args: Any, **_kwargs: Any
) -> Tensor | tuple[Any, ...]:
    return hidden_states if extra is None else (hidden_states, *extra)


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()
