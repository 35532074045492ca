"""The demo's folder."""

import pytest

from iisan.data.dataset import Dataset
from iisan.demo.catalogue import generate
from iisan.demo.run import CATALOGUE, demo_dataset
from iisan.errors import ConfigError, DataError


def test_a_folder_is_of_one_catalogue(tmp_path):
    zero, one = generate(0, 100, 20), generate(1, 100, 20)
    first = demo_dataset(zero, tmp_path)
    assert demo_dataset(zero, tmp_path).manifest == first.manifest
    with pytest.raises(DataError, match="holds a catalogue with seed = 0, not 1; expected a new folder"):
        demo_dataset(one, tmp_path)
    with pytest.raises(DataError, match="holds a catalogue with extended = False, not True"):
        demo_dataset(generate(0, 100, 20, extended=True), tmp_path)
    # Interrupted before anything was prepared: images of both catalogues would be mixed.
    (tmp_path / "dataset" / "dataset.json").unlink()
    with pytest.raises(DataError, match="seed = 0, not 1"):
        demo_dataset(one, tmp_path)
    assert demo_dataset(one, tmp_path / "other").manifest["content_hash"] != first.manifest["content_hash"]


def test_folders_from_before_seeds_were_noted_are_opened(tmp_path):
    catalogue = generate(0, 100, 20)
    demo_dataset(catalogue, tmp_path)
    (tmp_path / "raw" / CATALOGUE).unlink()
    assert demo_dataset(catalogue, tmp_path).manifest == Dataset.load(tmp_path / "dataset").manifest
    assert not (tmp_path / "raw" / CATALOGUE).exists()


def test_a_negative_seed():
    with pytest.raises(ConfigError, match="seed = -1; expected at least 0"):
        generate(-1, 100, 20)
