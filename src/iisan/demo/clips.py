"""Short clips of products, rendered for whole blocks of items: a blob that drifts in one of six directions.

The frame wraps around and the start is random, so that no single frame reveals the direction.
"""

from pathlib import Path
from typing import Final

import numpy as np

from iisan.data.videos import import_av
from iisan.demo.pictures import Field, Pixels
from iisan.demo.products import NUM_VALUES, Attributes, columns

SIZE: Final = 32
FRAMES: Final = 8
_PER_SECOND = 8


def render(attributes: Attributes, rng: np.random.Generator) -> Pixels:
    """Render clips of products with attributes ``[n, 9]``: RGB frames ``[n, FRAMES, SIZE, SIZE, 3]``, uint8.

    Start, speed, direction (±12°), size, colours, background and noise are random.
    """
    count = len(attributes)
    (motion,) = attributes[:, columns(("motion",))].T

    def uniform(low: float, high: float, *size: int) -> Field:
        return rng.uniform(low, high, (count, *size)).astype(np.float32)

    angle = 2 * np.pi / NUM_VALUES * motion[:, None] + uniform(-0.2, 0.2, 1)
    travelled = uniform(0.18, 0.3, 1) * np.arange(FRAMES, dtype=np.float32)
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1

    def offsets(direction: Field) -> Field:
        """Distance from the centre along one axis that wraps around, ``[n, FRAMES, SIZE]``."""
        centre = uniform(-1, 1, 1) + travelled * direction
        return np.mod(axis - centre[..., None] + 1, 2) - 1

    x, y = offsets(np.cos(angle)), offsets(np.sin(angle))
    distance = np.hypot(x[..., None, :], y[..., :, None])
    softness = SIZE / 4
    blob = np.clip(0.5 + (uniform(0.3, 0.5, 1, 1, 1) - distance) * softness, 0, 1)[..., None]
    ground = uniform(0.5, 1.0, 1, 1, 1, 3)
    clip = ground + blob * (uniform(0.0, 0.4, 1, 1, 1, 3) - ground)
    clip = clip + rng.standard_normal(clip.shape, dtype=np.float32) * 0.03
    return (np.clip(clip, 0, 1) * 255 + 0.5).astype(np.uint8)


def write(clip: Pixels, path: Path) -> None:
    """Write one clip, ``[FRAMES, SIZE, SIZE, 3]``, as a lossless Matroska file with reproducible bytes.

    Raises:
        MissingExtraError: The extra ``video`` is not installed.
    """
    av = import_av("writing videos")
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=_PER_SECOND)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "bgr0"
        for pixels in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
