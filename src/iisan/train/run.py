"""Training into a run folder: train, evaluate, and write the results."""

import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from iisan.config import FOLDERS, Config
from iisan.data.splits import Queries, SplitName, Subset
from iisan.errors import IisanError, RunError
from iisan.evaluate.evaluation import left_out
from iisan.evaluate.metrics import ranked_rows, summarise
from iisan.evaluate.ranks import rank_targets
from iisan.files import LOCK, aside, locked, write_json
from iisan.machine import choose_device, device_name, forget_peak, peak_memory, processor_name
from iisan.model import SequentialRecommender
from iisan.names import IMPORTED, ITEM_ID, TEXT
from iisan.nested import difference, flatten, read_yaml
from iisan.nn.items import SideNetwork
from iisan.runs.assess import measure
from iisan.runs.run import CONFIG, EMBEDDINGS, ITEMS, MODEL, PER_USER, RESULT, SCHEMA, Run, network_scorer
from iisan.states.configured import open_dataset, open_stores
from iisan.train.batches import Batches
from iisan.train.checkpoint import check_inputs
from iisan.train.continuing import K, check_same_model, list_overlap, start_from
from iisan.train.loop import CHECKPOINT, METRICS, Trainer
from iisan.train.processes import Processes, joined
from iisan.train.setup import Setup, build, fingerprints, resolve

Say = Callable[[str], None]

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


def train(config: Config, out: Path, say: Say = lambda line: None, start: Run | None = None) -> dict[str, Any]:
    """Train and evaluate a configuration, or resume an interrupted run.

    Processes that ``torchrun`` started train together (:mod:`iisan.train.processes`) and share ``out``.

    Args:
        config: Configuration.
        out: Run folder.
        say: Callback for progress messages.
        start: Finished run of the same model that provides the initial weights; its items may differ.

    Returns:
        The content of ``result.json``.

    Raises:
        RunError: ``out`` contains something else, ``start`` is another model, or training diverged.
    """
    requested = config.training.precision
    config = _as_begun(out, resolve(config))
    if start is not None:
        check_same_model(start, config)
    device = choose_device(config.training.device)
    with joined(device) as processes, _claimed(out, config) if processes.first else nullcontext():
        processes.wait()
        if (finished := _finished_result(out)) is not None:
            inputs = {"continued_from": start and start.fingerprint, **_inputs_there(config)}
            check_inputs(out, finished, inputs)
            if processes.first:
                say(f"{out} is finished already; nothing to do")
            return finished
        forget_peak(device)
        try:
            setup = build(config, processes)
            if processes.first:
                _write_config(out, setup.config)
            _train(setup, out, say if processes.first else lambda line: None, processes, start, requested)
        except Exception as error:
            if processes.first:
                message = str(error) if isinstance(error, IisanError) else f"{type(error).__name__}: {error}"
                write_json(out / RESULT, {**_header(config), "status": "failed", "error": message})
            raise
        processes.wait()
        finished = _finished_result(out)
        assert finished is not None
        return finished


@contextmanager
def _claimed(out: Path, config: Config) -> Iterator[None]:
    """Lock a folder for a run: a new or empty one, that of the same run, or of one that never finished an epoch.

    Raises:
        RunError: The folder contains something else, and stays untouched; or another process has locked it.
    """
    _leftovers(out, config)  # Before a lock file is put into it.
    with locked(out, RunError):
        for leftover in _leftovers(out, config):
            leftover.unlink()
        _write_config(out, config)
        yield


def _leftovers(out: Path, config: Config) -> list[Path]:
    """List the partly written files in a folder for a run; raise a ``RunError`` if it contains something else."""
    entries = list(out.iterdir()) if out.is_dir() else [out] if out.exists() else []
    unfinished = [entry for entry in entries if _UNFINISHED.fullmatch(entry.name)]
    names = {entry.name for entry in entries} - {entry.name for entry in unfinished} - {LOCK}
    theirs = _written(out)
    whole = theirs.keys() >= Config.model_fields.keys() - set(FOLDERS)
    begun = CHECKPOINT in names or _finished_result(out) is not None
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


def _write_config(out: Path, config: Config) -> None:
    with aside(out / CONFIG) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")


def _as_begun(out: Path, config: Config) -> Config:
    """Replace settings ``auto`` by what an earlier call for the same run chose and wrote."""
    theirs = _written(out)
    return config if _difference(theirs, config) else _with_choices_of(theirs, config)


def _difference(theirs: Mapping[str, Any], config: Config) -> tuple[str, Any, Any] | None:
    """Find the first difference to a written configuration; paths may differ, and ``auto`` fits any choice."""
    ours = _with_choices_of(theirs, config).model_dump(mode="json", exclude=set(FOLDERS))
    return difference({key: value for key, value in theirs.items() if key not in FOLDERS}, ours)


def _with_choices_of(theirs: Mapping[str, Any], config: Config) -> Config:
    before, ours = dict(flatten(theirs)), dict(flatten(config.model_dump(mode="json")))
    left = [key for key, choices in _CHOICES.items() if ours[key] == "auto" and before.get(key) in choices]
    return config.override(f"{key}={before[key]}" for key in left)


def _inputs_there(config: Config) -> dict[str, Any]:
    """Hash the configured dataset and states, as far as they exist."""
    if config.dataset is None or not config.dataset.exists():
        return {}
    dataset = open_dataset(config)
    if config.states is not None and config.states.exists():
        return fingerprints(dataset, open_stores(config))
    return {name: value for name, value in fingerprints(dataset, {}).items() if name != "states"}


