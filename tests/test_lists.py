"""Lists of a recommender, exact on a catalogue whose scores are written down."""

from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, DataError, RunError
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.evaluate.terms import TermScorer, Transitions, Weights, smoothing
from iisan.recipes import recipe
from iisan.runs.anchoring import Anchoring
from iisan.runs.run import Run
from iisan.runs.similar import item_vectors

IDS = list("abcdefgh")
ITEMS = pl.DataFrame(
    {
        "item_id": IDS,
        "title": [f"thing {each}" for each in IDS],
        "brand": ["x", "x", "x", "y", None, "y", None, "z"],
        "in_stock": [True, True, False, True, False, True, True, False],
    }
)
LOG = pl.DataFrame(
    {"user_id": ["u"] * 3 + ["4711"] * 3, "item_id": list("abchga"), "timestamp": [1, 2, 3, 6, 5, 4]}
)
#: Whatever the history, a item scores the more the earlier it stands.
SCORES = torch.arange(8.0, 0.0, -1.0)


def directions(*degrees):
    """Vectors of length 1; zero for None."""
    angles = torch.tensor([0.0 if angle is None else angle for angle in degrees]).deg2rad()
    present = torch.tensor([angle is not None for angle in degrees])[:, None]
    return torch.stack([angles.cos(), angles.sin()], dim=1) * present


LEARNED = directions(0, 30, 45, 180, 90, None, 60, 260)
TEXT = directions(0, 10, 90, 100, None, 200, 300, 45)
IMAGE = directions(0, 90, None, 110, 0, 200, 300, 45)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.from_frames(ITEMS, LOG).save(tmp_path_factory.mktemp("lists") / "dataset")


@pytest.fixture(scope="module")
def make(dataset):
    """A recommender that scores by ``SCORES``, with or without learned embeddings and anchors."""

    def recommender(members=1, anchored=True):
        anchors = {"text": TEXT, "image": IMAGE}
        neighbours = smoothing(anchors)
        nothing = Transitions(neighbours[:-1] * 0, neighbours)
        terms = TermScorer((), anchors, torch.zeros(8), nothing, Weights(), 5)
        learned = EmbeddingScorer(LEARNED, lambda histories: LEARNED[histories[:, -1]], 5)
        scorer = EmbeddingScorer(SCORES[:, None], lambda histories: torch.ones(len(histories), 1), 5)
        config = recipe("ids").model_copy(update={"dataset": dataset.folder})
        items = dataset.items.select("item_id", "text")
        anchoring = Anchoring({}, terms) if anchored else None
        return Recommender(Run(dataset.folder, config, {}, items, scorer, (learned,) * members, anchoring))

    return recommender


@pytest.fixture(scope="module")
def recommender(make):
    return make()


def listed(found):
    """The items of each user, as a text."""
    lists = found.group_by("user_id", maintain_order=True).agg("item_id", "rank", "score")
    for ranks in lists["rank"]:
        assert ranks.to_list() == list(range(1, len(ranks) + 1))
    return {user: "".join(items) for user, items in lists.select("user_id", "item_id").iter_rows()}


def test_lists_of_users(recommender):
    found = recommender.recommend(users=["4711", "u", "4711"], k=3)
    assert found.rows() == [
        ("4711", "b", 7.0, 1),
        ("4711", "c", 6.0, 2),
        ("4711", "d", 5.0, 3),
        ("u", "d", 5.0, 1),
        ("u", "e", 4.0, 2),
        ("u", "f", 3.0, 3),
    ]
    assert found.columns == ["user_id", "item_id", "score", "rank"]
    assert listed(recommender.recommend(users=[4711], filter_viewed=False)) == {"4711": "abcdefgh"}
    assert listed(recommender.recommend_all(k=2)) == {"u": "de", "4711": "bc"}
    assert listed(recommender.recommend_all(where={"in_stock": True})) == {"u": "dfg", "4711": "bdf"}
    assert recommender.recommend(user="u", k=1).to_dicts() == [
        {"item_id": "d", "score": 5.0, "rank": 1, "text": "thing d"}
    ]


