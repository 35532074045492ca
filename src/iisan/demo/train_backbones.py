"""Train the demo's two small backbones: ``python -m iisan.demo.train_backbones``.

They stand in for BERT and ViT as downloaded: pretrained on products of the same kind as the catalogue's but
on none of the catalogue's, for objectives that are not recommendation.

- Text: BERT's own two objectives, masked words and "do these two titles describe the same product?".
- Image: labels (category, shape, and whether the colour is warm, one label in ten wrong) from the last
  block, and the pixels of hidden patches from an inner block.

In both, what is hidden is guessed with the help of an inner block's CLS state. So, as in large models, the
last state has specialised on its objective and inner states know more about the product.

Deterministic in the seed on one machine and one set of library versions; about five minutes of one core for
each. The folders written are ordinary Hugging Face folders.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from iisan.demo import pictures
from iisan.demo.catalogue import generate
from iisan.demo.products import TEXT_ATTRIBUTES, Attributes, columns, draw_attributes, write_titles

FOLDER = Path(__file__).parent / "backbones"
WIDTH = 64
BLOCKS = 6
VOCABULARY = 400
BATCH = 64
PATCH = 8
RESIZED = 32  # pixels a side
MASKED_WORDS = 0.25
MASKED_PATCHES = 0.5
LABEL_NOISE = 0.1
INNER = 4  # index of the hidden state that helps to guess what is hidden
WARM_COLOURS = 3
RATE = 1.5e-3
IGNORED = -100  # label of words that are not guessed, in the collator of transformers

# Streams far from those of the catalogue, which are numbered from 0.
_TEXT_STREAM, _IMAGE_STREAM, _BATCH_STREAM = 100, 101, 102


def training_titles(seed: int, count: int) -> tuple[list[str], list[str], np.ndarray]:
    """Write pairs of titles, half of them of one product, half of two that differ in two attributes.

    Pairs with a title that occurs in the default catalogue are left out.

    Returns:
        First titles, second titles, and whether the two describe different products, each at most ``count``.
    """
    rng = np.random.default_rng([seed, _TEXT_STREAM])
    first = draw_attributes(count, rng)
    second, different = first.copy(), rng.random(count) < 0.5
    changed = rng.permuted(np.tile(columns(TEXT_ATTRIBUTES), (count, 1)), axis=1)[:, :2]
    rows = np.flatnonzero(different)[:, None]
    second[rows, changed[different]] = draw_attributes(count, rng)[rows, changed[different]]
    different = (first != second).any(axis=1)
    known = set(generate().titles)
    pairs = [
        (a, b, label)
        for a, b, label in zip(write_titles(first, rng), write_titles(second, rng), different, strict=True)
        if a not in known and b not in known
    ]
    return [a for a, _, _ in pairs], [b for _, b, _ in pairs], np.array([label for _, _, label in pairs])


def _batches(count: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield ``steps`` batches of row numbers, epoch after epoch in fresh order."""
    rng = np.random.default_rng([seed, _BATCH_STREAM])
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(count)
        yield order[:BATCH]
        order = order[BATCH:]


def _optimiser(
    module: nn.Module, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)


def _report(name: str, step: int, steps: int, losses: dict[str, torch.Tensor]) -> None:
    if step % 200 == 0 or step == steps - 1:
        values = ", ".join(f"{key} {value.item():.4f}" for key, value in losses.items())
        print(f"{name} step {step + 1}/{steps}: {values}", flush=True)


