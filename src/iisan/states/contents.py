"""What a catalogue offers to a backbone: per modality, the content of every item and its key."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from torch import Tensor

from iisan.backbones.backbone import Backbone
from iisan.errors import DataError
from iisan.names import IMAGE, ITEM_ID, TEXT


class Catalogue(Protocol):
    """The part of a dataset that is read here."""

    @property
    def items(self) -> pl.DataFrame:
        """One row per item: ``item_id``, ``text`` and ``image``, null where missing."""

    def image_bytes(self, index: int) -> bytes:
        """The bytes of one item's image file."""


@dataclass(frozen=True)
class Contents:
    """The contents of N items in one modality.

    Attributes:
        modality: ``"text"`` or ``"image"``.
        present: bool [N], which items have one.
        get: content of a present item: ``str`` or ``bytes``.
        label: how messages name an item.
    """

    modality: str
    present: np.ndarray
    get: Callable[[int], Any]
    label: Callable[[int], str]

    @classmethod
    def of(cls, catalogue: Catalogue, modality: str) -> "Contents":
        """The contents of a dataset; a column that is absent counts as missing everywhere."""
        items = catalogue.items
        column = items[modality] if modality in items.columns else pl.repeat(None, items.height, eager=True)
        return cls(
            modality=modality,
            present=column.is_not_null().to_numpy(writable=True),
            get=column.to_list().__getitem__ if modality == TEXT else catalogue.image_bytes,
            label=lambda index: f"item '{items[ITEM_ID][index]}'",
        )

    @classmethod
    def of_texts(cls, texts: Sequence[str | None]) -> "Contents":
        """Contents from a plain list."""
        present = np.array([text is not None for text in texts], dtype=bool)
        return cls(TEXT, present, texts.__getitem__, lambda index: f"text {index}")

    def keys(self) -> list[str | None]:
        """Content key of every item, ``None`` where missing.

        Raises:
            DataError: an image that cannot be read.
        """
        indices = np.flatnonzero(self.present).tolist()
        keys: list[str | None] = [None] * len(self.present)
        if self.modality == TEXT:
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
                f"the {IMAGE} of {self.label(index)} cannot be read ({error})",
                "a readable file",
                "bring it back, or prepare the dataset again with image checks",
            ) from None


def prepare_items(backbone: Backbone, contents: Contents, indices: Sequence[int]) -> dict[str, Tensor]:
    """The backbone's inputs for some items that have contents.

    Raises:
        DataError: an image that cannot be decoded, with its item's name.
    """
    values = [contents.get(index) for index in indices]
    try:
        return backbone.prepare(values)
    except DataError:
        for index, value in zip(indices, values, strict=True):
            try:
                backbone.prepare([value])
            except DataError as error:
                raise DataError(
                    f"the {contents.modality} of {contents.label(index)}: {error.got}",
                    error.expected,
                    "prepare the dataset again with image checks",
                ) from None
        raise


def content_key(content: str | bytes) -> str:
    """Hexadecimal SHA-256 of a content: a text's UTF-8 bytes, or an image file's bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
