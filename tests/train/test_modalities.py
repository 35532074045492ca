"""Any number of modalities: a column with a kind, its own encoder, its own place in the towers."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from iisan.cli import main
from iisan.config import ColumnConfig
from iisan.data.dataset import Dataset
from iisan.errors import ConfigError, DataError, StoreError
from iisan.recipes import recipe
from iisan.states.caching import cache
from iisan.states.importing import import_states, open_source
from iisan.states.store import StateStore
from iisan.train.run import train
from iisan.train.setup import build, resolve

WORDS = ("red", "blue", "small", "pump", "valve", "box")
COLUMNS = {"note": "text", "back": "image"}


@pytest.fixture(scope="module")
def many(prepared, model_folders, tmp_path_factory):
    """The prepared data with a second text for two items of three and a second picture, and states of all four."""
    folder = tmp_path_factory.mktemp("many")
    old = Dataset.load(prepared.dataset)
    rng = np.random.default_rng(1)
    notes = [None if n % 3 == 0 else " ".join(rng.choice(WORDS, size=3)) for n in range(30)]
    items = old.items.with_columns(pl.Series("note", notes), pl.col("image").reverse().alias("back"))
    dataset = Dataset.from_frames(items, old.interactions(), columns=COLUMNS).save(folder / "dataset")
    models = {
        "text": str(model_folders["bert"]),
        "note": str(model_folders["roberta"]),
        "image": str(model_folders["vit"]),
        "back": str(model_folders["vit"]),
    }
    cache(dataset, folder / "states", models, levels="all", dtype="fp32", precision="fp32")
    return folder, models


def configured(many, *overrides):
    folder, _ = many
    config = recipe("default").override(["training.precision=fp32", "loss.negatives=0", *overrides])
    return config.model_copy(update={"dataset": folder / "dataset", "states": folder / "states"})


def test_a_folder_of_stores_says_what_the_modalities_are(many):
    config = resolve(configured(many, "text.pooling=mean"))
    assert config.modalities == ("image", "text", "back", "note")
    assert config.columns == {"back": ColumnConfig(kind="image"), "note": ColumnConfig(kind="text")}
    kinds = {"image": "image", "text": "text", "back": "image", "note": "text"}
    assert StateStore.kinds(many[0] / "states") == kinds
    assert config.states_of("note").pooling == "mean"  # as is said of texts
    assert resolve(config) == config


def test_what_is_said_of_a_column_wins_over_its_kind(many):
    config = resolve(configured(many, "columns.note={levels: [0, 2]}", "text.levels=[1]"))
    assert config.states_of("note").levels == (0, 2)
    assert config.states_of("text").levels == (1,)
    source = build(config).network.source
    assert {name: len(levels) for name, levels in source.levels.items()}["note"] == 2


def test_named_modalities_need_no_look_at_other_stores(many, tmp_path):
    (tmp_path / "text-0").mkdir()
    (tmp_path / "text-0" / "manifest.json").write_text("not JSON")
    config = configured(many).model_copy(update={"states": tmp_path})
    assert resolve(config.override(["modalities=[image]"])).modalities == ("image",)
    with pytest.raises(StoreError):
        resolve(config)


def test_live_modalities_are_those_with_an_encoder(many):
    _, models = many
    given = {
        "columns.image.encoder": models["image"],
        "columns.note.kind": "text",
        "text.encoder": models["text"],
    }
    live = [f"{key}='{value}'" for key, value in given.items()]
    assert resolve(configured(many, "source=live", *live)).modalities == ("image", "text", "note")


def test_a_live_encoder_for_a_column_that_the_dataset_lacks_is_refused(many):
    _, models = many
    text, other = (f"{key}='{models['text']}'" for key in ("text.encoder", "columns.other.encoder"))
    config = resolve(configured(many, "source=live", text, other, "columns.other.kind=text"))
    assert config.modalities == ("text", "other")
    with pytest.raises(ConfigError, match="no contents in a column 'other'"):
        build(config)


def test_stored_modalities_are_those_that_the_dataset_has(many, tmp_path):
    """A folder of stores may serve several datasets."""
    whole = Dataset.load(many[0] / "dataset")
    without = Dataset.from_frames(whole.items.select("item_id", "text"), whole.interactions())
    config = configured(many).model_copy(update={"dataset": without.save(tmp_path / "texts").folder})
    assert "note" in resolve(configured(many)).modalities
    assert resolve(config).modalities == ("image", "text")  # the columns of every dataset


def test_four_modalities_train_cached_as_live(many, tmp_path):
    """The same losses step for step: the live twin runs all four encoders."""
    _, models = many
    live = [f"columns.{name}={{kind: {kind}, encoder: '{models[name]}'}}" for name, kind in COLUMNS.items()]
    live += [f"{name}.encoder='{models[name]}'" for name in ("text", "image")]
    losses = []
    for source in ("cached", "live"):
        changes = ["training.epochs=2", "sequence.dropout=0", f"source={source}", *live]
        train(configured(many, "modalities=[image, text, back, note]", *changes), tmp_path / source)
        lines = (tmp_path / source / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_items_that_lack_modalities_are_encoded_from_what_they_have(many):
    network = build(resolve(configured(many))).network.eval()
    batch = network.source(torch.arange(30))
    assert len(batch.modalities["note"][1]) == 20
    embeddings = network.encode_items(torch.arange(30))
    assert torch.isfinite(embeddings).all()
    # Item 5 has neither text nor image, items 24 and 25 have no back: each alone as among the others.
    for item in (0, 5, 24, 25):
        alone = network.encode_items(torch.tensor([item]))
        torch.testing.assert_close(alone[0], embeddings[item])


def test_items_are_encoded_alike_in_both_precisions(many):
    # Thirty items are two too few for even sizes, five are many too few, and some lack modalities.
    network = build(resolve(configured(many, "sequence.dropout=0"))).network.train()
    assert not network.autocast
    for rows in (torch.arange(30), torch.tensor([3, 5, 24, 25, 29])):
        network.autocast = False
        plain = network.encode_items(rows)
        network.autocast = True
        assert len(network.read_items(rows).rows) == 32
        low = network.encode_items(rows)
        assert low.dtype == torch.float32
        assert (low - plain).square().mean().sqrt() < 0.02 * plain.std()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("modalities=[text, motto]", "kind of the modality 'motto' is not known.*set columns.motto.kind"),
        ("modalities=[text, 'two words']", "'two words'"),
        ("columns.note={kind: smell}", "'columns.note.kind' has the value 'smell'"),
        ("text.levels=group-0", "text.levels"),
        ("optimizer.projection_learning_rates={not_there: 0.1}", "settings of a tower 'not_there'"),
    ],
)
def test_settings_of_modalities_that_make_no_sense(many, change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(resolve(configured(many, change)))


def test_a_column_that_torch_cannot_name(many):
    network = build(resolve(configured(many))).network
    network.source.widths["values"] = 8
    from iisan.model import item_encoder

    with pytest.raises(ConfigError, match="modality named 'values'"):
        item_encoder(configured(many), 30, network.source)


def test_caching_needs_columns_with_contents(many):
    folder, models = many
    dataset = Dataset.load(folder / "dataset")
    with pytest.raises(ConfigError, match=r"no contents in a column 'motto'.*--column motto=KIND"):
        cache(dataset, folder / "other", {"motto": models["text"]})


def test_further_columns_are_cleaned_and_checked(tmp_path):
    interactions = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "a"]})
    items = pl.DataFrame({"item_id": ["a", "b"], "note": [" two &amp;  three ", ""]})
    dataset = Dataset.from_frames(items, interactions, columns={"note": "text"})
    assert dataset.items["note"].to_list() == ["two & three", None]
    assert dataset.manifest["counts"]["missing"] == {"text": 2, "image": 2, "note": 1}
    with pytest.raises(DataError, match=r"no column 'nothing'.*leave out --column nothing=text"):
        Dataset.from_frames(items, interactions, columns={"nothing": "text"})
    with pytest.raises(DataError, match="'columns'"):
        Dataset.from_frames(items, interactions, columns={"note": "smell"})
    pictures = items.with_columns(pl.Series("back", [b"no picture", None]))
    with pytest.raises(DataError, match="bad back 'bytes that are not an image'"):
        Dataset.from_frames(pictures, interactions, columns={"back": "image"})
    outside = items.with_columns(pl.Series("back", ["../a.png", None]))
    with pytest.raises(DataError, match="leads out of"):
        Dataset.from_frames(outside, interactions, columns={"back": "image"}, images=tmp_path)


def test_vectors_alone_are_enough_to_start(many, tmp_path, capsys, monkeypatch):
    """A column of lists in the items, imported by the command line, trained on alone and beside other states."""
    folder, _ = many
    old = Dataset.load(folder / "dataset")
    vectors = [None if n == 4 else [float(n), 1.0, -float(n)] for n in range(30)]
    Dataset.from_frames(old.items.with_columns(pl.Series("v", vectors)), old.interactions()).save(
        tmp_path / "data"
    )
    command = ["iisan", "import-states", tmp_path / "data", "--name", "v", "--out", tmp_path / "states"]
    monkeypatch.setattr("sys.argv", [*map(str, command), "--dtype", "fp32"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "29 of 30 items have v" in capsys.readouterr().out
    config = recipe("default").override(["training.epochs=1", "loss.negatives=0"])
    config = config.model_copy(update={"dataset": tmp_path / "data", "states": tmp_path / "states"})
    result = train(config, tmp_path / "alone")
    assert result["states"].keys() == {"v"}
    cache(Dataset.load(tmp_path / "data"), tmp_path / "states", {"text": many[1]["text"]})
    setup = build(resolve(config))
    assert setup.network.source.widths == {"text": 16, "v": 3}
    # The inter tower has the one level that both have; the vector is mapped to the width of the hidden states.
    assert (setup.network.items.towers["inter"].levels, setup.network.items.towers["inter"].width) == (1, 16)


def test_the_last_of_imported_states_is_the_last_that_came(many, tmp_path):
    """Several levels, which have numbers where they were made elsewhere; `frozen` reads the last."""
    folder, _ = many
    dataset = Dataset.load(folder / "dataset")
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(30, 3, 8)).astype(np.float32))
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(dataset.items["item_id"]))
    import_states(dataset, open_source(tmp_path / "v.npy", ids), "v", tmp_path / "states", dtype="fp32")
    config = recipe("frozen").override(["modalities=[v]", "loss.negatives=0", "training.epochs=1"])
    config = config.model_copy(update={"dataset": folder / "dataset", "states": tmp_path / "states"})
    setup = build(resolve(config))
    read = setup.network.source(torch.tensor([4])).modalities["v"].values
    torch.testing.assert_close(read[0, 0], torch.from_numpy(np.load(tmp_path / "v.npy")[4, -1]))
