"""A dataset as RecBole's atomic files, see https://recbole.io/docs/user_guide/data/atomic_files.html."""

from pathlib import Path
from typing import Any

import polars as pl

from iisan.data.dataset import Dataset
from iisan.data.problems import printable
from iisan.errors import DataError
from iisan.files import aside
from iisan.names import ITEM_ID, TEXT, TIMESTAMP, USER_ID

#: Characters that would end a field or open a quoted one.
_SPECIAL = r'[\t\r\n"]'


def write_recbole(dataset: Dataset, out: Path) -> tuple[Path, Path]:
    """Write ``out/NAME.inter`` and ``out/NAME.item``, where NAME is that of the folder, as RecBole expects.

    Texts are of type ``token_seq``; tabs, line breaks and double quotes in them become spaces and single quotes.
    Numbers are of type ``float``, other columns ``token``. Files of media and nested columns are left out.

    Returns:
        The paths of interactions and items.

    Raises:
        DataError: An id or token with a tab, a line break or a double quote, given queries, or a folder that holds
            something else.
    """
    paths = (out / f"{out.resolve().name}.inter", out / f"{out.resolve().name}.item")
    if out.exists() and not (out.is_dir() and {*out.iterdir()} <= {*paths}):
        got = f"'{out}' is neither empty nor an earlier export"
        raise DataError(got, "a new or empty folder", "choose another --out")
    if dataset.queries:
        got = "a dataset with given queries, which have no place in atomic files"
        raise DataError(got, "a dataset that a rule splits", "prepare it without --validation and --test")
    interactions = dataset.interactions()
    if dataset.sequences.timestamps is None:
        # RecBole sorts by time, and not stably.
        order = pl.int_range(pl.len()).over(USER_ID).alias(TIMESTAMP)
        interactions = interactions.with_columns(order)
    kinds = dataset.kinds
    items = dataset.items.select(
        name
        for name, dtype in dataset.items.schema.items()
        if kinds.get(name, TEXT) == TEXT
        and (dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.List(pl.String)))
    )
    tables = [
        _typed(interactions, {}),
        _typed(items, {name: "token_seq" for name, kind in kinds.items() if kind == TEXT}),
    ]
    out.mkdir(parents=True, exist_ok=True)
    for path, table in zip(paths, tables, strict=True):
        with aside(path) as temporary:
            table.write_csv(temporary, separator="\t", quote_style="never")
    return paths


def _typed(frame: pl.DataFrame, kinds: dict[str, str]) -> pl.DataFrame:
    """Convert columns to texts, and add the types to their names."""
    columns = []
    for name, dtype in frame.schema.items():
        sequence = dtype == pl.List(pl.String)
        kind = kinds.get(name, "token_seq" if sequence else "float" if dtype.is_numeric() else "token")
        column = frame[name].list.join(" ", ignore_nulls=True) if sequence else frame[name].cast(pl.String)
        columns.append(_plain(column, kind).alias(f"{name}:{kind}"))
    return pl.DataFrame(columns)


def _plain(column: pl.Series, kind: str) -> pl.Series:
    if kind == "token_seq":
        return column.str.replace_all('"', "'", literal=True).str.replace_all(r"\s+", " ")
    bad: Any = column.filter(column.str.contains(_SPECIAL).fill_null(False))
    if len(bad):
        got = f"the {column.name} '{printable(bad[0])}'"
        cure = "rename it" if column.name in (ITEM_ID, USER_ID) else "leave the column out of the items"
        raise DataError(got, "a value without tabs, line breaks and double quotes", cure)
    return column
