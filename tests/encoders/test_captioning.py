"""A dataset with captions: what is written, once for equal pictures, resumed, and refused."""

import io
import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from iisan.data.dataset import Dataset
from iisan.data.videos import sample_frames
from iisan.demo.run import CAPTIONER, ENCODERS
from iisan.encoders import captioning
from iisan.encoders.captioning import JOURNAL, caption
from iisan.errors import ConfigError, DataError
from pictures import encoded, moving

MODEL = str(ENCODERS / CAPTIONER)


def encode(shade, form="PNG", **options):
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 32) ** 2 + (columns - 32) ** 2 < shade * 8)[..., None]
    pixels = np.where(disc, (shade, 255 - shade, 40), 230).astype(np.uint8)
    return encoded(Image.fromarray(pixels), form, **options)


A, B, C = (encode(shade) for shade in (20, 60, 110))
PICTURES = [A, None, B, A, C]


@pytest.fixture
def dataset(tmp_path):
    return make(PICTURES).save(tmp_path / "dataset")


def make(pictures):
    items = {"item_id": list("abcdef"[: len(pictures)]), "title": "red pump", "cover": pictures}
    interactions = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})
    return Dataset.from_frames(pl.DataFrame(items), interactions, columns={"cover": "image"})


class Words:
    """Stands in for a model: a picture's caption is its size and the colour of its middle."""

    seen: list[int]
    stop_after: int | None = None

    def __init__(self, name, **options):
        # "auto" is what a new folder is measured to be.
        precision = "bf16" if options["precision"] == "auto" else options["precision"]
        self.settings = {"model": name, "max_tokens": options["max_tokens"], "precision": precision}

    def __call__(self, pictures):
        if self.stop_after is not None and sum(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(len(pictures))
        return [word(picture) for picture in pictures]


def word(picture):
    return "colour " + " ".join(map(str, picture.getpixel((32, 32))))


def word_of(content):
    return word(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(captioning, "Captioner", Words)
    Words.seen, Words.stop_after = [], None
    return Words


def test_a_column_of_captions_with_its_origin(dataset, tmp_path, words):
    made = caption(dataset, tmp_path / "out", "m", column="cover", name="seen", batch_size=2)
    assert made.folder == tmp_path / "out"
    assert made.items["seen"].to_list() == [word_of(A), None, word_of(B), word_of(A), word_of(C)]
    assert words.seen == [2, 1]  # the picture that two items share is described once
    assert made.items.drop("seen").equals(dataset.items)
    assert made.kinds == dataset.kinds | {"seen": "text"}
    assert made.captions == {"seen": "cover"}
    assert made.manifest["provenance"]["captions"]["seen"]["model"] == "m"
    assert made.manifest["counts"]["missing"]["seen"] == 1
    assert made.manifest["content_hash"] != dataset.manifest["content_hash"]
    assert made.interactions().equals(dataset.interactions())
    assert made.content_bytes("cover", 2) == B
    assert Dataset.load(dataset.folder).captions == {}  # it stays as it is
    again = caption(made, tmp_path / "more", "other", column="cover", name="again")
    assert again.captions == {"seen": "cover", "again": "cover"}


def test_a_stopped_command_goes_on_where_it_was(dataset, tmp_path, words):
    out = tmp_path / "out"
    words.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        caption(dataset, out, "m", column="cover", batch_size=2)
    with pytest.raises(DataError, match="does not exist"):
        Dataset.load(out)
    with (out / JOURNAL).open("a") as journal:
        journal.write('["0123", "cut sho')
    words.stop_after = None
    lines: list[str] = []
    resumed = caption(dataset, out, "m", column="cover", batch_size=2, say=lines.append)
    assert words.seen == [2, 1]
    assert lines == ["cover: 3 distinct contents, 2 with a caption already"]
    whole = caption(dataset, tmp_path / "whole", "m", column="cover")
    assert resumed.items.equals(whole.items)
    assert resumed.manifest["content_hash"] == whole.manifest["content_hash"]
    journals = [(folder / JOURNAL).read_bytes() for folder in (out, tmp_path / "whole")]
    assert journals[0] == journals[1]


def test_only_new_contents_are_described_and_other_settings_start_afresh(dataset, tmp_path, words):
    out = tmp_path / "out"
    caption(dataset, out, "m", column="cover")
    words.seen.clear()
    more = make([*PICTURES, encode(150)])
    assert caption(more, out, "m", column="cover").items["caption"][5] == word_of(encode(150))
    assert words.seen == [1]
    caption(more, out, "m", column="cover", max_tokens=3)
    caption(more, out, "other", column="cover")
    assert words.seen == [1, 4, 4]
    head, *rest = (out / JOURNAL).read_text().splitlines()
    assert json.loads(head)["model"] == "other"
    assert len(rest) == 4


@pytest.mark.parametrize("begun", ["fp32", "auto"])
def test_auto_continues_captions_in_their_precision(dataset, tmp_path, words, begun):
    out = tmp_path / "out"
    first = caption(dataset, out, "m", column="cover", precision=begun)
    words.seen.clear()
    assert caption(dataset, out, "m", column="cover").items.equals(first.items)
    assert words.seen == []
    used = json.loads((out / JOURNAL).read_text().splitlines()[0])["precision"]
    assert used == {"fp32": "fp32", "auto": "bf16"}[begun]
    for damaged in ("", "[1]\n", "{", "\udcff"):
        (out / JOURNAL).write_bytes(damaged.encode("utf-8", "surrogateescape"))
        caption(dataset, out, "m", column="cover")
        assert words.seen == [3]
        words.seen.clear()


def test_the_middle_frame_of_a_video(tmp_path, words):
    clip = moving([Image.open(io.BytesIO(content)) for content in (A, B, C)])
    items = pl.DataFrame({"item_id": ["a", "b"], "clip": [clip, None]})
    interactions = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]})
    dataset = Dataset.from_frames(items, interactions, columns={"clip": "video"})
    middle = sample_frames(clip, 3)[1]
    made = caption(dataset, tmp_path / "out", "m", column="clip")
    assert made.items["caption"].to_list() == [word(middle), None]


