import numpy as np
import pytest
import torch

from iisan.data.sequences import Sequences
from iisan.data.splits import given_queries
from iisan.errors import ConfigError, RunError
from iisan.evaluate import sampled
from iisan.evaluate.baselines import FixedScorer
from iisan.evaluate.metrics import hit_rate
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.sampled import draw_negatives, rank_among_sampled

#: Histories with their target last; that of the second is in its history.
ROWS = [[0, 1, 2, 5], [3, 3, 4, 3], [7, 6]]
QUERIES = given_queries(
    Sequences(np.cumsum([0, *map(len, ROWS)]), np.concatenate(ROWS).astype(np.int32)), np.arange(3)
)


@pytest.mark.parametrize("policy", ["all", "exclude-all"])
def test_all_candidates_are_drawn_once(policy):
    drawn = draw_negatives(QUERIES, 4, policy, 8)
    for row, own in zip(ROWS, drawn, strict=True):
        excluded = {row[-1]} if policy == "all" else {*row}
        assert len({*own}) == 4
        assert not excluded & {*own.tolist()}
        assert {*own.tolist()} <= {*range(8)}
    # With as many as there are, they are all that is left.
    assert {*draw_negatives(QUERIES[:1], 4, "unseen", 8)[0].tolist()} == {3, 4, 6, 7}


def test_every_candidate_is_equally_likely():
    many = given_queries(
        Sequences(3 * np.arange(6001), np.tile([1, 3, 4], 6000).astype(np.int32)), np.arange(6000)
    )
    counts = np.bincount(draw_negatives(many, 2, "unseen", 7).ravel(), minlength=7)
    assert counts[[1, 3, 4]].tolist() == [0, 0, 0]
    # 3,000 each, with a standard deviation of √(6000 · ¼).
    assert counts[[0, 2, 5, 6]] == pytest.approx(3000, abs=5 * np.sqrt(6000 / 4))


def test_too_many_are_refused():
    with pytest.raises(ConfigError, match="5 sampled items; expected 1 to 4"):
        draw_negatives(QUERIES, 5, "unseen", 8)


@pytest.mark.parametrize("items", [sampled._ITEMS, 1])
def test_ranks_among_all_candidates_are_those_of_the_full_ranking(items, monkeypatch):
    monkeypatch.setattr(sampled, "_ITEMS", items)
    scorer = FixedScorer(np.array([3, 1, 1, 2, 0, 2, 1, 1]))
    full, few = rank_targets(scorer, QUERIES, "all"), rank_among_sampled(scorer, QUERIES, 7, "all")
    assert few.above.tolist() == full.above.tolist()
    assert few.ties.tolist() == full.ties.tolist()


def test_sampled_metrics_flatter():
    scorer = FixedScorer(np.arange(1000))
    rows = np.column_stack([np.arange(200), np.arange(700, 900)]).astype(np.int32)
    queries = given_queries(Sequences(2 * np.arange(201), rows.ravel()), np.arange(200))
    few, again = (rank_among_sampled(scorer, queries, 20, "unseen") for _ in range(2))
    assert few.above.tolist() == again.above.tolist()
    full = rank_targets(scorer, queries, "unseen")
    assert hit_rate(full.above, full.ties, 10).mean() == 0
    assert hit_rate(few.above, few.ties, 10).mean() > 0.9


def test_a_target_in_its_history_is_a_miss_under_exclude_all():
    found = rank_among_sampled(FixedScorer(np.arange(8)), QUERIES, 3, "exclude-all")
    assert (found.above[1], found.ties[1]) == (3, 1)


def test_scores_that_are_no_numbers_are_refused():
    scorer = FixedScorer(np.full(8, np.nan))
    with torch.inference_mode(), pytest.raises(RunError, match="sampled item is NaN"):
        rank_among_sampled(scorer, QUERIES, 3, "all")
