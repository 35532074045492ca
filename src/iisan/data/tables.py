"""Raw tables from files: CSV, TSV, JSON lines and Parquet, with the line number of every invalid row."""

import csv
import difflib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import ComputeError, PolarsError

from iisan.data.clean import clean_ids
from iisan.data.json_lines import MALFORMED, NOT_UTF8, Bad, Objects, text_lines
from iisan.data.problems import VALUE, WHERE, Problems, printable
from iisan.data.values import Lists
from iisan.errors import DataError

#: Column with the number of the line or row in the file.
LINE = "__line__"
_TEXT, _FIELDS = "__text__", "__fields__"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*_SEPARATORS, *_JSON_LINES, ".parquet")
#: Description of valid values in columns that are used.
USABLE = "a text or a number, or a list of them in a column of texts or histories"
_NO_QUOTES = "pass --no-quotes (quotes=False) where quotes mean nothing"
#: Separates the fields of a record after its quotes have been read; a Unicode noncharacter, so not part of a text.
_FIELD_END = "\ufdd0"
#: Accepted length of a quoted field, the largest that `csv` supports everywhere.
_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Role:
    """A column to find in a table.

    Attributes:
        name: Canonical name.
        candidates: Possible names in the table, in order of preference.
        required: Whether its absence is an error.
        cure: Cure for its absence or ambiguity; by default the option of the same name.
        given: Whether the user named it, so that no other role takes the column by default.
        lists: Treatment of lists in it.
        single: Whether several candidates in one table are an error.
    """

    name: str
    candidates: tuple[str, ...]
    required: bool = True
    cure: str | None = None
    given: bool = False
    lists: Lists = "refuse"
    single: bool = False

    @classmethod
    def of(
        cls, name: str, given: str | None, *defaults: str, required: bool = True, lists: Lists = "refuse"
    ) -> "Role":
        """A column with the name given by the user, which must exist, or with a default name."""
        if given is None:
            return cls(name, defaults, required, lists=lists)
        return cls(name, (given,), given=True, lists=lists)


@dataclass(frozen=True)
class Form:
    """How a text file is written.

    Attributes:
        separator: Separator of fields; None for one object per line.
        quotes: Whether fields may be quoted.
        fallback: Encoding of lines that are not UTF-8, if that is no fault.
        types: Whether the names in the header are followed by ``:`` and a type.
        parse: Converts the line of an object; see :class:`iisan.data.json_lines.Objects`.
    """

    separator: str | None
    quotes: bool = False
    fallback: str | None = None
    types: bool = False
    parse: Callable[[str], Any] = json.loads


JSON_LINES = Form(None)


@dataclass(frozen=True)
class Table:
    """A raw table.

    Attributes:
        frame: Columns with canonical names, perhaps others, and ``LINE``.
        where: Prefix of a row's number in messages, such as ``items.csv, line``.
    """

    frame: pl.DataFrame
    where: str

    @property
    def name(self) -> str:
        """Name of the file or frame, for messages."""
        return self.where.split(",")[0]

    def rows(self, condition: pl.Expr, value: pl.Expr) -> pl.DataFrame:
        """Location and value of all rows that meet a condition, for ``Problems.report``."""
        place = pl.lit(f"{self.where} ") + pl.col(LINE).cast(pl.String)
        return self.frame.lazy().filter(condition).select(place.alias(WHERE), value.alias(VALUE)).collect()

    def reject(
        self, bad: pl.Expr, column: str, reason: str, expected: str, problems: Problems, hint: str = ""
    ) -> "Table":
        """Report the rows that meet a condition and their values in a column; return the table without them."""
        rows = self.rows(bad, pl.col(column))
        problems.report(rows, reason, expected, hint)
        return Table(self.frame.filter(~bad), self.where) if len(rows) else self

    def with_ids(self, columns: Sequence[str], problems: Problems) -> "Table":
        """Convert columns of ids to strings, and reject the rows without one."""
        frame = self.frame.with_columns(clean_ids(self.frame[column], self.name) for column in columns)
        table = Table(frame, self.where)
        for column in columns:
            empty = pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")
            table = table.reject(empty, column, f"zero-length {column}", "one in every row", problems)
        return table


