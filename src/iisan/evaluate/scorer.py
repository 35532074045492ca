"""The scorer interface, through which evaluation and recommendation use a model."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iisan.data.sequences import Index
from iisan.errors import RunError

DIVERGED = "the model diverged: train again with a smaller learning rate"


class ItemScores(Protocol):
    """Scores every item of the catalogue for a query.

    Attributes:
        num_items: Items in the catalogue, ``N``.
    """

    num_items: int

    def score(self, query: Any, items: Tensor | slice) -> Tensor:
        """Score items, ``[n]`` int64 indices or a slice of the catalogue, for each of the B users of a query.

        Returns:
            Scores ``[B, n]``, float32, in new memory (the caller overwrites it); -inf excludes an item.
        """


class Scorer(ItemScores, Protocol):
    """Scores every item of the catalogue for a user's history.

    Attributes:
        history_length: Last items of a history that it reads, ``S``.
    """

    history_length: int

    def start(self, histories: Index) -> Any:
        """Prepare a query for ``score`` from histories ``[B, S]`` of item indices, left-padded with ``PAD``."""


#: A multiple of the number of columns that kernels of matrix products compute at a time.
_KERNEL_COLUMNS = 64
#: Queries are padded to a multiple of this number: a product of three rows took twice as long as one of four.
_KERNEL_ROWS = 4


class DotProducts:
    """Dot products of query vectors and item vectors, in float32.

    Args:
        items: Item vectors ``[N, V]``.

    Raises:
        RunError: An item vector is not finite.
    """

    def __init__(self, items: Tensor) -> None:
        self.num_items = len(items)
        # Padded once, as every block of items may have to be read to a multiple of the kernels' width.
        self._rows = nn.functional.pad(finite(items, "item embeddings"), (0, 0, 0, -len(items) % _KERNEL_COLUMNS))
        self.items = self._rows[: len(items)]

    def score(self, query: Tensor, items: Tensor | slice) -> Tensor:
        """Return the dot products ``[B, n]``."""
        # Duplicate items must tie exactly. A single row would be computed by a matrix-vector kernel, and columns
        # beyond a multiple of the kernel's width by another one; either may round equal columns differently.
        rows = nn.functional.pad(query, (0, 0, 0, -len(query) % _KERNEL_ROWS))
        if isinstance(items, slice):
            first, last, _ = items.indices(self.num_items)
            count = last - first
            columns = self._rows[first : last + -count % _KERNEL_COLUMNS]
        else:
            columns = self.items[items]
            count = len(columns)
        if beyond := -len(columns) % _KERNEL_COLUMNS:
            columns = nn.functional.pad(columns, (0, 0, 0, beyond))
        with torch.autocast(self.items.device.type, enabled=False):
            return (rows @ columns.T)[: len(query), :count]


class EmbeddingScorer(DotProducts):
    """Dot product of a user's query vector and the items' embeddings, in float32.

    Args:
        items: Item embeddings ``[N, E]``.
        encode: Function from histories ``[B, S]`` to query vectors ``[B, E]``, on the device of ``items``.
        history_length: Maximum history length S.

    Raises:
        RunError: An embedding or a query vector is not finite.
    """

    def __init__(self, items: Tensor, encode: Callable[[Index], Tensor], history_length: int) -> None:
        super().__init__(items)
        self.history_length = history_length
        self.encode = encode

    def start(self, histories: Index) -> Tensor:
        """Return the query vectors ``[B, E]``."""
        return finite(self.encode(histories), "query vectors")

    def vectors(self, rows: Tensor | slice) -> Tensor:
        """Return the embeddings of some items."""
        return self.items[rows]

    def column_weights(self) -> Tensor:
        """Return the weight of each column of ``vectors`` in the query vectors, ``[E]``."""
        return torch.ones(self.items.shape[1])


def finite(vectors: Tensor, what: str) -> Tensor:
    """Return vectors in float32; raise a ``RunError`` if one is not finite."""
    if bad := int((~torch.isfinite(vectors)).any(dim=-1).sum()):
        raise RunError(f"{bad} of {len(vectors)} {what} hold NaN or infinity", "finite numbers", DIVERGED)
    return vectors.detach().float()
