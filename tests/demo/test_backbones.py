import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from iisan.demo.catalogue import generate
from iisan.demo.products import ATTRIBUTES, IMAGE_ATTRIBUTES, NUM_VALUES, TEXT_ATTRIBUTES
from iisan.demo.train_backbones import (
    FOLDER,
    SIZES,
    noisy_labels,
    train_image,
    train_text,
    training_titles,
    vocabulary,
)


@pytest.fixture(scope="module")
def catalogue():
    return generate(11, 600, 1)


def states_of(name: str, inputs) -> np.ndarray:
    """CLS states of all levels, ``[n, 7, 64]``, in batches."""
    model = AutoModel.from_pretrained(FOLDER / name).eval()
    with torch.inference_mode():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    return torch.stack([level[:, 0] for level in hidden], dim=1).numpy()


def text_states(titles: list[str]) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "text")
    return states_of("text", tokenizer(titles, padding=True, return_tensors="pt"))


def image_states(pixels: np.ndarray) -> np.ndarray:
    processor = AutoImageProcessor.from_pretrained(FOLDER / "image", backend="pil")
    images = [Image.fromarray(picture) for picture in pixels]
    return states_of("image", processor(images, return_tensors="pt"))


def probe(states: np.ndarray, values: np.ndarray) -> float:
    """Accuracy of a ridge classifier on the last fifth, learnt from the rest."""
    train = int(len(states) * 0.8)
    centred = (states - states[:train].mean(axis=0)) / (states[:train].std(axis=0) + 1e-6)
    inputs = np.column_stack([centred, np.ones(len(states))]).astype(np.float64)
    gram = inputs[:train].T @ inputs[:train] + 3 * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs[:train].T @ np.eye(NUM_VALUES)[values[:train]])
    return ((inputs[train:] @ weights).argmax(axis=1) == values[train:]).mean()


def best_level(states: np.ndarray, values: np.ndarray) -> float:
    return max(probe(states[:, level], values) for level in range(1, states.shape[1]))


def test_all_are_ordinary_small_folders():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for name, kind, size in (
        *(("text", "BertModel", SIZES[""]), ("image", "ViTModel", SIZES[""])),
        *(("text-small", "BertModel", SIZES["-small"]), ("image-small", "ViTModel", SIZES["-small"])),
    ):
        config = json.loads((FOLDER / name / "config.json").read_text())
        assert config["architectures"] == [kind]
        assert (config["num_hidden_layers"], config["hidden_size"]) == (size.blocks, size.width)
        assert "auto_map" not in config


def test_different_titles_have_different_states_and_equal_titles_equal_ones():
    states = text_states(
        ["Norvik steel mug for travel", "Osko glass lamp, kitchen", "NORVIK steel mug for travel"]
    )
    assert states.shape == (3, 7, 64)
    np.testing.assert_array_equal(states[0], states[2])
    assert abs(states[0, 1:] - states[1, 1:]).max(axis=1).min() > 0.01
    np.testing.assert_allclose(states[0, 0], states[1, 0], atol=1e-6)


def test_no_word_of_a_title_is_unknown(catalogue):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "text")
    titles = [title for title in catalogue.titles if title]
    ids = tokenizer(titles)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= 40


def test_different_pictures_have_different_states(catalogue):
    states = image_states(catalogue.render_images(0, 3))
    assert states.shape == (3, 7, 64)
    assert abs(states[0, 1:] - states[1, 1:]).max(axis=1).min() > 0.01


def test_states_know_the_attributes_of_their_own_modality_only(catalogue):
    titles = [title or "" for title in catalogue.titles]
    attributes = catalogue.process.attributes
    for states, own in (
        (text_states(titles), TEXT_ATTRIBUTES),
        (image_states(catalogue.render_images()), IMAGE_ATTRIBUTES),
    ):
        for column, name in enumerate(ATTRIBUTES):
            accuracy = best_level(states, attributes[:, column])
            assert (accuracy > 0.35) == (name in own), (name, accuracy)


def test_training_products_are_not_the_catalogues():
    titles, attributes = training_titles(0, 3000)
    assert len(titles) == len(attributes) > 2900
    full = generate()
    assert not set(titles) & set(full.titles)
    assert not np.array_equal(attributes[:1900], full.process.attributes[:1900])


def test_rare_words_are_spelt_and_common_words_are_tokens():
    tokens = vocabulary(["Red mug"] * 1500 + ["Red mug 47"])
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"red", "mug", "4", "##7"} <= set(tokens)
    assert "47" not in tokens
    assert len(set(tokens)) == len(tokens)


def test_one_label_in_ten_is_drawn_anew_and_tags_are_spread_over_the_attributes():
    attributes = np.tile([[3, 0, 0, 0, 5, 1, 2]], (20_000, 1))
    rng = np.random.default_rng(0)
    labels = noisy_labels(attributes, ("category", "shape"), IMAGE_ATTRIBUTES, rng).numpy()
    # A label drawn anew is right by chance once in 6.
    np.testing.assert_allclose((labels[:, :2] == [3, 5]).mean(axis=0), 0.9 + 0.1 / 6, atol=0.01)
    shares = np.bincount(labels[:, 2], minlength=24) / len(labels)
    expected = np.full(24, 0.1 / 24)
    expected[[3, 6 + 5, 12 + 1, 18 + 2]] += 0.9 / 4
    np.testing.assert_allclose(shares, expected, atol=0.01)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_training_is_deterministic_and_its_folders_load(tmp_path):
    for trial in ("a", "b"):
        train_text(tmp_path / trial / "text", SIZES["-small"], seed=5, steps=3, count=300)
        train_image(tmp_path / trial / "image", SIZES["-small"], seed=5, steps=3, count=128)
    for name in ("text/model.safetensors", "text/tokenizer.json", "image/model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert AutoModel.from_pretrained(tmp_path / "a" / "text").config.num_hidden_layers == 4
    assert AutoModel.from_pretrained(tmp_path / "a" / "image").config.num_hidden_layers == 4
