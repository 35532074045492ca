"""Metrics by group of queries: popularity of target, length of history, or any column of users or items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from iisan.data.sequences import Index
from iisan.errors import ConfigError, DataError
from iisan.evaluate.metrics import HISTORY_LENGTH, POPULARITY, named_metrics
from iisan.evaluate.significance import intervals
from iisan.names import ITEM_ID, USER_ID

#: Ways to group that need no other table.
HISTORY = "history"
BUILT_IN = ("cold", POPULARITY, HISTORY)
#: Longest histories of the groups by length, before that of all longer ones.
_LENGTHS = np.array([1, 2, 5, 10, 20, 50, 100])
#: Most values that each make a group. Further numbers are cut at their deciles; other values are too many.
_NUMBERS, _VALUES = 10, 50
#: Name of the group of rows without a value.
UNKNOWN = "unknown"
_VALUE = "__value__"


@dataclass(frozen=True)
class Groups:
    """Division of the ranked rows of a ``per_user_frame``.

    Attributes:
        names: Names of the groups, in order.
        rows: Number of each row's group, ``[Q]``.
    """

    names: list[str]
    rows: Index

    def metrics(self, frame: pl.DataFrame, metrics: Sequence[str], with_intervals: bool) -> list[dict[str, Any]]:
        """Compute metrics of each group of a frame with the same ranked rows.

        Returns:
            ``group``, ``users``, ``queries`` and the metrics, as shares of 1; where wanted, also ``intervals``.

        Raises:
            ConfigError: An unknown metric.
        """
        ranked, found = frame.drop_nulls("ties"), []
        for number, name in enumerate(self.names):
            rows = ranked.filter(pl.Series(self.rows == number))
            each = {"group": name, "users": rows[USER_ID].n_unique(), "queries": len(rows)}
            each |= named_metrics(rows, metrics)
            found.append(each | {"intervals": intervals(rows, metrics)} if with_intervals else each)
        return found


def column_of(by: str, users: pl.DataFrame | None, items: pl.DataFrame) -> pl.DataFrame | None:
    """Find the column of users, or else of items, to group by; None for the ways that need no other table.

    Args:
        by: ``cold``, ``popularity``, ``history``, or the name of a column.
        users: ``user_id`` and further columns.
        items: ``item_id`` and further columns.

    Returns:
        ``user_id`` or ``item_id``, and the value of each.

    Raises:
        ConfigError: No such column.
        DataError: Its values are nested, or a user has two.
    """
    if by in BUILT_IN:
        return None
    tables = {USER_ID: pl.DataFrame() if users is None else users, ITEM_ID: items}
    for key, table in tables.items():
        if by == key or by not in table.columns:
            continue
        unit = "user" if key == USER_ID else "item"
        if table[by].dtype.is_nested():
            raise DataError(f"the column '{by}' holds {table[by].dtype}", f"one value per {unit}", "name another")
        values = table.select(key, pl.col(by).alias(_VALUE)).unique()
        if repeated := values[key].is_duplicated().sum():
            got = f"{repeated:,} rows of users with different values of '{by}'"
            raise DataError(got, "one value per user", "correct the file of users")
        return values
    known = [*BUILT_IN, *(name for key, table in tables.items() for name in table.columns if name != key)]
    cure = "check the spelling, or name the file that has it by --users"
    raise ConfigError(f"no column '{by}' to group by", f"one of {', '.join(dict.fromkeys(known))}", cure)


def group_by(frame: pl.DataFrame, by: str, column: pl.DataFrame | None = None) -> Groups:
    """Group the ranked rows of a ``per_user_frame``.

    Args:
        frame: Per-user results.
        by: ``cold`` (cold and warm targets), ``popularity`` (deciles of the targets' training interactions),
            ``history`` (its length), or a column. More than ten numbers are cut at their deciles; any other value
            of a column is a group.
        column: The column, see ``column_of``.

    Raises:
        DataError: There are too many values for groups.
    """
    ranked = frame.drop_nulls("ties")
    if by == POPULARITY:
        return _by_number(ranked[POPULARITY])
    if by == HISTORY:
        return _cut(ranked[HISTORY_LENGTH], _LENGTHS)
    if column is None:
        return _by_value(ranked.select(pl.when("cold").then(pl.lit("cold")).otherwise(pl.lit("warm"))).to_series())
    key, _ = column.columns
    values = ranked.join(column, on=key, how="left", maintain_order="left")[_VALUE]
    if values.dtype == pl.String:
        # CSV has no types.
        numbers = values.cast(pl.Float64, strict=False)
        values = numbers if numbers.null_count() == values.null_count() else values
    return _by_number(values) if values.dtype.is_numeric() else _by_value(values.cast(pl.String))


def _by_value(values: pl.Series) -> Groups:
    """Make a group of every text; raise a ``DataError`` if there are too many."""
    names = values.drop_nulls().unique().sort()
    if len(names) > _VALUES:
        got, expected = f"{len(names):,} different values to group by", f"at most {_VALUES}, or numbers"
        raise DataError(got, expected, "name a column with fewer values")
    return _groups(values, names.search_sorted(values.drop_nulls()).to_numpy(), names.to_list())


def _by_number(values: pl.Series) -> Groups:
    """Make a group of every number, or cut them at their deciles if there are many."""
    values = values.fill_nan(None) if values.dtype.is_float() else values
    edges = np.unique(values.drop_nulls().to_numpy())
    if len(edges) > _NUMBERS:
        edges = np.quantile(values.drop_nulls().to_numpy(), np.arange(1, 10) / 10, method="lower")
    return _cut(values, edges)


def _cut(values: pl.Series, edges: npt.NDArray[Any]) -> Groups:
    """Cut numbers behind each of some ascending ones, so that equal numbers stay together."""
    known = values.drop_nulls().to_numpy()
    inside, rows = np.unique(np.searchsorted(edges, known), return_inverse=True)
    names = []
    for number in range(len(inside)):
        own = known[rows == number]
        low, high = (f"{end:,.10g}" for end in (own.min(), own.max()))
        names.append(low if low == high else f"{low} to {high}")
    return _groups(values, rows, names)


def _groups(values: pl.Series, rows_of_known: Index, names: list[str]) -> Groups:
    """Put the rows without a value into a group of their own."""
    known = values.is_not_null().to_numpy()
    rows = np.full(len(values), len(names))
    rows[known] = rows_of_known
    return Groups(names if known.all() else [*names, UNKNOWN], rows)
