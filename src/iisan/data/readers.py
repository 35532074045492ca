"""Readers, one per format: from files to two raw tables with canonical column names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from iisan.data.assemble import interaction_roles, item_roles
from iisan.data.options import Format, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.rules import rule_roles
from iisan.data.tables import LINE, SUFFIXES, Role, Table, read_table
from iisan.errors import DataError
from iisan.names import HISTORY, ITEM_ID, TEXT, USER_ID


@dataclass(frozen=True)
class RawTables:
    """The two tables, the folder that image paths are relative to, and the files."""

    items: Table
    interactions: Table
    image_root: Path | None
    files: tuple[Path, Path]


def read_table_files(sources: Sequence[Path], options: PrepareOptions, problems: Problems) -> RawTables:
    """Read the format ``table``: an items file and an interactions file, or their folder; see ``read_table``."""
    endings = [f"{suffix}{compressed}" for suffix in SUFFIXES for compressed in ("", ".gz")]
    files = _two_files(sources, ("items", "interactions"), endings)
    items = read_table(files[0], item_roles(options), problems, rest=True, quotes=options.quotes)
    interactions = read_table(files[1], interaction_roles(options), problems, quotes=options.quotes)
    return RawTables(items, interactions, files[0].parent, files)


def read_reference(sources: Sequence[Path], options: PrepareOptions, problems: Problems) -> RawTables:
    """Read the format ``reference``: the tables published with IISAN, without header lines and timestamps.

    ``items.tsv`` holds ``item_id TAB title``, ``users.tsv`` holds ``user_id TAB item_id item_id …``, oldest
    first. Sources and errors are as in ``read_table_files``.
    """
    files = _two_files(sources, ("items", "users"), (".tsv", ".tsv.gz"))
    item_columns, user_columns = (ITEM_ID, TEXT), (USER_ID, HISTORY)

    def read(path: Path, columns: tuple[str, ...], rules: Sequence[Role] = ()) -> Table:
        roles = [*(Role(name, (name,)) for name in columns), *rules]
        return read_table(path, roles, problems, quotes=bool(options.quotes), header=columns)

    # There is no column for a rule: one that is given is an error.
    items, users = read(files[0], item_columns), read(files[1], user_columns, rule_roles(options))
    history = pl.col(HISTORY).str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ")
    interactions = users.frame.select(LINE, USER_ID, history.alias(ITEM_ID)).explode(ITEM_ID)
    return RawTables(items, Table(interactions, users.where), None, files)


READERS: dict[Format, Callable[[Sequence[Path], PrepareOptions, Problems], RawTables]] = {
    "reference": read_reference,
    "table": read_table_files,
}


def _two_files(sources: Sequence[Path], names: tuple[str, str], endings: Sequence[str]) -> tuple[Path, Path]:
    wanted = f"the {names[0]} file and the {names[1]} file, or a folder that holds the two"
    if len(sources) == 2:
        return sources[0], sources[1]
    if len(sources) != 1:
        raise DataError(f"{len(sources)} sources", wanted, "name both files, in this order")
    folder, files = sources[0], list[Path]()
    if not folder.is_dir():
        fault = "a single file" if folder.exists() else "no file or folder"
        raise DataError(f"{fault} '{folder}'", wanted, "check the path")
    for name in names:
        found = [path for ending in endings if (path := folder / f"{name}{ending}").is_file()]
        if len(found) != 1:
            raise DataError(
                f"'{folder}' holds {', '.join(path.name for path in found) or 'no such file'}",
                f"exactly one file {name} ({', '.join(endings)})",
                "name both files instead of the folder",
            )
        files += found
    return files[0], files[1]
