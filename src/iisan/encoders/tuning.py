"""Tuning methods: the trained weights of an encoder, and the modules that some methods add.

Modules are found by structure; for a model of unknown structure, the error names the modules that were found.

Legend: D width, H bottleneck, r rank.
"""

import functools
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iisan.encoders.encoder import Encoder
from iisan.encoders.levels import Level
from iisan.errors import ConfigError, EncoderError, MissingExtraError
from iisan.names import LAST

#: Tuning methods -> pattern of the names of the parameters that they train.
METHODS = {"full": "", "bias": r"bias$", "lora": r"(^|\.)lora_", "adapter": r"(^|\.)adapter\."}

#: Names of the query and value projections in families of models; the first pair found in a layer is used.
_QUERY_AND_VALUE = ("query value", "q_proj v_proj", "query_proj value_proj", "q_lin v_lin", "q v")
_PROJECTION_OF_ATTENTION = re.compile(r"(^|_)(query|key|value|[qkv])(_|$)")


class Adapter(nn.Module):
    """``x + W_up · gelu(W_down · x + b) + b'`` (Houlsby et al., 2019), initialised as the identity."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., D]``."""
        return x + self.up(nn.functional.gelu(self.down(x)))


def tune(
    encoder: Encoder,
    method: str,
    *,
    last_n_layers: int | None = None,
    rank: int = 8,
    alpha: int = 16,
    bottleneck: int = 64,
    gradient_checkpointing: bool = False,
) -> None:
    """Add a method's modules to an encoder and make exactly its weights trainable, in place.

    Weights that the output does not depend on, such as an unused pooler, are neither trained nor counted.

    Args:
        encoder: A freshly loaded encoder.
        method: ``full`` (all weights), ``bias`` (BitFit: all biases), ``lora`` (query and value projections of
            every layer, by peft) or ``adapter`` (Houlsby: after attention and feed-forward of every layer, before
            the residual connection).
        last_n_layers: Number of trained layers, counted from the last. Defaults to the whole model.
        rank: Rank r of LoRA.
        alpha: Scale of LoRA, whose product is multiplied by ``alpha / rank``.
        bottleneck: Bottleneck width H of the adapters.
        gradient_checkpointing: Whether to recompute activations in the backward pass instead of storing them.

    Raises:
        ConfigError: An unknown method.
        EncoderError: An unrecognised structure, more layers than the encoder has, or sharded or quantised weights.
        MissingExtraError: peft is not installed.
    """
    if encoder.loading.placed:
        got = f"'{encoder.source.name}' is sharded over devices or quantised"
        cure = "load it without device_map and quantise, or use its cached states"
        raise EncoderError(got, "plain weights to train", cure)
    encoder.weight_digest  # noqa: B018  (cached before the weights change)
    add_modules(encoder, method, last_n_layers, rank, alpha, bottleneck)
    choose_trained(encoder, method, last_n_layers, gradient_checkpointing)


def add_modules(
    encoder: Encoder, method: str, last_n_layers: int | None, rank: int, alpha: int, bottleneck: int
) -> None:
    """Add a method's modules, see :func:`tune`."""
    if method not in METHODS:
        raise ConfigError(f"tuning method '{method}'", ", ".join(METHODS), "choose one of these")
    tuned = range(first_trained_layer(encoder, last_n_layers), encoder.depth)
    if method == "lora":
        _add_lora(encoder, tuned, rank, alpha)
    elif method == "adapter":
        _add_adapters(encoder, tuned, bottleneck)


def choose_trained(encoder: Encoder, method: str, last_n_layers: int | None, gradient_checkpointing: bool) -> None:
    """Make exactly a method's weights trainable, after :func:`add_modules`; see :func:`tune`."""
    first = first_trained_layer(encoder, last_n_layers)
    layers = [encoder.layers[index] for index in range(first, encoder.depth)]
    used = _used_parameters(encoder, [LAST], first)
    if last_n_layers is not None:
        # Parameters shared with the frozen part, such as relative position embeddings, stay frozen.
        used -= _used_parameters(encoder, [first], 0)
    encoder.active = [encoder.tower] if last_n_layers is None else [*layers]
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in used and re.search(METHODS[method], name) is not None)
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        got = f"no weight of method '{method}' takes part in the output of {type(encoder.tower).__name__}"
        cure = "use another tuning method, or another model"
        raise EncoderError(got, "a model that calls its submodules as modules", cure)
    for layer in layers if gradient_checkpointing else ():
        # Non-reentrant, because the input of the first layer need not require a gradient.
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def first_trained_layer(encoder: Encoder, last_n_layers: int | None) -> int:
    """Return the 0-based index of the first of the last ``last_n_layers`` layers; 0 for None.

    Raises:
        EncoderError: The encoder has fewer layers.
    """
    if last_n_layers is None:
        return 0
    if not 1 <= last_n_layers <= encoder.depth:
        got = f"the last {last_n_layers} layers of '{encoder.source.name}'"
        raise EncoderError(got, f"1 to {encoder.depth}", "choose fewer layers")
    return encoder.depth - last_n_layers


def _used_parameters(encoder: Encoder, levels: Sequence[Level], cut: int) -> set[str]:
    """Names of the parameters that some levels depend on, except those below layer ``cut``."""
    encoder.requires_grad_(True)
    inputs = encoder.prepare([encoder.sample()])
    handle = encoder.replace_input(cut, lambda hidden: hidden.detach() if cut else hidden)
    try:
        with torch.enable_grad():
            encoder(inputs, levels).sum().backward()
    finally:
        handle.remove()
    used = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    encoder.zero_grad(set_to_none=True)
    return used


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def _add_lora(encoder: Encoder, layers: Iterable[int], rank: int, alpha: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtraError("peft", "lora", "LoRA") from None
    targets = [
        f"{encoder.layer_path}.{index}.{name}"
        for index in layers
        for name in _query_and_value(encoder, encoder.layers[index])
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, encoder.tower)


def _query_and_value(encoder: Encoder, layer: nn.Module) -> list[str]:
    found = _linears(layer)
    for pair in _QUERY_AND_VALUE:
        names = [name for name in found if name.rpartition(".")[2] in pair.split()]
        if len(names) == 2:
            return names
    raise _unknown(encoder, "query and value projections", found)


def _add_adapters(encoder: Encoder, layers: Iterable[int], bottleneck: int) -> None:
    for index in layers:
        found = _linears(encoder.layers[index])
        # The output projections of attention and feed-forward, which add to the residual stream.
        outputs = [
            linear
            for name, linear in found.items()
            if linear.out_features == encoder.width
            and not _PROJECTION_OF_ATTENTION.search(name.rpartition(".")[2])
        ]
        if len(outputs) != 2:
            raise _unknown(encoder, "the outputs of attention and feed-forward", found)
        for linear in outputs:
            linear.register_module("adapter", Adapter(encoder.width, bottleneck).to(linear.weight.device))
            linear.register_forward_hook(lambda module, _, output: module.adapter(output))


def _unknown(encoder: Encoder, sought: str, found: dict[str, nn.Linear]) -> EncoderError:
    names = ", ".join(f"{name} ({linear.in_features}→{linear.out_features})" for name, linear in found.items())
    return EncoderError(
        f"{sought} of {type(encoder.tower).__name__} are not recognised (linear modules of a layer: "
        f"{names or 'none'})",
        "separate projections, named as in BERT, DeBERTa-v2, ViT, CLIP or Llama",
        "use another tuning method, or another model (a fused projection cannot be told apart)",
    )
