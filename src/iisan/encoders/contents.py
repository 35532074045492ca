"""Contents of the items, by modality, and their keys: the input of encoders."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from iisan.data.dataset import Dataset
from iisan.encoders.encoder import Encoder
from iisan.errors import ConfigError, DataError
from iisan.files import content_key
from iisan.names import IMPORTED, ITEM_ID, KINDS, TEXT


@dataclass(frozen=True)
class Contents:
    """The contents of N items in one modality.

    Attributes:
        modality: Column of the dataset's items.
        kind: Kind of the contents.
        present: Whether each item has a content, bool [N].
        get: Returns the content of an item that has one: ``str`` or ``bytes``.
        label: Returns the name of an item in messages.
        known_keys: Returns the stored keys of media files; None for texts.
    """

    modality: str
    kind: str
    present: np.ndarray
    get: Callable[[int], Any]
    label: Callable[[int], str]
    known_keys: Callable[[], pl.Series] | None = None

    @classmethod
    def of(cls, dataset: Dataset, modality: str, kind: str | None = None) -> "Contents":
        """Return the contents of a dataset's column; with ``kind`` ``imported``, the item ids.

        Raises:
            ConfigError: The column has no kind.
        """
        ids = dataset.items[ITEM_ID]
        kind = kind if kind == IMPORTED else kind_of(dataset, modality)
        column = ids if kind == IMPORTED else dataset.items[modality]
        files = kind not in (TEXT, IMPORTED)
        return cls(
            modality=modality,
            kind=kind,
            present=column.is_not_null().to_numpy(writable=True),
            get=partial(dataset.content_bytes, modality) if files else column.to_list().__getitem__,
            label=lambda index: f"item '{ids[index]}'",
            known_keys=(lambda: dataset.keys[modality]) if files else None,
        )

    @contextlib.contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Name the item in any ``DataError`` that is raised in this context."""
        try:
            yield
        except DataError as error:
            got = f"the {self.modality} of {self.label(index)}: {error.got}"
            raise DataError(got, error.expected, "prepare the dataset again, which checks every file") from None

    def keys(self) -> pl.Series:
        """Return the content key of each item, strings [N], null if missing."""
        if self.known_keys is not None:
            return self.known_keys()
        present = self.present.tolist()
        keys = [content_key(self.get(index)) if here else None for index, here in enumerate(present)]
        return pl.Series(keys, dtype=pl.String)


def kind_of(dataset: Dataset, column: str) -> str:
    """Return the kind of a dataset's column, or raise a ``ConfigError`` if it has none."""
    kinds = dataset.kinds
    if column not in kinds:
        raise ConfigError(
            f"the dataset has no contents in a column '{column}'",
            f"one of {', '.join(kinds)}",
            f"prepare it with --column {column}=KIND, KIND being one of {', '.join(KINDS)}",
        )
    return kinds[column]


def prepare_items(encoder: Encoder, contents: Contents, indices: Sequence[int]) -> dict[str, Tensor]:
    """Return the encoder's inputs for items that have contents.

    Raises:
        DataError: A content cannot be decoded; the message names its item.
    """
    values = [contents.get(index) for index in indices]
    try:
        return encoder.prepare(values)
    except DataError:
        for index, value in zip(indices, values, strict=True):
            with contents.naming(index):
                encoder.prepare([value])
        raise
