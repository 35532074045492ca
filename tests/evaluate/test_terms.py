"""The score as a sum of terms, against loops over users and items."""

import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy import sparse

from iisan.data.sequences import Sequences
from iisan.data.splits import leave_one_out
from iisan.errors import MissingExtraError
from iisan.evaluate import terms
from iisan.evaluate.ranks import rank_targets, top_k
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.evaluate.terms import TermScorer, Transitions, Weights, similar_items, smoothing, transition_shares
from iisan.names import PAD
from iisan.nn.anchor import fit_whitening
from iisan.runs.anchoring import Anchoring

N, S = 23, 4
WEIGHTS = Weights((1.0, 0.4), {"text": 2.5, "image": 0.0, "note": 1.2}, 0.6, 0.07, 1.7, -0.8)
#: Empty, short, with a repeated item, and full.
HISTORIES = np.array([[PAD] * 4, [PAD, PAD, PAD, 3], [PAD, 5, 7, 5], [9, 1, 21, 22], [2, 2, 2, 2]])


def unit(count, width, rng):
    vectors = torch.from_numpy(rng.normal(size=(count, width))).float()
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 9, 40)
    items = np.minimum(rng.geometric(0.12, lengths.sum()) - 1, N - 4)  # the last three in no interaction
    return Sequences(np.concatenate([[0], np.cumsum(lengths)]), items.astype(np.int32))


@pytest.fixture(scope="module")
def scorer(sequences):
    """Two members, three modalities of which some items lack some, item 20 a copy of item 19, item 22 bare."""
    rng = np.random.default_rng(0)
    split = leave_one_out(sequences, N)
    anchors = {name: unit(N, width, rng) for name, width in (("text", 5), ("image", 3), ("note", 4))}
    anchors["image"][[1, 4]] = 0
    members = []
    for width in (6, 3):
        embeddings = unit(N, width, rng)
        table = torch.cat([embeddings, torch.zeros(1, width)])
        embeddings[20], table[20] = embeddings[19], table[19]

        def encode(histories, table=table):
            return table[torch.from_numpy(histories)].cumsum(1)[:, -1]

        members.append(EmbeddingScorer(embeddings, encode, S))
    for each in anchors.values():
        each[20], each[22] = each[19], 0
    transitions = Transitions(transition_shares(split), smoothing(anchors))
    counts = torch.from_numpy(split.train_counts())
    assert not counts[[20, 21, 22]].any()
    counts[19] = counts[20] = 2
    return TermScorer(members, anchors, counts, transitions, WEIGHTS, S)


def by_hand(scorer, weights, history, item):
    """The score in fp64, a term at a time."""
    past = [(back, each) for back, each in enumerate(reversed(history)) if each != PAD]
    logs = [math.log(1 + int(count)) for count in scorer.counts if count]
    count = int(scorer.counts[item])
    terms = {"popularity": weights.popularity * (math.log(1 + count) if count else sum(logs) / len(logs))}
    for weight, member in zip(weights.learned, scorer.learned, strict=True):
        query = member.start(np.array([history]))[0]
        terms[f"member {len(terms)}"] = weight * float(query.double() @ member.items[item].double())
    for name, anchors in scorer.anchors.items():
        similarity = [
            weights.decay**back * float(anchors[each].double() @ anchors[item].double()) for back, each in past
        ]
        terms[name] = weights.anchor[name] * sum(similarity)
    if history[-1] != PAD:
        shares, neighbours = (getattr(scorer.transitions, name).toarray() for name in ("shares", "neighbours"))
        terms["transitions"] = weights.transitions * float(neighbours[history[-1]] @ shares[:, item])
    terms["repeats"] = weights.repeats * (item in history)
    return sum(terms.values())


def random_weights(seed):
    values = np.random.default_rng(seed).normal(size=9)
    anchor = dict(zip(("text", "image", "note"), values[:3], strict=True))
    return Weights((values[3], values[4]), anchor, abs(values[5]) / 2, *values[6:])


@pytest.mark.parametrize("weights", [WEIGHTS, *map(random_weights, range(3))])
def test_a_score_is_the_sum_of_its_terms(weights, scorer):
    weighted = scorer.reweighted(weights)
    query = weighted.start(HISTORIES)
    expected = [[by_hand(scorer, weights, history, item) for item in range(N)] for history in HISTORIES.tolist()]
    scores = weighted.score(query, slice(0, N))
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, expected, rtol=0, atol=5e-6)
    some = torch.tensor([22, 0, 5, 5, 1])
    np.testing.assert_allclose(weighted.score(query, some), scores[:, some], rtol=0, atol=1e-6)