def numbered(frame: pl.DataFrame, column: str, ids: pl.Series, name: str) -> pl.DataFrame:
    """Add a column ``name`` with the position of each id of a column in ``ids``, null where absent."""
    numbers = pl.DataFrame({column: ids}).with_row_index(name)
    return frame.join(numbers, on=column, how="left", maintain_order="left")


def resolve(columns: Sequence[str], roles: Sequence[Role], table: str) -> dict[str, str]:
    """Find the columns of roles: canonical names by their names in the table.

    Raises:
        DataError: A required column is missing, one column is requested twice, or two columns have one role.
    """
    given: dict[str, Role] = {}
    for role in roles:
        if role.given and given.setdefault(role.candidates[0], role) is not role:
            raise _twice(table, role.candidates[0], given[role.candidates[0]], role)
    found = {}
    for role in roles:
        present = [candidate for candidate in role.candidates if candidate in columns]
        free = [candidate for candidate in present if role.given or candidate not in given]
        if role.single and len(free) > 1:
            got = f"{table} has the columns {' and '.join(map(repr, free))}"
            cure = role.cure or f"name the one to use with --{role.name}"
            raise DataError(got, f"one column with the {role.name}", cure)
        if free:
            found[free[0]] = role.name
        # A further column that is also the only text is a mistake; an id may be both on purpose.
        elif present and (role.required or given[present[0]].cure):
            raise _twice(table, present[0], role, given[present[0]])
        elif role.required:
            wanted = role.candidates[0]
            close = difflib.get_close_matches(wanted, columns, n=1)
            hint = f"did you mean '{close[0]}'? Otherwise " if close else ""
            raise DataError(
                f"{table} has no column '{wanted}', only {', '.join(map(repr, columns))}",
                "a column of that name" if role.cure else f"a column with the {role.name.replace('_', ' ')}",
                hint + (role.cure or f"name the column with --{role.name.replace('_', '-')}"),
            )
    return found


def _twice(table: str, name: str, first: Role, second: Role) -> DataError:
    cures = [role.cure or f"name another column with --{role.name.replace('_', '-')}" for role in (first, second)]
    return DataError(
        f"{table} has one column '{name}', asked for as '{first.name}' and as '{second.name}'",
        "a column of its own for each",
        ", or ".join(cures),
    )


def renamed(frame: pl.DataFrame, found: dict[str, str], table: str) -> pl.DataFrame:
    """Rename columns to their canonical names; another column of that name becomes ``<name>_original``.

    Raises:
        DataError: Two columns would have the same name, or one that of ``LINE``.
    """
    taken = {name: f"{name}_original" for name in found.values() if name in frame.columns and name not in found}
    names = taken | found
    new = [names.get(column, column) for column in frame.columns]
    for name in new:
        if name == LINE or new.count(name) > 1:
            raise DataError(f"{table} has a column in the way of '{name}'", "unique names", f"rename '{name}'")
    return frame.rename(names)


def suffix_of(path: Path) -> str:
    """The extension that determines the format, without ``.gz``.

    Raises:
        DataError: The file does not exist, is empty, or has another extension.
    """
    if not path.is_file():
        raise DataError(f"no file '{path}'", "a file", "check the path")
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or name.endswith(".parquet.gz"):
        got = f"'{path}' has an unknown extension"
        raise DataError(got, f"one of {', '.join(SUFFIXES)} (text formats may end in .gz)", "rename or convert it")
    if not path.stat().st_size:
        raise _empty(path)
    return suffix


