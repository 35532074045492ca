import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from iisan.config import TuningConfig
from iisan.data.dataset import Dataset
from iisan.efficiency.estimate import (
    DataShape,
    EncoderShape,
    Hardware,
    estimate,
    expected_distinct,
    forward_flops,
    store_bytes,
    tuned_parameters,
)
from iisan.efficiency.hardware import Operators
from iisan.efficiency.transformer import kept_bytes
from iisan.errors import ConfigError, DataError, EncoderError
from iisan.nn.sequences import SASRec
from iisan.recipes import recipe
from iisan.train.setup import build, resolve

TEXTS = ("bert", "roberta", "distilbert", "mpnet", "deberta-v2", "gpt2", "clip", "siglip")
TUNED = ("fft", "adapter", "lora", "bitfit")
# 30,522 words, 512 positions, 2 segments and a norm; 256 · 3 pixels a patch, its bias, class token, 197 positions.
BERT = EncoderShape("text", 768, 12, 12, 3072, 30, (30522 + 512 + 2 + 2) * 768, 768)
VIT = EncoderShape("image", 768, 12, 12, 3072, 197, (768 + 1 + 1 + 197) * 768, 768, 1536, 768, 0, 224, 16)
BOTH = {"image": VIT, "text": BERT}
DATA = DataShape(windows=12076, items=20314, distinct=150.0, positions=3.8)
MACHINE = Hardware(flops=1e12, bandwidth=2e10, elements=1e9, attention=5e11, overhead=1e-6)


def predicted(name, *changes, encoders=BOTH, data=DATA, **fields):
    return estimate(recipe(name).override(changes), encoders, data, MACHINE, **fields)


@pytest.mark.parametrize("top", ["null", "1"])
@pytest.mark.parametrize(
    "encoder", ["bert", "roberta", "distilbert", "gpt2", "clip", "siglip", "mpnet", "deberta-v2"]
)
def test_counts_of_text_encoders_are_those_of_the_built_model(encoder, top, prepared, model_folders):
    check_counts(("text", model_folders[encoder]), prepared, top, fused=encoder == "gpt2")


@pytest.mark.parametrize("top", ["null", "1"])
@pytest.mark.parametrize("encoder", ["vit", "deit", "dinov2", "clip", "siglip"])
def test_counts_of_image_encoders_are_those_of_the_built_model(encoder, top, prepared, model_folders):
    check_counts(("image", model_folders[encoder]), prepared, top)


def check_counts(encoder, prepared, top, fused=False):
    modality, folder = encoder
    dataset = Dataset.load(prepared.dataset)
    shapes = {modality: EncoderShape.of_folder(str(folder), modality)}
    for name in ("fft", "bitfit") if fused else TUNED:
        changes = [f"{modality}.encoder={folder}", f"dataset={prepared.dataset}", f"tuning.last_n_layers={top}"]
        config = resolve(recipe(name).override([*changes, f"{modality}.pooling=mean"]))
        found = estimate(
            config, shapes, DataShape.of_dataset(dataset, config), Hardware(1e12, 1e10, precision="fp32")
        )
        network = build(config, dataset).network
        assert found.trainable_parameters == sum(value.numel() for _, value in network.trainable()), name
        assert found.total_parameters == sum(value.numel() for value in network.parameters()), name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("default", ()),
        ("reference", ()),
        ("default", ("items.block=phm",)),
        ("default", ("items.block=low-rank", "items.inter=false", "text.levels=[0,4]")),
        ("default", ("sequence.kind=gru4rec",)),
        ("frozen", ("sequence.kind=nextitnet",)),
        ("ids", ()),
        ("uncached", ()),
        *((name, ()) for name in TUNED),
        ("partial", ()),
        ("partial", ("tuning.method=lora",)),
        ("partial", ("tuning.method=bias",)),
    ],
)
def test_counts_of_methods_are_those_of_the_built_model(name, changes, prepared):
    folders = [f"{modality}.encoder={getattr(prepared, modality)}" for modality in ("text", "image")]
    config = recipe(name).model_copy(update={"dataset": prepared.dataset, "states": prepared.states})
    if name == "reference":
        changes = (*changes, "text.pooling=null", "text.max_tokens=null")
    live = config.source != "cached"
    config = resolve(config.override([*(folders if live else ()), *changes]).override(["text.pooling=null"]))
    network = build(config).network
    dataset = Dataset.load(prepared.dataset)
    shapes = {of: EncoderShape.of_folder(str(getattr(prepared, of)), of) for of in ("text", "image")}
    found = estimate(config, shapes, DataShape.of_dataset(dataset, config), Hardware(1e12, 1e10))
    assert found.trainable_parameters == sum(value.numel() for _, value in network.trainable())
    assert found.total_parameters == sum(value.numel() for value in network.parameters())


