"""Train the demo's small encoders: ``python tools/train_encoders.py``.

They stand in for downloaded models (BERT, ViT, AST, VideoMAE and a captioner): pretrained on products like those
of the catalogue, but on none of the catalogue itself, and for objectives other than recommendation.

- Text: the last layer predicts masked words and the category, an inner layer predicts a tag.
- Image: the last layer predicts category and shape, an inner layer predicts a tag and the pixels of masked
  patches.
- Audio and video: the last layer predicts timbre or motion, an inner layer the content of masked patches.
- Captioner: a ViT and a GPT-2 that attends to its states generate a description of a picture.

A tag is a random one of the product's four attributes, like weak labels from the web. One label and one tag in ten
are wrong; descriptions are correct. Results of linear probes of all levels on unseen products: the text encoder's
states predict all four attributes of a title, token means slightly worse at the last level than at inner ones;
those of the image encoder predict category and colour, mostly shape, and the pattern of two pictures in three; the
small and tiny encoders predict less; audio and video encoder predict timbre and motion of 99% of the products. On
2,000 unseen pictures, the captioner gets colour and frame right in 100%, the pattern in 96%, the shape in 80%, and
the whole sentence in 78%.

Deterministic for one seed, machine, thread count and set of library versions; takes 15 to 20 minutes on one core.
The output folders are ordinary Hugging Face folders.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
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
    ViTModel,
)

from iisan.demo.catalogue import generate
from iisan.demo.products import (
    IMAGE_ATTRIBUTES,
    NUM_VALUES,
    TEXT_ATTRIBUTES,
    Attributes,
    draw_attributes,
    write_titles,
)
from iisan.demo.run import CAPTIONER, ENCODERS
from iisan.names import AUDIO, IMAGE, TEXT, VIDEO
from pretraining import (
    HEADS,
    IGNORED,
    IMAGE_STREAM,
    LABEL_STREAM,
    MEDIA_SIZE,
    PATCH,
    POSITIONS,
    RESIZED,
    SIZES,
    SPECIAL,
    TEXT_STREAM,
    Size,
    mask_patches,
    noisy_labels,
    render_pictures,
    train_steps,
)
from train_media import train_audio, train_captioner, train_video

FOLDER = ENCODERS
COMMON = 1000  # words in at least one of this many titles become tokens, others are spelt
MASKED_WORDS = 0.25


def training_titles(seed: int, count: int) -> tuple[list[str], Attributes]:
    """Generate titles of ``count`` products, without those of the default catalogue.

    Returns:
        At most ``count`` titles and the attributes of their products.
    """
    rng = np.random.default_rng([seed, TEXT_STREAM])
    attributes = draw_attributes(count, rng)
    titles = write_titles(attributes, rng)
    known = set(generate().titles)
    rows = [row for row, title in enumerate(titles) if title not in known]
    return [titles[row] for row in rows], attributes[rows]


def vocabulary(titles: list[str]) -> list[str]:
    """Build the vocabulary: special tokens, characters to spell rare words with, common words.

    The trainers of the tokenizers library break ties at random, which is not reproducible.
    """
    words = Counter(word for title in titles for word in re.findall(r"\w+|[^\w\s]", title.lower()))
    common = {word for word, count in words.items() if count * COMMON >= len(titles)}
    characters = set("".join(words))
    return SPECIAL + sorted(common | characters | {f"##{character}" for character in characters})


class _TextPretext(nn.Module):
    """A BERT with an output layer per objective."""

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
        masked = words != IGNORED
        logits = self.pretraining.cls.predictions(output.last_hidden_state[masked])
        return {
            "words": functional.cross_entropy(logits, words[masked]),
            "category": functional.cross_entropy(self.category(output.pooler_output), labels[:, 0]),
            "tags": functional.cross_entropy(self.tags(output.hidden_states[self.inner][:, 0]), labels[:, 1]),
        }


def train_text(folder: Path, size: Size, seed: int, steps: int, count: int = 30_000) -> None:
    """Build the vocabulary, train the BERT, and save both to ``folder``."""
    titles, attributes = training_titles(seed, count)
    labels = noisy_labels(attributes, ("category",), TEXT_ATTRIBUTES, np.random.default_rng([seed, LABEL_STREAM]))
    tokenizer = BertTokenizer(
        {word: number for number, word in enumerate(vocabulary(titles))}, model_max_length=POSITIONS
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
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

    train_steps("text", model, losses, len(titles), steps, seed)
    bert = model.pretraining.bert
    # The short pretraining works better without dropout; fine-tuning gets BERT's default.
    bert.config.hidden_dropout_prob = bert.config.attention_probs_dropout_prob = 0.1
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _ImagePretext(nn.Module):
    """A ViT with an output layer per objective."""

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
        masked, patches, mask = mask_patches(images)
        output = self.vit(masked, output_hidden_states=True)
        inner = output.hidden_states[self.inner]
        category, shape = self.labels(output.last_hidden_state[:, 0]).split(NUM_VALUES, dim=1)
        return {
            "category": functional.cross_entropy(category, labels[:, 0]),
            "shape": functional.cross_entropy(shape, labels[:, 1]),
            "tags": functional.cross_entropy(self.tags(inner[:, 0]), labels[:, 2]),
            "pixels": (self.pixels(inner[:, 1:]) - patches)[mask].square().mean(),
        }


def train_image(folder: Path, size: Size, seed: int, steps: int, count: int = 12_000) -> None:
    """Train the ViT and save it with its preprocessing to ``folder``."""
    rng = np.random.default_rng([seed, IMAGE_STREAM])
    attributes = draw_attributes(count, rng)
    processor, images = render_pictures(attributes, RESIZED, rng)
    labels = noisy_labels(attributes, ("category", "shape"), IMAGE_ATTRIBUTES, rng)

    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=RESIZED,
        patch_size=PATCH,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * size.width,
    )
    model = _ImagePretext(config, size).train()
    train_steps("image", model, lambda rows: model(images[rows], labels[rows]), count, steps, seed)
    model.vit.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Train the encoders and write them into the package, or to ``--out``."""
    trainings: dict[str, Callable[[Path, int], None]] = {}
    for suffix, size in SIZES.items():
        trainings[f"{TEXT}{suffix}"] = partial(train_text, size=size, steps=1000)
        trainings[f"{IMAGE}{suffix}"] = partial(train_image, size=size, steps=2000)
    trainings[AUDIO] = partial(train_audio, size=MEDIA_SIZE, steps=800)
    trainings[VIDEO] = partial(train_video, size=MEDIA_SIZE, steps=1500)
    trainings[CAPTIONER] = partial(train_captioner, steps=2000)
    parser = argparse.ArgumentParser(description="Train the demo's small encoders.")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(trainings))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in [arguments.only] if arguments.only else trainings:
        trainings[name](arguments.out / name, seed=arguments.seed)  # type: ignore[call-arg]


if __name__ == "__main__":
    main()
