"""What the experiments run on."""

import shutil
from itertools import pairwise

import pytest

from iisan.data.dataset import Dataset
from iisan.demo.catalogue import generate
from iisan.errors import ConfigError, EncoderError
from iisan.experiments import scales
from iisan.experiments.scales import demo_scale, full_scale
from iisan.experiments.tables import experiment
from iisan.recipes import recipe
from iisan.train.setup import build, resolve


def test_the_demo_has_three_encoders_of_each_modality(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "generate", lambda: generate(0, 120, 60))
    scale = demo_scale(tmp_path)
    assert {modality: list(named) for modality, named in scale.encoders.items()} == {
        "image": ["image model", "small image model", "tiny image model"],
        "text": ["text model", "small text model", "tiny text model"],
    }
    assert scale.depth == 6
    assert [list(named.values()) for named in scale.depths.values()] == [[6, 4, 2]] * 2
    pairs = experiment("figure-4")(scale)
    networks = {name: build(resolve(config)).network for name, config in pairs.items()}
    widths = {name: tuple(network.source.widths.values()) for name, network in networks.items()}
    sizes = {"": 64, "small ": 32, "tiny ": 16}
    assert widths == {
        f"{image}image model + {text}text model": (sizes[image], sizes[text]) for image in sizes for text in sizes
    }
    # Wider states are transformed for the inter-modal tower, which is as wide as the narrower encoder.
    assert list(networks["image model + small text model"].items.towers["inter"].transforms) == ["image"]
    assert build(resolve(scale.row("partial"))).network.source.encoders.keys() == {"image", "text"}
    # Only rows that run the encoders end after a few epochs.
    epochs = {name: config.training.epochs for name, config in experiment("partial")(scale).items()}
    twice = "last two blocks in every second epoch, twice as long"
    assert (epochs["from the cache"], epochs["last two blocks"], epochs[twice]) == (100, 4, 8)
    assert scale.row("uncached").training.epochs == 4
    # Of the published settings group-6 is all blocks here, and the pooling of the stores is theirs.
    settings = experiment("versa-microlens")(scale)["IISAN-Versa"]
    assert (settings.optimizer, settings.training.epochs) == (recipe("versa").optimizer, 400)
    published = build(resolve(settings)).network
    assert published.source.levels == {"image": tuple(range(7)), "text": tuple(range(7))}
    joint = experiment("versa-scaling-joint")(scale)
    sources = {name: build(resolve(config)).network.source for name, config in joint.items()}
    assert {name: (source.levels["text"], source.widths["image"]) for name, source in sources.items()} == {
        "image model + text model": ((0, 2, 4, 6), 64),
        "small image model + small text model": ((0, 2, 4), 32),
        "tiny image model + tiny text model": ((0, 2), 16),
    }
    counts = [source.encoder_parameters for source in sources.values()]
    assert all(one[name] > 3 * other[name] for one, other in pairwise(counts) for name in ("image", "text"))


def test_the_demo_has_captions_of_its_pictures_and_the_scenarios_read_them(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "generate", lambda: generate(0, 120, 60))
    scale = demo_scale(tmp_path)
    assert scale.captions == ("caption",)
    rows = experiment("versa-scenarios")(scale)
    networks = {name: build(resolve(config)).network for name, config in rows.items()}
    assert {name: tuple(network.source.widths) for name, network in networks.items()} == {
        "title and image": ("image", "text"),
        "caption and image": ("image", "caption"),
        "title and caption": ("text", "caption"),
        "title, caption and image": ("image", "text", "caption"),
    }
    # Other experiments read what they always read, whatever else there are states of.
    assert resolve(scale.row("default")).modalities == ("image", "text")
    assert resolve(scale.row("ids")).modalities == ()


def test_the_full_scale_has_the_captions_of_its_dataset(prepared, tmp_path):
    states = tmp_path / "states"
    plain = full_scale(prepared.dataset, states, [str(prepared.text)], [str(prepared.image)])
    with pytest.raises(ConfigError, match=r"no captions.*iisan caption"):
        experiment("versa-scenarios")(plain)
    dataset = Dataset.load(prepared.dataset)
    texts = dataset.items["text"].fill_null("red pump") + " pump "
    for name, column in (("seen", "image"), ("filmed", "image")):
        dataset = dataset.with_captions(name, texts + name, {"column": column})
    dataset.save(tmp_path / "captioned")
    scale = full_scale(tmp_path / "captioned", states, [str(prepared.text)], [str(prepared.image)])
    rows = experiment("versa-scenarios")(scale)
    assert list(rows) == [
        "title and image",
        *("seen and image", "title and seen", "title, seen and image"),
        *("filmed and image", "title and filmed", "title, filmed and image"),
    ]
    config = resolve(rows["title, filmed and image"])
    assert config.states_of("filmed") == config.states_of("text").model_copy(update={"max_tokens": 30})
    build(config)


def test_the_full_scale_caches_what_is_missing_and_takes_the_papers_settings(prepared, tmp_path):
    text, image = [str(prepared.text)], [str(prepared.image)]
    scale = full_scale(prepared.dataset, tmp_path / "states", text, image)
    assert (scale.name, scale.depth) == ("full", 4)
    for method in ("default", "partial", "fft"):
        config = resolve(scale.row(method))
        assert (config.text.pooling, config.text.max_tokens, config.training.batch_size) == ("cls", 30, 32)
        build(config)
    assert len(experiment("table-5")(scale)) == 2
    # Published with another pooling than the paper's, of which there is a store, too.
    published = resolve(experiment("versa-microlens")(scale)["IISAN-Versa"])
    assert (published.text.pooling, published.training.batch_size) == ("mean", 512)
    with pytest.raises(EncoderError, match="group layer-dropping of 6 out of 4 layers"):
        build(published)
    build(published.override(("text.levels=all", "image.levels=all")))


def test_encoders_of_one_last_name_are_all_taken(prepared, tmp_path):
    google, facebook = (
        shutil.copytree(prepared.image, tmp_path / owner / "x") for owner in ("google", "facebook")
    )
    images = [str(google), str(prepared.image), str(facebook)]
    scale = full_scale(prepared.dataset, tmp_path / "states", [str(prepared.text)], images)
    assert scale.encoders["image"] == {"google/x": images[0], "vit": images[1], "facebook/x": images[2]}


def test_the_full_scale_needs_both_kinds_of_encoder(prepared, tmp_path):
    with pytest.raises(ConfigError, match="lacks encoders"):
        full_scale(prepared.dataset, tmp_path, ["bert-base-uncased"], [])
