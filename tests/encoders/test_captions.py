"""Captions against a naive greedy search, one picture and one token at a time."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from iisan.data.videos import sample_frames
from iisan.encoders.captions import Captioner, open_picture
from iisan.errors import ConfigError, DataError, EncoderError
from pictures import encoded, noise

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>", "red", "blue", "green", "pump", "valve", "box", "glove"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 60}
ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
VISION = SIZES | {"image_size": 16, "patch_size": 8}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 60, "vocab_size": len(WORDS)}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}box{% endif %}"
)
CONFIGS: dict[str, Any] = {
    "blip": hf.BlipConfig(
        text_config=SIZES | TEXT | ENDS | {"sep_token_id": 3, "encoder_hidden_size": 16},
        vision_config=VISION,
        projection_dim=16,
    ),
    "git": hf.GitConfig(vision_config=VISION, **SIZES, **TEXT, **ENDS),
    "vit-gpt2": hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.ViTConfig(**VISION), hf.GPT2Config(**GPT2, **ENDS), decoder_start_token_id=2, **ENDS
    ),
    "llava": hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**SIZES, **TEXT, **ENDS),
        image_token_index=4,
    ),
}
MAX_TOKENS, IMAGE_TOKEN = 6, WORDS.index("<image>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<image>"], model_max_length=60, **names
    )
    pixels = hf.ViTImageProcessorPil(size={"height": 16, "width": 16})
    folders = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = hf.AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():  # norms stay as they are, or every picture gets one caption
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter)
        model.generation_config.suppress_tokens = [IMAGE_TOKEN]
        folder = folders[name] = tmp_path_factory.mktemp("captions") / name
        model.save_pretrained(folder)
        if name == "llava":
            hf.LlavaProcessor(
                pixels, words, 8, "default", TEMPLATE, "<image>", num_additional_image_tokens=1
            ).save_pretrained(folder)
        else:
            words.save_pretrained(folder)
            pixels.save_pretrained(folder)
    return folders


def picture(seed: int) -> Image.Image:
    pixels = noise(seed, 16, 16)
    return Image.fromarray(pixels if seed % 2 else pixels // 6)


PICTURES = [picture(seed) for seed in range(7)]
IMAGES = [encoded(image) for image in PICTURES]


def writer(folders: dict[str, Path], name: str, **options: Any) -> Captioner:
    return Captioner(str(folders[name]), max_tokens=MAX_TOKENS, precision="fp32", device="cpu", **options)


@torch.inference_mode()
def naive(folder: Path, image: Image.Image, prompt: str) -> str:
    model: Any = hf.AutoModelForImageTextToText.from_pretrained(folder).eval()
    pixels = hf.ViTImageProcessorPil(size={"height": 16, "width": 16})([image], return_tensors="pt")
    start = [2]
    if folder.name == "llava":  # an image token per patch, the question, and what opens the answer
        start = [IMAGE_TOKEN] * 4 + [WORDS.index(word) for word in [*prompt.split(), "box"]]
    written = list(start)
    while len(written) < len(start) + MAX_TOKENS and written[-1] != 3:
        if folder.name == "vit-gpt2":
            logits = model(pixel_values=pixels["pixel_values"], decoder_input_ids=torch.tensor([written])).logits
        else:
            logits = model(pixel_values=pixels["pixel_values"], input_ids=torch.tensor([written])).logits
        logits[..., IMAGE_TOKEN] = -torch.inf
        written.append(int(logits[0, -1].argmax()))
    return " ".join(WORDS[token] for token in written[len(start) :] if token > IMAGE_TOKEN)


def caption(pictures: list[Image.Image], captioner: Captioner, batch_size: int = 16) -> list[str]:
    starts = range(0, len(pictures), batch_size)
    return [text for start in starts for text in captioner(pictures[start : start + batch_size])]


@pytest.mark.parametrize("name", CONFIGS)
def test_captions_are_those_of_a_greedy_search(folders: dict[str, Path], name: str) -> None:
    got = caption(PICTURES, writer(folders, name, prompt="red pump"), batch_size=3)
    assert got == [naive(folders[name], image, "red pump") for image in PICTURES]
    assert len(set(got)) > 1


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_and_repetitions_do_not_matter(folders: dict[str, Path], name: str) -> None:
    captioner = writer(folders, name, prompt="red pump")
    together = caption(PICTURES, captioner)
    assert caption(PICTURES, captioner, batch_size=1) == together
    assert caption(PICTURES[::-1], captioner, batch_size=2) == together[::-1]


def test_the_prompt_is_asked_where_there_is_a_chat(folders: dict[str, Path]) -> None:
    answers = {
        prompt: caption(PICTURES, writer(folders, "llava", prompt=prompt)) for prompt in ("red", "blue glove")
    }
    assert answers["red"] != answers["blue glove"]


def test_settings_say_what_decides_the_captions(folders: dict[str, Path]) -> None:
    settings = writer(folders, "vit-gpt2", prompt="red").settings
    assert settings == writer(folders, "vit-gpt2", prompt="blue").settings  # nothing is asked of this one
    assert (settings["max_tokens"], settings["precision"], settings["prompt"]) == (MAX_TOKENS, "fp32", None)
    asked = [writer(folders, "llava", prompt=prompt).settings for prompt in ("red", "blue")]
    assert asked[0] | {"prompt": "blue"} == asked[1]
    assert len({each["weight_digest"] for each in (settings, *asked)}) == 2


def test_settings_hold_what_the_files_of_a_model_decide(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["llava"], tmp_path / "llava"))
    settings = [writer({"llava": folder}, "llava").settings]
    for file, entry in (
        ("generation_config.json", {"repetition_penalty": 2.0}),
        ("config.json", {"vision_feature_layer": -1}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
    ):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | entry))
        settings.append(writer({"llava": folder}, "llava").settings)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("box", "glove"))
    settings.append(writer({"llava": folder}, "llava").settings)
    differing = [
        {name for name in before if before[name] != after[name]} for before, after in itertools.pairwise(settings)
    ]
    assert differing == [{"generation_digest"}, {"config_digest"}, {"processor_digest"}, {"processor_digest"}]


def test_wrong_entries_of_a_configuration_are_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    for number, entry in enumerate(({"encoder": [1]}, {"decoder": {"model_type": "nope"}})):
        folder = Path(shutil.copytree(folders["vit-gpt2"], tmp_path / str(number)))
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entry))
        with pytest.raises(EncoderError, match="no usable configuration"):
            Captioner(str(folder))


def test_pictures_are_images_or_middle_frames() -> None:
    assert open_picture(IMAGES[0], "image").tobytes() == PICTURES[0].tobytes()
    video = encoded(PICTURES[0], "GIF", save_all=True, append_images=PICTURES[1:], duration=100)
    assert open_picture(video, "video").tobytes() == sample_frames(video, 7)[3].tobytes()
    with pytest.raises(DataError, match="not an image"):
        open_picture(b"no image", "image")


def test_other_models_are_refused(
    folders: dict[str, Path], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("bert", "vit"):
        with pytest.raises(EncoderError, match="writes no text about pictures"):
            Captioner(str(model_folders[name]))
    with pytest.raises(ConfigError, match="max_tokens"):
        Captioner(str(folders["git"]), max_tokens=0)
    for name in CONFIGS:
        with pytest.raises(ConfigError, match="fewer than the 60 positions"):
            Captioner(str(folders[name]), max_tokens=60)
    for file in folders["git"].iterdir():
        if file.name not in ("preprocessor_config.json", "processor_config.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(EncoderError, match="no usable"):
        Captioner(str(tmp_path))


def test_models_that_need_more_than_a_picture_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["llava"].iterdir():
        if not file.name.startswith("chat_template"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(EncoderError, match="writes no caption of a picture alone"):
        Captioner(str(tmp_path))
