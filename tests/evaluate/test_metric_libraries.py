"""The metrics equal those of two independent libraries where scores do not tie, at every cutoff."""

import numpy as np
import pytest
import pytrec_eval
import torch
from torchmetrics import retrieval

from iisan.data.sequences import Sequences
from iisan.data.splits import given_queries
from iisan.evaluate.metrics import METRICS
from iisan.evaluate.ranks import rank_targets

QUERIES, ITEMS = 40, 30
CUTOFFS = (1, 3, 10, 30)
RNG = np.random.default_rng(0)
# From 1: torchmetrics takes an item that scores 0 for one that is not listed.
SCORES = RNG.permuted(np.tile(np.arange(1, ITEMS + 1, dtype=np.float32), (QUERIES, 1)), axis=1)
TARGETS = RNG.integers(ITEMS, size=QUERIES)


class TableScorer:
    """The scores of ``SCORES``, by the only item of the history, which is the number of the query."""

    num_items, history_length = ITEMS, 1

    def start(self, histories):
        return torch.from_numpy(SCORES[histories[:, 0]])

    def score(self, query, items):
        return query[:, items].clone()


@pytest.fixture(scope="module")
def ours():
    sequences = Sequences(
        2 * np.arange(QUERIES + 1), np.column_stack([np.arange(QUERIES), TARGETS]).astype(np.int32).ravel()
    )
    ranks = rank_targets(TableScorer(), given_queries(sequences, np.arange(QUERIES)), "all", batch=7, block=11)
    assert (ranks.ties == 1).all()
    return {f"{name}@{k}": metric(ranks.above, ranks.ties, k) for name, metric in METRICS.items() for k in CUTOFFS}


TORCHMETRICS = {
    "hr": retrieval.RetrievalHitRate,
    "ndcg": retrieval.RetrievalNormalizedDCG,
    "mrr": retrieval.RetrievalMRR,
    "map": retrieval.RetrievalMAP,
    "precision": retrieval.RetrievalPrecision,
    "recall": retrieval.RetrievalRecall,
}


@pytest.mark.parametrize("k", CUTOFFS)
@pytest.mark.parametrize("name", METRICS)
def test_torchmetrics(ours, name, k):
    theirs = TORCHMETRICS[name](top_k=k)
    relevant = torch.from_numpy(TARGETS[:, None] == np.arange(ITEMS))
    queries = torch.arange(QUERIES).repeat_interleave(ITEMS)
    value = theirs(torch.from_numpy(SCORES).flatten(), relevant.flatten(), indexes=queries)
    assert ours[f"{name}@{k}"].mean() == pytest.approx(value.item(), abs=1e-6)


PYTREC_EVAL = {
    "hr": "success",
    "ndcg": "ndcg_cut",
    "map": "map_cut",
    "precision": "P",
    "recall": "recall",
}


@pytest.mark.parametrize("name", METRICS)
def test_pytrec_eval(ours, name):
    relevant = {f"q{query}": {f"i{target}": 1} for query, target in enumerate(TARGETS)}
    run = {
        f"q{query}": {f"i{item}": float(score) for item, score in enumerate(scores)}
        for query, scores in enumerate(SCORES)
    }
    for k in CUTOFFS:
        # Its reciprocal rank has no cutoff, so that it is given the first k places only.
        if name == "mrr":
            measure, key = "recip_rank", "recip_rank"
            shown = {q: dict(sorted(own.items(), key=lambda pair: -pair[1])[:k]) for q, own in run.items()}
        else:
            measure, key, shown = f"{PYTREC_EVAL[name]}.{k}", f"{PYTREC_EVAL[name]}_{k}", run
        theirs = pytrec_eval.RelevanceEvaluator(relevant, {measure}).evaluate(shown)
        values = [theirs[f"q{query}"][key] for query in range(QUERIES)]
        assert ours[f"{name}@{k}"] == pytest.approx(values, abs=1e-6)
