"""Lists by an index against those of the scorer. Vectors of whole numbers make all sums exact."""

import numpy as np
import pytest
import torch
from scipy import sparse

from iisan.data.sequences import Sequences
from iisan.data.splits import whole_histories
from iisan.evaluate.cells import divide
from iisan.evaluate.ranks import top_k
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.evaluate.terms import TermScorer, Transitions, Weights
from iisan.names import PAD
from iisan.serve.search import CellIndex, ExactIndex, search_top_k

N, S, WIDTH = 70, 4, 3
NOTHING = np.empty(0, np.int64)


def whole(rng, *shape, high=3):
    return torch.from_numpy(rng.integers(-high, high + 1, shape)).float()


@pytest.fixture(scope="module")
def scorer():
    """Whole numbers, of which many tie; weights that push items up and down."""
    rng = np.random.default_rng(0)
    shares = sparse.random_array((N, N), density=0.1, rng=rng, dtype=np.float32).tocsr()
    shares.data[:] = rng.integers(-6, 7, shares.nnz)
    neighbours = sparse.csr_array(
        sparse.vstack([sparse.eye_array(N), sparse.csr_array((1, N))]).astype(np.float32)
    )
    items = whole(rng, N, WIDTH)
    member = EmbeddingScorer(items, lambda histories: items[torch.from_numpy(histories[:, -1])], S)
    anchors = {"text": whole(rng, N, 2), "image": whole(rng, N, 2)}
    weights = Weights((2.0,), {"text": 1.0, "image": 0.0}, 1.0, 0.0, 1.0, -5.0)
    return TermScorer(
        [member], anchors, torch.ones(N, dtype=torch.int64), Transitions(shares, neighbours), weights, S
    )


@pytest.fixture(scope="module")
def queries():
    """Histories of 1 to 8 items, longer than what the scorer reads."""
    rng = np.random.default_rng(1)
    offsets = np.cumsum([0, *(1 + np.arange(16) % 8)])
    sequences = Sequences(offsets, rng.integers(0, N, offsets[-1]).astype(np.int32))
    return whole_histories(sequences, np.arange(16))


def masks():
    rng = np.random.default_rng(2)
    few = np.zeros(N, bool)
    few[[3, 50]] = True
    return [None, np.ones(N, bool), rng.random(N) < 0.6, rng.random(N) < 0.1, few]


def same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("policy", ["unseen", "all"])
@pytest.mark.parametrize("allowed", masks(), ids=["none", "all", "many", "tenth", "two"])
def test_lists_by_an_exact_index_are_those_of_the_scorer(policy, allowed, scorer, queries):
    for each in (scorer, scorer.learned[0]):
        index = ExactIndex(each.items)
        for k in (1, 10, N + 5):
            found = search_top_k(index, each, queries, k, policy, allowed, batch=5)
            same(found, top_k(each, queries, k, policy, allowed))


@pytest.fixture(scope="module")
def cells(scorer):
    pytest.importorskip("faiss")
    weights = scorer.column_weights()
    assert weights.tolist() == [2, 2, 2, 1, 1, 0, 0, 0]

    vectors = (scorer.vectors(slice(None)) * weights)[:, weights != 0]

    def index(probes, changed=NOTHING):
        found = divide(vectors.__getitem__, N, "a test")
        assert (found.ntotal, found.nlist) == (N, 33)
        if len(changed):
            # What the cells hold of these rows would be found first.
            stale = vectors.clone()
            stale[changed] = 99
            found.reset()
            found.add(stale.numpy())
        return CellIndex(found, probes, scorer.vectors, N, weights, changed)

    return index


@pytest.mark.parametrize("changed", [NOTHING, np.array([0, 7, 69])], ids=["current", "changed"])
@pytest.mark.parametrize("allowed", masks(), ids=["none", "all", "many", "tenth", "two"])
def test_cells_that_are_all_read_hold_the_best_items(allowed, changed, cells, scorer, queries):
    count = N if allowed is None else allowed.sum()
    # All cells, and yet not the exact search in place of them.
    index = cells(33 * count / N - 1e-6, changed)
    items, scores = search_top_k(index, scorer, queries, 10, "unseen", allowed)
    expected = top_k(scorer, queries, 10, "unseen", allowed)
    # Among items that tie, FAISS takes any.
    np.testing.assert_array_equal(scores, expected[1])
    assert ((items == PAD) == (expected[0] == PAD)).all()


def test_few_cells_fill_a_list(cells, scorer, queries):
    index = cells(1)
    allowed = np.random.default_rng(4).random(N) < 0.5
    for mask in (None, allowed):
        # One cell of 33 holds about two items; the lists of all queries are full nevertheless.
        items, scores = index.search(scorer.start(queries.histories(S)).vectors, 12, mask)
        assert (items != PAD).all()
        assert mask is None or mask[items].all()
        assert (np.diff(scores, axis=1) <= 0).all()
        assert all(len(set(row)) == 12 for row in items.tolist())


def test_more_cells_are_read_for_a_filter(cells, scorer, monkeypatch):
    index = cells(2)
    probes = []

    def search(queries, k, params):
        probes.append(params.nprobe)
        return np.zeros((1, k), np.float32), np.arange(k)[None]

    monkeypatch.setattr(index, "cells", type("Cells", (), {"nlist": 33, "search": staticmethod(search)})())
    allowed = np.arange(N) < 14  # A fifth
    index.search(torch.ones(1, 8), 3)
    index.search(torch.ones(1, 8), 3, allowed)
    assert probes == [2, 10]
    index.search(torch.ones(1, 8), 3, np.arange(N) < 4)  # Fewer than two cells of 33 hold: no cell is read.
    assert len(probes) == 2
