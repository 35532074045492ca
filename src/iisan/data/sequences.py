"""Users' interaction sequences as flat index arrays (CSR), memory-mapped from disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iisan.files import aside
from iisan.names import PAD

Index = npt.NDArray[np.int64]

#: Positions whose items are counted at a time.
_BLOCK = 2**20


@dataclass(frozen=True)
class Sequences:
    """The interactions of all users, user after user, oldest first.

    Attributes:
        offsets: Offsets ``[users + 1]``, int64; the history of user ``u`` is ``items[offsets[u]:offsets[u + 1]]``.
        items: Item indices ``[interactions]`` (rows of ``items.parquet``), int32.
        timestamps: Timestamps ``[interactions]``, int64, or None if the source had none.
    """

    offsets: Index
    items: npt.NDArray[np.int32]
    timestamps: Index | None = None

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Index:
        """Number of interactions of each user, ``[users]``."""
        return np.diff(self.offsets)

    def save(self, folder: Path) -> list[Path]:
        """Write the arrays as ``.npy`` files into ``folder``; return their paths."""
        paths = []
        for name, array in vars(self).items():
            path = folder / f"{name}.npy"
            if array is None:
                path.unlink(missing_ok=True)
                continue
            with aside(path) as temporary, temporary.open("wb") as file:
                np.save(file, array)
            paths.append(path)
        return paths

    @classmethod
    def load(cls, folder: Path) -> "Sequences":
        """Memory-map the arrays of ``save``."""
        timestamps = folder / "timestamps.npy"
        return cls(
            np.load(folder / "offsets.npy", mmap_mode="r"),
            np.load(folder / "items.npy", mmap_mode="r"),
            np.load(timestamps, mmap_mode="r") if timestamps.exists() else None,
        )


def padded(items: npt.NDArray[np.integer], starts: Index, ends: Index, length: int) -> Index:
    """Return the last ``length`` items of each range ``items[start:end]``.

    Returns:
        Items ``[len(starts), length]``, int64, left-padded with ``PAD``.
    """
    if not len(items):
        return np.full((len(starts), length), PAD, dtype=np.int64)
    positions = ends[:, None] + np.arange(-length, 0)
    inside = positions >= starts[:, None]
    return np.where(inside, items[np.where(inside, positions, 0)], PAD).astype(np.int64)


def positions_of(starts: Index, ends: Index) -> tuple[Index, Index]:
    """Return range numbers and positions of the ranges ``start:end``, both ``[sum(ends - starts)]``."""
    lengths = ends - starts
    rows = np.repeat(np.arange(len(starts)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return rows, starts[rows] + within


def ragged(items: npt.NDArray[np.integer], starts: Index, ends: Index) -> tuple[Index, Index]:
    """Concatenate the ranges ``items[start:end]``.

    Returns:
        Range numbers and items, both ``[sum(ends - starts)]``, int64.
    """
    rows, positions = positions_of(starts, ends)
    return rows, np.asarray(items[positions], dtype=np.int64)


def item_counts(items: npt.NDArray[np.integer], starts: Index, ends: Index, num_items: int) -> Index:
    """Count how often every item occurs in the ranges ``items[start:end]``, ``[num_items]``.

    Reads a block of ranges at a time, so memory does not grow with the interactions.
    """
    counts = np.zeros(num_items, np.int64)
    blocks = np.cumsum(ends - starts) // _BLOCK
    for rows in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(blocks)) + 1):
        np.add.at(counts, ragged(items, starts[rows], ends[rows])[1], 1)
    return counts
