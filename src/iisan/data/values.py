"""Columns from Python values of any kinds, as JSON lines and columns of objects in frames hold them."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import polars as pl

#: Kinds of the values of a column -> its type, the first that has them all.
_TYPES: tuple[tuple[set[type], Any], ...] = (
    ({str}, pl.String),
    ({bool}, pl.Boolean),
    ({int}, pl.Int64),
    ({int, float}, pl.Float64),
)
#: Whole numbers from here on are not exact in floats.
_EXACT = 2.0**53


def as_texts(name: str, values: Sequence[Any], join: bool) -> tuple[pl.Series, list[int]]:
    """A column that is used, as strings.

    Missing values and numbers that are not finite are null, a whole number has no fraction.

    Args:
        name: of the column.
        values: of its rows.
        join: lists are joined with spaces, empty ones are null; they are unusable otherwise.

    Returns:
        The strings, and the positions of values that are unusable: objects, bytes, and texts that are no Unicode.
    """
    try:
        whole = {*map(type, values)} <= {int, type(None)}
        return pl.Series(name, values, dtype=pl.Int64 if whole else pl.String).cast(pl.String), []
    except (TypeError, ValueError, OverflowError):
        texts: list[str | None] = []
        unusable = []
    for position, value in enumerate(values):
        try:
            texts.append(_text(value, join))
        except ValueError:
            texts.append(None)
            unusable.append(position)
    return pl.Series(name, texts, dtype=pl.String), unusable


def _text(value: Any, join: bool) -> str | None:
    match value:
        case None:
            return None
        case str():
            value.encode()  # a lone surrogate is no text
            return value
        case bool():
            return json.dumps(value)
        case float():
            if not math.isfinite(value):
                return None
            return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)
        case list() | tuple() if join:
            return " ".join(text for each in value if (text := _text(each, False))) or None
        case list() | tuple() | dict() | set() | bytes():
            raise ValueError(value)
    return str(value)


def as_column(name: str, values: Sequence[Any]) -> pl.Series:
    """A column that nobody asked for: of a type where its values have one, as texts otherwise.

    Types are strings, numbers, booleans, and lists of one of these. Other values, objects for example, are kept as
    their JSON, so that a column is never larger than what it was read from; where they have none, as they are.
    """
    try:
        dtype = _type_of(values)
        if dtype is list:
            inner = _type_of(chain.from_iterable(value for value in values if value is not None))
            dtype = None if inner in (None, list) else pl.List(inner)
        if dtype is not None:
            return pl.Series(name, values, dtype=dtype, strict=dtype not in (pl.Float64, pl.List(pl.Float64)))
    except (TypeError, ValueError, OverflowError):
        pass  # whole numbers beyond 64 bits, texts that are no Unicode
    try:
        return pl.Series(name, [None if value is None else _json(value) for value in values], dtype=pl.String)
    except (TypeError, ValueError):
        return pl.Series(name, values, dtype=pl.Object)


def _type_of(values: Iterable[Any]) -> Any:
    """The type of a column of these values, ``list`` for lists, None where there is none."""
    kinds = {*map(type, values)} - {type(None)}
    return list if kinds == {list} else next((dtype for known, dtype in _TYPES if kinds <= known), None)


def _json(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="replace").decode()
