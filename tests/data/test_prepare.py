import gzip
import io
import json
import shutil
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from PIL import Image

from iisan.data.dataset import Dataset
from iisan.data.prepare import PrepareOptions, prepare
from iisan.errors import DataError
from pictures import encoded

ITEMS = 'item_id,title\n007,Red &amp; blue\nb,\nc,"two\nlines, one comma"\n'
INTERACTIONS = "user_id,item_id,timestamp\nu,007,30\nv,b,5\nu,b,10\nv,c,5\nu,c,20\nv,007,5\nu,007,30\nshort,c,1\n"


def lay(folder, **files):
    """Write files named like ``items_csv`` and return their paths."""
    paths = []
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(path)
    return paths


def run(folder, items=ITEMS, interactions=INTERACTIONS, **options):
    sources = lay(folder, items__csv=items, interactions__csv=interactions)
    return prepare("table", sources, folder / "out", PrepareOptions(**options))


def refused(folder, match, **arguments):
    with pytest.raises(DataError, match=match) as caught:
        run(folder, **arguments)
    assert not (folder / "out" / "dataset.json").exists()
    return caught.value


def histories(dataset):
    frame = dataset.interactions().group_by("user_id", maintain_order=True).agg("item_id")
    return dict(frame.iter_rows())


def png(color=(10, 20, 30), size=(3, 3)):
    return encoded(Image.new("RGB", size, color))


def test_csv_by_hand(tmp_path):
    dataset = run(tmp_path)
    assert dataset.items["item_id"].to_list() == ["007", "b", "c"]
    assert dataset.items["text"].to_list() == ["Red & blue", None, "two lines, one comma"]
    assert dataset.user_ids.to_list() == ["u", "v"]
    # Oldest first; equal timestamps and repeated events as in the file.
    assert histories(dataset) == {"u": ["b", "c", "007", "007"], "v": ["b", "c", "007"]}
    assert dataset.sequences.timestamps.tolist() == [10, 20, 30, 30, 5, 5, 5]
    counts = dataset.manifest["counts"]
    assert counts["steps"] == [
        {"step": "read", "users": 3, "items": 3, "interactions": 8},
        {"step": "min_length=3", "users": 2, "items": 3, "interactions": 7},
    ]
    assert counts["missing"] == {"text": 1, "image": 3}
    assert dataset.manifest["skipped"] == {}


def test_filters_of_the_options(tmp_path):
    sources = lay(tmp_path, items__csv=ITEMS, interactions__csv=INTERACTIONS)
    options = PrepareOptions(min_length=0, keep_last=1, items="interacted")
    dataset = prepare("table", sources, tmp_path / "out", options)
    assert histories(dataset) == {"u": ["007"], "v": ["007"], "short": ["c"]}
    assert dataset.items["item_id"].to_list() == ["007", "c"]


def test_k_core_of_users_and_items(tmp_path):
    interactions = "user_id,item_id\n" + "u,007\nu,b\nv,007\nv,b\nv,c\nw,c\n" * 2
    # In 3-core: w goes (2), then c has only 2 left.
    dataset = run(tmp_path, interactions=interactions, k_core=3)
    assert histories(dataset) == {"u": ["007", "b"] * 2, "v": ["007", "b"] * 2}
    assert dataset.manifest["counts"]["steps"][1] == {
        "step": "k_core=3",
        "users": 2,
        "items": 2,
        "interactions": 8,
    }
    assert dataset.num_items == 3


def test_repeats_are_dropped_before_the_other_filters(tmp_path):
    interactions = "user_id,item_id\n" + "u,007\nu,007\nu,b\nu,007\nv,c\nv,c\nv,c\n"
    for repeats, left in (("drop-consecutive", ["007", "b", "007"]), ("drop-all", ["007", "b"])):
        dataset = run(tmp_path, interactions=interactions, repeats=repeats, min_length=2)
        # The other user has one interaction after that, and two are needed.
        assert histories(dataset) == {"u": left}
        assert dataset.manifest["provenance"]["options"]["repeats"] == repeats
        assert dataset.manifest["counts"]["steps"][:2] == [
            {"step": "read", "users": 2, "items": 3, "interactions": 7},
            {"step": f"repeats={repeats}", "users": 2, "items": 3, "interactions": len(left) + 1},
        ]
    dataset = run(tmp_path, interactions=interactions, repeats="keep")
    assert dataset.num_interactions == 7
    assert dataset.manifest["provenance"]["options"]["repeats"] == "keep"


