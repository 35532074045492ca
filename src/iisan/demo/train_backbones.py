"""Train the demo's small backbones: ``python -m iisan.demo.train_backbones``.

They stand in for BERT and ViT as downloaded: pretrained on products of the same kind as the catalogue's but
on none of the catalogue's, for objectives that are not recommendation.

- Text: the last block tells masked words and the category, an inner block tells one tag.
- Image: the last block tells category and shape, an inner block tells one tag and the pixels of hidden patches.

A tag is a value of one of the product's four attributes, drawn by chance, as weak labels from the web are. One
label and one tag in ten are wrong. What comes out, by linear probes of all levels on products never seen: the
text model's states tell all four attributes of a title, averaged over words a little less at the last level
than further in; the image model's tell category and colour, shape mostly, and pattern in two of three pictures.

Deterministic in the seed on one machine, one thread and one set of library versions; five to ten minutes of
one core for all. The folders written are ordinary Hugging Face folders.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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
from iisan.demo.products import (
    IMAGE_ATTRIBUTES,
    NUM_VALUES,
    TEXT_ATTRIBUTES,
    Attributes,
    columns,
    draw_attributes,
    write_titles,
)
from iisan.names import IMAGE, TEXT

FOLDER = Path(__file__).parent / "backbones"
HEADS = 4
COMMON = 1000  # a word that stands in one title of so many is a token; others are spelt
BATCH = 64
PATCH = 8
RESIZED = 32  # pixels a side
MASKED_WORDS = 0.25
MASKED_PATCHES = 0.15
LABEL_NOISE = 0.1
POSITIONS = 64
RATE = 1.5e-3
IGNORED = -100  # label of words that are not guessed, in the collator of transformers


@dataclass(frozen=True)
class Size:
    """How large a backbone is.

    Attributes:
        width: D.
        blocks: T.
        inner: index of the hidden state that also learns.
    """

    width: int
    blocks: int
    inner: int


#: Ending of the folder's name -> size. The small ones let a pair of backbones differ in depth and width.
SIZES = {"": Size(width=64, blocks=6, inner=4), "-small": Size(width=32, blocks=4, inner=2)}

# Streams far from those of the catalogue, which are numbered from 0.
_TEXT_STREAM, _IMAGE_STREAM, _BATCH_STREAM, _LABEL_STREAM = 100, 101, 102, 103


def training_titles(seed: int, count: int) -> tuple[list[str], Attributes]:
    """Write titles of ``count`` products; those that occur in the default catalogue are left out.

    Returns:
        At most ``count`` titles, and their products' attributes.
    """
    rng = np.random.default_rng([seed, _TEXT_STREAM])
    attributes = draw_attributes(count, rng)
    titles = write_titles(attributes, rng)
    known = set(generate().titles)
    rows = [row for row, title in enumerate(titles) if title not in known]
    return [titles[row] for row in rows], attributes[rows]


def noisy_labels(
    attributes: Attributes, labels: tuple[str, ...], tags: tuple[str, ...], rng: np.random.Generator
) -> torch.Tensor:
    """Label each product with some attributes and a tag, each replaced by chance one time in ten.

    Args:
        attributes: ``[n, 7]`` value numbers.
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
    rng = np.random.default_rng([seed, _BATCH_STREAM])
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(count)
        yield order[:BATCH]
        order = order[BATCH:]


