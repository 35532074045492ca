"""Invalid rows: raise an error at the first, or skip, count and list them."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import polars as pl

from iisan.errors import DataError
from iisan.files import aside

OnBad = Literal["stop", "skip"]

#: Columns of a table of invalid rows: location, offending value, reason.
WHERE, VALUE, REASON = "where", "value", "reason"
_SCHEMA = {REASON: pl.String, WHERE: pl.String, VALUE: pl.String}
_SHOWN = 120
_CURE = "correct it, or pass --on-bad skip (on_bad='skip') to leave such rows out"


def printable(text: str) -> str:
    """Escape the non-printable characters of a text, line breaks included."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Problems:
    """Collects invalid rows.

    Args:
        on_bad: ``stop`` raises at the first report, ``skip`` collects all.
        cure: Cure that an error names.
        known: Faults that a public dataset is known to have: such rows are left out and counted, but not listed.

    Attributes:
        dropped: Number of rows with a known fault, by fault.
    """

    def __init__(self, on_bad: OnBad, cure: str = _CURE, known: Collection[str] = ()) -> None:
        self.on_bad = on_bad
        self.dropped = Counter[str]()
        self._cure, self._known = cure, known
        self._reports: list[pl.DataFrame] = []

    def report(self, rows: pl.DataFrame, reason: str, expected: str, hint: str = "") -> None:
        """Report invalid rows, which the caller leaves out; an empty table is ignored.

        Args:
            rows: Columns ``where`` and ``value``, in file order.
            reason: Description of the fault, such as "duplicate item id".
            expected: Description of valid values.
            hint: Further cure, appended to the message.

        Raises:
            DataError: The policy is ``stop``; names the first row and the number of rows.
        """
        if rows.is_empty():
            return
        if reason in self._known:
            self.dropped[reason] += len(rows)
            return
        rows = rows.select(
            pl.lit(reason).alias(REASON), WHERE, pl.col(VALUE).cast(pl.String).str.slice(0, _SHOWN).fill_null("")
        )
        if self.on_bad == "stop":
            _, where, value = rows.row(0)
            count = "1 such row" if len(rows) == 1 else f"{len(rows):,} such rows"
            raise DataError(
                f"{where}: {reason} '{printable(value)}' ({count})",
                expected,
                self._cure + hint,
            )
        self._reports.append(rows)

    @property
    def skipped(self) -> pl.DataFrame:
        """All invalid rows: ``reason``, ``where``, ``value``."""
        return pl.concat([pl.DataFrame(schema=_SCHEMA), *self._reports])


def write_skipped(skipped: pl.DataFrame, path: Path) -> None:
    """Write a table of invalid rows as JSON lines; an empty table gives an empty file."""
    with aside(path) as temporary:
        skipped.write_ndjson(temporary)


def read_skipped(path: Path) -> pl.DataFrame:
    """Read a file of ``write_skipped``."""
    if not path.stat().st_size:
        return pl.DataFrame(schema=_SCHEMA)
    return pl.read_ndjson(path, schema=_SCHEMA)


def skipped_counts(skipped: pl.DataFrame) -> dict[str, int]:
    """Number of invalid rows by reason."""
    return dict(skipped.group_by(REASON, maintain_order=True).len().iter_rows())
