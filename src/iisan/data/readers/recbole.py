"""RecBole's atomic files: tab-separated tables whose header states the type of each column."""

import polars as pl

from iisan.data.assemble import item_roles
from iisan.data.options import ALL, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import (
    UNKNOWN_ITEM,
    Files,
    Layout,
    Part,
    RawTables,
    Reader,
    items_of,
    read_interactions,
)
from iisan.data.readers.recognise import fields
from iisan.data.tables import Form, Table, read_table

_FORM = Form("\t", types=True)
_TITLES = ("title", "movie_title", "item_title", "item_name", "name")


def _read(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    path = files["interactions"][0]
    names = {name.split(":")[0] for name in fields(path, Form("\t"))}
    rules = {name: default for name, default in (("timestamp", "timestamp"),) if default in names}
    interactions = read_interactions(path, options.with_defaults(rules), problems, form=_FORM)
    if not files["items"]:
        return RawTables(items_of(interactions, problems), interactions)
    path = files["items"][0]
    types = dict(name.split(":") for name in fields(path, Form("\t")) if name.count(":") == 1)
    title = next((name for name in _TITLES if name in types), None)
    roles = item_roles(options.with_defaults({"text": title}))
    table = read_table(path, roles, problems, rest=True, form=_FORM)
    frame = table.frame.with_columns(
        pl.col(name).cast(pl.Float64, strict=False) if kind == "float" else pl.col(name).str.split(" ")
        for name, kind in types.items()
        if name in table.frame.columns
        and name not in options.columns
        and (kind == "float" or (kind == "token_seq" and all(name not in role.candidates for role in roles)))
    )
    return RawTables(Table(frame, table.where), interactions, path.parent)


RECBOLE = Reader(
    (
        Layout(
            "RecBole atomic files",
            (
                Part("items", ("*.item",), required=False),
                Part("interactions", ("*.inter",)),
            ),
            _read,
            depth=1,
        ),
    ),
    {"min_weight": ALL},
    known=(UNKNOWN_ITEM,),
)
