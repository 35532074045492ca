"""Which hidden states of an encoder are kept: levels are hidden-state indices, h_0 … h_T, and "last"."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from iisan.errors import EncoderError
from iisan.names import LAST

#: h_0 is the input of the first block, h_t the raw output of block t; "last" is ``last_hidden_state``.
Level: TypeAlias = int | Literal["last"]


def layer_drop(depth: int) -> tuple[int, ...]:
    """Levels that LayerDrop (P1 §2.1) keeps: blocks in pairs counted from the top, the lower of each dropped.

    Args:
        depth: number of blocks T.

    Returns:
        Ascending levels with the embedding state in front, ``(0, 2, 4, …, 12)`` for 12 blocks.
    """
    return (0, *range(2 - depth % 2, depth + 1, 2))


def group_drop(depth: int, count: int) -> tuple[int, ...]:
    """Levels that group layer-dropping (P2) keeps of a deep encoder: ``count`` evenly spaced blocks.

    Args:
        depth: number of blocks T.
        count: blocks to keep, about as many as the shallow encoder keeps.

    Returns:
        Ascending levels, the last block's among them, with the embedding state in front:
        ``(0, 4, 8, 12, 16, 20, 24)`` for 6 of 24 blocks.

    Raises:
        EncoderError: the even steps would leave the first blocks out.
    """
    step = (depth - 1) // (count - 1) if count > 1 else 0
    first = depth - 1 - (count - 1) * step
    if not 0 <= first < step:
        fits = fitting_groups(depth, count)
        raise EncoderError(
            f"group layer-dropping of {count} out of {depth} blocks",
            f"a number whose even steps reach the first blocks, such as {' or '.join(map(str, sorted(fits[:2])))}",
            "choose such a number, or list the levels",
        )
    return (0, *range(first + 1, depth + 1, step))


def fitting_groups(depth: int, count: int) -> list[int]:
    """The numbers of blocks that group layer-dropping takes, those next to ``count`` first."""
    fits = [n for n in range(2, depth + 1) if (depth - 1) % (n - 1) < (depth - 1) // (n - 1)]
    return sorted(fits, key=lambda n: abs(n - count))


def parse_levels(spec: str | Sequence[Level], depth: int) -> tuple[Level, ...]:
    """Resolve a choice of levels for an encoder of ``depth`` blocks.

    Args:
        spec: ``"layerdrop"`` (LayerDrop's levels and "last"), ``"group-6"`` (those of group layer-dropping and
            "last"), ``"all"`` (every level and "last"), a comma-separated list such as ``"0,6,12,last"``, or a
            sequence of levels.
        depth: number of blocks T.

    Returns:
        K distinct levels, ascending, "last" at the end.

    Raises:
        EncoderError: no level, one that is not a level, one out of range, or one named twice.
    """
    if isinstance(spec, str) and (named := named_levels(spec, depth)) is not None:
        return (*named, LAST)
    parts = spec.split(",") if isinstance(spec, str) else list(spec)
    levels = [_parse_level(part, spec, depth) for part in parts]
    if not levels or len(set(levels)) < len(levels):
        raise EncoderError(f"levels {spec!r}", "distinct levels, at least one", "name every level once")
    return tuple(sorted(levels, key=lambda level: depth + 1 if isinstance(level, str) else level))


def named_levels(spec: str, depth: int) -> tuple[int, ...] | None:
    """The hidden states that ``layerdrop``, ``group-N`` or ``all`` stands for; None for anything else."""
    if spec == "all":
        return tuple(range(depth + 1))
    if spec == "layerdrop":
        return layer_drop(depth)
    name, _, count = spec.partition("-")
    return group_drop(depth, int(count)) if name == "group" and count.isdecimal() else None


def _parse_level(part: str | int, spec: str | Sequence[Level], depth: int) -> Level:
    text = str(part).strip()
    if text == LAST:
        return LAST
    if text.isdecimal() and int(text) <= depth:
        return int(text)
    raise EncoderError(
        f"level {text!r} in {spec!r}",
        f"a hidden-state index from 0 to {depth}, or '{LAST}'",
        f"choose among the {depth + 1} states of this encoder, or use 'layerdrop', 'group-N' or 'all'",
    )
