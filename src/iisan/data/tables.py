"""Raw tables from files: CSV, TSV, JSON lines and Parquet, with the line of whatever is wrong in them.

Text formats are looked at line by line (vectorised) before they are parsed, because a fast parser says neither
where a row is malformed nor that one has too few fields.
"""

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars.exceptions import ComputeError, PolarsError

from iisan.data.json_lines import MALFORMED, NOT_UTF8, Bad, Objects
from iisan.data.problems import VALUE, WHERE, Problems, printable
from iisan.errors import DataError

#: Number of the line or row of the file that a row comes from.
LINE = "__line__"
_TEXT = "__text__"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_BOM = "\ufeff"
_TEXT_IN_UTF8 = "text in UTF-8"
#: What a value must be where the column says what an item or an interaction is.
USABLE = "a text or a number, or a list of them in a column of texts"
#: Stands for two quotes, which in a quoted field are one; no text has this character.
_PAIR = "\ufdd0"
_QUOTES = "quotes that open and close a field"
_NO_QUOTES = "pass --no-quotes (quotes=False) where quotes mean nothing"
SUFFIXES = (*_SEPARATORS, *_JSON_LINES, ".parquet")


@dataclass(frozen=True)
class Role:
    """A column that is looked for.

    Attributes:
        name: what it is called here.
        candidates: what it may be called in the table, best first.
        required: its absence is an error.
        cure: what to do when it is absent; None names the option that is called like the column.
        given: the user named it; no other column is looked for under that name.
        join: lists of texts in it are joined into one.
    """

    name: str
    candidates: tuple[str, ...]
    required: bool = True
    cure: str | None = None
    given: bool = False
    join: bool = False

    @classmethod
    def of(cls, name: str, given: str | None, *defaults: str, required: bool = True, join: bool = False) -> "Role":
        """A column under the name that the user gave, which must exist, or under a default name."""
        if given is None:
            return cls(name, defaults, required, join=join)
        return cls(name, (given,), given=True, join=join)


@dataclass(frozen=True)
class Table:
    """A raw table.

    Attributes:
        frame: canonical columns, perhaps others, and ``LINE``.
        where: how messages begin before the number, such as ``items.csv, line``.
    """

    frame: pl.DataFrame
    where: str

    def rows(self, condition: pl.Expr, value: pl.Expr) -> pl.DataFrame:
        """Where and value of all rows that meet a condition, for ``Problems.report``."""
        place = pl.format(self.where.replace("{", "(").replace("}", ")") + " {}", LINE)
        return self.frame.lazy().filter(condition).select(place.alias(WHERE), value.alias(VALUE)).collect()

    def without(self, condition: pl.Expr) -> "Table":
        """The table without the rows that meet a condition."""
        return Table(self.frame.filter(~condition), self.where)


def resolve(columns: Sequence[str], roles: Sequence[Role], table: str) -> dict[str, str]:
    """Find the columns: a mapping from their names in the table to the canonical ones.

    Raises:
        DataError: a required column is missing, or one column is asked for twice.
    """
    given: dict[str, Role] = {}
    for role in roles:
        if role.given and given.setdefault(role.candidates[0], role) is not role:
            raise _twice(table, role.candidates[0], given[role.candidates[0]], role)
    found = {}
    for role in roles:
        present = [candidate for candidate in role.candidates if candidate in columns]
        free = [candidate for candidate in present if role.given or candidate not in given]
        if free:
            found[free[0]] = role.name
        # A further column that takes the only text away is a mistake; an id that does may be meant.
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
    """Give columns their canonical names; another column of that name is kept as ``<name>_original``.

    Raises:
        DataError: two columns would have one name, or one that of ``LINE``.
    """
    taken = {name: f"{name}_original" for name in found.values() if name in frame.columns and name not in found}
    names = taken | found
    seen = {LINE}
    for name in (names.get(column, column) for column in frame.columns):
        if name in seen:
            raise DataError(f"{table} has a column in the way of '{name}'", "unique names", f"rename '{name}'")
        seen.add(name)
    return frame.rename(names)


