"""Search for the items whose vectors have the largest dot products with a query, and lists made of what is found.

Legend: B queries, N items, V width of the vectors, k length of a list.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from iisan.config import Policy
from iisan.data.filters import Mask
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.evaluate.cells import load_faiss
from iisan.evaluate.ranks import batches, best_items, check_length, excluded_pairs
from iisan.evaluate.scorer import DotProducts
from iisan.evaluate.terms import DenseScorer, TermQuery
from iisan.names import PAD

#: Item indices ``[B, k]``, best first, and their scores; ``PAD`` and -inf where no item is left.
Lists = tuple[Index, npt.NDArray[np.float32]]
#: From rows ``[n]`` to their vectors ``[n, V]``.
Vectors = Callable[[Tensor | slice], Tensor]

#: Share of the items up to which allowed vectors are copied rather than all compared.
_FEW = 0.25
#: Pairs of a query and an item whose dot product is computed at a time.
_PAIRS = 2**14


class VectorIndex(Protocol):
    """Finds the items of the largest dot products."""

    def search(self, queries: Tensor, k: int, allowed: Mask | None = None) -> Lists:
        """List ``k`` items for each of the ``queries [B, V]``: of all items, or of a mask ``allowed [N]``."""


class ExactIndex:
    """Compares a query with all vectors, or with all that are allowed; of equal ones the lower row comes first.

    Args:
        vectors: Item vectors ``[N, V]``.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._products = DotProducts(vectors)

    def search(self, queries: Tensor, k: int, allowed: Mask | None = None) -> Lists:
        """See ``VectorIndex``."""
        if allowed is not None and allowed.sum() < _FEW * len(allowed):
            return _among(self._products.items.__getitem__, np.flatnonzero(allowed), queries, k)
        return best_items(self._products, queries, k, allowed)


class CellIndex:
    """Compares a query with the vectors in the cells of FAISS that are nearest to it.

    A search with a filter reads as many more cells as fewer items are allowed. It is exact where these would be
    all cells, and for a query in whose cells there are too few allowed items.

    Args:
        cells: FAISS index of the vectors times ``scale``, numbered by row.
        probes: Number of cells that a search without a filter reads.
        vectors: Function that returns item vectors.
        num_items: N.
        scale: Factor of each column in the cells, ``[V]``; a column of factor 0 must be 0 in all queries.
        changed: Rows that are not in the cells as they are now, ascending. They are compared one by one.
    """

    def __init__(
        self, cells: Any, probes: int, vectors: Vectors, num_items: int, scale: Tensor, changed: Index
    ) -> None:
        self.cells, self.probes = cells, probes
        self._vectors, self._scale, self._num_items = vectors, scale, num_items
        self._changed = changed
        self._current: Mask | None = None
        if len(changed):
            self._current = np.ones(num_items, bool)
            self._current[changed] = False
            self._changed_vectors = ExactIndex(vectors(torch.from_numpy(changed)))

    def search(self, queries: Tensor, k: int, allowed: Mask | None = None) -> Lists:
        """See ``VectorIndex``."""
        if allowed is not None and allowed.all():
            allowed = None
        count = self._num_items if allowed is None else int(allowed.sum())
        cells = self.cells.nlist
        if count <= max(k, self.probes * self._num_items / cells):
            return self._exact(queries, k, allowed)
        found = self._in_cells(queries, k, allowed, min(cells, math.ceil(self.probes * self._num_items / count)))
        if len(self._changed):
            among = None if allowed is None else allowed[self._changed]
            rows, scores = self._changed_vectors.search(queries, k, among)
            found = _merged(found, (np.where(rows == PAD, PAD, self._changed[rows]), scores), k)
        items, scores = found
        if (short := (items == PAD).any(1)).any():
            wanted = torch.from_numpy(short).to(queries.device)
            items[short], scores[short] = self._exact(queries[wanted], k, allowed)
        return items, scores

    def _in_cells(self, queries: Tensor, k: int, allowed: Mask | None, probes: int) -> Lists:
        faiss = load_faiss("this index")
        wanted = [mask for mask in (allowed, self._current) if mask is not None]
        options: dict[str, Any] = {"nprobe": probes}
        if wanted:
            bits = np.packbits(np.logical_and.reduce(wanted), bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        queries = queries.cpu()
        scaled = torch.where(self._scale == 0, 0, queries / self._scale)[:, self._scale != 0]
        parameters = faiss.SearchParametersIVF(**options)
        scores, items = self.cells.search(scaled.numpy(), k, params=parameters)
        scores[items == PAD] = -np.inf  # FAISS numbers empty places -1, too.
        return items, scores

    def _exact(self, queries: Tensor, k: int, allowed: Mask | None) -> Lists:
        rows = np.arange(self._num_items) if allowed is None else np.flatnonzero(allowed)
        return _among(self._vectors, rows, queries, k)


def _among(vectors: Vectors, rows: Index, queries: Tensor, k: int) -> Lists:
    """List the best of some rows, ascending, by copying their vectors."""
    if not len(rows):
        return np.full((len(queries), k), PAD), np.full((len(queries), k), -np.inf, np.float32)
    items, scores = best_items(DotProducts(vectors(torch.from_numpy(rows))), queries, k)
    return np.where(items == PAD, PAD, rows[items]), scores


def _merged(one: Lists, other: Lists, k: int) -> Lists:
    items, scores = np.hstack([one[0], other[0]]), np.hstack([one[1], other[1]])
    order = np.lexsort((items, -scores))[:, :k]
    return np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)


