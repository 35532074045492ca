"""Pooled states of encoders against transformers' own hidden states and naive pooling."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModel

from iisan.encoders.encoder import Encoder
from iisan.encoders.image import load_image
from iisan.encoders.layers import find_layers, grid_means, pooled_states
from iisan.encoders.levels import parse_levels
from iisan.encoders.text import load_text
from iisan.errors import DataError, EncoderError
from pictures import encoded, noise

Folders = dict[str, Path]
TEXTS = ["Red pump", "small steel valve for large blue pump and mask", "tape", "glove of steel with box"]
ALL = parse_levels("all", 4)


def picture(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    return encoded(Image.fromarray(noise(seed, *size)))


@torch.inference_mode()
def states(encoder: Encoder, contents: list, levels: tuple = ALL) -> torch.Tensor:
    return encoder(encoder.prepare(contents), levels)


@torch.inference_mode()
def reference(model: nn.Module, **inputs: torch.Tensor) -> list[torch.Tensor]:
    output = model.eval()(**inputs, output_hidden_states=True)
    return [*output.hidden_states, output.last_hidden_state]


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_text_states_equal_hidden_states(model_folders: Folders, name: str, pooling: str) -> None:
    encoder = load_text(str(model_folders[name]), pooling)
    inputs = encoder.prepare(TEXTS)
    hidden = reference(AutoModel.from_pretrained(model_folders[name]), **inputs)
    got = states(encoder, TEXTS)
    assert got.dtype == torch.float32
    assert got.shape == (4, 6, 16)
    for text, real in enumerate(inputs["attention_mask"].sum(1).tolist()):
        for level, values in enumerate(hidden):
            wanted = values[text, 0] if pooling == "cls" else values[text, :real].mean(0)
            torch.testing.assert_close(got[text, level], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_image_states_are_raw_layer_outputs(model_folders: Folders, pooling: str) -> None:
    encoder = load_image(str(model_folders["vit"]), pooling)
    contents = [picture(seed) for seed in range(3)]
    pixels = encoder.prepare(contents)["pixel_values"]
    model = AutoModel.from_pretrained(model_folders["vit"]).eval()
    with torch.inference_mode():
        by_hand = [model.embeddings(pixels)]
        for layer in model.layers:
            by_hand.append(layer(by_hand[-1]))
        by_hand.append(model.layernorm(by_hand[-1]))
    got = states(encoder, contents)
    for level, hidden in enumerate(by_hand):
        wanted = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
        torch.testing.assert_close(got[:, level], wanted, rtol=1e-5, atol=1e-5)
    # The last raw state is not the final output: there is a norm between them.
    assert (got[:, 4] - got[:, 5]).abs().max() > 0.1


def test_decoders_without_pad_token(model_folders: Folders) -> None:
    encoder = load_text(str(model_folders["gpt2"]), "mean")
    model = AutoModel.from_pretrained(model_folders["gpt2"])
    got = states(encoder, TEXTS)
    for text, content in enumerate(TEXTS):
        alone = encoder.tokenizer([content], return_tensors="pt")
        with torch.inference_mode():
            hidden = model.eval()(alone["input_ids"], output_hidden_states=True)
        torch.testing.assert_close(got[text, 0], hidden.hidden_states[0].mean((0, 1)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[text, 5], hidden.last_hidden_state.mean((0, 1)), rtol=1e-5, atol=1e-5)
    with pytest.raises(EncoderError, match="no tokens"):
        encoder.prepare(["red", ""])


@pytest.mark.parametrize("name", ["bert", "gpt2", "clip"])
def test_neighbours_and_padding_do_not_matter(model_folders: Folders, name: str) -> None:
    encoder = load_text(str(model_folders[name]), "mean")
    together = states(encoder, TEXTS)
    alone = torch.cat([states(encoder, [text]) for text in TEXTS])
    turned = states(encoder, TEXTS[::-1]).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, turned, rtol=1e-5, atol=1e-5)


def test_pooling_uses_the_mask_on_either_side(model_folders: Folders) -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    cls = load_text(str(model_folders["bert"]), "cls").pool({"attention_mask": mask})
    mean = load_text(str(model_folders["bert"]), "mean").pool({"attention_mask": mask})
    last = load_text(str(model_folders["bert"]), "last").pool({"attention_mask": mask})
    assert cls(hidden).tolist() == [[6, 7, 8], [12, 13, 14]]
    assert last(hidden).tolist() == [[9, 10, 11], [18, 19, 20]]
    torch.testing.assert_close(mean(hidden), torch.tensor([[7.5, 8.5, 9.5], [15.0, 16.0, 17.0]]))


@pytest.mark.parametrize(("levels", "calls"), [((0,), 0), ((0, 2), 2), ((1, 3), 3), ((0, "last"), 4), ((4,), 4)])
def test_layers_above_the_highest_level_do_not_run(model_folders: Folders, levels: tuple, calls: int) -> None:
    encoder = load_text(str(model_folders["bert"]))
    whole = states(encoder, TEXTS)
    ran = []
    for number, layer in enumerate(encoder.layers):
        layer.attention.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    part = states(encoder, TEXTS, levels)
    assert ran == list(range(calls))
    torch.testing.assert_close(part, whole[:, [ALL.index(level) for level in levels]])
    assert not any(layer._forward_hooks for layer in encoder.layers)


def test_levels_come_in_the_requested_order(model_folders: Folders) -> None:
    encoder = load_text(str(model_folders["bert"]))
    torch.testing.assert_close(states(encoder, TEXTS, ("last", 3, 0)), states(encoder, TEXTS)[:, [5, 3, 0]])


def test_gradients_flow_through_a_stopped_forward(model_folders: Folders) -> None:
    encoder = load_text(str(model_folders["bert"])).requires_grad_(True)
    encoder(encoder.prepare(TEXTS), (2,)).square().sum().backward()
    with_gradient = {
        int(name.split("layer.")[1].split(".")[0])
        for name, parameter in encoder.named_parameters()
        if parameter.grad is not None and "layer." in name
    }
    assert with_gradient == {0, 1}


def test_only_the_needed_encoder_of_two_is_kept(model_folders: Folders) -> None:
    folder = str(model_folders["clip"])
    whole = AutoModel.from_pretrained(folder).eval()
    text, image = load_text(folder, "mean"), load_image(folder, "cls")
    assert {type(text.tower).__name__, type(image.tower).__name__} == {"CLIPTextModel", "CLIPVisionModel"}
    assert not any("vision" in name for name, _ in text.named_modules())
    inputs = text.prepare(["red pump"])
    hidden = reference(whole.text_model, **inputs)
    got = states(text, ["red pump"])
    for level, values in enumerate(hidden):
        torch.testing.assert_close(got[0, level], values[0].mean(0), rtol=1e-5, atol=1e-5)
    pixels = image.prepare([picture(0)])["pixel_values"]
    hidden = reference(whole.vision_model, pixel_values=pixels)
    torch.testing.assert_close(states(image, [picture(0)])[0], torch.stack([h[0, 0] for h in hidden]))


@pytest.mark.parametrize("name", ["clip", "gpt2"])
def test_the_first_token_of_causal_models_is_refused(model_folders: Folders, name: str) -> None:
    with pytest.raises(EncoderError, match="use mean pooling"):
        load_text(str(model_folders[name]), "cls")


def test_class_pooling_needs_a_class_token(model_folders: Folders) -> None:
    with pytest.raises(EncoderError, match="no class token"):
        load_image(str(model_folders["siglip"]), "cls")
    assert states(load_image(str(model_folders["siglip"]), "mean"), [picture(1)]).shape == (1, 6, 16)


def test_bytes_that_are_not_an_image_are_refused(model_folders: Folders) -> None:
    with pytest.raises(DataError):
        load_image(str(model_folders["vit"])).prepare([b"no image"])


class Hierarchical(nn.Module):
    def __init__(self, *lists: nn.ModuleList) -> None:
        super().__init__()
        self.lists = nn.ModuleDict({f"list{i}": modules for i, modules in enumerate(lists)})

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor]:
        for layer in self.lists["list0"]:
            hidden = layer(hidden)
        return (hidden,)


def test_layers_are_found_by_structure() -> None:
    inner = nn.ModuleList([nn.ModuleDict({"parts": nn.ModuleList([nn.ReLU(), nn.ReLU()])}) for _ in range(2)])
    assert find_layers(Hierarchical(inner, nn.ModuleList([nn.ReLU(), nn.Tanh()])), 2) == "lists.list0"
    two = Hierarchical(*(nn.ModuleList([nn.ReLU(), nn.ReLU()]) for _ in range(2)))
    with pytest.raises(EncoderError, match=r"list0 \(2 × ReLU\)"):
        find_layers(two, 2)
    with pytest.raises(EncoderError, match="num_hidden_layers None"):
        find_layers(two, None)


def test_maps_of_fewer_channels_keep_more_grid_cells() -> None:
    one = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0], [4.0, 6.0]]]])  # 2 channels of 2 × 2
    assert grid_means(one, 2).tolist() == [[4.0, 3.0]]
    assert grid_means(one, 4).tolist() == [[3.0, 5.0, 2.0, 4.0]]
    assert grid_means(one, 8).tolist() == [[1.0, 3.0, 5.0, 7.0, 0.0, 2.0, 4.0, 6.0]]


def test_states_of_changing_width_are_refused() -> None:
    model = Hierarchical(nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 4)]))
    with pytest.raises(EncoderError, match=r"hidden state 1 .* \(2, 3, 8\)"):
        pooled_states(
            model, model.lists["list0"], {"hidden": torch.zeros(2, 3, 4)}, (0, 1, 2), lambda h: h[:, 0], 4
        )
