"""Which models are refused, and what identifies a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from iisan.encoders.image import load_image
from iisan.encoders.text import load_text
from iisan.encoders.video import load_video
from iisan.errors import EncoderError

Folders = dict[str, Path]


@pytest.fixture
def bert(model_folders: Folders, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(model_folders["bert"], tmp_path / "bert"))


def test_max_tokens_counts_special_tokens(model_folders: Folders) -> None:
    encoder = load_text(str(model_folders["bert"]), max_tokens=5)
    inputs = encoder.prepare(["red blue green small large", "tape"])
    assert inputs["attention_mask"].sum(1).tolist() == [5, 3]
    assert inputs["input_ids"][0, [0, -1]].tolist() == [2, 3]
    assert encoder.lengths(["red blue green small large", "tape"]) == [5, 3]


def test_lower_casing_is_the_tokenizers(model_folders: Folders) -> None:
    encoder = load_text(str(model_folders["bert"]))
    assert torch.equal(encoder.prepare(["RED Pump"])["input_ids"], encoder.prepare(["red pump"])["input_ids"])


def test_max_tokens_is_bounded_by_the_model(model_folders: Folders) -> None:
    assert load_text(str(model_folders["bert"])).max_tokens == 40
    # RoBERTa numbers positions from padding_idx + 1 on.
    assert load_text(str(model_folders["roberta"])).max_tokens == 39
    for wanted in (2, 41):
        with pytest.raises(EncoderError, match="3 to 40"):
            load_text(str(model_folders["bert"]), max_tokens=wanted)


def test_settings_identify_weights_and_processor(model_folders: Folders, bert: Path, tmp_path: Path) -> None:
    original = load_text(str(model_folders["bert"]), "mean", 10).settings
    moved = load_text(str(bert), "mean", 10).settings
    assert json.loads(json.dumps(original)) == original
    assert original | {"encoder": str(bert)} == moved
    weights = load_file(bert / "model.safetensors")
    weights["encoder.layer.3.output.dense.bias"][0] += 1e-3
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    changed = load_text(str(bert), "mean", 10).settings
    assert {name for name in moved if moved[name] != changed[name]} == {"weight_digest"}
    rules = json.loads((bert / "tokenizer.json").read_text())
    rules["normalizer"] = None
    (bert / "tokenizer.json").write_text(json.dumps(rules))
    cased = load_text(str(bert), "mean", 10).settings
    assert {name for name in changed if changed[name] != cased[name]} == {"processor_digest"}


def changed(folder: Path, file: str, **entries: Any) -> None:
    """Change entries of a JSON file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("file", "entry", "digest"),
    [
        ("config.json", {"hidden_act": "relu"}, {"config_digest"}),
        ("config.json", {"layer_norm_eps": 0.1}, {"config_digest"}),
        ("config.json", {"num_attention_heads": 4}, {"config_digest"}),
        ("tokenizer_config.json", {"truncation_side": "left"}, {"processor_digest"}),
        ("config.json", {"architectures": ["BertForMaskedLM"], "transformers_version": "4.0"}, set()),
        ("config.json", {"id2label": {"0": "pump"}, "label2id": {"pump": 0}, "dtype": "bfloat16"}, set()),
    ],
)
def test_settings_hold_what_the_configuration_decides(
    bert: Path, file: str, entry: dict[str, Any], digest: set[str]
) -> None:
    before = load_text(str(bert)).settings
    changed(bert, file, **entry)
    after = load_text(str(bert)).settings
    assert {name for name in before if before[name] != after[name]} == digest


@pytest.mark.parametrize(
    ("one", "other"),
    [("layer.0.", "layer.2."), ("layer.1.attention.self.query.weight", "layer.1.attention.self.key.weight")],
)
def test_weights_in_each_others_place_are_other_weights(bert: Path, one: str, other: str) -> None:
    before = load_text(str(bert)).settings
    weights = load_file(bert / "model.safetensors")
    swapped = {
        name.replace(one, other) if one in name else name.replace(other, one): weights[name] for name in weights
    }
    assert swapped.keys() == weights.keys()
    save_file(swapped, bert / "model.safetensors", {"format": "pt"})
    after = load_text(str(bert)).settings
    assert {name for name in before if before[name] != after[name]} == {"weight_digest"}