def test_counts_of_families_with_settings(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
    sizes |= {"vocab_size": 50, "max_position_embeddings": 20}
    relative = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False}
    groups = {"num_key_value_heads": 2, "head_dim": 4}
    for config in (
        transformers.MPNetConfig(**sizes, relative_attention_num_buckets=6),
        transformers.DebertaV2Config(**sizes, type_vocab_size=2),
        # As in DeBERTa-v3, and with the defaults of older ones.
        transformers.DebertaV2Config(
            **sizes, **relative, share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm"
        ),
        transformers.DebertaV2Config(**sizes, **relative | {"pos_att_type": "c2p"}, max_relative_positions=9),
        transformers.Qwen2Config(**sizes, num_key_value_heads=2),
        transformers.GemmaConfig(**sizes, **groups),
        transformers.LlamaConfig(**sizes, **groups),
    ):
        config.save_pretrained(tmp_path)
        shape = EncoderShape.of_folder(str(tmp_path), "text")
        model = transformers.AutoModel.from_config(config)
        counted = {name: value.numel() for name, value in model.named_parameters() if "pooler" not in name}
        assert shape.parameters == sum(counted.values()), config
        biases = sum(count for name, count in counted.items() if name.endswith("bias"))
        assert shape.depth * shape.biases + shape.embedding_biases + shape.final_biases == biases, config
    both, written = (transformers.DebertaV2Config(**sizes, **relative).to_dict() for _ in range(2))
    written["pos_att_type"] = "p2c|c2p"  # as in files on the hub
    shapes = []
    for config in (both, written):
        (tmp_path / "config.json").write_text(json.dumps(config))
        shapes.append(EncoderShape.of_folder(str(tmp_path), "text"))
    assert shapes[0] == shapes[1]
    assert (shapes[0].relative, shapes[0].position_linears) == (2 * 20, 2)
    transformers.DebertaV2Config(**sizes, conv_kernel_size=3).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="a convolution"):
        EncoderShape.of_folder(str(tmp_path), "text")


def saved_bytes(model, inputs):
    """Bytes of all storages, but the parameters', that a forward pass keeps for the backward pass."""
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    alive, found = [], {}

    def pack(tensor):
        alive.append(tensor)  # so that no address is given twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs).last_hidden_state.sum()
    return sum(found.values())


@pytest.mark.parametrize("method", ["full", "bias"])
@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_block_keeps_what_autograd_saves(family, method):
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}

    def saved(depth):
        if family == "bert":
            config = transformers.BertConfig(**sizes, num_hidden_layers=depth)
            model = transformers.BertModel(config, add_pooling_layer=False)
            inputs = {"input_ids": torch.zeros(3, 20, dtype=torch.long)}
        else:
            config = transformers.ViTConfig(**sizes, num_hidden_layers=depth, image_size=32, patch_size=8)
            model = transformers.ViTModel(config, add_pooling_layer=False)
            inputs = {"pixel_values": torch.zeros(3, 3, 32, 32)}
        for name, value in model.named_parameters():
            value.requires_grad_(method == "full" or name.endswith("bias"))
        return saved_bytes(model.train(), inputs)

    tokens = 20 if family == "bert" else 17
    shape = EncoderShape("text", 256, 3, 4, 1024, tokens, dropout=family == "bert")
    kept = 3 * tokens * kept_bytes(shape, TuningConfig(method=method), 4)
    # Norms keep two numbers a token besides, fused attention one a token and head.
    small = 3 * tokens * 4 * (4 + 4 * (family == "vit"))
    assert saved(3) - saved(2) == kept + small


