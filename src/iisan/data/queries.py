"""Given queries: rows of a user, a history and a target, from files or frames."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from iisan.data.clean import clean_ids
from iisan.data.problems import Problems
from iisan.data.sequences import Sequences
from iisan.data.splits import Queries, Subset, given_queries
from iisan.data.tables import LINE, Role, Table, numbered, read_table
from iisan.errors import DataError
from iisan.files import aside
from iisan.names import HISTORY, ITEM_ID, TARGET, USER_ID

_NUMBER = "__number__"
#: File of the user of each query, beside those of the sequences: history and target.
_USERS = "users.npy"


def both(validation: Any, test: Any) -> dict[Subset, Any]:
    """Given queries by subset; empty if there are none.

    Raises:
        DataError: Those of one subset are missing.
    """
    if validation is not None and test is not None:
        return {"validation": validation, "test": test}
    if validation is None and test is None:
        return {}
    given, missing = ("validation", "test") if test is None else ("test", "validation")
    got = f"{given} queries are given without {missing} queries"
    raise DataError(got, "both, or neither", f"add --{missing} FILE ({missing}=…)")


def query_roles(user_id: str | None) -> list[Role]:
    """Columns of a table of queries; ``user_id`` is the name of the user column, by default ``user_id``."""
    cure = f"name the columns {user_id or USER_ID}, {HISTORY} and {TARGET}"
    return [
        Role(USER_ID, (user_id or USER_ID,), cure=cure),
        Role(HISTORY, (HISTORY,), cure=cure, lists="keep"),
        Role(TARGET, (TARGET,), cure=cure),
    ]


def read_queries(
    path: Path, user_id: str | None, problems: Problems, *, header: bool | None, quotes: bool | None = None
) -> Table:
    """Read a file of queries.

    Args:
        path: Table in any format of ``read_table``. Histories are ids separated by white space, or lists.
        user_id: Name of the user column; defaults to ``user_id``.
        problems: Receives invalid rows.
        header: Whether a CSV or TSV file has a header line; None decides by its first line.
        quotes: See ``read_table``.

    Raises:
        DataError: See ``read_table``.
    """
    roles = query_roles(user_id)
    columns = None if header else [role.candidates[0] for role in roles]
    return read_table(path, roles, problems, quotes=quotes, header=columns, detect=header is None)


def index_queries(
    table: Table, item_ids: pl.Series, user_ids: pl.Series, problems: Problems, known: str
) -> tuple[Queries, pl.Series]:
    """Look up the items and users of a table of queries.

    Args:
        table: Columns of ``query_roles``.
        item_ids: Ids of the catalogue.
        user_ids: Ids of the known users.
        problems: Receives rows with a missing, malformed or unknown value.
        known: Description of the known items, for messages.

    Returns:
        The queries, one per row, and the ids of all users: ``user_ids``, then those that only occur here.

    Raises:
        DataError: A bad row (policy ``stop``), or no row is left.
    """
    table = _with_histories(table.with_ids((USER_ID, TARGET), problems), problems)
    # All items of a row, the target last.
    items = table.frame.select(LINE, pl.concat_list(HISTORY, TARGET).alias(ITEM_ID)).explode(ITEM_ID)
    items = numbered(items, ITEM_ID, item_ids, _NUMBER)
    unknown = items.filter(pl.col(_NUMBER).is_null()).unique(LINE, keep="first", maintain_order=True)
    Table(unknown, table.where).reject(pl.lit(True), ITEM_ID, "unknown item", known, problems)
    frame, items = (
        each.join(unknown, on=LINE, how="anti", maintain_order="left") for each in (table.frame, items)
    )
    if frame.is_empty():
        raise DataError(f"no row of {table.name} is left", "one or more", "correct the rows that were skipped")
    everyone = pl.concat([user_ids, frame[USER_ID].alias(user_ids.name)]).unique(maintain_order=True)
    users = numbered(frame.select(USER_ID), USER_ID, everyone, _NUMBER)[_NUMBER]
    lengths = frame[HISTORY].list.len().cast(pl.Int64).to_numpy() + 1
    sequences = Sequences(np.concatenate([[0], np.cumsum(lengths)]), items[_NUMBER].cast(pl.Int32).to_numpy())
    return given_queries(sequences, users.cast(pl.Int64).to_numpy()), everyone


def save_queries(queries: Queries | None, folder: Path) -> list[Path]:
    """Write given queries as ``.npy`` files, or remove those of an earlier dataset; return the paths."""
    if queries is None:
        for name in (_USERS, "offsets.npy", "items.npy"):
            (folder / name).unlink(missing_ok=True)
        return []
    with aside(folder / _USERS) as temporary, temporary.open("wb") as file:
        np.save(file, queries.users)
    return [folder / _USERS, *queries.sequences.save(folder)]


def load_queries(folder: Path) -> Queries:
    """Memory-map the arrays of ``save_queries``."""
    return given_queries(Sequences.load(folder), np.load(folder / _USERS, mmap_mode="r"))


def _with_histories(table: Table, problems: Problems) -> Table:
    """Convert histories to lists of ids."""
    frame = table.frame
    if frame[HISTORY].dtype == pl.Array:
        frame = frame.with_columns(pl.col(HISTORY).arr.to_list())
    elif frame[HISTORY].dtype != pl.List:
        words = clean_ids(frame[HISTORY].alias(f"{HISTORY} id"), table.name).str.extract_all(r"\S+")
        frame = frame.with_columns(words.alias(HISTORY))
    table = Table(frame, table.where)
    empty = pl.col(HISTORY).list.len().fill_null(0) == 0
    table = table.reject(empty, USER_ID, "empty history of user", "one item or more", problems)
    flat = table.frame.select(LINE, HISTORY).explode(HISTORY)
    ids = clean_ids(flat[HISTORY].alias(f"{HISTORY} id"), table.name)
    lists = flat.select(LINE, ids.alias(HISTORY)).group_by(LINE, maintain_order=True).agg(HISTORY)
    table = Table(table.frame.with_columns(lists[HISTORY]), table.where)
    blank = pl.col(HISTORY).list.eval(pl.element().fill_null("").str.strip_chars() == "").list.any()
    return table.reject(blank, USER_ID, "history with an empty id of user", "an id in every place", problems)
