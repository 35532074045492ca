"""A dataset, states and a run as version 0.1 wrote them: opened, given their keys once, evaluated."""

import hashlib
import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from iisan.data import dataset as datasets
from iisan.data.dataset import Dataset
from iisan.demo.run import ENCODERS
from iisan.encoders.encoder import Encoder
from iisan.errors import DataError
from iisan.recipes import recipe
from iisan.states.store import StateStore
from iisan.train.run import train

FIXTURE = Path(__file__).parent / "fixtures" / "schema-1"
MODELS = ["--text", ENCODERS / "text-tiny", "--image", ENCODERS / "image-tiny"]
OLD_HASH = json.loads((FIXTURE / "dataset" / "dataset.json").read_text())["content_hash"]


@pytest.fixture
def old(tmp_path):
    """A copy, whose recorded folders are certainly not on this machine."""
    copy = Path(shutil.copytree(FIXTURE, tmp_path / "old"))
    for path in (copy / "dataset" / "dataset.json", copy / "run" / "config.yaml"):
        path.write_text(path.read_text().replace("/data/", "/nowhere/data/"))
    return copy


def manifest(old):
    return json.loads((old / "dataset" / "dataset.json").read_text())


def test_keys_are_made_once_while_the_media_are_there(old):
    before = {path: path.read_bytes() for path in (old / "dataset").rglob("*") if path.is_file()}
    assert Dataset.load(old / "dataset", old / "photos").text(0) == "Red mug"
    assert {path: path.read_bytes() for path in before} == before  # opening alone writes nothing

    dataset = Dataset.load(old / "dataset", old / "photos")
    pictures = [path and (old / "photos" / path).read_bytes() for path in dataset.items["image"]]
    digests = [picture and hashlib.sha256(picture).hexdigest() for picture in pictures]
    assert dataset.keys["image"].to_list() == digests
    assert (dataset.manifest["schema"], dataset.manifest["previous_hash"]) == (2, OLD_HASH)
    assert dataset.content_hash != OLD_HASH
    shutil.rmtree(old / "photos")
    again = Dataset.load(old / "dataset")
    assert again.keys.equals(dataset.keys)
    assert again.manifest == dataset.manifest
    parts = again.items, again.keys, again.users, again.sequences
    assert again.content_hash == datasets.content_hash(*parts, queries={})


def test_without_its_media_it_opens_and_says_what_the_keys_need(old, iisan):
    shutil.move(old / "photos", old / "elsewhere")
    dataset = Dataset.load(old / "dataset")
    assert (dataset.num_items, dataset.num_users) == (24, 30)
    with pytest.raises(DataError, match=r"has no content keys yet, and of item 'i00'.*--images FOLDER"):
        _ = dataset.keys
    assert manifest(old)["schema"] == 1
    assert iisan("describe", old / "dataset")[0] == 0
    once = ["--dataset", old / "dataset", "--set", "training.epochs=1"]
    assert iisan("train", "ids", *once, "--out", old / "ids")[0] == 0
    command = ["train", "default", *once, "--states", old / "states", "--out", old / "new"]
    code, _, error = iisan(*command)
    assert (code, error.count("\n"), "pass --images FOLDER" in error) == (2, 1, True)
    code, _, error = iisan(*command, "--images", old / "elsewhere")
    assert code == 0, error
    assert manifest(old)["previous_hash"] == OLD_HASH
    # A run from before the dataset had its keys is still one on the same data.
    assert json.loads((old / "ids" / "result.json").read_text())["data"] == OLD_HASH
    config = recipe("ids").override([f"dataset={old / 'dataset'}", "training.epochs=1"])
    said = []
    train(config, old / "ids", say=said.append)
    assert "finished already" in said[0]


def test_one_picture_gone_gives_no_keys_at_all(old):
    (old / "photos" / "i13.png").unlink()
    with pytest.raises(DataError, match=r"item 'i13'.*i13\.png' cannot be read"):
        _ = Dataset.load(old / "dataset", old / "photos").keys
    assert sorted(path.name for path in (old / "dataset").iterdir()) == sorted(
        path.name for path in (FIXTURE / "dataset").iterdir()
    )