def test_published_counts():
    assert BERT.parameters == 109_482_240 - 590_592  # BERT-base without its pooler
    assert VIT.parameters == 85_798_656
    assert predicted("reference").trainable_parameters == 4_113_877
    assert tuned_parameters(BERT, TuningConfig(method="full")) + VIT.parameters == 194_690_304  # "195 M"
    assert tuned_parameters(BERT, TuningConfig(method="lora", rank=8)) == 12 * 2 * 8 * 1536
    assert tuned_parameters(BERT, TuningConfig(method="adapter", last_n_layers=3)) == 3 * 2 * (
        2 * 768 * 64 + 64 + 768
    )
    # Query, key, value, output and two norms, the feed-forward's first and second; one norm below the blocks.
    assert tuned_parameters(BERT, TuningConfig(method="bias")) == 12 * (6 * 768 + 3072 + 768) + 768


def test_operations_by_hand():
    products, attention = 2 * 7_077_888 * 30, 4 * 30 * 30 * 768
    assert forward_flops(BERT) == 12 * (products + attention) == 5_129_256_960
    assert forward_flops(BERT, 2) == 2 * (products + attention)
    # The patches of 224 × 224 pixels in three colours; about 35 GFLOP in all, as published for ViT-base.
    assert forward_flops(VIT) - forward_flops(VIT, 12) == 196 * 2 * 768 * 768
    assert forward_flops(VIT) == pytest.approx(35.1e9, rel=0.01)


def test_backward_by_hand():
    base = predicted("frozen", "source=live", encoders={"text": BERT}).flops["backward"]
    products, attention = 12 * 2 * 7_077_888 * 30, 12 * 4 * 30 * 30 * 768
    for name, expected in [
        # Fused attention computes its scores again, then four gradients: five products for two.
        ("fft", 2 * products + 2.5 * attention),
        ("bitfit", products + 2.5 * attention),
        ("lora", products + 2.5 * attention + 2 * 2 * 30 * 12 * 2 * 8 * 1536),
    ]:
        found = predicted(name, encoders={"text": BERT})
        assert found.flops["backward"] - base == pytest.approx(150 * expected), name
        again = predicted(name, "tuning.gradient_checkpointing=true", encoders={"text": BERT})
        assert again.flops["backward"] - found.flops["backward"] == pytest.approx(150 * (products + attention))
        assert again.memory["activations"] < found.memory["activations"] / 4
    two = predicted("fft", "tuning.last_n_layers=2", encoders={"text": BERT}).flops
    assert two["backward"] - base == pytest.approx(150 * (2 * products + 2.5 * attention) / 6)
    assert two["forward"] == predicted("fft", encoders={"text": BERT}).flops["forward"]


def test_disk_by_hand():
    assert store_bytes(1, 7, 768, "bf16") * 2 == 21_504
    assert store_bytes(10, 7, 768, "int8") == 10 * 7 * (768 + 4)
    million = DataShape(10**6, 10**6, 150, 3.8, {"image": 0.5})
    assert predicted("default", data=million).disk_bytes == 1.5e6 * 7 * 768 * 2
    assert predicted("frozen", data=million, dtype="fp32").disk_bytes == 1.5e6 * 768 * 4
    assert predicted("partial", data=million).disk_bytes == (1e6 * 30 + 5e5 * 197) * 768 * 2
    assert predicted("uncached").disk_bytes == predicted("ids").disk_bytes == predicted("fft").disk_bytes == 0


def test_memory_and_time_by_hand():
    found = predicted("fft", encoders={"text": BERT})
    trained = found.trainable_parameters
    assert found.total_parameters == trained
    assert found.memory["weights"] + found.memory["gradients"] + found.memory["moments"] == 16 * trained
    assert found.stages["update"] == 28 * trained / 2e10
    small = predicted("frozen", "source=live", encoders={"text": BERT})
    kept = found.memory["activations"] - small.memory["activations"]
    assert kept == 150 * 30 * 12 * (8 * 768 + 2 * 3072) * 4
    assert found.steps_per_epoch == math.ceil(12076 / 64) == 189
    assert found.seconds_per_epoch == pytest.approx(189 * found.seconds_per_step)
    twice = predicted("fft", "training.gradient_accumulation=2", encoders={"text": BERT})
    assert twice.steps_per_epoch == 95
    assert twice.stages["forward"] == 2 * found.stages["forward"]
    assert twice.stages["update"] == found.stages["update"]
    # One forward pass of every title: products, attention, two norms, two sums and the activation, operators.
    cached = predicted("default", encoders={"text": BERT})
    products, attention = 12 * 2 * 7_077_888 * 30 / 1e12, 12 * 4 * 30 * 30 * 768 / 5e11
    written, started = 12 * 30 * (4 * 768 + 3072) / 1e9, 12 * 40 * 1e-6
    assert cached.caching_seconds == pytest.approx(
        20314 * (products + attention + written) + math.ceil(20314 / 64) * started
    )
    assert predicted("uncached").caching_seconds == 0


