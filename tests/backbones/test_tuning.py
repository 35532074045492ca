"""What each method adds to a backbone and trains of it, for every family of models."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from iisan.backbones.backbone import Backbone
from iisan.backbones.image import load_image
from iisan.backbones.text import load_text
from iisan.backbones.tuning import Adapter, first_trained_block, tune
from iisan.errors import BackboneError, ConfigError, MissingExtraError
from iisan.names import LAST

TEXTS = ("bert", "roberta", "deberta-v2", "distilbert", "mpnet")
IMAGES = ("vit", "clip", "siglip", "deit", "dinov2")
#: Of the tiny models: D, feed-forward width, T.
D, F, T = 16, 32, 4
CONTENTS = ["red pump", "a small steel box of blue valve tape"]


def load(folders: dict[str, Path], name: str) -> Backbone:
    return load_text(str(folders[name])) if name not in IMAGES else load_image(str(folders[name]), "mean")


def inputs_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return backbone.prepare(CONTENTS if backbone.kind == "text" else [backbone.sample()] * 2)


def trained(backbone: Backbone) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in backbone.named_parameters() if value.requires_grad}


def count(backbone: Backbone) -> int:
    return sum(value.numel() for value in trained(backbone).values())


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
@pytest.mark.parametrize("method", ["full", "bias", "lora", "adapter"])
def test_exactly_the_methods_weights_get_gradients(method: str, name: str, model_folders: dict[str, Path]) -> None:
    backbone = load(model_folders, name)
    before = {key: value.clone() for key, value in backbone.named_parameters()}
    inputs = inputs_of(backbone)
    plain = backbone(inputs, [LAST])
    tune(backbone, method, rank=2, bottleneck=3)
    # LoRA and Houlsby's adapters start as the identity.
    torch.testing.assert_close(backbone(inputs, [LAST]), plain)
    optimizer = torch.optim.SGD(trained(backbone).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        backbone.train()(inputs, [LAST]).square().sum().backward()
        with_gradient = {key for key, value in backbone.named_parameters() if value.grad is not None}
        assert with_gradient == set(trained(backbone))
        optimizer.step()
    # peft moves what it wraps: "…q_proj.weight" becomes "…q_proj.base_layer.weight".
    after = {key.replace(".base_layer", ""): value for key, value in backbone.named_parameters()}
    frozen = {key for key in before if not after[key].requires_grad}
    assert frozen or method == "full"
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    assert all(not torch.equal(after[key], before[key]) for key in before.keys() - frozen if "bias" not in key)


@pytest.mark.parametrize("name", ["bert", "vit", "deberta-v2", "clip"])
def test_counts_follow_the_formulas(name: str, model_folders: dict[str, Path]) -> None:
    r, h = 2, 3
    backbone = load(model_folders, name)
    tune(backbone, "lora", rank=r)
    # Query and value of each block: A is r × D, B is D × r.
    assert count(backbone) == T * 2 * (2 * D * r)
    backbone = load(model_folders, name)
    tune(backbone, "adapter", bottleneck=h)
    # Two adapters a block, each down D → H and up H → D with biases.
    assert count(backbone) == T * 2 * (2 * D * h + h + D)


def test_counts_of_bert_by_hand(model_folders: dict[str, Path]) -> None:
    # Four biases of attention, two of feed-forward, two layer norms; one norm after the embeddings. The pooler,
    # which the answer does not depend on, is not counted.
    backbone = load(model_folders, "bert")
    tune(backbone, "bias")
    assert count(backbone) == T * (4 * D + F + D + 2 * D) + D
    vocabulary = backbone.tower.embeddings.word_embeddings.num_embeddings  # type: ignore[union-attr]
    block = 4 * (D * D + D) + D * F + F + F * D + D + 4 * D
    backbone = load(model_folders, "bert")
    tune(backbone, "full")
    assert count(backbone) == (vocabulary + 40 + 2) * D + 2 * D + T * block


@pytest.mark.parametrize("name", ["bert", "vit", "dinov2", "deberta-v2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_only_the_top_is_trained(method: str, name: str, model_folders: dict[str, Path]) -> None:
    backbone = load(model_folders, name)
    tune(backbone, method, top=1)
    names = set(trained(backbone))
    assert any(f"{backbone.block_path}.{T - 1}." in key for key in names)
    assert not any("embeddings" in key for key in names)
    assert not any(f"{backbone.block_path}.{index}." in key for key in names for index in range(T - 1))
    backbone.train()
    assert backbone.blocks[T - 1].training
    assert not backbone.blocks[0].training


@pytest.mark.parametrize("name", [*TEXTS, *IMAGES])
def test_a_resumed_backbone_gives_the_same_answer(name: str, model_folders: dict[str, Path]) -> None:
    backbone = load(model_folders, name)
    inputs = inputs_of(backbone)
    mask = inputs.get("attention_mask")
    whole = backbone(inputs, [LAST])
    for first in (0, 2, T - 1):
        kept: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(hidden)
            return hidden

        handle = backbone.replace_input(first, keep)
        backbone(inputs, [LAST])
        handle.remove()
        tokens = torch.ones(kept[0].shape[:2], dtype=torch.long) if mask is None else mask
        top = copy.deepcopy(backbone)
        top.drop_below(first)
        size = [sum(value.numel() for value in model.parameters()) for model in (top, backbone)]
        assert size[0] < size[1] or first == 0
        torch.testing.assert_close(top.resume(first, kept[0], tokens), whole)


def test_gradient_checkpointing_changes_no_gradient(model_folders: dict[str, Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = load(model_folders, "bert")
        tune(backbone, "full", checkpointing=checkpointing)
        for module in backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        runs: list[int] = []
        attention = next(iter(backbone.blocks[0].children()))
        attention.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        backbone.train()(inputs_of(backbone), [LAST]).square().sum().backward()
        assert len(runs) == 1 + checkpointing  # once more in the backward pass
        gradients.append({key: value.grad for key, value in trained(backbone).items()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


def test_a_fused_projection_is_refused_with_its_name(model_folders: dict[str, Path]) -> None:
    with pytest.raises(BackboneError, match=r"query and value .*in_proj \(16→48\)"):
        tune(load(model_folders, "deberta"), "lora")


def test_an_unknown_structure_is_refused(model_folders: dict[str, Path]) -> None:
    backbone = load_text(str(model_folders["gpt2"]))
    for method in ("lora", "adapter"):
        with pytest.raises(BackboneError, match="linear layers of a block: none"):
            tune(backbone, method)


def test_more_blocks_than_there_are(model_folders: dict[str, Path]) -> None:
    backbone = load(model_folders, "bert")
    assert first_trained_block(backbone, None) == 0
    assert first_trained_block(backbone, T) == 0
    with pytest.raises(BackboneError, match="the last 5 blocks"):
        tune(backbone, "full", top=5)


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
