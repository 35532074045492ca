"""Training into a run folder: train, evaluate, and write the results."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from iisan.config import Config
from iisan.data.splits import Queries, Subset
from iisan.errors import IisanError
from iisan.evaluate.evaluation import left_out
from iisan.evaluate.metrics import ranked_rows, summarise
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.scorer import EmbeddingScorer, Scorer
from iisan.evaluate.terms import Weights
from iisan.evaluate.weights import Choice
from iisan.files import write_json
from iisan.machine import choose_device, forget_peak
from iisan.model import SequentialRecommender
from iisan.names import IMPORTED
from iisan.nn.items import ItemTable, SideNetwork
from iisan.runs.anchoring import SIMILARITY, Anchoring, fit_similarity, frozen_states
from iisan.runs.run import (
    EMBEDDINGS,
    RESULT,
    Run,
    network_scorer,
)
from iisan.train.batches import Batches
from iisan.train.checkpoint import check_inputs
from iisan.train.continuing import K, check_same_model, list_overlap, start_from
from iisan.train.folder import (
    EVENTS,
    as_begun,
    claimed,
    finished_result,
    header,
    inputs_there,
    validation_metrics,
    write_config,
    write_run,
)
from iisan.train.loop import Trainer
from iisan.train.processes import ALONE, Processes, joined
from iisan.train.setup import Inputs, Setup, build, fingerprints, open_inputs, resolve

Say = Callable[[str], None]
#: Called with the record of every finished epoch.
Watch = Callable[[dict[str, Any]], None]

#: Facts in the result of a run without a learned part.
_NOT_TRAINED: dict[str, Any] = {
    **{name: {} for name in ("encoders", "state_origins", "encoder_parameters", "validation", "gates")},
    **dict.fromkeys(("items_without_content", "best_epoch", "epochs"), 0),
    **dict.fromkeys(("trainable_parameters", "total_parameters"), 0),
    **dict.fromkeys(("train_seconds", "validation_seconds"), 0.0),
    "precision": "fp32",
}


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
    config = as_begun(out, resolve(config))
    if start is not None:
        check_same_model(start, config)
    device = choose_device(config.training.device)
    with joined(device) as processes, claimed(out, config) if processes.first else nullcontext():
        processes.wait()
        if (finished := finished_result(out)) is not None:
            inputs = {"continued_from": start and start.fingerprint, **inputs_there(config)}
            check_inputs(out, finished, inputs)
            if processes.first:
                say(f"{out} is finished already; nothing to do")
            return finished
        forget_peak(device)
        try:
            setup = _opened(config, processes)
            if processes.first:
                write_config(out, setup.config)
            _train(setup, out, say if processes.first else lambda line: None, processes, start, requested)
        except Exception as error:
            if processes.first:
                message = str(error) if isinstance(error, IisanError) else f"{type(error).__name__}: {error}"
                write_json(out / RESULT, {**header(config), "status": "failed", "error": message})
            raise
        processes.wait()
        finished = finished_result(out)
        assert finished is not None
        return finished


def train_and_validate(config: Config, folder: Path, watch: Watch) -> dict[str, float]:
    """Train a configuration up to the validation metrics of its best epoch; the test subset is not evaluated.

    Args:
        config: Configuration.
        folder: Folder of the checkpoint, from which an interrupted call resumes; no other process may use it.
        watch: Callback for the record of every epoch. After an interruption it may see an epoch twice. What it
            raises ends the training.

    Raises:
        IisanError: As for :func:`train`.
    """
    fitted = _fit(_opened(resolve(config), ALONE), folder, lambda line: None, ALONE, None, watch)
    assert fitted is not None, "there is one process"
    return dict(fitted.facts["validation"])


def _opened(config: Config, processes: Processes) -> Inputs:
    return open_inputs(config) if config.items.kind == "none" else build(config, processes)


def _train(
    inputs: Inputs, out: Path, say: Say, processes: Processes, start: Run | None, requested_precision: str
) -> None:
    _ranked(inputs, "test", say)  # An error now, not after the last epoch.
    fitted = _fit(inputs, out, say, processes, start)
    if fitted is None:
        return
    how: dict[str, Any] = {"requested_precision": requested_precision, "processes": processes.size}
    if start is not None:
        overlap, compared = list_overlap(start, fitted.scorer, inputs.dataset, inputs.split.test)
        how["lists"] = {f"overlap@{K}": overlap, "users": compared.num_users}
        if overlap is not None:
            say(f"{K * overlap:.1f} of {K} recommended items are the same as before (mean of {compared})")
    write_run(inputs, out, fitted.scorer, fitted.parts, fitted.tensors, {**fitted.facts, **how})


def _ranked(inputs: Inputs, subset: Subset, say: Say) -> Queries:
    """The queries of a subset that the policy ranks."""
    split = inputs.split
    queries = split.subset(subset)
    rows = ranked_rows(queries, inputs.config.evaluation.policy)
    if remark := left_out(f"{split} {subset}", len(queries), len(rows), queries.unit):
        say(f"{subset}: {remark}")
    return queries[rows]


@dataclass(frozen=True)
class _Fitted:
    """A fitted run: its scorer, the scorers of its parts, tensors to save, and facts for the result."""

    scorer: Scorer
    parts: Mapping[str, Scorer]
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def _fit(
    inputs: Inputs, out: Path, say: Say, processes: Processes, start: Run | None, watch: Watch | None = None
) -> _Fitted | None:
    """Fit what a configuration has of a learned part and an anchor; None in any process but the first."""
    config, split, dataset = inputs.config, inputs.split, inputs.dataset
    evaluation = config.evaluation
    every = _ranked(inputs, "validation", say)
    validation = every.sample(evaluation.validation_users)
    selection = f"{evaluation.select} of the {split} validation, {validation}"
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
        learned = _fit_network(inputs, out, say, processes, start, validation, known, watch)
    if not processes.first:
        return None
    scorer, tensors, facts = _joined(learned, terms, queries, validation, config, say)
    parts = terms.anchoring.parts([learned.scorer], Weights((1.0,))) if learned and terms else {}
    return _Fitted(scorer, parts, tensors, {**known, "selection": selection, **facts})


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
    anchoring, choice = terms.anchoring, terms.choice
    scorer, tensors, facts, seconds = anchoring.scorer, anchoring.tensors(), _NOT_TRAINED, terms.seconds
    if learned:
        began = time.perf_counter()
        evaluation = config.evaluation
        scorer, choice = anchoring.choose([learned.scorer], queries, evaluation.policy, evaluation.select)
        tensors, facts = {**learned.tensors, **tensors}, learned.facts
        seconds += time.perf_counter() - began
        say(f"with the anchor  {_validated(config, choice.record['validation'])}{seconds:.1f} s")
    found = {
        **choice.as_json(),
        SIMILARITY: terms.choice.as_json(),
        "learned_validation": facts["validation"],
        "seconds": seconds,
    }
    metrics = validation_metrics(scorer, validation, config.evaluation)
    return scorer, tensors, {**facts, "validation": {**facts["validation"], **metrics}, "terms": found}


def _fit_network(
    setup: Setup,
    out: Path,
    say: Say,
    processes: Processes,
    start: Run | None,
    validation: Queries,
    known: Mapping[str, Any],
    watch: Watch | None,
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
        if watch:
            watch(record)

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