@pytest.mark.parametrize("name", ["partial", "fft"])
def test_an_epoch_is_the_mean_over_a_cycle_of_refreshing(name):
    every, third = predicted(name), predicted(name, "tuning.refresh=3")
    held = predicted("frozen", "loss.negatives=1600", dtype="fp32")
    assert third.held_seconds_per_step == held.seconds_per_step < every.seconds_per_step / 10
    assert third.seconds_per_epoch == pytest.approx((every.seconds_per_epoch + 2 * held.seconds_per_epoch) / 3)
    assert third.seconds_per_step == every.seconds_per_step
    assert third.disk_bytes == every.disk_bytes


def test_peak_memory():
    found = predicted("fft")
    parts = found.memory
    # Gradients grow while activations go.
    assert parts["activations"] > parts["gradients"]
    assert found.peak_memory_bytes == pytest.approx(sum(parts.values()) - parts["gradients"])
    several = predicted("fft", "training.gradient_accumulation=2")
    assert several.peak_memory_bytes == pytest.approx(sum(several.memory.values()))
    # On a CPU frozen weights stay pages of their file.
    frozen = 4 * (BERT.parameters + VIT.parameters)
    cpu, gpu = (
        estimate(recipe("lora"), BOTH, DATA, Hardware(1e12, 2e10, device=device)) for device in ("cpu", "cuda")
    )
    assert cpu.mapped_bytes == frozen
    assert gpu.mapped_bytes == 0
    assert gpu.peak_memory_bytes - cpu.peak_memory_bytes == pytest.approx(frozen)
    assert found.mapped_bytes == 0
    larger = predicted("fft", data=replace(DATA, largest=300))
    assert larger.memory["activations"] == pytest.approx(2 * parts["activations"])
    assert larger.seconds_per_step == found.seconds_per_step


def test_element_wise_operators_by_hand():
    # Nothing but what is written costs; a second a number. What trains no encoder is taken off.
    machine = Hardware(math.inf, math.inf, elements=1.0)
    shape = replace(BERT, dropout=True)

    def stages(name, *changes):
        config = recipe(name).override(changes)
        return estimate(config, {"text": shape}, DATA, machine).stages

    frozen = stages("frozen", "source=live")
    small = stages("frozen")
    block, tokens = 4 * 768 + 3072, 150 * 30
    assert frozen["forward"] - small["forward"] == pytest.approx(tokens * 12 * block)
    full = stages("fft")
    dropped, scores = 6 * 768, 5 * 12 * 30
    assert full["forward"] - frozen["forward"] == pytest.approx(tokens * 12 * (dropped + scores))
    backward = 6 * 768 + 3072 + 2 * 768 + 3 * 12 * 30
    assert full["backward"] - frozen["backward"] == pytest.approx(tokens * 12 * backward)
    again = stages("fft", "tuning.gradient_checkpointing=true")
    assert again["backward"] - full["backward"] == pytest.approx(tokens * 12 * (block + dropped + scores))


def test_operators_are_those_that_run():
    with Operators() as counted:
        x = torch.ones(2, 2)
        x = x + 1
        x.relu_()
    assert counted.count == 3
    # A second an operator: another block of the sequence encoder costs those that it starts.
    machine = Hardware(math.inf, math.inf, overhead=1.0)

    def predict(blocks):
        return estimate(recipe("ids").override([f"sequence.num_layers={blocks}"]), {}, DATA, machine).stages

    def run(blocks):
        sequence = SASRec(8, 5, blocks, 2, 0.1)
        with Operators() as forward:
            answer = sequence(torch.zeros(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)).sum()
        with Operators() as backward:
            answer.backward()
        return {"forward": forward.count, "backward": backward.count}

    for stage in ("forward", "backward"):
        assert predict(3)[stage] - predict(2)[stage] == run(3)[stage] - run(2)[stage] > 0


