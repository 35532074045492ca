"""What evaluation, baselines, recommendation and the service know of a model: it scores items."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from iisan.data.sequences import Index
from iisan.errors import RunError


class Scorer(Protocol):
    """Gives every item of the catalogue a score for a user's history.

    Attributes:
        num_items: items in the catalogue, ``N``.
        history_length: how many of the last items it wants to see, ``S``.
    """

    num_items: int
    history_length: int

    def start(self, histories: Index) -> Any:
        """Prepare what is needed to score items for these users.

        Args:
            histories: ``[B, S]`` item indices, left-padded with ``PAD``.

        Returns:
            The query, understood by ``score`` alone.
        """

    def score(self, query: Any, items: Tensor | slice) -> Tensor:
        """Score ``n`` items for every user of the query.

        Args:
            query: what ``start`` returned.
            items: ``[n]`` int64 item indices, or a slice of the catalogue.

        Returns:
            ``[B, n]`` float32 in new memory (the caller overwrites it). -inf means "never".
        """


#: A multiple of how many columns the kernels of matrix products compute at a time.
_KERNEL_COLUMNS = 64


class EmbeddingScorer:
    """Dot product of a user's query vector and the items' embeddings, in float32.

    Args:
        items: ``[N, E]`` item embeddings.
        encode: ``[B, S]`` histories -> ``[B, E]`` query vectors, on the device of ``items``.
        history_length: ``S``.

    Raises:
        RunError: an embedding or a query vector is not finite.
    """

    def __init__(self, items: Tensor, encode: Callable[[Index], Tensor], history_length: int) -> None:
        self.items = _finite(items, "item embeddings")
        self.num_items = len(items)
        self.history_length = history_length
        self._encode = encode

    def start(self, histories: Index) -> Tensor:
        """``[B, E]`` query vectors."""
        return _finite(self._encode(histories), "query vectors")

    def score(self, query: Tensor, items: Tensor | slice) -> Tensor:
        """``[B, n]`` dot products."""
        # Ties of duplicate items must be exact. A single row goes to a matrix-vector kernel, and columns beyond a
        # multiple of the kernel's width to another one; either may round equal columns differently.
        rows = query.repeat(2, 1) if len(query) == 1 else query
        columns = self.items[items]
        beyond = -len(columns) % _KERNEL_COLUMNS
        if beyond:
            columns = torch.nn.functional.pad(columns, (0, 0, 0, beyond))
        with torch.autocast(self.items.device.type, enabled=False):
            return (rows @ columns.T)[: len(query), : len(columns) - beyond]


def _finite(vectors: Tensor, what: str) -> Tensor:
    if not torch.isfinite(vectors).all():
        bad = int((~torch.isfinite(vectors)).any(dim=-1).sum())
        raise RunError(
            f"{bad} of {len(vectors)} {what} hold NaN or infinity",
            "finite numbers",
            "the model diverged: train again with a smaller learning rate",
        )
    return vectors.detach().float()
