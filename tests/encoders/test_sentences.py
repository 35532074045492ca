"""Sentence-Transformers folders: their pooling and length are the defaults."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from iisan.encoders.text import load_text
from iisan.errors import EncoderError

TYPES = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")


@pytest.fixture
def sentence_folder(model_folders: dict[str, Path], tmp_path: Path) -> Any:
    def build(pooling: dict[str, Any], length: int | None = 12, base: str = "bert") -> str:
        folder = Path(shutil.copytree(model_folders[base], tmp_path / "model"))
        modules = [{"idx": i, "path": path, "type": TYPES[i]} for i, path in enumerate(("", "1_Pooling"))]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16} | pooling))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
        return str(folder)

    return build


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"], "include_prompt": True}, "cls"),
    ],
)
def test_the_folder_says_how_to_pool(sentence_folder: Any, config: dict[str, Any], pooling: str) -> None:
    assert load_text(sentence_folder(config)).pooling == pooling


def test_the_caller_may_say_otherwise(sentence_folder: Any) -> None:
    folder = sentence_folder({"pooling_mode_cls_token": True})
    own, other = load_text(folder), load_text(folder, "mean", 20)
    assert (own.pooling, own.max_tokens) == ("cls", 12)
    assert (other.pooling, other.max_tokens) == ("mean", 20)


def test_a_length_beyond_the_model_or_none_at_all(sentence_folder: Any, model_folders: dict[str, Path]) -> None:
    assert load_text(sentence_folder({"pooling_mode": "mean"}, 512)).max_tokens == 40
    assert load_text(str(model_folders["bert"])).pooling == "mean"


def test_no_length_is_the_usual_one(sentence_folder: Any) -> None:
    assert load_text(sentence_folder({"pooling_mode": "mean"}, None)).max_tokens == 40


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls_token and mean_tokens"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({}, "no known method"),
    ],
)
def test_an_unsupported_pooling_is_refused(sentence_folder: Any, config: dict[str, Any], named: str) -> None:
    folder = sentence_folder(config)
    with pytest.raises(EncoderError, match=f"pools its tokens by {named}.* choose a pooling yourself"):
        load_text(folder)
    assert load_text(folder, "mean").pooling == "mean"


def test_a_damaged_file_is_one_sentence(sentence_folder: Any) -> None:
    folder = sentence_folder({"pooling_mode": "mean"})
    (Path(folder) / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(EncoderError, match=r"1_Pooling/config\.json' cannot be read"):
        load_text(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", {"path": "1_Pooling"}, "holds a dict.*expected an array"),
        ("modules.json", ["1_Pooling"], "expected objects with 'path' and 'type'"),
        ("modules.json", [{"type": TYPES[1]}], "expected objects with 'path' and 'type'"),
        ("1_Pooling/config.json", ["mean"], "holds a list.*expected an object"),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, "pools its tokens by"),
        ("sentence_bert_config.json", [12], "holds a list.*expected an object"),
        ("sentence_bert_config.json", {"max_seq_length": -3}, "max_tokens -3 .*expected 3 to 40"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_tokens 0 .*expected 3 to 40"),
    ],
)
def test_a_file_with_unusable_values_is_one_sentence(
    sentence_folder: Any, file: str, content: Any, message: str
) -> None:
    folder = sentence_folder({"pooling_mode": "mean"})
    (Path(folder) / file).write_text(json.dumps(content))
    with pytest.raises(EncoderError, match=message):
        load_text(folder)
    assert load_text(folder, "mean", 10).max_tokens == 10
