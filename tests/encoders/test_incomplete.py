"""Model folders that lack what turns contents into inputs: refused in one sentence, never used as they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from iisan.demo.run import CAPTIONER, ENCODERS
from iisan.encoders.captions import Captioner
from iisan.encoders.hub import locate
from iisan.encoders.load import load_encoder
from iisan.encoders.loading import check_tokenizer
from iisan.encoders.text import load_text
from iisan.errors import EncoderError

MODEL = {"config.json", "model.safetensors", "generation_config.json"}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:07ec\nsize 231508\n"


def bare(folder: Path, to: Path, *more: str) -> Path:
    """A copy of a model folder with configuration and weights only, and some further files."""
    to.mkdir()
    for file in folder.iterdir():
        if file.name in MODEL.union(more):
            shutil.copy(file, to)
    return to


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert", "deberta", "gpt2", "clip"])
def test_a_text_model_without_its_tokenizer(model_folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    folder = bare(model_folders[family], tmp_path / "bare")
    with pytest.raises(EncoderError, match=r"no usable tokenizer .*download all files of the model"):
        load_text(str(folder))


def test_t5_without_its_tokenizer_has_the_mark_of_a_space(tmp_path: Path) -> None:
    hf.T5Config().save_pretrained(tmp_path)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="its vocabulary has no words"):
        check_tokenizer(locate(str(tmp_path)), tokenizer)


def test_a_vocabulary_of_characters_needs_no_file() -> None:
    check_tokenizer(locate("."), hf.CanineTokenizer())


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors", "tokenizer_config.json"])
def test_git_lfs_pointers(model_folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(model_folders["mpnet"], tmp_path / "clone"))
    (folder / name).write_text(POINTER)
    with pytest.raises(EncoderError, match=f"'{name}' of .* is a git-lfs pointer.*git lfs pull"):
        load_text(str(folder))


def test_pointers_of_weights_that_are_not_read_do_not_matter(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folders["bert"], tmp_path / "clone"))
    for name in ("pytorch_model.bin", "tf_model.h5"):
        (folder / name).write_text(POINTER)
    assert load_text(str(folder)).depth == 4


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_vocabulary_that_is_another_file(model_folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    folder = bare(model_folders[family], tmp_path / "bare")
    (folder / "vocab.txt").write_text("<html>\n<body>not found</body>\n</html>\n")
    with pytest.raises(EncoderError, match=r"no usable tokenizer|knows no word of 2 texts, such as 'red pump'"):
        load_text(str(folder)).lengths(["red pump", "a valve"])


def test_texts_in_a_script_that_the_vocabulary_does_not_have(model_folders: dict[str, Path]) -> None:
    encoder = load_text(str(model_folders["bert"]))
    with pytest.raises(EncoderError, match="knows no word of 2 texts, such as 'насос'"):
        encoder.lengths(["насос", "клапан"])
    assert encoder.lengths(["насос", "red"]) == [3, 3]
    assert encoder.lengths(["насос"]) == [3]


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_models_of_other_kinds_without_their_processor(
    model_folders: dict[str, Path],
    audio_folders: dict[str, Path],
    video_folders: dict[str, Path],
    tmp_path: Path,
    kind: str,
) -> None:
    folders: dict[str, Any] = {"image": model_folders["vit"], "audio": audio_folders["wavlm"]}
    folder = bare({**folders, "video": video_folders["videomae"]}[kind], tmp_path / "bare")
    with pytest.raises(EncoderError, match=r"no usable (image processor|audio feature extractor)"):
        load_encoder(kind, str(folder))


@pytest.mark.parametrize("more", [(), ("preprocessor_config.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_a_captioner_without_its_processors(tmp_path: Path, more: tuple[str, ...]) -> None:
    folder = bare(ENCODERS / CAPTIONER, tmp_path / "bare", *more)
    with pytest.raises(EncoderError, match=r"no usable (processor|tokenizer|image processor)"):
        Captioner(str(folder))
