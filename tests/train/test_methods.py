"""One contract for every method, and what the methods promise each other."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from iisan.api import Recommender
from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, StoreError
from iisan.model import trainable_state
from iisan.recipes import RECIPES, recipe
from iisan.states.caching import cache
from iisan.states.sources import ComputedStates
from iisan.train.batches import Batches
from iisan.train.loop import Trainer, batch_loss
from iisan.train.run import train
from iisan.train.setup import build, resolve

#: Name -> recipe and changes.
METHODS = {
    **{name: (name,) for name in ("default", "frozen", "ids", "uncached", "fft", "adapter", "lora", "bitfit")},
    "partial": ("partial",),
    "refreshed": ("partial", "tuning.refresh=4"),
}


@pytest.fixture(scope="session")
def bert(tmp_path_factory, model_folders):
    """Folder of a tiny BERT whose last states tell words apart, as those of a trained one do."""
    import transformers

    folder = shutil.copytree(model_folders["bert"], tmp_path_factory.mktemp("planted") / "bert")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.initializer_range = 0.4
    # Of a width of 16 so little is left by hidden dropout that nothing can be learnt; that of attention stays.
    config.hidden_dropout_prob = 0.0
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory, bert):
    """36 items of six kinds, 90 users who keep to one: what comes next follows from the titles."""
    rng = np.random.default_rng(0)
    kinds = ["pump", "valve", "glove", "tape", "box", "mask"]
    titles = [f"{kinds[item % 6]} {' '.join(rng.choice(['red', 'small', 'of'], 2))}" for item in range(36)]
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(36)], "title": titles})
    chosen = [user % 6 + 6 * rng.integers(6, size=6) for user in range(90)]
    interactions = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(90) for _ in range(6)],
            "item_id": [f"i{item}" for taken in chosen for item in taken],
        }
    )
    folder = tmp_path_factory.mktemp("planted")
    dataset = Dataset.from_frames(items, interactions).save(folder / "dataset")
    cache(dataset, folder / "states", {"text": str(bert)}, dtype="fp32", precision="fp32", last_n_layers=2)
    folders = {"dataset": folder / "dataset", "states": folder / "states"}
    quick = (
        *("evaluation.policy=all", "evaluation.select=hr@5", "items.embedding_dim=64", "sequence.dropout=0.1"),
        *("training.batch_size=8", "training.precision=fp32", "loss.negatives=0", "items.fusion_scale=1.0"),
    )

    def config(name: str, *overrides: str) -> Config:
        base, *changes = METHODS[name]
        encoder = f"text.encoder={bert}"
        return recipe(base).model_copy(update=folders).override((*quick, encoder, *changes, *overrides))

    return config


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


EPOCHS = 12


class KnowsKinds:
    """Scores the items of the previous one's kind by ``certainty`` and all others by 0; at 0 it is a guess."""

    def __init__(self, kinds, certainty):
        self.vectors = certainty**0.5 * torch.nn.functional.one_hot(kinds).float()

    def encode_items(self, rows, batch=None):
        return self.vectors[rows]

    def __call__(self, items, slots):
        return items[slots.clamp_min(0)]


