"""Columns from Python values of any types, as found in JSON lines and object columns of DataFrames."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import polars as pl

#: Treatment of lists in a column of texts: an error, joined to one text, or kept as lists.
Lists = Literal["refuse", "join", "keep"]

#: Types of columns by the types of their values; the first that contains all applies.
_TYPES: tuple[tuple[set[type], Any], ...] = (
    ({str}, pl.String),
    ({bool}, pl.Boolean),
    ({int}, pl.Int64),
    ({int, float}, pl.Float64),
)
#: Smallest magnitude of whole numbers that floats do not represent exactly.
_EXACT = 2.0**53


def as_texts(name: str, values: Sequence[Any], lists: Lists) -> tuple[pl.Series, list[int]]:
    """Convert values to strings; numbers that are not finite become null, whole numbers lose their fraction.

    Lists are unusable (``refuse``) or joined with spaces (``join``; empty ones become null). With ``keep``, all
    values become lists of strings, texts those of their words.

    Returns:
        Strings, and the positions of unusable values: objects, bytes, invalid Unicode, and kept lists with nulls.
    """
    if lists == "keep":
        return _as_lists(name, values)
    join, kinds = lists == "join", {*map(type, values)}
    for kind, dtype in ((str, pl.String), (int, pl.Int64)):
        if kinds <= {kind, type(None)}:
            try:
                return pl.Series(name, values, dtype=dtype).cast(pl.String), []
            except (TypeError, ValueError, OverflowError):
                break
    texts: list[str | None] = []
    unusable = []
    for position, value in enumerate(values):
        try:
            texts.append(_text(value, join))
        except ValueError:
            texts.append(None)
            unusable.append(position)
    return pl.Series(name, texts, dtype=pl.String), unusable


def _as_lists(name: str, values: Sequence[Any]) -> tuple[pl.Series, list[int]]:
    found: list[list[str | None] | None] = []
    unusable = []
    for position, value in enumerate(values):
        parts = value.split() if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        try:
            texts = None if value is None else [_text(each, False) for each in parts]
        except ValueError:
            texts = [None]
        if texts and None in texts:
            texts = None
            unusable.append(position)
        found.append(texts)
    return pl.Series(name, found, dtype=pl.List(pl.String)), unusable


def _text(value: Any, join: bool) -> str | None:
    match value:
        case None:
            return None
        case str():
            value.encode()  # raises on lone surrogates
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
    """Convert values of an unused column to a common type: strings, numbers, booleans, or lists of one of these.

    Columns without a common type are stored as JSON texts, which are never larger than the source, and values
    that JSON cannot represent as Python objects.
    """
    try:
        dtype = _type_of(values)
        if dtype is list:
            inner = _type_of(chain.from_iterable(value for value in values if value is not None))
            dtype = None if inner in (None, list) else pl.List(inner)
        if dtype is not None:
            return pl.Series(name, values, dtype=dtype, strict=dtype not in (pl.Float64, pl.List(pl.Float64)))
    except (TypeError, ValueError, OverflowError):
        pass  # whole numbers beyond 64 bits, invalid Unicode
    try:
        return pl.Series(name, [None if value is None else _json(value) for value in values], dtype=pl.String)
    except (TypeError, ValueError):
        return pl.Series(name, values, dtype=pl.Object)


def _type_of(values: Iterable[Any]) -> Any:
    """Common column type of values, ``list`` for lists, None if there is none."""
    kinds = {*map(type, values)} - {type(None)}
    return list if kinds == {list} else next((dtype for known, dtype in _TYPES if kinds <= known), None)


def _json(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="replace").decode()
