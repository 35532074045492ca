"""What a reader of a public dataset states: the files of its layouts, its columns, and what it leaves out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from iisan.data.assemble import interaction_roles, item_roles
from iisan.data.options import ALL, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.tables import LINE, Form, Role, Table, read_table
from iisan.errors import DataError
from iisan.names import IMAGE, ITEM_ID, TEXT, TIMESTAMP, USER_ID

#: Faults that public dumps have, and that are left out and counted; see :class:`iisan.data.problems.Problems`.
UNKNOWN_ITEM, DUPLICATE_ITEM, REPEATED = "unknown item", "duplicate item id", "repeated interaction"
PAGE_CODE = "page code in the place of a title"
_TAG = r"</?[a-zA-Z][^<>]*>"
CSV = Form(",", quotes=True)

#: The files of a layout, by the name of their part.
Files = Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True)
class RawTables:
    """The two tables, and the folder that image paths are relative to."""

    items: Table
    interactions: Table
    image_root: Path | None = None


@dataclass(frozen=True)
class Part:
    """One kind of file of a layout.

    Attributes:
        name: Name in messages, such as ``items``.
        patterns: File names, matched without regard to case.
        fields: Fields that its first row must have; empty for files without a header.
        several: Whether there may be more than one such file.
        required: Whether there has to be one.
        form: How the files are written, where their extension does not tell.
    """

    name: str
    patterns: tuple[str, ...]
    fields: tuple[str, ...] = ()
    several: bool = False
    required: bool = True
    form: Form | None = None


Read = Callable[[Files, PrepareOptions, Problems], RawTables]


@dataclass(frozen=True)
class Layout:
    """A way in which the files of a dataset are laid out.

    Attributes:
        title: Description for people.
        parts: Its files; files that the user names are taken in this order.
        read: Reads them.
        columns: Columns that are used unless the user names others, by option.
        images: Patterns of the names of a folder of images beside the files.
        depth: Levels of subfolders in which files are searched.
    """

    title: str
    parts: tuple[Part, ...]
    read: Read
    columns: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    depth: int = 2


@dataclass(frozen=True)
class Reader:
    """A format of ``iisan prepare``.

    Attributes:
        layouts: Its layouts.
        defaults: Defaults of options that are rules for what counts.
        filters: Defaults of options that are filters.
        presets: Filters of publications, by name.
        known: Faults that its files are known to have: counted, and no reason to stop.
        header: Whether files of queries have a header line.
        fetch: Returns a local folder for a source that may be elsewhere.
    """

    layouts: tuple[Layout, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    filters: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    header: bool = True
    fetch: Callable[[Path], Path] | None = None

    def options(self, given: PrepareOptions, layout: Layout, filtered: bool, preset: str | None) -> PrepareOptions:
        """Return the given options with the defaults of a layout.

        Args:
            given: Options of the user.
            layout: The layout.
            filtered: Whether filters have defaults.
            preset: Name of filters that take the place of these defaults.

        Raises:
            DataError: The format lacks the preset.
        """
        if preset is not None and preset not in self.presets:
            got = f"the preset '{preset}', which this format does not have"
            raise DataError(got, ", ".join(self.presets) or "no preset", "leave it out, and give the filters")
        filters = self.presets[preset] if preset else self.filters if filtered else {}
        options = given.with_defaults({**self.defaults, **filters})
        # A column that no rule is about is not read at all.
        unused = {"weight": options.min_weight == ALL, "event": options.events == ALL}
        return options.with_defaults({k: name for k, name in layout.columns.items() if not unused.get(k)})


def read_items(
    path: Path,
    options: PrepareOptions,
    problems: Problems,
    *,
    keep: Sequence[str] = (),
    numbers: Sequence[str] = (),
    markup: bool = False,
    form: Form | None = None,
    header: Sequence[str] | None = None,
    detect: bool = False,
) -> Table:
    """Read a table of items.

    Args:
        path: The file.
        options: Names of its columns.
        problems: Receives invalid rows.
        keep: Further columns to keep as texts, where present; lists are joined with spaces.
        numbers: Further columns to keep as numbers, null where they are none.
        markup: Whether texts may hold HTML tags, which are removed.
        form: See ``read_table``.
        header: See ``read_table``.
        detect: See ``read_table``.
    """
    # Columns named "image" hold addresses or nothing in these dumps.
    roles = [role for role in item_roles(options) if role.name != IMAGE or role.given]
    taken = {name for role in roles for name in role.candidates}
    others = [Role(name, (name,), required=False, lists="join") for name in (*keep, *numbers) if name not in taken]
    table = read_table(
        path, [*roles, *others], problems, form=_quoted(form, options), header=header, detect=detect
    )
    frame = table.frame
    frame = frame.with_columns(
        pl.col(name).cast(pl.Float64, strict=False) for name in numbers if name in frame.columns
    )
    texts = [TEXT, *(name for name, kind in options.columns.items() if kind == TEXT)]
    if markup:
        frame = frame.with_columns(
            pl.col(name).str.replace_all(_TAG, " ") for name in texts if name in frame.columns
        )
    return Table(frame, table.where)


def read_interactions(
    path: Path,
    options: PrepareOptions,
    problems: Problems,
    *,
    form: Form | None = None,
    header: Sequence[str] | None = None,
) -> Table:
    """Read a table of interactions; see :func:`read_items`."""
    return read_table(path, interaction_roles(options), problems, form=_quoted(form, options), header=header)


def _quoted(form: Form | None, options: PrepareOptions) -> Form | None:
    """The form with the quotes that the user asks for."""
    return form if form is None or options.quotes is None else replace(form, quotes=options.quotes)


def without_repeats(table: Table, problems: Problems) -> Table:
    """Leave out interactions that are in the table already: the same user, item and time."""
    repeated = ~pl.struct(USER_ID, ITEM_ID, TIMESTAMP).is_first_distinct()
    marked = Table(table.frame.with_columns(repeated.alias("repeated")), table.where)
    kept = marked.reject(pl.col("repeated"), ITEM_ID, REPEATED, "every interaction once", problems)
    return Table(kept.frame.drop("repeated"), table.where)


def items_of(interactions: Table, problems: Problems) -> Table:
    """Make a table of the items of interactions, for data that says nothing more about them."""
    ids = interactions.with_ids((ITEM_ID,), problems).frame.select(pl.col(ITEM_ID).unique(maintain_order=True))
    return Table(ids.with_row_index(LINE, 1), interactions.where)


def joined(tables: Sequence[Table]) -> Table:
    """Stack tables of the same columns; rows are counted over all of them."""
    if len(tables) == 1:
        return tables[0]
    frame = pl.concat([table.frame for table in tables]).drop(LINE).with_row_index(LINE, 1)
    return Table(frame, " + ".join(table.name for table in tables) + ", row")
