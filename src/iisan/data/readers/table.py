"""Formats of one's own: two tables with named columns, and the tables published with IISAN."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from iisan.data.assemble import interaction_roles, item_roles
from iisan.data.options import PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import Files, Layout, Part, RawTables, Reader
from iisan.data.rules import rule_roles
from iisan.data.tables import LINE, SUFFIXES, Role, Table, read_table
from iisan.names import HISTORY, ITEM_ID, TEXT, USER_ID

_ENDINGS = [f"{suffix}{compressed}" for suffix in SUFFIXES for compressed in ("", ".gz")]


def _read_table(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    (items_file,), (interactions_file,) = files["items"], files["interactions"]
    items = read_table(items_file, item_roles(options), problems, rest=True, quotes=options.quotes)
    interactions = read_table(interactions_file, interaction_roles(options), problems, quotes=options.quotes)
    return RawTables(items, interactions, items_file.parent)


def _read_reference(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    item_columns, user_columns = (ITEM_ID, TEXT), (USER_ID, HISTORY)

    def read(path: Path, columns: tuple[str, ...], rules: Sequence[Role] = ()) -> Table:
        roles = [*(Role(name, (name,)) for name in columns), *rules]
        return read_table(path, roles, problems, quotes=bool(options.quotes), header=columns)

    # There is no column for a rule: one that is given is an error.
    items = read(files["items"][0], item_columns)
    users = read(files["users"][0], user_columns, rule_roles(options))
    history = pl.col(HISTORY).str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ")
    interactions = users.frame.select(LINE, USER_ID, history.alias(ITEM_ID)).explode(ITEM_ID)
    return RawTables(items, Table(interactions, users.where))


def _part(name: str, endings: Sequence[str]) -> Part:
    return Part(name, tuple(f"{name}{ending}" for ending in endings))


#: An items file and an interactions file, in any format of :func:`iisan.data.tables.read_table`.
TABLE = Reader(
    (Layout("two tables", (_part("items", _ENDINGS), _part("interactions", _ENDINGS)), _read_table, depth=0),)
)
#: ``items.tsv`` holds ``item_id TAB title``, ``users.tsv`` holds ``user_id TAB item_id item_id …``, oldest first.
REFERENCE = Reader(
    (
        Layout(
            "tables as published with IISAN",
            (_part("items", (".tsv", ".tsv.gz")), _part("users", (".tsv", ".tsv.gz"))),
            _read_reference,
            depth=0,
        ),
    ),
    filters={"min_length": 5, "keep_last": 13, "items": "interacted"},
    header=False,
)