def test_histories_count_by_the_rules_of_the_dataset(recommender, tmp_path):
    views = pl.DataFrame({"user_id": [1, 1], "item_id": ["a", "b"], "event": ["view", "purchase"]})
    with pytest.raises(DataError, match="the frame of histories has 2 different events"):
        recommender.recommend(histories=views)
    log = LOG.with_columns(event=pl.Series(["view", "purchase"] * 3))
    data = Dataset.from_frames(ITEMS, log, events="purchase", min_length=0).save(tmp_path / "dataset")
    config = recommender.run.config.model_copy(update={"dataset": data.folder})
    with pytest.warns(UserWarning, match="1 of 2 interactions .*, as only the events purchase count in the run"):
        found = Recommender(replace(recommender.run, config=config)).recommend(histories=views, k=2)
    assert listed(found) == {"1": "ac"}


def test_pandas_in_pandas_out_polars_in_polars_out(recommender):
    rows = {"user_id": [1, 2, 1], "item_id": ["a", "b", "e"]}
    expected = {"1": "bc", "2": "ac"}
    assert listed(recommender.recommend(histories=pl.DataFrame(rows), k=2)) == expected
    found = recommender.recommend(histories=pd.DataFrame(rows), k=2)
    assert isinstance(found, pd.DataFrame)
    assert listed(pl.from_pandas(found)) == expected
    assert isinstance(recommender.recommend(users=pd.Series([4711])), pd.DataFrame)
    assert isinstance(recommender.similar_items(pd.Index(["a"])), pd.DataFrame)
    assert isinstance(recommender.recommend(users=pl.Series([4711])), pl.DataFrame)


def test_items_that_are_unknown_are_left_out_of_a_history(recommender):
    with pytest.warns(UserWarning, match="unknown items are left out of history: 'q'"):
        assert "".join(recommender.recommend(history=["a", "q", "b"])["item_id"]) == "cdefgh"
    with pytest.raises(DataError, match="unknown item 'q'"):
        recommender.recommend(history=["q"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 10**9}, "bcdefgh"),
        ({"k": np.int64(2)}, "bc"),
        ({"items_to_recommend": ["h", "c", "a"]}, "ch"),
        ({"items_to_exclude": ["b", "c"], "k": 2}, "de"),
        ({"items_to_exclude": []}, "bcdefgh"),
        ({"where": {"brand": "x"}}, "bc"),
        ({"where": {"brand": ["x", "z"], "in_stock": False}}, "ch"),
        ({"where": {"in_stock": True}, "items_to_exclude": ["d"], "items_to_recommend": list("bcdf")}, "bf"),
        ({"max_per": "brand"}, "bdegh"),
        ({"max_per": {"brand": 2}}, "bcdefgh"),
        ({"max_per": {"brand": 1, "in_stock": 2}, "k": 3}, "bde"),
        ({"max_per": "brand", "where": {"in_stock": True}}, "bdg"),
        ({"max_per": "brand", "filter_viewed": False}, "adegh"),
        # Cosines side by side: c and d cos 10° / √2 = 0.696, b and h (cos 35° + cos 45°) / 2 = 0.763.
        ({"near_duplicates": 0.9}, "bcdefgh"),
        ({"near_duplicates": 0.65}, "bcefg"),
        ({"near_duplicates": 0.7, "max_per": {"in_stock": 2}}, "bcde"),
    ],
)
def test_filters(recommender, options, expected):
    assert "".join(recommender.recommend(history=["a"], **options)["item_id"]) == expected


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"k": 0}, ConfigError, "lists of 0 items; expected 1 item or more"),
        ({"k": "3"}, ConfigError, "lists of '3' items"),
        ({"items_to_recommend": "abc"}, DataError, "items_to_recommend='abc' is of type str"),
        ({"items_to_recommend": ["a"]}, DataError, "history and filters leave none of the 8 items"),
        ({"where": {"brand": "z", "in_stock": True}}, DataError, "history and filters leave none of the 8 items"),
        ({"where": {"colour": "red"}}, DataError, "the items have no column 'colour'"),
        ({"max_per": "colour"}, DataError, "the items have no column 'colour'"),
        ({"max_per": {"brand": 0}}, ConfigError, "at most 0 items"),
        ({"near_duplicates": 2}, ConfigError, "above a cosine of 2"),
    ],
)
def test_filters_that_cannot_be_applied(recommender, options, error, sentence):
    with pytest.raises(error, match=sentence):
        recommender.recommend(history=["a"], **options)


