"""Raw tables from polars or pandas DataFrames."""

import sys
from collections.abc import Sequence
from typing import Any

import polars as pl

from iisan.data.problems import Problems
from iisan.data.tables import LINE, USABLE, Role, Table, lists_of, renamed, report_values, resolve
from iisan.data.values import as_column, as_texts
from iisan.errors import DataError, MissingExtraError


def read_frame(frame: Any, roles: Sequence[Role], name: str, problems: Problems, *, rest: bool) -> Table:
    """Make a table from a polars or pandas DataFrame, see :func:`iisan.data.tables.read_table`.

    Python objects in columns that are used become strings; ``name`` is that of the frame in messages.

    Raises:
        DataError: Not a DataFrame, an empty one, a missing column, or a bad row (policy ``stop``).
        MissingExtraError: Columns of pandas need pyarrow.
    """
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if not isinstance(frame, pl.DataFrame):
        frame = _from_pandas(frame, roles, name, rest)
    found = resolve(frame.columns, roles, name)
    if frame.is_empty():
        raise DataError(f"{name} is empty", "a table with rows", "check what made it")
    frame = frame if rest else frame.select(list(found))
    lists, unusable = lists_of(roles), set[int]()
    for column in frame.select(pl.col(pl.Object)).columns:
        values = frame[column].to_list()
        if column not in found:
            frame = frame.with_columns(as_column(column, values))
            continue
        texts, bad = as_texts(column, values, lists[column])
        rows = [(row + 1, str(values[row])) for row in bad]
        report_values(rows, f"{name}, row", f"unusable {found[column]}", USABLE, problems)
        frame, unusable = frame.with_columns(texts), unusable.union(row for row, _ in rows)
    frame = renamed(frame, found, name).with_row_index(LINE, 1)
    return Table(frame.filter(~pl.col(LINE).is_in(list(unusable))), f"{name}, row")


def _from_pandas(frame: Any, roles: Sequence[Role], name: str, rest: bool) -> pl.DataFrame:
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(frame, pandas.DataFrame):
        raise DataError(f"{name} is of type {type(frame).__name__}", "a polars or pandas DataFrame", "convert it")
    columns = [str(column) for column in frame.columns]
    if len(set(columns)) < len(columns):
        raise DataError(f"{name} has two columns of one name: {columns}", "unique names", "rename one")
    found = resolve(columns, roles, name)
    named = zip(columns, (column for _, column in frame.items()), strict=True)
    return pl.DataFrame([_series(each, column, each in found) for each, column in named if rest or each in found])


def _series(name: str, column: Any, used: bool) -> pl.Series:
    """Convert a column of pandas; to Python objects where pyarrow has no type for all values."""

    def values() -> list[Any]:
        return [None if missing else value for value, missing in zip(column, column.isna(), strict=True)]

    # pyarrow would make a column of every key.
    if not used and column.dtype == object and any(isinstance(value, dict) for value in column):
        return as_column(name, values())
    try:
        return pl.from_pandas(column.to_frame(name))[name]
    except ImportError:
        raise MissingExtraError("pyarrow", "pandas", "reading pandas DataFrames") from None
    except Exception:  # pyarrow's own errors, without importing it
        return pl.Series(name, values(), dtype=pl.Object)
