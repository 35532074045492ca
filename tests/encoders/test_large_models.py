"""Models that are larger than one file, one device, or the range of a number format."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from contents import contents_of
from iisan.encoders.encoder import Encoder, _size
from iisan.encoders.levels import parse_levels
from iisan.encoders.loading import Loading
from iisan.encoders.text import TextEncoder, load_text
from iisan.encoders.tuning import tune
from iisan.errors import ConfigError, EncoderError, MissingExtraError, StoreError
from iisan.states.extract import extract

TEXTS = ["red pump", "small steel valve for large blue pump", "tape", "glove of steel", "blue box", "green mask"]
SPREAD = {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "disk", "layers.2": "disk", "norm": "cpu"}


@pytest.fixture
def llama(tmp_path: Path, save_model: Any) -> Path:
    config = hf.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=17,
        max_position_embeddings=40,
    )
    return save_model(tmp_path / "llama", config, template="[CLS] $A", padded=False)


@torch.inference_mode()
def states(encoder: Encoder) -> torch.Tensor:
    return encoder(encoder.prepare(TEXTS), parse_levels("all", encoder.depth))


def test_weights_packed_in_four_bits_count_as_what_they_stand_for() -> None:
    packed = torch.nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=torch.Size((4, 3)))  # type: ignore[attr-defined]
    assert [_size(packed), _size(torch.zeros(4, 3))] == [12, 12]


def test_a_checkpoint_in_shards_is_the_same_model(llama: Path, tmp_path: Path) -> None:
    model = hf.AutoModel.from_pretrained(llama)
    for file in llama.glob("model*"):
        file.unlink()
    model.save_pretrained(llama, max_shard_size="5KB")
    assert len(list(llama.glob("model-*.safetensors"))) > 1
    sharded = load_text(str(llama))
    (tmp_path / "whole").mkdir()
    for file in llama.glob("*.json"):
        if "index" not in file.name:
            (tmp_path / "whole" / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path / "whole")
    whole = load_text(str(tmp_path / "whole"))
    assert sharded.weight_digest == whole.weight_digest
    assert torch.equal(states(sharded), states(whole))


@pytest.mark.parametrize("device_map", ["cpu", "auto", SPREAD])
def test_where_the_weights_lie_changes_nothing(llama: Path, tmp_path: Path, device_map: Any) -> None:
    plain, spread = load_text(str(llama)), load_text(str(llama), loading=Loading(device_map=device_map))
    on_disk = [name for name, parameter in spread.tower.named_parameters() if parameter.is_meta]
    assert bool(on_disk) == (device_map is SPREAD)
    assert spread.settings == plain.settings
    # What would move the tower's parts leaves them where they are.
    assert spread.to(torch.bfloat16) is spread
    torch.testing.assert_close(states(spread), states(plain), rtol=0, atol=0)
    assert spread.settings == plain.settings
    stores = [
        extract(encoder, contents_of(TEXTS), tmp_path / name, dtype="fp32", precision="fp32", levels="all")
        for name, encoder in (("plain", plain), ("spread", spread))
    ]
    assert stores[0].fingerprint == stores[1].fingerprint


def test_the_format_of_weights_is_part_of_the_identity_unless_it_is_fp32(llama: Path, tmp_path: Path) -> None:
    plain = load_text(str(llama))
    assert not {"dtype", "quantise"} & plain.settings.keys()
    assert load_text(str(llama), loading=Loading("auto")).settings == plain.settings
    low = load_text(str(llama), loading=Loading("bf16"))
    assert low.settings["dtype"] == "bf16"
    assert {parameter.dtype for parameter in low.tower.parameters()} == {torch.bfloat16}
    assert states(low).dtype == torch.float32
    exact = states(plain)
    assert (states(low) - exact).square().mean().sqrt() < 0.02 * (exact - exact.mean(0)).square().mean().sqrt()
    tokenizer = {path.name: path.read_bytes() for path in llama.glob("tokenizer*")}
    hf.AutoModel.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(tmp_path / "stored")
    for name, content in tokenizer.items():
        (tmp_path / "stored" / name).write_bytes(content)
    as_stored = load_text(str(tmp_path / "stored"), loading=Loading("auto"))
    assert as_stored.settings["dtype"] == "bf16"
    assert torch.equal(states(as_stored), states(low))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "fp8"}, "weight dtype 'fp8'"), ({"quantise": "2bit"}, "quantise '2bit'")],
)
def test_unknown_ways_of_loading(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loading(**options)


def test_what_is_missing_is_one_sentence(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EncoderError, match=r"quantise '4bit' for .* on a machine without CUDA"):
        load_text(str(llama), loading=Loading(quantise="4bit"))
    absent = ["accelerate", "bitsandbytes"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    with pytest.raises(MissingExtraError, match=r'accelerate is not installed.*pip install "iisan\[large\]"'):
        load_text(str(llama), loading=Loading(device_map="auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    absent.remove("accelerate")
    with pytest.raises(MissingExtraError, match="bitsandbytes is not installed"):
        load_text(str(llama), loading=Loading(quantise="8bit"))


def test_what_is_spread_is_not_trained(llama: Path) -> None:
    with pytest.raises(EncoderError, match="use its cached states"):
        tune(load_text(str(llama), loading=Loading(device_map="cpu")), "full")


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="needs a GPU and bitsandbytes",
)
@pytest.mark.parametrize(("quantise", "bound"), [("8bit", 0.05), ("4bit", 0.3)])
def test_quantised_states_are_near(llama: Path, quantise: str, bound: float) -> None:
    plain, quantised = load_text(str(llama)), load_text(str(llama), loading=Loading(quantise=quantise))
    assert quantised.settings["quantise"] == quantise
    assert quantised.weight_digest != plain.weight_digest
    exact = states(plain)
    error = (states(quantised) - exact).square().mean((0, 2)).sqrt() / exact.square().mean((0, 2)).sqrt()
    assert error[0] == 0
    assert (error < bound).all()


def blown_up(folder: Path, channels: slice) -> TextEncoder:
    """The same model with embeddings, and so all later states, of 10⁵ and more in some channels."""
    model = hf.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embed_tokens.weight[:, channels] *= 1e7
    model.save_pretrained(folder)
    encoder = load_text(str(folder))
    assert states(encoder)[:, :-1].abs().amax((0, 2)).min() > 1e5
    return encoder


@pytest.mark.parametrize("channels", [slice(None), slice(3, 4)])
def test_states_beyond_the_range_of_fp16(llama: Path, tmp_path: Path, channels: slice) -> None:
    encoder, contents = blown_up(llama, channels), contents_of(TEXTS)
    with pytest.raises(StoreError, match=r"level 0 of text \d is infinite .* in fp16; .* --dtype bf16"):
        extract(encoder, contents, tmp_path, dtype="fp16", precision="fp32", levels="all")
    store = extract(encoder, contents, tmp_path, precision="fp32", levels="all")
    assert store.manifest.dtype == "bf16"
    assert max(error or 0.0 for error in store.manifest.error) < 0.004
    if channels != slice(None):
        # int8 has the range, but spends all of its steps on the one huge channel.
        with pytest.raises(StoreError, match=r"int8 storage with fp32 computation changes level .* by"):
            extract(encoder, contents, tmp_path, dtype="int8", precision="fp32", levels="all")


def test_an_index_of_shards_counts_as_weights(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "model-00001-of-00001.safetensors")
    names = [name for name, _ in hf.AutoModel.from_config(hf.AutoConfig.from_pretrained(llama)).named_parameters()]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_text(str(llama)).depth == 3