def test_unweighted_terms_times_their_weights_are_the_score(scorer):
    items = np.tile([0, 5, 22, 4, 5], (len(HISTORIES), 1))
    other = random_weights(7)
    found = scorer.unweighted(HISTORIES, items, (WEIGHTS.decay, other.decay))
    assert len(found) == 2 + 2 * 3 + 3
    for weights in (WEIGHTS, other):
        scores = scorer.reweighted(weights)
        expected = scores.score(scores.start(HISTORIES), slice(0, N)).gather(1, torch.from_numpy(items))
        total = sum(factor * found[name] for name, factor in weights.factors().items())
        np.testing.assert_allclose(total, expected, rtol=0, atol=5e-6)


def test_an_empty_history_leaves_popularity(scorer):
    alone = scorer.reweighted(Weights((0.0, 0.0), dict.fromkeys(scorer.anchors, 1.0), 0.7, 0.5, 9.0, 9.0))
    scores = alone.score(alone.start(HISTORIES[:1]), slice(0, N))[0]
    counts = scorer.counts.numpy()
    logs = np.log1p(counts)
    # What is not known of an item without interactions is the mean of the others.
    np.testing.assert_allclose(scores, 0.5 * np.where(counts > 0, logs, logs[counts > 0].mean()), atol=1e-6)


def test_copies_of_an_item_tie_exactly(scorer, sequences):
    """Items 19 and 20 differ in their transitions alone."""
    weighted = scorer.reweighted(Weights((1.0, 0.4), WEIGHTS.anchor, 0.6, 0.07, 0.0, -0.8))
    for histories in (HISTORIES, HISTORIES[3:4]):
        for items in (slice(0, N), torch.tensor([20, 3, 19]), torch.arange(N).flip(0)):
            scores = weighted.score(weighted.start(histories), items)
            one, other = (torch.arange(N)[items] == item for item in (19, 20))
            assert torch.equal(scores[:, one], scores[:, other])


def test_block_widths_do_not_matter(scorer, sequences):
    queries = leave_one_out(sequences, N).test
    for policy in ("all", "exclude-all"):
        whole = rank_targets(scorer, queries, policy)
        lists, scores = top_k(scorer, queries, 7, policy)
        for batch, block in ((3, 5), (40, 22), (1, 1)):
            found = rank_targets(scorer, queries, policy, batch=batch, block=block)
            assert (found.above.tolist(), found.ties.tolist()) == (whole.above.tolist(), whole.ties.tolist())
            again, same = top_k(scorer, queries, 7, policy, batch=batch, block=block)
            assert (again == lists).all()
            np.testing.assert_allclose(same, scores, atol=2e-6)


def test_shares_of_transitions_are_counted(sequences):
    split = leave_one_out(sequences, N)
    counts = np.zeros((N, N))
    for start, end in zip(split.train_starts, split.train_ends, strict=True):
        for one, other in zip(sequences.items[start : end - 1], sequences.items[start + 1 : end], strict=True):
            counts[one, other] += 1
    assert counts.max() > 1  # some pair occurs twice
    shares = transition_shares(split).toarray()
    np.testing.assert_allclose(shares, counts / np.maximum(counts.sum(1, keepdims=True), 1), rtol=1e-6)


def test_transitions_are_smoothed_over_the_most_similar_items(monkeypatch):
    monkeypatch.setattr(terms, "NEIGHBOURS", 3)
    monkeypatch.setattr(terms, "_BLOCK", 4)
    rng = np.random.default_rng(1)
    anchors = {"text": unit(9, 4, rng), "image": unit(9, 2, rng)}
    anchors["image"][2] = 0
    shares = sparse.random_array((9, 9), density=0.3, rng=rng, dtype=np.float32).tocsr()
    joint = torch.cat([anchors["text"], anchors["image"]], dim=1).numpy()
    joint /= np.linalg.norm(joint, axis=1, keepdims=True)
    expected = np.zeros((9, 9))
    for item in range(9):
        similar = sorted(range(9), key=lambda other: -joint[item] @ joint[other])[:3]
        weights = np.exp([20 * joint[item] @ joint[other] for other in similar])
        assert similar[0] == item
        expected[item] = weights @ shares.toarray()[similar] / weights.sum()
    smoothed = Transitions(shares, smoothing(anchors))
    found = smoothed.after(np.array([*range(9), PAD])).toarray()
    np.testing.assert_allclose(found[:9], expected, rtol=2e-5, atol=1e-7)
    assert not found[9].any()
    np.testing.assert_allclose(similar_items({"text": anchors["text"]}).sum(axis=1), 1, rtol=1e-6)


