"""Tiny random models of every family go from a folder to a trained recommender; the docs' table lists them.

After a change of the table, write it anew: ``IISAN_WRITE_TABLES=1 pytest tests/encoders/test_families.py``
"""

import importlib.util
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import nn

from iisan.data.dataset import Dataset
from iisan.encoders.audio import load_audio
from iisan.encoders.encoder import Encoder
from iisan.encoders.image import load_image
from iisan.encoders.levels import layer_drop, parse_levels
from iisan.encoders.text import load_text
from iisan.encoders.tuning import tune
from iisan.encoders.video import load_video
from iisan.errors import EncoderError
from iisan.recipes import recipe
from iisan.states.caching import cache
from iisan.train.run import train
from pictures import encoded, moving, noise

DOCS = Path(__file__).resolve().parents[2] / "docs" / "encoders.md"
BEGIN, END = "<!-- families: written by tests/encoders/test_families.py -->\n", "<!-- end of families -->\n"

WIDTH, DEPTH = 16, 3
TEXTS = ["Red pump", "small steel valve for large blue pump and mask", "tape", "glove of steel with box"]

VOCABULARY = {"vocab_size": 17}
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 32}
ENCODER = SIZES | VOCABULARY | {"max_position_embeddings": 40}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
DECODER = ENCODER | SPECIAL | {"num_key_value_heads": 1, "head_dim": 8}
#: Windows shorter than the longest text.
WINDOW = {"sliding_window": 4}
VISION = SIZES | {"image_size": 16, "patch_size": 8}
STAGES = {"hidden_sizes": [4, 4, 8, 16], "depths": [1, 1, 3, 2]}


@dataclass(frozen=True)
class Family:
    """How to build a tiny member.

    Attributes:
        example: hub id of a real one.
        config: its configuration.
        options: of the ``save_model`` fixture.
    """

    example: str
    config: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)


def encoder(example: str, config: Callable[[], Any]) -> Family:
    return Family(example, config, {"template": "[CLS] $A [SEP]"})


def decoder(example: str, config: Callable[[], Any], **options: Any) -> Family:
    """Decoders have a token at the beginning of texts, and many have none for padding and pad on the left."""
    return Family(example, config, {"template": "[CLS] $A", "padded": False, "padding_side": "left"} | options)


def with_images() -> Any:
    """Both towers of a multimodal decoder; either is an encoder."""
    return hf.Gemma3Config(
        text_config=DECODER | WINDOW, vision_config=VISION, mm_tokens_per_image=4, image_token_index=1
    )


