import numpy as np
import polars as pl
import pytest
import torch

from iisan.data.sequences import Sequences
from iisan.data.splits import leave_one_out
from iisan.evaluate.baselines import most_popular
from iisan.evaluate.evaluation import evaluate
from iisan.evaluate.metrics import metrics_from_frame

ITEMS = np.array([0, 1, 2, 0, 1, 3, 1, 0, 0, 1, 0, 4], dtype=np.int32)


def run(policy, rows=slice(None), **settings):
    split = leave_one_out(Sequences(np.array([0, 4, 8, 12]), ITEMS), 5)
    return evaluate(
        most_popular(split),
        split.test[rows],
        name="leave-one-out test",
        policy=policy,
        cutoffs=(1, 2),
        train_counts=split.train_counts(),
        user_ids=pl.Series([10, 11, 12]),
        item_ids=pl.Series(list("abcde")),
        **settings,
    )


def test_evaluation_by_hand():
    # Training counts: item 0 two, 1 three, 3 one. Targets 0, 0 and 4; histories 0 1 2, 1 3 1 and 0 1 0.
    # New to the second user are 0, 2 and 4, to the third one 2, 3 and 4.
    result = run("unseen", list_length=2)
    assert result.per_user["above"].to_list() == [None, 0, 1]
    assert result.per_user["ties"].to_list() == [None, 1, 2]
    assert result.per_user["seen"].to_list() == [True, False, False]
    assert result.metrics["users"] == 2
    assert result.metrics["hr@1"] == pytest.approx(1 / 2)
    assert result.metrics["hr@2"] == pytest.approx(1.5 / 2)
    assert result.metrics["cold_hr@2"] == 0.5
    # Lists 0 2 and 3 2.
    assert result.metrics["coverage@2"] == 3 / 5
    assert result.protocol == (
        "leave-one-out test, full ranking of 5 items, history excluded (unseen), 2 users; 1 of 3 users left out "
        "because their target is in their history (warning: more than 20%; the policy all ranks every target)"
    )


def test_several_queries_of_a_user_are_counted_as_such():
    result = run("all", rows=np.array([0, 1, 1, 2]), list_length=2)
    assert result.metrics["users"] == 3
    assert result.metrics["queries"] == 4
    assert result.metrics["cold_users"] == 1
    assert "cold_queries" not in result.metrics
    # Ranked are 1, 0, 3 and the tie of 2 and 4: the targets 0, 0, 0 of the first two users are second.
    assert result.metrics["hr@2"] == pytest.approx(3 / 4)
    assert result.protocol.endswith("nothing excluded (all), 4 queries of 3 users")
    # The targets of the users who are left are still one each.
    result = run("unseen", rows=np.array([0, 0, 1, 2]), list_length=2)
    assert "(unseen), 2 users; 2 of 4 queries left out because their target" in result.protocol
    assert (result.metrics["users"], result.metrics["hr@2"]) == (2, pytest.approx(1.5 / 2))
    assert "queries" not in result.metrics


def test_lists_and_samples_are_measured_where_asked_for():
    result = run("unseen", list_length=2, anchors={"text": torch.eye(5)}, sampled=2)
    # Lists 0 2 and 3 2, of popularities 2 0 and 1 0; histories 1 3 1 and 0 1 0.
    assert result.metrics["popularity_lift@2"] == pytest.approx((1 + 1 / 2) / (7 / 3 + 7 / 3))
    assert result.metrics["diversity@2"] == 1
    # Of the candidates beside the target two are drawn, so all: the ranks are those of the full ranking.
    assert result.metrics["sampled_hr@1"] == result.metrics["hr@1"]
    assert result.metrics["sampled_negatives"] == 2
    assert not any(name.startswith("sampled") for name in run("unseen").metrics)


@pytest.mark.parametrize("policy", ["unseen", "exclude-all"])
def test_the_frame_alone_gives_the_metrics(policy, tmp_path):
    result = run(policy, list_length=None)
    result.per_user.write_parquet(tmp_path / "per_user.parquet")
    frame = pl.read_parquet(tmp_path / "per_user.parquet")
    assert metrics_from_frame(frame, (1, 2)) == result.metrics
    assert not any(name.startswith(("coverage", "gini")) for name in result.metrics)
