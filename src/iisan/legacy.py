"""Names and values of earlier versions: one table for configurations, runs, records and stores on disk."""

from collections.abc import Mapping
from typing import Any

#: Current configuration keys by old key; empty for removed settings.
OLD_KEYS: Mapping[str, str] = {
    "text.backbone": "text.encoder",
    "image.backbone": "image.encoder",
    "tuning.top": "tuning.last_n_layers",
    "tuning.rate": "tuning.learning_rate",
    "tuning.checkpointing": "tuning.gradient_checkpointing",
    "items.width": "items.embedding_dim",
    "items.head": "items.projection",
    "items.fusion": "",
    "sequence.length": "sequence.max_length",
    "sequence.blocks": "sequence.num_layers",
    "sequence.heads": "sequence.num_heads",
    "optimizer.rate": "optimizer.learning_rate",
    "optimizer.blocks": "optimizer.san_learning_rate",
    "optimizer.gates": "optimizer.gate_learning_rates",
    "optimizer.dense": "optimizer.projection_learning_rates",
    "training.batch": "training.batch_size",
    "training.accumulate": "training.gradient_accumulation",
    "training.patience": "training.early_stopping_patience",
    "training.clip": "training.max_grad_norm",
    "training.resident": "training.resident_gb",
}
#: The same for keys of a section ``columns.NAME``.
OLD_COLUMN_KEYS: Mapping[str, str] = {"backbone": "encoder", "jpeg_draft": ""}
#: Current values by old value, by current key.
OLD_VALUES: Mapping[str, Mapping[Any, Any]] = {
    "evaluation.policy": {"none": "all", "keep-target": "unseen"},
    "items.block": {"adapter": "dense"},
    "items.projection": {"one": "single", "two": "double"},
}
#: Old and current prefix of parameters of a saved model.
OLD_PARAMETERS = ("items.heads.", "items.projections.")
#: Wording of results and records by key; the policy keep-target keeps its name, as it has no equal today.
OLD_WORDS: Mapping[str, tuple[str, str]] = {
    "protocol": ("nothing excluded (none)", "nothing excluded (all)"),
    "row": ("frozen backbones, no towers", "frozen encoders, no towers"),
}


def new_name(key: str) -> str | None:
    """Current name of an old configuration key; empty if it was removed, None if it is no old key."""
    if key.startswith("columns."):
        path, _, last = key.rpartition(".")
        new = OLD_COLUMN_KEYS.get(last)
        return new and f"{path}.{new}"
    return OLD_KEYS.get(key)


def upgraded_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a configuration of an earlier version to current names and values."""
    upgraded: dict[str, Any] = {}
    for section, settings in values.items():
        if not isinstance(settings, Mapping):
            upgraded[section] = settings
        elif section == "columns":
            upgraded[section] = {
                column: {new: value for key, value in each.items() if (new := OLD_COLUMN_KEYS.get(key, key))}
                for column, each in settings.items()
            }
        else:
            keys = {key: OLD_KEYS.get(f"{section}.{key}", f"{section}.{key}") for key in settings}
            upgraded[section] = {
                new.removeprefix(f"{section}."): new_value(new, settings[key]) for key, new in keys.items() if new
            }
    return upgraded


def new_value(key: str, value: Any) -> Any:
    """Current form of an old value of a configuration key; current values stay as they are."""
    return OLD_VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


def upgraded_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the top-level entries of a run's result, a record or a store's settings to current names."""
    upgraded = {key.replace("backbone", "encoder"): value for key, value in values.items()}
    for key, (old, new) in OLD_WORDS.items():
        if isinstance(upgraded.get(key), str):
            upgraded[key] = upgraded[key].replace(old, new)
    return upgraded
