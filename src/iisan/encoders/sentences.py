"""Pooling and maximum length as configured in a Sentence-Transformers folder.

Such a folder is a Hugging Face model with a ``modules.json``. Modules after the pooling (a dense layer, a
normalisation) apply to the pooled last state only and are ignored here.
"""

import json
from pathlib import Path
from typing import Any

from iisan.encoders.hub import Source
from iisan.errors import EncoderError

#: Names of poolings there -> here; used as a switch ``pooling_mode_<name>`` or as the value of ``pooling_mode``.
_POOLINGS = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "lasttoken": "last"}

_JSON = {list: "an array", dict: "an object"}


def own_pooling(source: Source) -> str | None:
    """The pooling configured in the folder; ``None`` if it is not a Sentence-Transformers folder.

    Raises:
        EncoderError: An unsupported pooling, or a damaged file.
    """
    path = source.folder / "modules.json"
    modules = _read(path, list)
    if not all(isinstance(each, dict) and {"path", "type"} <= each.keys() for each in modules):
        raise _damaged(path, "an entry is not a module", "objects with 'path' and 'type'")
    paths = [each["path"] for each in modules if str(each["type"]).rpartition(".")[2] == "Pooling"]
    if not paths:
        return None
    config = _read(source.folder / str(paths[0]) / "config.json", dict)
    prefix = "pooling_mode_"
    modes = [name.removeprefix(prefix) for name, on in config.items() if name.startswith(prefix) and on is True]
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = [str(each) for each in (named if isinstance(named, list) else [named])]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        got = f"'{source.name}' pools its tokens by {' and '.join(modes) or 'no known method'}"
        raise EncoderError(got, f"one of {', '.join(_POOLINGS)}", "choose a pooling yourself, such as mean")
    return _POOLINGS[modes[0]]


def own_length(source: Source) -> int | None:
    """Maximum number of tokens configured in the folder, special tokens included; ``None`` if not configured."""
    length = _read(source.folder / "sentence_bert_config.json", dict).get("max_seq_length")
    return length if isinstance(length, int) else None


def _read(path: Path, kind: type[list[Any] | dict[str, Any]]) -> Any:
    """The value of a JSON file, which must be of class ``kind``; an empty one if the file does not exist."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error), "JSON") from None
    if not isinstance(value, kind):
        raise _damaged(path, f"it holds a {type(value).__name__}", _JSON[kind])
    return value


def _damaged(path: Path, why: str, expected: str) -> EncoderError:
    return EncoderError(f"'{path}' cannot be read ({why})", expected, "download it again")
