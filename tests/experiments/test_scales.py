"""What the experiments run on."""

import pytest

from iisan.demo.catalogue import generate
from iisan.errors import ConfigError
from iisan.experiments import scales
from iisan.experiments.scales import demo_scale, full_scale
from iisan.experiments.tables import experiment
from iisan.train.setup import build, resolve


def test_the_demo_has_two_backbones_of_each_modality(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "generate", lambda: generate(0, 120, 60))
    scale = demo_scale(tmp_path)
    assert {modality: list(named) for modality, named in scale.backbones.items()} == {
        "image": ["image model", "small image model"],
        "text": ["text model", "small text model"],
    }
    assert scale.depth == 6
    pairs = experiment("figure-4")(scale)
    networks = {name: build(resolve(config)).network for name, config in pairs.items()}
    widths = {name: tuple(network.source.widths.values()) for name, network in networks.items()}
    assert widths == {
        "image model + text model": (64, 64),
        "image model + small text model": (64, 32),
        "small image model + text model": (32, 64),
        "small image model + small text model": (32, 32),
    }
    # Wider states are transformed for the inter-modal tower, which is as wide as the narrower backbone.
    assert list(networks["image model + small text model"].items.towers["inter"].transforms) == ["image"]
    assert build(resolve(scale.row("partial"))).network.source.backbones.keys() == {"image", "text"}


def test_the_full_scale_caches_what_is_missing_and_takes_the_papers_settings(prepared, tmp_path):
    text, image = [str(prepared.text)], [str(prepared.image)]
    scale = full_scale(prepared.dataset, tmp_path / "states", text, image)
    assert (scale.name, scale.depth) == ("full", 4)
    for method in ("default", "partial", "fft"):
        config = resolve(scale.row(method))
        assert (config.text.pooling, config.text.max_tokens, config.training.batch) == ("cls", 30, 32)
        build(config)
    assert len(experiment("table-5")(scale)) == 2


def test_the_full_scale_needs_both_kinds_of_backbone(prepared, tmp_path):
    with pytest.raises(ConfigError, match="lacks backbones"):
        full_scale(prepared.dataset, tmp_path, ["bert-base-uncased"], [])
