"""Pictures, dataset, states and run that are moved, lost or replaced: what goes on working, and what stops."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from iisan.data.dataset import Dataset
from iisan.demo.run import CAPTIONER, ENCODERS
from iisan.encoders.captioning import caption
from iisan.errors import ConfigError, DataError, RunError, StoreError
from iisan.recipes import recipe
from iisan.runs.run import Run
from iisan.states.caching import cache
from iisan.states.store import StateStore
from iisan.train.run import train
from pictures import encoded, noise

QUICK = ("training.epochs=1", "training.batch_size=16", "loss.negatives=5", "training.precision=fp32")
TEXT, IMAGE = (str(ENCODERS / name) for name in ("text-tiny", "image-tiny"))


@dataclass
class Project:
    """Folders side by side: ``photos``, ``data``, ``states`` and ``run``."""

    folder: Path

    def __getattr__(self, name):
        return self.folder / name

    def moved(self, name, to):
        to.mkdir(exist_ok=True)
        return Path(shutil.move(self.folder / name, to / name))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """20 items, of which item 3 has no picture, 25 users; states and a run."""
    project = Project(tmp_path_factory.mktemp("made"))
    project.photos.mkdir()
    rng = np.random.default_rng(0)
    for item in {*range(20)} - {3}:
        (project.photos / f"i{item}.png").write_bytes(encoded(Image.fromarray(noise(item, 16, 16))))
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(20)]}).with_columns(
        title="mug " + pl.col("item_id")
    )
    users = np.repeat(np.arange(25), 6)
    taken = [f"i{item}" for item in rng.integers(0, 20, len(users))]
    log = pl.DataFrame(
        {"user_id": [f"u{user}" for user in users], "item_id": taken, "timestamp": range(len(users))}
    )
    dataset = Dataset.from_frames(items, log, images=project.photos).save(project.data)
    cache(dataset, project.states, {"text": TEXT, "image": IMAGE}, precision="fp32")
    train(config(project), project.run)
    return project


def config(project, *changes):
    folders = {"dataset": project.data, "states": project.states}
    return recipe("default").model_copy(update=folders).override((*QUICK, *changes))


@pytest.fixture
def project(made, tmp_path):
    """A copy that knows nothing of where it was made."""
    shutil.copytree(made.folder, tmp_path / "project")
    project = Project(tmp_path / "project")
    for path in (project.data / "dataset.json", project.run / "config.yaml", project.run / "result.json"):
        path.write_text(path.read_text().replace(str(made.folder), str(project.folder)))
    return project


def test_cached_training_needs_no_media(project, made, tmp_path, iisan):
    shutil.rmtree(project.photos)
    result = train(config(project), tmp_path / "run")
    assert result["test"] == json.loads((made.run / "result.json").read_text())["test"]
    models = ["--text", TEXT, "--image", IMAGE, "--precision", "fp32"]
    for command in (
        ("evaluate", project.run),
        ("recommend", project.run, "--user", "u3"),
        ("robustness", project.run, "--modality", "image"),
        ("cache", project.data, "--out", project.states, *models),  # nothing to do
        ("describe", project.data),
    ):
        code, _, error = iisan(*command)
        assert code == 0, (command, error)
    live = config(project, "source=live", f"text.encoder={TEXT}", f"image.encoder={IMAGE}")
    with pytest.raises(DataError, match=r"photos.*cannot be read.*pass --images FOLDER if it moved"):
        train(live, tmp_path / "live")


def test_all_together_moved_are_found(project, tmp_path, iisan):
    project.folder.rename(tmp_path / "elsewhere")
    project.folder = tmp_path / "elsewhere"
    for command in (("evaluate", project.run), ("recommend", project.run, "--user", "u3")):
        code, _, error = iisan(*command)
        assert code == 0, error
    assert Run.load(project.run).config.states == project.states
    assert Dataset.load(project.data).content_bytes("image", 0)


def test_each_moved_on_its_own_is_named_on_the_command_line(project, tmp_path, iisan):
    before = json.loads((project.run / "result.json").read_text())
    data, states, photos, run = (
        project.moved(name, tmp_path / f"{name} \N{GRINNING FACE}") for name in ("data", "states", "photos", "run")
    )
    there = {"--dataset": data, "--states": states}
    given = [part for pair in there.items() for part in pair]
    for command in (("evaluate", run), ("robustness", run, "--modality", "image", "--rates", "0")):
        code, _, error = iisan(*command)
        assert (code, "pass --dataset FOLDER if it moved" in error) == (2, True)
        code, _, error = iisan(*command, "--dataset", data)
        assert (code, "check the path (--states)" in error) == (2, True)
        code, out, error = iisan(*command, *given, "--json")
        assert code == 0, error
    assert json.loads(out)[0]["points"][0]["hr@10"] == before["test"]["hr@10"]
    code, _, error = iisan("recommend", run, "--user", "u3", "--dataset", data)
    assert code == 0, error
    settings = [part for change in QUICK for part in ("--set", change)]
    code, out, error = iisan("train", "default", *given, "--out", run, *settings)
    assert (code, "finished already" in out) == (0, True), error

    live = ["--set", "source=live", "--set", f"text.encoder={TEXT}", "--set", f"image.encoder={IMAGE}"]
    command = ["train", "default", "--dataset", data, *live, *settings, "--out", tmp_path / "live"]
    code, _, error = iisan(*command)
    assert (code, "pass --images FOLDER if it moved" in error) == (2, True)
    code, _, error = iisan(*command, "--images", photos)
    assert code == 0, error
    code, _, error = iisan("robustness", tmp_path / "live", "--modality", "image", "--rates", "0")
    assert code == 0, error
    command = ["caption", data, "--model", ENCODERS / CAPTIONER, "--out", tmp_path / "captioned"]
    assert iisan(*command)[0] == 2
    code, _, error = iisan(*command, "--images", photos)
    assert code == 0, error
    assert Dataset.load(tmp_path / "captioned").image_root == photos
    command = ["cache", data, "--image", IMAGE, "--levels", "all", "--out", tmp_path / "more"]
    assert iisan(*command)[0] == 2
    code, _, error = iisan(*command, "--images", photos)
    assert code == 0, error


def test_an_interrupted_run_goes_on_where_it_was_moved(project, tmp_path):
    whole = train(config(project, "training.epochs=2"), tmp_path / "whole")
    train(config(project, "training.epochs=2"), tmp_path / "part")
    result = tmp_path / "part" / "result.json"
    result.unlink()
    project.folder.rename(tmp_path / "elsewhere")
    project.folder = tmp_path / "elsewhere"
    (tmp_path / "part").rename(project.folder / "part")
    resumed = train(config(project, "training.epochs=2"), project.part)
    assert resumed["test"] == whole["test"]
    assert resumed["folder"] == str(project.part)
    # Other states than those that it was trained on are noticed, wherever they lie.
    shutil.rmtree(project.states)
    cache(
        Dataset.load(project.data), project.states, {"text": TEXT, "image": IMAGE}, dtype="fp32", precision="fp32"
    )
    with pytest.raises(RunError, match="was trained with other states"):
        train(config(project, "training.epochs=2"), project.part)


def test_a_picture_replaced_after_prepare_stops_whoever_decodes_it(project, tmp_path):
    (project.photos / "i5.png").write_bytes(encoded(Image.fromarray(noise(99, 16, 16))))
    dataset = Dataset.load(project.data)
    sentence = "the image of item 'i5' changed since `iisan prepare`.*prepare the dataset again"
    with pytest.raises(DataError, match=sentence):
        cache(dataset, tmp_path / "states", {"image": IMAGE}, precision="fp32")
    with pytest.raises(DataError, match=sentence):
        caption(dataset, tmp_path / "captioned", str(ENCODERS / CAPTIONER))
    live = config(project, "source=live", f"text.encoder={TEXT}", f"image.encoder={IMAGE}")
    with pytest.raises(DataError, match=sentence):
        train(live, tmp_path / "live")
    train(config(project), tmp_path / "cached")  # reads no picture
    again = Dataset.from_frames(dataset.items.drop("image"), dataset.interactions(), images=project.photos)
    assert again.content_hash != dataset.content_hash
    store = cache(again, project.states, {"image": IMAGE}, precision="fp32")["image"]
    assert len(store) == 20  # the picture of before, and that of now
    assert store.folder == StateStore.find(project.states, "image").folder


def test_what_is_nowhere_is_one_sentence(project, tmp_path):
    for name, sentence in (
        ("data", "does not exist.*pass --dataset FOLDER if it moved"),
        ("states", r"no folder '.*states'.*check the path \(--states\)"),
    ):
        moved = project.moved(name, tmp_path / "moved")
        with pytest.raises((ConfigError, StoreError), match=sentence):
            train(config(project, "modalities=[image,text]"), tmp_path / "run")
        shutil.move(moved, project.folder / name)
