import json

import pytest
import torch
import transformers

from iisan.efficiency.models import Blueprint, model_costs
from iisan.errors import EncoderError
from iisan.recipes import recipe

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
TEXT = SIZES | {"vocab_size": 50, "max_position_embeddings": 20}
BERT = Blueprint("text", transformers.BertConfig(**TEXT), (12,))
VIT = Blueprint("image", transformers.ViTConfig(**SIZES, image_size=32, patch_size=8), (3, 32, 32))
#: Weights of a block in the products with every token.
MATRICES = 4 * 32 * 32 + 2 * 32 * 80


def counted(name, *changes, model=BERT, contents=5.0, precision="fp32"):
    return model_costs(model, recipe(name).override(changes), contents, precision)


def test_published_sizes():
    def parameters(config, modality="text", shape=(30,)):
        return sum(value.numel() for value in Blueprint(modality, config, shape).build().parameters())

    assert parameters(transformers.BertConfig()) == 109_482_240 - 590_592  # BERT-base without its pooler
    assert parameters(transformers.ViTConfig(), "image", (3, 224, 224)) == 85_798_656


def test_operations_by_hand():
    products, attention = 2 * MATRICES * 12, 4 * 12 * 12 * 32
    costs = counted("uncached", "text.levels=[3]")
    assert (costs.forward.products, costs.forward.attention) == (5 * 3 * products, 5 * 3 * attention)
    assert costs.backward.flops == costs.trained == costs.kept == 0
    # 16 patches of 8 × 8 × 3 numbers; blocks above the highest level do not run.
    costs = counted("uncached", "image.levels=[0,1]", model=VIT)
    assert costs.forward.products == 5 * (2 * MATRICES * 17 + 2 * 16 * 192 * 32)
    assert costs.forward.attention == 5 * 4 * 17 * 17 * 32
    stored = counted("default", "text.levels=[0,2]")
    assert (stored.caching.flops, stored.forward.flops, stored.parameters) == (2 * (products + attention), 0, 0)
    # A batch of 70 contents takes two pieces.
    one, two = (counted("uncached", contents=contents).forward for contents in (60, 70))
    assert two.operators == 2 * one.operators
    assert two.flops == one.flops * 70 / 60


def test_backward_by_hand():
    products, attention = 3 * 2 * MATRICES * 17, 3 * 4 * 17 * 17 * 32
    patches = 2 * 16 * 192 * 32
    # Fused attention computes its scores again, then four gradients; of patches only the weights have one.
    full = counted("fft", model=VIT)
    assert full.backward.flops == pytest.approx(5 * (2 * products + 2.5 * attention + patches))
    assert full.trained == full.parameters
    bias = counted("bitfit", model=VIT)
    assert bias.backward.flops == pytest.approx(5 * (products + 2.5 * attention))
    lora = counted("lora", model=VIT)
    assert lora.trained == 3 * 2 * 2 * 8 * 32
    assert lora.parameters == full.parameters + lora.trained
    assert counted("adapter", model=VIT).trained == 3 * 2 * (2 * 32 * 64 + 64 + 32)
    top = counted("fft", "tuning.last_n_layers=1", model=VIT)
    assert top.backward.flops < full.backward.flops / 2.5
    assert top.forward.flops == full.forward.flops
    # Recomputing costs a forward pass, but for each block's last product, and keeps little.
    again = counted("fft", "tuning.gradient_checkpointing=true", model=VIT)
    last = 3 * 2 * 32 * 80 * 17
    assert again.backward.flops - full.backward.flops == pytest.approx(5 * (products + attention - last))
    assert again.kept < full.kept / 4


def test_partial_training_stores_tokens_and_runs_the_top():
    costs = counted("partial", "tuning.last_n_layers=1", model=VIT)
    block = 2 * MATRICES * 17 + 4 * 17 * 17 * 32
    patches = 2 * 16 * 192 * 32
    assert costs.rows == 17
    assert costs.caching.flops == 2 * block + patches
    # The tower's own code computes the patches, whose states are then replaced.
    assert costs.forward.flops == 5 * (block + patches)
    assert costs.parameters == counted("fft", model=VIT).parameters - 2 * (MATRICES + 4 * 32 + 5 * 32 + 80)


def kept_in_training(model, method):
    """Bytes of all storages, but the parameters', that a forward pass keeps for the backward pass."""
    encoder = model.build()
    network = type(encoder.tower)._from_config(encoder.tower.config).train()
    for name, value in network.named_parameters():
        value.requires_grad_("pooler" not in name and (method == "full" or name.endswith("bias")))
    own = {value.untyped_storage().data_ptr() for value in network.parameters()}
    alive, found = [], {}

    def pack(tensor):
        alive.append(tensor)  # so that no address is given twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.zeros(5, *model.shape, dtype=torch.long if model.modality == "text" else torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(inputs)[0].sum()
    return sum(found.values())