def test_orders_of_the_methods():
    order = ["fft", *TUNED[1:], "uncached", "default"]
    found = {name: predicted(name, "loss.negatives=0") for name in order}
    for measure in ("seconds_per_step", "peak_memory_bytes"):
        cost = {name: getattr(each, measure) for name, each in found.items()}
        middle = [cost[name] for name in TUNED[1:]]
        assert max(middle) < 1.4 * min(middle)
        assert cost["fft"] > max(middle) > min(middle) > cost["uncached"] > cost["default"]
    assert found["default"].seconds_per_step < found["uncached"].seconds_per_step / 20
    assert found["default"].trainable_parameters == found["uncached"].trainable_parameters


@pytest.mark.parametrize("name", ["default", "frozen", "uncached", "partial", *TUNED])
def test_more_of_anything_costs_more(name):
    def cost(depth=12, width=768, batch=64):
        shape = EncoderShape("text", width, depth, 12, 4 * width, 30, 30000 * width, width)
        config = recipe(name).override([f"training.batch_size={batch}"])
        data = DataShape.of_counts(np.arange(1, 5001), 10000, 4.0, config)
        found = estimate(config, {"text": shape}, data, MACHINE)
        return found.seconds_per_step, found.peak_memory_bytes

    base = cost()
    assert all(more > less for more, less in zip(cost(width=1536), base, strict=True))
    assert all(more > less for more, less in zip(cost(batch=128), base, strict=True))
    # A projection reads one stored state however deep the encoder; partial training runs two blocks of it.
    strict = name not in ("frozen", "partial")
    assert all(more > less if strict else more == less for more, less in zip(cost(depth=24), base, strict=True))


def test_expected_distinct_by_hand(scientific):
    assert expected_distinct([5, 5], 2) == pytest.approx(1.5)
    # Of three items two are trained: either is missed by one draw of 1/2 and one negative of 1/2.
    assert expected_distinct([5, 5, 0], 1, negatives=1, pool=2) == pytest.approx(1.5)
    assert expected_distinct([4, 0], 3, negatives=1, pool=2) == pytest.approx(1.5)
    # Published: 57,559 slots of 12,076 users, 276 distinct items in a batch of 64, 1,806 in one of 512.
    counts = scientific.split.train_counts()
    assert expected_distinct(counts, 64 * 57559 / 12076) == pytest.approx(276, rel=0.03)
    assert expected_distinct(counts, 512 * 57559 / 12076) == pytest.approx(1806, rel=0.03)


