"""RecBole's atomic files, parsed here the way RecBole parses them: by pandas, with types from the header."""

import pandas as pd
import polars as pl
import pytest

from iisan.data.atomic_files import write_recbole
from iisan.data.dataset import Dataset
from iisan.data.prepare import prepare
from iisan.errors import DataError

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ['3" pipe', None, "red\tvalve"],
        "price": [1.5, None, 2.0],
        "tags": [["x", "y"], [], None],
    }
)
LOG = pl.DataFrame({"user_id": ["u", "u", "u"], "item_id": ["c", "a", "b"], "timestamp": [30, 10, 20]})


def parsed(path):
    """Columns and types of an atomic file."""
    with path.open() as file:
        names = file.readline()[:-1].split("\t")
    types = dict(name.split(":") for name in names)
    dtypes = {name: float if name.endswith(":float") else str for name in names}
    frame = pd.read_csv(path, delimiter="\t", dtype=dtypes)
    frame.columns = list(types)
    for name, kind in types.items():
        if kind == "token_seq":
            frame[name] = [[part for part in text.split(" ") if part] for text in frame[name].fillna("")]
    return types, frame


def test_files_as_recbole_reads_them(tmp_path):
    inter, item = write_recbole(Dataset.from_frames(ITEMS, LOG), tmp_path / "toy")
    assert (inter.name, item.name) == ("toy.inter", "toy.item")
    types, frame = parsed(inter)
    assert types == {"user_id": "token", "item_id": "token", "timestamp": "float"}
    assert frame.values.tolist() == [["u", "a", 10.0], ["u", "b", 20.0], ["u", "c", 30.0]]
    types, frame = parsed(item)
    assert types == {"item_id": "token", "text": "token_seq", "price": "float", "tags": "token_seq"}
    assert frame["text"].tolist() == [["3'", "pipe"], [], ["red", "valve"]]
    assert frame["price"].tolist()[::2] == [1.5, 2.0]
    assert frame["tags"].tolist() == [["x", "y"], [], []]


def test_there_and_back(tmp_path, iisan):
    dataset = Dataset.from_frames(ITEMS, LOG.drop("timestamp")).save(tmp_path / "data")
    code, printed, _ = iisan("export-data", tmp_path / "data", "--out", tmp_path / "toy")
    assert code == 0
    assert "toy.inter" in printed
    back = prepare("auto", [tmp_path / "toy"], tmp_path / "back", None)
    order = ["c", "a", "b"]
    assert dataset.interactions()["item_id"].to_list() == back.interactions()["item_id"].to_list() == order
    assert back.items["price"].to_list() == [1.5, None, 2.0]
    # The same command writes the files again; another folder's content stays.
    assert iisan("export-data", tmp_path / "data", "--out", tmp_path / "toy")[0] == 0
    code, _, error = iisan("export-data", tmp_path / "data", "--out", tmp_path / "data")
    assert (code, "neither empty nor an earlier export" in error) == (2, True)


def test_ids_that_atomic_files_cannot_hold(tmp_path):
    log = LOG.with_columns(user_id=pl.lit("u\t1"))
    with pytest.raises(DataError, match=r"the user_id 'u\\t1'"):
        write_recbole(Dataset.from_frames(ITEMS, log), tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