def test_near_duplicates_need_an_anchor(make):
    with pytest.raises(RunError, match=r"has no anchor, .*'anchor' needs; .*: train one with --set anchor=true"):
        make(anchored=False).recommend(history=["a"], near_duplicates=0.9)


def similar(recommender, item, by, k=8):
    found = recommender.similar_items([item], k, by)
    assert found.columns == ["item_id", "similar_id", "score", "rank"]
    assert set(found["item_id"]) == {item}
    assert found["rank"].to_list() == list(range(1, len(found) + 1))
    return "".join(found["similar_id"]), found["score"].to_numpy()


def test_similar_items_by_hand(recommender):
    # Item f has no learned embedding, e no text, c no picture: they have no vectors by these.
    found, cosines = similar(recommender, "a", "model")
    assert found == "bcgehd"
    degrees = np.array([30, 45, 60, 90, 260, 180])
    np.testing.assert_allclose(cosines, np.cos(np.radians(degrees)), atol=1e-6)
    found, cosines = similar(recommender, "a", "text", k=3)
    assert found == "bhg"
    np.testing.assert_allclose(cosines, np.cos(np.radians([10, 45, 60])), atol=1e-6)
    assert similar(recommender, "a", "image")[0] == "ehgbdf"
    # Side by side: half of each cosine, and 1/√2 of the only one.
    found, cosines = similar(recommender, "a", "anchor")
    assert found == "ehgbcdf"
    text, image = (np.array([0, 45, 300, 10, 90, 100, 200]), np.array([0, 45, 300, 90, 90, 110, 200]))
    halves = np.cos(np.radians([text, image])).sum(0) / 2
    halves[0], halves[4] = 0.5**0.5, 0
    np.testing.assert_allclose(cosines, halves, atol=1e-6)
    with pytest.warns(UserWarning, match="items without a vector by 'text' are left out: 'e'$"):
        assert recommender.similar_items(["e", "a"], 1, "text").drop("score").rows() == [("a", "b", 1)]
    both = recommender.similar_items(["h", "a", "h"], 1, "text")
    assert both.select("item_id", "similar_id").rows() == [("h", "b"), ("a", "b")]


def test_members_of_a_joined_run_are_side_by_side(make):
    expected, cosines = similar(make(), "a", "model")
    found, of_two = similar(make(members=2), "a", "model")
    assert found == expected
    np.testing.assert_allclose(of_two, cosines, atol=1e-6)
    assert item_vectors(make(members=2).run, "model").shape == (8, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((["q"],), DataError, "unknown item 'q'"),
        (("a",), DataError, "ids='a' is of type str"),
        (([],), DataError, "ids is empty"),
        ((["a"], 0), ConfigError, "lists of 0 items"),
        ((["f"],), DataError, "item 'f' has no vector by 'model'"),
        ((["e"], 1, "text"), DataError, "item 'e' has no vector by 'text'"),
        ((["a"], 1, "sound"), RunError, "has no item vectors by 'sound'; expected 'text' or 'image' or 'model'"),
    ],
)
def test_what_is_similar_to_nothing(recommender, arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        recommender.similar_items(*arguments)


def test_similarity_of_a_part_that_a_run_lacks(make):
    with pytest.raises(RunError, match="no anchor, which similarity by 'text' needs"):
        make(anchored=False).similar_items(["a"], by="text")
    with pytest.raises(RunError, match="has no item vectors by 'model'; expected 'text' or 'image' or 'anchor'"):
        make(members=0).similar_items(["a"])