def test_the_same_tower_with_a_head_is_the_same_model(model_folders: Folders, bert: Path) -> None:
    head: Any = transformers.BertForMaskedLM.from_pretrained(bert)
    head.save_pretrained(bert)
    assert any(name.startswith("bert.") for name in load_file(bert / "model.safetensors"))
    plain = load_text(str(model_folders["bert"])).settings
    assert load_text(str(bert)).settings == plain | {"encoder": str(bert)}


def test_use_does_not_change_the_settings(model_folders: Folders) -> None:
    encoder = load_text(str(model_folders["bert"]))
    before = encoder.settings
    encoder.prepare(["red", "large blue pump"])
    assert encoder.settings == before


def test_image_settings_hold_the_resize(model_folders: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folders["vit"], tmp_path / "vit"))
    before = load_image(str(folder)).settings
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": 3}))
    after = load_image(str(folder)).settings
    assert {name for name in before if before[name] != after[name]} == {"processor_digest"}
    assert before["max_tokens"] is None


def test_poolers_do_not_count(model_folders: Folders, bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "pooler" not in k}, bert / "model.safetensors", {"format": "pt"}
    )
    whole, without = load_text(str(model_folders["bert"])), load_text(str(bert))
    assert whole.weight_digest == without.weight_digest
    assert not any("pooler" in name for name, _ in whole.named_parameters())


def test_missing_weights_are_not_left_to_chance(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    del weights["encoder.layer.2.output.dense.weight"]
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"lacks 1 weights .*layer\.2\.output\.dense\.weight"):
        load_text(str(bert))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "no readable config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no usable tokenizer"),
    ],
)
def test_incomplete_folders(bert: Path, file: str, message: str) -> None:
    (bert / file).unlink()
    with pytest.raises(EncoderError, match=message):
        load_text(str(bert))


def test_damaged_weights(bert: Path) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_text(str(bert))


def test_models_of_the_other_modality(model_folders: Folders) -> None:
    with pytest.raises(EncoderError, match="no usable tokenizer"):
        load_text(str(model_folders["vit"]))
    with pytest.raises(EncoderError, match="no usable image processor"):
        load_image(str(model_folders["bert"]))


def test_a_text_model_with_an_image_processor_is_no_image_model(model_folders: Folders, bert: Path) -> None:
    shutil.copy(model_folders["vit"] / "preprocessor_config.json", bert)
    with pytest.raises(EncoderError, match="reads input_ids"):
        load_image(str(bert))


