"""JSON lines, read object by object: only columns that are used need values of one type."""

import gzip
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from iisan.data.values import Lists, as_column, as_texts

NOT_UTF8, MALFORMED = "not UTF-8", "malformed row"
#: Number of rows that are converted to a table at a time.
_AT_ONCE = 50_000
#: Unused columns that fewer rows have are left out, because keys may be data, thousands of them.
_SMALLEST_SHARE = 0.01

#: Line numbers and unusable values.
Bad = list[tuple[int, str]]


class Objects:
    """The objects of a file as a table.

    Args:
        path: JSON lines file, perhaps compressed by gzip.
        numbers: Name of the column of line numbers.
        wanted: Treatment of lists, by the names of columns that may be used.
        rest: Keep other columns too, see :func:`iisan.data.values.as_column`.

    Attributes:
        columns: Names of all columns, in the order of their first appearance.
        frame: Line numbers, the wanted columns as strings or lists of strings, and the others.
        bad_lines: Lines that are not objects, by reason; they are not in ``frame``.
        unusable: Values that are not texts, by wanted column; they are null in ``frame``.
    """

    def __init__(self, path: Path, numbers: str, wanted: Mapping[str, Lists], rest: bool) -> None:
        self.columns: dict[str, None] = {}
        self.bad_lines: dict[str, Bad] = {NOT_UTF8: [], MALFORMED: []}
        self.unusable: dict[str, Bad] = {name: [] for name in wanted}
        types = {name: pl.List(pl.String) if lists == "keep" else pl.String for name, lists in wanted.items()}
        frames = [pl.DataFrame(schema={numbers: pl.UInt32, **types})]
        # By row, because columns of all rows would be too many where keys are data.
        others: dict[str, dict[int, Any]] = {}
        objects, height = self._objects(path), 0
        while batch := list(islice(objects, _AT_ONCE)):
            lines, rows = zip(*batch, strict=True)
            columns = [pl.Series(numbers, lines, dtype=pl.UInt32)]
            for name, lists in wanted.items():
                values = [row.get(name) for row in rows]
                texts, unusable = as_texts(name, values, lists)
                columns.append(texts)
                self.unusable[name] += [(lines[row], json.dumps(values[row])) for row in unusable]
            frames.append(pl.DataFrame(columns))
            for number, row in enumerate(rows, height):
                if not row.keys() <= self.columns.keys():
                    self.columns.update(dict.fromkeys(row))
                for name in row.keys() - wanted.keys() if rest else ():
                    others.setdefault(name, {})[number] = row[name]
            height += len(rows)
        self.frame = pl.concat(frames, rechunk=True).with_columns(
            as_column(name, [others[name].get(row) for row in range(height)])
            for name in self.columns
            if name in others and len(others[name]) >= _SMALLEST_SHARE * height
        )

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

    The file may be compressed by gzip; lines that are not UTF-8 are appended to ``bad``.
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