def read_table(
    path: Path,
    roles: Sequence[Role],
    problems: Problems,
    *,
    rest: bool = False,
    quotes: bool | None = None,
    header: Sequence[str] | None = None,
    detect: bool = False,
    form: Form | None = None,
) -> Table:
    """Read a table of any supported format.

    Args:
        path: CSV, TSV, JSON lines or Parquet file, or with ``form`` any text file.
        roles: Columns to find. From text formats they are read as strings.
        problems: Receives malformed lines and lines that are not UTF-8.
        rest: Keep all other columns too.
        quotes: Whether CSV fields may be quoted; by default true for CSV, false for TSV.
        header: Column names of a file without a header line.
        detect: Take a first line with one of the names in ``header`` for a header line.
        form: How the file is written, where its extension does not tell.

    Raises:
        DataError: The file is absent, empty or damaged, lacks a column, or has a bad line (policy ``stop``).
    """
    if form is None:
        suffix = suffix_of(path)
        if suffix == ".parquet":
            with reading(path):
                return _read_parquet(path, roles, rest)
        quoted = suffix == ".csv" if quotes is None else quotes
        form = JSON_LINES if suffix in _JSON_LINES else Form(_SEPARATORS[suffix], quoted)
    with reading(path):
        if form.separator is None:
            return _read_json_lines(path, form.parse, roles, rest, problems)
        return _read_separated(path, form, roles, rest, header, detect, problems)


