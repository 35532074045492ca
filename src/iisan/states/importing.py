"""Import of hidden states or vectors made elsewhere, as a modality of their own: ``iisan import-states``.

Legend: n items of the source, K levels, D width.
"""

import hashlib
from collections.abc import Callable, Sequence
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
from iisan.states.extract import check_errors, chunks, sampled
from iisan.states.manifest import Manifest
from iisan.states.store import StateStore, check_out, store_folder
from iisan.states.writer import StateWriter, library_versions


@dataclass(frozen=True)
class Source:
    """Arrays from elsewhere, one per item.

    Attributes:
        name: Path or name, for messages and the manifest.
        ids: Ids of the n items.
        digest: SHA-256 of ids and arrays.
        read: Function from a position to its array [D] or [K, D].
    """

    name: str
    ids: Sequence[str]
    digest: str
    read: Callable[[int], Tensor]

    def label(self, position: int) -> str:
        """Name of an item in messages."""
        return f"item '{self.ids[position]}'"

    def states(self, positions: Sequence[int], shape: tuple[int, ...] | None = None) -> Tensor:
        """States [n, K, D] of some items in fp32; ``shape`` is the expected [K, D], if known.

        Raises:
            StoreError: An array of another shape, or values that are not finite.
        """
        states = [self.read(position).float() for position in positions]
        states = [each.unsqueeze(0) if each.ndim == 1 else each for each in states]
        expected = shape or states[0].shape
        for position, each in zip(positions, states, strict=True):
            got = f"{self.label(position)} in '{self.name}' has states"
            if each.ndim != 2 or each.shape != expected or not each.numel():
                shapes = "[levels, width] or [width], the same for all items and at least 1"
                raise StoreError(f"{got} of the shape {list(each.shape)}", shapes, "mend that entry")
            if not torch.isfinite(each).all():
                raise StoreError(f"{got} that are infinite or not a number", "finite numbers", "mend that entry")
        return torch.stack(states)


def open_source(path: Path, ids: Path | None = None, column: str | None = None) -> Source:
    """Open a source of states.

    Args:
        path: Folder of ``<item_id>.pt`` files (tensors, as the authors of IISAN published them), ``.npy`` file
            [n, D] or [n, K, D], or Parquet file with ``item_id`` and a column of lists.
        ids: File with the item ids of a ``.npy`` file, one per line.
        column: Name of the column of lists in a Parquet file.

    Raises:
        StoreError: The path is absent, of another kind, or lacks ids.
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
        f"'{path}' cannot be imported as it is",
        "a folder of <item_id>.pt files, a .npy file with --ids FILE, or a .parquet file with --column NAME",
        "pass one of these",
    )


def column_source(items: pl.DataFrame, column: str, name: str) -> Source:
    """Source of the vectors in a column of lists, next to ``item_id``; null where an item has none.

    Raises:
        StoreError: The column is absent, of another type, or has a null in a list.
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
    rows = items.select(pl.col(ITEM_ID).cast(pl.String), column).drop_nulls()
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
            got = f"'{files[position]}' cannot be read safely ({type(error).__name__})"
            raise StoreError(got, "a file with one tensor", "leave it out") from None
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
    """Write all states of a source into a store of their own, or complete that store.

    Arrays [D] become the level ``last``, arrays [K, D] the levels 0 to K − 1. Items of the dataset that the
    source lacks are without the modality. All arrays are checked before anything is written.

    Args:
        dataset: Dataset of which the source must know an item.
        source: Source of the arrays.
        modality: Name of the new modality.
        out: Folder of stores.
        dtype: Storage format, see :func:`iisan.states.extract.extract`.
        shard_rows: Items per shard, the most that a kill can lose.
        say: Receives the number of items found.

    Returns:
        The store.

    Raises:
        StoreError: No item of the dataset, an item twice, arrays of different shapes, values that cannot be
            stored accurately, or the same ones for all items.
        DataError: An invalid name of a modality.
    """
    check_dtype(dtype)
    check_modality(modality, IMPORTED)
    check_out(Path(out))
    known = len({*source.ids} & {*dataset.items[ITEM_ID]})
    if not known:
        got = f"'{source.name}' has no item of the dataset (its first id: {next(iter(source.ids), None)!r})"
        raise StoreError(got, "ids as in the dataset", "check what the ids are")
    if repeated := len(source.ids) - len({*source.ids}):
        raise StoreError(f"'{source.name}' has {repeated} items twice", "every item once", "leave one of each out")
    # All items of the source: what a store holds must not depend on the dataset of an import that was interrupted.
    positions = range(len(source.ids))
    sample = sampled(positions)
    reference = source.states(sample)
    check_distinct(reference, modality)
    shape = reference.shape[1:]
    levels: tuple[Level, ...] = (LAST,) if shape[0] == 1 else tuple(range(shape[0]))
    mean = level_means(reference, dtype)
    error = storage_errors(reference, reference, mean, dtype, levels, lambda row: source.label(sample[row]))
    check_errors(error, levels, f"{dtype} storage", "choose another dtype (fp32 is exact)")
    settings = {"modality": modality, "kind": IMPORTED, "encoder": source.name, "digest": source.digest}
    manifest = Manifest(
        settings=settings, levels=levels, dtype=dtype, precision="fp32", width=shape[1],
        depth=shape[0] - 1, error=error, shards=[], made_with=library_versions(),
    )  # fmt: skip
    for shard in track(chunks(positions, shard_rows), f"checking {modality}"):
        states = source.states(shard, shape)
        encode_checked(states, mean, dtype, levels, partial(_label, source, shard))
    keys = [content_key(item) for item in source.ids]
    with StateWriter(store_folder(Path(out), modality, manifest.fingerprint), (manifest, mean), say) as writer:
        todo = writer.start(keys, positions)
        for shard in track(chunks(todo, shard_rows), f"importing {modality}"):
            shard_keys = [keys[position] for position in shard]
            states = source.states(shard, shape)
            writer.append(shard_keys, states, [1] * len(shard), partial(_label, source, shard))
        writer.finish()
    say(f"{known:,} of {len(dataset.items):,} items have {modality}")
    return StateStore.open(writer.folder)


def _label(source: Source, positions: Sequence[int], row: int) -> str:
    return source.label(positions[row])
