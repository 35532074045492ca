"""A small catalogue."""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from iisan.encoders.image import ImageEncoder, load_image
from iisan.encoders.text import TextEncoder, load_text
from iisan.files import content_key
from pictures import encoded, noise

ADJECTIVES = ("red", "blue", "green", "small", "large", "steel")
NOUNS = ("pump", "valve", "glove", "tape", "box", "mask")


@dataclass
class TinyCatalogue:
    """The part of a dataset that states are made from."""

    texts: list[str | None]
    images: list[bytes | None] = field(default_factory=list)

    @property
    def kinds(self) -> dict[str, str]:
        return {"text": "text", "image": "image"}

    @property
    def items(self) -> pl.DataFrame:
        images = self.images or [None] * len(self.texts)
        columns = {"item_id": [f"i{n}" for n in range(len(self.texts))], "text": self.texts, "image": images}
        return pl.DataFrame(columns, schema={"item_id": pl.String, "text": pl.String, "image": pl.Binary})

    @property
    def keys(self) -> pl.DataFrame:
        known = [None if image is None else content_key(image) for image in self.items["image"]]
        return pl.DataFrame({"image": known}, schema={"image": pl.String})

    def content_bytes(self, column: str, index: int) -> bytes:
        content = self.images[index]
        assert content is not None
        return content


def picture(seed: int) -> bytes:
    return encoded(Image.fromarray(noise(seed, 12, 18)))


@pytest.fixture
def catalogue() -> TinyCatalogue:
    """36 distinct texts of unlike lengths, one of them twice, one missing; 8 images, one twice, 31 missing."""
    texts = [f"{a} {n}" + " of steel box" * (i % 3) for i, a in enumerate(ADJECTIVES) for n in NOUNS]
    images = [picture(seed) for seed in range(8)]
    return TinyCatalogue([*texts, None, texts[3]], [*images, images[2], *[None] * 29])


@pytest.fixture(scope="session")
def bert(model_folders: dict[str, Path]) -> TextEncoder:
    return load_text(str(model_folders["bert"]), "mean")


@pytest.fixture(scope="session")
def vit(model_folders: dict[str, Path]) -> ImageEncoder:
    return load_image(str(model_folders["vit"]), "cls")
