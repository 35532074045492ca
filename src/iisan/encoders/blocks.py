"""The transformer blocks inside a tower, found by structure, and the pooled states that leave them.

Legend: n contents in the batch, S tokens, K wanted levels, D width, T blocks, C channels of a feature map.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iisan.encoders.levels import Level
from iisan.errors import EncoderError
from iisan.names import LAST

#: From hidden states [n, S, D] (or feature maps [n, C, height, width]) to one vector per content [n, D], or one
#: per real token, in fp32.
Pool = Callable[[Tensor], Tensor]


class _StopForward(Exception):
    """Leaves a forward pass once all wanted states are known.

    An exception is safer than a block list that is cut for the time of a call: the module is never changed
    (so nothing is to be restored after an error), and models that index their blocks by configured depth
    work as well.
    """


def find_blocks(tower: nn.Module, depth: int | None) -> str:
    """Find the block list of a tower: a ``ModuleList`` of ``depth`` modules of one class.

    Args:
        tower: the model.
        depth: number of blocks its configuration claims.

    Returns:
        The list's path inside the tower.

    Raises:
        EncoderError: none, or several that are not inside each other.
    """
    lists = {
        path: module
        for path, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    }
    matching = [path for path, module in lists.items() if len(module) == depth]
    outermost = [
        path for path in matching if not any(path.startswith(f"{other}.") for other in matching if other != path)
    ]
    if len(outermost) == 1:
        return outermost[0]
    found = ", ".join(f"{path} ({len(module)} × {type(module[0]).__name__})" for path, module in lists.items())
    raise EncoderError(
        f"the blocks of {type(tower).__name__} are not understood (num_hidden_layers {depth}, "
        f"found: {found or 'none'})",
        "exactly one list of num_hidden_layers equal blocks, or of the stages of a convolutional model",
        "use a model whose blocks are not shared, such as BERT, Llama, ViT, ConvNeXt or a tower of CLIP",
    )


def has_class_token(tower: nn.Module) -> bool:
    """Whether a tower has a learned first token that stands for the whole content."""
    names = ("cls_token", "class_token", "class_embedding")
    return any(name.rpartition(".")[2] in names for name, _ in tower.named_parameters())


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden states [n, S, D] over the tokens that ``mask`` [n, S] calls real: fp32 [n, D]."""
    weights = (mask / mask.sum(1, keepdim=True)).to(hidden.device).unsqueeze(-1)
    return (hidden.float() * weights).sum(1)


def grid_means(maps: Tensor, width: int) -> Tensor:
    """Pool feature maps [n, C, height, width] to [n, D], whatever their C: means over the D / C cells of a grid.

    A stage with fewer channels keeps more places: with D = 768, stages of 96, 192, 384 and 768 channels are
    averaged over 2 × 4, 2 × 2, 1 × 2 and 1 × 1 cells. So all stages have one width without zeros, without a
    projection, and the last is the usual mean over the whole picture.

    Args:
        maps: C divides D.
        width: D.

    Returns:
        fp32, all cells of channel 0 first.
    """
    cells = width // maps.shape[1]
    rows = next(rows for rows in range(math.isqrt(cells), 0, -1) if cells % rows == 0)
    return nn.functional.adaptive_avg_pool2d(maps.float(), (rows, cells // rows)).flatten(1)


def pooled_states(
    tower: nn.Module,
    blocks: nn.ModuleList,
    inputs: dict[str, Tensor],
    levels: Sequence[Level],
    pool: Pool,
    width: int,
) -> Tensor:
    """Run a tower as far as the wanted levels need, keeping only their pooled vectors.

    Args:
        tower: the model.
        blocks: its T blocks.
        inputs: keyword arguments of the tower's forward.
        levels: the K wanted levels, in any order.
        pool: applied to each wanted level as soon as it is known.
        width: the tower's width D.

    Returns:
        Pooled states [n, K, D] in fp32, in the order of ``levels``.

    Raises:
        EncoderError: a block's hidden state is neither [n, S, D] nor [n, C, height, width] with C a divisor
            of D.
    """
    states: dict[Level, Tensor] = {}
    # Blocks of a sharded model lie on different devices.
    home = next(iter(inputs.values())).device
    wanted = {level for level in levels if not isinstance(level, str)}
    top = len(blocks) if LAST in levels else max(wanted)

    def keep(level: Level, hidden: Any) -> None:
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if not _fits(hidden, width):
            got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise EncoderError(
                f"hidden state {level} of {type(tower).__name__} is {got}",
                f"[contents, tokens, {width}] or [contents, a divisor of {width}, height, width] at every level",
                "leave this level out, or use a transformer of constant width, a ConvNeXt or a ResNet",
            )
        states[level] = pool(hidden).to(home)

    def before_first(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])
        if top == 0:
            raise _StopForward

    def after(level: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if level in wanted:
                keep(level, output)
            if level == top and LAST not in levels:
                raise _StopForward

        return hook

    with contextlib.ExitStack() as stack:
        if 0 in wanted:
            handle = blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)
            stack.callback(handle.remove)
        for level in sorted({*wanted, top} - {0}):
            stack.callback(blocks[level - 1].register_forward_hook(after(level)).remove)
        with contextlib.suppress(_StopForward):
            output = tower(**inputs)
            if LAST in levels:
                keep(LAST, output[0])
    return torch.stack([states[level] for level in levels], dim=1)


def _fits(hidden: Any, width: int) -> bool:
    if not isinstance(hidden, Tensor):
        return False
    return hidden.shape[-1] == width if hidden.ndim == 3 else hidden.ndim == 4 and width % hidden.shape[1] == 0
