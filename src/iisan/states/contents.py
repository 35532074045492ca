"""What a catalogue offers to an encoder: per modality, the content of every item and its key."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import polars as pl
from torch import Tensor

from iisan.encoders.encoder import Encoder
from iisan.errors import ConfigError, DataError
from iisan.names import IMPORTED, ITEM_ID, KINDS, TEXT


class Catalogue(Protocol):
    """The part of a dataset that is read here."""

    @property
    def items(self) -> pl.DataFrame:
        """One row per item: ``item_id`` and a column per modality, null where missing."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The columns with contents, and of which kind each is."""

    def content_bytes(self, column: str, index: int) -> bytes:
        """The bytes of one item's file in a column of files."""


@dataclass(frozen=True)
class Contents:
    """The contents of N items in one modality.

    Attributes:
        modality: the column of the items.
        kind: of what is in it.
        present: bool [N], which items have one.
        get: content of a present item: ``str`` or ``bytes``.
        label: how messages name an item.
    """

    modality: str
    kind: str
    present: np.ndarray
    get: Callable[[int], Any]
    label: Callable[[int], str]

    @classmethod
    def of(cls, catalogue: Catalogue, modality: str, kind: str | None = None) -> "Contents":
        """The contents of a dataset's column.

        Args:
            catalogue: the items.
            modality: the column; one that is absent counts as missing everywhere.
            kind: of the column, its name if None. Imported states have no content: what stands for it is the id.
        """
        items = catalogue.items
        kind = kind or modality
        name = ITEM_ID if kind == IMPORTED else modality
        column = items[name] if name in items.columns else pl.repeat(None, items.height, eager=True)
        plain = kind in (TEXT, IMPORTED)
        return cls(
            modality=modality,
            kind=kind,
            present=column.is_not_null().to_numpy(writable=True),
            get=column.to_list().__getitem__ if plain else partial(catalogue.content_bytes, modality),
            label=lambda index: f"item '{items[ITEM_ID][index]}'",
        )

    @classmethod
    def of_texts(cls, texts: Sequence[str | None]) -> "Contents":
        """Contents from a plain list."""
        present = np.array([text is not None for text in texts], dtype=bool)
        return cls(TEXT, TEXT, present, texts.__getitem__, lambda index: f"text {index}")

    def keys(self) -> list[str | None]:
        """Content key of every item, ``None`` where missing.

        Raises:
            DataError: an image that cannot be read.
        """
        indices = np.flatnonzero(self.present).tolist()
        keys: list[str | None] = [None] * len(self.present)
        if self.kind in (TEXT, IMPORTED):
            digests = [content_key(self.get(index)) for index in indices]
        else:
            with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
                digests = list(pool.map(self._key_of_bytes, indices))
        for index, digest in zip(indices, digests, strict=True):
            keys[index] = digest
        return keys

    def _key_of_bytes(self, index: int) -> str:
        try:
            return content_key(self.get(index))
        except OSError as error:
            raise DataError(
                f"the {self.modality} of {self.label(index)} cannot be read ({error})",
                "a readable file",
                "bring it back, or prepare the dataset again",
            ) from None


def kind_of(catalogue: Catalogue, column: str) -> str:
    """The kind of a column, which its dataset says.

    Raises:
        ConfigError: it has none.
    """
    kinds = catalogue.kinds
    if column not in kinds:
        raise ConfigError(
            f"the dataset has no contents in a column '{column}'",
            f"one of {', '.join(kinds)}",
            f"prepare it with --column {column}=KIND, KIND being one of {', '.join(KINDS)}",
        )
    return kinds[column]


def prepare_items(encoder: Encoder, contents: Contents, indices: Sequence[int]) -> dict[str, Tensor]:
    """The encoder's inputs for some items that have contents.

    Raises:
        DataError: an image that cannot be decoded, with its item's name.
    """
    values = [contents.get(index) for index in indices]
    try:
        return encoder.prepare(values)
    except DataError:
        for index, value in zip(indices, values, strict=True):
            try:
                encoder.prepare([value])
            except DataError as error:
                raise DataError(
                    f"the {contents.modality} of {contents.label(index)}: {error.got}",
                    error.expected,
                    "prepare the dataset again, which checks every file",
                ) from None
        raise


def content_key(content: str | bytes) -> str:
    """Hexadecimal SHA-256 of a content: a text's UTF-8 bytes, or an image file's bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
