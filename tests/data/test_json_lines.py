"""JSON lines as people have them: only what is used must be of a kind."""

import gzip
import json

import polars as pl
import pytest

from iisan.data.json_lines import Objects
from iisan.data.prepare import PrepareOptions, prepare
from iisan.errors import DataError

IDS = [f"i{n}" for n in range(6)]
LOG = "user_id,item_id\n" + "".join(f"u{u},i{(u + t) % 6}\n" for u in range(5) for t in range(4))


def run(folder, rows, lines=None, **options):
    """A dataset of items in JSON lines: objects, or ``lines`` as they stand."""
    (folder / "log.csv").write_text(LOG)
    text = "\n".join(lines or map(json.dumps, rows))
    (folder / "items.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    sources = [folder / "items.jsonl", folder / "log.csv"]
    return prepare("table", sources, folder / "out", PrepareOptions(**options))


def items(**columns):
    return [
        {"item_id": item, **{name: values[n] for name, values in columns.items()}} for n, item in enumerate(IDS)
    ]


def read(folder, rows, wanted, rest=True):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return Objects(path, "line", wanted, rest)


def test_lists_of_texts_are_joined_in_titles_and_further_columns(tmp_path):
    titles = [["Red", "shirt"], [], ["", None], "Pan", None, ["One &amp; two", 3]]
    about = [["About"], ["a", "b"], [], "plain", [[]], None]
    about[4] = [None]
    dataset = run(tmp_path, items(title=titles, description=about), columns={"description": "text"})
    assert dataset.items["text"].to_list() == ["Red shirt", None, None, "Pan", None, "One & two 3"]
    assert dataset.items["description"].to_list() == ["About", "a b", None, "plain", None, None]
    assert dataset.manifest["counts"]["missing"] == {"text": 3, "image": 6, "description": 3}


@pytest.mark.parametrize("value", [{"en": "Red shirt"}, [["nested"]], [{"text": "x"}], "\ud800 lone"])
def test_what_is_no_text_is_a_bad_row_with_its_number(tmp_path, value):
    rows = items(title=["a", "b", value, "d", "e", "f"])
    with pytest.raises(DataError, match=r"items\.jsonl, line 3: unusable text '.*' \(1 such row\)"):
        run(tmp_path, rows)


def test_ids_are_not_joined(tmp_path):
    rows = items(title=["x"] * 6)
    rows[1]["item_id"] = ["i1"]
    with pytest.raises(DataError, match=r"line 2: unusable item_id '\[\"i1\"\]'"):
        run(tmp_path, rows)


def test_rows_that_cannot_be_used_are_skipped_and_listed(tmp_path):
    rows = [{"item_id": {"x": 1}, "title": "gone"}, *items(title=["x"] * 6), {"item_id": "new", "title": {}}]
    dataset = run(tmp_path, rows, on_bad="skip")
    assert dataset.items["item_id"].to_list() == IDS
    assert dataset.skipped.rows() == [
        ("unusable item_id", "items.jsonl, line 1", '{"x": 1}'),
        ("unusable text", "items.jsonl, line 8", "{}"),
    ]


MIXED = {
    "list or object": [[], [], [], {"minimum": "4 GB"}, [], []],
    "number or object": [1, {}, 2.5, None, {"a": 1}, 3],
    "boolean or number": [True, 1, False, 2, 0.5, None],
    "list or number": [[1], 1, [], 2, [[]], "x"],
    "nested": [{"a": [1]}, {"a": {"b": 2}}, {"a": "x"}, {}, None, {"a": None}],
    "lists of kinds": [[1, "a"], [{}], [None], [True], [[1]], []],
    "beyond 64 bits": [2**70, 1, 2, 3, 4, 5],
    "lone surrogates": ["\ud800", ["\udfff"], {"\ud800": 1}, "a", "b", "c"],
    "not finite": [float("nan"), float("inf"), -float("inf"), 1, 2, 3],
    "empty objects": [{}] * 6,
    "lists of empty objects": [[{}]] * 6,
    "only null": [None] * 6,
}


@pytest.mark.parametrize("kind", MIXED)
def test_columns_that_are_not_used_stop_nothing(tmp_path, kind):
    dataset = run(tmp_path, items(title=["x"] * 6, more=MIXED[kind]))
    assert dataset.items["text"].to_list() == ["x"] * 6
    assert len(dataset.items["more"]) == 6


def test_further_columns_keep_their_type_where_they_have_one(tmp_path):
    columns = {
        "name": (["a", None, "b"], pl.String, ["a", None, "b"]),
        "price": ([1, 2.5, None], pl.Float64, [1.0, 2.5, None]),
        "count": ([1, 2, None], pl.Int64, [1, 2, None]),
        "new": ([True, False, None], pl.Boolean, [True, False, None]),
        "vector": ([[1, 2.5], [3, 4], None], pl.List(pl.Float64), [[1.0, 2.5], [3.0, 4.0], None]),
        "tags": ([["a"], [], None], pl.List(pl.String), [["a"], [], None]),
        "mixed": (["a", 1, {"b": ["ü"]}], pl.String, ["a", "1", '{"b": ["ü"]}']),
    }
    rows = [{name: values[row] for name, (values, _, _) in columns.items()} for row in range(3)]
    frame = read(tmp_path, rows, {}).frame
    assert frame["line"].to_list() == [1, 2, 3]
    for name, (_, dtype, expected) in columns.items():
        assert (frame[name].dtype, frame[name].to_list()) == (dtype, expected)


def test_ids_and_times_are_strings_whatever_they_look_like(tmp_path):
    rows = [{"id": value} for value in ("007", 7, 7.0, 7.25, True, 2**70, None, float("nan"), float("inf"))]
    found = read(tmp_path, [*rows, {}], {"id": "refuse"}).frame["id"]
    assert found.to_list() == ["007", "7", "7", "7.25", "true", str(2**70), None, None, None, None]


def test_a_number_that_is_none_is_missing_where_it_is_used(tmp_path):
    lines = [json.dumps(row) for row in items(title=["x", float("nan"), "y", float("inf"), "z", None])]
    assert run(tmp_path, None, lines).items["text"].to_list() == ["x", None, "y", None, "z", None]
    lines[2] = '{"item_id": NaN, "title": "y"}'
    with pytest.raises(DataError, match=r"items\.jsonl, line 3: zero-length item_id"):
        run(tmp_path, None, lines)


def test_lines_that_are_no_objects_have_numbers(tmp_path):
    lines = [json.dumps(row) for row in items(title=["x"] * 6)]
    lines = [*lines[:2], "", "[1]", *lines[2:], '{"item_id": ', "7", "\udce9", "[" * 100_000]
    dataset = run(tmp_path, None, lines, on_bad="skip")
    assert dataset.num_items == 6
    assert dataset.skipped.select("reason", "where").rows() == [
        ("not UTF-8", "items.jsonl, line 11"),
        *(("malformed row", f"items.jsonl, line {number}") for number in (4, 9, 10, 12)),
    ]


def test_columns_that_begin_late_and_parts_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("iisan.data.json_lines._AT_ONCE", 4)
    rows = [{"id": n, "x": n} if n % 3 else {"x": n, "late": str(n)} for n in range(11)]
    objects = read(tmp_path, rows, {"id": "refuse"})
    assert objects.frame["id"].to_list() == [None if n % 3 == 0 else str(n) for n in range(11)]
    assert objects.frame["x"].to_list() == list(range(11))
    assert objects.frame["late"].to_list() == [str(n) if n % 3 == 0 else None for n in range(11)]
    assert [*objects.columns] == ["x", "late", "id"]


@pytest.mark.parametrize("nested", [True, False])
def test_a_table_is_no_larger_than_its_file_where_keys_are_data(tmp_path, nested):
    """A column of every key would have 8 million cells here, and 2,000 columns."""
    rows = []
    for n in range(4000):
        data = {f"key {(n * 4 + k) % 2000}": "value" for k in range(4)}
        rows.append({"id": f"i{n}", **({"details": data} if nested else data)})
    objects = read(tmp_path, rows, {"id": "refuse"})
    assert objects.frame.columns == ["line", "id"] + ["details"] * nested
    assert objects.frame.estimated_size() < 3 * (tmp_path / "rows.jsonl").stat().st_size


def test_damaged_gzip_is_one_sentence(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    whole = bytearray(gzip.compress("\n".join(json.dumps({"item_id": f"i{n}"}) for n in range(5000)).encode()))
    whole[len(whole) // 2] ^= 255
    for name in ("items.jsonl.gz", "items.csv.gz"):
        (tmp_path / name).write_bytes(whole)
        with pytest.raises(DataError, match="cannot be read"):
            prepare("table", [tmp_path / name, tmp_path / "log.csv"], tmp_path / "out")
