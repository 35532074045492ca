"""Pictures as the files' bytes that a catalogue holds."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image file; ``options`` are those of Pillow's ``save``."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(seed: int | np.random.Generator, *size: int) -> np.ndarray:
    """Random pixels ``[*size, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def moving(frames: Sequence[Image.Image]) -> bytes:
    """A GIF of some frames."""
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