def _finished_result(out: Path) -> dict[str, Any] | None:
    path = out / RESULT
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"'{path}' is damaged ({error})", "JSON", "delete it; training then resumes") from None
    return result if result.get("status") == "finished" else None


def _header(config: Config) -> dict[str, Any]:
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


def _train(
    setup: Setup, out: Path, say: Say, processes: Processes, start: Run | None, requested_precision: str
) -> None:
    config, split, network = setup.config, setup.split, setup.network
    evaluation, training = config.evaluation, config.training
    length = config.sequence.max_length
    batches = Batches(split, length, training.batch_size, config.loss, training.windows, training.seed)

    def ranked(subset: Subset) -> Queries:
        queries = split.subset(subset)
        rows = ranked_rows(queries, evaluation.policy)
        if remark := left_out(f"{split.name} {subset}", len(queries), len(rows), queries.unit):
            say(f"{subset}: {remark}")
        return queries[rows]

    ranked("test")  # An error now, not after the last epoch.
    every = ranked("validation")
    validation = every.sample(evaluation.validation_users)
    rows, users = torch.arange(len(validation)), pl.Series(validation.users)

    def validate(network: SequentialRecommender) -> dict[str, float]:
        share = validation[processes.share(rows).numpy()]
        ranks = rank_targets(network_scorer(network), share, evaluation.policy)
        found = torch.from_numpy(np.stack([ranks.above, ranks.ties], axis=1)).to(setup.device)
        above, ties = processes.gather(found, len(rows)).cpu().numpy().T
        return summarise(above, ties, users, evaluation.cutoffs)

    events = _event_writer(out) if processes.first else None

    def log(record: dict[str, Any]) -> None:
        if events:
            for key in record.keys() - {"epoch"}:
                events(key, record[key], record["epoch"])
        seconds = record["train_seconds"] + record["validation_seconds"]
        select = evaluation.select
        validated = f"validation {select.upper()} {100 * record[select]:.2f}%  " if select in record else ""
        say(f"epoch {record['epoch']:3d}  loss {record['loss']:.4f}  {validated}{seconds:.1f} s")

    selection = f"{evaluation.select} of the {split.name} validation, {validation}"
    if len(validation) < len(every):
        selection += f", a fixed sample of {len(every):,}"
        say(f"the best epoch is selected by {selection}")
    if (modalities := config.modalities) and (unused := setup.dataset.kinds.keys() - set(modalities)):
        say(f"modalities: {', '.join(modalities)}; not used: {', '.join(sorted(unused))}")
    if empty := len(network.source.empty):
        say(f"{empty:,} of {setup.dataset.num_items:,} items have no content and share one learned vector")
    for name, store in setup.stores.items():
        absent = int((~network.source.present[name]).sum())
        if absent and store.kind == IMPORTED:
            say(f"{absent:,} of {setup.dataset.num_items:,} items have no imported states of {name}")
    if start is not None:
        known = start_from(start, setup)
        say(f"starting from '{start.folder}', which knows {known:,} of {setup.dataset.num_items:,} items")
    inputs = {
        **fingerprints(setup.dataset, setup.stores),
        "encoders": network.source.digests,
        "continued_from": start and start.fingerprint,
    }
    trainer = Trainer(network, batches, config, validate, out, log, processes=processes, inputs=inputs)
    progress = trainer.fit()
    if not processes.first:
        return
    scorer = network_scorer(network)
    (test,) = measure({config.recipe: scorer}, evaluation, setup.dataset, split).values()
    with aside(out / MODEL) as temporary:
        save_file({**trainer.best, EMBEDDINGS: scorer.items.cpu().contiguous()}, temporary)
    with aside(out / ITEMS) as temporary:
        setup.dataset.items.select(ITEM_ID, TEXT).write_parquet(temporary)
    with aside(out / PER_USER) as temporary:
        test.per_user.write_parquet(temporary)
    result = {
        **_header(config),
        "status": "finished",
        "folder": str(out.resolve()),
        **inputs,
        "state_origins": network.source.origins,
        "items_without_content": empty,
        "encoder_parameters": network.source.encoder_parameters,
        "store_bytes": {modality: store.size for modality, store in setup.stores.items()},
        "protocol": test.protocol,
        "selection": selection,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "validation": progress.history[progress.best_epoch - 1],
        "test": test.metrics,
        "gates": network.items.gate_values() if isinstance(network.items, SideNetwork) else {},
        "trainable_parameters": sum(value.numel() for _, value in network.trainable()),
        "total_parameters": sum(value.numel() for value in network.parameters()),
        "train_seconds": sum(record["train_seconds"] for record in progress.history),
        "validation_seconds": sum(record["validation_seconds"] for record in progress.history),
        **peak_memory(setup.device),
        "precision": config.training.precision,
        "requested_precision": requested_precision,
        "device": device_name(setup.device),
        "threads": torch.get_num_threads(),
        "processes": processes.size,
    }
    if start is not None:
        overlap, compared = list_overlap(start, scorer, setup.dataset, split.test)
        result["lists"] = {f"overlap@{K}": overlap, "users": compared.num_users}
        if overlap is not None:
            say(f"{K * overlap:.1f} of {K} recommended items are the same as before (mean of {compared})")
    write_json(out / RESULT, result)


def _event_writer(out: Path) -> Callable[[str, float, int], object]:
    """Return a function that writes ``(name, value, epoch)`` to TensorBoard, if it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda name, value, epoch: None
    return SummaryWriter(out / EVENTS).add_scalar