def train_text(folder: Path, seed: int, steps: int, count: int = 30_000) -> None:
    """Train the WordPiece vocabulary and the BERT, and save both to ``folder``."""
    first, second, different = training_titles(seed, count)
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(first + second, vocab_size=VOCABULARY, min_frequency=2, show_progress=False)
    # Ids in alphabetical order after the special tokens: the trainer's own order is not reproducible.
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + sorted(set(pieces.get_vocab()) - set(special))
    tokenizer = BertTokenizer({word: number for number, word in enumerate(words)}, model_max_length=64)

    torch.manual_seed(seed)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).train()
    optimiser, schedule = _optimiser(model, RATE, steps)
    encoded = tokenizer(first, second, truncation=True, return_special_tokens_mask=True)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_WORDS, seed=seed)
    for step, rows in enumerate(_batches(len(first), steps, seed)):
        batch = collate([{key: values[row] for key, values in encoded.items()} for row in rows])
        labels = batch.pop("labels")
        states = model.bert(**batch, output_hidden_states=True)
        guessed = labels != IGNORED
        helped = states.last_hidden_state + states.hidden_states[INNER][:, :1]
        words_loss = functional.cross_entropy(model.cls.predictions(helped[guessed]), labels[guessed])
        pairs_loss = functional.cross_entropy(
            model.cls.seq_relationship(states.pooler_output),
            torch.from_numpy(different[rows].astype(np.int64)),
        )
        optimiser.zero_grad()
        (words_loss + pairs_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        _report("text", step, steps, {"words": words_loss, "pairs": pairs_loss})
    # Whoever fine-tunes it gets BERT's usual dropout; this short pretraining is better off without.
    model.bert.config.hidden_dropout_prob = model.bert.config.attention_probs_dropout_prob = 0.1
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def noisy_labels(attributes: Attributes, rng: np.random.Generator) -> np.ndarray:
    """Label each picture with category, shape and warmth of colour, each replaced by chance one time in ten.

    Returns:
        ``[n, 3]`` int64 with 8, 8 and 2 classes.
    """
    category, shape, colour = attributes[:, columns(("category", "shape", "colour"))].T
    labels = np.stack([category, shape, (colour < WARM_COLOURS).astype(np.int64)], axis=1)
    return np.where(rng.random(labels.shape) < LABEL_NOISE, rng.integers((8, 8, 2), size=labels.shape), labels)


class _Pretext(nn.Module):
    """A ViT with the heads of its two objectives."""

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit
        self.labels = nn.Linear(WIDTH, 8 + 8 + 2)
        self.pixels = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * PATCH**2))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        patches = functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
        hidden = torch.rand(patches.shape[:2]) < MASKED_PATCHES
        masked = functional.fold(
            patches.masked_fill(hidden[..., None], 0.0).transpose(1, 2), images.shape[-2:], PATCH, stride=PATCH
        )
        # Labels are learnt from whole pictures: at use none of a picture is hidden.
        whole = self.vit(images).last_hidden_state[:, 0]
        inner = self.vit(masked, output_hidden_states=True).hidden_states[INNER]
        guess = self.pixels(inner[:, 1:] + inner[:, :1])
        parts = self.labels(whole).split((8, 8, 2), dim=1)
        return {
            "labels": sum(functional.cross_entropy(part, labels[:, n]) for n, part in enumerate(parts)),
            "pixels": (guess - patches)[hidden].square().mean(),
        }


def train_image(folder: Path, seed: int, steps: int, count: int = 12_000) -> None:
    """Train the ViT and save it with its preprocessing to ``folder``."""
    rng = np.random.default_rng([seed, _IMAGE_STREAM])
    attributes = draw_attributes(count, rng)
    blocks = np.array_split(attributes, max(1, count // 256))
    size = {"height": RESIZED, "width": RESIZED}
    processor = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images = torch.cat(
        [processor([*pictures.render(block, rng)], return_tensors="pt")["pixel_values"] for block in blocks]
    )
    labels = torch.from_numpy(noisy_labels(attributes, rng))

    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=RESIZED,
        patch_size=PATCH,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
    )
    model = _Pretext(ViTModel(config)).train()
    optimiser, schedule = _optimiser(model, RATE, steps)
    for step, rows in enumerate(_batches(count, steps, seed)):
        losses = model(images[rows], labels[rows])
        optimiser.zero_grad()
        (losses["labels"] + 5 * losses["pixels"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        _report("image", step, steps, losses)
    model.vit.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Train both backbones and write them into the package, or elsewhere with ``--out``."""
    parser = argparse.ArgumentParser(description="Train the demo's two small backbones.")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-steps", type=int, default=2500)
    parser.add_argument("--image-steps", type=int, default=2000)
    parser.add_argument("--only", choices=("text", "image"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only != "image":
        train_text(arguments.out / "text", arguments.seed, arguments.text_steps)
    if arguments.only != "text":
        train_image(arguments.out / "image", arguments.seed, arguments.image_steps)


if __name__ == "__main__":
    main()
