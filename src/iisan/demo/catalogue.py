"""The synthetic catalogue of the demo: products with titles and images (and tones and clips), and users."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from iisan.data.sequences import Index, Sequences
from iisan.data.videos import import_av
from iisan.demo import clips, pictures, tones
from iisan.demo.process import Process, draw_process, simulate
from iisan.demo.products import (
    ATTRIBUTES,
    AUDIO_ATTRIBUTES,
    VIDEO_ATTRIBUTES,
    Attributes,
    draw_attributes,
    write_titles,
)
from iisan.errors import ConfigError
from iisan.files import aside
from iisan.names import AUDIO, IMAGE, ITEM_ID, PAD, TIMESTAMP, USER_ID, VIDEO
from iisan.progress import track

MISSING_IMAGE_SHARE = 0.04
MISSING_TITLE_SHARE = 0.04
MIN_INTERACTIONS = 5
MAX_INTERACTIONS = 30
MEAN_INTERACTIONS = 8

START = 1_672_531_200  # 2023-01-01, seconds
LAUNCH = START + 330 * 86_400
END = START + 365 * 86_400

# Independent random streams, so that a change to one part of the catalogue leaves the others unchanged.
_PRODUCTS, _TITLES, _PICTURES, _PROCESS, _USERS, _GAPS, _EXTENSION, _TONES, _CLIPS = range(9)
_BLOCK = 256


@dataclass(frozen=True)
class Catalogue:
    """A synthetic catalogue and its interaction log, with the process that generated them.

    Attributes:
        seed: Random seed.
        process: Behaviour of the users and attributes of the items.
        titles: Titles ``[N]``; None if missing.
        has_image: Whether each item has an image, ``[N]``. Every item has a title or an image.
        log: All interactions, oldest first per user. Only the last one of each user is later than ``LAUNCH``, the
            time at which new items become available.
    """

    seed: int
    process: Process
    titles: list[str | None]
    has_image: npt.NDArray[np.bool_]
    log: Sequences

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids, ``[N]``."""
        return [f"p{number:05d}" for number in range(len(self.titles))]

    @cached_property
    def user_ids(self) -> list[str]:
        """User ids."""
        return [f"u{number:05d}" for number in range(self.log.num_users)]

    @property
    def extended(self) -> bool:
        """Whether the items have tones and clips."""
        return len(self.process.names) > len(ATTRIBUTES)

    def render_images(self, start: int = 0, end: int | None = None) -> pictures.Pixels:
        """Render the images of items ``start:end``, ``[n, 64, 64, 3]`` uint8, whether or not the item has one."""
        return self._render(pictures.render, _PICTURES, start, end)

    def render_tones(self, start: int = 0, end: int | None = None) -> tones.Tones:
        """Render the tones of items ``start:end`` of an extended catalogue, ``[n, 6400]`` int16."""
        return self._render(tones.render, _TONES, start, end)

    def render_clips(self, start: int = 0, end: int | None = None) -> pictures.Pixels:
        """Render the clips of items ``start:end`` of an extended catalogue, ``[n, 8, 32, 32, 3]`` uint8."""
        return self._render(clips.render, _CLIPS, start, end)

    def _render(
        self,
        render: Callable[[Attributes, np.random.Generator], npt.NDArray[Any]],
        stream: int,
        start: int,
        end: int | None,
    ) -> npt.NDArray[Any]:
        """Render items ``start:end``; random streams belong to blocks, so any slice equals that of the whole."""
        numbers = range(*slice(start, end).indices(len(self.titles)))
        blocks = range(numbers.start // _BLOCK * _BLOCK, numbers.stop, _BLOCK)
        rendered = [
            render(
                self.process.attributes[block : block + _BLOCK],
                np.random.default_rng([self.seed, stream, block]),
            )
            for block in blocks
        ]
        first = numbers.start - (blocks.start if blocks else 0)
        empty = render(self.process.attributes[:0], np.random.default_rng())
        return np.concatenate([empty, *rendered])[first : first + len(numbers)]

    def write(self, folder: Path) -> None:
        """Write ``items.csv``, ``interactions.csv`` (by time) and ``images/<item_id>.png``.

        An extended catalogue also has ``sounds/<item_id>.wav`` and ``clips/<item_id>.mkv``, with all paths in the
        columns ``image``, ``audio`` and ``video``.

        Raises:
            MissingExtraError: The extra ``video`` is not installed (extended catalogue only).
        """
        items: dict[str, list[str | None]] = {ITEM_ID: [*self.item_ids], "title": self.titles}
        everywhere = np.ones_like(self.has_image)
        media: list[tuple[str, str, Any, Any, npt.NDArray[np.bool_]]] = [
            (IMAGE, "images/{}.png", self.render_images, pictures.write, self.has_image)
        ]
        if self.extended:
            import_av("writing videos")  # raises before anything is written
            media.append((AUDIO, "sounds/{}.wav", self.render_tones, tones.write, everywhere))
            media.append((VIDEO, "clips/{}.mkv", self.render_clips, clips.write, everywhere))
        for column, form, render, write, present in media:
            (folder / form).parent.mkdir(parents=True, exist_ok=True)
            paths = [form.format(item) if has else None for item, has in zip(self.item_ids, present, strict=True)]
            for start in track(range(0, len(paths), _BLOCK), f"rendering {column} files"):
                end = start + _BLOCK
                for path, content in zip(paths[start:end], render(start, end), strict=True):
                    if path is not None:
                        write(content, folder / path)
            if self.extended:
                items[column] = paths
        owners = np.repeat(np.arange(self.log.num_users), self.log.lengths)
        assert self.log.timestamps is not None
        tables = {
            "items": pl.DataFrame(items),
            "interactions": pl.DataFrame(
                {
                    USER_ID: np.array(self.user_ids)[owners],
                    ITEM_ID: np.array(self.item_ids)[self.log.items],
                    TIMESTAMP: self.log.timestamps,
                }
            ).sort(TIMESTAMP, maintain_order=True),
        }
        for name, table in tables.items():
            with aside(folder / f"{name}.csv") as temporary:
                table.write_csv(temporary)


def generate(seed: int = 0, num_items: int = 2000, num_users: int = 5000, extended: bool = False) -> Catalogue:
    """Generate a catalogue and the interactions of its users.

    About 4% of the items lack a title, another 4% an image, and 8% are new: they are only available at each user's
    last interaction. Every user interacts with 5 to 30 distinct items, 8 on average.

    Args:
        seed: Random seed, which determines the catalogue completely.
        num_items: Number of items ``N``, at least 100.
        num_users: Number of users, at least 1.
        extended: Whether users also have preferences for a timbre and a motion, which only tones and clips reveal.
            Titles and images do not depend on it, interactions do.

    Raises:
        ConfigError: A negative seed, or too few items or users.
    """
    for name, value, least in (("seed", seed, 0), ("num_items", num_items, 100), ("num_users", num_users, 1)):
        if value < least:
            raise ConfigError(f"{name} = {value}", f"at least {least}", f"choose {least} or more")

    def stream(number: int) -> np.random.Generator:
        return np.random.default_rng([seed, number])

    rng = stream(_PRODUCTS)
    attributes = draw_attributes(num_items, rng)
    if extended:
        extension = draw_attributes(num_items, stream(_EXTENSION), AUDIO_ATTRIBUTES + VIDEO_ATTRIBUTES)
        attributes = np.column_stack([attributes, extension])
    without_image, without_title, _ = np.split(
        rng.permutation(num_items),
        np.cumsum([round(MISSING_IMAGE_SHARE * num_items), round(MISSING_TITLE_SHARE * num_items)]),
    )
    titles: list[str | None] = [*write_titles(attributes, stream(_TITLES))]
    for item in without_title:
        titles[item] = None
    has_image = np.ones(num_items, dtype=np.bool_)
    has_image[without_image] = False

    process = draw_process(attributes, stream(_PROCESS))
    rng = stream(_USERS)
    surplus = rng.geometric(1 / (MEAN_INTERACTIONS - MIN_INTERACTIONS + 1), num_users) - 1
    lengths = np.minimum(MIN_INTERACTIONS + surplus, MAX_INTERACTIONS)
    histories = simulate(process, lengths, rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    log = Sequences(offsets, histories[histories != PAD].astype(np.int32), _timestamps(lengths, stream(_GAPS)))
    return Catalogue(seed, process, titles, has_image, log)


def _timestamps(lengths: Index, rng: np.random.Generator) -> Index:
    """Draw the timestamps of all interactions, ascending per user, only the last one after the launch."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    moments = rng.integers(START, LAUNCH - MAX_INTERACTIONS, len(owners))
    moments[ends - 1] = rng.integers(LAUNCH, END - MAX_INTERACTIONS, len(lengths))
    moments = moments[np.lexsort((moments, owners))]
    # Adding the position in the history separates interactions drawn into the same second.
    return moments + np.arange(len(owners)) - np.repeat(ends - lengths, lengths)
