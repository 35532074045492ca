import polars as pl
import pytest

from iisan.errors import ConfigError, DataError
from iisan.evaluate.groups import column_of, group_by

FRAME = pl.DataFrame(
    {
        "user_id": ["a", "b", "c", "d", "e", "a"],
        "item_id": ["x", "y", "x", "z", "x", "y"],
        "above": [0, 20, 0, None, 8, 0],
        "ties": [1, 1, 2, None, 4, 1],
        "cold": [False, True, False, True, False, True],
        "popularity": [3, 0, 3, 0, 3, 0],
        "history_length": [1, 2, 3, 4, 7, 130],
    }
)
USERS = pl.DataFrame(
    {"user_id": ["a", "b", "c", "d"], "age": ["20", "31.5", None, "9"], "city": ["B", "A", "A", "Z"]}
)
ITEMS = pl.DataFrame({"item_id": ["x", "y", "z"], "price": [2.5, None, 1.0], "tags": [["a"], ["b"], None]})


def groups(by, users=USERS):
    found = group_by(FRAME, by, column_of(by, users, ITEMS))
    return [found.names[row] for row in found.rows]


def test_groups_of_the_ranked_rows():
    assert groups("cold") == ["warm", "cold", "warm", "warm", "cold"]
    assert groups("popularity") == ["3", "0", "3", "3", "0"]
    assert groups("history") == ["1", "2", "3", "7", "130"]
    assert groups("age") == ["20", "31.5", "unknown", "unknown", "20"]
    assert groups("city") == ["B", "A", "A", "unknown", "B"]
    assert groups("price", users=None) == ["2.5", "unknown", "2.5", "2.5", "unknown"]


def test_many_numbers_are_cut_at_deciles_and_equal_ones_stay_together():
    counts = [0] * 30 + list(range(1, 71))
    frame = pl.DataFrame({"user_id": range(100), "ties": 1, "popularity": counts})
    found = group_by(frame, "popularity")
    assert found.names[:3] == ["0", "1 to 10", "11 to 20"]
    assert found.names[-1] == "61 to 70"
    sizes = [(found.rows == number).sum() for number in range(len(found.names))]
    assert sizes == [30, *[10] * 7]


def test_metrics_of_groups_by_hand():
    warm_and_cold = group_by(FRAME, "cold").metrics(FRAME, ["hr@10", "precision@10"], True)
    cold, warm = warm_and_cold
    assert (cold["group"], cold["users"], cold["queries"]) == ("cold", 2, 2)
    assert (warm["group"], warm["users"], warm["queries"]) == ("warm", 3, 3)
    # Ranks 21 and 1; then 1, 1 or 2, and 9 to 12.
    assert cold["hr@10"] == pytest.approx(1 / 2)
    assert warm["hr@10"] == pytest.approx((1 + 1 + 2 / 4) / 3)
    assert warm["precision@10"] == pytest.approx(warm["hr@10"] / 10)
    low, high = cold["intervals"]["hr@10"]
    assert (low, high) == (0, 1)
    assert (
        "intervals"
        not in group_by(FRAME, "city", column_of("city", USERS, ITEMS)).metrics(FRAME, ["hr@10"], False)[0]
    )
    # A group of one user has no interval.
    assert group_by(FRAME, "history").metrics(FRAME, ["hr@10"], True)[0]["intervals"] == {}


def test_bad_columns_are_refused():
    with pytest.raises(
        ConfigError, match="no column 'agee' to group by; expected one of cold, popularity, history, age"
    ):
        groups("agee")
    with pytest.raises(ConfigError, match="no column 'user_id'"):
        groups("user_id")
    with pytest.raises(DataError, match="'tags' holds List"):
        groups("tags")
    twice = pl.concat([USERS, USERS.with_columns(city=pl.lit("B"))])
    with pytest.raises(DataError, match="rows of users with different values of 'city'"):
        groups("city", twice)
    assert groups("age", twice) == groups("age")
    frame = pl.DataFrame({"user_id": [str(n) for n in range(60)], "item_id": "x", "ties": 1})
    many = pl.DataFrame({"user_id": frame["user_id"], "city": [f"c{n}" for n in range(60)]})
    with pytest.raises(DataError, match="60 different values to group by"):
        group_by(frame, "city", column_of("city", many, ITEMS))