def test_a_tokenizer_of_another_model_is_one_sentence(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file(weights | {name: weights[name][:5].clone()}, bert / "model.safetensors", {"format": "pt"})
    changed(bert, "config.json", vocab_size=5)
    encoder = load_text(str(bert))
    with pytest.raises(EncoderError, match="gives token 9; expected tokens below the 5"):
        encoder.prepare(["pump"])


def test_pictures_of_another_size_are_one_sentence(model_folders: Folders, tmp_path: Path) -> None:
    for name, load in (("vit", load_image), ("siglip", load_image), ("vit", load_video)):
        folder = Path(shutil.copytree(model_folders[name], tmp_path / load.__name__ / name))
        changed(folder, "preprocessor_config.json", size={"height": 24, "width": 32})
        encoder = load(str(folder))
        pixels = torch.zeros(1, 2, 3, 24, 32) if load is load_video else encoder.prepare([encoder.sample()])
        inputs = {"pixel_values": pixels} if load is load_video else pixels
        with pytest.raises(EncoderError, match=r"pictures of 24 × 32 pixels \(.*\); expected 16 × 16"):
            encoder(inputs, ["last"])


def test_unknown_pooling(model_folders: Folders) -> None:
    with pytest.raises(EncoderError, match="'max'"):
        load_text(str(model_folders["bert"]), "max")
    with pytest.raises(EncoderError, match="pooling 'last' of image"):
        load_image(str(model_folders["vit"]), "last")


def test_code_of_a_models_own_runs_only_when_asked(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (bert / "own.py").write_text("raise SystemExit('ran')")
    (bert / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(EncoderError, match="set trust_remote_code"):
        load_text(str(bert))
    (bert / "config.json").write_text(json.dumps(config | {"model_type": "future"}))
    with pytest.raises(EncoderError, match="upgrade transformers"):
        load_text(str(bert))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model_type": ["bert"]}, r"has model_type \['bert'\]"),
        ({"num_attention_heads": 0}, "cannot be loaded .*by zero"),
        ({"hidden_act": "nope"}, "cannot be loaded"),
    ],
)
def test_wrong_entries_of_a_configuration(bert: Path, entry: dict[str, Any], message: str) -> None:
    changed(bert, "config.json", **entry)
    with pytest.raises(EncoderError, match=message):
        load_text(str(bert))


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's folder on this machine: empty, and without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("hub_cache")
def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def dead(_api: object, name: str, revision: str | None, timeout: float) -> None:
        calls.append(timeout)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", dead)
    with pytest.raises(EncoderError, match="hf download some/model --local-dir FOLDER") as raised:
        load_text("some/model")
    assert calls == [5]
    assert raised.value.__suppress_context__
    with pytest.raises(EncoderError, match="hf download some/model --revision v2 --local-dir FOLDER"):
        load_text("some/model@v2")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(("name", "revision"), [("some/model", None), ("some/model@refs/pr/7", "refs/pr/7")])
def test_a_hub_model_brings_one_set_of_weights(
    monkeypatch: pytest.MonkeyPatch, bert: Path, tmp_path: Path, name: str, revision: str | None
) -> None:
    names = [
        "README.md",
        "model.fp16.safetensors",
        "onnx/model.json",
        "pytorch_model.bin",
        "1_Pooling/config.json",
    ]
    names += [path.name for path in bert.iterdir()]
    commit = "0123abcd" * 5
    asked: dict[str, Any] = {}

    class Info:
        sha = commit
        siblings = [type("File", (), {"rfilename": name}) for name in names]  # noqa: RUF012

    def download(name: str, **options: Any) -> str:
        assert name == "some/model"
        asked.update(options)
        return str(shutil.copytree(bert, tmp_path / "snapshots" / commit))

    def model_info(_api: object, name: str, revision: str | None, timeout: float) -> type[Info]:
        assert name == "some/model"
        asked["listed"] = revision
        return Info

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    settings = load_text(name).settings
    assert settings["encoder"] == name
    assert settings["revision"] == commit
    assert asked["revision"] == asked["listed"] == revision
    assert set(asked["allow_patterns"]) == {"1_Pooling/config.json", *(path.name for path in bert.iterdir())}


def test_a_revision_on_this_machine_is_found_without_a_network(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    """Laid out as the hub's client does: branches and tags name commits, which have the files."""
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    home = hub_cache / "models--some--model"
    digests = {}
    for number, names in enumerate((("main", "v1"), ("v2", "refs/pr/7"))):
        commit = f"{number}" * 40
        weights = load_file(bert / "model.safetensors")
        weights["encoder.layer.3.output.dense.bias"] += number
        save_file(weights, bert / "model.safetensors", {"format": "pt"})
        shutil.copytree(bert, home / "snapshots" / commit)
        for name in names:
            (home / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "refs" / name).write_text(commit)
        digests[commit] = load_text(str(bert)).weight_digest
    one, other = digests
    for name, commit in (("", one), ("@v1", one), ("@v2", other), ("@refs/pr/7", other), (f"@{other}", other)):
        settings = load_text(f"some/model{name}").settings
        assert (settings["encoder"], settings["revision"]) == (f"some/model{name}", commit)
        assert settings["weight_digest"] == digests[commit]
    with pytest.raises(EncoderError, match="'some/model@v3' is not on this machine"):
        load_text("some/model@v3")


def test_a_folder_may_have_an_at_sign(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bert, tmp_path / "some" / "bert@v1")
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "some" / "bert@v1"), "some/bert@v1"):
        settings = load_text(name).settings
        assert (settings["encoder"], settings["revision"]) == (str(tmp_path / "some" / "bert@v1"), None)


def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(tmp_path: Path) -> None:
    for path in (str(tmp_path / "absent"), "./absent", "../absent", "~nobody1/x", "./" + 300 * "a", "./a\0b"):
        with pytest.raises(EncoderError, match="no folder"):
            load_text(path)
