"""What a catalogue offers to an encoder: per modality, the content of every item and its key."""

from collections.abc import Callable, Sequence
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
        modality: the column of the items.
        kind: of what is in it.
        present: bool [N], which items have one.
        get: content of a present item: ``str`` or ``bytes``.
        label: how messages name an item.
        known_keys: the keys of files, which are not read for them.
    """

    modality: str
    kind: str
    present: np.ndarray
    get: Callable[[int], Any]
    label: Callable[[int], str]
    known_keys: Callable[[], pl.Series] | None = None

    @classmethod
    def of(cls, dataset: Dataset, modality: str, kind: str | None = None) -> "Contents":
        """The contents of a dataset's column.

        Args:
            dataset: the items.
            modality: the column.
            kind: ``imported`` for states made elsewhere, whose items are known by their ids; otherwise the dataset
                says it.

        Raises:
            ConfigError: the dataset has no contents in that column.
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

    @classmethod
    def of_texts(cls, texts: Sequence[str | None]) -> "Contents":
        """Contents from a plain list."""
        present = np.array([text is not None for text in texts], dtype=bool)
        return cls(TEXT, TEXT, present, texts.__getitem__, lambda index: f"text {index}")

    def keys(self) -> pl.Series:
        """Content key of every item, strings [N], null where missing."""
        if self.known_keys is not None:
            return self.known_keys()
        present = self.present.tolist()
        keys = [content_key(self.get(index)) if here else None for index, here in enumerate(present)]
        return pl.Series(keys, dtype=pl.String)


def kind_of(dataset: Dataset, column: str) -> str:
    """The kind of a column, which its dataset says.

    Raises:
        ConfigError: it has none.
    """
    kinds = dataset.kinds
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
