"""The base class of all encoders: contents in, pooled hidden states of the requested levels out.

Legend: n contents in a batch, S tokens, K requested levels, D width, T layers.
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

from iisan.encoders.hub import Source
from iisan.encoders.layers import Pool, find_layers, pooled_states
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, module_weights
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import LAST

_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

#: Entries of a model's configuration that cannot change its outputs: names, versions, classes.
_NAMES = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",  # recorded in the settings unless it is fp32
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
}


class Encoder(nn.Module):
    """A pretrained model with its preprocessing, frozen until it is tuned; see :func:`load_text` and its siblings.

    Attributes:
        kind: Kind of its contents: ``"text"``, ``"image"``, ``"audio"`` or ``"video"``.
        poolings: Supported poolings. ``tokens`` keeps the state of every token: one row per token, content after
            content.
        pooling: The pooling in use.
        width: Width D of the hidden states.
        depth: Number of layers T.
        parameter_count: Number of parameters of the model as loaded, before tuning.
    """

    kind: ClassVar[str]
    poolings: ClassVar[tuple[str, ...]]

    def __init__(self, model: nn.Module, source: Source, pooling: str, loading: Loading = PLAIN) -> None:
        super().__init__()
        if pooling not in self.poolings:
            raise EncoderError(
                f"pooling {pooling!r} of {self.kind}", " or ".join(self.poolings), "choose one of these"
            )
        config: Any = model.config
        self.tower = model  # the name is part of the parameters' names in checkpoints
        self.source = source
        self.pooling = pooling
        self.loading = loading
        # Convolutional models are lists of stages.
        stages = len(getattr(config, "depths", ())) or None
        self.layer_path = find_layers(model, getattr(config, "num_hidden_layers", None) or stages)
        self.depth = len(self.layers)
        self.width = _width(model, source)
        self.parameter_count = sum(map(_size, model.parameters()))
        #: Modules that follow ``train()``, filled by ``tune``; all others stay in evaluation mode, so that frozen
        #: weights compute the states that a store holds.
        self.active: list[nn.Module] = []
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode of the trained modules; batch normalisation always uses its pretrained statistics.

        Checkpoints do not contain these statistics, and a store was computed with the pretrained ones.
        """
        super().train(False)
        for module in self.active if mode else ():
            module.train()
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    @property
    def layers(self) -> nn.ModuleList:
        """The T layers."""
        layers = self.tower.get_submodule(self.layer_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @cached_property
    def weight_digest(self) -> str:
        """SHA-256 of the parameters at the first access, which is before tuning."""
        return weight_digest(self.tower, sequential=self.loading.placed)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that the states' values depend on, as JSON."""
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
            **self._weight_format,
        }

    @property
    def _weight_format(self) -> dict[str, str]:
        """Precision and quantisation of the weights; empty for plain fp32."""
        model: Any = self.tower
        formats = {"dtype": _DTYPE_NAMES.get(model.dtype, str(model.dtype)), "quantise": self.loading.quantise}
        return {name: value for name, value in formats.items() if value not in (None, "fp32")}

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens, special tokens included; ``None`` if contents are not truncated."""
        return None

    @property
    def processor_digest(self) -> str:
        """SHA-256 of the preprocessing settings."""
        raise NotImplementedError

    def prepare(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """Preprocess n contents into model inputs, on the CPU."""
        raise NotImplementedError

    def sample(self) -> Any:
        """Return an arbitrary content for a trial forward pass."""
        raise NotImplementedError

    def inputs_like(self, mask: Tensor) -> dict[str, Tensor]:
        """Return inputs of n contents with the token ``mask`` [n, S] (1 = real) and arbitrary values.

        The default repeats the sample, for kinds whose contents all have the same number of tokens.
        """
        return {
            name: tensor.to(mask.device).expand(len(mask), *tensor.shape[1:])
            for name, tensor in self._sample_inputs.items()
        }

    @cached_property
    def _sample_inputs(self) -> dict[str, Tensor]:
        return self.prepare([self.sample()])

    def lengths(self, contents: Sequence[Any]) -> list[int]:
        """Return the relative cost of every content; contents of similar cost share a batch."""
        return [1] * len(contents)

    def row_counts(self, inputs: dict[str, Tensor], rows: int) -> list[int]:
        """Return how many of the pooled ``rows`` belong to each of n contents."""
        contents = len(next(iter(inputs.values())))
        return [rows // contents] * contents

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """Return the pooling function for one batch of inputs."""
        raise NotImplementedError

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states of some levels; layers above the highest are not run.

        Args:
            inputs: Output of :meth:`prepare`, on the model's device.
            levels: The K requested levels.

        Returns:
            States [n, K, D] in fp32, in the order of ``levels``.
        """
        if self.loading.placed:
            # A sharded model starts on the device of its first materialised weights, wherever the caller computes.
            entry = next(weight.device for weight in self.tower.parameters() if not weight.is_meta)
            inputs = {name: tensor.to(entry) for name, tensor in inputs.items()}
        return pooled_states(self.tower, self.layers, inputs, levels, self.pool(inputs), self.width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        """Move or cast the module, unless it is sharded or quantised: then its placement is fixed."""
        return self if self.loading.placed else super()._apply(fn, recurse)

    def replace_input(self, index: int, function: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Replace the input [n, S, D] of layer ``index`` (0-based) by ``function(hidden)``."""

        def hook(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (function(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

        return self.layers[index].register_forward_pre_hook(hook, with_kwargs=True)

    def drop_below(self, first: int) -> None:
        """Turn the first ``first`` layers into identities without weights, for :meth:`resume`."""
        if not first:
            return
        outputs: list[Any] = []
        handle = self.layers[0].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        with torch.no_grad():
            self(self.prepare([self.sample()]), [LAST])
        handle.remove()
        # The layers of some models return tuples; only the first member is ever read.
        extra = (None,) * (len(outputs[0]) - 1) if isinstance(outputs[0], tuple) else None
        for layer in self.layers[:first]:
            layer._modules.clear()
            layer._parameters.clear()
            layer.forward = functools.partial(_identity, extra)

    def resume(self, first: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Compute the output from the input of layer ``first`` on; call :meth:`drop_below` before to save time.

        Args:
            first: Index of the first layer to run, 0-based.
            hidden: Hidden states h_first, [n, S, D], padded on the right.
            mask: Token mask [n, S], 1 for real tokens.

        Returns:
            Pooled last states [n, 1, D] in fp32.
        """
        handle = self.replace_input(first, lambda _: hidden)
        try:
            return self(self.inputs_like(mask), [LAST])
        finally:
            handle.remove()


def _size(weight: Tensor) -> int:
    """Number of values in a weight; the 4-bit weights of bitsandbytes pack two into a byte."""
    return math.prod(getattr(getattr(weight, "quant_state", weight), "shape", weight.shape))


def _width(model: Any, source: Source) -> int:
    """Width D of every state, or of the last stage of a convolutional model."""
    width = getattr(model.config, "hidden_size", None)
    if width is None:
        width = (getattr(model.config, "hidden_sizes", None) or [None])[-1]
    if not isinstance(width, int):
        raise EncoderError(
            f"'{source.name}' ({type(model).__name__}) has hidden_size {width!r}",
            "one width for all levels, or the hidden_sizes of its stages",
            "use a transformer of constant width, a ConvNeXt or a ResNet",
        )
    return width


def _identity(
    extra: tuple[None, ...] | None, hidden_states: Tensor, *_args: Any, **_kwargs: Any
) -> Tensor | tuple[Any, ...]:
    return hidden_states if extra is None else (hidden_states, *extra)


def weight_digest(model: nn.Module, sequential: bool = False) -> str:
    """SHA-256 of a model's parameters and of the running statistics of its batch normalisation.

    The order of the tensors matters; their names, which change between versions of transformers, do not. Quantised
    weights are hashed in their packed form.

    Args:
        model: The model, which may be quantised or sharded.
        sequential: Hash one tensor at a time, so that weights offloaded to disk are not all loaded at once.
    """
    with ThreadPoolExecutor() as pool:
        apply = map if sequential else pool.map
        digests = list(apply(_tensor_digest, module_weights(model)))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def config_digest(config: Any) -> str:
    """SHA-256 of the entries of a model or generation configuration that may change its outputs."""

    def without_names(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entries.items() if name not in _NAMES}

    return sha256_json(json.loads(config.to_json_string(use_diff=False), object_hook=without_names))


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()