def test_a_folder_that_cannot_be_written_is_read_every_time(old, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(datasets, "_write_parquet", refuse)
    dataset = Dataset.load(old / "dataset", old / "photos")
    with pytest.warns(UserWarning, match=r"Read-only file system.*reads all of its media"):
        keys = dataset.keys
    monkeypatch.undo()
    assert dataset.content_hash == OLD_HASH  # as for everyone else who opens that folder
    assert manifest(old)["schema"] == 1
    assert Dataset.load(old / "dataset", old / "photos").keys.equals(keys)


def test_its_stores_are_complete(old, iisan, monkeypatch):
    monkeypatch.setattr(Encoder, "forward", None)
    before = {path: path.stat().st_mtime_ns for path in (old / "states").rglob("shard-*")}
    code, out, error = iisan(
        "cache", old / "dataset", *MODELS, "--out", old / "states", "--images", old / "photos", "--json"
    )
    assert code == 0, error
    assert {name: facts["rows"] for name, facts in json.loads(out).items()} == {"image": 23, "text": 23}
    assert {path: path.stat().st_mtime_ns for path in (old / "states").rglob("shard-*")} == before
    shutil.rmtree(old / "photos")
    dataset = Dataset.load(old / "dataset")
    for modality in ("text", "image"):
        store = StateStore.find(old / "states", modality, {"encoder": str(ENCODERS / f"{modality}-tiny")})
        assert (store.rows_for(dataset) >= 0).tolist() == dataset.items[modality].is_not_null().to_list()


def test_its_run_is_evaluated_and_recommends(old, iisan):
    folders = ["--dataset", old / "dataset", "--states", old / "states"]
    code, out, error = iisan(
        "evaluate", old / "run", *folders, "--no-baselines", "--out", old / "ranks.parquet", "--json"
    )
    assert code == 0, error
    ours, theirs = pl.read_parquet(old / "ranks.parquet"), pl.read_parquet(FIXTURE / "run" / "per_user.parquet")
    # Today's policy leaves out users whose target is in their history; to the others it is that of the run.
    both = theirs.join(ours.drop_nulls("above"), on="user_id", suffix="_now")
    assert both["above_now"].to_list() == both["above"].to_list()
    assert both["ties_now"].to_list() == both["ties"].to_list()
    assert len(both) >= len(theirs) - theirs["seen"].sum() > 0
    recorded = json.loads((FIXTURE / "run" / "result.json").read_text())["test"]
    (found,) = json.loads(out).values()
    if len(both) == len(theirs):
        assert found["hr@10"] == pytest.approx(recorded["hr@10"])
    code, out, error = iisan("recommend", old / "run", "--user", "u00", "--dataset", old / "dataset", "--json")
    assert (code, len(json.loads(out))) == (0, 10), error
    # The frozen states among the baselines need the keys, and so, once, the media.
    Dataset.load(old / "dataset", old / "photos").keys  # noqa: B018
    code, out, error = iisan("evaluate", old / "run", *folders, "--json")
    assert (code, len(json.loads(out))) == (0, 7), error


def test_its_run_is_continued(old, iisan):
    folders = ["--dataset", old / "dataset", "--states", old / "states", "--images", old / "photos"]
    still = ("training.epochs=1", "optimizer.learning_rate=1e-9", "optimizer.san_learning_rate=1e-9")
    settings = [part for setting in still for part in ("--set", setting)]
    command = ["train", "--from", old / "run", *folders, *settings, "--out", old / "continued", "--json"]
    code, out, error = iisan(*command)
    assert code == 0, error
    assert "which knows 24 of 24 items" in error
    # With next to no learning the lists are those of the old run: every one of its weights has been found.
    assert json.loads(out)["lists"] == {"overlap@10": 1.0, "users": 30}