def suffix_of(path: Path) -> str:
    """The extension that says the format, ``.gz`` left away.

    Raises:
        DataError: the file does not exist or is of another kind.
    """
    if not path.is_file():
        raise DataError(f"no file '{path}'", "a file", "check the path")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = suffixes[-1:] == [".gz"]
    suffix = "".join(suffixes[-2:-1] if compressed else suffixes[-1:])
    if suffix not in SUFFIXES or (compressed and suffix == ".parquet"):
        raise DataError(
            f"'{path}' has an unknown extension",
            f"one of {', '.join(SUFFIXES)} (.gz behind those of text)",
            "rename or convert it",
        )
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
) -> Table:
    """Read a table, format by extension.

    Args:
        path: CSV, TSV, JSON lines or Parquet.
        roles: columns to find. From text formats they are strings, whatever they look like.
        problems: where malformed lines and lines that are not UTF-8 are reported.
        rest: keep all other columns too.
        quotes: CSV fields may be quoted; by default in CSV, not in TSV.
        header: column names of a file without a header line.

    Raises:
        DataError: no such file, empty, damaged, a missing column, or a bad line where the policy is ``stop``.
    """
    suffix = suffix_of(path)
    try:
        if suffix == ".parquet":
            return _read_parquet(path, roles, rest)
        if suffix in _JSON_LINES:
            return _read_json_lines(path, roles, rest, problems)
        quoted = suffix == ".csv" if quotes is None else quotes
        return _read_separated(path, _SEPARATORS[suffix], roles, rest, quoted, header, problems)
    except (PolarsError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    first = printable(str(error).split("\n")[0])
    return DataError(f"'{path}' cannot be read ({first})", "a whole table", "mend the file or fetch it again")


def _empty(path: Path) -> DataError:
    return DataError(f"'{path}' is empty", "a table with rows", "check that the file was written completely")


def _read_parquet(path: Path, roles: Sequence[Role], rest: bool) -> Table:
    found = resolve(list(pl.read_parquet_schema(path)), roles, f"'{path}'")
    frame = pl.read_parquet(path, columns=None if rest else list(found), glob=False)
    if frame.is_empty():
        raise _empty(path)
    return Table(renamed(frame, found, f"'{path}'").with_row_index(LINE, 1), f"{path.name}, row")


def _lines(path: Path, problems: Problems) -> tuple[pl.DataFrame, bool]:
    """All lines but blank ones (``_TEXT``, numbered from 1 in ``LINE``), and whether this is the whole file."""
    try:
        lines = pl.read_lines(path, name=_TEXT, glob=False).with_row_index(LINE, 1)
    except ComputeError:
        lines = _utf8_lines(path, problems)
        return lines.filter(pl.col(_TEXT).str.strip_chars() != ""), False
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error) from None  # a truncated .gz
    marked = len(lines) > 0 and lines[_TEXT][0].startswith(_BOM)
    if marked:
        lines = lines.with_columns(pl.col(_TEXT).str.strip_prefix(_BOM))
    full = lines.filter(pl.col(_TEXT).str.strip_chars() != "")
    return full, not marked and len(full) == len(lines)


def _utf8_lines(path: Path, problems: Problems) -> pl.DataFrame:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        raw = file.read().split(b"\n")
    bad = [number for number, line in enumerate(raw) if not line.isascii() and not _is_utf8(line)]
    rows = pl.DataFrame(
        {
            WHERE: [f"{path.name}, line {number + 1}" for number in bad],
            VALUE: [raw[number].decode("utf-8", "backslashreplace") for number in bad],
        },
        schema={WHERE: pl.String, VALUE: pl.String},
    )
    problems.report(rows, NOT_UTF8, _TEXT_IN_UTF8)
    for number in bad:
        raw[number] = b""
    raw[0] = raw[0].removeprefix(_BOM.encode())
    text = pl.Series(_TEXT, raw).cast(pl.String).str.strip_suffix("\r")
    return pl.DataFrame({_TEXT: text}).with_row_index(LINE, 1)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_separated(
    path: Path,
    separator: str,
    roles: Sequence[Role],
    rest: bool,
    quotes: bool,
    header: Sequence[str] | None,
    problems: Problems,
) -> Table:
    lines, whole = _lines(path, problems)
    if lines.is_empty():
        raise _empty(path)
    records = _records(lines, separator, quotes)
    if header is None:
        first = records[_TEXT][0]
        if "\r" in first:
            raise DataError(f"'{path}' ends its lines with CR alone", "LF or CR LF", "convert its line ends")
        if not records["fields"][0]:
            raise DataError(f"'{path}' has a stray quote in its header", _QUOTES, f"mend it, or {_NO_QUOTES}")
        columns = next(csv.reader([first], delimiter=separator)) if quotes else first.split(separator)
    else:
        columns = list(header)
    if len(set(columns)) < len(columns):
        raise DataError(f"'{path}' has two columns of one name: {columns}", "unique names", "rename one")
    found = resolve(columns, roles, f"'{path}'")
    malformed = pl.col("fields") != len(columns)
    some_bad, stray = records.select(malformed.any().alias("bad"), pl.any("stray")).row(0)
    kept = records.slice(header is None)
    if some_bad:
        # Lines are reported, not records: a quote that opens by mistake joins all lines up to the next one.
        marked = lines.join_asof(records.select(LINE, malformed.alias("bad")), on=LINE)
        bad = Table(marked, f"{path.name}, line").rows(pl.col("bad"), pl.col(_TEXT))
        expected = f"{len(columns)} fields ({printable(', '.join(columns))})"
        quoted = quotes and bad[VALUE].str.contains('"', literal=True).any()
        problems.report(bad, MALFORMED, expected, f", or {_NO_QUOTES}" if quoted else "")
        kept = kept.filter(~malformed)
    if kept.is_empty():
        raise _empty(path)
    numbers = kept[LINE]
    clean = whole and not some_bad and not stray
    source = path if clean else _joined(_requoted(kept, separator))
    del lines, records, kept
    frame = pl.read_csv(
        source,
        separator=separator,
        quote_char='"' if quotes else None,
        has_header=clean and header is None,
        columns=None if rest else sorted(columns.index(name) for name in found),
        infer_schema=False,
        glob=False,
    )
    frame.columns = [name for name in columns if rest or name in found]
    if len(frame) != len(numbers):
        raise DataError(
            f"'{path}' has rows that cannot be told apart: {len(numbers):,} or {len(frame):,}",
            _QUOTES,
            f"mend the quotes, or {_NO_QUOTES}",
        )
    return Table(renamed(frame, found, f"'{path}'").with_columns(numbers), f"{path.name}, line")


