"""Training into a run folder: train, evaluate, and write the results."""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from iisan.config import FOLDERS, AnchorConfig, Config
from iisan.data.splits import Queries, SplitName, Subset
from iisan.errors import IisanError, RunError
from iisan.evaluate.evaluation import left_out
from iisan.evaluate.metrics import ranked_rows, summarise
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.scorer import EmbeddingScorer, Scorer
from iisan.evaluate.weights import Choice
from iisan.files import LOCK, aside, locked, write_json
from iisan.machine import choose_device, device_name, forget_peak, peak_memory, processor_name
from iisan.model import SequentialRecommender
from iisan.names import IMPORTED, ITEM_ID, TEXT
from iisan.nested import difference, flatten, read_yaml
from iisan.nn.items import ItemTable, SideNetwork
from iisan.runs.anchoring import Anchoring, fit_similarity, frozen_states
from iisan.runs.assess import measure
from iisan.runs.run import (
    CONFIG,
    EMBEDDINGS,
    ITEMS,
    LEARNED,
    MODEL,
    PER_USER,
    RESULT,
    SCHEMA,
    SIMILARITY,
    Run,
    network_scorer,
)
from iisan.states.configured import open_dataset, open_stores
from iisan.train.batches import Batches
from iisan.train.checkpoint import check_inputs
from iisan.train.continuing import K, check_same_model, list_overlap, start_from
from iisan.train.loop import CHECKPOINT, METRICS, Trainer
from iisan.train.processes import Processes, joined
from iisan.train.setup import Inputs, Setup, build, fingerprints, open_inputs, resolve

Say = Callable[[str], None]

#: Settings whose value ``auto`` a run replaces by one of these.
_CHOICES = {"training.precision": ("fp32", "bf16"), "evaluation.split": get_args(SplitName)}
#: Folder of TensorBoard events in a run folder.
EVENTS = "tensorboard"
#: Files of a run that failed or was stopped before its first epoch, which cannot be resumed from.
_BEFORE_AN_EPOCH = {CONFIG, RESULT, EVENTS}
#: Facts in the result of a run without a learned part.
_NOT_TRAINED: dict[str, Any] = {
    **{name: {} for name in ("encoders", "state_origins", "encoder_parameters", "validation", "gates")},
    **dict.fromkeys(("items_without_content", "best_epoch", "epochs"), 0),
    **dict.fromkeys(("trainable_parameters", "total_parameters"), 0),
    **dict.fromkeys(("train_seconds", "validation_seconds"), 0.0),
    "precision": "fp32",
}
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
            setup = open_inputs(config) if config.items.kind == "none" else build(config, processes)
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
    whole = theirs.keys() >= Config.model_fields.keys() - {*FOLDERS, "anchor"}
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
        return fingerprints(config, dataset, open_stores(config))
    without = config.model_copy(update={"anchor": AnchorConfig()})
    return {name: value for name, value in fingerprints(without, dataset, {}).items() if name != "states"}


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
    inputs: Inputs, out: Path, say: Say, processes: Processes, start: Run | None, requested_precision: str
) -> None:
    config, split, dataset = inputs.config, inputs.split, inputs.dataset
    evaluation = config.evaluation

    def ranked(subset: Subset) -> Queries:
        queries = split.subset(subset)
        rows = ranked_rows(queries, evaluation.policy)
        if remark := left_out(f"{split.name} {subset}", len(queries), len(rows), queries.unit):
            say(f"{subset}: {remark}")
        return queries[rows]

    ranked("test")  # An error now, not after the last epoch.
    every = ranked("validation")
    validation = every.sample(evaluation.validation_users)
    selection = f"{evaluation.select} of the {split.name} validation, {validation}"
    if len(validation) < len(every):
        selection += f", a fixed sample of {len(every):,}"
        say(f"the best epoch is selected by {selection}")
    if (modalities := config.modalities) and (unused := dataset.kinds.keys() - set(modalities)):
        say(f"modalities: {', '.join(modalities)}; not used: {', '.join(sorted(unused))}")
    # The weight of repeats is also chosen on queries that the policy leaves out.
    queries = split.validation.sample(evaluation.validation_users)
    # Fitted first, so that states without use are found before they are trained on.
    terms = _fit_terms(inputs, queries, say) if config.anchor.enabled and processes.first else None
    known = {
        **fingerprints(config, dataset, inputs.stores),
        "continued_from": start and start.fingerprint,
    }
    learned = None
    if isinstance(inputs, Setup):
        learned = _fit_network(inputs, out, say, processes, start, validation, known)
    if not processes.first:
        return
    device = choose_device(config.training.device)
    scorer, tensors, facts = _joined(learned, terms, queries, validation, config, say)
    scorers = {config.recipe: scorer}
    if learned and terms:
        scorers = {LEARNED: learned.scorer, SIMILARITY: terms.anchoring.scorer, **scorers}
    tests = measure(scorers, evaluation, dataset, split)
    test = tests.pop(config.recipe)
    with aside(out / MODEL) as temporary:
        save_file(tensors, temporary)
    with aside(out / ITEMS) as temporary:
        dataset.items.select(ITEM_ID, TEXT).write_parquet(temporary)
    with aside(out / PER_USER) as temporary:
        test.per_user.write_parquet(temporary)
    result = {
        **_header(config),
        "status": "finished",
        "folder": str(out.resolve()),
        **known,
        "store_bytes": {modality: store.size for modality, store in inputs.stores.items()},
        "protocol": test.protocol,
        "selection": selection,
        **facts,
        "test": test.metrics,
        "parts": {name: each.metrics for name, each in tests.items()},
        **peak_memory(device),
        "requested_precision": requested_precision,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes.size,
    }
    if start is not None:
        overlap, compared = list_overlap(start, scorer, dataset, split.test)
        result["lists"] = {f"overlap@{K}": overlap, "users": compared.num_users}
        if overlap is not None:
            say(f"{K * overlap:.1f} of {K} recommended items are the same as before (mean of {compared})")
    write_json(out / RESULT, result)


