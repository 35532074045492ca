"""Train the demo's small models of tones and clips, and the one that writes captions; see ``train_encoders``."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    BertTokenizer,
    GPT2Config,
    VideoMAEConfig,
    VideoMAEImageProcessorPil,
    VideoMAEModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from iisan.demo import clips, pictures, tones
from iisan.demo.products import (
    AUDIO_ATTRIBUTES,
    EXTENDED_ATTRIBUTES,
    NUM_VALUES,
    VIDEO_ATTRIBUTES,
    draw_attributes,
)
from iisan.names import AUDIO, VIDEO
from pretraining import (
    AUDIO_STREAM,
    CAPTION_STREAM,
    HEADS,
    IGNORED,
    PATCH,
    POSITIONS,
    SIZES,
    SPECIAL,
    VIDEO_STREAM,
    Size,
    hide_patches,
    noisy_labels,
    render_pictures,
    train_steps,
)

BANDS = 32
WINDOWS = 40  # of 10 ms: the whole tone
TUBELET = 2  # frames that make one token


def train_captioner(folder: Path, seed: int, steps: int, count: int = 12_000) -> None:
    """Train a ViT with a GPT-2 on pictures and sentences about them, and save all that it needs to ``folder``."""
    rng = np.random.default_rng([seed, CAPTION_STREAM])
    attributes = draw_attributes(count, rng)
    processor, images = render_pictures(attributes, pictures.SIZE, rng)
    sentences = pictures.describe(attributes)
    words = sorted({word for sentence in sentences for word in sentence.split()})
    tokenizer = BertTokenizer(
        {word: number for number, word in enumerate(SPECIAL + words)}, model_max_length=POSITIONS
    )
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")["input_ids"]
    targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == tokenizer.pad_token_id, IGNORED)

    torch.manual_seed(seed)
    width = SIZES[""].width
    vision = ViTConfig(
        image_size=pictures.SIZE,
        patch_size=PATCH,
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=4 * width,
    )
    start = tokenizer.cls_token_id
    ends = {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    language = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=width,
        n_layer=1,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=start,
        **ends,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        vision, language, decoder_start_token_id=start, **ends
    )
    model = VisionEncoderDecoderModel(config).train()

    def losses(rows: np.ndarray) -> dict[str, torch.Tensor]:
        guess = model(pixel_values=images[rows], decoder_input_ids=tokens[rows, :-1]).logits
        return {
            "words": functional.cross_entropy(guess.flatten(0, 1), targets[rows].flatten(), ignore_index=IGNORED)
        }

    train_steps("captioner", model, losses, count, steps, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _MediaPretext(nn.Module):
    """An AST or a VideoMAE with the heads of its objectives.

    Args:
        tower: the model.
        values: numbers in a patch, as ``hide_patches`` gives them.
        size: of the model.
    """

    def __init__(self, tower: nn.Module, values: int, size: Size) -> None:
        super().__init__()
        self.inner = size.inner
        self.tower = tower
        self.label = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, NUM_VALUES))
        self.content = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, values))

    def forward(
        self, masked: torch.Tensor, patches: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        output = self.tower(masked, output_hidden_states=True)
        # Class tokens, of which only AST has some, stand before the patches.
        inner = output.hidden_states[self.inner][:, -patches.shape[1] :]
        return {
            "label": functional.cross_entropy(self.label(output.last_hidden_state.mean(1)), labels),
            "content": (self.content(inner) - patches)[hidden].square().mean(),
        }


def train_audio(folder: Path, size: Size, seed: int, steps: int, count: int = 12_000) -> None:
    """Train the AST and save it with its preprocessing to ``folder``."""
    rng = np.random.default_rng([seed, AUDIO_STREAM])
    attributes = draw_attributes(count, rng, EXTENDED_ATTRIBUTES)
    extractor = ASTFeatureExtractor(num_mel_bins=BANDS, max_length=WINDOWS)
    spectra = torch.cat(
        [
            extractor(
                [*tones.render(block, rng) / np.float32(2**15)], sampling_rate=tones.RATE, return_tensors="pt"
            )["input_values"]
            for block in np.array_split(attributes, max(1, count // 256))
        ]
    )
    labels = noisy_labels(attributes, (), AUDIO_ATTRIBUTES, rng)[:, 0]

    torch.manual_seed(seed)
    config = ASTConfig(
        num_mel_bins=BANDS,
        max_length=WINDOWS,
        patch_size=PATCH,
        frequency_stride=PATCH,
        time_stride=PATCH,
        hidden_size=size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=HEADS,
        intermediate_size=4 * size.width,
    )
    tower = ASTModel(config)
    model = _MediaPretext(tower, PATCH**2, size).train()

    def losses(rows: np.ndarray) -> dict[str, torch.Tensor]:
        # AST numbers its patches along the bands' axis first.
        masked, patches, hidden = hide_patches(spectra[rows].transpose(1, 2)[:, None])
        return model(masked[:, 0].transpose(1, 2), patches, hidden, labels[rows])

    train_steps(AUDIO, model, losses, count, steps, seed)
    tower.save_pretrained(folder)
    extractor.save_pretrained(folder)


def train_video(folder: Path, size: Size, seed: int, steps: int, count: int = 12_000) -> None:
    """Train the VideoMAE and save it with its preprocessing to ``folder``."""
    rng = np.random.default_rng([seed, VIDEO_STREAM])
    attributes = draw_attributes(count, rng, EXTENDED_ATTRIBUTES)
    blocks = np.array_split(attributes, max(1, count // 256))
    films = torch.cat([torch.from_numpy(clips.render(block, rng)).movedim(-1, 2) for block in blocks])
    labels = noisy_labels(attributes, (), VIDEO_ATTRIBUTES, rng)[:, 0]
    side = {"height": clips.SIZE, "width": clips.SIZE}
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": clips.SIZE}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )

    torch.manual_seed(seed)
    config = VideoMAEConfig(
        image_size=clips.SIZE,
        patch_size=PATCH,
        num_frames=clips.FRAMES,
        tubelet_size=TUBELET,
        hidden_size=size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=HEADS,
        intermediate_size=4 * size.width,
    )
    tower = VideoMAEModel(config)
    model = _MediaPretext(tower, 3 * TUBELET * PATCH**2, size).train()

    def losses(rows: np.ndarray) -> dict[str, torch.Tensor]:
        # As the processor does it, without its copies of all clips in fp32; frames of a tubelet are channels.
        tubelets = (films[rows] / 127.5 - 1).reshape(-1, 3 * TUBELET, clips.SIZE, clips.SIZE)
        masked, patches, hidden = hide_patches(tubelets)
        tokens = (len(rows), -1, patches.shape[-1])
        return model(
            masked.reshape(films[rows].shape), patches.reshape(tokens), hidden.reshape(tokens[:2]), labels[rows]
        )

    train_steps(VIDEO, model, losses, count, steps, seed)
    tower.save_pretrained(folder)
    processor.save_pretrained(folder)