class Damaged(DataError):
    """A file that cannot be read to its end."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise a ``DataError`` where a file turns out to be damaged."""
    try:
        yield
    except (PolarsError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not about what is in the file
            raise
        first = printable(str(error).split("\n")[0])
        got = f"'{path}' cannot be read ({first})"
        raise Damaged(got, "a whole table", "mend the file or fetch it again") from None


def _empty(path: Path) -> DataError:
    return DataError(f"'{path}' is empty", "a table with rows", "check that the file was written completely")


def _read_parquet(path: Path, roles: Sequence[Role], rest: bool) -> Table:
    found = resolve(list(pl.read_parquet_schema(path)), roles, f"'{path}'")
    frame = pl.read_parquet(path, columns=None if rest else list(found), glob=False)
    if frame.is_empty():
        raise _empty(path)
    return Table(renamed(frame, found, f"'{path}'").with_row_index(LINE, 1), f"{path.name}, row")


def _read_separated(
    path: Path,
    form: Form,
    roles: Sequence[Role],
    rest: bool,
    header: Sequence[str] | None,
    detect: bool,
    problems: Problems,
) -> Table:
    lines = _lines(path, problems, form.fallback)
    if lines.is_empty():
        raise _empty(path)
    assert form.separator is not None
    records = _records(lines, form.separator, form.quotes)
    first = records[_FIELDS][0]
    if header and detect and first is not None and {*first} & {*header}:
        header = None
    if header is None and "\r" in lines[_TEXT][0]:
        raise DataError(f"'{path}' ends its lines with CR alone", "LF or CR LF", "convert its line ends")
    if header is None and first is None:
        got = f"'{path}' has a stray quote in its header"
        raise DataError(got, "quotes that open and close a field", f"mend it, or {_NO_QUOTES}")
    columns = first.to_list() if header is None else list(header)
    if form.types:
        columns = [name.partition(":")[0] for name in columns]
    if len(set(columns)) < len(columns):
        raise DataError(f"'{path}' has two columns of one name: {columns}", "unique names", "rename one")
    found = resolve(columns, roles, f"'{path}'")
    kept = records.slice(header is None)
    malformed = pl.col(_FIELDS).list.len().ne_missing(len(columns))
    if kept.select(malformed.any()).item():
        # A quote that opens by mistake joins lines; all of them are reported.
        marked = lines.join_asof(records.select(LINE, malformed.alias("bad")), on=LINE)
        bad = Table(marked, f"{path.name}, line").rows(pl.col("bad"), pl.col(_TEXT))
        expected = f"{len(columns)} fields ({printable(', '.join(columns))})"
        quoted = form.quotes and bad[VALUE].str.contains('"', literal=True).any()
        problems.report(bad, MALFORMED, expected, f", or {_NO_QUOTES}" if quoted else "")
        kept = kept.filter(~malformed)
    if kept.is_empty():
        raise _empty(path)
    fields = {
        name: pl.col(_FIELDS).list.get(position) for position, name in enumerate(columns) if rest or name in found
    }
    frame = kept.select(pl.when(field != "").then(field).alias(name) for name, field in fields.items())
    return Table(renamed(frame, found, f"'{path}'").with_columns(kept[LINE]), f"{path.name}, line")


def _lines(path: Path, problems: Problems, fallback: str | None) -> pl.DataFrame:
    """All lines that are not blank (``_TEXT``), with their numbers from 1 (``LINE``)."""
    try:
        lines = pl.read_lines(path, name=_TEXT, glob=False).with_row_index(LINE, 1)
        lines = lines.with_columns(pl.col(_TEXT).str.strip_prefix("\ufeff"))
    except ComputeError:  # not UTF-8 somewhere
        bad: Bad = []
        lines = pl.DataFrame(text_lines(path, bad, fallback), {LINE: pl.UInt32, _TEXT: pl.String}, orient="row")
        report_values(bad, f"{path.name}, line", NOT_UTF8, "text in UTF-8", problems)
    return lines.filter(pl.col(_TEXT).str.strip_chars() != "")


def _records(lines: pl.DataFrame, separator: str, quotes: bool) -> pl.DataFrame:
    """Split lines into ``_FIELDS``, lists of strings; a record of several lines has the number of the first.

    The fields of a record with misplaced quotes are null.
    """
    if not (quotes and lines[_TEXT].str.contains('"', literal=True).any()):
        return lines.select(LINE, pl.col(_TEXT).str.split(separator).alias(_FIELDS))
    reader = csv.reader(lines[_TEXT] + "\n", delimiter=separator, strict=True)
    starts: list[int] = []

    def texts() -> Iterator[str | None]:
        while reader.line_num < len(lines):
            starts.append(reader.line_num)
            try:
                text = _FIELD_END.join(next(reader))
            except csv.Error:
                text = None
            yield text

    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        fields = pl.Series(_FIELDS, texts(), dtype=pl.String).str.split(_FIELD_END)
    finally:
        csv.field_size_limit(limit)
    return pl.DataFrame([lines[LINE].gather(starts), fields])


def _read_json_lines(
    path: Path, parse: Callable[[str], Any], roles: Sequence[Role], rest: bool, problems: Problems
) -> Table:
    where = f"{path.name}, line"
    objects = Objects(path, LINE, lists_of(roles), rest, parse)
    for reason, expected in ((NOT_UTF8, "text in UTF-8"), (MALFORMED, "a JSON object per line")):
        report_values(objects.bad_lines[reason], where, reason, expected, problems)
    frame = objects.frame
    if frame.is_empty():
        raise _empty(path)
    found = resolve([*objects.columns], roles, f"'{path}'")
    for name, role in found.items():
        bad = objects.unusable[name]
        report_values(bad, where, f"unusable {role}", USABLE, problems)
        frame = frame.filter(~pl.col(LINE).is_in([number for number, _ in bad]))
    kept = [name for name in objects.columns if name in (frame.columns if rest else found)]
    return Table(renamed(frame.select(kept), found, f"'{path}'").with_columns(frame[LINE]), where)


def lists_of(roles: Sequence[Role]) -> dict[str, Lists]:
    """Treatment of lists by possible column name; one that is not ``refuse`` goes before that."""
    refused_first = sorted(roles, key=lambda role: role.lists != "refuse")
    return {name: role.lists for role in refused_first for name in role.candidates}


def report_values(bad: Bad, where: str, reason: str, expected: str, problems: Problems) -> None:
    """Report values by the numbers of their rows."""
    rows = pl.DataFrame(bad, schema={LINE: pl.UInt32, VALUE: pl.String}, orient="row")
    Table(rows, where).reject(pl.lit(True), VALUE, reason, expected, problems)
