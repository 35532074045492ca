"""Which layout a folder has, and what is said about folders that have none, or two."""

from pathlib import Path

import pytest

from iisan.data.dataset import Dataset
from iisan.data.prepare import prepare
from iisan.data.readers import READERS
from iisan.errors import DataError
from source_files import LOG, rows
from sources import amazon_2018, amazon_2023, huggingface, movielens_1m, movielens_csv, recbole


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    huggingface(tmp_path / "copy")
    asked = []

    def download(name, **options):
        asked.append((name, options["repo_type"], options["revision"], options["allow_patterns"]))
        return str(tmp_path / "copy")

    monkeypatch.setattr("iisan.data.readers.huggingface.snapshot_download", download)
    dataset = prepare("huggingface", [Path("owner/name@v1")], tmp_path / "data")
    assert asked == [("owner/name", "dataset", "v1", "*.parquet")]
    assert (dataset.num_items, dataset.num_interactions) == (8, len(LOG))
    assert dataset.manifest["counts"]["missing"] == {"text": 0, "image": 0}
    with pytest.raises(DataError, match=r"no folder '.*/nowhere/at/all'"):
        prepare("huggingface", [tmp_path / "nowhere" / "at" / "all"], tmp_path / "data")


def test_what_auto_refuses(tmp_path):
    with pytest.raises(DataError, match="none of the layouts") as caught:
        prepare("auto", [tmp_path], tmp_path / "out")
    assert all(layout.title in caught.value.expected for reader in READERS.values() for layout in reader.layouts)
    both = tmp_path / "both"
    movielens_csv(both)
    movielens_1m(both)
    with pytest.raises(DataError, match=r"layouts of movielens .*ratings\.dat.*movielens .*ratings\.csv"):
        prepare("auto", [both], tmp_path / "out")
    recbole(both)
    with pytest.raises(DataError, match="or name the format"):
        prepare("auto", [both], tmp_path / "out")
    with pytest.raises(DataError, match="unknown format 'amazon'"):
        prepare("amazon", [both], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_named_files(tmp_path):
    movielens_1m(tmp_path)
    files = [tmp_path / "movies.dat", tmp_path / "ratings.dat"]
    assert prepare("movielens", files, tmp_path / "one").num_items == 8
    assert prepare("auto", files, tmp_path / "two").manifest["provenance"]["layout"] == "MovieLens 1M and 10M"
    with pytest.raises(DataError, match="2 files have none of the layouts of 'movielens'"):
        prepare("movielens", files[::-1], tmp_path / "out")
    with pytest.raises(DataError, match=r"a single file '.*movies\.dat'; expected H&M"):
        prepare("hm", files[:1], tmp_path / "out")


def test_files_of_another_source(tmp_path):
    amazon_2018(tmp_path)
    amazon_2023(tmp_path)
    mixed = [tmp_path / "meta_Tools.jsonl.gz", tmp_path / "Industrial.json.gz"]
    with pytest.raises(DataError, match=r"meta_Tools.jsonl.gz' lacks the field asin"):
        prepare("amazon-2018", mixed, tmp_path / "out")
    swapped = [tmp_path / "Industrial.json.gz", tmp_path / "meta_Industrial.json.gz"]
    with pytest.raises(DataError, match="lacks the field reviewerID"):
        prepare("amazon-2018", swapped, tmp_path / "out")
    rows(tmp_path / "Industrial_5.json.gz", [{"reviewerID": "u", "asin": "1"}])
    with pytest.raises(
        DataError, match=r"holds Industrial\.json\.gz, Industrial_5\.json\.gz.*exactly one file rev"
    ):
        prepare("amazon-2018", [tmp_path], tmp_path / "out")
    assert prepare("amazon-2018", swapped[::-1], tmp_path / "out").num_users == 6


def test_a_truncated_file(tmp_path):
    amazon_2023(tmp_path)
    path = tmp_path / "Tools.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"Tools\.jsonl\.gz' cannot be read .*a whole table"):
        prepare("amazon-2023", [tmp_path], tmp_path / "out")
    path.write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"Tools\.jsonl\.gz' cannot be read"):
        prepare("auto", [tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_summary(iisan, tmp_path):
    amazon_2018(tmp_path / "raw")
    code, printed, _ = iisan("prepare", "auto", tmp_path / "raw", "--out", tmp_path / "data")
    assert code == 0
    assert "read as amazon-2018 (Amazon reviews of 2018): meta_Industrial.json.gz, Industrial.json.gz" in printed
    assert "left out: 1 × unknown item" in printed
    assert "all weights count" in printed
    assert Dataset.load(tmp_path / "data").num_items == 8
    movielens_1m(tmp_path / "ml")
    code, printed, _ = iisan("prepare", "auto", tmp_path / "ml", "--out", tmp_path / "ml-data", "--min-weight", 5)
    assert code == 0
    assert f"ratings.dat; pictures in {tmp_path / 'ml' / 'posters'}" in printed
    assert "weights of 5 or more count (column rating); interactions left out: 0" in printed


def test_a_blank_header_of_an_exported_index(tmp_path):
    (tmp_path / "items.csv").write_text(",item_id,title\n0,a,red\n1,b,blue\n")
    (tmp_path / "interactions.csv").write_text(
        ",user_id,item_id\n" + "".join(f"{n},u,{'ab'[n % 2]}\n" for n in range(4))
    )
    dataset = prepare("auto", [tmp_path], tmp_path / "out")
    assert dataset.manifest["provenance"]["format"] == "table"
    assert dataset.items["text"].to_list() == ["red", "blue"]
    movielens_csv(tmp_path / "ml")
    for path in (tmp_path / "ml").glob("*.csv"):
        path.write_text("".join(f"{n or ''},{line}\n" for n, line in enumerate(path.read_text().splitlines())))
    assert prepare("auto", [tmp_path / "ml"], tmp_path / "again").num_interactions == len(LOG)


def test_the_published_tables_are_told_from_tables_of_ones_own(tmp_path):
    (tmp_path / "items.tsv").write_text("a\tred\nb\tblue\n")
    (tmp_path / "users.tsv").write_text("u\ta b a b a\n")
    assert prepare("auto", [tmp_path], tmp_path / "out").manifest["provenance"]["format"] == "reference"
    (tmp_path / "interactions.tsv").write_text("user_id\titem_id\nu\ta\n")
    with pytest.raises(DataError, match=r"layouts of table .*items\.tsv, interactions\.tsv.* and of reference"):
        prepare("auto", [tmp_path], tmp_path / "out")
