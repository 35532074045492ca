"""Items that were added to a run after training, updated or removed: what a run's folder holds of them.

Each change is a *segment*, a folder of its own, that is written aside. The manifest, which is replaced last, names
the segments in order and the removed items. So a reader sees all of a change or nothing of it, and vectors that
were there before stay as they are. Legend: N items before a segment, n items in it.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor

from iisan.data.sequences import Index
from iisan.errors import RunError
from iisan.files import locked, read_manifest, settle, sha256_file, write_json
from iisan.names import ITEM_ID
from iisan.runs.anchoring import TERMS

#: Folder of the segments in a run folder, and the manifest in it.
ADDITIONS, MANIFEST = "additions", "additions.json"
KIND, SCHEMA = "iisan-additions", 1
_ITEMS, _VECTORS, _ROWS = "items.parquet", "vectors.safetensors", "rows"
_NEIGHBOURS, _SHARES, _COUNTS = f"{TERMS}neighbours.", f"{TERMS}shares.indptr", f"{TERMS}counts"
_CSR = ("data", "indices", "indptr")
#: Errors of files that have other content than was written.
_DAMAGE = (KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Additions:
    """Changes of a run's items since it was trained.

    Attributes:
        folder: Run folder.
        segments: Names of the segments, the oldest first.
        removed: Ids of the items that are in no list.
    """

    folder: Path
    segments: tuple[str, ...] = ()
    removed: frozenset[str] = frozenset()

    @classmethod
    def read(cls, run: Path) -> "Additions":
        """Read the manifest of a run folder, which need not exist.

        Raises:
            RunError: It is damaged.
        """
        path = run / ADDITIONS / MANIFEST
        if not path.exists():
            return cls(run)
        found = read_manifest(path, KIND, SCHEMA, RunError, "train the run again, or delete the folder")
        return cls(run, tuple(found["segments"]), frozenset(found["removed"]))

    def write(self) -> None:
        """Replace the manifest, and delete segments that it does not name."""
        place = self.folder / ADDITIONS
        value = {"segments": list(self.segments), "removed": sorted(self.removed)}
        write_json(place / MANIFEST, {"kind": KIND, "schema": SCHEMA, **value})
        for path in place.iterdir():
            if path.is_dir() and path.name not in self.segments:
                shutil.rmtree(path)

    def copy_to(self, folder: Path, facts: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Copy the changes into another run folder, with what a function returns for the items of each segment."""
        if not (self.segments or self.removed):
            return
        for name in self.segments:
            source, target = (each / ADDITIONS / name for each in (self.folder, folder))
            target.mkdir(parents=True)
            shutil.copyfile(source / _VECTORS, target / _VECTORS)
            facts(pl.read_parquet(source / _ITEMS, glob=False)).write_parquet(target / _ITEMS)
        replace(self, folder=folder).write()

    def applied(
        self, weights: Mapping[str, Tensor], items: pl.DataFrame
    ) -> tuple[dict[str, Tensor], pl.DataFrame]:
        """Return the tensors and items of a run with all segments.

        Raises:
            RunError: A segment is damaged.
        """
        changes = self.changes(items)
        return (dict(weights), items) if changes is None else (_grown(weights, changes), changes.put_into(items))

    def changes(self, items: pl.DataFrame) -> "Changes | None":
        """Return all segments as one, with the columns of the items of the trained run; None without segments.

        Raises:
            RunError: A segment is damaged.
        """
        if not self.segments:
            return None
        places = [self.folder / ADDITIONS / name for name in self.segments]
        with undamaged(self.folder):
            segments = [load_file(place / _VECTORS) for place in places]
            frames = [pl.read_parquet(place / _ITEMS, columns=items.columns, glob=False) for place in places]
            rows = torch.cat([segment.pop(_ROWS) for segment in segments])
            # In ascending order, and of an item that changed several times the last state.
            _, first = np.unique(rows.numpy()[::-1], return_index=True)
            latest = len(rows) - 1 - first
            dense = [name for name in segments[0] if not name.startswith(_NEIGHBOURS)]
            tensors = {name: torch.cat([segment[name] for segment in segments])[latest] for name in dense}
            neighbours = None
            if _NEIGHBOURS + _CSR[0] in segments[0]:
                total = max(len(items), int(rows.max()) + 1)
                neighbours = sparse.vstack([_csr(segment, total) for segment in segments]).tocsr()[latest]
            return Changes(rows[latest], pl.concat(frames)[latest], tensors, neighbours)

    def columns(self, items: pl.DataFrame) -> pl.DataFrame:
        """Put further columns of added and updated items into a frame of all items.

        A value that does not fit the type of its column is left out; a new column is empty for all other items.
        """
        for name in self.segments:
            changed = pl.read_parquet(self.folder / ADDITIONS / name / _ITEMS, glob=False)
            new = [column for column in changed.columns if column not in items.columns]
            items = items.with_columns(pl.lit(None, changed.schema[column]).alias(column) for column in new)
            fitting = (_fitting(column, items.schema[column.name]) for column in changed)
            items = _with_rows(items, changed.select(fitting))
        return items


def _fitting(column: pl.Series, dtype: Any) -> pl.Series:
    """Convert a column to a type; null where a value does not fit."""
    try:
        return column.cast(dtype, strict=False)
    except pl.exceptions.PolarsError:  # There is no conversion between such types.
        return pl.Series(column.name, [None] * len(column), dtype=dtype)


