"""Which weights of an encoder are trained, and the small modules that some methods add to it.

All methods find their places by structure: widths and depths are never named by hand, and a model that is not
recognised is refused with the names of the modules that were found.

Legend: T blocks, D width, H bottleneck, r rank.
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

METHODS = ("full", "bias", "lora", "adapter")

#: How families of models name the projections to query and value; the first pair that a block has counts.
_QUERY_AND_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
)
_PROJECTION_OF_ATTENTION = re.compile(r"(^|_)(query|key|value|[qkv])(_|$)")


class Adapter(nn.Module):
    """``x + W_up · gelu(W_down · x + b) + b'`` (Houlsby et al., 2019); the identity until it is trained.

    Args:
        width: D.
        bottleneck: H.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``."""
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
    """Add a method's modules to an encoder and let exactly its weights be trained, in place.

    Weights that the answer does not depend on (an unused pooler, say) are never trained nor counted.

    Args:
        encoder: freshly loaded.
        method: ``full`` (all weights), ``bias`` (BitFit: biases only), ``lora`` (query and value projections of
            every block, by the library peft) or ``adapter`` (Houlsby: after attention and after feed-forward in
            every block, before the residual).
        last_n_layers: only the last ``last_n_layers`` blocks and what follows them; None is the whole model.
        rank: r of LoRA.
        alpha: LoRA's product is scaled by ``alpha / rank``.
        bottleneck: H of the adapters.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.

    Raises:
        EncoderError: a structure that is not recognised, more blocks than there are, or weights that are spread
            over devices or quantised.
        MissingExtraError: LoRA without peft.
    """
    if encoder.loading.placed:
        raise EncoderError(
            f"'{encoder.source.name}' is spread over devices or quantised",
            "whole weights to train",
            "load it without device_map and quantise, or use its cached states",
        )
    encoder.weight_digest  # noqa: B018  (remembered as loaded)
    add_modules(encoder, method, last_n_layers, rank, alpha, bottleneck)
    choose_trained(encoder, method, last_n_layers, gradient_checkpointing)


def add_modules(
    encoder: Encoder, method: str, last_n_layers: int | None, rank: int, alpha: int, bottleneck: int
) -> None:
    """The first half of ``tune``: the modules that a method adds."""
    if method not in METHODS:
        raise ConfigError(f"tuning method '{method}'", ", ".join(METHODS), "choose one of these")
    blocks = range(first_trained_layer(encoder, last_n_layers), encoder.depth)
    if method == "lora":
        _add_lora(encoder, blocks, rank, alpha)
    elif method == "adapter":
        _add_adapters(encoder, blocks, bottleneck)


def choose_trained(encoder: Encoder, method: str, last_n_layers: int | None, gradient_checkpointing: bool) -> None:
    """The second half of ``tune``: which weights are trained, and how."""
    first = first_trained_layer(encoder, last_n_layers)
    blocks = [encoder.blocks[index] for index in range(first, encoder.depth)]
    reached = _reached(encoder, [LAST], first)
    if last_n_layers is not None:
        # What the frozen part depends on as well (shared position embeddings, say) stays frozen.
        reached -= _reached(encoder, [first], 0)
    encoder.active = [encoder.tower] if last_n_layers is None else [*blocks]
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in reached and _belongs(name, method))
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise EncoderError(
            f"no weight of method '{method}' takes part in the answer of {type(encoder.tower).__name__}",
            "a model that calls its layers as modules",
            "use another tuning method, or another model",
        )
    for block in blocks if gradient_checkpointing else ():
        # The non-reentrant kind, because the first block's input need not require a gradient.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def first_trained_layer(encoder: Encoder, last_n_layers: int | None) -> int:
    """Position of the first of the last ``last_n_layers`` blocks; 0 for None.

    Raises:
        EncoderError: there are not that many.
    """
    if last_n_layers is None:
        return 0
    if not 1 <= last_n_layers <= encoder.depth:
        raise EncoderError(
            f"the last {last_n_layers} blocks of '{encoder.source.name}'",
            f"1 to {encoder.depth}",
            "choose fewer blocks",
        )
    return encoder.depth - last_n_layers


def _belongs(name: str, method: str) -> bool:
    """Whether a parameter is one of those that a method trains."""
    parts = name.split(".")
    match method:
        case "bias":
            return parts[-1].endswith("bias")
        case "lora":
            return any(part.startswith("lora_") for part in parts)
        case "adapter":
            return "adapter" in parts
        case _:
            return True


def _reached(encoder: Encoder, levels: Sequence[Level], cut: int) -> set[str]:
    """Names of the parameters that some levels depend on, not looking below block ``cut`` unless that is 0."""
    encoder.requires_grad_(True)
    inputs = encoder.prepare([encoder.sample()])
    handle = encoder.replace_input(cut, lambda hidden: hidden.detach() if cut else hidden)
    try:
        with torch.enable_grad():
            encoder(inputs, levels).sum().backward()
    finally:
        handle.remove()
    reached = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    encoder.zero_grad(set_to_none=True)
    return reached


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def _add_lora(encoder: Encoder, blocks: Iterable[int], rank: int, alpha: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtraError("peft", "lora", "LoRA") from None
    targets = [
        f"{encoder.block_path}.{index}.{name}"
        for index in blocks
        for name in _query_and_value(encoder, encoder.blocks[index])
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, encoder.tower)


def _query_and_value(encoder: Encoder, block: nn.Module) -> list[str]:
    found = _linears(block)
    for pair in _QUERY_AND_VALUE:
        names = [name for name in found if name.rpartition(".")[2] in pair]
        if len(names) == 2:
            return names
    raise _unknown(encoder, "query and value projections", found)


def _add_adapters(encoder: Encoder, blocks: Iterable[int], bottleneck: int) -> None:
    for index in blocks:
        block = encoder.blocks[index]
        found = _linears(block)
        # What returns to the residual stream: the attention's output projection, and the feed-forward's.
        outputs = [
            name
            for name, layer in found.items()
            if layer.out_features == encoder.width and not _PROJECTION_OF_ATTENTION.search(name.rpartition(".")[2])
        ]
        if len(outputs) != 2:
            raise _unknown(encoder, "the outputs of attention and feed-forward", found)
        for name in outputs:
            layer = block.get_submodule(name)
            adapter = Adapter(encoder.width, bottleneck).to(next(layer.parameters()).device)
            layer.register_module("adapter", adapter)
            layer.register_forward_hook(lambda module, _, output: module.adapter(output))


def _unknown(encoder: Encoder, sought: str, found: dict[str, nn.Linear]) -> EncoderError:
    names = ", ".join(f"{name} ({layer.in_features}→{layer.out_features})" for name, layer in found.items())
    return EncoderError(
        f"{sought} of {type(encoder.tower).__name__} are not recognised (linear layers of a block: "
        f"{names or 'none'})",
        "separate projections, named as in BERT, DeBERTa-v2, ViT, CLIP or Llama",
        "use another tuning method, or another model (a fused projection cannot be told apart)",
    )
