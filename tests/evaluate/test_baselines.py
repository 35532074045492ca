from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iisan.data.sequences import Sequences
from iisan.data.splits import Split, leave_one_out
from iisan.errors import ConfigError
from iisan.evaluate import baselines
from iisan.evaluate.baselines import ItemKNN, Markov, last_item_similarity, most_popular, recently_popular
from iisan.evaluate.metrics import hit_rate, ndcg
from iisan.evaluate.ranks import rank_targets


def make_split(users, num_items, timestamps=None):
    offsets = np.cumsum([0, *map(len, users)])
    items = np.array([item for user in users for item in user], dtype=np.int32)
    return leave_one_out(Sequences(offsets, items, timestamps), num_items)


# Training prefixes: 0 1 0 1, 1 2, 3.
USERS = [[0, 1, 0, 1, 2, 3], [1, 2, 4, 4], [3, 0, 1]]
HISTORIES = np.array([[-1, 1], [3, 0], [-1, -1]])
EVERY = slice(0, 5)


def test_most_popular_counts_training_interactions():
    scorer = most_popular(make_split(USERS, 5))
    scores = scorer.score(scorer.start(HISTORIES), EVERY)
    assert scores.tolist() == [[2, 3, 1, 1, 0]] * 3
    assert scorer.score(1, torch.tensor([1, 4])).tolist() == [[3, 0]]


def test_recently_popular_by_position_without_timestamps():
    scorer = recently_popular(make_split(USERS, 5), share=0.5)
    # The last half of every training prefix: 0 1, 2, 3.
    # Recent and all counts: (1, 2), (1, 3), (1, 1), (1, 1), (0, 0).
    assert scorer.score(1, EVERY).tolist() == [[2, 3, 1, 1, 0]]


def test_recently_popular_by_timestamp():
    times = np.array([0, 1, 2, 3, 50, 51, 10, 11, 60, 61, 3, 70, 71])
    scorer = recently_popular(make_split(USERS, 5, times), share=0.4)
    # Training times are 0 1 2 3 10 11 3: from the quantile on there are 3 3 10 11, items 1 3 1 2.
    # Recent and all counts: (0, 2), (2, 3), (1, 1), (1, 1), (0, 0).
    assert scorer.score(1, EVERY).tolist() == [[1, 3, 2, 2, 0]]


def test_recent_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="recent share of 0"):
        recently_popular(make_split(USERS, 5), share=0)


def test_markov_by_hand():
    scorer = Markov(make_split(USERS, 5))
    scores = scorer.score(scorer.start(HISTORIES[:, -1:]), EVERY)
    # Counts of training interactions, 0 to 3, are their own ranks. Then come transitions, by their count and that
    # of the item: 1 → 2 (1, 1), 1 → 0 (1, 2), 0 → 1 (2, 3).
    popularity = [2, 3, 1, 1, 0]
    after_1 = [5, 3, 4, 1, 0]
    after_0 = [2, 6, 1, 1, 0]
    assert scores.tolist() == [after_1, after_0, popularity]


@given(
    users=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=8), min_size=1, max_size=6),
    histories=st.lists(st.integers(-1, 6), min_size=1, max_size=5),
    asked=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    first=st.integers(0, 6),
    size=st.integers(1, 7),
)
def test_markov_equals_counting_with_dictionaries(users, histories, asked, first, size):
    split = make_split(users, 7)
    training = [user[:-2] for user in users]
    popularity = Counter(item for user in training for item in user)
    transitions = Counter(pair for user in training for pair in pairwise(user))

    def order(values):
        return [sorted(set(values)).index(value) for value in values]

    scorer = Markov(split)
    query = scorer.start(np.array(histories)[:, None])
    for items, listed in (
        (torch.tensor(asked), asked),
        (slice(first, first + size), range(first, min(first + size, 7))),
    ):
        for last, scores in zip(histories, scorer.score(query, items).tolist(), strict=True):
            assert order(scores) == order([(transitions[last, item], popularity[item]) for item in listed])