@pytest.fixture(scope="session")
def bounds(planted):
    """The losses, over the last epoch's batches, of a guess and of one who knows what was planted."""
    setup = build(resolve(planted("ids")))
    config = setup.config
    batches = Batches(setup.split, config.sequence.max_length, config.training.batch_size, config.loss, "last", 0)
    kinds = torch.tensor([int(item[1:]) % 6 for item in setup.dataset.items["item_id"]])
    return [
        np.mean([float(batch_loss(KnowsKinds(kinds, sure), batch, "mean")) for batch in batches.epoch(EPOCHS)])
        for sure in (0.0, 100.0)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_saves_loads_resumes_and_recommends_the_same(method, planted, bounds, tmp_path):
    whole, stopped = (
        planted(
            method, f"training.epochs={epochs}", "training.early_stopping_patience=0", "tuning.learning_rate=1e-3"
        )
        for epochs in (EPOCHS, EPOCHS // 2)
    )
    train(whole, tmp_path / "whole")
    model = Recommender.load(tmp_path / "whole")
    guess, known = bounds
    # A tenth of what knowing the kinds is worth.
    assert losses(tmp_path / "whole")[-1] < guess - (guess - known) / 10
    # Targets are drawn evenly, so a guess ranks each of the 90 evenly from 1 to 36: a mean so far below occurs by
    # chance once in ten thousand times.
    users = pl.read_parquet(tmp_path / "whole" / "per_user.parquet")
    ranks = users["above"] + (users["ties"] + 1) / 2
    deviation = ((36**2 - 1) / 12 / 90) ** 0.5
    assert ranks.mean() < 18.5 - 3.72 * deviation

    train(stopped, tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()
    (tmp_path / "stopped" / "config.yaml").write_text(resolve(whole).to_yaml())
    train(whole, tmp_path / "stopped")
    resumed = Recommender.load(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    model.save(tmp_path / "copy")
    for other in (resumed, Recommender.load(tmp_path / "copy")):
        assert other.recommend(user="u3").equals(model.recommend(user="u3"))


def test_cached_and_uncached_train_to_the_same_losses(planted, tmp_path):
    for name in ("default", "uncached"):
        train(planted(name, "training.epochs=3"), tmp_path / name)
    torch.testing.assert_close(losses(tmp_path / "default"), losses(tmp_path / "uncached"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "bias", "lora", "adapter"])
def test_partial_training_equals_live_training_of_the_top_blocks(method, planted, tmp_path):
    for source in ("partial", "live"):
        changes = (f"tuning.method={method}", f"source={source}", "training.epochs=2", "tuning.learning_rate=0.01")
        train(planted("partial", *changes), tmp_path / source)
    torch.testing.assert_close(losses(tmp_path / "partial"), losses(tmp_path / "live"), rtol=1e-5, atol=1e-6)


def test_encoders_are_trained_in_one_epoch_of_a_cycle(planted, tmp_path):
    config = resolve(
        planted("partial", "tuning.refresh=3", "training.epochs=5", "training.early_stopping_patience=0")
    )
    setup = build(config)
    batches = Batches(setup.split, 10, 64, config.loss, "last", 0)
    encoder = setup.network.source.encoders["text"]
    passes, epochs, embeddings = [], [], []
    encoder.register_forward_hook(lambda *_: passes.append(1))
    start = trainable_state(setup.network)

    def validate(network):
        tuned = [value for name, value in network.trainable() if name.startswith("source.")]
        reached = {value.grad is not None for value in tuned}
        ran = bool(passes)
        embeddings.append(network.item_embeddings())
        passes.clear()
        epochs.append((trainable_state(network), reached, ran))
        return {"hr@5": 1 / len(epochs)}

    Trainer(setup.network, batches, config, validate, tmp_path).fit()
    before = start
    for epoch, (state, reached, ran) in enumerate(epochs, 1):
        live = epoch in (1, 4)
        assert reached == {live}
        assert ran == live
        for name, value in state.items():
            measured = name.startswith("items.norm.")
            moved = (live or not name.startswith("source.")) and not measured
            assert torch.equal(value, before[name]) == (not moved), (epoch, name)
        before = state
    # The best epoch was the first: its encoders are in the network again, and not the states of later ones.
    torch.testing.assert_close(setup.network.item_embeddings(), embeddings[0], rtol=1e-5, atol=1e-5)
    assert (embeddings[0] - embeddings[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("source", ["partial", "live"])
def test_states_from_memory_train_like_states_that_are_computed_anew(source, planted, tmp_path, monkeypatch):
    config = planted(
        "partial", f"source={source}", "tuning.refresh=3", "training.epochs=4", "tuning.learning_rate=0.01"
    )
    train(config, tmp_path / "memory")

    def naive(self, modality, items, device):
        training = self.training
        states = self.eval()._live(modality, items, device).detach()
        self.train(training)
        return states

    monkeypatch.setattr(ComputedStates, "_cached", naive)
    train(config, tmp_path / "naive")
    torch.testing.assert_close(losses(tmp_path / "memory"), losses(tmp_path / "naive"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_stay_as_they_were_to_the_last_bit(method, planted):
    config = resolve(planted(method))
    setup = build(config)
    network = setup.network.train()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    trainable = dict(network.trainable())
    optimizer = torch.optim.Adam(trainable.values(), lr=0.01)
    batches = Batches(setup.split, 10, 64, config.loss, "last", 0)
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            batch_loss(network, batch, "mean").backward()
            assert all((value.grad is not None) == value.requires_grad for value in network.parameters())
            optimizer.step()
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]) == (name not in trainable), name
    tuned = {name for name in trainable if name.startswith("source.")}
    assert bool(tuned) == (method in ("fft", "adapter", "lora", "bitfit", "partial", "refreshed"))


def test_trained_parameters_are_counted_and_saved(planted, tmp_path):
    result = train(planted("lora", "training.epochs=1", "tuning.rank=3"), tmp_path / "run")
    width, depth, hidden = 16, 4, 64
    temperature = 1
    sequence = (4 * hidden**2 + 8 * hidden**2 + 5 * hidden + 4 * hidden) + 12 * hidden + temperature
    projection = (width * hidden + hidden) + (hidden * hidden + hidden)
    assert result["trainable_parameters"] == depth * 2 * 2 * width * 3 + projection + sequence
    assert result["total_parameters"] > result["trainable_parameters"]
    assert set(result["encoders"]) == {"text"}
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert sum("lora_" in name for name in saved) == depth * 2 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("source=cached",), "stored states cannot be trained"),
        (("source=partial", "tuning.last_n_layers=null"), "tuning.last_n_layers, the number of layers"),
        (("tuning.method=none", "tuning.refresh=2"), "nothing to refresh"),
        (("items.kind=side",), "needs items.kind 'projection'"),
        (("text.encoder=null",), "no modality is named.*set text.encoder, image.encoder or both"),
        (("text.encoder=null", "modalities=[text]"), "no encoder for text"),
    ],
)
def test_settings_that_do_not_fit(changes, message, planted):
    with pytest.raises(ConfigError, match=message):
        build(resolve(planted("fft", *changes)))


def test_tokens_that_do_not_fit(planted, bert, model_folders, tmp_path):
    with pytest.raises(StoreError, match=r"enter layer 2 of 4.*--last-n-layers 1.*tuning.last_n_layers to 2"):
        build(resolve(planted("partial", "tuning.last_n_layers=1")))
    with pytest.raises(StoreError, match="were made with encoder"):
        build(resolve(planted("partial", f"text.encoder={model_folders['roberta']}")))
    changed = shutil.copytree(bert, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    doubled = {name: 2 * value for name, value in weights.items()}
    save_file(doubled, changed / "model.safetensors", {"format": "pt"})
    other = shutil.copytree(planted("partial").states, tmp_path / "states")
    (manifest,) = other.glob("tokens-text-*/manifest.json")
    manifest.write_text(manifest.read_text().replace(str(bert), str(changed)))
    with pytest.raises(StoreError, match="made with other weights"):
        build(resolve(planted("partial", f"states={other}", f"text.encoder={changed}")))
    with pytest.raises(StoreError, match=r"no token states of text.*--last-n-layers"):
        build(resolve(planted("partial", f"states={tmp_path}", "modalities=[text]")))


def test_every_recipe_is_a_method_or_a_faithful_configuration():
    assert set(RECIPES) == {"similarity", "paper", "reference", "versa", *(name for name, *_ in METHODS.values())}
