"""Bad rows: stop at the first kind of them, or skip, count and list them."""

from pathlib import Path
from typing import Literal

import polars as pl

from iisan.errors import DataError
from iisan.files import aside

OnBad = Literal["stop", "skip"]

#: Columns of a list of bad rows: where it stands and the offending value.
WHERE, VALUE, REASON = "where", "value", "reason"
_SCHEMA = {REASON: pl.String, WHERE: pl.String, VALUE: pl.String}
_SHOWN = 120


def printable(text: str) -> str:
    """A text on one line, whatever cannot be printed escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Problems:
    """Collects bad rows under one policy.

    Args:
        on_bad: ``stop`` raises at the first report, ``skip`` keeps the list.
    """

    def __init__(self, on_bad: OnBad) -> None:
        self.on_bad = on_bad
        self._reports: list[pl.DataFrame] = []

    def report(self, rows: pl.DataFrame, reason: str, expected: str, hint: str = "") -> None:
        """Take note of bad rows, which the caller leaves out; no rows are no problem.

        Args:
            rows: columns ``where`` and ``value``, in file order.
            reason: what is wrong with them, such as "duplicate item id".
            expected: what would have been right.
            hint: what else cures it, to be put behind the rest.

        Raises:
            DataError: the policy is ``stop``; names the first row and the number of rows.
        """
        if rows.is_empty():
            return
        rows = rows.select(
            pl.lit(reason).alias(REASON),
            WHERE,
            pl.col(VALUE).cast(pl.String).str.slice(0, _SHOWN).fill_null(""),
        )
        if self.on_bad == "stop":
            _, where, value = rows.row(0)
            count = "1 such row" if len(rows) == 1 else f"{len(rows):,} such rows"
            raise DataError(
                f"{where}: {reason} '{printable(value)}' ({count})",
                expected,
                "correct it, or pass --on-bad skip (on_bad='skip') to leave such rows out" + hint,
            )
        self._reports.append(rows)

    @property
    def skipped(self) -> pl.DataFrame:
        """All bad rows: ``reason``, ``where``, ``value``."""
        return pl.concat([pl.DataFrame(schema=_SCHEMA), *self._reports])


def write_skipped(skipped: pl.DataFrame, path: Path) -> None:
    """Write a list of bad rows as JSON lines; an empty list gives an empty file."""
    with aside(path) as temporary:
        skipped.write_ndjson(temporary)


def read_skipped(path: Path) -> pl.DataFrame:
    """Read what ``write_skipped`` wrote."""
    if not path.stat().st_size:
        return pl.DataFrame(schema=_SCHEMA)
    return pl.read_ndjson(path, schema=_SCHEMA)


def skipped_counts(skipped: pl.DataFrame) -> dict[str, int]:
    """Number of bad rows per reason."""
    return dict(skipped.group_by(REASON, maintain_order=True).len().iter_rows())
