from itertools import product

import numpy as np
import pytest
import torch

from iisan.data.splits import leave_one_out
from iisan.demo.catalogue import generate
from iisan.demo.oracle import OracleScorer, next_item_probabilities
from iisan.demo.process import Process
from iisan.demo.products import ATTRIBUTES, IMAGE_ATTRIBUTES, TEXT_ATTRIBUTES
from iisan.errors import DataError
from iisan.names import PAD


@pytest.fixture(scope="module")
def tiny() -> Process:
    """Three styles, six items, the last of which is new."""
    rng = np.random.default_rng(0)
    return Process(
        attributes=rng.integers(2, size=(6, 7)),
        popularity=rng.random(6) + 0.2,
        is_new=np.array([False] * 5 + [True]),
        preferences=rng.integers(2, size=(3, 7)),
        weights=rng.random(7),
        initial=rng.dirichlet(np.ones(3)),
        transitions=rng.dirichlet(np.ones(3), size=3),
    )


def emission(process: Process, style: int, item: int, history: list[int], launched: bool) -> float:
    def weight(i: int) -> float:
        matches = process.attributes[i] == process.preferences[style]
        return process.popularity[i] * np.exp(sum(process.weights[matches]))

    available = [i for i in range(6) if i not in history and (launched or not process.is_new[i])]
    return weight(item) / sum(map(weight, available)) if item in available else 0.0


def enumerated(process: Process, history: list[int], launched: bool) -> np.ndarray:
    """Sum over all paths of styles, without any filter."""
    joint = np.zeros(6)
    for path in product(range(3), repeat=len(history) + 1):
        probability = process.initial[path[0]]
        for step, item in enumerate(history):
            at_launch = bool(process.is_new[item])
            probability *= emission(process, path[step], item, history[:step], at_launch)
            probability *= process.transitions[path[step], path[step + 1]]
        joint += probability * np.array(
            [emission(process, path[-1], item, history, launched) for item in range(6)]
        )
    return joint / joint.sum()


@pytest.mark.parametrize("launched", [True, False])
@pytest.mark.parametrize("history", [[], [2], [0, 3], [4, 1, 0], [3, 5], [1, 2, 3, 0]])
def test_filter_equals_enumeration_of_all_paths(tiny, history, launched):
    padded = np.array([[PAD] * (5 - len(history)) + history])
    np.testing.assert_allclose(
        next_item_probabilities(tiny, padded, launched)[0], enumerated(tiny, history, launched), rtol=1e-10
    )


def test_probabilities_sum_to_one_over_the_available_items():
    catalogue = generate(1, 200, 60)
    histories = leave_one_out(catalogue.log, 200).test.histories(30)
    for launched in (True, False):
        probabilities = next_item_probabilities(catalogue.process, histories, launched)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-9)
        for row, history in zip(probabilities, histories, strict=True):
            impossible = np.isin(np.arange(200), history)
            if not launched:
                impossible |= catalogue.process.is_new
            np.testing.assert_array_equal(row == 0, impossible)


def test_scorer_uses_the_datasets_row_numbers():
    catalogue = generate(1, 200, 60)
    rng = np.random.default_rng(0)
    rows_to_items = rng.permutation(200)[:150]
    order = [catalogue.item_ids[item] for item in rows_to_items]
    scorer = OracleScorer(catalogue, order)
    histories = np.array([[PAD, PAD, 3], [PAD, 7, 149], [0, 1, 2]])
    items = np.where(histories == PAD, PAD, rows_to_items[histories])
    expected = next_item_probabilities(catalogue.process, items)[:, rows_to_items]
    query = scorer.start(histories)
    assert scorer.num_items == 150
    assert scorer.history_length == catalogue.log.lengths.max()
    assert scorer.score(query, slice(0, 150)).dtype == torch.float32
    np.testing.assert_allclose(scorer.score(query, slice(10, 20)), expected[:, 10:20], rtol=1e-5)
    scorer.score(query, slice(0, 150)).fill_(-1.0)
    chosen = torch.tensor([149, 0, 7])
    np.testing.assert_allclose(scorer.score(query, chosen), expected[:, chosen], rtol=1e-5)


def test_scorer_refuses_items_of_another_catalogue():
    catalogue = generate(1, 200, 60)
    with pytest.raises(DataError, match="item 'shoe'"):
        OracleScorer(catalogue, [*catalogue.item_ids, "shoe"])


def test_both_modalities_are_needed():
    catalogue = generate()
    queries = leave_one_out(catalogue.log, 2000).test[:2000]
    histories = queries.histories(30)

    def hit_ratio(scores: np.ndarray) -> float:
        scores = scores.copy()
        seen = queries.seen()
        scores[seen] = -1.0
        targets = scores[np.arange(len(queries)), queries.targets]
        return ((scores > targets[:, None]).sum(axis=1) < 10).mean()

    full, text, image = (
        hit_ratio(next_item_probabilities(catalogue.process, histories, attributes=seen))
        for seen in (ATTRIBUTES, TEXT_ATTRIBUTES, IMAGE_ATTRIBUTES)
    )
    counts = leave_one_out(catalogue.log, 2000).train_counts()
    popular = hit_ratio(np.tile(counts.astype(float), (len(queries), 1)))
    assert 0.25 < full < 0.6
    assert 0.01 < popular < 0.06
    assert full > 1.25 * max(text, image)
    assert min(text, image) > 1.5 * popular