def byte_tokenizer() -> Any:
    """One token a byte: transformers gives Qwen2 a tokenizer of its own class, which knows no words."""
    letters = {letter: i for i, letter in enumerate(["[SEP]", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    ends = {"eos_token": "[SEP]", "pad_token": "[SEP]", "unk_token": None}
    return hf.Qwen2Tokenizer(vocab=letters, merges=[], padding_side="left", **ends)


TEXT_FAMILIES = {
    "BERT": encoder("google-bert/bert-base-uncased", lambda: hf.BertConfig(**ENCODER)),
    "RoBERTa": encoder("FacebookAI/roberta-base", lambda: hf.RobertaConfig(**ENCODER, **SPECIAL)),
    "DistilBERT": encoder(
        "distilbert/distilbert-base-uncased",
        lambda: hf.DistilBertConfig(
            dim=WIDTH, n_layers=DEPTH, n_heads=2, hidden_dim=32, max_position_embeddings=40, **VOCABULARY
        ),
    ),
    "ELECTRA": encoder(
        "google/electra-small-discriminator", lambda: hf.ElectraConfig(embedding_size=8, **ENCODER)
    ),
    "MiniLM": encoder("microsoft/MiniLM-L12-H384-uncased", lambda: hf.BertConfig(**ENCODER)),
    "MPNet": encoder("sentence-transformers/all-mpnet-base-v2", lambda: hf.MPNetConfig(**ENCODER, **SPECIAL)),
    "DeBERTa-v2": encoder(
        "microsoft/deberta-v3-base",
        lambda: hf.DebertaV2Config(relative_attention=True, pos_att_type=["c2p", "p2c"], **ENCODER),
    ),
    "ModernBERT": encoder(
        "answerdotai/ModernBERT-base",
        lambda: hf.ModernBertConfig(
            **ENCODER,
            **SPECIAL,
            cls_token_id=2,
            sep_token_id=3,
            local_attention=4,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
    ),
    "T5 (encoder)": Family(
        "google/flan-t5-base",
        lambda: hf.T5Config(
            d_model=WIDTH, d_kv=8, d_ff=32, num_layers=DEPTH, num_heads=2, decoder_start_token_id=0, **VOCABULARY
        ),
        {"template": "$A [SEP]"},
    ),
    "Llama": decoder("meta-llama/Llama-3.2-1B", lambda: hf.LlamaConfig(**DECODER)),
    "Mistral": decoder("mistralai/Mistral-7B-v0.3", lambda: hf.MistralConfig(**DECODER, **WINDOW)),
    "Gemma": decoder("google/gemma-2b", lambda: hf.GemmaConfig(**DECODER)),
    "Gemma 2": decoder("google/gemma-2-2b", lambda: hf.Gemma2Config(**DECODER, **WINDOW)),
    "Gemma 3": decoder("google/gemma-3-1b-pt", lambda: hf.Gemma3TextConfig(**DECODER, **WINDOW)),
    "Gemma 3 (with images)": decoder("google/gemma-3-4b-pt", with_images),
    "Qwen2": Family(
        "Qwen/Qwen2.5-0.5B",
        lambda: hf.Qwen2Config(**DECODER | {"vocab_size": 257, "max_position_embeddings": 64}),
        {"tokenizer": byte_tokenizer, "padded": False},
    ),
    "Qwen3": decoder("Qwen/Qwen3-0.6B", lambda: hf.Qwen3Config(**DECODER), template="$A"),
    "Phi-3": decoder("microsoft/Phi-3-mini-4k-instruct", lambda: hf.Phi3Config(**ENCODER, **SPECIAL)),
    "GPT-2": decoder(
        "openai-community/gpt2",
        lambda: hf.GPT2Config(
            n_embd=WIDTH, n_layer=DEPTH, n_head=2, n_positions=40, **VOCABULARY, bos_token_id=2, eos_token_id=3
        ),
        template="$A",
    ),
    "GPT-NeoX": decoder(
        "EleutherAI/pythia-160m",
        lambda: hf.GPTNeoXConfig(**ENCODER, bos_token_id=2, eos_token_id=3),
        template="$A",
    ),
    "OPT": decoder(
        "facebook/opt-125m",
        lambda: hf.OPTConfig(
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=2,
            ffn_dim=32,
            max_position_embeddings=40,
            **VOCABULARY,
            **SPECIAL,
        ),
    ),
}


def vision(example: str, config: Callable[[], Any], kind: str = "ViT", **options: Any) -> Family:
    processor = {"image_processor_type": f"{kind}ImageProcessor", "size": {"height": 16, "width": 16}, **options}
    return Family(example, config, {"image_processor": processor})


SMALL_CROP = {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}
PATCHES = {"size": None, "patch_size": 8, "max_num_patches": 6}
WHOLE = {"size": {"shortest_edge": 128}, "crop_pct": 0.875}
TWO_TOWERS = {"text_config": ENCODER | SPECIAL, "vision_config": VISION}

IMAGE_FAMILIES = {
    "ViT": vision("google/vit-base-patch16-224", lambda: hf.ViTConfig(**VISION)),
    "DeiT": vision(
        "facebook/deit-base-distilled-patch16-224", lambda: hf.DeiTConfig(**VISION), "DeiT", **SMALL_CROP
    ),
    "BEiT": vision(
        "microsoft/beit-base-patch16-224", lambda: hf.BeitConfig(**VISION), "Beit", do_center_crop=False
    ),
    "CLIP": vision(
        "openai/clip-vit-base-patch32",
        lambda: hf.CLIPConfig(projection_dim=WIDTH, **TWO_TOWERS),
        "CLIP",
        **SMALL_CROP,
    ),
    "SigLIP": vision("google/siglip-base-patch16-224", lambda: hf.SiglipConfig(**TWO_TOWERS), "Siglip"),
    "SigLIP 2 (NaFlex)": vision(
        "google/siglip2-base-patch16-naflex",
        lambda: hf.Siglip2Config(
            text_config=ENCODER | SPECIAL, vision_config=SIZES | {"patch_size": 8, "num_patches": 16}
        ),
        "Siglip2",
        **PATCHES,
    ),
    "Gemma 3's SigLIP": vision("google/gemma-3-4b-pt", with_images, "Siglip"),
    "DINOv2": vision("facebook/dinov2-base", lambda: hf.Dinov2Config(mlp_ratio=2, **VISION), "Bit", **SMALL_CROP),
    "DINOv2 with registers": vision(
        "facebook/dinov2-with-registers-base",
        lambda: hf.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=2, **VISION),
        "Bit",
        **SMALL_CROP,
    ),
    "ConvNeXt": vision("facebook/convnext-tiny-224", lambda: hf.ConvNextConfig(**STAGES), "ConvNext", **WHOLE),
    "ConvNeXt V2": vision(
        "facebook/convnextv2-tiny-1k-224", lambda: hf.ConvNextV2Config(**STAGES), "ConvNext", **WHOLE
    ),
    "ResNet": vision(
        "microsoft/resnet-18",
        lambda: hf.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES),
        "ConvNext",
        **WHOLE,
    ),
}
#: Built by the fixtures ``audio_folders`` and ``video_folders``, and for example.
AUDIO_FAMILIES = {
    "AST": ("ast", "MIT/ast-finetuned-audioset-10-10-0.4593"),
    "Wav2Vec2": ("wav2vec2", "facebook/wav2vec2-base"),
    "HuBERT": ("hubert", "facebook/hubert-base-ls960"),
    "WavLM": ("wavlm", "microsoft/wavlm-base"),
    "Whisper (encoder)": ("whisper", "openai/whisper-base"),
}
VIDEO_FAMILIES = {
    "VideoMAE": ("videomae", "MCG-NJU/videomae-base"),
    "ViViT": ("vivit", "google/vivit-b-16x2"),
    "TimeSformer": ("timesformer", "facebook/timesformer-base-finetuned-k400"),
    "images, frame by frame": ("vit", "google/vit-base-patch16-224"),
}
#: What is refused, and the words that say why.
REFUSED = {
    "ALBERT": (
        encoder("albert/albert-base-v2", lambda: hf.AlbertConfig(embedding_size=8, **ENCODER)),
        r"layers of AlbertModel are not recognised \(num_hidden_layers 3, .*whose layers are not shared",
    ),
    "OPT with a projection": (
        decoder(
            "facebook/opt-350m",
            lambda: hf.OPTConfig(
                hidden_size=WIDTH,
                word_embed_proj_dim=8,
                num_hidden_layers=DEPTH,
                num_attention_heads=2,
                ffn_dim=32,
                max_position_embeddings=40,
                **VOCABULARY,
                **SPECIAL,
            ),
        ),
        r"hidden state last of OPTModel is \(1, 3, 8\); .*leave this level out",
    ),
    "Swin": (
        vision(
            "microsoft/swin-tiny-patch4-window7-224",
            lambda: hf.SwinConfig(
                image_size=16, patch_size=4, embed_dim=4, depths=[1, 1], num_heads=[1, 1], window_size=2
            ),
        ),
        r"hidden state 0 of SwinModel is \(1, 16, 4\); expected \[contents, tokens, 8\]",
    ),
    "ResNet of odd widths": (
        vision(
            "facebook/regnet-y-040",
            lambda: hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1]),
            "ConvNext",
            **WHOLE,
        ),
        r"hidden state 2 of ResNetModel is \(1, 16, 16, 16\); .* a divisor of 24",
    ),
}
CONVOLUTIONAL = ("ConvNeXt", "ConvNeXt V2", "ResNet")
FAMILIES = TEXT_FAMILIES | IMAGE_FAMILIES | {name: family for name, (family, _) in REFUSED.items()}
CAUSAL = tuple(name for name, family in TEXT_FAMILIES.items() if family.options.get("padded") is False)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, save_model: Any) -> Callable[[str], Path]:
    root, built = tmp_path_factory.mktemp("families"), {}

    def folder(name: str) -> Path:
        if name not in built:  # each when it is first asked for, so that one family is soon tested alone
            family = FAMILIES[name]
            built[name] = save_model(root / name.replace(" ", "-"), family.config(), **family.options)
        return built[name]

    return folder


