"""Users who are held out of training for validation or test: rows of a user and a subset, from files or frames."""

from pathlib import Path
from typing import Any, get_args

import polars as pl

from iisan.data.frames import read_frame
from iisan.data.problems import Problems
from iisan.data.sequences import Index
from iisan.data.splits import Subset
from iisan.data.tables import Role, Table, read_table
from iisan.errors import DataError
from iisan.names import SUBSET, USER_ID

_SUBSETS = get_args(Subset)


def _roles(user_id: str | None) -> list[Role]:
    cure = f"name the columns {user_id or USER_ID} and {SUBSET}"
    return [Role(USER_ID, (user_id or USER_ID,), cure=cure), Role(SUBSET, (SUBSET,), cure=cure)]


def read_held_out(path: Path, user_id: str | None, problems: Problems, quotes: bool | None = None) -> Table:
    """Read a file of held-out users, in any format of ``read_table``; CSV and TSV need no header line.

    Raises:
        DataError: See ``read_table``.
    """
    roles = _roles(user_id)
    columns = [role.candidates[0] for role in roles]
    return read_table(path, roles, problems, quotes=quotes, header=columns, detect=True)


def read_held_out_frame(frame: Any, user_id: str | None, problems: Problems) -> Table:
    """Read a polars or pandas DataFrame of held-out users, see :func:`iisan.data.frames.read_frame`."""
    return read_frame(frame, _roles(user_id), "the frame of held-out users", problems, rest=False)


def subsets_of_users(table: Table, known: pl.Series, user_ids: pl.Series, problems: Problems) -> pl.Series:
    """Look up the subset of every user.

    Args:
        table: Columns ``user_id`` and ``subset``.
        known: Ids of the users before the filters.
        user_ids: Ids of the users after the filters.
        problems: Receives rows with an unknown user, a user named before, or another subset.

    Returns:
        Subset of each of ``user_ids``, null for those who are trained on.

    Raises:
        DataError: A bad row (policy ``stop``), or no user of a subset is left.
    """
    table = table.with_ids((USER_ID, SUBSET), problems)
    column, expected = pl.col(USER_ID), "a user of the interactions"
    table = table.reject(~column.is_in(known.implode()), USER_ID, "unknown user", expected, problems)
    table = table.reject(~column.is_first_distinct(), USER_ID, "repeated user", "every user once", problems)
    expected = " or ".join(_SUBSETS)
    table = table.reject(~pl.col(SUBSET).is_in(_SUBSETS), SUBSET, "unknown subset", expected, problems)
    named = pl.DataFrame({USER_ID: user_ids}).join(table.frame, on=USER_ID, how="left", maintain_order="left")
    for subset in _SUBSETS:
        if not (named[SUBSET] == subset).any():
            got = f"{table.name} names no {subset} user who is left after the filters"
            raise DataError(got, "one or more", "name further users, or relax the filters")
    return named[SUBSET]


def users_frame(user_ids: pl.Series, subsets: pl.Series | None) -> pl.DataFrame:
    """Ids of the users and, if there are any, their subsets: the columns of ``users.parquet``."""
    return pl.DataFrame([user_ids.alias(USER_ID), *([] if subsets is None else [subsets.alias(SUBSET)])])


def users_by_subset(subsets: pl.Series) -> dict[Subset, Index]:
    """Convert the subset of every user to the user indices of every subset."""
    return {
        subset: (subsets == subset).fill_null(False).arg_true().cast(pl.Int64).to_numpy() for subset in _SUBSETS
    }
