"""Nested mappings of settings: YAML files, dotted keys, assignments, and what is wrong with one."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from iisan.errors import ConfigError
from iisan.legacy import new_name, new_value


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Parse a ``key.key=value`` override, whose value is YAML; raise a ``ConfigError`` for anything else."""
    key, separator, value = assignment.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"the override '{assignment}' is no assignment", "key.key=value", "write e.g. training.batch_size=128"
        )
    try:
        return key.strip(), _load_yaml(value)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"the value in '{assignment}' is not YAML", "a YAML value", "quote it") from None


def merge(base: dict[str, Any], assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Set dotted keys in a nested dictionary in place, and return it.

    A truth value of a section with a key ``enabled`` is the value of this key; its other keys stay.
    """
    for key, value in assignments:
        *parents, name = key.split(".")
        section = base
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    f"the key '{key}' looks inside '{parent}', which is a value", "a section", "check the key"
                )
        old = section.get(name)
        if isinstance(value, bool) and isinstance(old, dict) and "enabled" in old:
            section, name = old, "enabled"
        section[name] = value
    return base


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the dotted keys and values of a nested mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _load_yaml(text: str) -> Any:
    value = yaml.safe_load(text)
    # Fails for an alias that contains itself.
    json.dumps(value, default=str)
    return value


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Find the first dotted key in which two nested mappings differ, and both values; None if they are equal.

    >>> difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ('a.c', 2, 3)
    """
    ours, theirs = dict(flatten(one)), dict(flatten(other))
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            return key, ours.get(key), theirs.get(key)
    return None


def with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults of sections and of keys in sections, such as those added since a file was written.

    >>> with_defaults({"a": {"b": 1}}, {"a": {"b": 0, "c": 2}, "d": 3})
    {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    filled = {**defaults, **values}
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled[name], Mapping):
            filled[name] = {**default, **filled[name]}
    return filled


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: The file does not exist, cannot be read, or is not a mapping.
    """
    try:
        values = _load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}'", "a YAML file", "check the path") from None
    except (yaml.YAMLError, ValueError, IsADirectoryError) as error:
        raise ConfigError(f"'{path}' cannot be read as YAML ({error})", "a YAML file", "mend it") from None
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' holds a {type(values).__name__}", "settings (key: value)", "mend it")
    return values


def closest(key: str, known: Sequence[str]) -> str:
    """Suggest the known key that an unknown one resembles, or else all of them."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"


def expected_of(error: ErrorDetails) -> str:
    """Say what a value should have been, to stand after "expected"."""
    match error:
        case {"type": "too_short", "ctx": {"min_length": count}}:
            return f"{count} or more values"
        case {"type": "too_long", "ctx": {"max_length": count}}:
            return f"{count} values or fewer"
    return error["msg"].removeprefix("Input should be ")


def explained(error: ErrorDetails, known: Sequence[str]) -> ConfigError:
    """Say in a sentence what is wrong with a setting; ``known`` are the dotted keys of all settings."""
    # pydantic appends the member of a union that it tried, or "[key]", to the field's name.
    key = ".".join(part for part in map(str, error["loc"]) if part.isidentifier() or part.isdigit())
    value = error["input"]
    if error["type"] == "extra_forbidden":
        hint = closest(key, known)
        if (new := new_name(key)) is not None:
            hint = f"it is now '{new}'" if new else "it was removed: leave it out"
        return ConfigError(f"unknown configuration key '{key}'", "a known key", hint)
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return ConfigError(message, "settings that fit together", "change one of them")
    if error["type"] == "missing":
        return ConfigError(f"configuration key '{key}' is missing in {value!r}", "a value for it", "add it")
    new = new_value(key, value)
    expected = expected_of(error)
    if error["type"] == "model_type":
        expected = "true, false, or keys and values" if key == "anchor" else "keys and values"
    return ConfigError(
        f"configuration key '{key}' has the value {value!r}",
        expected,
        "change that value" if new is value else f"it is now {new!r}",
    )