@pytest.mark.parametrize("method", ["full", "bias"])
@pytest.mark.parametrize("model", [BERT, VIT], ids=["bert", "vit"])
def test_what_is_kept_is_what_autograd_saves(model, method):
    found = counted({"full": "fft", "bias": "bitfit"}[method], model=model).kept
    assert found == pytest.approx(kept_in_training(model, method), rel=0.05)


def test_half_precision_keeps_less():
    fine, coarse = (counted("fft", contents=50.0, precision=precision) for precision in ("fp32", "bf16"))
    assert coarse.kept < fine.kept < 2 * coarse.kept
    assert coarse.parameters == fine.parameters


def test_inputs_from_configurations(model_folders, tmp_path):
    def blueprint(name, modality, tokens=None):
        return Blueprint.of_folder(str(model_folders[name]), modality, tokens)

    assert blueprint("clip", "text", 9).shape == (9,)
    assert blueprint("bert", "text").shape == (40,)
    image = blueprint("clip", "image")
    assert (image.shape, image.width) == ((3, 16, 16), 16)
    # The processor's crop, not the size that positions were trained for, says how large pictures are.
    config = transformers.Dinov2Config(**SIZES, image_size=42, patch_size=14)
    config.save_pretrained(tmp_path)
    assert Blueprint.of_folder(str(tmp_path), "image").shape == (3, 42, 42)
    for processor, side in (
        ({"crop_size": {"height": 28}, "size": {"shortest_edge": 56}}, 28),
        ({"crop_size": {"height": 28}, "size": {"shortest_edge": 56}, "do_center_crop": False}, 56),
        ({"size": 14}, 14),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        assert Blueprint.of_folder(str(tmp_path), "image").shape == (3, side, side)


@pytest.mark.parametrize(
    "config",
    [
        transformers.DebertaConfig(**TEXT, relative_attention=True, pos_att_type=["c2p"]),
        transformers.DebertaV2Config(
            **TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"], conv_kernel_size=3
        ),
        transformers.Qwen2Config(**TEXT, num_key_value_heads=2),
        transformers.GemmaConfig(**TEXT, num_key_value_heads=2, head_dim=4),
        transformers.ModernBertConfig(**TEXT, pad_token_id=0, global_attn_every_n_layers=2),
        transformers.Qwen3Config(**TEXT, num_key_value_heads=2, head_dim=8),
    ],
    ids=lambda config: config.model_type,
)
def test_any_family_can_be_counted(config):
    costs = model_costs(Blueprint("text", config, (12,)), recipe("fft"), 3.0, "fp32")
    model = transformers.AutoModel.from_config(config)
    assert costs.parameters == sum(
        value.numel() for name, value in model.named_parameters() if "pooler" not in name
    )
    assert costs.backward.flops > 1.9 * costs.forward.flops > 0


def test_stages_of_images_can_be_counted():
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    costs = model_costs(Blueprint("image", config, (3, 32, 32)), recipe("fft"), 3.0, "fp32")
    assert costs.width == 16
    assert costs.backward.flops > costs.forward.flops > 0


def test_models_that_do_not_fit(model_folders, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    fused, albert = Blueprint.of_folder(str(model_folders["gpt2"]), "text"), transformers.AlbertConfig(**TEXT)
    for wrong, message in [
        (lambda: counted("fft", "tuning.last_n_layers=13"), "the last 13 layers"),
        (lambda: counted("default", "text.levels=[0,13]"), "level '13'"),
        (
            lambda: counted("lora", model=fused),
            "query and value",
        ),
        (lambda: Blueprint.of_folder(str(model_folders["vit"]), "text").build(), "reads pixel_values"),
        (lambda: Blueprint.of_folder(str(tmp_path), "text"), "model_type 'unheard-of'"),
        (lambda: Blueprint.of_folder(str(tmp_path.parent), "text"), "no readable config.json"),
        (lambda: Blueprint.of_folder(str(tmp_path / "none"), "text"), "there is no folder"),
        (
            lambda: counted("fft", model=Blueprint("text", albert, (5,))),
            "layers of AlbertModel are not recognised",
        ),
        (lambda: counted("fft", model=Blueprint("image", VIT.config, (3, 40, 40))), "cannot be counted .*40"),
    ]:
        with pytest.raises(EncoderError, match=message):
            wrong()
