"""Reading of a state store: from content keys to rows, and from rows to states in memory-mapped files.

Legend: N items, n rows, K levels, D width.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iisan.data.dataset import Dataset
from iisan.encoders.contents import Contents
from iisan.encoders.hub import folder_of
from iisan.encoders.levels import Level
from iisan.errors import StoreError
from iisan.names import IMAGE, IMPORTED, KINDS, TEXT
from iisan.remote.opening import addressed
from iisan.states.codec import DTYPES, SCALES, STATES, check_distinct, decode
from iisan.states.manifest import DRAFT, MANIFEST, MEAN, RECACHE, Manifest, damaged

KEY, ROW, COUNT, MEAN_TENSOR = "key", "row", "count", "mean"

_Format = tuple[torch.dtype, tuple[int, ...]]


class StateStore:
    """The stored hidden states of one encoder and one modality.

    Attributes:
        folder: Folder of the store.
        fingerprint: See :func:`iisan.states.manifest.fingerprint_of`.
        manifest: Manifest of the store.
        settings: Settings that determine the states' values (see ``Encoder.settings``), and their modality.
        modality: Column of the items.
        kind: Kind of the contents.
        levels: The K stored levels.
        width: Width D.
        depth: Number of layers T of the encoder.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.fingerprint = manifest.fingerprint
        self.manifest = manifest
        self.settings = manifest.settings
        self.modality: str = manifest.settings["modality"]
        self.kind: str = manifest.settings.get("kind", self.modality)
        self.levels = manifest.levels
        self.width = manifest.width
        self.depth = manifest.depth
        self._ends = torch.tensor([0, *(shard.rows for shard in manifest.shards)]).cumsum(0)
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of stored rows: one per distinct content, or per token."""
        return self.manifest.rows

    @property
    def size(self) -> int:
        """Size of the files in bytes, without the manifest."""
        return sum(file.bytes for file in self.manifest.files())

    @classmethod
    @addressed("folder")
    def open(cls, folder: Path | str, expect: dict[str, Any] | None = None) -> "StateStore":
        """Open a store and check that it is complete.

        Args:
            folder: Folder of one store.
            expect: Required settings, such as ``{"pooling": "mean", "max_tokens": 30}``.

        Raises:
            StoreError: The store is foreign, unfinished, damaged, of a newer schema, was made with other
                settings, or its states are the same for all contents.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if manifest.settings.get(DRAFT):
            got = f"the states in '{folder}' were made from JPEGs decoded in draft mode"
            expected = "states of whole images, the only kind there is now"
            raise StoreError(got, expected, f"delete the folder and {RECACHE}")
        store = cls(folder, manifest)
        if not manifest.finished:
            command = "import-states" if store.kind == IMPORTED else "cache"
            got = f"the writing of '{folder}' was interrupted or is in progress: {len(store):,} rows are there"
            cure = f"run the same `iisan {command}` again, which continues from there"
            raise StoreError(got, "a finished store", cure)
        for file in manifest.files():
            if not file.is_whole(folder):
                raise StoreError(
                    f"'{folder / file.name}' is absent or cut short", f"a file of {file.bytes} bytes", RECACHE
                )
        for name, value in (expect or {}).items():
            if not _fits(manifest.settings, name, value):
                got = f"the states in '{folder}' were made with {name} {manifest.settings.get(name)!r}"
                raise StoreError(got, f"{name} {value!r}", f"{RECACHE} with this setting, or change the setting")
        # No error at any level: either all contents are alike, or there was only one at first.
        if all(error is None for error in manifest.error):
            some = torch.arange(len(store))[:: len(store) // 512 + 1]
            check_distinct(store.read(some), store.modality)
        return store

    @staticmethod
    def folders(folder: Path | str, modality: str = "*", tokens: bool = False) -> list[Path]:
        """Folders of the stores of a modality (or of its tokens); the folder itself if it is a store.

        Raises:
            StoreError: The folder does not exist.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise StoreError(f"no folder '{folder}'", "a folder of state stores", "check the path (--states)")
        if (folder / MANIFEST).is_file():
            return [folder]
        found = [path.parent for path in folder.glob(f"{_prefix(modality, tokens)}-*/{MANIFEST}")]
        # Names of modalities have no hyphen, so a second one marks a store of tokens.
        return sorted(path for path in found if path.name.count("-") == 1 + tokens)

    @classmethod
    def kinds(cls, folder: Path | str, tokens: bool = False) -> dict[str, str]:
        """Kinds of the stored modalities, by modality; those named after their kind first."""
        settings = [Manifest.read(path).settings for path in cls.folders(folder, tokens=tokens)]
        found = {each["modality"]: each.get("kind", each["modality"]) for each in settings}
        first = [name for name in KINDS if name in found]
        return {name: found[name] for name in (*first, *sorted(found.keys() - set(first)))}

    @classmethod
    def find(
        cls, folder: Path | str, modality: str, expect: dict[str, Any] | None = None, tokens: bool = False
    ) -> "StateStore":
        """Open the store of a modality (or of its tokens) in a folder of stores, which may be that store itself.

        Of several stores that differ in their levels only, it is the one that has the levels of all others.

        Raises:
            StoreError: None or several fit, or the only one was made with other settings.
        """
        expect = {"modality": modality, **(expect or {})}
        candidates = cls.folders(folder, modality, tokens)
        if len(candidates) > 1:
            manifests = {path: Manifest.read(path) for path in candidates}
            fitting = {
                path: manifest
                for path, manifest in manifests.items()
                if all(_fits(manifest.settings, name, value) for name, value in expect.items())
                and not manifest.settings.get(DRAFT)
            }
            candidates = _most_levels(fitting or manifests)
        if not candidates:
            kind = f"token states of {modality}" if tokens else f"{modality} states"
            cure = f"{RECACHE} with --last-n-layers" if tokens else RECACHE
            raise StoreError(f"'{folder}' holds no {kind}", "a folder of state stores", cure)
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates)
            cure = f"move the others elsewhere, or say which with settings such as {modality}.encoder or pooling"
            raise StoreError(f"'{folder}' holds several {modality} stores ({names})", "one that fits", cure)
        return cls.open(candidates[0], expect)

    def facts(self) -> dict[str, Any]:
        """Manifest, folder and number of rows, as JSON."""
        return {"folder": str(self.folder), "rows": len(self), **self.manifest.model_dump(mode="json")}

    def verify(self) -> None:
        """Raise StoreError if a file is absent or differs from its checksum."""
        for file in self.manifest.files():
            file.verify(self.folder)

    def rows_of(self, keys: pl.Series | Sequence[str | None]) -> np.ndarray:
        """First row of each content key, int64 [len(keys)]; -1 for None and for contents that are not stored."""
        return self._look_up(keys)[0]

    def _look_up(self, keys: pl.Series | Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        wanted = pl.DataFrame({KEY: keys}, schema={KEY: pl.String})
        found = wanted.join(self._index, on=KEY, how="left", maintain_order="left")
        rows, counts = found[ROW].fill_null(-1), found[COUNT].fill_null(0)
        return rows.to_numpy(writable=True), counts.to_numpy(writable=True)

    def rows_for(self, dataset: Dataset) -> np.ndarray:
        """Rows of a dataset's items, int64 [N]; -1 where an item has no content, or no imported states.

        Raises:
            StoreError: The content of an item is not stored.
        """
        return self.spans_for(dataset)[0]

    def spans_for(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """First row and number of rows of each item, int64 [N]; see :meth:`rows_for`.

        An item has several rows in a store of tokens only.

        Raises:
            StoreError: The content of an item is not stored.
        """
        contents = Contents.of(dataset, self.modality, self.kind)
        rows, counts = self._look_up(contents.keys())
        absent = np.flatnonzero((rows < 0) & contents.present)
        if len(absent) and self.kind != IMPORTED:
            raise StoreError(
                f"{len(absent)} items are not in the store '{self.folder}', such as "
                f"{contents.label(int(absent[0]))}",
                f"the {self.modality} states of all items",
                RECACHE,
            )
        return rows, counts

    def check_levels(self, levels: Sequence[Level]) -> list[int]:
        """Positions of levels among the stored ones.

        Raises:
            StoreError: A level that is not stored.
        """
        for level in levels:
            if level not in self.levels:
                got = f"level {level} is not in the store '{self.folder}'"
                section = self.modality if self.modality in (TEXT, IMAGE) else f"columns.{self.modality}"
                cure = f"set {section}.levels to some of these, or {RECACHE} with that level"
                raise StoreError(got, f"one of {', '.join(map(str, self.levels))}", cure)
        return [self.levels.index(level) for level in levels]

    def read(self, rows: Tensor, levels: Sequence[Level] | None = None) -> Tensor:
        """Read states, fp32 [n, K, D].

        Args:
            rows: Row numbers, int64 [n], in any order.
            levels: Stored levels; defaults to all.

        Raises:
            StoreError: A level that is not stored.
        """
        stored, scales = self._gather(rows, picked := self._picked(levels))
        return decode(stored, scales, self.mean[picked])

    def read_differences(self, rows: Tensor, levels: Sequence[Level] | None, dtype: torch.dtype) -> Tensor:
        """The states of :meth:`read` minus :attr:`mean`, in a precision; in that of the store they are copied."""
        stored, scales = self._gather(rows, self._picked(levels))
        return stored.to(dtype) if scales is None else decode(stored, scales).to(dtype)

    def _picked(self, levels: Sequence[Level] | None) -> Tensor:
        return torch.tensor(self.check_levels(self.levels if levels is None else levels))

    def _gather(self, rows: Tensor, picked: Tensor) -> tuple[Tensor, Tensor | None]:
        """States as stored, [n, K, D], and the scales [n, K] of int8."""
        rows = rows.cpu()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a store of {len(self)} rows")
        # Ascending, so that a store larger than memory is read sequentially.
        ascending, order = rows.sort()
        bounds = torch.searchsorted(ascending, self._ends).tolist()
        shape = len(rows), len(picked)
        found = {STATES: torch.empty(*shape, self.width, dtype=DTYPES[self.manifest.dtype])}
        if self.manifest.dtype == "int8":
            found[SCALES] = torch.empty(shape)
        for shard, (start, end) in enumerate(itertools.pairwise(bounds)):
            if start == end:
                continue
            # One gather of whole vectors from the flattened file touches the pages of the wanted levels only.
            first = (ascending[start:end] - self._ends[shard]) * len(self.levels)
            flat = (first[:, None] + picked).flatten()
            for name, tensor in self._shard(shard).items():
                torch.index_select(tensor.flatten(0, 1), 0, flat, out=found[name][start:end].flatten(0, 1))
        if not torch.equal(ascending, rows):
            found = {name: values.index_select(0, order.argsort()) for name, values in found.items()}
        return found[STATES], found.get(SCALES)

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._mapped:
            rows, dtype = self.manifest.shards[shard].rows, self.manifest.dtype
            expected: dict[str, _Format] = {STATES: (DTYPES[dtype], (rows, len(self.levels), self.width))}
            if dtype == "int8":
                expected[SCALES] = torch.float32, (rows, len(self.levels))
            self._mapped[shard] = _tensors(self.folder / self.manifest.shards[shard].states.name, expected)
        return self._mapped[shard]

    @cached_property
    def mean(self) -> Tensor:
        """Mean per level, which :meth:`read` adds to the stored differences, fp32 [K, D]."""
        expected = {MEAN_TENSOR: (torch.float32, (len(self.levels), self.width))}
        return _tensors(self.folder / MEAN, expected)[MEAN_TENSOR].clone()

    @cached_property
    def _index(self) -> pl.DataFrame:
        ends = self._ends.tolist()
        for shard in self.manifest.shards:
            # Verified because a damaged Parquet file can crash the process.
            shard.keys.verify(self.folder)
        parts = [
            pl.read_parquet(self.folder / shard.keys.name, glob=False).with_columns(pl.col(ROW) + start)
            for shard, start in zip(self.manifest.shards, ends, strict=False)
        ]
        empty = pl.DataFrame(schema={KEY: pl.String, ROW: pl.Int64, COUNT: pl.Int64})
        # Shards of version 0.1 have no counts: one row per content.
        return pl.concat([empty, *parts], how="diagonal").with_columns(pl.col(COUNT).fill_null(1))


def store_folder(out: Path, modality: str, fingerprint: str, tokens: bool = False) -> Path:
    """Folder of the store of a modality (or of its tokens)."""
    return out / f"{_prefix(modality, tokens)}-{fingerprint[:16]}"


def check_out(out: Path) -> None:
    """Check that a folder of stores can be made, before anything is computed.

    Raises:
        StoreError: The path, or one above it, is a file.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise StoreError(f"'{existing}' is a file", "a folder of state stores", "choose another --out")


def _fits(settings: dict[str, Any], name: str, expected: Any) -> bool:
    """Whether a store was made with a setting.

    An encoder's folder may be spelt differently, and a hub model may be named without revision or by its commit.
    """
    if name == "encoder":
        recorded, commit = str(settings.get(name)), settings.get("revision")
        repository, _, revision = expected.partition("@")
        of_the_hub = commit is not None and recorded.partition("@")[0] == repository
        if recorded == str(folder_of(expected)) or (of_the_hub and revision in ("", commit)):
            return True
    return settings.get(name) == expected


def _most_levels(manifests: Mapping[Path, Manifest]) -> list[Path]:
    """The store that has the states of all others, or all stores if there is none."""
    for path, ours in manifests.items():
        others = manifests.values()
        alike = all(
            (each.settings, each.dtype, each.precision) == (ours.settings, ours.dtype, ours.precision)
            for each in others
        )
        if alike and all(set(each.levels) <= set(ours.levels) for each in others):
            return [path]
    return list(manifests)


def _prefix(modality: str, tokens: bool) -> str:
    return f"tokens-{modality}" if tokens else modality


def _tensors(path: Path, expected: Mapping[str, _Format]) -> dict[str, Tensor]:
    """Memory-map the tensors of a file, which must have the expected names, formats and shapes."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        raise damaged(path) from None
    if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} != expected:
        raise damaged(path)
    return tensors
