"""Writing of a state store shard by shard, so that a kill at any moment loses no shard that was finished."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import save
from torch import Tensor

from iisan.encoders.levels import Level
from iisan.errors import StoreError
from iisan.files import LOCK, aside, locked
from iisan.states.codec import encode_checked
from iisan.states.manifest import MANIFEST, MEAN, File, Manifest, Shard
from iisan.states.store import COUNT, KEY, MEAN_TENSOR, ROW, StateStore

_LIBRARIES = ("torch", "transformers", "tokenizers", "Pillow")


@dataclass(frozen=True)
class EncodedShard:
    """A shard as it is stored.

    Attributes:
        data: Content of its safetensors file, bytes or an array of them.
        counts: Number of rows of each content: 1, or its tokens.
    """

    data: Any
    counts: list[int]

    @classmethod
    def of(
        cls,
        states: Tensor,
        counts: list[int],
        mean: Tensor,
        dtype: str,
        levels: Sequence[Level],
        label: Callable[[int], str],
    ) -> "EncodedShard":
        """Encode states [rows, K, D], see :func:`iisan.states.codec.encode_checked`."""
        return cls(save(encode_checked(states, mean, dtype, levels, label)), counts)


class StateWriter:
    """The only writer of a store's folder; a context manager that holds the folder's lock.

    Entering removes the remains of an interrupted writer: files without a use, and listed shards that are absent
    or cut short, whose contents then count as new. Callers add shards between :meth:`start` and :meth:`finish`;
    in between nobody else can open a store that is new. The manifest lists shards in the order of their numbers:
    a shard that is written before the one of the number below waits, and is found by :meth:`adopt` after a kill.

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
        self.mean: Tensor
        self._waiting: dict[int, Shard] = {}
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

    @property
    def next_number(self) -> int:
        """Number of the shard that the manifest lists next."""
        return 1 + max((_number(shard.states.name) for shard in self.manifest.shards), default=-1)

    def append(self, keys: Sequence[str], states: Tensor, counts: list[int], label: Callable[[int], str]) -> None:
        """Add the next shard.

        Args:
            keys: Keys of n contents that are not stored yet.
            states: States, fp32 [rows, K, D].
            counts: Number of rows of each content: 1, or its tokens.
            label: Function from a row of ``states`` to the name of its item, for messages.

        Raises:
            StoreError: A value that the storage format cannot represent.
            OSError: Nothing can be written, for example on a full disk; the store stays as it was.
        """
        manifest = self.manifest
        encoded = EncodedShard.of(states, counts, self.mean, manifest.dtype, manifest.levels, label)
        self.add(self.next_number, keys, encoded)

    def add(self, number: int, keys: Sequence[str], shard: EncodedShard) -> None:
        """Add the shard of a number, in any order; ``keys`` and errors as in :meth:`append`."""
        count = pl.Series(COUNT, shard.counts, dtype=pl.Int64)
        rows = pl.DataFrame([pl.Series(KEY, keys, dtype=pl.String), (count.cum_sum() - count).alias(ROW), count])
        states, table = _names(number)
        self._list(
            number,
            Shard(
                rows=sum(shard.counts),
                states=self._write(states, lambda path: path.write_bytes(shard.data)),
                keys=self._write(table, rows.write_parquet),
            ),
        )

    def adopt(self, number: int, keys: Sequence[str]) -> bool:
        """Add the shard of a number as an interrupted writer left it, if it holds the contents of these keys."""
        paths = [self.folder / name for name in _names(number)]
        if not all(path.is_file() for path in paths):
            return False
        found = pl.read_parquet(paths[1], glob=False)
        if found.columns != [KEY, ROW, COUNT] or found[KEY].to_list() != list(keys):
            return False
        states, table = map(File.of, paths)
        shard = Shard(rows=int(found[COUNT].sum()), states=states, keys=table)
        alone = StateStore(self.folder, self.manifest.model_copy(update={"shards": [shard]}))
        try:
            alone.read(torch.tensor([0]))
        except StoreError:
            return False
        self._list(number, shard)
        return True

    def _list(self, number: int, shard: Shard) -> None:
        self._waiting[number] = shard
        ready: list[Shard] = []
        while (following := self.next_number + len(ready)) in self._waiting:
            ready.append(self._waiting.pop(following))
        if ready:
            self.record(shards=[*self.manifest.shards, *ready])

    def finish(self) -> None:
        """Record that all contents are stored."""
        assert not self._waiting, "a shard is missing"
        self.record(finished=True)
        self._remove_leftovers()

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
            self._remove_leftovers(besides="shard-*")
        else:
            assert self._initial is not None
            self.manifest, mean = self._initial
            self._remove_leftovers()
            mean_file = self._write(MEAN, lambda path: path.write_bytes(save({MEAN_TENSOR: mean})))
            self.record(mean=mean_file, finished=False)
        self.mean = StateStore(self.folder, self.manifest).mean

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
        if dropped := [shard for shard in self.manifest.shards if shard not in whole]:
            self._say(f"{len(dropped)} shards in '{self.folder}' are absent or cut short and are computed again")
            for file in (file for shard in dropped for file in (shard.states, shard.keys)):
                (self.folder / file.name).unlink(missing_ok=True)
            self.record(shards=whole, finished=False)

    def _remove_leftovers(self, besides: str = "") -> None:
        """Remove files that the manifest does not list, ``besides`` those that match a pattern."""
        known = {MANIFEST, LOCK, *(file.name for file in self.manifest.files())}
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in known and not path.match(besides or LOCK):
                path.unlink()

    def _write(self, name: str, write: Callable[[Path], object]) -> File:
        with aside(self.folder / name) as temporary:
            write(temporary)
            return File.of(temporary, name)


def _names(number: int) -> tuple[str, str]:
    """Names of the files of a shard: its states and its keys."""
    return f"shard-{number:05d}.safetensors", f"shard-{number:05d}.parquet"


def _number(name: str) -> int:
    return int(name.removeprefix("shard-").partition(".")[0])


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute states."""
    return {name: version(name) for name in _LIBRARIES}
