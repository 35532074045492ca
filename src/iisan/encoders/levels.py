"""Levels, the hidden states of an encoder: h_0 … h_T by index, and "last"."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from iisan.errors import EncoderError
from iisan.names import LAST

#: h_0 is the input of the first layer, h_t the raw output of layer t; "last" is ``last_hidden_state``.
Level: TypeAlias = int | Literal["last"]


def layer_drop(depth: int) -> tuple[int, ...]:
    """Levels kept by LayerDrop (IISAN, sec. 2.1): ``(0, 2, 4, …, 12)`` for 12 layers, ``(0, 1, 3, 5)`` for 5."""
    return (0, *range(2 - depth % 2, depth + 1, 2))


def group_drop(depth: int, count: int) -> tuple[int, ...]:
    """Levels kept by group layer-dropping (IISAN-Versa): ``count`` evenly spaced layers of a deep encoder.

    Args:
        depth: Number of layers T.
        count: Number of layers to keep, about as many as the shallow encoder keeps.

    Returns:
        Ascending levels: ``(0, 4, 8, 12, 16, 20, 24)`` for 6 of 24 layers.

    Raises:
        EncoderError: Even steps would skip the first layers.
    """
    fits = fitting_groups(depth, count)
    if count not in fits:
        raise EncoderError(
            f"group layer-dropping of {count} out of {depth} layers",
            f"a number whose even steps reach the first layers, such as {' or '.join(map(str, sorted(fits[:2])))}",
            "choose such a number, or list the levels",
        )
    steps = count - 1
    return (0, *range((depth - 1) % steps + 1, depth + 1, (depth - 1) // steps))


def fitting_groups(depth: int, count: int) -> list[int]:
    """Numbers of layers that group layer-dropping can keep, the closest to ``count`` first."""
    fits = [n for n in range(2, depth + 1) if (depth - 1) % (n - 1) < (depth - 1) // (n - 1)]
    return sorted(fits, key=lambda n: abs(n - count))


def parse_levels(spec: str | Sequence[Level], depth: int) -> tuple[Level, ...]:
    """Resolve a choice of levels for an encoder of ``depth`` layers.

    Args:
        spec: ``"layerdrop"``, ``"group-6"`` (group layer-dropping) or ``"all"``, each followed by "last"; a
            comma-separated list such as ``"0,6,12,last"``; or a sequence of levels.
        depth: Number of layers T.

    Returns:
        K distinct levels, ascending, "last" at the end.

    Raises:
        EncoderError: No level, an unknown or repeated one, or one out of range.
    """
    if isinstance(spec, str) and (named := named_levels(spec, depth)) is not None:
        return (*named, LAST)
    parts = spec.split(",") if isinstance(spec, str) else list(spec)
    levels = [_parse_level(part, spec, depth) for part in parts]
    if not levels or len(set(levels)) < len(levels):
        raise EncoderError(f"levels {spec!r}", "distinct levels, at least one", "name each level once")
    return tuple(sorted(levels, key=lambda level: depth + 1 if isinstance(level, str) else level))


def named_levels(spec: str, depth: int) -> tuple[int, ...] | None:
    """Hidden-state indices for ``layerdrop``, ``group-N`` or ``all``; None for anything else."""
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
