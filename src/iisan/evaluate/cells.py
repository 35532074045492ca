"""Cells of similar vectors: an inverted file of FAISS, in which a search reads only the nearest cells.

Legend: N items, V width of their vectors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iisan.errors import MissingExtraError

#: Vectors per cell that determine the cells.
_PER_CELL = 64
#: Vectors that are put into the cells at a time.
_BLOCK = 16_384


def load_faiss(purpose: str) -> Any:
    """Return the module ``faiss``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "index", purpose) from None
    return faiss


def divide(vectors: Callable[[Tensor | slice], Tensor], count: int, purpose: str) -> Any:
    """Divide N = ``count`` vectors into cells of similar ones.

    Args:
        vectors: Function that returns the vectors ``[n, V]`` of some items.
        count: N.
        purpose: What needs FAISS, for the error.

    Returns:
        FAISS index of the inner product, which numbers the vectors in order.

    Raises:
        MissingExtraError: FAISS is not installed.
    """
    faiss = load_faiss(purpose)
    cells = min(round(4 * count**0.5), count)
    sample = vectors(slice(0, count, max(1, count // (_PER_CELL * cells))))
    index = faiss.index_factory(sample.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # FAISS would print a warning for few.
    index.train(sample.cpu().numpy())
    for rows in torch.arange(count).split(_BLOCK):
        index.add(vectors(rows).cpu().numpy())
    return index
