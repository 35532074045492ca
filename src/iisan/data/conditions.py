"""Conditions on columns of the items."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from iisan.data.filters import Mask
from iisan.data.histories import ids_of, known_rows
from iisan.data.sequences import Index
from iisan.data.tables import numbered
from iisan.errors import DataError
from iisan.names import PAD

_TEXTS = (pl.Categorical, pl.Enum)
_TRUTH = {"true": True, "false": False}
_SHOWN = 3
_NUMBER = "__number__"


def allowed_items(item_ids: pl.Series, only: Iterable[Any] | None, exclude: Iterable[Any] | None) -> Mask:
    """Mark the items of a list of allowed ids, by default all, but those of a list of excluded ones, ``[N]``.

    Unknown ids are left out with a warning.

    Raises:
        DataError: A string in place of a list, an empty list of allowed ids, or a list of which no id is known.
    """
    mask = np.full(len(item_ids), only is None)
    if only is not None:
        mask[known_rows(item_ids, only, "items_to_recommend")] = True
    if exclude is not None and (ids := ids_of(exclude, "items_to_exclude", "item", empty=True)):
        mask[known_rows(item_ids, ids, "items_to_exclude")] = False
    return mask


def matching(items: pl.DataFrame, where: Mapping[str, Any]) -> Mask:
    """Mark the items that meet all conditions, ``[N]``.

    Args:
        items: Items of a dataset.
        where: Column -> value, or a list of values of which one is enough. Columns hold texts, lists of texts
            (which must contain the value), numbers or booleans; values may also be given as texts.

    Raises:
        DataError: An unknown column, one of another type, a value of another type, or a condition that no item
            meets.
    """
    if not isinstance(where, Mapping):
        raise DataError(f"the conditions {where!r}", "values by column", "pass where={'column': value}")
    mask = np.ones(len(items), bool)
    for name, wanted in where.items():
        column = _column(items, name)
        values = [wanted] if isinstance(wanted, str | bytes) or not hasattr(wanted, "__iter__") else list(wanted)
        met = np.zeros(len(items), bool)
        for value in values:
            met |= _equal(column, value).fill_null(False).to_numpy()
        if not met.any():
            got = f"no item has {name} = {' or '.join(map(repr, values)) or 'one of no values'}"
            raise DataError(got, _described(column), "check the spelling")
        mask &= met
    return mask


def numbered_values(items: pl.DataFrame, name: str) -> Index:
    """Number the values of a column of items, ``[N]``; ``PAD`` where there is none.

    Raises:
        DataError: An unknown column, or one of nested values.
    """
    column = _column(items, name)
    if column.dtype.is_nested():
        got = f"the column '{name}' of the items holds {column.dtype}"
        raise DataError(got, "one value per item", "name another column")
    distinct = column.drop_nulls().unique(maintain_order=True)
    numbers = numbered(column.to_frame(), name, distinct, _NUMBER)[_NUMBER]
    return numbers.cast(pl.Int64).fill_null(PAD).to_numpy()


def column_facts(items: pl.DataFrame, count: int) -> dict[str, dict[str, Any]]:
    """Describe the columns on which there can be conditions: their type, and the most common values."""
    found = {}
    for column in (_column(items, name) for name in items.columns):
        dtype = column.dtype
        number = dtype.is_integer() or dtype.is_float()
        kind = "boolean" if dtype == pl.Boolean else "number" if number else "text"
        if kind != "text" or dtype in (pl.String, pl.List(pl.String)):
            found[column.name] = {"type": kind, "values": _common(column, count)}
    return found


def _column(items: pl.DataFrame, name: str) -> pl.Series:
    if name not in items.columns:
        close = difflib.get_close_matches(str(name), items.columns, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "check the spelling"
        raise DataError(f"the items have no column '{name}'", f"one of {', '.join(items.columns)}", hint)
    column = items[name]
    return column.cast(pl.String) if column.dtype in _TEXTS else column


def _equal(column: pl.Series, value: Any) -> pl.Series:
    """Compare a column with a value, after converting it to the column's type."""
    dtype = column.dtype
    try:
        if dtype == pl.Boolean:
            return column == _TRUTH[str(value).lower()]
        if isinstance(value, bool) or not isinstance(value, str | int | float | np.integer | np.floating):
            raise ValueError(value)
        if dtype.is_integer():
            return column == int(str(value))
        if dtype.is_float():
            return column == float(value)
        if dtype == pl.String:
            return column == str(value)
        if dtype == pl.List(pl.String):
            return column.list.contains(str(value))
    except (KeyError, ValueError, OverflowError):
        got = f"the condition {column.name} = {value!r} on a column of type {dtype}"
        raise DataError(got, _described(column), "give a value of that type") from None
    got = f"a condition on the column '{column.name}' of type {dtype}"
    raise DataError(got, "texts, lists of texts, numbers or booleans", "name another column")


def _described(column: pl.Series) -> str:
    """Describe a column's values for a message."""
    common = _common(column, _SHOWN)
    return f"one of its values, such as {', '.join(map(repr, common))}" if len(common) else "a column with values"


def _common(column: pl.Series, count: int) -> list[Any]:
    """Return the most common values of a column, or of the lists in it; of equally common ones the lower."""
    flat = (column.explode() if column.dtype == pl.List else column).drop_nulls()
    counts = flat.value_counts(name="__count__")
    return counts.sort(["__count__", flat.name], descending=[True, False]).head(count)[flat.name].to_list()