def test_similar_items_of_changed_anchors():
    rng = np.random.default_rng(4)
    anchors = {"text": unit(60, 8, rng), "image": unit(60, 4, rng)}
    new = [{"text": unit(count, 8, rng), "image": unit(count, 4, rng)} for count in (3, 4)]
    new[1]["image"][2] = 0
    # Items 60 and 61 are new, 7 and 61 change again.
    rows = [torch.tensor([7, 60, 61]), torch.tensor([62, 7, 61, 20])]
    found = similar_items(anchors, torch.tensor([7, 62, 3]), list(zip(rows, new, strict=True)))
    now = {name: torch.cat([each, torch.zeros(3, each.shape[1])]) for name, each in anchors.items()}
    for some, values in zip(rows, new, strict=True):
        for name, each in values.items():
            now[name][some] = each
    expected = similar_items(now)[[7, 62, 3]]
    assert found.shape == (3, 63)
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("types", [(np.int32, np.int64), (np.int64, np.int32)])
def test_indices_of_transitions_are_of_one_narrow_type(scorer, types):
    """A mixture would be converted whole for every query."""
    matrices = {name: each.copy() for name, each in vars(scorer.transitions).items()}
    for each, dtype in zip(matrices.values(), types, strict=True):
        each.indices, each.indptr = each.indices.astype(dtype), each.indptr.astype(np.int64)
    found = Transitions(**matrices)
    assert {part.dtype for each in vars(found).values() for part in (each.indices, each.indptr)} == {
        np.dtype("int32")
    }
    last = HISTORIES[:, -1]
    assert (found.after(last) != scorer.transitions.after(last)).nnz == 0
    assert scorer.start(HISTORIES).sparse.indices.dtype == np.int32


def test_an_item_without_content_keeps_its_own_transitions(scorer):
    neighbours = scorer.transitions.neighbours.toarray()
    assert neighbours[22].tolist() == [0.0] * 22 + [1.0]
    np.testing.assert_allclose(neighbours[:22].sum(axis=1), 1, rtol=1e-6)
    assert scorer.transitions.neighbours.dtype == np.float32


def test_terms_are_saved_exactly(scorer):
    states = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(0))
    whitenings = {name: fit_whitening(lambda: [states], None, 0.3, name) for name in scorer.anchors}
    weights = Weights((), WEIGHTS.anchor, 0.6, 0.07, 1.7, -0.8)
    terms_alone = TermScorer((), scorer.anchors, scorer.counts, scorer.transitions, weights, S)
    anchoring = Anchoring(whitenings, terms_alone)
    saved = load(save(anchoring.tensors()))
    assert Weights.from_json(weights.as_json()) == weights
    found = Anchoring.from_tensors(saved, weights, S)
    again = found.tensors()
    assert again.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in again.items())
    assert torch.equal(found.whitenings["note"].project(states), whitenings["note"].project(states))
    one, other = (each.score(each.start(HISTORIES), slice(0, N)) for each in (found.scorer, terms_alone))
    assert torch.equal(one, other)
    with pytest.raises(KeyError):
        Anchoring.from_tensors({name: value for name, value in saved.items() if "maps" not in name}, weights, S)


def test_large_catalogues_are_searched_in_cells(monkeypatch):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(3)
    # Groups of items far from each other, so that the nearest cells hold the nearest items.
    groups = unit(40, 16, rng).repeat_interleave(60, 0)
    vectors = torch.nn.functional.normalize(groups + 0.1 * unit(2400, 16, rng), dim=1)
    exact = similar_items({"text": vectors})
    monkeypatch.setattr(terms, "_EXACT", 1000)
    found = similar_items({"text": vectors})
    same = (exact != 0).multiply(found != 0).sum() / (exact != 0).sum()
    assert same > 0.95
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert found.shape == exact.shape


def test_large_catalogues_need_faiss(monkeypatch):
    monkeypatch.setattr(terms, "_EXACT", 10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[index\]"'):
        similar_items({"text": torch.eye(12)})
