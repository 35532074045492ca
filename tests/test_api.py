"""The facade, and the promise that recommendation and evaluation share one scorer."""

import numpy as np
import polars as pl
import pytest

from iisan import Dataset, Recommender
from iisan.data.dataset import claim
from iisan.errors import DataError, RunError
from iisan.evaluate.metrics import ranked_rows
from iisan.evaluate.ranks import rank_targets

QUICK = ("training.epochs=2", "training.batch_size=16", "loss.negatives=5")


@pytest.fixture(scope="module")
def recommender(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("api") / "run"
    return Recommender.fit(prepared.dataset, prepared.states, out=out, overrides=QUICK)


def test_recommendation_and_evaluation_use_the_same_scores(recommender):
    """Ask for whole lists from each test history: the target's place must be the rank that was evaluated."""
    dataset = recommender.dataset
    queries = dataset.split("leave-one-out").test
    rows = ranked_rows(queries, "unseen")
    ranks = rank_targets(recommender.run.scorer, queries[rows], "unseen")
    per_user = pl.read_parquet(recommender.run.folder / "per_user.parquet")
    assert per_user["above"].is_not_null().arg_true().to_list() == rows.tolist()
    np.testing.assert_array_equal(per_user["above"].drop_nulls(), ranks.above)
    above, ties = per_user["above"], per_user["ties"]
    item_ids = dataset.items["item_id"]
    compared = 0
    for number in range(len(queries)):
        history = dataset.sequences.items[queries.starts[number] : queries.ends[number]]
        target = item_ids[int(queries.targets[number])]
        lists = recommender.recommend(history=item_ids.gather(history).to_list(), k=dataset.num_items)
        places = lists.filter(pl.col("item_id") == target)["rank"].to_list()
        if queries.targets[number] in history:
            assert (places, above[number]) == ([], None)
            continue
        assert above[number] < places[0] <= above[number] + ties[number]
        compared += 1
    assert compared > 10


def test_a_list_is_ranked_and_holds_nothing_of_the_history(recommender):
    found = recommender.recommend(history=["i0", "i1", "i2"], k=7)
    assert found.columns == ["item_id", "score", "rank", "text"]
    assert found["rank"].to_list() == [1, 2, 3, 4, 5, 6, 7]
    assert found["score"].is_sorted(descending=True)
    assert not set(found["item_id"]) & {"i0", "i1", "i2"}
    again = recommender.recommend(history=["i0", "i1", "i2"], k=30, filter_viewed=False)
    assert set(again["item_id"]) == {f"i{n}" for n in range(30)}


def test_a_known_users_history_is_everything_that_user_took(recommender):
    dataset = recommender.dataset
    user = dataset.user_index("u7")
    start, end = dataset.sequences.offsets[user : user + 2]
    history = dataset.items["item_id"].gather(dataset.sequences.items[start:end]).to_list()
    assert recommender.recommend(user="u7").equals(recommender.recommend(history=history))


def test_all_users_get_the_lists_that_each_gets_alone(recommender):
    lists = recommender.recommend_all(k=4)
    assert lists.columns == ["user_id", "item_id", "score", "rank"]
    assert set(lists["user_id"]) == set(recommender.dataset.user_ids)
    for user in ("u0", "u31"):
        alone = recommender.recommend(user=user, k=4)
        assert lists.filter(pl.col("user_id") == user)["item_id"].to_list() == alone["item_id"].to_list()


def test_saved_and_loaded_it_recommends_the_same(recommender, tmp_path):
    recommender.save(tmp_path / "deep" / "copy")
    loaded = Recommender.load(tmp_path / "deep" / "copy")
    assert loaded.recommend(history=["i1"]).equals(recommender.recommend(history=["i1"]))
    assert loaded.metrics == recommender.metrics
    assert loaded.item_embeddings.shape == (30, 128)
    with pytest.raises(RunError, match="exists already"):
        recommender.save(tmp_path / "deep" / "copy")


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"history": ["i99", "i98"]}, "unknown item 'i99', 'i98'; .*did you mean"),
        ({"history": []}, "history is empty"),
        ({"history": "i1"}, "history='i1' is of type str; expected a sequence of item ids"),
        ({"history": 7}, "history=7 is of type int"),
        ({"user": "nobody"}, "unknown user 'nobody'"),
        ({"users": "u1"}, "users='u1' is of type str"),
        ({"users": []}, "users is empty"),
        ({"users": ["u1", "nobody"]}, "unknown user 'nobody'"),
        ({"histories": [["i1"]]}, "histories is of type list; expected a polars or pandas DataFrame"),
        ({}, "none or several of users, histories, user, history"),
        ({"user": "u1", "history": ["i1"]}, "none or several"),
    ],
)
def test_a_question_that_cannot_be_answered(recommender, question, sentence):
    with pytest.raises(DataError, match=sentence):
        recommender.recommend(**question)


def test_frames_in_frames_out(tmp_path):
    """From pandas frames to a recommendation, ids only: nothing needs to be on disk before."""
    import pandas as pd

    rng = np.random.default_rng(1)
    items = pd.DataFrame({"sku": range(12), "name": [f"thing {n}" for n in range(12)]})
    log = pd.DataFrame({"who": np.repeat(range(20), 5), "sku": rng.integers(12, size=100)})
    dataset = Dataset.from_frames(items, log, item_id="sku", text="name", user_id="who")
    found = Recommender.fit(dataset, config="ids", out=tmp_path / "run", overrides=QUICK)
    frame = found.recommend(history=["3"], k=2).to_pandas()
    assert list(frame["rank"]) == [1, 2]


def test_another_dataset_does_not_take_the_place_of_a_runs(tmp_path):
    def fit(length):
        items = pl.DataFrame({"item_id": [f"i{n}" for n in range(12)]})
        log = pl.DataFrame(
            {"user_id": [n // 5 for n in range(length)], "item_id": [f"i{n * 7 % 12}" for n in range(length)]}
        )
        return Recommender.fit(
            Dataset.from_frames(items, log), config="ids", out=tmp_path / "run", overrides=QUICK
        )

    first = fit(100).recommend(user="3", k=3)
    with pytest.raises(RunError, match="holds another dataset, that of a run"):
        fit(80)
    assert fit(100).recommend(user="3", k=3).equals(first)


def test_states_may_stand_in_the_configuration(prepared, tmp_path):
    given = [*QUICK, f"states={prepared.states}"]
    found = Recommender.fit(prepared.dataset, out=tmp_path / "run", overrides=given)
    assert found.run.config.states == prepared.states


def test_a_list_is_no_longer_than_the_catalogue(recommender):
    assert len(recommender.recommend(history=["i3"], k=10**11, filter_viewed=False)) == 30


def test_a_dataset_whose_saving_was_killed_is_saved_again(tmp_path):
    claim(tmp_path / "run-dataset")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(12)]})
    log = pl.DataFrame(
        {"user_id": [n // 5 for n in range(100)], "item_id": [f"i{n * 7 % 12}" for n in range(100)]}
    )
    found = Recommender.fit(Dataset.from_frames(items, log), config="ids", out=tmp_path / "run", overrides=QUICK)
    assert len(found.recommend(user="3", k=3)) == 3
