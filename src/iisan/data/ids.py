"""Looking up ids that a user names, with hints where they are unknown."""

import difflib
from collections.abc import Sequence

import polars as pl

from iisan.data.sequences import Index
from iisan.data.tables import numbered
from iisan.errors import DataError

#: Most ids among which close matches of an unknown one are searched, because difflib compares with all.
_SMALL = 50_000
_SHOWN = 5


def index_of(ids: pl.Series, wanted: Sequence[str], kind: str) -> Index:
    """Row numbers of ``wanted`` among unique ``ids``, ``[len(wanted)]``.

    Raises:
        DataError: Unknown ids; names them (as a ``kind``, such as "item") and similar ones.
    """
    asked = pl.DataFrame({"id": pl.Series([str(one) for one in wanted], dtype=pl.String)})
    rows = numbered(asked, "id", ids, "number")
    unknown = rows.filter(pl.col("number").is_null())["id"].unique(maintain_order=True)
    if len(unknown):
        close = difflib.get_close_matches(unknown[0], ids.to_list(), n=3) if len(ids) <= _SMALL else []
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "check the spelling"
        expected = f"one of the {len(ids):,} {kind}s of the dataset"
        raise DataError(f"unknown {kind} {quoted(unknown)}", expected, hint)
    return rows["number"].cast(pl.Int64).to_numpy()


def quoted(ids: pl.Series) -> str:
    """Name the first of some ids, and the number of the others, for a message."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(f"'{one}'" for one in ids.head(_SHOWN)) + more