def pictures(number: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    return [encoded(Image.fromarray(noise(generator, 40 + 8 * index, 48))) for index in range(number)]


@pytest.fixture(scope="session")
def media(prepared: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared interactions with a sound and a clip for every item."""
    generator = np.random.default_rng(0)
    sounds, clips = [], []
    for _ in range(30):
        sound = io.BytesIO()
        soundfile.write(sound, generator.normal(scale=0.2, size=4000), 16_000, format="WAV")
        sounds.append(sound.getvalue())
        clips.append(moving([Image.fromarray(frame) for frame in noise(generator, 4, 16, 16)]))
    old = Dataset.load(prepared.dataset)
    items = pl.DataFrame({"item_id": old.items["item_id"], "sound": sounds, "clip": clips})
    dataset = Dataset.from_frames(items, old.interactions(), columns={"sound": "audio", "clip": "video"})
    folder = tmp_path_factory.mktemp("media") / "dataset"
    dataset.save(folder)
    return folder


@torch.inference_mode()
def states(encoder: Encoder, contents: list[Any]) -> torch.Tensor:
    return encoder(encoder.prepare(contents), parse_levels("all", encoder.depth))


@torch.inference_mode()
def raw_states(tower: nn.Module, blocks: str, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """transformers' own hidden states h_0 … h_{T-1}, the last block's output, and ``last_hidden_state``."""
    raw = []
    module = tower.get_submodule(blocks)[-1]
    handle = module.register_forward_hook(lambda _module, _args, output: raw.append(output))
    output = tower.eval()(**inputs, output_hidden_states=True)
    handle.remove()
    top = raw[0][0] if isinstance(raw[0], tuple) else raw[0]
    assert len(output.hidden_states) == len(tower.get_submodule(blocks)) + 1
    return [*output.hidden_states[:-1], top, output.last_hidden_state]


#: Where the tower is in models that have several.
INNER = {
    "T5 (encoder)": "encoder",
    "Gemma 3 (with images)": "language_model",
    "CLIP": "vision_model",
    "SigLIP": "vision_model",
    "SigLIP 2 (NaFlex)": "vision_model",
    "Gemma 3's SigLIP": "vision_tower",
}


def reference_tower(folder: Path, path: str | None) -> nn.Module:
    model = hf.AutoModel.from_pretrained(folder)
    return model.get_submodule(path) if path else model


POOLED = {
    "cls": lambda tokens: tokens[0],
    "last": lambda tokens: tokens[-1],
    "mean": lambda tokens: tokens.mean(0),
}


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_text_states_are_those_of_every_text_alone(name: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(name)
    tower = reference_tower(folder, INNER.get(name))
    for pooling in ("mean", "last") if name in CAUSAL else ("mean", "last", "cls"):
        encoder = load_text(str(folder), pooling)
        assert (encoder.depth, encoder.width) == (DEPTH, WIDTH)
        got = states(encoder, TEXTS)
        assert got.shape == (len(TEXTS), DEPTH + 2, WIDTH)
        for index, text in enumerate(TEXTS):
            alone = {"input_ids": encoder.tokenizer([text], return_tensors="pt")["input_ids"]}
            hidden = raw_states(tower, encoder.layer_path, alone)
            wanted = torch.stack([POOLED[pooling](level[0]) for level in hidden])
            torch.testing.assert_close(got[index], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
        together = states(encoder, TEXTS[::-1]).flip(0)
        torch.testing.assert_close(got, together, rtol=1e-5, atol=1e-5 * float(got.abs().max()))


@pytest.mark.parametrize("name", CAUSAL)
def test_the_side_of_padding_does_not_matter(name: str, folder_of: Callable[[str], Path]) -> None:
    encoder = load_text(str(folder_of(name)), "mean")
    answers = {}
    for side in ("left", "right"):
        encoder.tokenizer.padding_side = side
        answers[side] = states(encoder, TEXTS)
    torch.testing.assert_close(answers["left"], answers["right"], rtol=0, atol=0)
    # A batch that is padded on the left, with the positions that transformers asks for there.
    ids = encoder.tokenizer(TEXTS)["input_ids"]
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    tower = reference_tower(folder_of(name), INNER.get(name))
    inputs = {"input_ids": padded, "attention_mask": mask, "position_ids": positions}
    hidden = raw_states(tower, encoder.layer_path, inputs)
    last = states(load_text(str(folder_of(name)), "last"), TEXTS)
    for level, values in enumerate(hidden):
        scale = float(values.abs().max())
        for index, row in enumerate(ids):
            real = values[index, longest - len(row) :]
            torch.testing.assert_close(answers["left"][index, level], real.mean(0), rtol=1e-5, atol=1e-5 * scale)
            torch.testing.assert_close(last[index, level], real[-1], rtol=1e-5, atol=1e-5 * scale)


def naive_pool(name: str, pooling: str, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if pooling == "cls":
        return hidden[0]
    if name not in CONVOLUTIONAL:
        return hidden.mean(0) if mask is None else hidden[mask.bool()].mean(0)
    channels, height, width = hidden.shape
    # 16 channels in the last stage: one cell there, 1 × 2 for 8 channels, 2 × 2 for 4.
    rows, columns = {16: (1, 1), 8: (1, 2), 4: (2, 2)}[channels]
    return torch.stack(
        [
            cell.mean()
            for channel in hidden
            for band in channel.reshape(rows, height // rows, width)
            for cell in band.reshape(height // rows, columns, width // columns).unbind(1)
        ]
    )


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_image_states_are_those_of_every_image_alone(name: str, folder_of: Callable[[str], Path]) -> None:
    folder, contents = folder_of(name), pictures(3)
    tower = reference_tower(folder, INNER.get(name))
    depth = 4 if name in CONVOLUTIONAL else DEPTH
    for pooling in ("mean",) if name in CONVOLUTIONAL or "SigLIP" in name else ("mean", "cls"):
        encoder = load_image(str(folder), pooling)
        assert (encoder.depth, encoder.width) == (depth, WIDTH)
        got = states(encoder, contents)
        assert got.shape == (3, depth + 2, WIDTH)
        for index, content in enumerate(contents):
            inputs = encoder.prepare([content])
            mask = inputs.get("pixel_attention_mask")
            hidden = raw_states(tower, encoder.layer_path, inputs)
            wanted = torch.stack(
                [naive_pool(name, pooling, level[0], None if mask is None else mask[0]) for level in hidden]
            )
            torch.testing.assert_close(got[index], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", [*TEXT_FAMILIES, *IMAGE_FAMILIES])
def test_a_family_is_cached_and_trained(name: str, folder_of: Any, prepared: Any, tmp_path: Path) -> None:
    models = {"text" if name in TEXT_FAMILIES else "image": str(folder_of(name))}
    cache_and_train(prepared.dataset, tmp_path, models)


@pytest.mark.parametrize("name", [*AUDIO_FAMILIES, *VIDEO_FAMILIES])
def test_a_family_of_sounds_or_clips_is_cached_and_trained(
    name: str,
    media: Path,
    audio_folders: dict[str, Path],
    video_folders: dict[str, Path],
    model_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    short, _ = (AUDIO_FAMILIES | VIDEO_FAMILIES)[name]
    folder = (audio_folders | video_folders | model_folders)[short]
    cache_and_train(media, tmp_path, {"sound" if name in AUDIO_FAMILIES else "clip": str(folder)})


def cache_and_train(dataset: Path, folder: Path, models: dict[str, str], **options: Any) -> None:
    """Two updates on the stored states of one modality; what was trained has a block for every stored state."""
    ((modality, store),) = cache(Dataset.load(dataset), folder / "states", models, **options).items()
    assert store.levels == (*layer_drop(store.depth), "last")
    assert max(error or 0.0 for error in store.manifest.error) < 0.02
    quick = ("training.epochs=1", "training.batch_size=32", "training.precision=fp32", "items.bottleneck=4")
    config = recipe("default").model_copy(update={"dataset": dataset, "states": folder / "states"})
    result = train(config.override([*quick, "items.embedding_dim=8"]), folder / "run")
    assert result["status"] == "finished"
    weights = load_file(folder / "run" / "model.safetensors")
    blocks = f"items.towers.{modality}.blocks"
    assert weights[f"{blocks}.down.weight"].shape == (len(layer_drop(store.depth)), 4, store.width)
    assert weights[f"{blocks}.up.bias"].abs().amax(1).min() > 0  # zero until they are trained


def test_an_eva_style_tower_brings_its_own_code(tmp_path: Path, prepared: Any) -> None:
    code = Path(__file__).parent / "own_code" / "modeling_eva_style.py"
    spec = importlib.util.spec_from_file_location("eva_style", code)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    torch.manual_seed(0)
    model, folder = own.EvaStyleModel(own.EvaStyleConfig()).eval(), tmp_path / "eva"
    model.save_pretrained(folder)
    shutil.copy(code, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {f"Auto{kind}": f"modeling_eva_style.EvaStyle{kind}" for kind in ("Config", "Model")}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(EncoderError, match="set trust_remote_code"):
        load_image(str(folder))
    encoder, contents = load_image(str(folder), trust_remote_code=True), pictures(2)
    assert (encoder.pooling, encoder.depth, encoder.width) == ("cls", 3, 16)
    tower = model.vision_model
    with torch.inference_mode():
        pixels = encoder.prepare(contents)["pixel_values"]
        patches = tower.patch_embedding(pixels).flatten(2).mT
        hidden = [torch.cat([tower.class_embedding.expand(2, 1, -1), patches], 1) + tower.positions]
        for layer in tower.layers:
            hidden.append(layer(hidden[-1]))
        hidden.append(tower.post_layernorm(hidden[-1]))
    wanted = torch.stack([level[:, 0] for level in hidden], 1)
    torch.testing.assert_close(states(encoder, contents), wanted, rtol=1e-5, atol=1e-5)
    cache_and_train(prepared.dataset, tmp_path, {"image": str(folder)}, trust_remote_code=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_one_sentence(name: str, folder_of: Callable[[str], Path]) -> None:
    family, message = REFUSED[name]
    load, content = (load_image, pictures(1)) if "image_processor" in family.options else (load_text, TEXTS[:1])
    with pytest.raises(EncoderError, match=message):
        states(load(str(folder_of(name))), content)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_what_feature_maps_cannot_do_is_one_sentence(name: str, folder_of: Callable[[str], Path]) -> None:
    folder = str(folder_of(name))
    with pytest.raises(EncoderError, match=r"no class token.*use mean pooling"):
        load_image(folder, "cls")
    with pytest.raises(EncoderError, match=r"the tokens of .* feature maps"):
        load_image(folder, "tokens")
    with pytest.raises(EncoderError, match=r"query and value projections of .* are not recognised"):
        tune(load_image(folder), "lora")


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_last_stage_can_be_trained(name: str, folder_of: Callable[[str], Path]) -> None:
    encoder = load_image(str(folder_of(name)))
    tune(encoder, "full", last_n_layers=1)
    trained = {parameter for parameter, weight in encoder.named_parameters() if weight.requires_grad}
    assert trained
    assert all(f"{encoder.layer_path}.3." in parameter for parameter in trained)
    encoder(encoder.prepare(pictures(2)), ["last"]).square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters() if weight.requires_grad)


def test_the_statistics_of_batch_normalisation_are_weights(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(folder_of("ResNet"), tmp_path / "resnet"))
    weights = load_file(changed / "model.safetensors")
    weights["encoder.stages.0.layers.0.layer.0.normalization.running_mean"] += 0.5
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    before, after = load_image(str(folder_of("ResNet"))), load_image(str(changed))
    assert (states(before, pictures(1)) - states(after, pictures(1))).abs().max() > 1e-6
    assert before.weight_digest != after.weight_digest


def test_training_leaves_the_statistics_of_batch_normalisation(folder_of: Callable[[str], Path]) -> None:
    encoder, contents = load_image(str(folder_of("ResNet"))), pictures(3)
    frozen = states(encoder, contents)
    statistics = {name: values.clone() for name, values in encoder.named_buffers()}
    tune(encoder, "full")
    assert any("running_mean" in name for name in statistics)
    trained = encoder.train()(encoder.prepare(contents), parse_levels("all", encoder.depth))
    assert torch.equal(trained.detach(), frozen)
    assert all(torch.equal(values, statistics[name]) for name, values in encoder.named_buffers())
    assert encoder.tower.training


def table(folder_of: Callable[[str], Path], media_folders: dict[str, Path]) -> str:
    lines = [
        "| kind | family | for example | class | pooling | default |",
        "|---|---|---|---|---|---|",
    ]
    rows: list[tuple[Any, str, str, Path]] = [
        (load, name, family.example, folder_of(name))
        for families, load in ((TEXT_FAMILIES, load_text), (IMAGE_FAMILIES, load_image))
        for name, family in families.items()
    ]
    for media_families, load in ((AUDIO_FAMILIES, load_audio), (VIDEO_FAMILIES, load_video)):
        rows += [(load, name, example, media_folders[short]) for name, (short, example) in media_families.items()]
    for load, name, example, folder in rows:
        usual = load(str(folder))
        poolings = [pooling for pooling in ("cls", "mean", "last") if accepts(load, str(folder), pooling)]
        tower = type(usual.tower).__name__
        cells = [usual.kind, name, f"`{example}`", tower, ", ".join(poolings), usual.pooling]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def accepts(load: Callable[[str, str], Encoder], folder: str, pooling: str) -> bool:
    try:
        load(folder, pooling)
    except EncoderError:
        return False
    return True


def test_the_table_of_families_is_what_the_code_does(
    folder_of: Callable[[str], Path],
    audio_folders: dict[str, Path],
    video_folders: dict[str, Path],
    model_folders: dict[str, Path],
) -> None:
    text = DOCS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    wanted = table(folder_of, audio_folders | video_folders | model_folders)
    if os.environ.get("IISAN_WRITE_TABLES"):
        DOCS.write_text(before + BEGIN + wanted + END + after, encoding="utf-8")
        return
    assert written == wanted
