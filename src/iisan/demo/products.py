"""Products with seven attributes, and titles that name four of them.

The category shows in title and picture; use, material and brand only in the title; shape, colour and pattern only
in the picture. Products of the extended catalogue have two more: timbre (tone only) and motion (clip only).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Attributes = npt.NDArray[np.int64]

#: Number of values of each attribute.
NUM_VALUES: Final = 6
#: Attributes named in titles; each value is a tuple of synonyms.
TITLE_WORDS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "category": (
        ("mug", "cup", "beaker"),
        ("lamp", "light", "lantern"),
        ("bag", "tote", "pouch"),
        ("clock", "timepiece"),
        ("stool", "seat", "chair"),
        ("bottle", "flask"),
    ),
    "use": (
        ("for travel", "travel", "on the go"),
        ("for the office", "office", "desktop"),
        ("for cooking", "kitchen", "chef's"),
        ("for the garden", "garden", "outdoor"),
        ("for camping", "camping", "trekking"),
        ("for school", "school", "student"),
    ),
    "material": (
        ("steel", "stainless", "metal"),
        ("oak", "wooden", "walnut"),
        ("leather", "suede"),
        ("cotton", "canvas", "fabric"),
        ("glass", "crystal"),
        ("ceramic", "porcelain", "stoneware"),
    ),
    "brand": (
        ("Norvik", "Norvik Home"),
        ("Tallora", "Tallora & Sons"),
        ("Bexley", "Bexley Works"),
        ("Quillon", "Quillon Studio"),
        ("Marenta", "Marenta Living"),
        ("Osko", "Osko Design"),
    ),
}
TEXT_ATTRIBUTES: Final = tuple(TITLE_WORDS)
IMAGE_ATTRIBUTES: Final = ("category", "shape", "colour", "pattern")
#: Column order of every attribute array.
ATTRIBUTES: Final = tuple(dict.fromkeys(TEXT_ATTRIBUTES + IMAGE_ATTRIBUTES))
AUDIO_ATTRIBUTES: Final = ("timbre",)
VIDEO_ATTRIBUTES: Final = ("motion",)
#: Column order in the extended catalogue.
EXTENDED_ATTRIBUTES: Final = (*ATTRIBUTES, *AUDIO_ATTRIBUTES, *VIDEO_ATTRIBUTES)

_LEADS = ("", "", "", "New", "Premium", "Classic", "Original", "Deluxe", "Modern", "Everyday", "Handmade")
_DETAILS = (
    "", "", "", "large", "small", "medium", "extra wide", "foldable", "lightweight", "durable", "easy clean",
    "with lid", "with stand", "with gift box", "set of 2", "set of 4", "pack of 6", "2nd edition", "slim fit",
    "heavy duty",
)  # fmt: skip
_ORDERS = (
    "{lead} {brand} {material} {category} {use} {detail}",
    "{brand} {lead} {use} {category} {material} {detail}",
    "{lead} {material} {category} {detail} {use} by {brand}",
    "{use} {category} {lead} {material} {detail} - {brand}",
    "{brand} {category}, {material}, {use}, {detail} {lead}",
    "{lead} {detail} {category} in {material} {use} {brand}",
)


def columns(names: tuple[str, ...]) -> list[int]:
    """Column numbers of the named attributes."""
    return [EXTENDED_ATTRIBUTES.index(name) for name in names]


def draw_attributes(count: int, rng: np.random.Generator, names: tuple[str, ...] = ATTRIBUTES) -> Attributes:
    """Draw independent, uniform attribute values, ``[count, len(names)]``."""
    return rng.integers(NUM_VALUES, size=(count, len(names)))


def write_titles(attributes: Attributes, rng: np.random.Generator) -> list[str]:
    """Write titles for attributes ``[n, 7]``: a synonym of each of four values, fillers, a random word order."""
    draws = rng.random((len(attributes), len(TITLE_WORDS) + 4))
    return [_title(row, draw) for row, draw in zip(attributes.tolist(), draws.tolist(), strict=True)]


def _title(values: list[int], draws: list[float]) -> str:
    def pick(options: tuple[str, ...]) -> str:
        return options[int(draws.pop() * len(options))]

    words = {
        name: pick(options[value])
        for (name, options), value in zip(TITLE_WORDS.items(), values[: len(TITLE_WORDS)], strict=True)
    }
    title = pick(_ORDERS).format(lead=pick(_LEADS), detail=pick(_DETAILS), **words)
    title = " ".join(title.split()).replace(" ,", ",").rstrip(",")
    number = int(draws.pop() * 3000)
    # One title in three ends in a model number, which carries no information.
    return f"{title} No. {number}" if number < 1000 else title
