"""Which interactions count, against the same tables with the other rows taken out by hand."""

import io
import json

import pandas as pd
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.data.options import parse_options
from iisan.data.prepare import prepare
from iisan.errors import DataError

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"]})
LOG = pl.DataFrame(
    {
        "user_id": list("uuuuvvvv"),
        "item_id": list("abcabcab"),
        "timestamp": [8, 7, 6, 5, 4, 3, 2, 1],
        "event": ["view", "cart", "view", "purchase", "view", "purchase", "cart", "view"],
        "weight": [1.0, 2.0, 1.0, 5.0, 1.5, 4.0, 3.0, 1.0],
    }
)
IDS = ["user_id", "item_id", "timestamp"]
WRITTEN = {
    "csv": lambda frame: frame.write_csv().encode(),
    "tsv": lambda frame: frame.write_csv(separator="\t").encode(),
    "jsonl": lambda frame: frame.write_ndjson().encode(),
    "parquet": lambda frame: (frame.write_parquet(buffer := io.BytesIO()), buffer.getvalue())[1],
}


def make(log=LOG, **options):
    return Dataset.from_frames(ITEMS, log, **{"min_length": 0, **options})


def prepared(folder, log=LOG, ending="csv", **options):
    for name, frame in (("items", ITEMS), ("log", log)):
        (folder / f"{name}.{ending}").write_bytes(WRITTEN[ending](frame))
    sources = [folder / f"items.{ending}", folder / f"log.{ending}"]
    return prepare("table", sources, folder / "out", parse_options({"min_length": 0, **options}))


def rows(dataset):
    return dataset.interactions().rows()


def expected(condition):
    return rows(make(LOG.filter(condition).select(IDS)))


RULES = [
    ({"events": "purchase", "min_weight": "all"}, pl.col("event") == "purchase", {"event": 6}),
    ({"events": " cart, purchase", "min_weight": "all"}, pl.col("event") != "view", {"event": 4}),
    ({"events": ["cart", "purchase"], "min_weight": "3"}, pl.col("weight") >= 3, {"event": 4, "weight": 1}),
    ({"events": "all", "min_weight": 1.5}, pl.col("weight") >= 1.5, {"weight": 3}),
    ({"events": "all", "min_weight": "all"}, pl.lit(True), None),
]


@pytest.mark.parametrize(("options", "condition", "left_out"), RULES)
@pytest.mark.parametrize("source", [*WRITTEN, "polars", "pandas"])
def test_the_interactions_that_count(tmp_path, source, options, condition, left_out):
    frames = {"polars": LOG, "pandas": pd.DataFrame(LOG.to_dict(as_series=False))}
    given = {"ending": source} if source in WRITTEN else {"log": frames[source]}
    found = prepared(tmp_path, **given, **options) if source in WRITTEN else make(**given, **options)
    assert rows(found) == expected(condition)
    assert found.content_hash == make(LOG.filter(condition).select(IDS)).content_hash
    assert found.manifest["counts"].get("left_out") == left_out
    assert found.manifest["counts"]["steps"][0]["interactions"] == len(expected(condition))


def test_rules_are_recorded(tmp_path):
    prepared(tmp_path, events="cart,purchase", min_weight="3")
    recorded = json.loads((tmp_path / "out" / "dataset.json").read_text())
    options = recorded["provenance"]["options"]
    assert {name: options[name] for name in ("event", "weight", "events", "min_weight")} == {
        "event": None,
        "weight": None,
        "events": ["cart", "purchase"],
        "min_weight": 3.0,
    }
    assert recorded["counts"]["left_out"] == {"event": 4, "weight": 1}
    assert make(events="all", min_weight="all").manifest["provenance"]["options"]["events"] == "all"


@pytest.mark.parametrize(
    "names", [{"event": "event_type", "weight": "rating"}, {"event": "what", "weight": "count"}]
)
def test_other_names_of_the_columns(names):
    options = {} if "event_type" in names.values() else names
    found = make(LOG.rename(names), events="cart,purchase", min_weight=3, **options)
    assert rows(found) == expected(pl.col("weight") >= 3)


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        (
            ["event"],
            {},
            r"^the interactions frame has 3 different events: view \(4 rows\), cart \(2 rows\), purchase "
            r"\(2 rows\); expected a rule .*: name those that count with --events view,cart "
            r"\(events='view,cart'\), or count all with --events all \(events='all'\)$",
        ),
        (
            ["weight"],
            {},
            r"has 6 different weights: 1 \(3 rows\), 1.5 \(1 row\), 2 .*, 4 \(1 row\) and 1 more; expected a "
            r"rule .*: pass --min-weight 3 \(min_weight=3\) to leave out smaller ones, or count all with --min-w",
        ),
        (["event", "weight"], {"events": "cart"}, r"has 2 different weights: 2 \(1 row\), 3 \(1 row\)"),
        (["event"], {"on_bad": "skip"}, "has 3 different events"),
        (
            ["event"],
            {"events": "cart,purchse"},
            "has no event 'purchse'; expected one of .*did you mean 'purchase'",
        ),
        (["event"], {"events": "rent"}, r"has no event 'rent'.*: correct --events"),
        (
            ["weight"],
            {"min_weight": 6},
            r"has no weight of 6 or more; expected a minimum of at most 5.*: lower --min",
        ),
        ([], {"events": "view"}, "has no column 'event'.*name the column with --event$"),
        ([], {"min_weight": 1}, "has no column 'weight'.*name the column with --weight$"),
        ([], {"event": "kind", "events": "all"}, "has no column 'kind'"),
    ],
)
def test_what_is_refused(columns, options, sentence):
    with pytest.raises(DataError, match=sentence):
        make(LOG.select(*IDS, *columns), **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_weight": "x"}, "option 'min_weight' has the value 'x'; expected a finite number, or all"),
        ({"min_weight": "nan"}, "a finite number, or all"),
        ({"min_weight": float("inf")}, "a finite number, or all"),
        ({"min_weight": [1]}, "a finite number, or all"),
        ({"events": ","}, "option 'events' has the value ','; expected names of events, or all"),
        ({"events": []}, "names of events, or all"),
        ({"events": 7}, "names of events, or all"),
    ],
)
def test_rules_that_are_none(options, sentence):
    with pytest.raises(DataError, match=sentence):
        make(**options)


