"""Which weights of a backbone are trained, and the small modules that some methods add to it.

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

from iisan.backbones.backbone import Backbone
from iisan.backbones.levels import Level
from iisan.errors import BackboneError, ConfigError, MissingExtraError
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
    backbone: Backbone,
    method: str,
    *,
    top: int | None = None,
    rank: int = 8,
    alpha: int = 16,
    bottleneck: int = 64,
    checkpointing: bool = False,
) -> None:
    """Add a method's modules to a backbone and let exactly its weights be trained, in place.

    Weights that the answer does not depend on (an unused pooler, say) are never trained nor counted.

    Args:
        backbone: freshly loaded.
        method: ``full`` (all weights), ``bias`` (BitFit: biases only), ``lora`` (query and value projections of
            every block, by the library peft) or ``adapter`` (Houlsby: after attention and after feed-forward in
            every block, before the residual).
        top: only the last ``top`` blocks and what follows them; None is the whole model.
        rank: r of LoRA.
        alpha: LoRA's product is scaled by ``alpha / rank``.
        bottleneck: H of the adapters.
        checkpointing: recompute activations in the backward pass instead of keeping them.

    Raises:
        BackboneError: a structure that is not recognised, more blocks than there are, or weights that are spread
            over devices or quantised.
        MissingExtraError: LoRA without peft.
    """
    if backbone.loading.placed:
        raise BackboneError(
            f"'{backbone.source.name}' is spread over devices or quantised",
            "whole weights to train",
            "load it without device_map and quantise, or use its cached states",
        )
    backbone.weight_digest  # noqa: B018  (remembered as loaded)
    first = first_trained_block(backbone, top)
    blocks = range(first, backbone.depth)
    if method not in METHODS:
        raise ConfigError(f"tuning method '{method}'", ", ".join(METHODS), "choose one of these")
    if method == "lora":
        _add_lora(backbone, blocks, rank, alpha)
    elif method == "adapter":
        _add_adapters(backbone, blocks, bottleneck)
    reached = _reached(backbone, [LAST], first)
    if top is not None:
        # What the frozen part depends on as well (shared position embeddings, say) stays frozen.
        reached -= _reached(backbone, [first], 0)
    backbone.active = [backbone.tower] if top is None else [backbone.blocks[index] for index in blocks]
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in reached and _belongs(name, method))
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise BackboneError(
            f"no weight of method '{method}' takes part in the answer of {type(backbone.tower).__name__}",
            "a model that calls its layers as modules",
            "use another tuning method, or another model",
        )
    for block in (backbone.blocks[index] for index in blocks) if checkpointing else ():
        # The non-reentrant kind, because the first block's input need not require a gradient.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def first_trained_block(backbone: Backbone, top: int | None) -> int:
    """Position of the first of the last ``top`` blocks; 0 for None.

    Raises:
        BackboneError: there are not that many.
    """
    if top is None:
        return 0
    if not 1 <= top <= backbone.depth:
        raise BackboneError(
            f"the last {top} blocks of '{backbone.source.name}'", f"1 to {backbone.depth}", "choose fewer blocks"
        )
    return backbone.depth - top


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


def _reached(backbone: Backbone, levels: Sequence[Level], cut: int) -> set[str]:
    """Names of the parameters that some levels depend on, not looking below block ``cut`` unless that is 0."""
    backbone.requires_grad_(True)
    inputs = backbone.prepare([backbone.sample()])
    handle = backbone.replace_input(cut, lambda hidden: hidden.detach() if cut else hidden)
    try:
        with torch.enable_grad():
            backbone(inputs, levels).sum().backward()
    finally:
        handle.remove()
    reached = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    backbone.zero_grad(set_to_none=True)
    return reached


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def _add_lora(backbone: Backbone, blocks: Iterable[int], rank: int, alpha: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtraError("peft", "lora", "LoRA") from None
    targets = [
        f"{backbone.block_path}.{index}.{name}"
        for index in blocks
        for name in _query_and_value(backbone, backbone.blocks[index])
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, backbone.tower)


def _query_and_value(backbone: Backbone, block: nn.Module) -> list[str]:
    found = _linears(block)
    for pair in _QUERY_AND_VALUE:
        names = [name for name in found if name.rpartition(".")[2] in pair]
        if len(names) == 2:
            return names
    raise _unknown(backbone, "query and value projections", found)


def _add_adapters(backbone: Backbone, blocks: Iterable[int], bottleneck: int) -> None:
    for index in blocks:
        block = backbone.blocks[index]
        found = _linears(block)
        # What returns to the residual stream: the attention's output projection, and the feed-forward's.
        outputs = [
            name
            for name, layer in found.items()
            if layer.out_features == backbone.width
            and not _PROJECTION_OF_ATTENTION.search(name.rpartition(".")[2])
        ]
        if len(outputs) != 2:
            raise _unknown(backbone, "the outputs of attention and feed-forward", found)
        for name in outputs:
            layer = block.get_submodule(name)
            adapter = Adapter(backbone.width, bottleneck).to(next(layer.parameters()).device)
            layer.register_module("adapter", adapter)
            layer.register_forward_hook(lambda module, _, output: module.adapter(output))


def _unknown(backbone: Backbone, sought: str, found: dict[str, nn.Linear]) -> BackboneError:
    names = ", ".join(f"{name} ({layer.in_features}→{layer.out_features})" for name, layer in found.items())
    return BackboneError(
        f"{sought} of {type(backbone.tower).__name__} are not recognised (linear layers of a block: "
        f"{names or 'none'})",
        "separate projections, named as in BERT, DeBERTa-v2, ViT, CLIP or Llama",
        "use another tuning method, or another model (a fused projection cannot be told apart)",
    )
