"""Scorers that know nothing, or only the history, have a known value under every policy."""

from fractions import Fraction

import numpy as np
import polars as pl
import pytest
import torch

from iisan.data.sequences import Sequences
from iisan.data.splits import leave_one_out
from iisan.errors import DataError
from iisan.evaluate.baselines import FixedScorer, most_popular
from iisan.evaluate.evaluation import evaluate, left_out
from iisan.names import PAD

NUM_ITEMS = 8
#: The last item is the test target. Those of the second and of the fourth user are in their history.
USERS = [[0, 1, 2, 3, 4], [1, 2, 1, 2], [0, 0, 5, 6], [0, 1, 1, 1]]
ITEMS = np.array([item for user in USERS for item in user], dtype=np.int32)
SPLIT = leave_one_out(Sequences(np.cumsum([0, *map(len, USERS)]), ITEMS), NUM_ITEMS)


class HistoryScorer:
    """1 for the last items of the history, 0 for all others."""

    def __init__(self, length, num_items=NUM_ITEMS):
        self.history_length, self.num_items = length, num_items

    def start(self, histories):
        scores = torch.zeros(len(histories), self.num_items)
        rows, columns = np.nonzero(histories != PAD)
        scores[rows, histories[rows, columns]] = 1
        return scores

    def score(self, query, items):
        return query[:, items].clone()


class RandomScorer:
    history_length, num_items = 0, NUM_ITEMS

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def start(self, histories):
        return torch.rand(len(histories), NUM_ITEMS, generator=self.generator)

    def score(self, query, items):
        return query[:, items].clone()


def measured(scorer, policy, queries=SPLIT.test):
    return evaluate(
        scorer,
        queries,
        name="test",
        policy=policy,
        cutoffs=(1, 2),
        train_counts=SPLIT.train_counts(),
        user_ids=pl.Series(list("abcd")),
        item_ids=pl.Series(list("ijklmnop")),
    )


SCORERS = {
    "constant": FixedScorer(np.ones(NUM_ITEMS)),
    "popularity": most_popular(SPLIT),
    "repeat the history": HistoryScorer(5),
    "last item": HistoryScorer(1),
}


def mean(*values):
    return sum(map(Fraction, values)) / len(values)


#: Distinct items of the histories: 0 1 2 3; 1 2; 0 5; 0 1. So 4, 6, 6 and 6 of the 8 items are new to the users.
CHANCE_AMONG_NEW = {k: mean(Fraction(k, 4), Fraction(k, 6)) for k in (1, 2)}
#: Under ``exclude-all`` the second and the fourth user, who are left out under ``unseen``, are misses.
HALF_OF_CHANCE = {k: value / 2 for k, value in CHANCE_AMONG_NEW.items()}

EXPECTED = {
    ("constant", "unseen"): CHANCE_AMONG_NEW,
    ("constant", "all"): {1: Fraction(1, 8), 2: Fraction(2, 8)},
    ("constant", "exclude-all"): HALF_OF_CHANCE,
    # Training counts: 0 four, 1 three, 2 two, the others none. First user: the four new items tie. Third user: 1
    # and 2 are above the target.
    ("popularity", "unseen"): {1: mean("1/4", 0), 2: mean("2/4", 0)},
    # Targets 4 and 6 have 0, 1 and 2 above them; 2 has 0 and 1; 1 has 0, so it is second.
    ("popularity", "all"): {1: mean(0, 0, 0, 0), 2: mean(0, 0, 0, 1)},
    ("popularity", "exclude-all"): {1: mean("1/4", 0, 0, 0), 2: mean("2/4", 0, 0, 0)},
    # What it scores is excluded: nothing but chance is left.
    ("repeat the history", "unseen"): CHANCE_AMONG_NEW,
    # The second and the fourth target tie with one other item of the history; the others are behind it.
    ("repeat the history", "all"): {1: mean(0, "1/2", 0, "1/2"), 2: mean(0, 1, 0, 1)},
    ("repeat the history", "exclude-all"): HALF_OF_CHANCE,
    ("last item", "unseen"): CHANCE_AMONG_NEW,
    # The fourth target is the last item; the others are one of the seven behind it.
    ("last item", "all"): {1: mean(0, 0, 0, 1), 2: mean("1/7", "1/7", "1/7", 1)},
    ("last item", "exclude-all"): HALF_OF_CHANCE,
}


@pytest.mark.parametrize(("scorer", "policy"), EXPECTED)
def test_hit_rate_by_hand(scorer, policy):
    found = measured(SCORERS[scorer], policy)
    for k, value in EXPECTED[scorer, policy].items():
        assert found.metrics[f"hr@{k}"] == pytest.approx(float(value), abs=1e-15)
    ranked = [True, policy != "unseen"] * 2
    assert found.metrics["users"] == sum(ranked)
    assert found.per_user["ties"].is_not_null().to_list() == ranked
    assert found.per_user["above"].is_not_null().to_list() == ranked
    assert found.per_user["seen"].to_list() == [False, True, False, True]


@pytest.mark.parametrize("policy", ["unseen", "all", "exclude-all"])
def test_random_scores_are_a_constant_on_average(policy):
    repeats = 2000
    found = measured(RandomScorer(), policy, SPLIT.test[np.tile(np.arange(4), repeats)])
    for k, value in EXPECTED["constant", policy].items():
        # A hit is a coin; four standard errors of its mean over the queries. The scores are seeded.
        error = (value * (1 - value) / Fraction(found.metrics["queries"])) ** 0.5
        assert found.metrics[f"hr@{k}"] == pytest.approx(float(value), abs=4 * error)


def test_the_protocol_says_who_is_left_out():
    assert measured(SCORERS["constant"], "unseen").protocol == (
        "test, full ranking of 8 items, history excluded (unseen), 2 users; 2 of 4 users left out because their "
        "target is in their history (warning: more than 20%; the policy all ranks every target)"
    )
    assert measured(SCORERS["constant"], "all").protocol == (
        "test, full ranking of 8 items, nothing excluded (all), 4 users"
    )
    assert left_out("test", 1000, 1000) == ""
    assert left_out("test", 1000, 800) == "200 of 1,000 users left out because their target is in their history"
    assert "the policy all" in left_out("test", 1000, 799)
    assert left_out("test", 9, 8, "queries").startswith("1 of 9 queries left out because their target")


def test_nothing_to_rank_is_refused():
    with pytest.raises(DataError, match="all 2 targets of the test are in their users' histories") as caught:
        measured(SCORERS["constant"], "unseen", SPLIT.test[np.array([1, 3])])
    assert "policy all" in caught.value.cure


def test_repeating_the_history_is_worth_nothing_on_the_real_data(scientific):
    split, num_items = scientific.split, len(scientific.item_ids)
    found = evaluate(
        HistoryScorer(13, num_items),
        split.test,
        name="test",
        policy="unseen",
        cutoffs=(1, 10),
        train_counts=split.train_counts(),
        user_ids=scientific.user_ids,
        item_ids=scientific.item_ids,
        list_length=None,
    )
    assert "11,455 users; 621 of 12,076 users left out" in found.protocol
    histories = [items[:-1] for items in np.split(scientific.sequences.items, scientific.sequences.offsets[1:-1])]
    targets = [items[-1] for items in np.split(scientific.sequences.items, scientific.sequences.offsets[1:-1])]
    chances = [
        10 / (num_items - len(set(history.tolist())))
        for history, target in zip(histories, targets, strict=True)
        if target not in history
    ]
    assert found.metrics["hr@10"] == pytest.approx(np.mean(chances), rel=1e-12)
    assert found.metrics["hr@1"] < 0.0001
