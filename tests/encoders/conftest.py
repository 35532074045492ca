"""Tiny models of sounds and videos, and settings for tests of tiny models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

# Synchronising a second thread takes longer than the work.
torch.set_num_threads(1)

SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {"conv_dim": (8, 8, 8), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)}
POSITIONS = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 1}
WAVES = SIZES | CONVOLUTIONS | POSITIONS | {"vocab_size": 8}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 4,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "encoder_layerdrop": 0.99,
}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 20}
TOKENS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)

SAMPLES = hf.Wav2Vec2FeatureExtractor()
AUDIO: dict[str, tuple[Any, Any]] = {
    "ast": (
        hf.ASTConfig(**SIZES, max_length=32, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8),
        hf.ASTFeatureExtractor(max_length=32, num_mel_bins=16),
    ),
    "wav2vec2": (hf.Wav2Vec2Config(**WAVES, layerdrop=0.99), SAMPLES),
    "wav2vec2-large": (hf.Wav2Vec2Config(**WAVES, **STABLE), SAMPLES),
    "hubert": (hf.HubertConfig(**WAVES), SAMPLES),
    "wavlm": (hf.WavLMConfig(**WAVES, num_buckets=8, max_bucket_distance=16), SAMPLES),
    "whisper": (
        hf.WhisperConfig(**WHISPER, **DECODER, **TOKENS, num_mel_bins=16, max_source_positions=50),
        hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
    ),
}

PIXELS = {"image_size": 16, "num_frames": 4}
SQUARE = {"height": 16, "width": 16}
VIDEO: dict[str, tuple[Any, Any]] = {
    "videomae": (
        hf.VideoMAEConfig(**SIZES, **PIXELS, patch_size=8),
        hf.VideoMAEImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE),
    ),
    "vivit": (
        hf.VivitConfig(**SIZES, **PIXELS, tubelet_size=[2, 8, 8]),
        hf.VideoMAEImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE),
    ),
    "timesformer": (
        hf.TimesformerConfig(**SIZES, **PIXELS, patch_size=8),
        hf.VideoMAEImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE),
    ),
}


def save(models: Mapping[str, tuple[Any, Any]], root: Path) -> dict[str, Path]:
    folders = {}
    for name, (config, processor) in models.items():
        torch.manual_seed(len(name))
        model = hf.AutoModel.from_config(config)
        for parameter in model.parameters():  # norms keep their weights; otherwise all contents would become alike
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        folders[name] = root / name
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def audio_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save(AUDIO, tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="session")
def video_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save(VIDEO, tmp_path_factory.mktemp("video"))