def test_no_user_left(tmp_path):
    error = refused(tmp_path, "no user is left", min_length=9)
    assert "read: 3 users, then min_length=9: 0 users" in error.got
    refused(tmp_path, "no user is left .read: 0 users", interactions="user_id,item_id\nu,x\n", on_bad="skip")


FORMATS = {
    "csv.gz": lambda frame: gzip.compress(frame.write_csv().encode()),
    "tsv": lambda frame: frame.write_csv(separator="\t", quote_style="never").encode(),
    "tsv.gz": lambda frame: gzip.compress(frame.write_csv(separator="\t", quote_style="never").encode()),
    "jsonl": lambda frame: frame.write_ndjson().encode(),
    "ndjson": lambda frame: frame.write_ndjson().encode(),
    "jsonl.gz": lambda frame: gzip.compress(frame.write_ndjson().encode()),
    "parquet": lambda frame: (frame.write_parquet(buffer := io.BytesIO()), buffer.getvalue())[1],
}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_dataset(tmp_path, ending):
    titles = {"item_id": ["007", "b", "c"], "title": ["Red &amp; blue", None, "two lines, one comma"]}
    items = pl.DataFrame(titles)
    interactions = pl.read_csv(io.BytesIO(INTERACTIONS.encode()), schema_overrides={"item_id": pl.String})
    for name, frame in (("items", items), ("interactions", interactions)):
        (tmp_path / f"{name}.{ending}").write_bytes(FORMATS[ending](frame))
    folder = tmp_path / "expected"
    folder.mkdir()
    found = prepare("table", [tmp_path], tmp_path / "out")
    assert found.manifest["content_hash"] == run(folder).manifest["content_hash"]


def test_bom_crlf_and_blank_lines(tmp_path):
    items = b"\xef\xbb\xbf" + ITEMS.replace("\n", "\r\n").encode()
    interactions = "\n" + INTERACTIONS.replace("\n", "\n\n")
    dataset = run(tmp_path, items=items, interactions=interactions)
    assert dataset.items["text"].to_list() == ["Red & blue", None, "two lines, one comma"]
    assert dataset.num_interactions == 7


def test_tsv_quotes_are_ordinary_characters(tmp_path):
    items = 'item_id\ttitle\n007\t"5 inch\nb\t3" pipe\nc\tx\n'
    sources = lay(tmp_path, items__tsv=items, interactions__csv=INTERACTIONS)
    assert prepare("table", sources, tmp_path / "out").items["text"].to_list() == ['"5 inch', '3" pipe', "x"]


def test_parquet_with_datetimes_and_numeric_ids(tmp_path):
    pl.DataFrame({"item_id": [7, 8], "title": ["x", "y"]}).write_parquet(tmp_path / "items.parquet")
    days = [datetime(2020, 1, day) for day in (3, 1, 2)]
    interactions = pl.DataFrame({"user_id": [1.0] * 3, "item_id": [8, 7, 7], "timestamp": days})
    interactions.write_parquet(tmp_path / "interactions.parquet")
    dataset = prepare("table", [tmp_path], tmp_path / "out")
    assert histories(dataset) == {"1": ["7", "7", "8"]}
    assert dataset.manifest["counts"]["timestamps"] == "microseconds"
    day = 86_400_000_000
    assert np.diff(dataset.sequences.timestamps).tolist() == [day, day]


