import hashlib
import itertools
import wave
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from iisan.data.splits import leave_one_out
from iisan.data.videos import sample_frames
from iisan.demo import clips, pictures, tones
from iisan.demo.catalogue import LAUNCH, Catalogue, generate
from iisan.demo.oracle import next_item_probabilities
from iisan.demo.process import draw_process, simulate
from iisan.demo.products import (
    ATTRIBUTES,
    EXTENDED_ATTRIBUTES,
    IMAGE_ATTRIBUTES,
    NUM_VALUES,
    TEXT_ATTRIBUTES,
    TITLE_WORDS,
    draw_attributes,
    write_titles,
)
from iisan.demo.run import demo_dataset
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


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        ((0,), "608e8e92ad772d83c5dd786c65b0a4ca7a593a1817f70664de32633d2015fe9b"),
        ((3, ITEMS, USERS), "9da962b8283f0551da6c6e1b0c18a5ded8a465e616f04abf0cf1927419860ed5"),
    ],
)
def test_the_ordinary_catalogue_never_changes(arguments, digest):
    made = generate(*arguments)
    process, log = made.process, made.log
    found = hashlib.sha256(repr(made.titles).encode())
    for values in (
        *(made.has_image, process.attributes, process.is_new, process.preferences),
        *(log.offsets, log.items, log.timestamps),
    ):
        found.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
    # Results and the README rest on it.
    assert found.hexdigest() == digest


@pytest.fixture(scope="module")
def extended() -> Catalogue:
    return generate(3, ITEMS, USERS, extended=True)


def test_the_extended_catalogue_has_the_titles_and_pictures_of_the_ordinary_one(catalogue, extended):
    assert (catalogue.extended, extended.extended) == (False, True)
    assert extended.process.names == EXTENDED_ATTRIBUTES
    assert extended.titles == catalogue.titles
    np.testing.assert_array_equal(extended.process.attributes[:, :7], catalogue.process.attributes)
    np.testing.assert_array_equal(extended.render_images(), catalogue.render_images())
    assert not np.array_equal(extended.log.items, catalogue.log.items)


def test_same_seed_same_tones_and_clips(extended):
    again = generate(3, ITEMS, USERS, extended=True)
    np.testing.assert_array_equal(again.log.items, extended.log.items)
    for name in ("render_tones", "render_clips"):
        whole = getattr(extended, name)()
        assert len(whole) == ITEMS
        np.testing.assert_array_equal(getattr(again, name)(), whole)
        for start, end in ((250, 260), (255, 257), (300, 300)):
            np.testing.assert_array_equal(getattr(extended, name)(start, end), whole[start:end])


@pytest.mark.parametrize(("module", "own"), [(tones, "timbre"), (clips, "motion"), (pictures, None)])
def test_a_tone_tells_the_timbre_alone_and_a_clip_the_motion_alone(module, own):
    def draw(name, value):
        attributes = np.ones((1, len(EXTENDED_ATTRIBUTES)), dtype=np.int64)
        attributes[0, EXTENDED_ATTRIBUTES.index(name)] = value
        return module.render(attributes, np.random.default_rng(0))[0].astype(float)

    for name in {*EXTENDED_ATTRIBUTES} - {*IMAGE_ATTRIBUTES}:
        drawn = [draw(name, value) for value in range(NUM_VALUES)]
        differ = [(a != b).mean() > 0.2 for a, b in itertools.combinations(drawn, 2)]
        assert all(differ) if name == own else not any((a != drawn[0]).any() for a in drawn), name


def test_one_frame_does_not_tell_the_motion():
    attributes = np.zeros((6000, len(EXTENDED_ATTRIBUTES)), dtype=np.int64)
    attributes[:, -1] = np.repeat(np.arange(NUM_VALUES), 1000)
    films = clips.render(attributes, np.random.default_rng(0)).mean(axis=-1)
    # Brightness at every place of the last frame, over the motions: as even as chance makes it.
    means = films[:, -1].reshape(NUM_VALUES, 1000, -1).mean(axis=1)
    errors = films[:, -1].reshape(NUM_VALUES, 1000, -1).std(axis=1) / np.sqrt(1000)
    scores = (means - means.mean(axis=0)) / errors
    assert scores.std() < 1.1


def test_tastes_in_timbre_and_motion_matter(extended):
    queries = leave_one_out(extended.log, ITEMS).test
    rows = np.arange(USERS)

    def surprise(*ignored):
        names = tuple(name for name in EXTENDED_ATTRIBUTES if name not in ignored)
        probabilities = next_item_probabilities(extended.process, queries.histories(30), attributes=names)
        return -np.log(probabilities[rows, queries.targets]).mean()

    assert surprise() < min(surprise("timbre"), surprise("motion")) - 0.1
    assert max(surprise("timbre"), surprise("motion")) < surprise("timbre", "motion") - 0.1


def test_files_of_tones_and_clips(extended, tmp_path):
    pytest.importorskip("av", reason="clips need the extra 'video'")
    pytest.importorskip("soundfile", reason="preparing tones needs the extra 'audio'")
    small = generate(3, 100, 1, extended=True)
    kinds = demo_dataset(small, tmp_path).kinds
    assert kinds == {name: name for name in ("image", "text", "audio", "video")}
    tmp_path /= "raw"
    items = pl.read_csv(tmp_path / "items.csv")
    assert items.columns == ["item_id", "title", "image", "audio", "video"]
    assert items["image"].is_not_null().to_list() == small.has_image.tolist()
    with wave.open(str(tmp_path / items["audio"][7])) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    np.testing.assert_array_equal(samples, small.render_tones(7, 8)[0])
    frames = sample_frames((tmp_path / items["video"][7]).read_bytes(), clips.FRAMES)
    np.testing.assert_array_equal(np.stack(frames), small.render_clips(7, 8)[0])
    again = tmp_path / "again.mkv"
    clips.write(small.render_clips(7, 8)[0], again)
    assert again.read_bytes() == (tmp_path / items["video"][7]).read_bytes()