@pytest.mark.parametrize(
    "columns",
    [
        {"weight": pl.lit(1.0)},
        {"weight": pl.Series(["1", "1.0", " 1.00"] + ["1"] * 5)},
        {"event": pl.lit("purchase"), "rating": pl.lit(5)},
        {"event_type": pl.Series(["purchase", " purchase "] * 4)},
        {"event": pl.lit(None, pl.String), "weight": pl.lit(None, pl.Float64)},
    ],
)
def test_one_value_or_none_needs_no_rule(columns):
    assert make(LOG.select(IDS).with_columns(**columns)).content_hash == make(LOG.select(IDS)).content_hash


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("event", "", "missing event ''"),
        ("weight", "", "unparsable weight ''"),
        ("weight", "high", "unparsable weight 'high'"),
        ("weight", "inf", "unparsable weight 'inf'"),
        ("weight", "NaN", "unparsable weight 'NaN'"),
    ],
)
@pytest.mark.parametrize("ruled", [True, False])
def test_bad_values_are_bad_rows(tmp_path, column, value, reason, ruled):
    given = pl.col(column).cast(pl.String) if ruled else pl.lit("2").alias(column)
    texts = LOG.select(*IDS, given)
    log = texts.with_columns(pl.Series(column, [*texts[column][:2], value, *texts[column][3:]]))
    rule = {"event": {"events": "purchase"}, "weight": {"min_weight": 2}}[column] if ruled else {}
    option = {"event": "--events all", "weight": "--min-weight all"}[column]
    with pytest.raises(DataError, match=rf"^log\.csv, line 4: {reason} .*--on-bad skip .*, or {option} "):
        prepared(tmp_path, log, **rule)
    found = prepared(tmp_path, log, **rule, on_bad="skip")
    assert found.manifest["skipped"] == {reason.split(" '")[0]: 1}
    assert rows(found) == rows(make(texts.filter(pl.int_range(pl.len()) != 2), **rule))
    everything = {"event": {"events": "all"}, "weight": {"min_weight": "all"}}[column]
    assert rows(prepared(tmp_path, log, **everything)) == rows(make(LOG.select(IDS)))


def test_columns_of_other_types():
    with pytest.raises(DataError, match="has events of type Boolean; expected strings or whole numbers"):
        make(LOG.select(*IDS, event=pl.col("weight") > 1))
    with pytest.raises(DataError, match="weights of type Boolean; expected numbers"):
        make(LOG.select(*IDS, weight=pl.col("weight") > 1))
    codes = LOG.select(*IDS, event=pl.col("weight").cast(pl.Int8))
    assert rows(make(codes, events=[4, 5])) == expected(pl.col("weight") >= 4)


def test_rows_that_do_not_count_may_be_anything():
    """A view of a page that is no item, without a time: no bad row of the purchases."""
    page = pl.DataFrame({"user_id": ["u", None], "item_id": ["home", None], "event": ["view", "view"]})
    log = pl.concat([page, LOG.drop("weight")], how="diagonal")
    assert rows(make(log, events="purchase")) == expected(pl.col("event") == "purchase")
    with pytest.raises(DataError, match="row 2: zero-length user_id"):
        make(log, events="view")


def test_weights_are_those_of_the_events_that_count():
    """Views have no weight, and all carts the same: once views are left out, nothing needs a rule."""
    weight = pl.when(event="cart").then(1).when(event="purchase").then(5)
    found = make(LOG.with_columns(weight=weight), events="cart")
    assert rows(found) == expected(pl.col("event") == "cart")
    with pytest.raises(DataError, match="row 1: unparsable weight ''"):
        make(LOG.with_columns(weight=weight), events="all", min_weight=1)


def test_two_columns_of_weights():
    both = LOG.select(*IDS, "weight", rating=pl.lit(3))
    with pytest.raises(DataError, match=r"columns 'weight' and 'rating'.*: name the one to use with --weight$"):
        make(both, min_weight=4)
    assert rows(make(both, weight="weight", min_weight=4)) == expected(pl.col("weight") >= 4)
    assert rows(make(both, min_weight="all")) == rows(make(LOG.select(IDS)))


def test_the_published_tables_have_no_events(tmp_path):
    (tmp_path / "items.tsv").write_text("a\tA\nb\tB\n")
    (tmp_path / "users.tsv").write_text("u\ta b a b a\n")
    for options in ({"events": "view"}, {"min_weight": 1}):
        with pytest.raises(DataError, match=r"users\.tsv' has no column '(event|weight)'"):
            prepare("reference", [tmp_path], tmp_path / "out", parse_options(options))
    assert not (tmp_path / "out").exists()
    assert prepare("reference", [tmp_path], tmp_path / "out", parse_options({"events": "all"})).num_users == 1
