"""States that were made elsewhere, as a modality of their own: what ``iisan import-states`` does.

Legend: n items of the source, K levels, D width.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from iisan.data.dataset import Dataset
from iisan.encoders.levels import Level
from iisan.errors import StoreError
from iisan.files import content_key, sha256_file, sha256_json
from iisan.names import IMPORTED, ITEM_ID, LAST, check_modality
from iisan.progress import track
from iisan.states.codec import check_distinct, check_dtype, encode_checked, level_means, storage_errors
from iisan.states.extract import MAX_ERROR, sampled
from iisan.states.manifest import Manifest, fingerprint_of
from iisan.states.store import StateStore, store_folder
from iisan.states.writer import StateWriter, library_versions


@dataclass(frozen=True)
class Source:
    """Arrays from elsewhere, one per item.

    Attributes:
        name: where they come from.
        ids: of the n items.
        digest: stands for the whole source; another one of the same name must not be mistaken for it.
        read: from a position to an array [D] or [K, D].
    """

    name: str
    ids: Sequence[str]
    digest: str
    read: Callable[[int], Tensor]

    def label(self, position: int) -> str:
        """How messages name an item."""
        return f"item '{self.ids[position]}'"

    def states(self, positions: Sequence[int], shape: tuple[int, int] | None = None) -> Tensor:
        """States [n, K, D] in fp32 of some items.

        Raises:
            StoreError: an item whose array has another shape, or values that are no finite numbers.
        """
        states = [self.read(position).float() for position in positions]
        states = [each.unsqueeze(0) if each.ndim == 1 else each for each in states]
        expected = shape or tuple(states[0].shape)
        for position, each in zip(positions, states, strict=True):
            if each.ndim != 2 or tuple(each.shape) != expected or not each.numel():
                raise StoreError(
                    f"{self.label(position)} in '{self.name}' has states of the shape {list(each.shape)}",
                    "[levels, width] or [width], the same for all items and at least 1",
                    "mend that entry",
                )
            if not torch.isfinite(each).all():
                raise StoreError(
                    f"{self.label(position)} in '{self.name}' has states that are infinite or not a number",
                    "finite numbers",
                    "mend that entry",
                )
        return torch.stack(states)


def open_source(path: Path, ids: Path | None = None, column: str | None = None) -> Source:
    """Open states from elsewhere.

    Args:
        path: a folder of ``<item_id>.pt`` files (tensors, as the authors of IISAN published them), a ``.npy`` file
            [n, D] or [n, K, D], or a Parquet file with ``item_id`` and a column of lists.
        ids: with a ``.npy`` file, the items' ids, one a line.
        column: with a Parquet file, the column of lists.

    Raises:
        StoreError: absent, of another kind, or without ids.
    """
    try:
        if path.is_dir():
            return _folder_of_tensors(path)
        if path.suffix == ".npy" and ids is not None:
            return _array(path, ids.read_text(encoding="utf-8").split("\n"))
        if path.suffix == ".parquet" and column is not None:
            return column_source(pl.read_parquet(path, glob=False), column, str(path))
    except (OSError, EOFError, ValueError, pl.exceptions.PolarsError) as error:
        raise StoreError(f"'{path}' cannot be read ({error})", "states of items", "check the path") from None
    raise StoreError(
        f"'{path}' is nothing to import as it stands",
        "a folder of <item_id>.pt files, a .npy file with --ids FILE, or a .parquet file with --column NAME",
        "pass one of these",
    )


def column_source(items: pl.DataFrame, column: str, name: str) -> Source:
    """Vectors in a column of lists, next to ``item_id``; null where an item has none.

    Raises:
        StoreError: no such column, one of another type, or a list with a null in it.
    """
    for wanted in (ITEM_ID, column):
        if wanted not in items.columns:
            raise StoreError(
                f"'{name}' has no column '{wanted}'", f"one of {', '.join(items.columns)}", "check its name"
            )
    dtype = items[column].dtype
    if not isinstance(dtype, pl.List | pl.Array) or not dtype.inner.is_numeric():
        raise StoreError(
            f"the column '{column}' of '{name}' is of type {dtype}", "lists of numbers", "choose another column"
        )
    rows = items.select(pl.col(ITEM_ID).cast(pl.String), column).drop_nulls(column)
    vectors = rows[column].cast(pl.List(pl.Float32))
    ids = rows[ITEM_ID].to_list()
    holes = vectors.list.contains(None).arg_true()
    if len(holes):
        raise StoreError(f"the list of item '{ids[holes[0]]}' in '{name}' has nulls", "numbers", "mend that entry")
    values = vectors.explode().to_numpy().tobytes()
    digest = sha256_json([ids, vectors.list.len().to_list(), hashlib.sha256(values).hexdigest()])
    return Source(name, ids, digest, lambda position: torch.tensor(vectors[position].to_list()))


def _folder_of_tensors(folder: Path) -> Source:
    files = sorted(folder.glob("*.pt"))

    def read(position: int) -> Tensor:
        try:
            tensor = torch.load(files[position], map_location="cpu", weights_only=True)
        except Exception as error:  # what is no such file raises whatever its bytes lead to
            raise StoreError(
                f"'{files[position]}' cannot be read safely ({type(error).__name__})",
                "a file with one tensor",
                "leave it out",
            ) from None
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not dense or tensor.is_complex() or tensor.is_quantized:
            held = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise StoreError(f"'{files[position]}' holds a {held}", "one tensor of real numbers", "leave it out")
        return tensor.squeeze()

    digest = sha256_json([[file.name, sha256_file(file)] for file in files])
    return Source(str(folder), [file.stem for file in files], digest, read)


def _array(path: Path, ids: list[str]) -> Source:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        held = array.dtype if isinstance(array, np.ndarray) else "several arrays"
        raise StoreError(f"'{path}' holds {held}", "one array of real numbers", "save it with numpy.save")
    names = [each.strip() for each in ids if each.strip()]
    if array.ndim not in (2, 3) or len(array) != len(names):
        raise StoreError(
            f"'{path}' has the shape {list(array.shape)} for {len(names):,} ids",
            "[ids, width] or [ids, levels, width]",
            "pass the ids of exactly these rows, one a line",
        )
    digest = sha256_json([names, sha256_file(path)])

    def read(position: int) -> Tensor:
        return torch.from_numpy(np.array(array[position], dtype=np.float32))

    return Source(str(path), names, digest, read)


def import_states(
    dataset: Dataset,
    source: Source,
    modality: str,
    out: Path,
    *,
    dtype: str = "bf16",
    shard_rows: int = 4096,
    say: Callable[[str], None] = lambda _: None,
) -> StateStore:
    """Bring states from elsewhere into a store of their own.

    One array [D] an item is one level, ``last``; arrays [K, D] are the levels 0 to K − 1. Items that the source
    does not know lack the modality. All arrays are checked before anything is written.

    Args:
        dataset: whose items are looked for in the source.
        source: the arrays.
        modality: the new modality's name.
        out: folder of stores; the store is ``<out>/<modality>-<fingerprint>``.
        dtype: storage format, see :func:`iisan.states.extract.extract`.
        shard_rows: items per shard, the most that a kill can lose.
        say: told how many items were found.

    Returns:
        The store.

    Raises:
        StoreError: no item of the dataset, arrays of unlike shapes, values that cannot be stored well, or the
            same ones for all items.
        DataError: a name that no modality can have.
    """
    check_dtype(dtype)
    check_modality(modality, IMPORTED)
    known = set(dataset.items[ITEM_ID])
    positions = [position for position, item in enumerate(source.ids) if item in known]
    if not positions:
        raise StoreError(
            f"'{source.name}' has no item of the dataset (its first id: {next(iter(source.ids), None)!r})",
            "ids as in the dataset",
            "check what the ids are",
        )
    repeated = len(positions) - len({source.ids[position] for position in positions})
    if repeated:
        raise StoreError(f"'{source.name}' has {repeated} items twice", "every item once", "leave one of each out")
    sample = sampled(positions)
    reference = source.states(sample)
    check_distinct(reference, modality)
    count, width = reference.shape[1:]
    levels: tuple[Level, ...] = (LAST,) if count == 1 else tuple(range(count))
    mean = level_means(reference, dtype)
    error = storage_errors(reference, reference, mean, dtype, levels, partial(_label, source, sample))
    worst = max(each or 0.0 for each in error)
    if worst > MAX_ERROR:
        raise StoreError(
            f"{dtype} storage changes the states by {worst:.1%} of the spread between items",
            f"at most {MAX_ERROR:.0%}",
            "choose another dtype (fp32 is exact)",
        )
    settings = {"modality": modality, "kind": IMPORTED, "encoder": source.name, "digest": source.digest}
    manifest = Manifest(
        settings=settings, levels=levels, dtype=dtype, precision="fp32", width=width,
        depth=count - 1, error=error, shards=[], made_with=library_versions(),
    )  # fmt: skip
    fingerprint = fingerprint_of(manifest.settings, levels, dtype, "fp32")
    folder = store_folder(Path(out), modality, fingerprint)

    def pieces(positions: list[int], purpose: str) -> Iterator[tuple[list[int], Tensor, Callable[[int], str]]]:
        shards = [positions[first : first + shard_rows] for first in range(0, len(positions), shard_rows)]
        for shard in track(shards, f"{purpose} {modality}", len(shards)):
            yield shard, source.states(shard, (count, width)), partial(_label, source, shard)

    for _, states, label in pieces(positions, "checking"):
        encode_checked(states, mean, dtype, levels, label)
    keys = {position: content_key(source.ids[position]) for position in positions}
    with StateWriter(folder, (manifest, mean), say) as writer:
        stored = StateStore(folder, writer.manifest).rows_of([keys[position] for position in positions])
        todo = [position for position, row in zip(positions, stored.tolist(), strict=True) if row < 0]
        writer.record(finished=not todo)
        for shard, states, label in pieces(todo, "importing"):
            writer.append([keys[position] for position in shard], states, [1] * len(shard), label)
        writer.record(finished=True)
    say(f"{len(positions):,} of {len(known):,} items have {modality}")
    return StateStore.open(folder)


def _label(source: Source, positions: Sequence[int], row: int) -> str:
    return source.label(positions[row])
