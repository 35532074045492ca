import functools
import math
from dataclasses import replace

import pytest
import torch
import transformers

from iisan.data.dataset import Dataset
from iisan.efficiency.counting import Meter
from iisan.efficiency.estimate import estimate, plan, store_bytes
from iisan.efficiency.hardware import Hardware
from iisan.efficiency.models import Blueprint
from iisan.efficiency.workload import DataShape
from iisan.errors import ConfigError
from iisan.nn.sequences import SASRec
from iisan.recipes import recipe
from iisan.train.setup import build, resolve

TUNED = ("fft", "adapter", "lora", "bitfit")
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
BERT = Blueprint("text", transformers.BertConfig(**SIZES, vocab_size=90, max_position_embeddings=40), (30,))
VIT = Blueprint("image", transformers.ViTConfig(**SIZES, image_size=48, patch_size=8), (3, 48, 48))
BOTH = {"image": VIT, "text": BERT}
DATA = DataShape(windows=12076, items=20314, distinct=150.0, positions=3.8)
MACHINE = Hardware(flops=1e12, bandwidth=2e10, elements=1e9, attention=5e11, overhead=1e-6)


@functools.cache
def predicted(name, *changes):
    """Computed once for all tests."""
    return predicted_for(name, *changes)


def predicted_for(name, *changes, models=BOTH, data=DATA, hardware=MACHINE, **fields):
    return estimate(recipe(name).override(changes), models, data, hardware, **fields)


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "gpt2", "clip", "siglip", "mpnet", "deberta-v2"]
)
def test_counts_of_text_models_are_those_of_the_built_model(name, prepared, model_folders):
    check_counts("text", model_folders[name], prepared)


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "clip", "siglip"])
def test_counts_of_image_models_are_those_of_the_built_model(name, prepared, model_folders):
    check_counts("image", model_folders[name], prepared)


def check_counts(modality, folder, prepared):
    dataset = Dataset.load(prepared.dataset)
    settings = [f"{modality}.encoder={folder}", f"{modality}.pooling=mean", f"dataset={prepared.dataset}"]
    config = resolve(recipe("fft").override([*settings, "tuning.last_n_layers=1"]))
    models = {modality: Blueprint.of_folder(str(folder), modality)}
    found = estimate(config, models, DataShape.of_dataset(dataset, config), Hardware(1e12, 1e10, precision="fp32"))
    network = build(config).network
    assert found.trainable_parameters == sum(value.numel() for _, value in network.trainable())
    assert found.total_parameters == sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("default", ()),
        ("reference", ()),
        ("default", ("items.block=phm",)),
        ("default", ("items.block=low-rank", "items.inter=false", "text.levels=[0,4]")),
        ("default", ("sequence.kind=gru4rec",)),
        ("frozen", ("sequence.kind=nextitnet",)),
        ("default", ("items.level_norm=centred", "sequence.similarity=cosine")),
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
    models = {of: Blueprint.of_folder(str(getattr(prepared, of)), of) for of in ("text", "image")}
    found = estimate(config, models, DataShape.of_dataset(dataset, config), Hardware(1e12, 1e10))
    assert found.trainable_parameters == sum(value.numel() for _, value in network.trainable())
    assert found.total_parameters == sum(value.numel() for value in network.parameters())


def test_a_recipe_that_trains_nothing_has_no_estimate():
    with pytest.raises(ConfigError, match="which has no network; expected a recipe that trains"):
        predicted_for("similarity")


def test_a_recipe_that_trains_nothing_is_named_before_anything_is_measured(prepared, monkeypatch):
    monkeypatch.setattr(Hardware, "measure", lambda *_: pytest.fail("the machine was measured"))
    for models in ({}, {"text": str(prepared.text)}):
        with pytest.raises(
            ConfigError, match=r"the recipe 'similarity' with items.kind 'none', which trains nothing"
        ):
            plan(Dataset.load(prepared.dataset), models, ["frozen", "similarity"])


def test_published_count():
    config = recipe("reference")
    models = {
        "text": Blueprint("text", transformers.BertConfig(), (30,)),
        "image": Blueprint("image", transformers.ViTConfig(), (3, 224, 224)),
    }
    assert estimate(config, models, DATA, MACHINE).trainable_parameters == 4_113_877


def test_disk_by_hand():
    assert store_bytes(1, 7, 768, "bf16") * 2 == 21_504
    assert store_bytes(10, 7, 768, "int8") == 10 * 7 * (768 + 4)
    million = DataShape(10**6, 10**6, 150, 3.8, {"image": 0.5})
    assert predicted_for("default", data=million).disk_bytes == 1.5e6 * 2 * 64 * 2
    assert predicted_for("frozen", data=million, dtype="fp32").disk_bytes == 1.5e6 * 64 * 4
    assert predicted_for("partial", data=million).disk_bytes == (1e6 * 30 + 5e5 * 37) * 64 * 2
    assert predicted("uncached").disk_bytes == predicted("ids").disk_bytes == predicted("fft").disk_bytes == 0


