"""Users who are held out of training, as files and as frames."""

import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.data.prepare import PrepareOptions, prepare
from iisan.errors import DataError

ITEMS = "item_id,title\na,one\nb,two\nc,three\n"
LOG = "user_id,item_id\n" + "".join(f"u{user},{item}\n" for user in range(4) for item in "abc") + "short,a\n"
HELD_OUT = "user_id,subset\nu3,test\nu1,validation\n"


def run(folder, held_out=HELD_OUT, name="held.csv", **options):
    for file, content in (("items.csv", ITEMS), ("log.csv", LOG), (name, held_out)):
        (folder / file).write_text(content)
    sources = [folder / "items.csv", folder / "log.csv"]
    return prepare("table", sources, folder / "out", PrepareOptions(**options), held_out=folder / name)


def test_held_out_users_by_hand(tmp_path):
    dataset = run(tmp_path)
    assert dataset.user_ids.to_list() == ["u0", "u1", "u2", "u3"]
    assert dataset.held_out.to_list() == [None, "validation", None, "test"]
    counts = dataset.manifest["counts"]
    assert counts["held_out"] == {"validation": 1, "test": 1}
    assert [source["name"] for source in dataset.manifest["provenance"]["sources"]][-1] == "held.csv"
    subsets = dataset.split()
    assert (str(subsets), subsets.validation.users.tolist(), subsets.test.users.tolist()) == (
        "users (given)",
        [1],
        [3],
    )
    assert (subsets.train_ends - subsets.train_starts).tolist() == [3, 0, 3, 0]
    # It is the same dataset in any form, and another one than with other users held out.
    assert run(tmp_path, "u3\ttest\nu1\tvalidation\n", "held.tsv").content_hash == dataset.content_hash
    frames = [pl.read_csv(text.encode()) for text in (ITEMS, LOG, HELD_OUT)]
    assert Dataset.from_frames(*frames[:2], held_out=frames[2]).content_hash == dataset.content_hash
    others = Dataset.from_frames(*frames[:2], held_out=frames[2].with_columns(user_id=pl.Series(["u1", "u3"])))
    plain = Dataset.from_frames(*frames[:2])
    assert len({dataset.content_hash, others.content_hash, plain.content_hash}) == 3
    assert (plain.held_out, plain.split().name, plain.split("users").name) == (None, "leave-one-out", "users")
    assert "held_out" not in plain.manifest["counts"]


def test_a_held_out_user_may_be_filtered_away(tmp_path):
    dataset = run(tmp_path, HELD_OUT + "short,test\n")
    assert dataset.manifest["counts"]["held_out"] == {"validation": 1, "test": 1}
    kept = run(tmp_path, HELD_OUT + "short,test\n", min_length=0)
    assert kept.manifest["counts"]["held_out"] == {"validation": 1, "test": 2}
    # With a single interaction it has no query.
    assert kept.split().test.users.tolist() == [3]


def test_their_subsets_survive_another_column(tmp_path):
    dataset = run(tmp_path)
    captioned = dataset.with_captions("caption", pl.Series(["x", "y", "z"]), {"column": "image"})
    saved = captioned.save(tmp_path / "captioned")
    assert saved.held_out.to_list() == dataset.held_out.to_list()
    assert saved.split().name == "users"


@pytest.mark.parametrize(
    ("held_out", "sentence"),
    [
        ("user_id,subset\nu9,test\n", r"held.csv, line 2: unknown user 'u9' \(1 such row\)"),
        (HELD_OUT + "u1,test\n", "held.csv, line 4: repeated user 'u1'"),
        (HELD_OUT + "u0,train\n", "held.csv, line 4: unknown subset 'train'"),
        (HELD_OUT + "u0,\n", "held.csv, line 4: zero-length subset"),
        ("user_id,part\nu1,test\n", "'.*held.csv' has no column 'subset'"),
        ("user_id,subset\n", "held.csv' is empty"),
        ("user_id,subset\nu1,test\n", "held.csv names no validation user who is left after the filters"),
        ("user_id,subset\nu1,validation\nshort,test\n", "names no test user who is left after the filters"),
    ],
)
def test_bad_files_of_users(tmp_path, held_out, sentence):
    with pytest.raises(DataError, match=sentence):
        run(tmp_path, held_out)
    assert not (tmp_path / "out").exists()


def test_bad_rows_can_be_skipped(tmp_path):
    dataset = run(tmp_path, HELD_OUT + "u9,test\nu1,test\nu0,train\n", on_bad="skip")
    assert dataset.manifest["skipped"] == {"unknown user": 1, "repeated user": 1, "unknown subset": 1}
    assert dataset.held_out.to_list() == [None, "validation", None, "test"]