def _joined(lines: pl.Series) -> bytes:
    return (lines.str.join("\n").item() + "\n").encode()


def _records(lines: pl.DataFrame, separator: str, quotes: bool) -> pl.DataFrame:
    """Join the lines of quoted fields that hold line breaks.

    Returns:
        Records with the number of their ``fields``, 0 where quotes are amiss, and whether they hold a ``stray``
        quote inside a field without quotes.
    """
    text = pl.col(_TEXT)
    if not (quotes and lines.select(text.str.contains('"', literal=True).any()).item()):
        return lines.with_columns(fields=text.str.count_matches(separator, literal=True) + 1, stray=False)
    # A quoted field begins right after a separator; quotes elsewhere are ordinary characters.
    start = rf"(^|{separator})"
    opening = rf'{start}{_PAIR}*"'

    def bare(text: pl.Expr) -> pl.Expr:
        """The text with ``""`` for every quoted field that is closed."""
        return text.str.replace_all(rf'{opening}[^"]*"', '${1}""')

    plain = text.str.replace_all('""', _PAIR, literal=True)
    unclosed = rf'{opening}([^"]|$)'
    lines = lines.with_columns(bare=bare(plain))
    opens = pl.col("bare").str.contains(unclosed)
    if lines.select(opens.any()).item():
        stays = bare('"' + plain).str.contains(unclosed)
        lines = _joined_where(lines, opens, stays).with_columns(bare=bare(plain))
    fields = pl.col("bare").str.count_matches(separator, literal=True) + 1
    beyond = rf'{start}(""[^{separator}]|{_PAIR}+[^{separator}"{_PAIR}])'
    amiss = pl.col("bare").str.contains(f"{unclosed}|{beyond}")
    unquoted = pl.col("bare").str.replace_all(rf'{start}(""|{_PAIR}+)', "${1}")
    stray = unquoted.str.contains(f'["{_PAIR}]')
    return lines.select(LINE, _TEXT, fields=pl.when(amiss).then(0).otherwise(fields), stray=stray)


def _joined_where(lines: pl.DataFrame, opens: pl.Expr, stays: pl.Expr) -> pl.DataFrame:
    """Join lines to records.

    Args:
        lines: all lines.
        opens: a quoted field is open at the end of a line if none was at its start.
        stays: a quoted field is open at the end of a line if one was at its start.
    """
    # Some lines say it whatever was before them; between those, lines that turn it round are counted.
    turns = (opens & ~stays).cum_sum()
    known = pl.when(opens == stays).then(opens + turns).forward_fill().fill_null(0)
    ended = ((known + turns) % 2 == 0).shift(1, fill_value=True)
    return (
        lines.group_by(ended.cum_sum().alias("record"), maintain_order=True)
        .agg(pl.col(_TEXT).str.join("\n"), pl.col(LINE).first())
        .drop("record")
    )


def _requoted(records: pl.DataFrame, separator: str) -> pl.Series:
    """The texts of records, stray quotes quoted: the parser takes them for quotes that open or close a field."""
    texts, stray = records[_TEXT], records["stray"].arg_true()
    return texts.scatter(stray, [_quoted(text, separator) for text in texts.gather(stray)])


def _quoted(text: str, separator: str) -> str:
    record = io.StringIO()
    writer = csv.writer(record, delimiter=separator, lineterminator="\n")
    writer.writerows(csv.reader([text], delimiter=separator))
    return record.getvalue().removesuffix("\n")


def _read_json_lines(path: Path, roles: Sequence[Role], rest: bool, problems: Problems) -> Table:
    where = f"{path.name}, line"
    objects = Objects(path, LINE, join_of(roles), rest)
    for reason, expected in ((NOT_UTF8, _TEXT_IN_UTF8), (MALFORMED, "a JSON object per line")):
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


def join_of(roles: Sequence[Role]) -> dict[str, bool]:
    """Columns that may be used -> whether lists in them are joined."""
    return {
        name: any(name in role.candidates and role.join for role in roles)
        for each in roles
        for name in each.candidates
    }


def report_values(bad: Bad, where: str, reason: str, expected: str, problems: Problems) -> None:
    """Report values by the numbers of their rows."""
    rows = pl.DataFrame(bad, schema={LINE: pl.UInt32, VALUE: pl.String}, orient="row")
    problems.report(Table(rows, where).rows(pl.lit(True), pl.col(VALUE)), reason, expected)