def test_pictures_that_cannot_be_read_are_named(tmp_path, words):
    items = pl.DataFrame({"item_id": ["a", "b"], "image": [A, b"no picture"]})
    interactions = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]})
    broken = Dataset.from_frames(items, interactions, check_images=False)
    with pytest.raises(DataError, match="the image of item 'b': bytes that are not an image"):
        caption(broken, tmp_path / "out", "m")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"column": "photo"}, "no contents in a column 'photo'"),
        ({"column": "text"}, "captions of the column 'text', which is of kind text.*choose one of image, cover"),
        ({"name": "cover"}, "have a column 'cover' already"),
        ({"name": "a-b"}, "a column named 'a-b'"),
        ({"name": "video"}, "a column named 'video'"),
        ({"out": "dataset"}, "is the dataset itself"),
        ({"out": "dataset/../dataset"}, "is the dataset itself"),
        ({"out": "full"}, "dataset.json' does not exist"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(dataset, tmp_path, words, options, sentence):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    out = tmp_path / options.pop("out", "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, DataError), match=sentence):
        caption(dataset, out, "m", **{"column": "cover", **options})
    assert sorted(tmp_path.rglob("*")) == before
    assert words.seen == []


def test_a_real_model_says_the_same_again(dataset, tmp_path):
    made = caption(dataset, tmp_path / "one", MODEL, column="cover", batch_size=1, precision="fp32", device="cpu")
    again = caption(dataset, tmp_path / "two", MODEL, column="cover", batch_size=3, precision="fp32", device="cpu")
    assert made.items.equals(again.items)
    assert made.items["caption"].null_count() == 1
    origin = made.manifest["provenance"]["captions"]["caption"]
    assert (origin["kind"], origin["max_tokens"], len(origin["weight_digest"])) == ("image", 30, 64)