def test_shape_of_a_dataset(prepared):
    dataset = Dataset.load(prepared.dataset)
    config = recipe("default").override(["loss.candidates=all", "loss.negatives=0", "training.batch_size=7"])
    data = DataShape.of_dataset(dataset, config)
    trained = len({item for user in range(50) for item in train_part(dataset, user)})
    targets = [max(len(train_part(dataset, user)) - 1, 0) for user in range(50)]
    assert (data.windows, data.items, data.distinct) == (sum(-(-count // 10) for count in targets), 30, trained)
    assert data.present == {"text": 28 / 30, "image": 28 / 30}
    assert data.positions == pytest.approx(sum(targets) / data.windows)
    counts = DataShape.of_counts([3, 0, 1], 2, 1.0, config)
    assert (counts.items, counts.distinct) == (3, 2)


def test_a_dataset_without_a_training_window_has_no_shape(prepared):
    whole = Dataset.load(prepared.dataset)
    log = whole.interactions().group_by("user_id", maintain_order=True).head(3)
    with pytest.raises(DataError, match="no user has 2 interactions"):
        DataShape.of_dataset(Dataset.from_frames(whole.items, log), recipe("default"))


def train_part(dataset, user):
    start, end = dataset.sequences.offsets[user : user + 2]
    return dataset.sequences.items[start : max(end - 2, start)].tolist() if end - start > 2 else []


def test_shapes_from_configurations(model_folders, tmp_path):
    text = EncoderShape.of_folder(str(model_folders["clip"]), "text", tokens=9)
    assert (text.modality, text.width, text.depth, text.heads, text.feed_forward, text.tokens) == (
        "text",
        16,
        4,
        2,
        32,
        9,
    )
    image = EncoderShape.of_folder(str(model_folders["clip"]), "image")
    assert (image.modality, image.tokens, image.image_size, image.patch) == ("image", 5, 16, 8)
    assert EncoderShape.of_folder(str(model_folders["bert"]), "text").tokens == 40
    # The processor's crop, not the size that positions were trained for, says how many patches there are.
    config = {"model_type": "dinov2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    config |= {"mlp_ratio": 4, "image_size": 518, "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert EncoderShape.of_folder(str(tmp_path), "image").tokens == 37**2 + 1
    (tmp_path / "preprocessor_config.json").write_text(
        '{"crop_size": {"height": 224}, "size": {"shortest_edge": 256}}'
    )
    assert EncoderShape.of_folder(str(tmp_path), "image").tokens == 16**2 + 1
    llama = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
    llama |= {"intermediate_size": 96, "vocab_size": 100, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    block = 64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 96 + 2 * 64
    assert EncoderShape.of_folder(str(tmp_path), "text").parameters == 100 * 64 + 2 * block + 64


def test_hardware_is_measured():
    found = Hardware.measure("cpu", "fp32", seconds=0.05)
    assert found.flops > 1e8
    assert found.bandwidth > 1e8
    assert 1e6 < found.elements < found.flops
    assert found.attention > 1e8
    assert 0 < found.overhead < 1e-3
    assert found.device == "cpu"
    assert found.precision == "fp32"
    assert "thread" in found.name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: predicted("fft", encoders={}), "no encoder is given"),
        (lambda: predicted("fft", "modalities=[text]", encoders={"image": VIT}), "no encoder as that of text"),
        (lambda: predicted("fft", encoders={"text": VIT}), "an encoder for image as that of text"),
        (lambda: predicted("fft", "training.precision=bf16"), "hardware measured in fp32"),
        (lambda: predicted("default", dtype="fp8"), "storage dtype 'fp8'"),
        (lambda: EncoderShape("text", 768, 0, 12, 3072, 30), "depth 0 of a text encoder"),
    ],
)
def test_settings_that_do_not_fit(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_encoders_that_do_not_fit(model_folders, tmp_path):
    fused = EncoderShape.of_folder(str(model_folders["gpt2"]), "text")
    for wrong, message in [
        (lambda: predicted("fft", "tuning.last_n_layers=13"), "tuning.last_n_layers 13 for image"),
        (lambda: predicted("default", "text.levels=[0,13]"), "level 13 of text"),
        (lambda: predicted("lora", encoders={"text": fused}), "fused projection"),
        (
            lambda: EncoderShape.of_folder(str(model_folders["deberta"]), "text"),
            "model_type 'deberta'.*distilbert",
        ),
        (lambda: EncoderShape.of_folder(str(model_folders["vit"]), "text"), "model_type 'vit'"),
        (lambda: EncoderShape.of_folder(str(tmp_path), "text"), "no readable config.json"),
        (lambda: EncoderShape.of_folder(str(tmp_path / "none"), "text"), "there is no folder"),
    ]:
        with pytest.raises(EncoderError, match=message):
            wrong()
    for config, message in [
        (
            {"model_type": "dinov2", "hidden_size": 8, "use_swiglu_ffn": True},
            "a gated feed-forward; expected a plain",
        ),
        (
            {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "head_dim": 8},
            "as wide as the model",
        ),
        ({"model_type": "bert", "hidden_size": 8}, "has no 'vocab_size'"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(EncoderError, match=message):
            EncoderShape.of_folder(str(tmp_path), "image" if "dinov2" in config.values() else "text")


def test_half_precision_keeps_half_the_activations():
    half = Hardware(1e12, 2e10, precision="bf16")
    fine, coarse = (estimate(recipe("fft"), BOTH, DATA, machine) for machine in (MACHINE, half))
    assert coarse.memory["activations"] < fine.memory["activations"] < 2 * coarse.memory["activations"]
    assert coarse.memory["weights"] == fine.memory["weights"]


def test_a_missing_modality_costs_a_learned_vector_for_each():
    some = DataShape(12076, 20314, 150.0, 3.8, {"text": 0.9})
    assert (
        predicted("frozen", data=some).trainable_parameters - predicted("frozen").trainable_parameters == 2 * 128
    )
    ratio = predicted("frozen", data=some).disk_bytes / predicted("frozen").disk_bytes
    assert ratio == pytest.approx(1.9 / 2)