def _train(
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


def vocabulary(titles: list[str]) -> list[str]:
    """List the tokens: special ones, characters to spell rare words with, common words.

    The trainers of the tokenizers library break ties at random, so they cannot be used where the same seed
    must give the same file.
    """
    words = Counter(word for title in titles for word in re.findall(r"\w+|[^\w\s]", title.lower()))
    common = {word for word, count in words.items() if count * COMMON >= len(titles)}
    characters = set("".join(words))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return special + sorted(common | characters | {f"##{character}" for character in characters})


class _TextPretext(nn.Module):
    """A BERT with the heads of its objectives."""

    def __init__(self, config: BertConfig, size: Size) -> None:
        super().__init__()
        self.inner = size.inner
        self.pretraining = BertForPreTraining(config)
        self.category = nn.Linear(size.width, NUM_VALUES)
        self.tags = nn.Sequential(
            nn.LayerNorm(size.width), nn.Linear(size.width, NUM_VALUES * len(TEXT_ATTRIBUTES))
        )

    def forward(
        self, tokens: dict[str, torch.Tensor], words: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        output = self.pretraining.bert(**tokens, output_hidden_states=True)
        guessed = words != IGNORED
        guess = self.pretraining.cls.predictions(output.last_hidden_state[guessed])
        return {
            "words": functional.cross_entropy(guess, words[guessed]),
            "category": functional.cross_entropy(self.category(output.pooler_output), labels[:, 0]),
            "tags": functional.cross_entropy(self.tags(output.hidden_states[self.inner][:, 0]), labels[:, 1]),
        }


def train_text(folder: Path, size: Size, seed: int, steps: int, count: int = 30_000) -> None:
    """Make the vocabulary, train the BERT, and save both to ``folder``."""
    titles, attributes = training_titles(seed, count)
    labels = noisy_labels(attributes, ("category",), TEXT_ATTRIBUTES, np.random.default_rng([seed, _LABEL_STREAM]))
    tokenizer = BertTokenizer(
        {word: number for number, word in enumerate(vocabulary(titles))}, model_max_length=POSITIONS
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=HEADS,
        intermediate_size=4 * size.width,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = _TextPretext(config, size).train()
    encoded = tokenizer(titles, truncation=True, return_special_tokens_mask=True)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_WORDS, seed=seed)

    def losses(rows: np.ndarray) -> dict[str, torch.Tensor]:
        tokens = collate([{key: values[row] for key, values in encoded.items()} for row in rows])
        words = tokens.pop("labels")
        return model(tokens, words, labels[rows])

    _train("text", model, losses, len(titles), steps, seed)
    bert = model.pretraining.bert
    # Whoever fine-tunes it gets BERT's usual dropout; this short pretraining is better off without.
    bert.config.hidden_dropout_prob = bert.config.attention_probs_dropout_prob = 0.1
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _ImagePretext(nn.Module):
    """A ViT with the heads of its objectives."""

    def __init__(self, config: ViTConfig, size: Size) -> None:
        super().__init__()
        self.inner = size.inner
        self.vit = ViTModel(config)
        self.labels = nn.Linear(size.width, 2 * NUM_VALUES)
        self.tags = nn.Sequential(
            nn.LayerNorm(size.width), nn.Linear(size.width, NUM_VALUES * len(IMAGE_ATTRIBUTES))
        )
        self.pixels = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, 3 * PATCH**2))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        patches = functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
        hidden = torch.rand(patches.shape[:2]) < MASKED_PATCHES
        masked = functional.fold(
            patches.masked_fill(hidden[..., None], 0.0).transpose(1, 2), images.shape[-2:], PATCH, stride=PATCH
        )
        output = self.vit(masked, output_hidden_states=True)
        inner = output.hidden_states[self.inner]
        category, shape = self.labels(output.last_hidden_state[:, 0]).split(NUM_VALUES, dim=1)
        return {
            "category": functional.cross_entropy(category, labels[:, 0]),
            "shape": functional.cross_entropy(shape, labels[:, 1]),
            "tags": functional.cross_entropy(self.tags(inner[:, 0]), labels[:, 2]),
            "pixels": (self.pixels(inner[:, 1:]) - patches)[hidden].square().mean(),
        }


def train_image(folder: Path, size: Size, seed: int, steps: int, count: int = 12_000) -> None:
    """Train the ViT and save it with its preprocessing to ``folder``."""
    rng = np.random.default_rng([seed, _IMAGE_STREAM])
    attributes = draw_attributes(count, rng)
    blocks = np.array_split(attributes, max(1, count // 256))
    pixels = {"height": RESIZED, "width": RESIZED}
    processor = ViTImageProcessorPil(size=pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    images = torch.cat(
        [processor([*pictures.render(block, rng)], return_tensors="pt")["pixel_values"] for block in blocks]
    )
    labels = noisy_labels(attributes, ("category", "shape"), IMAGE_ATTRIBUTES, rng)

    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=RESIZED,
        patch_size=PATCH,
        hidden_size=size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=HEADS,
        intermediate_size=4 * size.width,
    )
    model = _ImagePretext(config, size).train()
    _train("image", model, lambda rows: model(images[rows], labels[rows]), count, steps, seed)
    model.vit.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Train the backbones and write them into the package, or elsewhere with ``--out``."""
    parser = argparse.ArgumentParser(description="Train the demo's small backbones.")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-steps", type=int, default=1000)
    parser.add_argument("--image-steps", type=int, default=2000)
    parser.add_argument(
        "--only", choices=[f"{modality}{ending}" for modality in (TEXT, IMAGE) for ending in SIZES]
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for ending, size in SIZES.items():
        for modality, train, steps in (
            (TEXT, train_text, arguments.text_steps),
            (IMAGE, train_image, arguments.image_steps),
        ):
            name = f"{modality}{ending}"
            if arguments.only in (None, name):
                train(arguments.out / name, size, arguments.seed, steps)


if __name__ == "__main__":
    main()
