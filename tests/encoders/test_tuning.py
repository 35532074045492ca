"""The weights that each tuning method adds and trains, for every family of models."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from iisan.encoders.encoder import Encoder
from iisan.encoders.image import load_image
from iisan.encoders.text import load_text
from iisan.encoders.tuning import Adapter, first_trained_layer, tune
from iisan.errors import ConfigError, EncoderError, MissingExtraError
from iisan.names import LAST

TEXTS = ("bert", "roberta", "deberta-v2", "distilbert", "mpnet")
IMAGES = ("vit", "clip", "siglip", "deit", "dinov2")
#: Of the tiny models: D, feed-forward width, T.
D, F, T = 16, 32, 4
CONTENTS = ["red pump", "a small steel box of blue valve tape"]


def load(folders: dict[str, Path], name: str) -> Encoder:
    return load_text(str(folders[name])) if name not in IMAGES else load_image(str(folders[name]), "mean")


def inputs_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    return encoder.prepare(CONTENTS if encoder.kind == "text" else [encoder.sample()] * 2)


def trained(encoder: Encoder) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in encoder.named_parameters() if value.requires_grad}


def count(encoder: Encoder) -> int:
    return sum(value.numel() for value in trained(encoder).values())


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
@pytest.mark.parametrize("method", ["full", "bias", "lora", "adapter"])
def test_exactly_the_methods_weights_get_gradients(method: str, name: str, model_folders: dict[str, Path]) -> None:
    encoder = load(model_folders, name)
    before = {key: value.clone() for key, value in encoder.named_parameters()}
    inputs = inputs_of(encoder)
    plain = encoder(inputs, [LAST])
    tune(encoder, method, rank=2, bottleneck=3)
    # LoRA and Houlsby's adapters start as the identity.
    torch.testing.assert_close(encoder(inputs, [LAST]), plain)
    optimizer = torch.optim.SGD(trained(encoder).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder.train()(inputs, [LAST]).square().sum().backward()
        with_gradient = {key for key, value in encoder.named_parameters() if value.grad is not None}
        assert with_gradient == set(trained(encoder))
        optimizer.step()
    # peft moves what it wraps: "…q_proj.weight" becomes "…q_proj.base_layer.weight".
    after = {key.replace(".base_layer", ""): value for key, value in encoder.named_parameters()}
    frozen = {key for key in before if not after[key].requires_grad}
    assert frozen or method == "full"
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    assert all(not torch.equal(after[key], before[key]) for key in before.keys() - frozen if "bias" not in key)


@pytest.mark.parametrize("name", ["bert", "vit", "deberta-v2", "clip"])
def test_counts_follow_the_formulas(name: str, model_folders: dict[str, Path]) -> None:
    r, h = 2, 3
    encoder = load(model_folders, name)
    tune(encoder, "lora", rank=r)
    # Query and value of each layer: A is r × D, B is D × r.
    assert count(encoder) == T * 2 * (2 * D * r)
    encoder = load(model_folders, name)
    tune(encoder, "adapter", bottleneck=h)
    # Two adapters per layer, each down D → H and up H → D with biases.
    assert count(encoder) == T * 2 * (2 * D * h + h + D)


def test_counts_of_bert_by_hand(model_folders: dict[str, Path]) -> None:
    # Four biases of attention, two of feed-forward, two layer norms; one norm after the embeddings. The pooler,
    # which the output does not depend on, is not counted.
    encoder = load(model_folders, "bert")
    tune(encoder, "bias")
    assert count(encoder) == T * (4 * D + F + D + 2 * D) + D
    vocabulary = encoder.tower.embeddings.word_embeddings.num_embeddings  # type: ignore[union-attr]
    layer = 4 * (D * D + D) + D * F + F + F * D + D + 4 * D
    encoder = load(model_folders, "bert")
    tune(encoder, "full")
    assert count(encoder) == (vocabulary + 40 + 2) * D + 2 * D + T * layer


@pytest.mark.parametrize("name", ["bert", "vit", "dinov2", "deberta-v2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_only_the_last_layers_are_trained(method: str, name: str, model_folders: dict[str, Path]) -> None:
    encoder = load(model_folders, name)
    tune(encoder, method, last_n_layers=1)
    names = set(trained(encoder))
    assert any(f"{encoder.layer_path}.{T - 1}." in key for key in names)
    assert not any("embeddings" in key for key in names)
    assert not any(f"{encoder.layer_path}.{index}." in key for key in names for index in range(T - 1))
    encoder.train()
    assert encoder.layers[T - 1].training
    assert not encoder.layers[0].training


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
def test_a_resumed_encoder_has_the_same_output(name: str, model_folders: dict[str, Path]) -> None:
    encoder = load(model_folders, name)
    inputs = inputs_of(encoder)
    mask = inputs.get("attention_mask")
    whole = encoder(inputs, [LAST])
    for first in (0, 2, T - 1):
        kept: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(hidden)
            return hidden

        handle = encoder.replace_input(first, keep)
        encoder(inputs, [LAST])
        handle.remove()
        tokens = torch.ones(kept[0].shape[:2], dtype=torch.long) if mask is None else mask
        top = copy.deepcopy(encoder)
        top.drop_below(first)
        size = [sum(value.numel() for value in model.parameters()) for model in (top, encoder)]
        assert size[0] < size[1] or first == 0
        torch.testing.assert_close(top.resume(first, kept[0], tokens), whole)


def test_gradient_checkpointing_changes_no_gradient(model_folders: dict[str, Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = load(model_folders, "bert")
        tune(encoder, "full", gradient_checkpointing=checkpointing)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        runs: list[int] = []
        attention = next(iter(encoder.layers[0].children()))
        attention.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        encoder.train()(inputs_of(encoder), [LAST]).square().sum().backward()
        assert len(runs) == 1 + checkpointing  # once more in the backward pass
        gradients.append({key: value.grad for key, value in trained(encoder).items()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


def test_a_fused_projection_is_refused_with_its_name(model_folders: dict[str, Path]) -> None:
    with pytest.raises(EncoderError, match=r"query and value .*in_proj \(16→48\)"):
        tune(load(model_folders, "deberta"), "lora")


def test_an_unknown_structure_is_refused(model_folders: dict[str, Path]) -> None:
    encoder = load_text(str(model_folders["gpt2"]))
    for method in ("lora", "adapter"):
        with pytest.raises(EncoderError, match="linear modules of a layer: none"):
            tune(encoder, method)


def test_more_layers_than_there_are(model_folders: dict[str, Path]) -> None:
    encoder = load(model_folders, "bert")
    assert first_trained_layer(encoder, None) == 0
    assert first_trained_layer(encoder, T) == 0
    with pytest.raises(EncoderError, match="the last 5 layers"):
        tune(encoder, "full", last_n_layers=5)


def test_an_unknown_method(model_folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="'prefix'"):
        tune(load(model_folders, "bert"), "prefix")


def test_lora_without_peft(model_folders: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft is not installed, but LoRA needs it"):
        tune(load(model_folders, "bert"), "lora")


def test_an_adapter_starts_as_the_identity() -> None:
    x = torch.randn(5, 8)
    adapter = Adapter(8, 4)
    torch.testing.assert_close(adapter(x), x)
    torch.nn.init.ones_(adapter.up.weight)
    by_hand = x + torch.nn.functional.gelu(x @ adapter.down.weight.T).sum(1, keepdim=True)
    torch.testing.assert_close(adapter(x), by_hand)
