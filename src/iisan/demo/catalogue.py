"""The demo's catalogue: products with titles and pictures, users who follow a known process, raw files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from iisan.data.sequences import Index, Sequences
from iisan.demo import pictures
from iisan.demo.process import Process, draw_process, simulate
from iisan.demo.products import draw_attributes, write_titles
from iisan.errors import ConfigError
from iisan.files import aside
from iisan.names import ITEM_ID, PAD, TIMESTAMP, USER_ID
from iisan.progress import track

MISSING_IMAGE_SHARE = 0.04
MISSING_TITLE_SHARE = 0.04
MIN_INTERACTIONS = 5
MAX_INTERACTIONS = 30
MEAN_INTERACTIONS = 8

START = 1_672_531_200  # 2023-01-01, seconds
LAUNCH = START + 330 * 86_400
END = START + 365 * 86_400

# Independent random streams, so that changing one part of the catalogue leaves the others as they are.
_PRODUCTS, _TITLES, _PICTURES, _PROCESS, _USERS, _GAPS = range(6)
_BLOCK = 256


@dataclass(frozen=True)
class Catalogue:
    """A synthetic catalogue and its log, with the truth about both.

    Attributes:
        seed: the number that everything was drawn from.
        process: the users' behaviour and the items' attributes; see ``oracle`` for what follows from it.
        titles: ``[N]`` titles; None where missing.
        has_image: ``[N]`` whether the item has a picture. No item lacks both.
        log: all interactions, oldest first per user. Every user's last one, and no other, is later than
            ``LAUNCH``, the moment at which new items become available.
    """

    seed: int
    process: Process
    titles: list[str | None]
    has_image: npt.NDArray[np.bool_]
    log: Sequences

    @cached_property
    def item_ids(self) -> list[str]:
        """The id of each item, ``[N]``."""
        return [f"p{number:05d}" for number in range(len(self.titles))]

    @cached_property
    def user_ids(self) -> list[str]:
        """The id of each user."""
        return [f"u{number:05d}" for number in range(self.log.num_users)]

    def render_images(self, start: int = 0, end: int | None = None) -> pictures.Pixels:
        """Draw the pictures of items ``start:end``, ``[n, 64, 64, 3]`` uint8, also of items that lack one."""
        numbers = range(*slice(start, end).indices(len(self.titles)))
        blocks = range(numbers.start // _BLOCK * _BLOCK, numbers.stop, _BLOCK)
        drawn = [
            pictures.render(
                self.process.attributes[block : block + _BLOCK],
                np.random.default_rng([self.seed, _PICTURES, block]),
            )
            for block in blocks
        ]
        first = numbers.start - (blocks.start if blocks else 0)
        empty = np.empty((0, pictures.SIZE, pictures.SIZE, 3), np.uint8)
        return np.concatenate([empty, *drawn])[first : first + len(numbers)]

    def write(self, folder: Path) -> None:
        """Write ``items.csv``, ``interactions.csv`` (in order of time) and ``images/<item_id>.png``."""
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for start in track(range(0, len(self.titles), _BLOCK), "drawing products"):
            for number, pixels in enumerate(self.render_images(start, start + _BLOCK), start):
                if self.has_image[number]:
                    Image.fromarray(pixels).save(folder / "images" / f"{self.item_ids[number]}.png")
        owners = np.repeat(np.arange(self.log.num_users), self.log.lengths)
        assert self.log.timestamps is not None
        tables = {
            "items": pl.DataFrame({ITEM_ID: self.item_ids, "title": self.titles}),
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


def generate(seed: int = 0, num_items: int = 2000, num_users: int = 5000) -> Catalogue:
    """Draw a catalogue and its users' interactions.

    About 4% of the items lack a title, another 4% a picture, and 8% are new: nobody can take them before
    his last interaction. Every user has between 5 and 30 interactions, 8 on average, with no item twice.

    Args:
        seed: same seed and sizes, same catalogue, to the last pixel.
        num_items: ``N``, at least 100.
        num_users: at least 1.

    Raises:
        ConfigError: too few items or users.
    """
    for name, value, least in (("num_items", num_items, 100), ("num_users", num_users, 1)):
        if value < least:
            raise ConfigError(f"{name} = {value}", f"at least {least}", f"ask for {least} or more")

    def stream(number: int) -> np.random.Generator:
        return np.random.default_rng([seed, number])

    rng = stream(_PRODUCTS)
    attributes = draw_attributes(num_items, rng)
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
    taken = simulate(process, lengths, rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    log = Sequences(offsets, taken[taken != PAD].astype(np.int32), _timestamps(lengths, stream(_GAPS)))
    return Catalogue(seed, process, titles, has_image, log)


def _timestamps(lengths: Index, rng: np.random.Generator) -> Index:
    """Draw the moments of all interactions, rising within a user, the last one alone after the launch."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    moments = rng.integers(START, LAUNCH - MAX_INTERACTIONS, len(owners))
    moments[ends - 1] = rng.integers(LAUNCH, END - MAX_INTERACTIONS, len(lengths))
    moments = moments[np.lexsort((moments, owners))]
    # Counting up within the user parts interactions that were drawn into the same second.
    return moments + np.arange(len(owners)) - np.repeat(ends - lengths, lengths)
