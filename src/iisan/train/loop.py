"""The training loop."""

import contextlib
import inspect
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from iisan.ahead import ahead
from iisan.config import Config, OptimizerConfig
from iisan.errors import RunError
from iisan.files import aside
from iisan.losses import candidate_cross_entropy
from iisan.model import SequentialRecommender, load_trainable, trainable_state
from iisan.progress import track
from iisan.states.sources import ItemBatch
from iisan.train.batches import Batch, Batches
from iisan.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from iisan.train.processes import ALONE, Processes

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


def batch_loss(
    network: SequentialRecommender,
    batch: Batch,
    reduction: str,
    processes: Processes = ALONE,
    states: ItemBatch | None = None,
) -> Tensor:
    """Compute the loss of a batch over all positions with a next item, a scalar.

    With several processes, each computes the loss of its part (``Batch.part``); the sum is that of the batch.
    ``states`` are the hidden states of this process's share of the items, if they have been read already.
    """
    items = processes.gather(network.encode_items(processes.share(batch.rows), states), len(batch.rows))
    inputs, targets = batch.slots[:, :-1], batch.slots[:, 1:]
    queries = network(items, inputs).flatten(0, 1).index_select(0, batch.positions)
    targets = targets.flatten().index_select(0, batch.positions)
    excluded = batch.excluded.index_select(0, batch.positions // inputs.shape[1])
    loss = candidate_cross_entropy(queries, targets, items, batch.log_q, batch.log_multiplicity, excluded, "sum")
    return loss / batch.predicted if reduction == "mean" else loss


def parameter_groups(
    network: SequentialRecommender, config: OptimizerConfig, encoder_rate: float
) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate; ``encoder_rate`` is that of weights inside the encoders."""
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in network.trainable():
        match name.split("."):
            case ["source", *_]:
                rate = encoder_rate
            case ["items", "towers", _, "blocks", *_]:
                rate = config.san_learning_rate
            case ["items", "towers", tower, "gates"]:
                rate = config.gate_learning_rates.get(tower, config.learning_rate)
            case ["items", "dense", tower, *_]:
                rate = config.projection_learning_rates.get(tower, config.learning_rate)
            case _:
                rate = config.learning_rate
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


class Adam(torch.optim.Adam):
    """torch's fused Adam, as it is for programs that compile nothing.

    torch's decorators, which only concern ``torch.compile``, import its compiler: a second at the start of every
    training.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class Clock:
    """Interface for timing the stages of a step; this implementation does nothing."""

    def lap(self, stage: str) -> None:
        """End a stage (``data``, ``forward``, ``backward`` or ``update``) that began with the previous lap."""


@dataclass(eq=False)
class Trainer:
    """Trains until the validation metric stops rising; resumes from its checkpoint, written after every epoch.

    Args:
        network: Network on its device.
        batches: Training batches.
        config: Configuration of the run.
        validate: Function that computes validation metrics, among them ``config.evaluation.select``.
        folder: Folder of the checkpoint and ``metrics.jsonl``.
        log: Callback for the record of every finished epoch, which has metrics if the epoch was validated. An
            epoch whose checkpoint is missing after an interruption is run, and logged, again.
        clock: Timer of the stages of a step.
        processes: Processes that train together; the first one writes the files.
        inputs: Hashes of data, states and initial weights; a checkpoint with other inputs is refused.
    """

    network: SequentialRecommender
    batches: Batches
    config: Config
    validate: Callable[[SequentialRecommender], dict[str, float]]
    folder: Path
    log: Callable[[dict[str, Any]], None] = lambda record: None
    clock: Clock = field(default_factory=Clock)
    processes: Processes = ALONE
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = next(self.network.items.parameters()).device
        groups = parameter_groups(self.network, self.config.optimizer, self.config.tuning.learning_rate)
        self.optimizer = Adam(groups, fused=True)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._updates = 0
        self._average = {
            name: parameter.detach().clone()
            for name, parameter in self.network.trainable()
            if self.config.training.ema_decay and self.config.tuning.method == "none"
        }

    def fit(self) -> Progress:
        """Train, or resume from the checkpoint, and load the best epoch's weights into the network.

        Raises:
            RunError: The loss is not finite, or the checkpoint does not belong to this run.
        """
        checkpoint = self.folder / CHECKPOINT
        if checkpoint.exists():
            loaded = load_checkpoint(checkpoint, self.network, self.optimizer, self.inputs)
            self.best, average, self.progress = loaded
            self._average = {name: average[name].to(self.device) for name in self._average}
            steps = -(-len(self.batches) // self.config.training.gradient_accumulation)
            self._updates = self.progress.epoch * steps
            if self.processes.first:
                # The process may have been killed between writing the two files.
                self._write_metrics()
        while not self._finished():
            record = self._epoch(self.progress.epoch + 1)
            self.progress.epoch = record["epoch"]
            self.progress.history.append(record)
            value = record.get(self.config.evaluation.select)
            if value is not None and value > self.progress.best_value:
                self.progress.best_value, self.progress.best_epoch = value, record["epoch"]
                with self._averaged():
                    self.best = trainable_state(self.network)
            if self.processes.first:
                # Before the checkpoint, after which a killed process would not come back to this epoch.
                self.log(record)
                save_checkpoint(
                    checkpoint,
                    self.network,
                    self.optimizer,
                    self.best,
                    self._average,
                    self.progress,
                    self.inputs,
                )
                self._write_metrics()
        self.network.source.hold(False)
        load_trainable(self.network, self.best)
        return self.progress

    def _finished(self) -> bool:
        training, progress = self.config.training, self.progress
        since_best = progress.history[progress.best_epoch :]
        validations = sum(self.config.evaluation.select in record for record in since_best)
        patience = training.early_stopping_patience or math.inf
        return progress.epoch >= training.epochs or validations >= patience

    def _epoch(self, epoch: int) -> dict[str, Any]:
        # Dropout depends only on seed, epoch and process, so a resumed run needs no stored generator state.
        entropy = [self.config.training.seed, epoch, *([self.processes.rank] if self.processes.rank else [])]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        started = time.perf_counter()
        refresh, source = self.config.tuning.refresh, self.network.source
        # Encoders that are held do not change, so their final states are kept in memory.
        source.hold((epoch - 1) % refresh > 0)
        self.network.train()
        total = self.run(track(self.batches.epoch(epoch), f"epoch {epoch}", len(self.batches)))
        loss = self.processes.add(total).item() / len(self.batches)
        if not math.isfinite(loss):
            cure = "lower optimizer.learning_rate and optimizer.san_learning_rate, or set training.max_grad_norm"
            raise RunError(f"the loss of epoch {epoch} is {loss}", "a finite loss", cure)
        trained = time.perf_counter()
        metrics: dict[str, float] = {}
        if epoch % self.config.evaluation.every == 0 or epoch == self.config.training.epochs:
            # The next epochs, which hold the encoders, reuse the states that validation computes.
            source.hold(refresh > 1)
            with self._averaged():
                metrics = self.validate(self.network)
        return {
            "epoch": epoch,
            "loss": loss,
            **metrics,
            "train_seconds": trained - started,
            "validation_seconds": time.perf_counter() - trained,
        }

    def run(self, batches: Iterable[Batch]) -> Tensor:
        """Train on some batches; return this process's part of the sum of their losses, a scalar."""
        total = torch.zeros((), device=self.device)
        # A thread reads ahead while a GPU computes; on a CPU it would take cores from the computation.
        read_ahead = self.network.source.stored and self.device.type != "cpu"
        with contextlib.closing(ahead(self._fetch, batches, int(read_ahead))) as fetched:
            while group := list(itertools.islice(fetched, self.config.training.gradient_accumulation)):
                self.clock.lap("data")
                total += self._step(group)
        return total

    def _fetch(self, batch: Batch) -> tuple[Batch, ItemBatch | None]:
        batch, network = batch.part(self.processes), self.network
        if not network.source.stored:
            return batch.to(self.device), None
        # Read before copying anything, as a copy waits for the work that the GPU has queued.
        states = network.read_items(self.processes.share(batch.rows))
        return batch.to(self.device), states.to(self.device)

    def _step(self, group: Sequence[tuple[Batch, ItemBatch | None]]) -> Tensor:
        """Update the parameters by the mean gradient of some batches; return the sum of their losses."""
        reduction, max_norm = self.config.loss.reduction, self.config.training.max_grad_norm
        parameters = [parameter for _, parameter in self.network.trainable()]
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for batch, states in group:
            loss = batch_loss(self.network, batch, reduction, self.processes, states)
            self.clock.lap("forward")
            (loss / len(group)).backward()
            self.clock.lap("backward")
            total += loss.detach()
        self.processes.add_gradients(parameters)
        if max_norm:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        self.optimizer.step()
        self._update_average()
        self.clock.lap("update")
        return total

    def _update_average(self) -> None:
        """Move the average towards the weights, faster at first, when they change most."""
        self._updates += 1
        if self._average:
            decay = min(self.config.training.ema_decay, self._updates / (self._updates + 10))
            weights = [weight.detach() for _, weight in self.network.trainable()]
            get_ema_multi_avg_fn(decay)(list(self._average.values()), weights, None)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the moving average, if there is one, into the network for a while."""
        weights = {name: weight.data for name, weight in self.network.trainable()}
        for name, weight in self.network.trainable():
            weight.data = self._average.get(name, weight.data)
        try:
            yield
        finally:
            for name, weight in self.network.trainable():
                weight.data = weights[name]

    def _write_metrics(self) -> None:
        with aside(self.folder / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self.progress.history))
