"""What the trainings of the demo's small encoders share: sizes, labels, hidden patches, the loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    ViTImageProcessorPil,
)

from iisan.demo import pictures
from iisan.demo.products import (
    NUM_VALUES,
    Attributes,
    columns,
)

HEADS = 4
BATCH = 64
PATCH = 8
RESIZED = 32  # pixels a side
MASKED_PATCHES = 0.15
LABEL_NOISE = 0.1
POSITIONS = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
RATE = 1.5e-3
IGNORED = -100  # label of words that are not guessed, in the collator of transformers


@dataclass(frozen=True)
class Size:
    """How large an encoder is.

    Attributes:
        width: D.
        blocks: T.
        inner: index of the hidden state that also learns.
    """

    width: int
    blocks: int
    inner: int


#: Ending of the folder's name -> size. They differ in depth and width, so that pairs of encoders can.
SIZES = {
    "": Size(width=64, blocks=6, inner=4),
    "-small": Size(width=32, blocks=4, inner=2),
    "-tiny": Size(width=16, blocks=2, inner=1),
}
#: Of the models of tones and clips.
MEDIA_SIZE = Size(width=64, blocks=4, inner=2)

# Streams far from those of the catalogue, which are numbered from 0.
TEXT_STREAM, IMAGE_STREAM, BATCH_STREAM, LABEL_STREAM, AUDIO_STREAM, VIDEO_STREAM = range(100, 106)
#: The captioner and the audio model have nothing to do with each other.
CAPTION_STREAM = AUDIO_STREAM


def noisy_labels(
    attributes: Attributes, labels: tuple[str, ...], tags: tuple[str, ...], rng: np.random.Generator
) -> torch.Tensor:
    """Label each product with some attributes and a tag, each replaced by chance one time in ten.

    Args:
        attributes: ``[n, 7]`` value numbers, or ``[n, 9]`` extended ones.
        labels: names of the attributes that are labels of their own.
        tags: names of the attributes one of which becomes the tag; tag ``6·a + v`` stands for value v of
            the a-th of them.
        rng: source of tags and errors.

    Returns:
        ``[n, len(labels) + 1]`` int64, the tag last.
    """
    taggable = attributes[:, columns(tags)]
    tagged = rng.integers(len(tags), size=len(attributes))
    tag = NUM_VALUES * tagged + taggable[np.arange(len(attributes)), tagged]
    right = np.column_stack([attributes[:, columns(labels)], tag])
    classes = [NUM_VALUES] * len(labels) + [NUM_VALUES * len(tags)]
    wrong = rng.integers(classes, size=right.shape)
    return torch.from_numpy(np.where(rng.random(right.shape) < LABEL_NOISE, wrong, right))


def _batches(count: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield ``steps`` batches of row numbers, epoch after epoch in fresh order."""
    rng = np.random.default_rng([seed, BATCH_STREAM])
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(count)
        yield order[:BATCH]
        order = order[BATCH:]


def train_steps(
    name: str,
    model: nn.Module,
    losses: Callable[[np.ndarray], dict[str, torch.Tensor]],
    count: int,
    steps: int,
    seed: int,
) -> None:
    """Minimise the sum of ``losses(row numbers)``."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for step, rows in enumerate(_batches(count, steps, seed), 1):
        parts = losses(rows)
        optimiser.zero_grad()
        torch.stack([*parts.values()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0 or step == steps:
            values = ", ".join(f"{part} {loss.item():.4f}" for part, loss in parts.items())
            print(f"{name} step {step}/{steps}: {values}", flush=True)


def hide_patches(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hide some patches, ``P`` of each image, drawn by chance.

    Args:
        images: ``[n, C, height, width]``.

    Returns:
        The images with zeros where patches are hidden, all patches ``[n, P, C·PATCH²]``, which are hidden
        ``[n, P]``.
    """
    patches = functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    hidden = torch.rand(patches.shape[:2]) < MASKED_PATCHES
    masked = functional.fold(
        patches.masked_fill(hidden[..., None], 0.0).transpose(1, 2), images.shape[-2:], PATCH, stride=PATCH
    )
    return masked, patches, hidden


def render_pictures(
    attributes: Attributes, pixels: int, rng: np.random.Generator
) -> tuple[ViTImageProcessorPil, torch.Tensor]:
    """The preprocessing, and each product's picture after it, ``[n, 3, pixels, pixels]``."""
    blocks = np.array_split(attributes, max(1, len(attributes) // 256))
    size = {"height": pixels, "width": pixels}
    processor = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    drawn = [processor([*pictures.render(block, rng)], return_tensors="pt")["pixel_values"] for block in blocks]
    return processor, torch.cat(drawn)
