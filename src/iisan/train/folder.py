"""Run folders: claimed before training, and written when it is finished."""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from iisan.config import FOLDERS, AnchorConfig, Config, EvaluationConfig, SplitName
from iisan.data.splits import Queries
from iisan.errors import RunError
from iisan.evaluate.metrics import summarise
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.scorer import Scorer
from iisan.files import LOCK, aside, locked, write_json
from iisan.machine import choose_device, device_name, peak_memory, processor_name
from iisan.names import ITEM_ID, TEXT
from iisan.nested import difference, flatten, read_yaml, with_defaults
from iisan.runs.assess import measure
from iisan.runs.run import CONFIG, ITEMS, MODEL, PER_USER, RESULT, SCHEMA
from iisan.states.configured import open_dataset, open_stores
from iisan.train.loop import CHECKPOINT, METRICS
from iisan.train.setup import Inputs, fingerprints

#: Settings whose value ``auto`` a run replaces by one of these.
_CHOICES = {"training.precision": ("fp32", "bf16"), "evaluation.split": get_args(SplitName)}
#: Folder of TensorBoard events in a run folder.
EVENTS = "tensorboard"
#: Files of a run that failed or was stopped before its first epoch, which cannot be resumed from.
_BEFORE_AN_EPOCH = {CONFIG, RESULT, EVENTS}
#: Partly written file of a run that was killed.
_UNFINISHED = re.compile(
    rf"\.({'|'.join(map(re.escape, (CONFIG, RESULT, MODEL, ITEMS, PER_USER, CHECKPOINT, METRICS)))})\..*\.part"
)


@contextmanager
def claimed(out: Path, config: Config) -> Iterator[None]:
    """Lock a folder for a run: a new or empty one, that of the same run, or of one that never finished an epoch.

    Raises:
        RunError: The folder contains something else, and stays untouched; or another process has locked it.
    """
    _leftovers(out, config)  # Before a lock file is put into it.
    with locked(out, RunError):
        for leftover in _leftovers(out, config):
            leftover.unlink()
        write_config(out, config)
        yield


def _leftovers(out: Path, config: Config) -> list[Path]:
    """List the partly written files in a folder for a run; raise a ``RunError`` if it contains something else."""
    entries = list(out.iterdir()) if out.is_dir() else [out] if out.exists() else []
    unfinished = [entry for entry in entries if _UNFINISHED.fullmatch(entry.name)]
    names = {entry.name for entry in entries} - {entry.name for entry in unfinished} - {LOCK}
    theirs = _written(out)
    whole = theirs.keys() >= Config.model_fields.keys() - {*FOLDERS, "anchor"}
    begun = CHECKPOINT in names or finished_result(out) is not None
    if begun or (whole and not names <= _BEFORE_AN_EPOCH):
        if found := _difference(theirs, config):
            key, before, now = found
            got = f"'{out}' holds a run with {key} = {before!r}, not {now!r}"
            raise RunError(got, "a new folder, or one of a run with the same settings", "choose another --out")
    elif names and not whole:
        raise RunError(f"'{out}' is neither a run folder nor empty", "a new or empty one", "choose another --out")
    return unfinished


def _written(out: Path) -> dict[str, Any]:
    return read_yaml(out / CONFIG) if (out / CONFIG).exists() else {}


def write_config(out: Path, config: Config) -> None:
    """Write the configuration of a run into its folder."""
    with aside(out / CONFIG) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")


def as_begun(out: Path, config: Config) -> Config:
    """Replace settings ``auto`` by what an earlier call for the same run chose and wrote."""
    theirs = _written(out)
    return config if _difference(theirs, config) else _with_choices_of(theirs, config)


def _difference(theirs: Mapping[str, Any], config: Config) -> tuple[str, Any, Any] | None:
    """Find the first difference to a written configuration; paths may differ, and ``auto`` fits any choice."""
    ours = _with_choices_of(theirs, config).model_dump(mode="json", exclude=set(FOLDERS))
    before = with_defaults(theirs, Config().model_dump(mode="json"))
    return difference({key: value for key, value in before.items() if key not in FOLDERS}, ours)


def _with_choices_of(theirs: Mapping[str, Any], config: Config) -> Config:
    before, ours = dict(flatten(theirs)), dict(flatten(config.model_dump(mode="json")))
    left = [key for key, choices in _CHOICES.items() if ours[key] == "auto" and before.get(key) in choices]
    return config.override(f"{key}={before[key]}" for key in left)


def inputs_there(config: Config) -> dict[str, Any]:
    """Hash the configured dataset and states, as far as they exist."""
    if config.dataset is None or not config.dataset.exists():
        return {}
    dataset = open_dataset(config)
    if config.states is not None and config.states.exists():
        return fingerprints(config, dataset, open_stores(config))
    without = config.model_copy(update={"anchor": AnchorConfig()})
    return {name: value for name, value in fingerprints(without, dataset, {}).items() if name != "states"}


def finished_result(out: Path) -> dict[str, Any] | None:
    """Read the result of a finished run; None if there is none, raises a ``RunError`` if it is damaged."""
    path = out / RESULT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"'{path}' is damaged ({error})", "JSON", "delete it; training then resumes") from None
    return result if result.get("status") == "finished" else None


def header(config: Config) -> dict[str, Any]:
    """First entries of a run's result, for a failed run too."""
    return {
        "kind": "iisan-run",
        "schema": SCHEMA,
        "recipe": config.recipe,
        "versions": {name: version(name) for name in ("iisan", "torch", "transformers", "numpy")},
        "machine": {
            "system": platform.system(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def validation_metrics(scorer: Scorer, queries: Queries, config: EvaluationConfig) -> dict[str, float]:
    """Evaluate a scorer on validation queries that the policy ranks."""
    ranks = rank_targets(scorer, queries, config.policy)
    return summarise(ranks.above, ranks.ties, pl.Series(queries.users), config.cutoffs)


def write_run(
    inputs: Inputs,
    out: Path,
    scorer: Scorer,
    parts: Mapping[str, Scorer],
    tensors: dict[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Evaluate a scorer and its parts on the test subset, and write the files of a run, its result last."""
    config, dataset = inputs.config, inputs.dataset
    tests = measure({**parts, config.recipe: scorer}, config.evaluation, dataset, inputs.split)
    test = tests.pop(config.recipe)
    with aside(out / MODEL) as temporary:
        save_file(tensors, temporary)
    with aside(out / ITEMS) as temporary:
        dataset.items.select(ITEM_ID, TEXT).write_parquet(temporary)
    with aside(out / PER_USER) as temporary:
        test.per_user.write_parquet(temporary)
    device = choose_device(config.training.device)
    result = {
        **header(config),
        "status": "finished",
        "folder": str(out.resolve()),
        "store_bytes": {modality: store.size for modality, store in inputs.stores.items()},
        "protocol": test.protocol,
        "future": test.future,
        "precision": config.training.precision,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **peak_memory(device),
        **facts,
        "test": test.metrics,
        "parts": {name: each.metrics for name, each in tests.items()},
    }
    write_json(out / RESULT, result)