@torch.inference_mode()
def search_top_k(
    index: VectorIndex,
    scorer: DenseScorer,
    queries: Queries,
    k: int,
    policy: Policy = "unseen",
    allowed: Mask | None = None,
    *,
    batch: int = 128,
) -> Lists:
    """List what ``top_k`` lists, with the items that an index finds: the same if its search is exact.

    The items with the largest dot products are joined with those that have a sparse term, and all of their scores
    are computed. As many more are searched as sparse terms or the policy may push down.
    """
    check_length(k)
    items = np.full((len(queries), k), PAD, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    total = scorer.num_items
    for place, chunk in batches(queries, batch):
        query = scorer.start(chunk.histories(scorer.history_length))
        vectors = query.vectors if isinstance(query, TermQuery) else query
        # Pairs of a query and an item are known by a single number.
        keys, terms = _sparse_terms(query.sparse, total) if isinstance(query, TermQuery) else _NOTHING
        of, seen = excluded_pairs(chunk, policy)
        excluded = np.unique(of * total + seen)
        down = np.union1d(excluded, keys[terms < 0]) // total
        depth = min(total, k + int(np.bincount(down, minlength=1).max()))
        found, _ = index.search(vectors, depth, allowed)
        numbered = np.arange(len(chunk))[:, None] * total + found
        pairs = np.union1d(numbered[found != PAD], keys)
        if allowed is not None:
            pairs = pairs[allowed[pairs % total]]
        pairs = np.setdiff1d(pairs, excluded, assume_unique=True)
        of, rows = np.divmod(pairs, total)
        values = _dot_products(scorer, vectors, of, rows)
        _, ours, theirs = np.intersect1d(pairs, keys, assume_unique=True, return_indices=True)
        values[ours] += terms[theirs]
        order = np.lexsort((rows, -values, of))
        ranks = np.arange(len(of)) - np.searchsorted(of, of)
        best = ranks < k
        slots = place.start + of[best], ranks[best]
        items[slots], scores[slots] = rows[order][best], values[order][best]
    return items, scores


_NOTHING = np.empty(0, np.int64), np.empty(0, np.float32)


def _sparse_terms(found: sparse.csr_array, total: int) -> tuple[Index, npt.NDArray[np.float32]]:
    """Numbers of the pairs of a query and an item with a sparse term, and these terms."""
    of = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
    return of * total + found.indices, found.data.astype(np.float32)


def _dot_products(scorer: DenseScorer, queries: Tensor, of: Index, rows: Index) -> npt.NDArray[np.float32]:
    """Dot products of the queries ``of [P]`` and the items ``rows [P]``; those of equal vectors are equal."""
    found = [np.empty(0, np.float32)]
    for first in range(0, len(of), _PAIRS):
        some = slice(first, first + _PAIRS)
        vectors = scorer.vectors(torch.from_numpy(rows[some]))
        numbers = torch.from_numpy(of[some]).to(queries.device)
        found.append((vectors * queries[numbers]).sum(1).cpu().numpy())
    return np.concatenate(found)
