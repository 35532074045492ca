"""JSON lines, read object by object: only what is used must be of a kind, and time and memory follow the file."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from iisan.data.values import as_column, as_texts

NOT_UTF8, MALFORMED = "not UTF-8", "malformed row"
#: Objects that are held as Python's before they become part of a table.
_AT_ONCE = 50_000
#: Columns that fewer rows have are left out unless they are used: keys may be data, thousands of them.
_SMALLEST_SHARE = 0.01

#: Numbers of lines, and what stands there that cannot be used.
Bad = list[tuple[int, str]]


class Objects:
    """The objects of a file, as a table.

    Args:
        path: JSON lines, perhaps compressed by gzip; blank ones are passed over.
        numbers: name of the column of line numbers.
        wanted: columns that may be used -> whether lists in them are joined.
        rest: keep other columns, too, as :func:`iisan.data.values.as_column` gives them.

    Attributes:
        columns: names of all columns, in the order of their first appearance.
        frame: line numbers, the wanted columns as strings, and the others.
        bad_lines: those that are no objects, by reason; they are no rows.
        unusable: by wanted column the values that are no texts; they are null.
    """

    def __init__(self, path: Path, numbers: str, wanted: Mapping[str, bool], rest: bool) -> None:
        self.columns: dict[str, None] = {}
        self.bad_lines: dict[str, Bad] = {NOT_UTF8: [], MALFORMED: []}
        self.unusable: dict[str, Bad] = {name: [] for name in wanted}
        self._wanted = wanted
        parts = [pl.DataFrame(schema={numbers: pl.UInt32, **dict.fromkeys(wanted, pl.String)})]
        lines: list[int] = []
        values: dict[str, list[Any]] = {name: [] for name in wanted}
        # Only the rows that have a column: with keys that are data all rows of all columns would be too many.
        others: dict[str, dict[int, Any]] = {}
        for row, (line, found) in enumerate(self._objects(path)):
            if not found.keys() <= self.columns.keys():
                self.columns.update(dict.fromkeys(found))
            if len(lines) == _AT_ONCE:
                parts.append(self._part(numbers, lines, values))
            lines.append(line)
            for name, column in values.items():
                column.append(found.get(name))
            if rest:
                for name in found.keys() - wanted.keys():
                    others.setdefault(name, {})[row] = found[name]
        parts.append(self._part(numbers, lines, values))
        self.frame = pl.concat(parts, rechunk=True)
        height = len(self.frame)
        self.frame = self.frame.with_columns(
            as_column(name, [others[name].get(row) for row in range(height)])
            for name in self.columns
            if name in others and len(others[name]) >= _SMALLEST_SHARE * height
        )

    def _part(self, numbers: str, lines: list[int], values: dict[str, list[Any]]) -> pl.DataFrame:
        """The table of what has been read since the last one; the lists are emptied."""
        series = [pl.Series(numbers, lines, dtype=pl.UInt32)]
        for name, column in values.items():
            texts, unusable = as_texts(name, column, self._wanted[name])
            series.append(texts)
            self.unusable[name] += [(lines[row], json.dumps(column[row])) for row in unusable]
            column.clear()
        lines.clear()
        return pl.DataFrame(series)

    def _objects(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Objects and the numbers of their lines, from 1."""
        for number, line in text_lines(path, self.bad_lines[NOT_UTF8]):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                yield number, found
            elif line.strip():
                self.bad_lines[MALFORMED].append((number, line.strip()))


def text_lines(path: Path, bad: Bad) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and texts of a file's lines, without a byte order mark.

    Args:
        path: Text file, perhaps compressed by gzip.
        bad: Receives the lines that are not UTF-8.
    """
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, ended in enumerate(file, 1):
            line = ended.rstrip(b"\r\n")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                bad.append((number, line.decode("utf-8", "backslashreplace")))
            else:
                yield number, text
