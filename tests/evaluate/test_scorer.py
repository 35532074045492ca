import numpy as np
import pytest
import torch

from iisan.errors import RunError
from iisan.evaluate.scorer import EmbeddingScorer

HISTORIES = np.array([[-1, 0], [0, 1]])


def test_scores_are_dot_products_in_float32():
    embeddings = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], dtype=torch.bfloat16)
    scorer = EmbeddingScorer(embeddings, lambda histories: torch.tensor([[2.0, 1.0], [0.0, -4.0]]), 2)
    query = scorer.start(HISTORIES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = scorer.score(query, slice(0, 3))
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[4.0, 0.0, 6.0], [-8.0, 4.0, 0.0]]
    assert scorer.score(query, torch.tensor([2, 0])).tolist() == [[6.0, 4.0], [0.0, -8.0]]
    assert scorer.score(query[:1], slice(1, 3)).tolist() == [[0.0, 6.0]]


def test_embeddings_that_are_not_finite_are_refused():
    embeddings = torch.zeros(4, 2)
    embeddings[1, 0] = torch.nan
    embeddings[3, 1] = torch.inf
    with pytest.raises(RunError, match="2 of 4 item embeddings"):
        EmbeddingScorer(embeddings, lambda histories: torch.zeros(2, 2), 2)


def test_queries_that_are_not_finite_are_refused():
    scorer = EmbeddingScorer(torch.zeros(4, 2), lambda histories: torch.full((2, 2), torch.nan), 2)
    with pytest.raises(RunError, match="2 of 2 query vectors"):
        scorer.start(HISTORIES)
