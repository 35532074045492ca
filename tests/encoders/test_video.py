"""Video states against transformers' own hidden states, and image states averaged over frames."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

from iisan.data.videos import sample_frames
from iisan.encoders.encoder import Encoder
from iisan.encoders.image import load_image
from iisan.encoders.levels import Level, parse_levels
from iisan.encoders.video import load_video
from iisan.errors import DataError, EncoderError
from pictures import encoded, moving, noise

ALL = parse_levels("all", 4)
NAMES = ["videomae", "vivit", "timesformer"]


def video(frames: int, seed: int) -> bytes:
    """A GIF of noise."""
    return moving([Image.fromarray(frame) for frame in noise(seed, frames, 18, 20)])


VIDEOS = [video(frames, seed) for seed, frames in enumerate((4, 11, 1))]


@torch.inference_mode()
def states(encoder: Encoder, contents: list[bytes], levels: tuple[Level, ...] = ALL) -> torch.Tensor:
    return encoder(encoder.prepare(contents), levels)


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_states_of_video_models_equal_hidden_states(video_folders: dict[str, Path], name: str) -> None:
    encoder = load_video(str(video_folders[name]))
    assert encoder.settings["frames"] == 4
    got = states(encoder, VIDEOS)
    assert got.shape == (3, 6, 16)
    model: Any = hf.AutoModel.from_pretrained(video_folders[name]).eval()
    processor = hf.VideoMAEImageProcessorPil.from_pretrained(video_folders[name])
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    raw: list[torch.Tensor] = []
    layers[0].register_forward_pre_hook(lambda _, args: raw.append(args[0]))
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: raw.append(output))
    for number, content in enumerate(VIDEOS):
        raw.clear()
        pixels = processor(sample_frames(content, 4), return_tensors="pt")["pixel_values"]
        output = model(pixels.reshape(1, 4, 3, 16, 16)).last_hidden_state
        for level, hidden in enumerate([*raw, output]):
            tokens = hidden[0] if isinstance(hidden, tuple) else hidden
            torch.testing.assert_close(got[number, level], tokens[0].mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "clip", "siglip"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_states_of_image_models_are_means_over_frames(
    model_folders: dict[str, Path], name: str, pooling: str
) -> None:
    folder = str(model_folders[name])
    if (name, pooling) == ("siglip", "cls"):
        with pytest.raises(EncoderError, match="no class token"):
            load_video(folder, pooling)
        return
    encoder, of_image = load_video(folder, pooling, frames=3), load_image(folder, pooling)
    got = states(encoder, VIDEOS)
    for number, content in enumerate(VIDEOS):
        frames = [encoded(image) for image in sample_frames(content, 3)]
        torch.testing.assert_close(got[number], states(of_image, frames).mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["videomae", "vit"])
def test_neighbours_and_order_do_not_matter(
    video_folders: dict[str, Path], model_folders: dict[str, Path], name: str
) -> None:
    encoder = load_video(str((video_folders | model_folders)[name]))
    together = states(encoder, VIDEOS)
    alone = torch.cat([states(encoder, [content]) for content in VIDEOS])
    turned = states(encoder, VIDEOS[::-1]).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, turned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["videomae", "vit"])
def test_tokens_resume(video_folders: dict[str, Path], model_folders: dict[str, Path], name: str) -> None:
    folder = str((video_folders | model_folders)[name])
    whole = states(load_video(folder), VIDEOS)
    tokens = load_video(folder, "tokens")
    inputs = tokens.prepare(VIDEOS)
    with torch.inference_mode():
        hidden = tokens(inputs, (2,))
    # VideoMAE joins two frames; ViT has a class token in each of eight.
    count = 2 * 4 if name == "videomae" else 8 * (4 + 1)
    assert tokens.row_counts(inputs, len(hidden)) == [count] * 3
    upper = load_video(folder)
    upper.drop_below(2)
    with torch.inference_mode():
        resumed = upper.resume(2, hidden.view(3, count, 16), torch.ones(3, count, dtype=torch.long))
    torch.testing.assert_close(resumed[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)


def test_the_number_of_frames_belongs_to_the_settings(
    video_folders: dict[str, Path], model_folders: dict[str, Path]
) -> None:
    folder = str(model_folders["vit"])
    assert load_video(folder).settings["frames"] == 8
    assert load_video(folder, frames=2).settings["frames"] == 2
    assert load_video(folder).settings["kind"] == "video"
    assert load_video(folder).settings["processor_digest"] != load_image(folder).settings["processor_digest"]
    for name, frames, expected in (("videomae", 8, "4, as in its training"), ("vit", 0, "at least 1")):
        with pytest.raises(EncoderError, match=f"{frames} frames for .* expected {expected}"):
            load_video(str((video_folders | model_folders)[name]), frames=frames)


def test_other_models_and_other_files_are_refused(
    video_folders: dict[str, Path], model_folders: dict[str, Path]
) -> None:
    with pytest.raises(EncoderError, match="image processor"):
        load_video(str(model_folders["bert"]))
    with pytest.raises(EncoderError, match="reads videos; expected a model for image"):
        load_image(str(video_folders["videomae"]), "mean")
    with pytest.raises(EncoderError, match="no class token"):
        load_video(str(video_folders["videomae"]), "cls")
    with pytest.raises(DataError, match="not a video"):
        load_video(str(video_folders["videomae"])).prepare([b"no video"])
