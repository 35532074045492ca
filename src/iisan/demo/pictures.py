"""Images of products, rendered for whole blocks of items from coordinate fields.

An image shows a filled shape (attributes shape, colour and pattern) inside a frame (category), with random
position, scale, rotation, tint and noise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from iisan.demo.products import ATTRIBUTES, IMAGE_ATTRIBUTES, Attributes, columns

SIZE: Final = 64
Field = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]


def _triangle(u: Field, v: Field) -> Field:
    sector = 2 * np.pi / 3
    angle = np.mod(np.arctan2(u, -v), sector) - sector / 2
    return np.hypot(u, v) * np.cos(angle) - 0.58


#: Signed distance from the outline, negative inside, in coordinates in which the shape fills about [-1, 1]².
_SHAPES: Final[tuple[Callable[[Field, Field], Field], ...]] = (
    lambda u, v: np.hypot(u, v) - 0.9,
    lambda u, v: np.maximum(abs(u), abs(v)) - 0.8,
    _triangle,
    lambda u, v: np.hypot(u, v) - 0.64 - 0.34 * np.cos(5 * np.arctan2(u, -v)),
    lambda u, v: np.minimum(np.maximum(abs(u) - 0.98, abs(v) - 0.36), np.maximum(abs(v) - 0.98, abs(u) - 0.36)),
    lambda u, v: abs(np.hypot(u, v) - 0.66) - 0.3,
)
_WAVE = 9.0
#: The second colour is used where the field is positive.
_PATTERNS: Final[tuple[Callable[[Field, Field], Field], ...]] = (
    lambda u, v: np.full_like(u, -1.0),
    lambda u, v: np.sin(_WAVE * v),
    lambda u, v: np.sin(_WAVE * u),
    lambda u, v: np.cos(_WAVE * u) + np.cos(_WAVE * v) - 0.9,
    lambda u, v: np.sin(0.8 * _WAVE * u) * np.sin(0.8 * _WAVE * v),
    lambda u, v: np.sin(1.2 * _WAVE * np.hypot(u, v)),
)
#: Frames in image coordinates; negative on the line.
_FRAMES: Final[tuple[Callable[[Field, Field], Field], ...]] = (
    lambda x, y: np.full_like(x, 1.0),
    lambda x, y: abs(np.maximum(abs(x), abs(y)) - 0.88) - 0.045,
    lambda x, y: abs(np.hypot(x, y) - 0.9) - 0.045,
    lambda x, y: abs(abs(x) - 0.88) - 0.06,
    lambda x, y: 1.55 - abs(x) - abs(y),
    lambda x, y: abs(abs(y) - 0.88) - 0.06,
)
_COLOURS: Final = np.array(
    [
        (0.82, 0.16, 0.16), (0.93, 0.62, 0.10), (0.20, 0.60, 0.22),
        (0.12, 0.62, 0.66), (0.16, 0.28, 0.78), (0.52, 0.22, 0.68),
    ],
    dtype=np.float32,
)  # fmt: skip
#: Words for each attribute, by value.
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "pattern": ("plain", "banded", "striped", "dotted", "checked", "ringed"),
    "colour": ("red", "orange", "green", "teal", "blue", "purple"),
    "shape": ("circle", "square", "triangle", "flower", "cross", "ring"),
    "category": (
        *("without a frame", "in a square", "in a circle"),
        *("between two posts", "between four corners", "between two beams"),
    ),
}


def _select(fields: tuple[Callable[[Field, Field], Field], ...], values: Attributes, x: Field, y: Field) -> Field:
    """Evaluate field ``values[n]`` at the coordinates of image n, ``[n, SIZE, SIZE]``."""
    result = np.empty_like(x)
    for value in np.unique(values):
        rows = values == value
        result[rows] = fields[value](x[rows], y[rows])
    return result


def render(attributes: Attributes, rng: np.random.Generator) -> Pixels:
    """Render images of products with attributes ``[n, 7]``: RGB pixels ``[n, SIZE, SIZE, 3]``, uint8.

    Position (±0.15 of half the width), scale, rotation (±17°), tint and noise are random.
    """
    count = len(attributes)
    category, shape, colour, pattern = attributes[:, columns(IMAGE_ATTRIBUTES)].T

    def uniform(low: float, high: float, *size: int) -> Field:
        return rng.uniform(low, high, (count, *size)).astype(np.float32)

    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
    shift_x, shift_y = uniform(-0.15, 0.15, 1, 1), uniform(-0.15, 0.15, 1, 1)
    scale, angle = uniform(0.46, 0.66, 1, 1), uniform(-0.3, 0.3, 1, 1)
    x, y = axis[None, None, :] - shift_x, axis[None, :, None] - shift_y
    u = (x * np.cos(angle) + y * np.sin(angle)) / scale
    v = (y * np.cos(angle) - x * np.sin(angle)) / scale

    # Anti-aliasing: outlines fade over half a pixel on either side.
    sharpness = SIZE / 2
    inside = np.clip(0.5 - _select(_SHAPES, shape, u, v) * scale * sharpness, 0, 1)[..., None]
    second = np.clip(0.5 + 4 * _select(_PATTERNS, pattern, u, v), 0, 1)[..., None]
    frame_x, frame_y = np.broadcast_arrays(
        axis[None, None, :] + uniform(-0.05, 0.05, 1, 1), axis[None, :, None] + uniform(-0.05, 0.05, 1, 1)
    )
    frame = np.clip(0.5 - _select(_FRAMES, category, frame_x, frame_y) * sharpness, 0, 1)[..., None]

    main = _COLOURS[colour][:, None, None, :] + uniform(-0.07, 0.07, 1, 1, 3)
    light = main + (1 - main) * uniform(0.55, 0.8, 1, 1, 1)
    picture = uniform(0.78, 1.0, 1, 1, 3)
    picture = picture + frame * (uniform(0.15, 0.45, 1, 1, 1) - picture)
    picture = picture + inside * (main + second * (light - main) - picture)
    picture = picture + rng.standard_normal((count, SIZE, SIZE, 3), dtype=np.float32) * 0.03
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def write(pixels: Pixels, path: Path) -> None:
    """Write one image, ``[SIZE, SIZE, 3]``."""
    Image.fromarray(pixels).save(path)


def describe(attributes: Attributes) -> list[str]:
    """Describe the images of products with attributes ``[n, 7]``, as in ``a striped red circle in a square``."""
    words = [[_WORDS[name][value] for value in attributes[:, ATTRIBUTES.index(name)]] for name in _WORDS]
    return [f"a {' '.join(each)}" for each in zip(*words, strict=True)]
