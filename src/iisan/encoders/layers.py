"""The layers of a pretrained model, found by structure, and their pooled outputs.

Legend: n contents in a batch, S tokens, K requested levels, D width, T layers, C channels of a feature map.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iisan.encoders.levels import Level
from iisan.errors import EncoderError
from iisan.names import LAST

#: Maps hidden states [n, S, D] (or feature maps [n, C, height, width]) to fp32 vectors: [n, D], or one per real
#: token.
Pool = Callable[[Tensor], Tensor]


class _StopForward(Exception):
    """Ends a forward pass once all requested states are known.

    Unlike a temporarily truncated layer list, this suits models that index their layers by the configured depth.
    """


def find_layers(model: nn.Module, depth: int | None) -> str:
    """Return the path of a model's layers: a ``ModuleList`` of ``depth`` modules of one class.

    Raises:
        EncoderError: No such list, or several that are not nested.
    """
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
    }
    matching = [path for path, module in lists.items() if len(module) == depth]
    outermost = [
        path for path in matching if not any(path.startswith(f"{other}.") for other in matching if other != path)
    ]
    if len(outermost) == 1:
        return outermost[0]
    found = ", ".join(f"{path} ({len(module)} × {type(module[0]).__name__})" for path, module in lists.items())
    raise EncoderError(
        f"the layers of {type(model).__name__} are not recognised (num_hidden_layers {depth}, "
        f"found: {found or 'none'})",
        "exactly one list of num_hidden_layers layers of one class, or of the stages of a convolutional model",
        "use a model whose layers are not shared, such as BERT, Llama, ViT, ConvNeXt or an encoder of CLIP",
    )


def has_class_token(model: nn.Module) -> bool:
    """Whether a model has a learned class token."""
    names = ("cls_token", "class_token", "class_embedding")
    return any(name.rpartition(".")[2] in names for name, _ in model.named_parameters())


def check_class_token(model: nn.Module, name: str) -> None:
    """Raise an ``EncoderError`` if a model has no class token, for pooling ``cls``."""
    if not has_class_token(model):
        raise EncoderError(
            f"pooling 'cls' for '{name}', which has no class token",
            "pooling 'mean' for such models (SigLIP, ConvNeXt, ResNet, audio models other than AST)",
            "use mean pooling",
        )


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden states [n, S, D] over the real tokens of ``mask`` [n, S]: fp32 [n, D]."""
    weights = (mask / mask.sum(1, keepdim=True)).to(hidden.device).unsqueeze(-1)
    return (hidden.float() * weights).sum(1)


def grid_means(maps: Tensor, width: int) -> Tensor:
    """Pool feature maps [n, C, height, width] to [n, D] for any C that divides D: means over D / C grid cells.

    With D = 768, stages of 96, 192, 384 and 768 channels are averaged over 2 × 4, 2 × 2, 1 × 2 and 1 × 1 cells.
    All stages thus have the same width without padding or projection; the last is the usual mean over the image.
    """
    cells = width // maps.shape[1]
    rows = next(rows for rows in range(math.isqrt(cells), 0, -1) if cells % rows == 0)
    return nn.functional.adaptive_avg_pool2d(maps.float(), (rows, cells // rows)).flatten(1)


def pooled_states(
    model: nn.Module,
    layers: nn.ModuleList,
    inputs: dict[str, Tensor],
    levels: Sequence[Level],
    pool: Pool,
    width: int,
) -> Tensor:
    """Run a model up to the highest requested level and return the pooled states of the requested ones.

    Args:
        model: The model.
        layers: Its T layers.
        inputs: Keyword arguments of the model's ``forward``.
        levels: The K requested levels, in any order.
        pool: Pooling function.
        width: Width D of the model.

    Returns:
        Pooled states [n, K, D] in fp32, in the order of ``levels``.

    Raises:
        EncoderError: A hidden state is neither [n, S, D] nor [n, C, height, width] with C a divisor of D.
    """
    states: dict[Level, Tensor] = {}
    # The layers of a sharded model lie on different devices.
    home = next(iter(inputs.values())).device
    requested = {level for level in levels if not isinstance(level, str)}
    highest = None if LAST in levels else max(requested)

    def record(level: Level, hidden: Any) -> None:
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if not _fits(hidden, width):
            got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise EncoderError(
                f"hidden state {level} of {type(model).__name__} is {got}",
                f"[contents, tokens, {width}] or [contents, a divisor of {width}, height, width] at every level",
                "leave this level out, or use a transformer of constant width, a ConvNeXt or a ResNet",
            )
        states[level] = pool(hidden).to(home)
        if level == highest:
            raise _StopForward

    def before_first(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record(0, args[0] if args else kwargs["hidden_states"])

    def after(level: int, _module: nn.Module, _args: Any, output: Any) -> None:
        record(level, output)

    with contextlib.ExitStack() as stack:
        if 0 in requested:
            handle = layers[0].register_forward_pre_hook(before_first, with_kwargs=True)
            stack.callback(handle.remove)
        for level in requested - {0}:
            handle = layers[level - 1].register_forward_hook(functools.partial(after, level))
            stack.callback(handle.remove)
        with contextlib.suppress(_StopForward):
            output = model(**inputs)
            if LAST in levels:
                record(LAST, output[0])
    return torch.stack([states[level] for level in levels], dim=1)


def _fits(hidden: Any, width: int) -> bool:
    if not isinstance(hidden, Tensor):
        return False
    return hidden.shape[-1] == width if hidden.ndim == 3 else hidden.ndim == 4 and width % hidden.shape[1] == 0
