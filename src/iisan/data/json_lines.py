"""JSON lines, read block by block: only columns that are used need values of one type."""

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from iisan.data.values import Lists, as_column, as_texts

NOT_UTF8, MALFORMED = "not UTF-8", "malformed row"
#: Bytes of text that are converted to a table at a time.
_AT_ONCE = 2**24
#: Values that polars may write otherwise than ``as_texts`` does: lists, objects, numbers with an exponent, and the
#: null byte that it puts in the place of invalid Unicode.
_UNSURE = r"^\s*[\[{]|^-?\d[\d.]*[eE]|\x00"
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
        parse: Converts a line to an object; raises ``ValueError`` or ``SyntaxError`` for lines that are malformed.

    Attributes:
        columns: Names of all columns, in the order of their first appearance. Where nothing but strings and
            numbers is wanted: those of the first object of a block, and others that are wanted and have a value.
        frame: Line numbers, the wanted columns as strings or lists of strings, and the others.
        bad_lines: Lines that are not objects, by reason; they are not in ``frame``.
        unusable: Values that are not texts, by wanted column; they are null in ``frame``.
    """

    def __init__(
        self,
        path: Path,
        numbers: str,
        wanted: Mapping[str, Lists],
        rest: bool,
        parse: Callable[[str], Any] = json.loads,
    ) -> None:
        self.columns: dict[str, None] = {}
        self.bad_lines: dict[str, Bad] = {NOT_UTF8: [], MALFORMED: []}
        self.unusable: dict[str, Bad] = {name: [] for name in wanted}
        self._numbers, self._wanted, self._parse = numbers, wanted, parse
        types = {name: pl.List(pl.String) if lists == "keep" else pl.String for name, lists in wanted.items()}
        frames = [pl.DataFrame(schema={numbers: pl.UInt32, **types})]
        # By row, because columns of all rows would be too many where keys are data.
        others: dict[str, dict[int, Any]] = {}
        plain = not rest and parse is json.loads and {*wanted.values()} <= {"refuse"}
        height = 0
        for first, block in blocks(path):
            frame = self._plain(first, block) if plain else None
            if frame is None:
                frame, rows = self._exact(first, block)
                for number, row in enumerate(rows if rest else (), height):
                    for name in row.keys() - wanted.keys():
                        others.setdefault(name, {})[number] = row[name]
            frames.append(frame)
            height += len(frame)
        self.frame = pl.concat(frames, rechunk=True).with_columns(
            as_column(name, [others[name].get(row) for row in range(height)])
            for name in self.columns
            if name in others and len(others[name]) >= _SMALLEST_SHARE * height
        )

    def _plain(self, first: int, block: bytes) -> pl.DataFrame | None:
        """Read a block in one go; None if a line is malformed or blank, or a value not surely the same text."""
        try:
            self.columns.update(dict.fromkeys(json.loads(block[: block.find(b"\n") + 1 or None])))
            frame = pl.read_ndjson(io.BytesIO(block), schema=dict.fromkeys(self._wanted, pl.String))
        except (pl.exceptions.PolarsError, ValueError, TypeError, RecursionError):
            return None
        if len(frame) != block.count(b"\n") + (not block.endswith(b"\n")):
            return None
        if frame.select(pl.any_horizontal(pl.all().str.contains(_UNSURE).any())).item():
            return None
        self.columns.update({name: None for name in frame.columns if frame[name].count()})
        return frame.with_row_index(self._numbers, first)

    def _exact(self, first: int, block: bytes) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
        """Read a block object by object; return the wanted columns, and the objects."""
        lines, rows = list[int](), list[dict[str, Any]]()
        for number, line in _texts(first, block, self.bad_lines[NOT_UTF8]):
            try:
                found = self._parse(line)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                found = None
            if isinstance(found, dict):
                lines.append(number)
                rows.append(found)
                if not found.keys() <= self.columns.keys():
                    self.columns.update(dict.fromkeys(found))
            elif line.strip():
                self.bad_lines[MALFORMED].append((number, line.strip()))
        columns = [pl.Series(self._numbers, lines, dtype=pl.UInt32)]
        for name, lists in self._wanted.items():
            values = [row.get(name) for row in rows]
            texts, unusable = as_texts(name, values, lists)
            columns.append(texts)
            self.unusable[name] += [(lines[row], json.dumps(values[row])) for row in unusable]
        return pl.DataFrame(columns), rows


def text_lines(
    path: Path, bad: Bad, fallback: str | None = None, at_once: int = _AT_ONCE
) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and texts of a file's lines, without a byte order mark.

    The file may be compressed by gzip. Lines that are not UTF-8 are read in the encoding ``fallback``, without
    one appended to ``bad``. ``at_once`` is the number of bytes that are read ahead.
    """
    for first, block in blocks(path, at_once):
        yield from _texts(first, block, bad, fallback)


def _texts(first: int, block: bytes, bad: Bad, fallback: str | None = None) -> Iterator[tuple[int, str]]:
    for number, ended in enumerate(block.removesuffix(b"\n").split(b"\n"), first):
        line = ended.rstrip(b"\r")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            if fallback is None:
                bad.append((number, line.decode("utf-8", "backslashreplace")))
                continue
            text = line.decode(fallback)
        yield number, text


def blocks(path: Path, at_once: int = _AT_ONCE) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a file, ``at_once`` bytes or more of them at a time, and the number of the first."""
    number = 1
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        while block := file.read(at_once):
            block += file.readline()
            yield number, block
            number += block.count(b"\n")
