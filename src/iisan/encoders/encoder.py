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

#: Entries of a model's configuration that cannot change its outputs, and those that are part of the settings.
_NAMES = {"_name_or_path", "architectures", "auto_map", "id2label", "label2id", "transformers_version"}
_IN_SETTINGS = {"dtype", "torch_dtype"}


class Encoder(nn.Module):
    """A pretrained model with its preprocessing, frozen until it is tuned.

    Attributes:
        kind: Kind of its contents: ``"text"``, ``"image"``, ``"audio"`` or ``"video"``.
        poolings: Supported poolings; ``tokens`` keeps the states of all tokens, one row per token.
        pooling: The pooling in use.
        max_tokens: Maximum number of tokens, special tokens included; None if contents are not truncated.
        width: Width D of the hidden states.
        depth: Number of layers T.
        parameter_count: Number of parameters before tuning.
    """

    kind: ClassVar[str]
    poolings: ClassVar[tuple[str, ...]]
    max_tokens: int | None = None

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
        #: Trained modules, set by ``tune``. All others stay in evaluation mode, which keeps states as stored.
        self.active: list[nn.Module] = []
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode of the trained modules; batch normalisation always uses its pretrained statistics."""
        super().train(False)
        for module in self.active if mode else ():
            module.train()
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()  # checkpoints do not contain these statistics
        return self

    @property
    def layers(self) -> nn.ModuleList:
        """The T layers."""
        layers = self.tower.get_submodule(self.layer_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @cached_property
    def weight_digest(self) -> str:
        """SHA-256 of the parameters at the first access, before tuning."""
        return weight_digest(self.tower, sequential=self.loading.placed)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the states depend on, as JSON."""
        model: Any = self.tower
        formats = {"dtype": _DTYPE_NAMES.get(model.dtype, str(model.dtype)), "quantise": self.loading.quantise}
        return {
            "kind": self.kind,
            "encoder": self.source.full_name,
            "revision": self.source.revision,
            "architecture": type(model).__name__,
            "weight_digest": self.weight_digest,
            "config_digest": config_digest(model.config),
            "processor_digest": self.processor_digest,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            **{name: value for name, value in formats.items() if value not in (None, "fp32")},
        }

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
        sample = {name: tensor.to(mask.device) for name, tensor in self._sample_inputs.items()}
        return {name: tensor.expand(len(mask), *tensor.shape[1:]) for name, tensor in sample.items()}

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
        """Return the pooling function for a batch of inputs: all tokens, class token or mean."""
        if self.pooling == "tokens":
            return lambda hidden: hidden.float().flatten(0, 1)
        return (lambda hidden: hidden[:, 0].float()) if self.pooling == "cls" else self.mean(inputs)

    def mean(self, inputs: dict[str, Tensor]) -> Pool:
        """Return the pooling function ``mean`` for a batch of inputs."""
        raise NotImplementedError

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states [n, K, D] of some levels in fp32; layers above the highest are not run.

        ``inputs`` is the output of :meth:`prepare`, on the model's device.
        """
        if self.loading.placed:
            # A sharded model starts on the device of its first materialised weights.
            entry = next(weight.device for weight in self.tower.parameters() if not weight.is_meta)
            inputs = {name: tensor.to(entry) for name, tensor in inputs.items()}
        return self.states(inputs, levels, self.pool(inputs))

    def states(self, inputs: dict[str, Tensor], levels: Sequence[Level], pool: Pool) -> Tensor:
        """Run the model on its own arguments, see :func:`iisan.encoders.layers.pooled_states`."""
        return pooled_states(self.tower, self.layers, inputs, levels, pool, self.width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        """Move or cast the module, unless it is sharded or quantised."""
        return self if self.loading.placed else super()._apply(fn, recurse)

    def replace_input(self, index: int, function: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Replace the input [n, S, D] of layer ``index`` (0-based) by ``function(hidden)``."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if args:
                return (function(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

        return self.layers[index].register_forward_pre_hook(hook, with_kwargs=True)

    def drop_below(self, first: int) -> None:
        """Replace the first ``first`` layers by identities without weights, for :meth:`resume`."""
        if not first:
            return
        outputs: list[Any] = []
        handle = self.layers[0].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        with torch.no_grad():
            self(self.prepare([self.sample()]), [LAST])
        handle.remove()
        # The layers of some models return tuples, of which only the first element is used.
        extra = (None,) * (len(outputs[0]) - 1) if isinstance(outputs[0], tuple) else None
        for layer in self.layers[:first]:
            layer._modules.clear()
            layer._parameters.clear()
            layer.forward = functools.partial(_identity, extra)

    def resume(self, first: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Compute the output from the input of layer ``first`` (0-based) on; :meth:`drop_below` makes it faster.

        Args:
            first: Index of the first layer to run.
            hidden: Hidden states h_first [n, S, D], padded on the right.
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

    It depends on the order of the tensors, but not on their names, which change between versions of transformers.
    Quantised weights are hashed in their packed form.

    Args:
        model: The model.
        sequential: Hash one tensor at a time, so that weights offloaded to disk are not all loaded at once.
    """
    with ThreadPoolExecutor() as pool:
        apply = map if sequential else pool.map
        digests = list(apply(_tensor_digest, module_weights(model)))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def config_digest(config: Any) -> str:
    """SHA-256 of the entries of a model or generation configuration that may change outputs."""

    def without_names(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in entries.items() if name not in _NAMES | _IN_SETTINGS}

    return sha256_json(json.loads(config.to_json_string(use_diff=False), object_hook=without_names))


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()
