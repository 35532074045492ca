"""Ids, users and histories as people pass them: sequences, polars or pandas frames."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from iisan.data.assemble import index_interactions
from iisan.data.dataset import Dataset, manifest_of
from iisan.data.filters import to_sequences
from iisan.data.frames import read_frame
from iisan.data.ids import index_of, quoted
from iisan.data.options import RULE_OPTIONS, PrepareOptions, parse_options
from iisan.data.problems import Problems
from iisan.data.rules import apply_rules, described_rules, rule_roles
from iisan.data.sequences import Index, Sequences
from iisan.data.tables import Role, Table, numbered
from iisan.errors import DataError
from iisan.names import ITEM_ID, PAD, TIMESTAMP, USER_ID

_ROW = "__row__"
_FRAME = "the frame of histories"
_CURE = f"name the columns {USER_ID}, {ITEM_ID} and, for the order, {TIMESTAMP}"
_ROLES = (
    Role(USER_ID, (USER_ID,), cure=_CURE),
    Role(ITEM_ID, (ITEM_ID,), cure=_CURE),
    Role(TIMESTAMP, (TIMESTAMP, "datetime"), required=False),
)


def ids_of(values: Any, name: str, kind: str, *, empty: bool = False) -> list[str]:
    """Return a sequence of ids as strings.

    Args:
        values: List, array or column of ids.
        name: Name of the argument, for messages.
        kind: Kind of the ids, such as "item".
        empty: Whether there may be none.

    Raises:
        DataError: A single string, a frame, no sequence, or an empty one.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__") or hasattr(values, "columns"):
        shown = f"={values!r}" if isinstance(values, str | bytes | int | float) else ""
        got = f"{name}{shown} is of type {type(values).__name__}"
        raise DataError(got, f"a sequence of {kind} ids", f"pass {name}=[…]")
    ids = [str(each) for each in values]
    if not (ids or empty):
        raise DataError(f"{name} is empty", f"one {kind} or more", f"name at least one {kind}")
    return ids


def known_rows(item_ids: pl.Series, values: Any, name: str) -> Index:
    """Return the row numbers of the known items among some ids, and warn of the others.

    Raises:
        DataError: No sequence of ids, see ``ids_of``, or none is known.
    """
    wanted = ids_of(values, name, "item")
    found = numbered(pl.DataFrame({"id": pl.Series(wanted, dtype=pl.String)}), "id", item_ids, "number")
    known = found.drop_nulls("number")
    if known.is_empty():
        return index_of(item_ids, wanted, "item")
    _warn(found.filter(pl.col("number").is_null())["id"], name)
    return known["number"].cast(pl.Int64).to_numpy()


def read_histories(frame: Any, item_ids: pl.Series, dataset: Path | None = None) -> tuple[pl.Series, Sequences]:
    """Read the histories of users from a polars or pandas DataFrame.

    Args:
        frame: One row per interaction: ``user_id``, ``item_id``, and ``timestamp`` or ``datetime``, by which each
            user's are ordered; without it, rows are in order of time. Of columns with events or weights, see
            :func:`iisan.data.rules.rule_roles`, those rows count that do so in the dataset. Other columns are
            ignored.
        item_ids: Ids of the catalogue. Rows of other items are left out with a warning.
        dataset: Folder of the dataset whose rules decide which rows count; the others are left out with a warning.

    Returns:
        Ids of the users in order of first appearance, and their histories.

    Raises:
        DataError: Not such a frame, a row without an id or with an unparsable time, a user without interactions
            that count or without known items, or different events or weights without a rule for them.
    """
    problems, rules = Problems("stop", "correct it or leave that row out"), _recorded_rules(dataset)
    roles = [*_ROLES, *rule_roles(rules, histories=True)]
    table = read_frame(frame, roles, _FRAME, problems, rest=False).with_ids((USER_ID,), problems)
    users, rows = table.frame[USER_ID].unique(maintain_order=True), len(table.frame)
    table, left_out = apply_rules(table, rules, problems, histories=True)
    if count := sum(left_out.values()):
        counting = " and ".join(described_rules(rules)[name] for name in left_out)
        without = users.filter(~users.is_in(table.frame[USER_ID].unique().implode()))
        if len(without):
            got = f"{_FRAME} has no interaction that counts of user {quoted(without)}"
            expected = f"for each user one or more of those that count in the run's dataset, {counting}"
            raise DataError(got, expected, "leave them out")
        text = f"{count:,} of {rows:,} interactions are left out of the histories, as only {counting} count"
        warnings.warn(f"{text} in the run's dataset", stacklevel=3)
    table = table.with_ids((ITEM_ID,), problems)
    known = table.frame[ITEM_ID].is_in(item_ids.implode())
    left = table.frame.filter(known)
    without = users.filter(~users.is_in(left[USER_ID].unique().implode()))
    if len(without):
        got = f"{_FRAME} has only unknown items of user {quoted(without)}"
        raise DataError(got, f"one or more of the {len(item_ids):,} known items for each user", "leave them out")
    _warn(table.frame[ITEM_ID].filter(~known), "the histories")
    user_ids, events, _ = index_interactions(Table(left, table.where), item_ids, problems)
    return user_ids, to_sequences(events, len(user_ids))


def _recorded_rules(folder: Path | None) -> PrepareOptions:
    """The rules that a dataset was prepared with; none if it is not at hand."""
    try:
        recorded = {} if folder is None else manifest_of(folder)["provenance"]["options"]
    except (DataError, KeyError):
        recorded = {}
    return parse_options({name: recorded.get(name) for name in RULE_OPTIONS})


def in_rows_of(item_ids: pl.Series, dataset: Dataset) -> Sequences:
    """Return the interactions of a dataset in rows of a catalogue; those with other items are left out.

    Warns of such interactions.

    Raises:
        DataError: No item of the dataset is known.
    """
    sequences, theirs = dataset.sequences, dataset.items[ITEM_ID]
    if theirs.equals(item_ids[: len(theirs)]):
        return sequences
    rows = numbered(theirs.to_frame(), ITEM_ID, item_ids, _ROW)[_ROW].cast(pl.Int64).fill_null(PAD).to_numpy()
    if (rows == PAD).all():
        got = f"the dataset '{dataset.folder}' has none of the run's items (its first: {theirs[0]!r})"
        raise DataError(got, "a dataset with items of the run", "name the run's own dataset, or a newer one")
    items = rows[sequences.items]
    known = items != PAD
    if not known.all():
        left = f"{(~known).sum():,} of {len(known):,} interactions are left out, as the run lacks their items"
        warnings.warn(f"{left}: add these by `iisan add-items`", stacklevel=3)
    offsets = np.concatenate([[0], np.cumsum(known)])[sequences.offsets]
    timestamps = None if sequences.timestamps is None else sequences.timestamps[known]
    return Sequences(offsets, items[known].astype(np.int32), timestamps)


def in_the_form_of(given: Any, frame: pl.DataFrame) -> Any:
    """Return a frame as a pandas DataFrame if ``given`` is a frame, column or index of pandas."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(given, pandas.DataFrame | pandas.Series | pandas.Index):
        return frame
    return pandas.DataFrame({column.name: column.to_numpy() for column in frame})


def _warn(unknown: pl.Series, name: str) -> None:
    if len(unknown):
        text = f"unknown items are left out of {name}: {quoted(unknown.unique(maintain_order=True))}"
        warnings.warn(text, stacklevel=3)
