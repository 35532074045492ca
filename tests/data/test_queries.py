"""Given queries: rows of a user, a history and a target, as files and as frames."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.data.prepare import PrepareOptions, prepare
from iisan.errors import DataError

ITEMS = "a\tone\nb\ttwo\nc\tthree\nd\tfour\n"
USERS = "u\ta b\nv\tc\n"
VALIDATION = "u\ta b\tc\nnew\td\ta\nu\ta b c\td\n"
TEST = "v\tc  a \td\nlast\tb\tb\n"
FRAMES = {
    "items": pl.DataFrame({"item_id": list("abcd"), "title": ["one", "two", "three", "four"]}),
    "interactions": pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["a", "b", "c"]}),
    "validation": pl.DataFrame(
        {"user_id": ["u", "new", "u"], "history": [["a", "b"], ["d"], ["a", "b", "c"]], "target": ["c", "a", "d"]}
    ),
    "test": pl.DataFrame({"user_id": ["v", "last"], "history": [["c", "a"], ["b"]], "target": ["d", "b"]}),
}


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.tsv").write_text(content, encoding="utf-8")
    return [folder / f"{name}.tsv" for name in files]


def run(folder, validation=VALIDATION, test=TEST, users=USERS, **options):
    *sources, one, two = write(folder, items=ITEMS, users=users, validation=validation, test=test)
    return prepare("reference", sources, folder / "out", PrepareOptions(**options), validation=one, test=two)


def refused(folder, match, **arguments):
    with pytest.raises(DataError, match=match) as caught:
        run(folder, **arguments)
    assert not (folder / "out").exists()
    return caught.value


def rows(dataset, subset):
    """User, history and target of every query, as ids."""
    queries, ids = dataset.queries[subset], dataset.items["item_id"]
    histories = [ids.gather(row[row >= 0]).to_list() for row in queries.histories(9)]
    return list(
        zip(
            dataset.user_ids.gather(queries.users).to_list(),
            histories,
            ids.gather(queries.targets).to_list(),
            strict=True,
        )
    )


def test_repeats_in_given_queries_stay(tmp_path):
    dataset = run(tmp_path, users="u\ta a b\nv\tc\n", test="v\tc c a\ta\n", repeats="drop-all")
    assert dataset.num_interactions == 3
    assert rows(dataset, "test") == [("v", ["c", "c", "a"], "a")]


def test_queries_by_hand(tmp_path):
    dataset = run(tmp_path)
    assert rows(dataset, "validation") == [
        ("u", ["a", "b"], "c"),
        ("new", ["d"], "a"),
        ("u", ["a", "b", "c"], "d"),
    ]
    assert rows(dataset, "test") == [("v", ["c", "a"], "d"), ("last", ["b"], "b")]
    # No filter of the format is on: short users and items without an interaction stay.
    assert (dataset.num_items, dataset.num_interactions) == (4, 3)
    # Users of the queries follow, without interactions.
    assert dataset.user_ids.to_list() == ["u", "v", "new", "last"]
    assert dataset.sequences.lengths.tolist() == [2, 1, 0, 0]
    assert dataset.interactions()["user_id"].to_list() == ["u", "u", "v"]
    assert isinstance(dataset.queries["test"].sequences.items, np.memmap)
    counts = dataset.manifest["counts"]
    assert (counts["users"], counts["queries"]) == (4, {"validation": 3, "test": 2})
    sources = [source["name"] for source in dataset.manifest["provenance"]["sources"]]
    assert sources == ["items.tsv", "users.tsv", "validation.tsv", "test.tsv"]
    assert (str(dataset.queries["validation"]), str(dataset.queries["test"])) == (
        "3 queries of 2 users",
        "2 users",
    )


def test_the_split_of_given_queries(tmp_path):
    dataset = run(tmp_path)
    split = dataset.split()
    assert split.name == dataset.split("given").name == "given"
    assert split.train_counts().tolist() == [1, 1, 1, 0]
    assert split.subset("validation").targets.tolist() == [2, 0, 3]
    pairs = [each.tolist() for each in split.subset("test").seen()]
    assert pairs == [[0, 0, 1], [2, 0, 1]]


def test_every_form_gives_the_same_dataset(tmp_path):
    frames = Dataset.from_frames(**FRAMES)
    assert {run(tmp_path).content_hash} == {frames.content_hash}
    queries = {name: FRAMES[name] for name in ("validation", "test")}
    texts = {name: frame.with_columns(pl.col("history").list.join("\t ")) for name, frame in queries.items()}
    objects = {
        name: frame.with_columns(history=pl.Series([list(each) for each in frame["history"]], dtype=pl.Object))
        for name, frame in queries.items()
    }
    pandas = {
        name: pd.DataFrame({column: pd.Series(frame[column].to_list(), dtype=object) for column in frame.columns})
        for name, frame in queries.items()
    }
    for changed in (texts, objects, pandas):
        assert Dataset.from_frames(**FRAMES | changed).content_hash == frames.content_hash
    for name in ("items", "interactions"):
        FRAMES[name].write_csv(tmp_path / f"{name}.csv")
    sources = [tmp_path / "items.csv", tmp_path / "interactions.csv"]
    for name, frame in queries.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
        frame.write_ndjson(tmp_path / f"{name}.jsonl")
        # A column more and another order.
        words = frame.with_columns(pl.col("history").list.join(" "), pl.lit("x").alias("more"))
        words.select("target", "more", "user_id", "history").write_csv(tmp_path / f"{name}.csv")
    for ending in ("parquet", "jsonl", "csv"):
        validation, test = (tmp_path / f"{name}.{ending}" for name in queries)
        found = prepare("table", sources, tmp_path / ending, validation=validation, test=test)
        assert found.content_hash == frames.content_hash, ending


def test_numbers_as_ids_and_another_column_of_users():
    items = pl.DataFrame({"item_id": [1, 2, 3], "title": ["x", "y", "z"]})
    log = pl.DataFrame({"customer": [7], "item_id": [1]})
    for history in ([[1.0, 2.0]], [[1, 2]], pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)), ["1 2"]):
        queries = pl.DataFrame({"customer": [7], "history": history, "target": [3]})
        dataset = Dataset.from_frames(items, log, queries, queries, user_id="customer")
        assert rows(dataset, "test") == [("7", ["1", "2"], "3")]
    one = pl.DataFrame({"customer": [7], "history": [2], "target": [3]})
    assert rows(Dataset.from_frames(items, log, one, one, user_id="customer"), "test") == [("7", ["2"], "3")]


def test_ids_with_white_space_stay_whole_in_lists(tmp_path):
    items = pl.DataFrame({"item_id": ["a b", "a", "b"], "title": ["x", "y", "z"]})
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["a"]})
    queries = pl.DataFrame({"user_id": ["u"], "history": [["a b", "b"]], "target": ["a b"]})
    dataset = Dataset.from_frames(items, log, queries, queries)
    assert rows(dataset, "test") == [("u", ["a b", "b"], "a b")]
    path = tmp_path / "queries.jsonl"
    queries.write_ndjson(path)
    items.write_csv(tmp_path / "items.csv")
    log.write_csv(tmp_path / "log.csv")
    sources = [tmp_path / "items.csv", tmp_path / "log.csv"]
    found = prepare("table", sources, tmp_path / "out", validation=path, test=path)
    assert found.content_hash == dataset.content_hash


def test_filters_apply_to_interactions_alone(tmp_path):
    dataset = run(tmp_path, min_length=2, keep_last=1)
    assert dataset.interactions()["item_id"].to_list() == ["b"]
    # The user who was dropped is one of the queries still, at the end.
    assert dataset.user_ids.to_list() == ["u", "new", "v", "last"]
    assert (rows(dataset, "test")[0], dataset.num_items) == (("v", ["c", "a"], "d"), 4)


def test_a_filter_of_items_must_keep_those_of_the_queries(tmp_path):
    error = refused(tmp_path, r"validation\.tsv, line 2: unknown item 'd' \(2 such rows\)", items="interacted")
    assert error.expected == "an item id of the items table with an interaction (items=interacted)"
    assert run(tmp_path, users="u\ta b c d\n", items="interacted").num_items == 4


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ("u\ta x\tc\n", r"line 1: unknown item 'x' \(1 such row\); expected an item id of the items table"),
        ("u\ta\tb\n\nu\tx y\tc\nu\ta\tz\n", r"line 3: unknown item 'x' \(2 such rows\)"),
        ("u\ta\tb\nu\ta\tz\n", "line 2: unknown item 'z'"),
        ("u\t \tb\n", "line 1: empty history of user 'u'"),
        ("u\t\tb\n", "line 1: empty history of user 'u'"),
        ("u\ta\t\n", "line 1: zero-length target"),
        ("\ta\tb\n", "line 1: zero-length user_id"),
        ("u\ta b c\n", r"line 1: malformed row 'u\\ta b c'.*3 fields \(user_id, history, target\)"),
        ("\n", "is empty"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, validation, message):
    error = refused(tmp_path, message, validation=validation)
    assert "validation.tsv" in error.got
    # In the other file likewise.
    assert "test.tsv" in refused(tmp_path, message, test=validation).got


def test_bad_rows_of_lists(tmp_path):
    for name in ("items", "interactions"):
        FRAMES[name].write_csv(tmp_path / f"{name}.csv")
    good = tmp_path / "good.jsonl"
    FRAMES["test"].write_ndjson(good)
    bad = tmp_path / "bad.jsonl"
    for history, message in (
        (["a", None], "line 2: unusable history"),
        ([["a"]], "line 2: unusable history"),
        ({"a": 1}, "line 2: unusable history"),
        ([], "line 2: empty history of user 'w'"),
        (None, "line 2: empty history of user 'w'"),
        (["a", " "], "line 2: history with an empty id of user 'w'"),
        (["a", "x"], "line 2: unknown item 'x'"),
    ):
        lines = [
            {"user_id": "u", "history": ["a"], "target": "b"},
            {"user_id": "w", "history": history, "target": "b"},
        ]
        bad.write_text("\n".join(map(json.dumps, lines)))
        sources = [tmp_path / "items.csv", tmp_path / "interactions.csv"]
        with pytest.raises(DataError, match=rf"bad\.jsonl, {message}"):
            prepare("table", sources, tmp_path / "out", validation=good, test=bad)
    assert not (tmp_path / "out").exists()
    for history, message in (
        ([["a"], ["a", None]], "the test frame, row 2: history with an empty id of user 'last'"),
        ([["a"], []], "the test frame, row 2: empty history of user 'last'"),
        ([["a"], None], "the test frame, row 2: empty history of user 'last'"),
        ([[["a"]], [["b"]]], "the test frame has history ids of type List"),
        ([{"a": 1}, {"a": 2}], "the test frame has history ids of type Struct"),
        ([[0.5], [1.0]], "the test frame has the history id 0.5"),
    ):
        with pytest.raises(DataError, match=message):
            Dataset.from_frames(**FRAMES | {"test": FRAMES["test"].with_columns(history=pl.Series(history))})


def test_missing_columns_and_files(tmp_path):
    for column in ("user_id", "history", "target"):
        with pytest.raises(DataError, match=f"the test frame has no column '{column}'") as caught:
            Dataset.from_frames(**FRAMES | {"test": FRAMES["test"].drop(column)})
        assert caught.value.cure == "name the columns user_id, history and target"
    for name, missing in (("validation", "test"), ("test", "validation")):
        with pytest.raises(DataError, match=f"{name} queries are given without {missing} queries") as caught:
            Dataset.from_frames(**{key: frame for key, frame in FRAMES.items() if key != missing})
        assert caught.value.cure == f"add --{missing} FILE ({missing}=…)"
    *sources, good = write(tmp_path, items=ITEMS, users=USERS, test=TEST)
    with pytest.raises(DataError, match="no file"):
        prepare("reference", sources, tmp_path / "out", validation=good, test=tmp_path / "absent.tsv")
    with pytest.raises(DataError, match="the validation frame is empty"):
        Dataset.from_frames(**FRAMES | {"validation": FRAMES["validation"].clear()})


def test_bad_rows_can_be_left_out(tmp_path):
    validation = "u\tx a x\tb\nu\ta b\tc\nu\t\tc\nw\tb\ty\nnew\td\ta\n"
    dataset = run(tmp_path, validation=validation, on_bad="skip")
    assert rows(dataset, "validation") == [("u", ["a", "b"], "c"), ("new", ["d"], "a")]
    assert dataset.skipped.rows() == [
        ("empty history of user", "validation.tsv, line 3", "u"),
        ("unknown item", "validation.tsv, line 1", "x"),
        ("unknown item", "validation.tsv, line 4", "y"),
    ]
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", r"no row of validation\.tsv is left", validation="u\tx\tb\n", on_bad="skip")


def test_hash_and_schema_tell_queries_apart(tmp_path):
    frames = {name: FRAMES[name] for name in ("items", "interactions")}
    plain, made = Dataset.from_frames(**frames, min_length=0), Dataset.from_frames(**FRAMES)
    # As before there were given queries, in schema 2, which earlier versions read.
    assert plain.content_hash == "4f930d46b7e92979f2d50f982291fa0f36025db46a3f5e2adabeb9c887ff286e"
    assert (plain.manifest["schema"], made.manifest["schema"]) == (2, 3)
    target = FRAMES["test"].with_columns(target=pl.Series(["d", "a"]))
    users = FRAMES["test"].with_columns(user_id=pl.Series(["u", "last"]))
    exchanged = {"validation": FRAMES["test"], "test": FRAMES["validation"]}
    hashes = {
        Dataset.from_frames(**FRAMES | each).content_hash
        for each in ({"test": target}, {"test": users}, exchanged)
    }
    assert len(hashes | {plain.content_hash, made.content_hash}) == 5
    folder = tmp_path / "d"
    loaded = made.save(folder)
    assert loaded.manifest["schema"] == 3
    assert rows(loaded, "validation") == rows(made, "validation")
    assert rows(loaded.save(folder), "test") == rows(made, "test")  # onto the files it is mapped from
    captioned = loaded.with_captions("seen", pl.Series(["x"] * 4), {"column": "image"})
    assert rows(captioned.save(tmp_path / "captioned"), "test") == rows(made, "test")
    # Queries of an earlier dataset do not stay behind.
    assert plain.save(folder).queries == {}
    assert not list(folder.rglob("queries/*/*"))
    assert Dataset.load(folder).manifest["schema"] == 2


@pytest.mark.parametrize("name", ["users.npy", "offsets.npy", "items.npy"])
def test_damaged_queries_are_refused(tmp_path, name):
    Dataset.from_frames(**FRAMES).save(tmp_path / "d")
    path = tmp_path / "d" / "queries" / "test" / name
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(DataError, match="is damaged"):
        Dataset.load(tmp_path / "d")
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="bytes, as its manifest says"):
        Dataset.load(tmp_path / "d")
    path.write_bytes(whole)
    manifest = tmp_path / "d" / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"validation": 3', '"validation": 4'))
    with pytest.raises(
        DataError, match=r"holds \[4, 4, 4, 3, 3, 2\] items, users, sequences, interactions, queries"
    ):
        Dataset.load(tmp_path / "d")


def test_the_industrial_benchmark(scientific_folder, tmp_path):
    folder = scientific_folder.with_name("industrial")
    if not folder.is_dir():
        pytest.skip(f"the Industrial data is not at {folder}")
    sources, validation, test = (
        [folder / "items.tsv", folder / "train.tsv"],
        folder / "valid.tsv",
        folder / "test.tsv",
    )
    dataset = prepare("reference", sources, tmp_path / "out", validation=validation, test=test)
    assert (dataset.num_items, dataset.num_users, dataset.num_interactions) == (3_686, 3_285, 13_676)
    found = [str(dataset.queries[subset]) for subset in ("validation", "test")]
    assert found == ["4,532 queries of 2,011 users", "4,533 queries of 1,987 users"]
    assert rows(dataset, "test")[1:3] == [("A474", ["168"], "278"), ("A474", ["168", "278"], "719")]