@pytest.mark.parametrize("unit", [1, 2**50])
def test_order_is_by_user_of_first_appearance_then_time_then_file(tmp_path, unit):
    rng = np.random.default_rng(1)
    rows = [(f"u{u}", f"i{i}", (t - 2) * unit) for u, i, t in rng.integers(0, [9, 30, 5], (400, 3)).tolist()]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{number}" for number in range(30)]})
    dataset = Dataset.from_frames(items, frame)
    users = list(dict.fromkeys(row[0] for row in rows))
    assert dataset.user_ids.to_list() == users
    expected = sorted(rows, key=lambda row: (users.index(row[0]), row[2]))
    assert dataset.interactions().rows() == expected


def test_columns_by_option_and_further_columns(tmp_path):
    items = "asin,text,name,brand\n007,long,short,x\nb,long,,y\nc,long,z,\n"
    interactions = INTERACTIONS.replace("user_id", "who").replace("item_id", "asin").replace("timestamp", "t")
    options = {"item_id": "asin", "text": "name", "user_id": "who", "timestamp": "t"}
    dataset = run(tmp_path, items=items, interactions=interactions, **options)
    assert dataset.items.columns == ["item_id", "text", "image", "text_original", "brand"]
    assert dataset.items["text"].to_list() == ["short", None, "z"]
    assert histories(dataset)["u"] == ["b", "c", "007", "007"]


def test_without_timestamps_the_order_is_the_files(tmp_path):
    interactions = "\n".join(line.rsplit(",", 1)[0] for line in INTERACTIONS.splitlines())
    dataset = run(tmp_path, interactions=interactions)
    assert histories(dataset)["u"] == ["007", "b", "c", "007"]
    assert dataset.sequences.timestamps is None
    assert dataset.interactions()["timestamp"].null_count() == 7


