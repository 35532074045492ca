"""The transformer blocks inside a tower, found by structure, and the pooled states that leave them.

Legend: n contents in the batch, S tokens, K wanted levels, D width, T blocks.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iisan.backbones.levels import Level
from iisan.errors import BackboneError
from iisan.names import LAST

#: From hidden states [n, S, D] to one vector per content [n, D], or one per real token, in fp32.
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
        BackboneError: none, or several that are not inside each other.
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
    raise BackboneError(
        f"the blocks of {type(tower).__name__} are not understood (num_hidden_layers {depth}, "
        f"found: {found or 'none'})",
        "exactly one list of num_hidden_layers equal blocks",
        "use a plain transformer encoder such as BERT, ViT or a tower of CLIP",
    )


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
        BackboneError: a block's hidden state is not [n, S, D].
    """
    states: dict[Level, Tensor] = {}
    wanted = {level for level in levels if not isinstance(level, str)}
    top = len(blocks) if LAST in levels else max(wanted)

    def keep(level: int, hidden: Any) -> None:
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[-1] != width:
            got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise BackboneError(
                f"hidden state {level} of {type(tower).__name__} is {got}",
                f"[contents, tokens, {width}] at every level",
                "use a transformer of constant width, not a hierarchical or convolutional model",
            )
        states[level] = pool(hidden)

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
                states[LAST] = pool(output[0])
    return torch.stack([states[level] for level in levels], dim=1)