@dataclass(frozen=True)
class _Learned:
    """A trained network: its scorer, tensors to save, and facts for the result."""

    scorer: EmbeddingScorer
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Terms:
    """Fitted terms, the search for their weights without a learned part, and the seconds that both took."""

    anchoring: Anchoring
    choice: Choice
    seconds: float


def _fit_terms(inputs: Inputs, queries: Queries, say: Say) -> _Terms:
    began = time.perf_counter()
    config = inputs.config
    source = frozen_states(config, inputs.dataset)
    anchoring, choice = fit_similarity(config, inputs.dataset, inputs.split, queries, source)
    terms = _Terms(anchoring, choice, time.perf_counter() - began)
    say(f"similarity  {_validated(config, choice.record['validation'])}{terms.seconds:.1f} s")
    return terms


def _validated(config: Config, value: float) -> str:
    return f"validation {config.evaluation.select.upper()} {100 * value:.2f}%  "


def _joined(
    learned: _Learned | None,
    terms: _Terms | None,
    queries: Queries,
    validation: Queries,
    config: Config,
    say: Say,
) -> tuple[Scorer, dict[str, Tensor], dict[str, Any]]:
    """Add the terms to the learned scores, with weights chosen on ``queries``.

    Returns:
        The scorer of the run, its tensors, and facts for the result.
    """
    if terms is None:
        assert learned is not None, "a configuration has a learned part or an anchor"
        return learned.scorer, learned.tensors, learned.facts
    evaluation, anchoring, choice = config.evaluation, terms.anchoring, terms.choice
    scorer, tensors, facts = anchoring.scorer, anchoring.tensors(), _NOT_TRAINED
    found: dict[str, Any] = {"similarity": {"weights": choice.weights.as_json(), **choice.record}}
    seconds = terms.seconds
    if learned:
        began = time.perf_counter()
        scorer, choice = anchoring.choose((learned.scorer,), queries, evaluation.policy, evaluation.select)
        tensors, facts = {**learned.tensors, **tensors}, learned.facts
        seconds += time.perf_counter() - began
        found["learned_validation"] = facts["validation"]
        say(f"with the anchor  {_validated(config, choice.record['validation'])}{seconds:.1f} s")
    ranks = rank_targets(scorer, validation, evaluation.policy)
    metrics = summarise(ranks.above, ranks.ties, pl.Series(validation.users), evaluation.cutoffs)
    found |= {"weights": choice.weights.as_json(), **choice.record, "seconds": seconds}
    return scorer, tensors, {**facts, "validation": {**facts["validation"], **metrics}, "terms": found}


def _fit_network(
    setup: Setup,
    out: Path,
    say: Say,
    processes: Processes,
    start: Run | None,
    validation: Queries,
    known: Mapping[str, Any],
) -> _Learned:
    config, network = setup.config, setup.network
    evaluation, training = config.evaluation, config.training
    batches = Batches(
        setup.split, config.sequence.max_length, training.batch_size, config.loss, training.windows, training.seed
    )
    if isinstance(network.items, ItemTable):
        network.items.clear(torch.from_numpy(batches.unreachable).to(setup.device))
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
        validated = _validated(config, record[select]) if select in record else ""
        say(f"epoch {record['epoch']:3d}  loss {record['loss']:.4f}  {validated}{seconds:.1f} s")

    if empty := len(network.source.empty):
        say(f"{empty:,} of {setup.dataset.num_items:,} items have no content and share one learned vector")
    for name, store in setup.stores.items():
        absent = int((~network.source.present[name]).sum())
        if absent and store.kind == IMPORTED:
            say(f"{absent:,} of {setup.dataset.num_items:,} items have no imported states of {name}")
    if start is not None:
        shared = start_from(start, setup)
        say(f"starting from '{start.folder}', which knows {shared:,} of {setup.dataset.num_items:,} items")
    inputs = {**known, "encoders": network.source.digests}
    trainer = Trainer(network, batches, config, validate, out, log, processes=processes, inputs=inputs)
    progress = trainer.fit()
    scorer = network_scorer(network)
    facts = {
        "encoders": network.source.digests,
        "state_origins": network.source.origins,
        "items_without_content": empty,
        "encoder_parameters": network.source.encoder_parameters,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "validation": progress.history[progress.best_epoch - 1],
        "gates": network.items.gate_values() if isinstance(network.items, SideNetwork) else {},
        "trainable_parameters": sum(value.numel() for _, value in network.trainable()),
        "total_parameters": sum(value.numel() for value in network.parameters()),
        "train_seconds": sum(record["train_seconds"] for record in progress.history),
        "validation_seconds": sum(record["validation_seconds"] for record in progress.history),
        "precision": config.training.precision,
    }
    return _Learned(scorer, {**trainer.best, EMBEDDINGS: scorer.items.cpu().contiguous()}, facts)


def _event_writer(out: Path) -> Callable[[str, float, int], object]:
    """Return a function that writes ``(name, value, epoch)`` to TensorBoard, if it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda name, value, epoch: None
    return SummaryWriter(out / EVENTS).add_scalar