BAD_ROWS = {
    "too many fields": (
        {"interactions": INTERACTIONS + "u,b,1,2\n"},
        "interactions.csv, line 10",
        "malformed row",
    ),
    "too few fields": ({"interactions": INTERACTIONS + "u,b\n"}, "interactions.csv, line 10", "malformed row"),
    "after a quoted line break": ({"items": ITEMS + "d\n"}, "items.csv, line 6", "malformed row"),
    "text behind a quoted field": ({"items": ITEMS + 'd,"x" y\n'}, "items.csv, line 6", "malformed row"),
    "quote that is not closed": ({"items": ITEMS + 'd,"x\n'}, "items.csv, line 6", "malformed row"),
    "not UTF-8": (
        {"interactions": INTERACTIONS.encode() + b"u,\xe9,1\n"},
        "interactions.csv, line 10",
        "not UTF-8",
    ),
    "duplicate item": ({"items": ITEMS + "b,again\n"}, "items.csv, line 6", "duplicate item id"),
    "no item id": ({"items": ITEMS + " ,x\n"}, "items.csv, line 6", "zero-length item_id"),
    "no user id": ({"interactions": INTERACTIONS + ",b,1\n"}, "interactions.csv, line 10", "zero-length user_id"),
    "unknown item": ({"interactions": INTERACTIONS + "u,zz,1\n"}, "interactions.csv, line 10", "unknown item"),
    "bad time": (
        {"interactions": INTERACTIONS + "u,b,soon\n"},
        "interactions.csv, line 10",
        "unparsable timestamp",
    ),
    "no time": ({"interactions": INTERACTIONS + "u,b,\n"}, "interactions.csv, line 10", "unparsable timestamp"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_stops_or_is_skipped_counted_and_listed(tmp_path, kind):
    tables, where, reason = BAD_ROWS[kind]
    error = refused(tmp_path, reason, **tables)
    assert error.got.startswith(where)
    assert "(1 such row)" in error.got
    assert "--on-bad skip" in error.cure

    dataset = run(tmp_path, **tables, on_bad="skip")
    folder = tmp_path / "good"
    folder.mkdir()
    assert dataset.manifest["content_hash"] == run(folder).manifest["content_hash"]
    assert dataset.manifest["skipped"] == {reason: 1}
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(row["reason"], row["where"]) for row in listed] == [(reason, where)]
    assert dataset.skipped.rows() == [tuple(listed[0].values())]


def test_all_bad_rows_are_counted_and_lines_stay_true_after_skipped_ones(tmp_path):
    interactions = INTERACTIONS + "u,b,1,2\nx\nu,zz,7\nu,b,2,2,2\nu,yy,7\n"
    error = refused(tmp_path, "malformed row 'u,b,1,2' \\(3 such rows\\)", interactions=interactions)
    assert error.expected == "3 fields (user_id, item_id, timestamp)"
    dataset = run(tmp_path, interactions=interactions, on_bad="skip")
    assert dataset.manifest["skipped"] == {"malformed row": 3, "unknown item": 2}
    assert dataset.skipped["where"].to_list()[3:] == ["interactions.csv, line 12", "interactions.csv, line 14"]


def test_quotes_inside_unquoted_fields_are_ordinary_characters(tmp_path):
    titles = ['12" ruler', "x", "y, z", 'two\nlines of 3"', '5" clamp', '6" by 6"', "w"]
    cells = ['12" ruler', "x", '"y, z"', '"two\nlines of 3"""', '5" clamp', '6" by 6"', "w"]
    rows = "".join(f"B{number},{cell}\n" for number, cell in enumerate(cells))
    interactions = "user_id,item_id\nu,B0\nu,B4\nu,B6\n"
    dataset = run(tmp_path, items="item_id,title\n" + rows, interactions=interactions)
    assert dataset.items["text"].to_list() == [title.replace("\n", " ") for title in titles]


def test_a_quote_that_is_not_closed_is_counted_in_lines(tmp_path):
    items = ITEMS + 'd,"x\ne,y\nf,"z"\ng,w\n'
    error = refused(tmp_path, "line 6: malformed row 'd,\"x' .3 such rows", items=items)
    assert "--no-quotes" in error.cure
    dataset = run(tmp_path, items=items, on_bad="skip")
    assert dataset.items["item_id"].to_list() == ["007", "b", "c", "g"]
    assert dataset.skipped["where"].to_list() == [f"items.csv, line {number}" for number in (6, 7, 8)]


def test_quoted_fields_may_be_long(tmp_path):
    text = "x" * 200_000
    assert run(tmp_path, items=ITEMS + f'd,"{text}"\n').items["text"][3] == text


def test_damage_is_shown_without_unprintable_characters(tmp_path):
    error = refused(tmp_path, "malformed row", items=ITEMS + "d\0,\x1b[1m,\x85\n")
    assert "'d\\x00,\\x1b[1m,\\x85'" in error.got


@pytest.mark.parametrize("rows", [3, 20_000])
def test_damaged_headers(tmp_path, rows):
    refused(tmp_path, "a stray quote in its header", items='item_id,"title\n' + "B1,a ruler\n" * rows)
    refused(tmp_path, "ends its lines with CR alone", items="item_id,title\r" + "B1,a ruler\r" * rows)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"columns": {"title": "text"}}, "one column 'title', asked for as 'text' and as 'title'"),
        ({"columns": {"title": "text"}, "text": "title"}, "'title', asked for as 'text' and as 'title'"),
        ({"text": "item_id"}, "'item_id', asked for as 'item_id' and as 'text'"),
        ({"timestamp": "item_id"}, "'item_id', asked for as 'item_id' and as 'timestamp'"),
        ({"columns": {"item_id": "text"}}, "'item_id', asked for as 'item_id' and as 'item_id'"),
    ],
)
def test_one_column_is_not_used_twice(tmp_path, options, match):
    error = refused(tmp_path, match, **options)
    assert "name another column with --" in error.cure


def test_a_column_that_is_asked_for_is_no_default(tmp_path):
    items = "title,text,item_id\nx,A,007\ny,,b\n,C,c\n"
    dataset = run(tmp_path, items=items, columns={"text": "text", "title": "text"})
    assert dataset.items.select("text", "title").rows() == [("A", "x"), (None, "y"), ("C", None)]
    titles = run(
        tmp_path,
        items="title\n007\nb\nc\n",
        interactions=INTERACTIONS.replace("item_id", "title"),
        item_id="title",
    )
    assert titles.items.select("item_id", "text").rows() == [("007", None), ("b", None), ("c", None)]


