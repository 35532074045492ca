"""Writing of a state store shard by shard, so that a kill at any moment loses at most one."""

import contextlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
from safetensors.torch import save
from torch import Tensor

from iisan.errors import StoreError
from iisan.files import LOCK, aside, locked, sha256_file
from iisan.states.codec import encode_checked
from iisan.states.manifest import MANIFEST, MEAN, File, Manifest, Shard
from iisan.states.store import COUNT, KEY, MEAN_TENSOR, ROW, StateStore

_LIBRARIES = ("torch", "transformers", "tokenizers", "Pillow")


class StateWriter:
    """The only writer of a store's folder; a context manager that holds the folder's lock.

    Entering removes the remains of an interrupted writer: files that the manifest does not list, and listed
    shards that are absent or cut short, whose contents then count as new. Callers add shards between
    :meth:`start` and ``record(finished=True)``; in between nobody else can open a store that is new.

    Args:
        folder: Folder of the store; made if absent.
        initial: Manifest (without the file of means) and means [K, D] of a store that does not exist yet.
        say: Receives messages about dropped shards.
    """

    def __init__(self, folder: Path, initial: tuple[Manifest, Tensor] | None, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._initial = initial
        self._say = say
        self.manifest: Manifest
        self._mean: Tensor
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "StateWriter":
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self.folder, StoreError))
            self._recover()
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def start(self, keys: Sequence[str | None], indices: Sequence[int], **entries: Any) -> list[int]:
        """Begin to add contents: return those of ``indices`` whose key is not stored, and record ``entries``.

        A finished store stays finished, so that others can go on reading what it was made for.
        """
        stored = StateStore(self.folder, self.manifest).rows_of([keys[index] for index in indices])
        new = [index for index, row in zip(indices, stored.tolist(), strict=True) if row < 0]
        self.record(finished=self.manifest.finished or not new, **entries)
        return new

    def append(
        self, keys: Sequence[str], states: Tensor, counts: Sequence[int], label: Callable[[int], str]
    ) -> None:
        """Add a shard.

        Args:
            keys: Keys of n contents that are not stored yet.
            states: States, fp32 [rows, K, D].
            counts: Number of rows of each content: 1, or its tokens.
            label: Function from a row of ``states`` to the name of its item, for messages.

        Raises:
            StoreError: A value that the storage format cannot represent.
            OSError: Nothing can be written, for example on a full disk; the store stays as it was.
        """
        encoded = encode_checked(states, self._mean, self.manifest.dtype, self.manifest.levels, label)
        number = 1 + max((int(shard.states.name[6:11]) for shard in self.manifest.shards), default=-1)
        count = pl.Series(COUNT, counts, dtype=pl.Int64)
        rows = pl.DataFrame([pl.Series(KEY, keys, dtype=pl.String), (count.cum_sum() - count).alias(ROW), count])
        shard = Shard(
            rows=len(states),
            states=self._write(f"shard-{number:05d}.safetensors", lambda path: path.write_bytes(save(encoded))),
            keys=self._write(f"shard-{number:05d}.parquet", rows.write_parquet),
        )
        self.record(shards=[*self.manifest.shards, shard])

    def record(self, **entries: Any) -> None:
        """Change entries of the manifest, such as ``finished``; writes nothing if all are as given."""
        manifest = self.manifest.model_copy(update=entries)
        if manifest != self.manifest:
            manifest.write(self.folder)
            self.manifest = manifest

    def _recover(self) -> None:
        if (self.folder / MANIFEST).is_file():
            self.manifest = Manifest.read(self.folder)
            self._drop_damaged()
            self._remove_leftovers()
        else:
            assert self._initial is not None
            self.manifest, mean = self._initial
            self._remove_leftovers()
            mean_file = self._write(MEAN, lambda path: path.write_bytes(save({MEAN_TENSOR: mean})))
            self.record(mean=mean_file, finished=False)
        self._mean = StateStore(self.folder, self.manifest).mean

    def _drop_damaged(self) -> None:
        if self.manifest.mean is None or not self.manifest.mean.is_whole(self.folder):
            raise StoreError(
                f"'{self.folder / MEAN}' is absent or cut short",
                "the means that the stored states were taken from",
                "delete the folder and run `iisan cache` again",
            )
        whole = [
            shard
            for shard in self.manifest.shards
            if shard.states.is_whole(self.folder) and shard.keys.is_whole(self.folder)
        ]
        dropped = len(self.manifest.shards) - len(whole)
        if dropped:
            self._say(f"{dropped} shards in '{self.folder}' are absent or cut short and are computed again")
            self.record(shards=whole, finished=False)

    def _remove_leftovers(self) -> None:
        known = {MANIFEST, LOCK, *(file.name for file in self.manifest.files())}
        for path in self.folder.iterdir():
            if path.name not in known and path.is_file():
                path.unlink()

    def _write(self, name: str, write: Callable[[Path], object]) -> File:
        with aside(self.folder / name) as temporary:
            write(temporary)
            return File(name=name, bytes=temporary.stat().st_size, sha256=sha256_file(temporary))


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute states."""
    return {name: version(name) for name in _LIBRARIES}