@dataclass(frozen=True)
class Changes:
    """The latest state of the n items that were added or updated.

    Attributes:
        rows: Their rows, ascending, ``[n]``.
        items: ``item_id`` and further columns.
        tensors: Name of a tensor of the run -> rows of it, ``[n, …]``.
        neighbours: Rows of ``terms.neighbours``, sparse, of runs with an anchor.
    """

    rows: Tensor
    items: pl.DataFrame
    tensors: Mapping[str, Tensor]
    neighbours: sparse.csr_array | None

    def put_into(self, items: pl.DataFrame) -> pl.DataFrame:
        """Return the items of a run with these."""
        return _with_rows(items, self.items)


def _with_rows(items: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """Replace the rows of known items and append the others, by id."""
    items = items.update(changed, on=ITEM_ID, how="left", include_nulls=True)
    new = changed.join(items, on=ITEM_ID, how="anti", maintain_order="left")
    return pl.concat([items, new], how="diagonal")


@contextmanager
def undamaged(run: Path, cure: str = "train the run again, or delete its additions") -> Iterator[None]:
    """Raise a ``RunError`` for errors of files in a run folder that have other content than was written."""
    try:
        yield
    except (OSError, SafetensorError, pl.exceptions.PolarsError, *_DAMAGE) as error:
        fault = " ".join(str(error).split())  # PyTorch lists absent tensors in several lines.
        raise RunError(f"the run in '{run}' is damaged ({fault})", "a whole run folder", cure) from None


def writing(run: Path) -> AbstractContextManager[object]:
    """Lock the additions of a run for one writer.

    Raises:
        RunError: Another process is writing.
    """
    return locked(run / ADDITIONS, RunError)


def write_segment(run: Path, items: pl.DataFrame, rows: Tensor, tensors: Mapping[str, Tensor]) -> str:
    """Write a segment of n items that ends up in the given ``rows [n]``, and return its name.

    Args:
        run: Run folder.
        items: ``item_id``, ``text`` and further columns.
        rows: Rows of items that are replaced, or the next free ones.
        tensors: Tensors ``[n, …]`` under the names of a run's, and the rows of ``terms.neighbours``.
    """
    place = run / ADDITIONS
    for leftover in place.glob(".*.part"):  # of a killed process
        shutil.rmtree(leftover)
    aside = Path(tempfile.mkdtemp(dir=place, prefix=".", suffix=".part"))
    items.write_parquet(aside / _ITEMS)
    save_file({_ROWS: rows, **tensors}, aside / _VECTORS)
    for path in aside.iterdir():
        settle(path)
    numbers = [int(path.name) for path in place.iterdir() if path.name.isdecimal()]
    name = f"{max(numbers, default=0) + 1:06d}"
    aside.chmod(0o755)
    aside.rename(place / name)
    return name


def segment_rows(run: Path, name: str) -> Index:
    """Return the rows of the items of a segment."""
    return load_file(run / ADDITIONS / name / _VECTORS)[_ROWS].numpy()


def segment_hash(run: Path, name: str) -> str:
    """SHA-256 of the vectors of a segment."""
    return sha256_file(run / ADDITIONS / name / _VECTORS)


def _grown(weights: Mapping[str, Tensor], changes: Changes) -> dict[str, Tensor]:
    """Put changes into the tensors of a run."""
    found = dict(weights)
    for name, values in changes.tensors.items():
        found[name] = put_rows(weights[name], changes.rows, values)
        total = len(found[name])
    if changes.neighbours is not None:
        found[_COUNTS] = _longer(weights[_COUNTS], total)
        # An item that was added has no transitions of its own.
        shares = weights[_SHARES]
        found[_SHARES] = torch.cat([shares, shares[-1:].expand(total + 1 - len(shares))])
        neighbours = _put_neighbours(_csr(weights, total), changes.neighbours, changes.rows, total)
        found |= tensors_of(neighbours)
    return found


def _longer(old: Tensor, total: int) -> Tensor:
    return torch.cat([old, old.new_zeros(total - len(old), *old.shape[1:])])


def put_rows(old: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Return a tensor ``[N, …]`` with other values in some rows, which may follow the last one."""
    grown = _longer(old, max(len(old), int(rows.max()) + 1))
    grown[rows] = values
    return grown


def _csr(tensors: Mapping[str, Tensor], columns: int) -> sparse.csr_array:
    arrays = tuple(tensors[_NEIGHBOURS + part].numpy() for part in _CSR)
    return sparse.csr_array(arrays, shape=(len(arrays[2]) - 1, columns))


def _put_neighbours(old: sparse.csr_array, new: sparse.csr_array, rows: Tensor, total: int) -> sparse.csr_array:
    """Put rows into the neighbours ``[N + 1, N]``, whose last row is that of ``PAD``."""
    size = old.shape[0] - 1
    places = np.arange(total)
    places[rows.numpy()] = size + 1 + np.arange(len(rows))
    return sparse.vstack([old, new]).tocsr()[np.append(places, size)]


def tensors_of(neighbours: sparse.csr_array) -> dict[str, Tensor]:
    """Name the arrays of neighbours as in the files of a run and of a segment."""
    return {_NEIGHBOURS + part: torch.from_numpy(getattr(neighbours, part)) for part in _CSR}