@pytest.mark.parametrize("bad", ['{"user_id": ', "[1, 2]", "nothing"])
def test_malformed_json_lines(tmp_path, bad):
    rows = [dict(zip(("user_id", "item_id"), pair, strict=True)) for pair in [("u", "b"), ("u", "c"), ("u", "b")]]
    lines = [json.dumps(row) for row in rows]
    text = "\n".join([lines[0], "", bad, *lines[1:]])
    sources = lay(tmp_path, items__csv=ITEMS, interactions__jsonl=text)
    with pytest.raises(DataError, match=r"interactions\.jsonl, line 3: malformed row"):
        prepare("table", sources, tmp_path / "out")
    dataset = prepare("table", sources, tmp_path / "out", PrepareOptions(on_bad="skip"))
    assert histories(dataset) == {"u": ["b", "c", "b"]}


def test_json_lines_whose_times_begin_late(tmp_path):
    rows = [{"user_id": f"u{number}", "item_id": "b"} for number in range(10_050)]
    late = [{"user_id": "u", "item_id": item, "timestamp": time} for item, time in (("c", 2), ("b", 1))]
    text = "\n".join(json.dumps(row) for row in rows + late)
    sources = lay(tmp_path, items__csv=ITEMS, interactions__jsonl=text)
    dataset = prepare("table", sources, tmp_path / "out", PrepareOptions(min_length=0, on_bad="skip"))
    assert dataset.manifest["skipped"] == {"unparsable timestamp": 10_050}
    assert histories(dataset) == {"u": ["b", "c"]}


