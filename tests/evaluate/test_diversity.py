"""Limits and near-duplicates: the list is what a greedy pass over the whole ranking gives."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iisan.data.sequences import Sequences
from iisan.data.splits import whole_histories
from iisan.errors import ConfigError, DataError
from iisan.evaluate import diversity
from iisan.evaluate.baselines import FixedScorer
from iisan.evaluate.diversity import Distance, Limit, diverse_top_k, limits_per
from iisan.evaluate.ranks import top_k
from iisan.evaluate.scorer import EmbeddingScorer

BRANDS = np.array([0, 0, 1, -1, 0, -1, 1, 2])
SHOES = np.array([0, 0, 0, 0, 1, 1, 1, 1])
#: Angles in degrees; item 3 has no vector.
ANGLES = (0, 10, 90, None, 15, 88, 200, 45)
VECTORS = np.array(
    [(0, 0) if a is None else (np.cos(np.radians(a)), np.sin(np.radians(a))) for a in ANGLES], np.float32
)


def queries_of(histories):
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    return whole_histories(Sequences(offsets, items), np.arange(len(histories)))


def listed(k=8, history=(7,), allowed=None, **rules):
    """A list from items that score in the order of their numbers."""
    items, scores = diverse_top_k(
        FixedScorer(np.arange(8, 0, -1)), queries_of([history]), k, "unseen", allowed, **rules
    )
    found = items[0][items[0] >= 0].tolist()
    assert scores[0].tolist() == [8 - item for item in found] + [-np.inf] * (k - len(found))
    return found


def test_limits_by_hand():
    assert listed(limits=[Limit(BRANDS, 1)]) == [0, 2, 3, 5]
    assert listed(limits=[Limit(BRANDS, 2)]) == [0, 1, 2, 3, 5, 6]
    assert listed(limits=[Limit(BRANDS, 2)], k=3) == [0, 1, 2]
    assert listed(limits=[Limit(BRANDS, 1)], history=(0, 1)) == [2, 3, 4, 5, 7]
    # Item 2 does not count as one of its brand, as there is a shoe of kind 0 already.
    assert listed(limits=[Limit(BRANDS, 1), Limit(SHOES, 1)]) == [0, 5]
    assert listed(limits=[Limit(BRANDS, 1)], allowed=BRANDS != 0) == [2, 3, 5]
    assert listed() == [0, 1, 2, 3, 4, 5, 6]


def test_near_duplicates_by_hand():
    # 10° and 15° are within 18° of 0°, and 88° is of 90°; what has no vector is similar to nothing.
    assert listed(distance=Distance(VECTORS, 0.95)) == [0, 2, 3, 6]
    # 15° is within 7° of 10°, which is in the list now, and not of 0°.
    assert listed(distance=Distance(VECTORS, 0.992)) == [0, 1, 2, 3, 6]
    assert listed(distance=Distance(VECTORS, 0.992), history=(1,)) == [0, 2, 3, 4, 6, 7]
    # Without item 0, what was near it is not left out.
    assert listed(distance=Distance(VECTORS, 0.95), history=(0,)) == [1, 2, 3, 6, 7]
    assert listed(distance=Distance(VECTORS, 0.95), limits=[Limit(SHOES, 2)]) == [0, 2, 6]


@st.composite
def problems(draw):
    num_items = draw(st.integers(1, 40))

    def column(values):
        return np.array(draw(st.lists(values, min_size=num_items, max_size=num_items)))

    numbers = st.integers(-1, 3)
    limits = [Limit(column(numbers), draw(st.integers(1, 3))) for _ in range(draw(st.integers(0, 2)))]
    distance = None
    if draw(st.booleans()) or not limits:
        angles = np.radians(column(st.integers(0, 17)) * 20)
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        distance = Distance(vectors, draw(st.sampled_from([0.1, 0.5 + 1e-3, 0.97])))
    histories = draw(st.lists(st.lists(st.integers(0, num_items - 1), max_size=4), min_size=1, max_size=5))
    return num_items, [[0], *histories], limits, distance, column(st.booleans())


def greedy(ranking, k, limits, distance):
    found = []
    for item in ranking:
        for limit in limits:
            own = limit.values[item]
            if own >= 0 and sum(limit.values[other] == own for other in found) >= limit.count:
                break
        else:
            vectors = np.zeros((len(ranking), 1)) if distance is None else distance.vectors
            if distance is None or all(vectors[item] @ vectors[other] <= distance.threshold for other in found):
                found.append(int(item))
    return found[:k]


sizes = {"k": st.integers(1, 12), "batch": st.integers(1, 4), "places": st.integers(1, 9)}


@given(problem=problems(), seed=st.integers(0, 9), **sizes)
def test_a_list_is_a_greedy_pass_over_the_whole_ranking(problem, seed, k, batch, places):
    num_items, histories, limits, distance, allowed = problem
    embeddings = torch.randint(-2, 3, (num_items, 3), generator=torch.Generator().manual_seed(seed)).float()
    scorer = EmbeddingScorer(embeddings, lambda rows: embeddings[torch.from_numpy(rows[:, -1]).clamp_min(0)], 1)
    queries = queries_of(histories)
    rules = {"limits": limits, "distance": distance, "batch": batch}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity, "_PLACES", places)
        items, scores = diverse_top_k(scorer, queries, k, "unseen", allowed, **rules)
    rankings, of_items = top_k(scorer, queries, num_items, "unseen", allowed)
    for row, ranking in enumerate(rankings):
        expected = greedy(ranking[ranking >= 0], k, limits, distance)
        assert items[row].tolist() == expected + [-1] * (k - len(expected))
        ranked = dict(zip(ranking.tolist(), of_items[row].tolist(), strict=True))
        assert scores[row, : len(expected)].tolist() == [ranked[item] for item in expected]


def test_the_ranking_is_followed_only_as_far_as_needed(monkeypatch):
    depths = []

    def counted(scorer, queries, k, *rest, **options):
        depths.append((len(queries), k))
        return top_k(scorer, queries, k, *rest, **options)

    monkeypatch.setattr(diversity, "top_k", counted)
    scorer, queries = FixedScorer(np.arange(1000, 0, -1)), queries_of([[999], range(20)])
    # The first 20 items are of one kind: the second user has seen them, the first needs to get past them.
    kinds = np.maximum(np.arange(1000) - 19, 0)
    lists, _ = diverse_top_k(scorer, queries, 3, limits=[Limit(kinds, 1)])
    assert lists.tolist() == [[0, 20, 21], [20, 21, 22]]
    assert depths == [(2, 12), (1, 48)]
    # There are two kinds, so no list has a third item, and none is looked for.
    depths.clear()
    lists, _ = diverse_top_k(scorer, queries, 3, limits=[Limit(np.arange(1000) % 2, 1)])
    assert (lists.tolist(), depths) == ([[0, 1, -1], [20, 21, -1]], [(2, 12)])


def test_limits_of_columns():
    items = pl.DataFrame({"brand": ["x", None, "x", "y"], "tags": [["a"], [], None, ["b"]]})
    (limit,) = limits_per(items, "brand")
    assert (limit.values.tolist(), limit.count) == ([0, -1, 0, 1], 1)
    assert [each.count for each in limits_per(items, {"brand": 3})] == [3]


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: limits_per(pl.DataFrame({"b": [1]}), ["b"]), ConfigError, r"max_per=\['b'\]"),
        (lambda: limits_per(pl.DataFrame({"b": [1]}), {"b": 0}), ConfigError, "at most 0 items"),
        (lambda: limits_per(pl.DataFrame({"b": [1]}), {"b": 1.5}), ConfigError, "at most 1.5 items"),
        (lambda: limits_per(pl.DataFrame({"brand": [1]}), "brend"), DataError, "did you mean 'brand'"),
        (lambda: limits_per(pl.DataFrame({"b": [[1]]}), "b"), DataError, "one value per item"),
        (lambda: Distance(VECTORS, 1), ConfigError, "above a cosine of 1; expected 0 or more, below 1"),
        (lambda: Distance(VECTORS, -0.1), ConfigError, "above a cosine of -0.1"),
        (lambda: Distance(VECTORS, "0.5"), ConfigError, "above a cosine of '0.5'"),
        (lambda: listed(k=0, limits=[Limit(BRANDS, 1)]), ConfigError, "lists of 0 items"),
        (lambda: listed(k=-1, limits=[Limit(BRANDS, 1)]), ConfigError, "lists of -1 items"),
    ],
)
def test_rules_that_are_none(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()
