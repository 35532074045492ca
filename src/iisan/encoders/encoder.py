"""An encoder, frozen until it is tuned: contents in, pooled states of the wanted levels out.

Legend: n contents in the batch, S tokens, K wanted levels, D width, T blocks.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from iisan.encoders.blocks import Pool, find_blocks, pooled_states
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, Source, module_weights
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import LAST

_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

#: Entries of a configuration that say whose it is, which version wrote it and what its classes are called.
_NAMES = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",  # stands in the settings, where it is not plain fp32
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
}


class Encoder(nn.Module):
    """One tower with its preprocessing; use :func:`load_text` and its siblings for other kinds to get one.

    Attributes:
        kind: of the contents it reads: ``"text"``, ``"image"``, ``"audio"`` or ``"video"``.
        poolings: what it can make of a content's tokens. ``tokens`` keeps every token's state: one row per token,
            the contents one after the other.
        pooling: the one that is used.
        width: D.
        depth: T, the number of blocks.
        parameter_count: of the tower as it was loaded, before it is tuned.
    """

    kind: ClassVar[str]
    poolings: ClassVar[tuple[str, ...]]

    def __init__(self, tower: nn.Module, source: Source, pooling: str, loading: Loading = PLAIN) -> None:
        super().__init__()
        if pooling not in self.poolings:
            raise EncoderError(
                f"pooling {pooling!r} of {self.kind}", " or ".join(self.poolings), "choose one of these"
            )
        config: Any = tower.config
        self.tower = tower
        self.source = source
        self.pooling = pooling
        self.loading = loading
        # Convolutional models are lists of stages.
        stages = len(getattr(config, "depths", ())) or None
        self.block_path = find_blocks(tower, getattr(config, "num_hidden_layers", None) or stages)
        self.depth = len(self.blocks)
        self.width = _width(tower, source)
        self.parameter_count = sum(map(_size, tower.parameters()))
        #: Modules that take part in training mode; the others stay in evaluation mode, so that frozen weights
        #: compute what a store of their states holds. Filled by ``tune``.
        self.active: list[nn.Module] = []
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode of the modules that are trained; batch normalisation keeps the statistics it came with.

        They are in no checkpoint, and moving they would leave those that a store was made with.
        """
        super().train(False)
        for module in self.active if mode else ():
            module.train()
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @property
    def blocks(self) -> nn.ModuleList:
        """The T blocks."""
        blocks = self.tower.get_submodule(self.block_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @cached_property
    def weight_digest(self) -> str:
        """SHA-256 over the tower's parameters as they are when first asked, or before they are tuned."""
        return weight_digest(self.tower, in_turn=self.loading.placed)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the states' values, as JSON."""
        return {
            "kind": self.kind,
            "encoder": self.source.full_name,
            "revision": self.source.revision,
            "architecture": type(self.tower).__name__,
            "weight_digest": self.weight_digest,
            "config_digest": config_digest(self.tower.config),
            "processor_digest": self.processor_digest,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            **self._unusual,
        }

    @property
    def _unusual(self) -> dict[str, str]:
        """How the weights are held, where that is not plain fp32."""
        tower: Any = self.tower
        held = {"dtype": _DTYPE_NAMES.get(tower.dtype, str(tower.dtype)), "quantise": self.loading.quantise}
        return {name: value for name, value in held.items() if value not in (None, "fp32")}

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
        """Inputs of n contents with the tokens of ``mask`` [n, S] (1 = real) and values that do not matter.

        Here the sample's, for kinds whose contents all have equally many tokens.
        """
        return {
            name: tensor.to(mask.device).expand(len(mask), *tensor.shape[1:])
            for name, tensor in self._sample_inputs.items()
        }

    @cached_property
    def _sample_inputs(self) -> dict[str, Tensor]:
        return self.prepare([self.sample()])

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
        if self.loading.placed:
            # Wherever the caller computes: the tower begins where its first weights in memory lie.
            entry = next(weight.device for weight in self.tower.parameters() if not weight.is_meta)
            inputs = {name: tensor.to(entry) for name, tensor in inputs.items()}
        return pooled_states(self.tower, self.blocks, inputs, levels, self.pool(inputs), self.width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        """What moves or casts a module; where the parts of a sharded or quantised tower lie is left as it is."""
        return self if self.loading.placed else super()._apply(fn, recurse)

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
        """The encoder's answer from the input of block ``first`` on; the blocks below are best dropped before.

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


def _size(weight: Tensor) -> int:
    """Numbers in a weight; two of them lie packed in each byte of one that bitsandbytes holds in four bits."""
    return math.prod(getattr(getattr(weight, "quant_state", weight), "shape", weight.shape))


def _width(tower: Any, source: Source) -> int:
    """D: the width of every state, or of the last stage of a convolutional model."""
    width = getattr(tower.config, "hidden_size", None)
    if width is None:
        width = (getattr(tower.config, "hidden_sizes", None) or [None])[-1]
    if not isinstance(width, int):
        raise EncoderError(
            f"'{source.name}' ({type(tower).__name__}) has hidden_size {width!r}",
            "one width for all levels, or hidden_sizes of stages",
            "use a transformer of constant width, a ConvNeXt or a ResNet",
        )
    return width


def _pass_on(
    extra: tuple[None, ...] | None, hidden_states: Tensor, *_args: Any, **_kwargs: Any
) -> Tensor | tuple[Any, ...]:
    return hidden_states if extra is None else (hidden_states, *extra)


def weight_digest(model: nn.Module, in_turn: bool = False) -> str:
    """SHA-256 over a model's parameters.

    Tensors are hashed one by one, in the order in which the model lists them: their places matter, and their
    names, which change between versions of transformers, do not. The running statistics of batch normalisation
    count as parameters. Of a quantised model the packed integers are hashed as they lie in memory.

    Args:
        model: whole, quantised or spread.
        in_turn: hash one tensor after the other: what lies on the disk must not come into memory all at once.
    """
    with ThreadPoolExecutor() as pool:
        each = map if in_turn else pool.map
        digests = list(each(_tensor_digest, module_weights(model)))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def config_digest(config: Any) -> str:
    """SHA-256 over the entries of a model's (or its generation's) configuration that may decide values."""

    def without_names(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entries.items() if name not in _NAMES}

    return sha256_json(json.loads(config.to_json_string(use_diff=False), object_hook=without_names))


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()
