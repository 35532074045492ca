import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from iisan.demo import pictures
from iisan.demo.catalogue import LAUNCH, Catalogue, generate
from iisan.demo.process import draw_process, simulate
from iisan.demo.products import (
    ATTRIBUTES,
    IMAGE_ATTRIBUTES,
    NUM_VALUES,
    TEXT_ATTRIBUTES,
    TITLE_WORDS,
    draw_attributes,
    write_titles,
)
from iisan.errors import ConfigError

ITEMS, USERS = 300, 400


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return generate(3, ITEMS, USERS)


@pytest.fixture(scope="module")
def folder(catalogue, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("raw")
    catalogue.write(path)
    return path


def test_same_seed_same_catalogue(catalogue):
    again = generate(3, ITEMS, USERS)
    assert again.titles == catalogue.titles
    np.testing.assert_array_equal(again.has_image, catalogue.has_image)
    np.testing.assert_array_equal(again.log.items, catalogue.log.items)
    np.testing.assert_array_equal(again.log.timestamps, catalogue.log.timestamps)
    np.testing.assert_array_equal(again.render_images(0, 20), catalogue.render_images(0, 20))


def test_another_seed_another_catalogue(catalogue):
    other = generate(4, ITEMS, USERS)
    assert other.titles != catalogue.titles
    assert (other.render_images(0, 20) != catalogue.render_images(0, 20)).mean() > 0.5
    assert not np.array_equal(other.process.preferences, catalogue.process.preferences)


def test_shares_of_missing_and_new_items(catalogue):
    assert sum(title is None for title in catalogue.titles) == 12
    assert (~catalogue.has_image).sum() == 12
    assert catalogue.process.is_new.sum() == 24
    assert not any(
        title is None and not has for title, has in zip(catalogue.titles, catalogue.has_image, strict=True)
    )


def test_every_user_has_five_to_thirty_different_items(catalogue):
    lengths = catalogue.log.lengths
    assert len(lengths) == USERS
    assert lengths.min() == 5
    assert lengths.max() <= 30
    assert 7 < lengths.mean() < 9
    offsets = catalogue.log.offsets
    for start, end in itertools.pairwise(offsets):
        assert len(set(catalogue.log.items[start:end])) == end - start


def test_the_last_interaction_alone_is_after_the_launch(catalogue):
    last = np.zeros(len(catalogue.log.items), dtype=bool)
    last[catalogue.log.offsets[1:] - 1] = True
    timestamps = catalogue.log.timestamps
    np.testing.assert_array_equal(timestamps >= LAUNCH, last)
    inside = np.diff(timestamps)[~last[:-1]]
    assert inside.min() > 0
    new = catalogue.process.is_new[catalogue.log.items]
    assert not new[~last].any()
    assert 0.03 < new[last].mean() < 0.25


def test_the_full_catalogue_has_the_promised_size():
    full = generate()
    assert len(full.titles) == 2000
    assert full.log.num_users == 5000
    assert 35_000 <= len(full.log.items) <= 45_000


def test_files(catalogue, folder):
    items = pl.read_csv(folder / "items.csv")
    assert items.columns == ["item_id", "title"]
    assert items["item_id"].to_list() == catalogue.item_ids
    assert items["title"].to_list() == catalogue.titles
    interactions = pl.read_csv(folder / "interactions.csv")
    assert interactions.columns == ["user_id", "item_id", "timestamp"]
    assert interactions["timestamp"].is_sorted()
    assert len(interactions) == len(catalogue.log.items)
    of_third = interactions.filter(pl.col("user_id") == "u00002")["item_id"].to_list()
    start, end = catalogue.log.offsets[2:4]
    assert of_third == [catalogue.item_ids[item] for item in catalogue.log.items[start:end]]


def test_images(catalogue, folder):
    written = {path.stem for path in (folder / "images").iterdir()}
    assert written == {item for item, has in zip(catalogue.item_ids, catalogue.has_image, strict=True) if has}
    number = int(np.flatnonzero(catalogue.has_image)[-1])
    with Image.open(folder / "images" / f"{catalogue.item_ids[number]}.png") as image:
        np.testing.assert_array_equal(np.asarray(image), catalogue.render_images(number, number + 1)[0])


@pytest.mark.parametrize(("start", "end"), [(0, 300), (250, 260), (255, 257), (299, 500), (300, 300)])
def test_blocks_of_images_are_parts_of_the_whole(catalogue, start, end):
    np.testing.assert_array_equal(catalogue.render_images(start, end), catalogue.render_images()[start:end])


def test_titles_name_their_four_values_and_nothing_of_the_picture():
    rng = np.random.default_rng(0)
    attributes = draw_attributes(200, rng)
    for row, title in zip(attributes, write_titles(attributes, rng), strict=True):
        for (_, options), value in zip(TITLE_WORDS.items(), row, strict=False):
            assert any(word in title for word in options[value]), title
    same_words = attributes.copy()
    same_words[:, 4:] = (same_words[:, 4:] + 1) % NUM_VALUES
    assert write_titles(attributes, np.random.default_rng(1)) == write_titles(same_words, np.random.default_rng(1))


def test_each_picture_attribute_changes_the_picture_and_title_attributes_do_not():
    base = np.zeros((1, len(ATTRIBUTES)), dtype=np.int64)
    base[0, ATTRIBUTES.index("pattern")] = 1

    def draw(name, value):
        changed = base.copy()
        changed[0, ATTRIBUTES.index(name)] = value
        return pictures.render(changed, np.random.default_rng(0))[0].astype(int)

    reference = pictures.render(base, np.random.default_rng(0))[0].astype(int)
    for name in ATTRIBUTES:
        drawn = np.stack([draw(name, value) for value in range(NUM_VALUES)])
        if name in IMAGE_ATTRIBUTES:
            pairs = [abs(drawn[a] - drawn[b]).max(axis=-1) > 20 for a in range(NUM_VALUES) for b in range(a)]
            assert min(pair.mean() for pair in pairs) > 0.01, name
        else:
            np.testing.assert_array_equal(drawn, np.broadcast_to(reference, drawn.shape))
    assert set(IMAGE_ATTRIBUTES) & set(TEXT_ATTRIBUTES) == {"category"}


def test_simulated_frequencies_follow_the_probabilities():
    process = draw_process(draw_attributes(100, np.random.default_rng(0)), np.random.default_rng(1))
    lengths = np.full(40_000, 2)
    first = simulate(process, lengths, np.random.default_rng(2))[:, 0]
    attraction = process.attraction_before_launch
    expected = process.initial @ (attraction / attraction.sum(axis=1, keepdims=True))
    observed = np.bincount(first, minlength=100) / len(first)
    deviation = np.sqrt(expected * (1 - expected) / len(first))
    assert (abs(observed - expected) <= 5 * deviation).all()
    assert observed[process.is_new].sum() == 0


def test_too_small_a_catalogue_is_refused():
    with pytest.raises(ConfigError, match="num_items = 5"):
        generate(0, num_items=5)
    with pytest.raises(ConfigError, match="num_users = 0"):
        generate(0, num_users=0)
