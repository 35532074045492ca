"""One history has one list, whoever asks: evaluation, Python, batches, command line, service, reasons."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from iisan import Recommender
from iisan.data.splits import whole_histories

K = 12


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    """A run with a learned part and every other term."""
    quick = ["training.epochs=2", "training.batch_size=16", "loss.negatives=5", "training.precision=fp32"]
    out = tmp_path_factory.mktemp("same") / "run"
    Recommender.fit(prepared.dataset, prepared.states, out=out, overrides=quick)
    result = out / "result.json"
    content = json.loads(result.read_text())
    weights = {"learned": [0.8], "anchor": {"image": 0.7, "text": 1.1}, "popularity": 0.3, "transitions": 2.0}
    content["terms"]["weights"] |= weights | {"repeats": -0.4}
    result.write_text(json.dumps(content))
    return out


def test_scores_and_lists_are_the_same_everywhere(folder, serve, tmp_path, iisan):
    recommender = Recommender.load(folder)
    run, dataset = recommender.run, recommender.dataset
    ids, users = dataset.items["item_id"], dataset.user_ids
    # What the evaluation ranks by.
    queries = whole_histories(dataset.sequences, np.arange(len(users)))
    scorer = run.scorer
    scores = scorer.score(scorer.start(queries.histories(scorer.history_length)), torch.arange(len(ids))).numpy()
    rows, seen = queries.seen()
    scores[rows, seen] = -np.inf
    client = serve(folder)
    everyone = recommender.recommend_all(k=K)
    iisan("recommend", folder, "--all-users", "-k", K, "--out", tmp_path / "lists.parquet")
    from_file = pl.read_parquet(tmp_path / "lists.parquet")
    for number, user in enumerate(users):
        history = ids.gather(dataset.sequences.items[queries.starts[number] : queries.ends[number]]).to_list()
        answer = client.post("/recommend", json={"history": history, "k": K}).json()["items"]
        lists = {
            "python": recommender.recommend(history=history, k=K).select("item_id", "score"),
            "batch": everyone.filter(user_id=user).select("item_id", "score"),
            "file": from_file.filter(user_id=user).select("item_id", "score"),
            "service": pl.DataFrame(answer).select("item_id", pl.col("score").cast(pl.Float32)),
        }
        order = np.argsort(-scores[number], kind="stable")[:K]
        order = order[np.isfinite(scores[number][order])]
        for name, found in lists.items():
            assert found["item_id"].to_list() == ids.gather(order).to_list(), name
            np.testing.assert_allclose(found["score"], scores[number][order], rtol=1e-5, atol=1e-6, err_msg=name)
        best = answer[0]["item_id"]
        reasons = client.post("/explain", json={"history": history, "item": best}).json()
        assert reasons["score"] == pytest.approx(answer[0]["score"], rel=1e-5)
        assert sum(reasons["terms"].values()) == pytest.approx(reasons["score"], rel=1e-4)
        assert reasons["rank"] == 1
