"""Shared code of the demo's encoder training: sizes, labels, masked patches, the training loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import ViTImageProcessorPil

from iisan.demo import pictures
from iisan.demo.products import NUM_VALUES, Attributes, columns

HEADS = 4
BATCH = 64
PATCH = 8
RESIZED = 32  # edge in pixels
MASKED_PATCHES = 0.15
LABEL_NOISE = 0.1
POSITIONS = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LEARNING_RATE = 1.5e-3
IGNORED = -100  # label of words that are not predicted (the convention of transformers)


@dataclass(frozen=True)
class Size:
    """Size of an encoder.

    Attributes:
        width: Width D.
        layers: Number of layers T.
        inner: Index of the hidden state with an objective of its own.
    """

    width: int
    layers: int
    inner: int


#: Suffix of the folder name -> size. Depths and widths differ, so that pairs of unequal encoders can be tried.
SIZES = {
    "": Size(width=64, layers=6, inner=4),
    "-small": Size(width=32, layers=4, inner=2),
    "-tiny": Size(width=16, layers=2, inner=1),
}
#: Size of the audio and video encoders.
MEDIA_SIZE = Size(width=64, layers=4, inner=2)

# Streams far from those of the catalogue, which are numbered from 0.
TEXT_STREAM, IMAGE_STREAM, BATCH_STREAM, LABEL_STREAM, AUDIO_STREAM, VIDEO_STREAM = range(100, 106)
#: The captioner and the audio encoder share no data, so they may share a stream.
CAPTION_STREAM = AUDIO_STREAM


def noisy_labels(
    attributes: Attributes, labels: tuple[str, ...], tags: tuple[str, ...], rng: np.random.Generator
) -> torch.Tensor:
    """Label each product with some attributes and a tag; each label is replaced at random with probability 0.1.

    Args:
        attributes: Attribute values ``[n, 7]``, or ``[n, 9]`` in the extended catalogue.
        labels: Names of the attributes that become labels.
        tags: Names of the attributes to draw the tag from; tag ``6·a + v`` is value v of the a-th of them.
        rng: Source of tags and errors.

    Returns:
        Labels ``[n, len(labels) + 1]``, int64, the tag last.
    """
    taggable = attributes[:, columns(tags)]
    tagged = rng.integers(len(tags), size=len(attributes))
    tag = NUM_VALUES * tagged + taggable[np.arange(len(attributes)), tagged]
    right = np.column_stack([attributes[:, columns(labels)], tag])
    classes = [NUM_VALUES] * len(labels) + [NUM_VALUES * len(tags)]
    wrong = rng.integers(classes, size=right.shape)
    return torch.from_numpy(np.where(rng.random(right.shape) < LABEL_NOISE, wrong, right))


def _batches(count: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield ``steps`` batches of row numbers, shuffled anew in each epoch."""
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
    """Train a model for ``steps`` steps on the sum of ``losses(row numbers)``."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step, rows in enumerate(_batches(count, steps, seed), 1):
        terms = losses(rows)
        optimiser.zero_grad()
        torch.stack([*terms.values()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0 or step == steps:
            values = ", ".join(f"{term} {loss.item():.4f}" for term, loss in terms.items())
            print(f"{name} step {step}/{steps}: {values}", flush=True)


def mask_patches(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask a random share of the ``P`` patches of each image.

    Args:
        images: Images ``[n, C, height, width]``.

    Returns:
        The images with masked patches set to zero, all original patches ``[n, P, C·PATCH²]``, and the mask ``[n,
        P]``.
    """
    patches = functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    mask = torch.rand(patches.shape[:2]) < MASKED_PATCHES
    masked = functional.fold(
        patches.masked_fill(mask[..., None], 0.0).transpose(1, 2), images.shape[-2:], PATCH, stride=PATCH
    )
    return masked, patches, mask


def render_pictures(
    attributes: Attributes, pixels: int, rng: np.random.Generator
) -> tuple[ViTImageProcessorPil, torch.Tensor]:
    """Return an image processor and the preprocessed picture of each product, ``[n, 3, pixels, pixels]``."""
    blocks = np.array_split(attributes, max(1, len(attributes) // 256))
    size = {"height": pixels, "width": pixels}
    processor = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    drawn = [processor([*pictures.render(block, rng)], return_tensors="pt")["pixel_values"] for block in blocks]
    return processor, torch.cat(drawn)
