from math import log2, sqrt

import numpy as np
import pytest
import torch

from iisan.data.sequences import Sequences
from iisan.data.splits import whole_histories
from iisan.evaluate import list_metrics as module
from iisan.evaluate.list_metrics import coverage, diversity, list_metrics, novelty, popularity_lift
from iisan.evaluate.metrics import gini

LISTS = np.array([[0, 3, 2], [3, -1, -1]])
COUNTS = np.array([4, 0, 2, 1, 0])
QUERIES = whole_histories(Sequences(np.array([0, 2, 2]), np.array([0, 2], dtype=np.int32)), np.arange(2))
NOTHING = np.full((2, 3), -1)


def test_coverage_ignores_padding():
    assert coverage(LISTS, 5) == 3 / 5


def test_novelty_by_hand():
    # Shares 5/12, 2/12 twice, and 3/12 of the 7 interactions and 5 items.
    assert novelty(LISTS, COUNTS) == pytest.approx((log2(12 / 5) + 2 * log2(12 / 2) + log2(12 / 3)) / 4)
    assert novelty(NOTHING, COUNTS) is None


def test_popularity_lift_by_hand():
    # Lists: (4 + 1 + 2) / 3 and 1; the only history that is not empty: (4 + 2) / 2.
    assert popularity_lift(LISTS, QUERIES, COUNTS) == pytest.approx(((7 / 3 + 1) / 2) / 3)
    assert popularity_lift(NOTHING, QUERIES, COUNTS) is None
    assert popularity_lift(LISTS, QUERIES, np.zeros(5, dtype=int)) is None


@pytest.mark.parametrize("numbers", [module._NUMBERS, 1])
def test_diversity_by_hand(numbers, monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS", numbers)
    # Item 1 has a text only, item 4 nothing.
    text = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0], [0, 0]])
    image = torch.tensor([[1.0], [0], [1], [-1], [0]])
    lists = np.array([[0, 1, 2], [0, 3, 4], [4, 0, -1], [2, -1, -1]])
    # Cosines of 0 and 1, 0 and 2, 1 and 2; then of 0 and 3. The last two lists have no pair.
    first = 1 - (1 / sqrt(2) + 1 / 2 + 0) / 3
    assert diversity(lists, {"text": text, "image": image}) == pytest.approx((first + 1 - 0) / 2)
    assert diversity(lists[2:], {"text": text}) is None


def test_all_metrics_by_name():
    anchors = {"text": torch.eye(5)}
    found = list_metrics(LISTS, QUERIES, COUNTS, anchors)
    assert found == {
        "coverage@3": 3 / 5,
        "gini@3": gini(np.array([1, 0, 1, 2, 0])),
        "novelty@3": novelty(LISTS, COUNTS),
        "popularity_lift@3": popularity_lift(LISTS, QUERIES, COUNTS),
        "diversity@3": 1.0,
    }
    assert list_metrics(NOTHING, QUERIES, COUNTS, anchors) == {"coverage@3": 0}
    assert "diversity@3" not in list_metrics(LISTS, QUERIES, COUNTS)