@pytest.mark.parametrize("damage", [b"", b"u\xe9\n"])
def test_json_lines_and_quoted_headers_behind_a_byte_order_mark(tmp_path, damage):
    mark = b"\xef\xbb\xbf"
    rows = [{"user_id": "u", "item_id": item} for item in ("b", "c", "b")]
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    items = ITEMS.replace("item_id,title", '"item_id","title"')
    sources = lay(tmp_path, items__csv=mark + items.encode(), interactions__jsonl=mark + text.encode() + damage)
    dataset = prepare("table", sources, tmp_path / "out", PrepareOptions(on_bad="skip"))
    assert histories(dataset) == {"u": ["b", "c", "b"]}
    assert dataset.num_items == 3


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        prepare("table", [tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(DataError, match="no such file; expected exactly one file items"):
        prepare("table", [tmp_path], tmp_path / "out")
    items, interactions = lay(tmp_path, items__csv=ITEMS, interactions__csv=INTERACTIONS)
    with pytest.raises(DataError, match="no file"):
        prepare("table", [items, tmp_path / "x.csv"], tmp_path / "out")
    with pytest.raises(DataError, match="3 sources"):
        prepare("table", [items, items, items], tmp_path / "out")
    with pytest.raises(DataError, match="unknown extension"):
        prepare("table", [items, *lay(tmp_path, log__txt="x")], tmp_path / "out")
    with pytest.raises(DataError, match="unknown format 'amazon'"):
        prepare("amazon", [items, interactions], tmp_path / "out")
    lay(tmp_path, items__tsv=ITEMS)
    with pytest.raises(DataError, match=r"holds items\.csv, items\.tsv"):
        prepare("table", [tmp_path], tmp_path / "out")


@pytest.mark.parametrize("content", ["", "user_id,item_id\n", "\n\n"])
def test_empty_files(tmp_path, content):
    refused(tmp_path, "is empty", interactions=content)


def test_missing_column_names_those_that_are_there(tmp_path):
    error = refused(
        tmp_path, "no column 'user_id', only 'userid', 'item_id'", interactions="userid,item_id\nu,b\n"
    )
    assert "did you mean 'userid'?" in error.cure
    assert "--user-id" in error.cure
    refused(tmp_path, "no column 'when'", timestamp="when")
    refused(tmp_path, "two columns of one name", items="item_id,title,title\na,b,c\n")


@pytest.mark.parametrize("ending", ["csv.gz", "parquet", "jsonl.gz"])
def test_truncated_files(tmp_path, ending):
    frame = pl.DataFrame({"item_id": [str(number) for number in range(5000)]})
    whole = FORMATS[ending](frame)
    path = tmp_path / f"items.{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        prepare("table", [path, *lay(tmp_path, interactions__csv=INTERACTIONS)], tmp_path / "out")


def test_images_by_file_name(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    lay(images, **{"007__png": png(), "other__png": png()})
    dataset = run(tmp_path, images=images)
    assert dataset.items["image"].to_list() == ["007.png", None, None]
    assert dataset.content_bytes("image", 0) == png()
    assert dataset.manifest["counts"]["missing"]["image"] == 2
    with pytest.raises(DataError, match="item 'b' has no image"):
        dataset.content_bytes("image", 1)
    (images / "007.png").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        dataset.content_bytes("image", 0)
    refused_folder = tmp_path / "second"
    refused_folder.mkdir()
    refused(refused_folder, "no folder", images=tmp_path / "nowhere")


def test_images_by_column_of_paths(tmp_path):
    lay(tmp_path, a__png=png())
    items = "item_id,image\n007,a.png\nb,\nc,./a.png\n"
    dataset = run(tmp_path, items=items)
    assert dataset.items["image"].to_list() == ["a.png", None, "./a.png"]
    assert dataset.content_bytes("image", 2) == png()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "a.png").rename(elsewhere / "a.png")
    with pytest.raises(DataError, match=r"a\.png' cannot be read.*pass --images FOLDER"):
        dataset.content_bytes("image", 2)
    assert Dataset.load(tmp_path / "out", image_root=elsewhere).content_bytes("image", 0) == png()
    # The hash is about contents, not about where the folder lies.
    assert (
        run(tmp_path, items=items, images=elsewhere).manifest["content_hash"] == dataset.manifest["content_hash"]
    )
    lay(elsewhere, a__png=png((0, 0, 0)))
    with pytest.raises(DataError, match="the image of item '007' changed since `iisan prepare`"):
        Dataset.load(tmp_path / "out", image_root=elsewhere).content_bytes("image", 0)


def test_media_are_found_where_they_moved_with_the_dataset(tmp_path):
    here, there = tmp_path / "here", tmp_path / "deep" / "there"
    here.mkdir()
    lay(here, a__png=png())
    run(here, items="item_id,image\n007,a.png\nb,\nc,\n")
    shutil.copytree(here, there)
    assert Dataset.load(there / "out").image_root == here  # as long as they are where they were
    shutil.rmtree(here)
    assert Dataset.load(there / "out").image_root == there


def test_images_by_column_of_bytes(tmp_path):
    items = pl.DataFrame({"item_id": ["007", "b", "c"], "image": [png(), None, b""]})
    items.write_parquet(tmp_path / "items.parquet")
    sources = [tmp_path / "items.parquet", *lay(tmp_path, interactions__csv=INTERACTIONS)]
    dataset = prepare("table", sources, tmp_path / "out")
    assert dataset.items["image"].is_null().to_list() == [False, True, True]
    assert dataset.content_bytes("image", 0) == png()
    assert dataset.image_root is None


def test_images_in_the_layout_of_hugging_face(tmp_path):
    pictures = [{"bytes": png(), "path": "a.png"}, None, {"bytes": None, "path": None}]
    items = pl.DataFrame({"item_id": ["007", "b", "c"], "image": pictures})
    interactions = pl.read_csv(io.StringIO(INTERACTIONS))
    dataset = Dataset.from_frames(items, interactions).save(tmp_path / "out")
    assert dataset.items["image"].to_list() == [png(), None, None]
    pictures[1] = {"bytes": None, "path": "b.png"}
    with pytest.raises(DataError, match="'image' of type Struct"):
        Dataset.from_frames(items.with_columns(image=pl.Series(pictures)), interactions)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("path", ["../a.png", "/etc/hosts"])
def test_image_paths_that_lead_out_are_refused(tmp_path, path, check):
    (tmp_path / "images").mkdir()
    lay(tmp_path, a__png=png())
    options = {"images": tmp_path / "images", "on_bad": "skip", "check_images": check}
    refused(tmp_path, "leads out", items=f"item_id,image\n007,{path}\nb,\nc,\n", **options)


def test_bad_images_stop_or_become_missing(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    lay(images, **{"007__png": png(size=(99, 99))[:100], "b__jpg": b"<html>", "c__png": png()})
    error = refused(tmp_path, "bad image", images=images)
    assert error.got.startswith("item '007'")
    assert "2 such rows" in error.got
    dataset = run(tmp_path, images=images, on_bad="skip")
    assert dataset.items["image"].to_list() == [None, None, "c.png"]
    assert dataset.manifest["skipped"] == {"bad image": 2}
    unchecked = run(tmp_path, images=images, check_images=False)
    assert unchecked.items["image"].null_count() == 0


def test_an_image_file_that_is_gone_is_a_bad_image(tmp_path):
    refused(tmp_path, "gone.png' cannot be read", items="item_id,image\n007,gone.png\nb,\nc,\n")


def test_writing_over_an_earlier_dataset_but_nothing_else(tmp_path):
    first = run(tmp_path)
    second = run(tmp_path, min_length=0)
    assert (first.num_users, second.num_users) == (2, 3)
    assert Dataset.load(tmp_path / "out").num_users == 3
    other = tmp_path / "photos"
    other.mkdir()
    lay(other, items__parquet=b"mine")
    with pytest.raises(DataError, match="empty that folder"):
        prepare("table", [tmp_path], other)
    assert (other / "items.parquet").read_bytes() == b"mine"


def test_reference_format_by_hand(tmp_path):
    items = 'a\tA &amp; "B\nb\tB\nunused\tC\n'
    users = "v\tb b a b a\nu\ta b a b a b\nshort\ta b\n"
    lay(tmp_path, items__tsv=items, users__tsv=users)
    dataset = prepare("reference", [tmp_path], tmp_path / "out", PrepareOptions(keep_last=3))
    assert histories(dataset) == {"v": ["a", "b", "a"], "u": ["b", "a", "b"]}
    assert dataset.items["text"].to_list() == ['A & "B', "B"]
    assert dataset.sequences.timestamps is None
    everything = PrepareOptions(keep_last=0, min_length=0, items="all")
    dataset = prepare("reference", [tmp_path / "items.tsv", tmp_path / "users.tsv"], tmp_path / "out", everything)
    assert (dataset.num_items, dataset.num_users, dataset.num_interactions) == (3, 3, 13)


def test_reference_bad_rows(tmp_path):
    lay(tmp_path, items__tsv="a\tA\nb\tB\n", users__tsv="u\ta b a b a\nv\t\nw\ta zz b a b b\n")
    with pytest.raises(DataError, match=r"users\.tsv, line 2: zero-length item_id"):
        prepare("reference", [tmp_path], tmp_path / "out")
    dataset = prepare("reference", [tmp_path], tmp_path / "out", PrepareOptions(on_bad="skip"))
    assert dataset.manifest["skipped"] == {"zero-length item_id": 1, "unknown item": 1}
    assert dataset.num_users == 2


def test_scientific_as_published(scientific_folder, scientific, tmp_path):
    dataset = prepare("reference", [scientific_folder], tmp_path / "out")
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions) == (12_076, 20_314, 81_711)
    assert dataset.items["item_id"].to_list() == scientific.item_ids.to_list()
    assert dataset.user_ids.to_list() == scientific.user_ids.to_list()
    np.testing.assert_array_equal(dataset.sequences.items, scientific.sequences.items)
    np.testing.assert_array_equal(dataset.sequences.offsets, scientific.sequences.offsets)
    assert dataset.items["text"].null_count() == 0
    assert not dataset.items["text"].str.contains("&amp;").all()


def test_times_may_be_in_a_column_datetime():
    items = pl.DataFrame({"item_id": ["a", "b", "c"]})
    log = pl.DataFrame(
        {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "datetime": ["2024-03-01", "2024-01-01", "2024-02-01"]}
    )
    assert Dataset.from_frames(items, log).interactions()["item_id"].to_list() == ["b", "c", "a"]