def test_item_knn_by_hand():
    split = make_split([[0, 1, 0, 9, 9], [0, 2, 1, 9, 9], [2, 0, 9, 9], [3, 9, 9]], 10)
    scorer = ItemKNN(split)
    # Users of 0 are the first three, of 1 the first two, of 2 the second and third, of 3 the last.
    similarity = {(0, 1): 2 / (3 * 2) ** 0.5, (0, 2): 2 / (3 * 2) ** 0.5, (1, 2): 1 / 2}
    scores = scorer.score(scorer.start(np.array([[-1, -1, 0], [0, 1, 0], [-1, -1, 3]])), torch.arange(4)).numpy()
    expected = [
        [0, similarity[0, 1], similarity[0, 2], 0],
        # A repeated item counts once.
        [similarity[0, 1], similarity[0, 1], similarity[0, 2] + similarity[1, 2], 0],
        [0, 0, 0, 0],
    ]
    assert scores == pytest.approx(np.array(expected), abs=1e-6)
    nearest = ItemKNN(make_split([[0, 1, 9, 9], [0, 1, 9, 9], [2, 0, 9, 9]], 10), neighbours=1)
    assert nearest.score(nearest.start(np.array([[0]])), slice(0, 3)).numpy() == pytest.approx(
        np.array([[0, 2 / 6**0.5, 0]])
    )


@given(
    users=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=9), min_size=1, max_size=6),
    neighbours=st.integers(1, 7),
    length=st.integers(1, 8),
    pairs=st.integers(1, 40),
)
def test_item_knn_equals_counting_with_sets(users, neighbours, length, pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_PAIRS", pairs)
        scorer = ItemKNN(make_split(users, 7), neighbours, length)
    training = [set(user[:-2][-length:]) for user in users]
    owners = [{n for n, items in enumerate(training) if item in items} for item in range(7)]
    found = scorer.score(scorer.start(np.arange(7)[:, None]), slice(0, 7)).numpy()
    for item, scores in enumerate(found):
        cosines = [
            len(owners[item] & own) / max(1, (len(owners[item]) * len(own)) ** 0.5) if other != item else 0
            for other, own in enumerate(owners)
        ]
        # Which of equal ones are kept is not fixed.
        assert sorted(scores)[::-1][:neighbours] == pytest.approx(sorted(cosines)[::-1][:neighbours], abs=1e-6)
        kept = scores > 0
        assert kept.sum() <= neighbours
        assert scores[kept] == pytest.approx(np.array(cosines)[kept], abs=1e-6)


@pytest.mark.parametrize("make", [most_popular, recently_popular, Markov])
def test_large_counts_do_not_tie(make, monkeypatch):
    # In float32 these are two distinct numbers, or one beside a transition.
    counts = 2**24 + np.array([1, 0, 3, 2, 4])
    monkeypatch.setattr(Split, "train_counts", lambda self: counts)
    # Nothing is recent but item 4, and nothing follows it.
    scorer = make(make_split([[0, 4, 0, 1]], 5))
    scores = scorer.score(scorer.start(np.array([[4]])), EVERY)
    assert scores.argsort().tolist() == [[1, 0, 3, 2, 4]]
    assert len(scores.unique()) == 5


def test_last_item_similarity():
    vectors = torch.tensor([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0], [torch.nan, 0.0]])
    scorer = last_item_similarity(vectors, torch.tensor([True, True, True, False]))
    query = scorer.start(np.array([[0], [3], [-1]]))
    scores = scorer.score(query, slice(0, 4))
    expected = [[1, 24 / 25, -1, -2], [0, 0, 0, -2], [0, 0, 0, -2]]
    assert scores.numpy() == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "subset", "expected"),
    [
        (most_popular, "test", (1.507, 0.945)),
        (most_popular, "validation", (3.143, 2.264)),
        (Markov, "test", (4.029, 2.894)),
        (Markov, "validation", (5.863, 4.401)),
    ],
)
def test_goldens_on_the_real_data(scientific, make, subset, expected):
    ranks = rank_targets(make(scientific.split), scientific.split.subset(subset), "exclude-all")
    percent = [100 * metric(ranks.above, ranks.ties, 10).mean() for metric in (hit_rate, ndcg)]
    assert percent == pytest.approx(expected, abs=0.001)
