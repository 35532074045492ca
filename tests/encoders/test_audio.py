"""Audio states against transformers' own hidden states of each sound alone."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers as hf

from iisan.encoders.audio import AudioEncoder, load_audio
from iisan.encoders.image import load_image
from iisan.encoders.levels import Level, parse_levels
from iisan.encoders.tuning import tune
from iisan.errors import DataError, EncoderError

ALL = parse_levels("all", 4)
RATE = 16_000
NAMES = ["ast", "wav2vec2", "wav2vec2-large", "hubert", "wavlm", "whisper"]
SAMPLE_READERS = ["wav2vec2", "wav2vec2-large", "hubert", "wavlm"]


def samples(seconds: float, seed: int) -> np.ndarray:
    """Noise with a tone in it."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(scale=0.1, size=len(time))
    return (noise + 0.4 * np.sin(2 * np.pi * 220 * (1 + seed) * time)).astype(np.float32)


def encode(wave: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


LENGTHS = (0.2, 0.31, 0.2, 0.26)
CLIPS = [samples(seconds, seed) for seed, seconds in enumerate(LENGTHS)]
SOUNDS = [encode(clip) for clip in CLIPS]


@torch.inference_mode()
def states(encoder: AudioEncoder, contents: list[bytes], levels: tuple[Level, ...] = ALL) -> torch.Tensor:
    return encoder(encoder.prepare(contents), levels)


@torch.inference_mode()
def reference(folder: Path, clip: np.ndarray) -> list[torch.Tensor]:
    """All hidden states [S, D] of one sound, h_4 raw, and the final output."""
    model: Any = hf.AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    inputs = hf.AutoFeatureExtractor.from_pretrained(folder)(clip, sampling_rate=RATE, return_tensors="pt")
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    raw = []
    layers[-1].register_forward_hook(lambda _, __, output: raw.append(output))
    output = model(inputs[model.main_input_name], output_hidden_states=True)
    top = raw[0][0] if isinstance(raw[0], tuple) else raw[0]
    assert len(output.hidden_states) == 5
    return [hidden[0] for hidden in (*output.hidden_states[:4], top, output.last_hidden_state)]


@pytest.mark.parametrize("name", NAMES)
def test_states_equal_hidden_states_of_each_sound_alone(audio_folders: dict[str, Path], name: str) -> None:
    encoder = load_audio(str(audio_folders[name]))
    got = states(encoder, SOUNDS)
    assert got.shape == (4, 6, 16)
    assert got.dtype == torch.float32
    for number, clip in enumerate(CLIPS):
        for level, hidden in enumerate(reference(audio_folders[name], clip)):
            # Of Whisper's 50 frames, one stands for 320 samples.
            own = hidden[: -(-len(clip) // 320)] if name == "whisper" else hidden
            torch.testing.assert_close(got[number, level], own.mean(0), rtol=1e-5, atol=1e-5)
    differences = (got[:, None] - got).abs().amax((2, 3))
    assert (differences + torch.eye(4)).min() > 1e-3  # a hundred times what is tolerated


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_order_and_batches_do_not_matter(audio_folders: dict[str, Path], name: str) -> None:
    encoder = load_audio(str(audio_folders[name]))
    together = states(encoder, SOUNDS)
    alone = torch.cat([states(encoder, [sound]) for sound in SOUNDS])
    turned = states(encoder, SOUNDS[::-1]).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, turned, rtol=1e-5, atol=1e-5)


def test_sounds_of_one_length_run_together(audio_folders: dict[str, Path]) -> None:
    encoder = load_audio(str(audio_folders["wav2vec2"]))
    batches = []
    encoder.layers[0].register_forward_pre_hook(lambda _, args: batches.append(tuple(args[0].shape[:2])))
    states(encoder, SOUNDS)
    # 20 samples a frame
    assert batches == [(2, 159), (1, 207), (1, 247)]


def test_gradients_are_the_sum_over_sounds_of_all_lengths(audio_folders: dict[str, Path]) -> None:
    encoder = load_audio(str(audio_folders["wav2vec2"])).requires_grad_(True)
    weight: Any = encoder.tower.get_submodule("feature_extractor.conv_layers.0.conv").weight

    def gradient(contents: list[bytes]) -> torch.Tensor:
        encoder.zero_grad()
        encoder(encoder.prepare(contents), ("last",)).square().sum().backward()
        return weight.grad.clone()

    torch.testing.assert_close(gradient(SOUNDS), sum(gradient([sound]) for sound in SOUNDS), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_training_skips_no_layer(audio_folders: dict[str, Path], name: str) -> None:
    encoder = load_audio(str(audio_folders[name]))
    encoder.active = [encoder.tower]
    ran: list[int] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        encoder.train()(encoder.prepare(SOUNDS[:1]), ALL)
    assert len(ran) == 4


def test_the_class_token_of_ast(audio_folders: dict[str, Path]) -> None:
    got = states(load_audio(str(audio_folders["ast"]), "cls"), SOUNDS)
    for number, clip in enumerate(CLIPS):
        wanted = torch.stack([hidden[0] for hidden in reference(audio_folders["ast"], clip)])
        torch.testing.assert_close(got[number], wanted, rtol=1e-5, atol=1e-5)
    for name in (*SAMPLE_READERS, "whisper"):
        with pytest.raises(EncoderError, match="use mean pooling"):
            load_audio(str(audio_folders[name]), "cls")


def test_tokens_resume_where_all_sounds_have_equally_many(audio_folders: dict[str, Path]) -> None:
    whole = states(load_audio(str(audio_folders["ast"])), SOUNDS)
    tokens = load_audio(str(audio_folders["ast"]), "tokens")
    inputs = tokens.prepare(SOUNDS)
    with torch.inference_mode():
        hidden = tokens(inputs, (2,))
    assert tokens.row_counts(inputs, len(hidden)) == [10] * 4  # 2 × 4 patches and two class tokens
    upper = load_audio(str(audio_folders["ast"]))
    upper.drop_below(2)
    with torch.inference_mode():
        resumed = upper.resume(2, hidden.view(4, 10, 16), torch.ones(4, 10, dtype=torch.long))
    torch.testing.assert_close(resumed[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)
    for name in (*SAMPLE_READERS, "whisper"):
        with pytest.raises(EncoderError, match="partial training"):
            load_audio(str(audio_folders[name]), "tokens")


def test_max_seconds_cuts_and_belongs_to_the_settings(audio_folders: dict[str, Path]) -> None:
    folder = str(audio_folders["wav2vec2"])
    default, short = load_audio(folder), load_audio(folder, max_seconds=0.2)
    assert (default.settings["max_seconds"], short.settings["max_seconds"]) == (10, 0.2)
    cut = encode(CLIPS[1][880:4_080])  # the middle 0.2 of 0.31 seconds
    torch.testing.assert_close(states(short, [SOUNDS[1]]), states(default, [cut]))
    assert load_audio(str(audio_folders["whisper"])).max_seconds == 1
    assert load_audio(str(audio_folders["ast"])).max_seconds == 0.32
    for name, length, expected in (("wav2vec2", 0.0, "at least 0.025"), ("whisper", 1.5, "0.025 to 1")):
        with pytest.raises(EncoderError, match=f"max_seconds {length} for .* expected {expected}"):
            load_audio(str(audio_folders[name]), max_seconds=length)


def test_the_models_rate_is_what_it_hears(audio_folders: dict[str, Path]) -> None:
    encoder = load_audio(str(audio_folders["ast"]))
    time = np.arange(24_000) / 48_000
    low = states(encoder, [encode(np.sin(2 * np.pi * 300 * time), 48_000)])
    at_home = states(encoder, [encode(np.sin(2 * np.pi * 300 * np.arange(8_000) / RATE))])
    torch.testing.assert_close(low, at_home, rtol=0.02, atol=0.02)


def test_settings_tell_extractors_apart(audio_folders: dict[str, Path]) -> None:
    settings = {name: load_audio(str(folder)).settings for name, folder in audio_folders.items()}
    assert {setting["kind"] for setting in settings.values()} == {"audio"}
    assert settings["wav2vec2"]["processor_digest"] == settings["hubert"]["processor_digest"]
    assert len({setting["processor_digest"] for setting in settings.values()}) == 3


def test_the_published_extractor_of_ast_warns_of_nothing(audio_folders: dict[str, Path], tmp_path: Path) -> None:
    for file in audio_folders["ast"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings |= {"num_mel_bins": 128, "max_length": 1024}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = load_audio(str(tmp_path))
    assert encoder.max_seconds == 10.24
    assert encoder.prepare(SOUNDS[:1])["input_values"].shape == (1, 1024, 128)


def test_what_fills_in_for_masked_audio_may_be_missing(audio_folders: dict[str, Path], tmp_path: Path) -> None:
    model: Any = hf.AutoModel.from_pretrained(audio_folders["wav2vec2"])
    values = {key: value for key, value in model.state_dict().items() if key != "masked_spec_embed"}
    assert len(values) == len(model.state_dict()) - 1
    model.save_pretrained(tmp_path, state_dict=values)
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    whole, lacking = load_audio(str(audio_folders["wav2vec2"])), load_audio(str(tmp_path))
    assert whole.weight_digest == lacking.weight_digest
    torch.testing.assert_close(states(whole, SOUNDS), states(lacking, SOUNDS))


def test_lora_is_refused_where_its_layers_are_bypassed(audio_folders: dict[str, Path]) -> None:
    # WavLM hands the weights of query and value to a function; what stands around those layers never runs.
    with pytest.raises(EncoderError, match="no weight of method 'lora'"):
        tune(load_audio(str(audio_folders["wavlm"])), "lora")
    tune(load_audio(str(audio_folders["hubert"])), "lora")


def test_other_models_and_other_files_are_refused(
    audio_folders: dict[str, Path], model_folders: dict[str, Path]
) -> None:
    for name in ("bert", "vit", "clip"):
        with pytest.raises(EncoderError, match="audio feature extractor"):
            load_audio(str(model_folders[name]))
    with pytest.raises(EncoderError, match="image processor"):
        load_image(str(audio_folders["ast"]))
    with pytest.raises(DataError, match="not a sound"):
        load_audio(str(audio_folders["ast"])).prepare([b"no sound"])
