"""The score of an item as a sum of terms: learned, anchor, popularity, transitions, repeats.

Legend: B users, S positions of a history, N items, A anchor width, E embedding width.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from iisan.data.sequences import Index
from iisan.data.splits import Split
from iisan.evaluate.baselines import transition_counts
from iisan.evaluate.cells import divide
from iisan.evaluate.ranks import best_items
from iisan.evaluate.scorer import DotProducts, EmbeddingScorer, finite
from iisan.names import PAD
from iisan.progress import track

#: Number of similar items, itself included, whose transitions an item shares.
NEIGHBOURS = 50
#: Factor on similarities before the softmax over these neighbours.
_SHARPNESS = 20.0
#: Items whose neighbours are searched at a time.
_BLOCK = 4096
#: Most items among which similar ones are searched exactly, at a cost that grows with the square of their number.
_EXACT = 100_000
#: Cells that an approximate search looks into.
_PROBES = 16
#: Weight of an item that is in the history already, relative to that of the anchor, where no data determine it.
REPEAT = -0.5


#: Rows ``[n]`` and their anchors ``[n, A]`` by modality.
Changed = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of a score.

    Attributes:
        learned: Weight of the dot product of each member's query vector and item embedding.
        anchor: Weight of the similarity of anchors, by modality.
        decay: Weight of an item of the history relative to the one after it.
        popularity: Weight of ``popularity``.
        transitions: Weight of the smoothed share of transitions from the history's last item.
        repeats: Weight of being among the last S items of the history.
    """

    learned: tuple[float, ...] = ()
    anchor: Mapping[str, float] = field(default_factory=dict)
    decay: float = 0.7
    popularity: float = 0.0
    transitions: float = 0.0
    repeats: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the weights as JSON."""
        return asdict(self)

    def factors(self) -> dict[str, float]:
        """Return the weight of each term of ``TermScorer.unweighted``."""
        return {
            **{f"member {number}": weight for number, weight in enumerate(self.learned, start=1)},
            **{_anchor_term(name, self.decay): weight for name, weight in self.anchor.items()},
            "popularity": self.popularity,
            "transitions": self.transitions,
            "repeats": self.repeats,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Weights":
        """Return the weights of ``as_json``."""
        return replace(cls(**values), learned=tuple(values["learned"]))


def _anchor_term(modality: str, decay: float) -> str:
    return f"anchor of {modality}, decay {decay}"


@dataclass(frozen=True)
class Transitions:
    """First-order transitions between items, smoothed by content.

    The smoothed share of j after i is the mean of the shares of j after the items most similar to i, weighted by a
    softmax over their similarities. So items without interactions have transitions too.

    Attributes:
        shares: Share of each next item after an item in training, sparse ``[N, N]``.
        neighbours: Weights of the most similar items, sparse ``[N + 1, N]``; the last row, of ``PAD``, is empty.
    """

    shares: sparse.csr_array
    neighbours: sparse.csr_array

    def __post_init__(self) -> None:
        # With indices of two types, scipy would convert all of the shares for every query.
        matrices = self.shares, self.neighbours
        narrow = np.int32 if max(each.nnz for each in matrices) < 2**31 else np.int64
        for each in matrices:
            each.indices, each.indptr = (part.astype(narrow, copy=False) for part in (each.indices, each.indptr))

    def after(self, items: Index) -> sparse.csr_array:
        """Return the smoothed shares of the next items after ``items [B]`` (or ``PAD``), sparse ``[B, N]``."""
        return self.neighbours[items] @ self.shares


def transition_shares(split: Split) -> sparse.csr_array:
    """Return the training transitions from every item to its next as shares of all from that item, ``[N, N]``."""
    counts = transition_counts(split).astype(np.float32)
    counts.data /= np.maximum(counts.sum(axis=1), 1).astype(np.float32).repeat(np.diff(counts.indptr))
    return counts


def side_by_side(anchors: Mapping[str, Tensor]) -> Tensor:
    """Concatenate the anchors ``[N, A]`` of all modalities to vectors of length 1; zero for items without any."""
    first, *others = anchors.values()
    return torch.nn.functional.normalize(torch.cat([first, *others], dim=1) if others else first, dim=1)


def smoothing(anchors: Mapping[str, Tensor]) -> sparse.csr_array:
    """Find the ``neighbours`` of ``Transitions`` by the anchors ``[N, A]`` of all modalities alike."""
    neighbours = similar_items(anchors)
    neighbours.resize(neighbours.shape[0] + 1, neighbours.shape[1])
    return neighbours


def similar_items(
    anchors: Mapping[str, Tensor], rows: Tensor | None = None, changes: Sequence[Changed] = ()
) -> sparse.csr_array:
    """Find the items most similar to each of the items ``rows [n]``, by default all, itself included.

    An item without any content is similar to itself only. For more than ``_EXACT`` rows the search is approximate,
    in the cells of a FAISS index.

    Args:
        anchors: Anchors ``[N, A]`` by modality.
        rows: Items.
        changes: Items that have other anchors, or follow the last one; of an item's, the last change counts.

    Returns:
        Their weights, a softmax over the similarities, sparse ``[n, N]``.

    Raises:
        MissingExtraError: FAISS is needed and not installed.
    """
    every = _SideBySide(anchors, changes)
    rows = torch.arange(every.num_items) if rows is None else rows
    count = min(NEIGHBOURS, every.num_items)
    search = partial(best_items, every, k=count) if len(rows) <= _EXACT else _cells(every, count)
    values, columns = [], []
    for block in track(rows.split(_BLOCK), "similar items"):
        wanted = every.vectors(block)
        items, similarities = map(torch.from_numpy, search(wanted))
        alone = ~wanted.any(dim=1)
        similarities[alone] = torch.tensor([0.0] + (count - 1) * [-torch.inf])
        items[alone, 0] = block[alone]
        values.append(torch.softmax(_SHARPNESS * similarities, dim=1).flatten())
        columns.append(items.clamp_min(0).flatten())
    offsets = np.arange(0, count * len(rows) + 1, count)
    found = sparse.csr_array(
        (torch.cat(values).numpy(), torch.cat(columns).numpy(), offsets), shape=(len(rows), every.num_items)
    )
    found.eliminate_zeros()
    return found


class _SideBySide:
    """Anchors of all modalities side by side, joined and changed as they are read, because a copy would be large.

    Args:
        anchors: As for ``similar_items``.
        changes: As for ``similar_items``.
    """

    def __init__(self, anchors: Mapping[str, Tensor], changes: Sequence[Changed]) -> None:
        self._anchors = anchors
        self._changed = {
            name: torch.cat([each[:0], *(new[name] for _, new in changes)]) for name, each in anchors.items()
        }
        self._size = len(next(iter(anchors.values())))
        self.num_items = max(self._size, *(int(rows.max()) + 1 for rows, _ in changes), 0)
        #: Place of each item's anchors in those before the changes, followed by the changed ones.
        self._places = torch.arange(self.num_items)
        places = torch.arange(self._size, self._size + sum(len(rows) for rows, _ in changes))
        for (rows, _), own in zip(changes, places.split([len(rows) for rows, _ in changes]), strict=True):
            self._places[rows] = own

    def vectors(self, rows: Tensor | slice) -> Tensor:
        places = self._places[rows]
        changed = places >= self._size
        if not changed.any():
            return side_by_side({name: anchors[rows] for name, anchors in self._anchors.items()})
        found = {}
        for name, anchors in self._anchors.items():
            found[name] = anchors[places.masked_fill(changed, 0)]
            found[name][changed] = self._changed[name][places[changed] - self._size]
        return side_by_side(found)

    def score(self, query: Tensor, items: Tensor | slice) -> Tensor:
        return query @ self.vectors(items).T


def _cells(every: _SideBySide, count: int) -> Callable[[Tensor], tuple[Index, npt.NDArray[np.float32]]]:
    """Divide the items into cells of similar ones; a search looks into the nearest ``_PROBES`` cells."""
    index = divide(every.vectors, every.num_items, f"finding similar items among more than {_EXACT:,}")
    index.nprobe = _PROBES

    def search(wanted: Tensor) -> tuple[Index, npt.NDArray[np.float32]]:
        similarities, items = index.search(wanted.cpu().numpy(), count)
        # Too few items in the cells leave places empty, which FAISS numbers -1, too.
        similarities[items == PAD] = -np.inf
        return items, similarities

    return search


def popularity(counts: Tensor) -> Tensor:
    """Return log(1 + number of training interactions), ``[N]``, and the mean of all others for items without any.

    The popularity of an item that is new is unknown, not low.
    """
    known, values = counts > 0, torch.log1p(counts.float())
    return torch.where(known, values, values[known].mean()) if known.any() else values


class TermQuery(NamedTuple):
    """Query of a ``TermScorer``: the vectors ``[B, V]`` of the dense terms, and the sparse terms ``[B, N]``."""

    vectors: Tensor
    sparse: sparse.csr_array


class TermScorer:
    """Scores items by the weighted sum of terms, all but the sparse ones in a single dot product.

    The vector of an item is ``[learned ; anchors ; popularity]``, that of a query ``[learned · weight ;
    weighted sum of the anchors in the history · weight ; weight]``. Transitions and repeats are sparse.

    Args:
        learned: Scorers of the trained members, if any; their embeddings are ``[N, E]``.
        anchors: Anchors ``[N, A]`` by modality, zero for items without it.
        counts: Training interactions of every item, ``[N]``.
        transitions: Smoothed transitions.
        weights: Weights of the terms.
        length: Maximum history length S.
    """

    def __init__(
        self,
        learned: Sequence[EmbeddingScorer],
        anchors: Mapping[str, Tensor],
        counts: Tensor,
        transitions: Transitions,
        weights: Weights,
        length: int,
    ) -> None:
        self.learned, self.anchors, self.counts = tuple(learned), dict(anchors), counts
        self.transitions, self.weights = transitions, weights
        self.num_items, self.history_length = len(counts), length
        self.popularity = popularity(counts)
        self._parts = [*(member.items for member in learned), *anchors.values(), self.popularity[:, None]]

    @cached_property
    def _dense(self) -> DotProducts:
        """Vectors of all items, which a scorer that is only searched by an index does without."""
        return DotProducts(self.vectors(slice(None)))

    @property
    def items(self) -> Tensor:
        """Vectors of all items, ``[N, V]``."""
        return self._dense.items

    def vectors(self, rows: Tensor | slice) -> Tensor:
        """Return the vectors of the dense terms of some items, ``[n, V]``."""
        return torch.cat([part[rows].to(self._parts[0].device) for part in self._parts], dim=1)

    def column_weights(self) -> Tensor:
        """Return the weight of each column of ``vectors`` in the query vectors, ``[V]``."""
        weights = self.weights
        each = (*weights.learned, *(weights.anchor[name] for name in self.anchors), weights.popularity)
        return torch.cat([torch.full((part.shape[1],), w) for w, part in zip(each, self._parts, strict=True)])

    def reweighted(self, weights: Weights) -> "TermScorer":
        """Return a scorer of the same terms with other weights."""
        other = copy.copy(self)
        other.weights, other._dense = weights, self._dense
        return other

    def anchor_sums(self, histories: Index, decay: float) -> dict[str, Tensor]:
        """Sum the anchors of histories ``[B, S]``, each step back weighing ``decay``, by modality: ``[B, A]``."""
        steps = np.arange(histories.shape[1] - 1, -1, -1)
        factors = torch.from_numpy(np.where(histories == PAD, 0.0, decay**steps)).float()
        rows = torch.from_numpy(histories).clamp_min(0)
        return {
            name: torch.bmm(factors[:, None].to(anchors), anchors[rows.to(anchors.device)])[:, 0]
            for name, anchors in self.anchors.items()
        }

    def query_vectors(self, histories: Index) -> Tensor:
        """Return the vectors of the dense terms for histories ``[B, S]``: ``[B, V]``."""
        weights = self.weights
        parts = [w * each.start(histories) for w, each in zip(weights.learned, self.learned, strict=True)]
        parts += [weights.anchor[name] * each for name, each in self.anchor_sums(histories, weights.decay).items()]
        parts.append(torch.full((len(histories), 1), weights.popularity))
        return torch.cat([part.to(self._parts[0].device) for part in parts], dim=1)

    def repeats(self, histories: Index) -> sparse.csr_array:
        """Mark the items of histories ``[B, S]``, sparse ``[B, N]``."""
        rows, places = np.nonzero(histories != PAD)
        narrow = (each.astype(np.int32) for each in (rows, histories[rows, places]))
        marks = np.ones(len(rows), np.float32), tuple(narrow)
        marked = sparse.csr_array(marks, shape=(len(histories), self.num_items))
        marked.data[:] = 1  # An item that is in the history several times is marked once.
        return marked

    def start(self, histories: Index) -> TermQuery:
        """Return the query of histories ``[B, S]``."""
        weights = self.weights
        extra = weights.transitions * self.transitions.after(histories[:, -1])
        vectors = finite(self.query_vectors(histories), "query vectors")
        return TermQuery(vectors, (extra + weights.repeats * self.repeats(histories)).tocsr())

    def score(self, query: TermQuery, items: Tensor | slice) -> Tensor:
        """Return the sums of the terms, ``[B, n]``."""
        scores = self._dense.score(query.vectors, items)
        columns = items if isinstance(items, slice) else items.cpu().numpy()
        extra = query.sparse[:, columns].toarray()
        return scores.add_(torch.from_numpy(extra).to(scores.device, torch.float32))

    def unweighted(self, histories: Index, items: Index, decays: Sequence[float]) -> dict[str, Tensor]:
        """Compute the terms of some items ``[B, C]`` for every history ``[B, S]`` without their weights.

        Returns:
            Name -> ``[B, C]``, on the CPU. The score is their sum weighted by ``Weights.factors``, which names the
            anchor's terms by their decay.
        """
        rows, slots = torch.from_numpy(items), torch.from_numpy(histories)
        steps = torch.arange(histories.shape[1] - 1, -1, -1.0)
        found = {}
        for number, member in enumerate(self.learned, start=1):
            vectors = member.items[rows.to(member.items.device)]
            found[f"member {number}"] = torch.bmm(vectors, member.start(histories)[:, :, None])[..., 0]
        for name, anchors in self.anchors.items():
            device = anchors.device
            past = anchors[slots.clamp_min(0).to(device)] * (slots != PAD)[..., None].to(device)
            similarities = torch.bmm(anchors[rows.to(device)], past.transpose(1, 2))
            for decay in decays:
                found[_anchor_term(name, decay)] = similarities @ (decay**steps).to(device)
        found["popularity"] = self.popularity[rows]
        index = np.arange(len(items)).repeat(items.shape[1]), items.ravel()
        for name, term in (
            ("transitions", self.transitions.after(histories[:, -1])),
            ("repeats", self.repeats(histories)),
        ):
            found[name] = torch.from_numpy(np.asarray(term[index]).reshape(items.shape))
        return {name: values.cpu() for name, values in found.items()}


#: Scorers whose items have ``vectors`` and whose queries have ``column_weights``.
DenseScorer = EmbeddingScorer | TermScorer
