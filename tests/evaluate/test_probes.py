"""Scorers with known ranks, and scorers of changed histories."""

import numpy as np
import torch
from scipy import stats

from iisan.data.sequences import Sequences
from iisan.data.splits import given_queries
from iisan.evaluate.baselines import FixedScorer
from iisan.evaluate.probes import ChangedHistories, RandomScorer, RepeatScorer, in_random_order, of_other_users
from iisan.evaluate.ranks import rank_targets

HISTORIES = np.array([[-1, -1, 4], [2, 0, 2], [-1, -1, -1]])


def test_random_scores_are_even_independent_and_the_same_in_every_block():
    scorer = RandomScorer(500, seed=3)
    query = scorer.start(np.zeros((40, 1), np.int64))
    scores = scorer.score(query, slice(0, 500))
    assert scores.dtype == torch.float32
    assert torch.equal(scorer.score(query, slice(100, 300)), scores[:, 100:300])
    chosen = torch.tensor([7, 499, 7])
    assert torch.equal(scorer.score(query, chosen), scores[:, chosen])
    even = scores.flatten().numpy() / 2**24
    assert stats.kstest(even, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(scores.numpy()) - np.eye(40)).max() < 5 / np.sqrt(500)
    assert not torch.equal(scorer.score(scorer.start(np.zeros((40, 1), np.int64)), slice(0, 500)), scores)


def test_repeated_items_score_their_last_position():
    scorer = RepeatScorer(5, 3)
    expected = [[0, 0, 0, 0, 3], [2, 0, 3, 0, 0], [0, 0, 0, 0, 0]]
    assert scorer.score(scorer.start(HISTORIES), slice(0, 5)).tolist() == expected
    assert scorer.score(scorer.start(HISTORIES), slice(2, 4)).tolist() == [[0, 0], [3, 0], [0, 0]]
    assert scorer.score(scorer.start(HISTORIES), torch.tensor([4, 0])).tolist() == [[3, 0], [0, 2], [0, 0]]


def test_ranks_of_probes_do_not_depend_on_the_blocks():
    sequences = Sequences(np.array([0, 4, 9]), np.array([4, 2, 4, 2, 0, 1, 0, 2, 3], np.int32))
    queries = given_queries(sequences, np.arange(2))
    for probe in (lambda: RepeatScorer(5, 3), lambda: RandomScorer(5, 0)):
        whole, blocks = (rank_targets(probe(), queries, "all", block=block) for block in (5, 2))
        assert (whole.above.tolist(), whole.ties.tolist()) == (blocks.above.tolist(), blocks.ties.tolist())
    # After 4, 2, 4 comes 2, the second last; 3 ties with 4, which is not in 1, 0, 2 either.
    repeated = rank_targets(RepeatScorer(5, 3), queries, "all")
    assert (repeated.above.tolist(), repeated.ties.tolist()) == ([1, 3], [1, 2])


def test_changed_histories():
    assert of_other_users(HISTORIES).tolist() == [[-1, -1, -1], [-1, -1, 4], [2, 0, 2]]
    long = np.array([[-1, *range(20)]] * 2)
    shuffled = in_random_order(long)
    assert (shuffled[:, 0] == -1).all()
    assert np.array_equal(np.sort(shuffled, axis=1), long)
    assert not np.array_equal(shuffled, long)
    read = []

    class Reading(FixedScorer):
        history_length = 3

        def start(self, histories):
            read.append(histories)
            return super().start(histories)

    scorer = ChangedHistories(Reading(np.arange(5.0)), of_other_users)
    assert (scorer.num_items, scorer.history_length) == (5, 3)
    assert scorer.score(scorer.start(HISTORIES), slice(0, 2)).tolist() == [[0, 1]] * 3
    assert np.array_equal(read[0], of_other_users(HISTORIES))