def test_memory_and_time_by_hand():
    found = predicted_for("fft", models={"text": BERT})
    trained = found.trainable_parameters
    assert found.total_parameters == trained
    assert found.memory["weights"] + found.memory["gradients"] + found.memory["moments"] == 16 * trained
    assert found.stages["update"] == 28 * trained / 2e10
    assert found.steps_per_epoch == math.ceil(12076 / 128) == 95
    assert found.seconds_per_epoch == pytest.approx(95 * found.seconds_per_step)
    twice = predicted_for("fft", "training.gradient_accumulation=2", models={"text": BERT})
    assert twice.steps_per_epoch == 48
    assert twice.stages["forward"] == 2 * found.stages["forward"]
    assert twice.stages["update"] == found.stages["update"]
    # One forward pass of every title.
    products = 2 * 2 * (4 * 64**2 + 2 * 64 * 256) * 30
    alone = predicted_for("default", models={"text": BERT}, hardware=Hardware(1e12, 2e10))
    assert alone.caching_seconds == pytest.approx(20314 * products / 1e12)
    assert predicted("uncached").caching_seconds == 0


@pytest.mark.parametrize("name", ["partial", "fft"])
def test_an_epoch_is_the_mean_over_a_cycle_of_refreshing(name):
    every, third = predicted(name), predicted(name, "tuning.refresh=3")
    held = predicted_for("frozen", "loss.negatives=1600", dtype="fp32")
    assert third.held_seconds_per_step == held.seconds_per_step < every.seconds_per_step
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
    frozen = 4 * sum(value.numel() for value in BERT.build().parameters())
    cpu, gpu = (
        predicted_for("lora", models={"text": BERT}, hardware=Hardware(1e12, 2e10, device=device))
        for device in ("cpu", "cuda")
    )
    assert cpu.mapped_bytes == frozen
    assert gpu.mapped_bytes == 0
    assert gpu.peak_memory_bytes - cpu.peak_memory_bytes == pytest.approx(frozen)
    assert found.mapped_bytes == 0
    larger = predicted_for("fft", data=replace(DATA, largest=300))
    assert larger.memory["activations"] == pytest.approx(2 * parts["activations"])
    assert larger.seconds_per_step == found.seconds_per_step


def test_operators_are_those_that_run():
    # A second an operator: another block of the sequence encoder costs those that it starts.
    machine = Hardware(math.inf, math.inf, overhead=1.0)

    def predict(blocks):
        return estimate(recipe("ids").override([f"sequence.num_layers={blocks}"]), {}, DATA, machine).stages

    def run(blocks):
        sequence = SASRec(8, 5, blocks, 2, 0.1)
        with Meter() as forward:
            output = sequence(torch.zeros(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)).sum()
        with Meter() as backward:
            output.backward()
        return {"forward": forward.work.operators, "backward": backward.work.operators}

    for stage in ("forward", "backward"):
        assert predict(3)[stage] - predict(2)[stage] == run(3)[stage] - run(2)[stage] > 0


def test_orders_of_the_methods():
    order = ["fft", *TUNED[1:], "uncached", "default"]
    wide = {"hidden_size": 768, "num_hidden_layers": 1, "intermediate_size": 3072}
    models = {
        "text": Blueprint("text", transformers.BertConfig(**wide), (30,)),
        "image": Blueprint("image", transformers.ViTConfig(**wide), (3, 224, 224)),
    }
    found = {name: predicted_for(name, "loss.negatives=0", models=models) for name in order}
    for measure in ("seconds_per_step", "peak_memory_bytes"):
        cost = {name: getattr(each, measure) for name, each in found.items()}
        middle = [cost[name] for name in TUNED[1:]]
        assert max(middle) < 1.4 * min(middle)
        assert cost["fft"] > max(middle) > min(middle) > cost["uncached"] > cost["default"]
    assert found["default"].seconds_per_step < found["uncached"].seconds_per_step / 20
    assert found["default"].trainable_parameters == found["uncached"].trainable_parameters


@pytest.mark.parametrize("name", ["default", "partial", "lora"])
def test_more_of_anything_costs_more(name):
    def cost(depth=2, width=64, batch=64):
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": 4 * width}
        text = Blueprint("text", transformers.BertConfig(**sizes, num_attention_heads=4, vocab_size=90), (30,))
        data = DataShape(windows=10000, items=5000, distinct=3 * batch, positions=4.0)
        found = predicted_for(name, f"training.batch_size={batch}", models={"text": text}, data=data)
        return found.seconds_per_step, found.peak_memory_bytes

    base = cost()
    assert all(more > less for more, less in zip(cost(width=128), base, strict=True))
    assert all(more > less for more, less in zip(cost(batch=128), base, strict=True))
    # Partial training runs two blocks, however deep the model.
    strict = name != "partial"
    assert all(more > less if strict else more == less for more, less in zip(cost(depth=3), base, strict=True))


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
        (lambda: predicted_for("fft", models={}), "no model is given"),
        (lambda: predicted_for("fft", "modalities=[text]", models={"image": VIT}), "no model as that of text"),
        (lambda: predicted_for("fft", models={"text": VIT}), "a model for image as that of text"),
        (lambda: predicted("fft", "training.precision=bf16"), "hardware measured in fp32"),
        (lambda: predicted_for("default", dtype="fp8"), "storage dtype 'fp8'"),
    ],
)
def test_settings_that_do_not_fit(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_a_missing_modality_costs_a_learned_vector_for_each():
    some = predicted_for("frozen", data=replace(DATA, present={"text": 0.9}))
    assert some.trainable_parameters - predicted("frozen").trainable_parameters == 2 * 128
    assert some.disk_bytes / predicted("frozen").disk_bytes == pytest.approx(1.9 / 2)
