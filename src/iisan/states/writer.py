"""Writing a state store shard by shard, so that a kill at any moment loses at most one."""

import contextlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
from safetensors.torch import save
from torch import Tensor

from iisan.errors import StoreError
from iisan.files import LOCK, aside, locked, sha256_file
from iisan.states.codec import encode_checked
from iisan.states.manifest import MANIFEST, MEAN, File, Manifest, Shard
from iisan.states.store import COUNT, KEY, MEAN_TENSOR, ROW, StateStore, is_whole

_LIBRARIES = ("torch", "transformers", "tokenizers", "Pillow")


class StateWriter:
    """The only writer of a store's folder; a context manager that holds the folder's lock.

    Entering removes what an interrupted writer left behind: files that the manifest does not list, and listed
    shards that are absent or cut short, whose contents then count as new. Whoever adds shards records
    ``finished=False`` before and ``finished=True`` at the end; in between nobody else opens the store.

    Args:
        folder: the store's folder; made if absent.
        initial: the manifest (without the mean's file) and the means [K, D] to start with where the store
            does not exist yet.
        say: told about shards that were dropped.
    """

    def __init__(self, folder: Path, initial: tuple[Manifest, Tensor] | None, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._initial = initial
        self._say = say
        self.manifest: Manifest
        self._mean: Tensor
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "StateWriter":
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self._folder, StoreError))
            self._recover()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def append(
        self, keys: Sequence[str], states: Tensor, counts: Sequence[int], label: Callable[[int], str]
    ) -> None:
        """Add a shard.

        Args:
            keys: n content keys, none of them stored yet.
            states: fp32 [rows, K, D].
            counts: rows of every content, n positive numbers: 1 each, or its tokens.
            label: from a row of ``states`` to the name of its item, for messages.

        Raises:
            StoreError: a value that the storage format cannot hold.
            OSError: nothing can be written, the disk is full for example; the store stays as it was.
        """
        encoded = encode_checked(states, self._mean, self.manifest.dtype, self.manifest.levels, label)
        number = 1 + max((int(shard.states.name[6:11]) for shard in self.manifest.shards), default=-1)
        count = pl.Series(COUNT, counts, dtype=pl.Int64)
        rows = pl.DataFrame([pl.Series(KEY, keys, dtype=pl.String), (count.cum_sum() - count).alias(ROW), count])
        shard = Shard(
            rows=len(states),
            states=self._write(
                f"shard-{number:05d}.safetensors",
                lambda path: path.write_bytes(save(encoded)),
            ),
            keys=self._write(f"shard-{number:05d}.parquet", rows.write_parquet),
        )
        self.record(shards=[*self.manifest.shards, shard])

    def record(self, **entries: Any) -> None:
        """Change entries of the manifest, ``finished`` for example; nothing is written where all are as given."""
        manifest = self.manifest.model_copy(update=entries)
        if manifest != self.manifest:
            manifest.write(self._folder)
            self.manifest = manifest

    def _recover(self) -> None:
        if (self._folder / MANIFEST).is_file():
            self.manifest = Manifest.read(self._folder)
            self._drop_damaged()
            self._remove_leftovers()
        else:
            assert self._initial is not None
            self.manifest, mean = self._initial
            self._remove_leftovers()
            mean_file = self._write(MEAN, lambda path: path.write_bytes(save({MEAN_TENSOR: mean})))
            self.record(mean=mean_file, finished=False)
        self._mean = StateStore(self._folder, self.manifest).mean

    def _drop_damaged(self) -> None:
        if self.manifest.mean is None or not is_whole(self._folder, self.manifest.mean):
            raise StoreError(
                f"'{self._folder / MEAN}' is absent or cut short",
                "the means that the stored states were taken from",
                "delete the folder and run `iisan cache` again",
            )
        whole = [
            shard
            for shard in self.manifest.shards
            if is_whole(self._folder, shard.states) and is_whole(self._folder, shard.keys)
        ]
        dropped = len(self.manifest.shards) - len(whole)
        if dropped:
            self._say(f"{dropped} shards in '{self._folder}' are absent or cut short and are made again")
            self.record(shards=whole, finished=False)

    def _remove_leftovers(self) -> None:
        known = {MANIFEST, LOCK, *(file.name for file in self.manifest.files())}
        for path in self._folder.iterdir():
            if path.name not in known and path.is_file():
                path.unlink()

    def _write(self, name: str, write: Callable[[Path], object]) -> File:
        with aside(self._folder / name) as temporary:
            write(temporary)
            return File(name=name, bytes=temporary.stat().st_size, sha256=sha256_file(temporary))


def library_versions() -> dict[str, str]:
    """Versions of the libraries that states come from."""
    return {name: version(name) for name in _LIBRARIES}
