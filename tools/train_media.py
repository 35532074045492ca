"""Train the demo's small audio and video encoders and its captioner; see ``train_encoders``."""

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
    mask_patches,
    noisy_labels,
    render_pictures,
    train_steps,
)

BANDS = 32
WINDOWS = 40  # spectrogram frames of 10 ms: the whole tone
TUBELET = 2  # frames per token


def train_captioner(folder: Path, seed: int, steps: int, count: int = 12_000) -> None:
    """Train a ViT with a GPT-2 on pictures and their descriptions, and save model and processors to ``folder``."""
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
        logits = model(pixel_values=images[rows], decoder_input_ids=tokens[rows, :-1]).logits
        return {
            "words": functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten(), ignore_index=IGNORED)
        }

    train_steps("captioner", model, losses, count, steps, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _MediaPretext(nn.Module):
    """An AST or a VideoMAE with an output layer per objective.

    Args:
        encoder: The model.
        values: Number of values in a patch of ``mask_patches``.
        size: Size of the model.
    """

    def __init__(self, encoder: nn.Module, values: int, size: Size) -> None:
        super().__init__()
        self.inner = size.inner
        self.encoder = encoder
        self.label = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, NUM_VALUES))
        self.content = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, values))

    def forward(
        self, masked: torch.Tensor, patches: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        output = self.encoder(masked, output_hidden_states=True)
        # Skip the class tokens that AST puts before the patches; VideoMAE has none.
        inner = output.hidden_states[self.inner][:, -patches.shape[1] :]
        return {
            "label": functional.cross_entropy(self.label(output.last_hidden_state.mean(1)), labels),
            "content": (self.content(inner) - patches)[mask].square().mean(),
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
        num_hidden_layers=size.layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * size.width,
    )
    encoder = ASTModel(config)
    model = _MediaPretext(encoder, PATCH**2, size).train()

    def losses(rows: np.ndarray) -> dict[str, torch.Tensor]:
        # AST orders its patches by band first.
        masked, patches, mask = mask_patches(spectra[rows].transpose(1, 2)[:, None])
        return model(masked[:, 0].transpose(1, 2), patches, mask, labels[rows])

    train_steps(AUDIO, model, losses, count, steps, seed)
    encoder.save_pretrained(folder)
    extractor.save_pretrained(folder)


def train_video(folder: Path, size: Size, seed: int, steps: int, count: int = 12_000) -> None:
    """Train the VideoMAE and save it with its preprocessing to ``folder``."""
    rng = np.random.default_rng([seed, VIDEO_STREAM])
    attributes = draw_attributes(count, rng, EXTENDED_ATTRIBUTES)
    blocks = np.array_split(attributes, max(1, count // 256))
    videos = torch.cat([torch.from_numpy(clips.render(block, rng)).movedim(-1, 2) for block in blocks])
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
        num_hidden_layers=size.layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * size.width,
    )
    encoder = VideoMAEModel(config)
    model = _MediaPretext(encoder, 3 * TUBELET * PATCH**2, size).train()

    def losses(rows: np.ndarray) -> dict[str, torch.Tensor]:
        # Same values as from the processor, without fp32 copies of all clips; the frames of a tubelet become
        # channels.
        tubelets = (videos[rows] / 127.5 - 1).reshape(-1, 3 * TUBELET, clips.SIZE, clips.SIZE)
        masked, patches, mask = mask_patches(tubelets)
        tokens = (len(rows), -1, patches.shape[-1])
        return model(
            masked.reshape(videos[rows].shape), patches.reshape(tokens), mask.reshape(tokens[:2]), labels[rows]
        )

    train_steps(VIDEO, model, losses, count, steps, seed)
    encoder.save_pretrained(folder)
    processor.save_pretrained(folder)
