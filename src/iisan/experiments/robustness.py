"""How much of a run's quality is left when a modality is missing or wrong for some items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iisan.errors import ConfigError
from iisan.evaluate.evaluation import Evaluation
from iisan.runs.assess import measure
from iisan.runs.run import Run, network_scorer, restore
from iisan.states.corruption import CorruptedStates, Corruption
from iisan.train.setup import build

#: What is done to an item, in words that fit before the modality's name.
CORRUPTED: dict[Corruption, str] = {"remove": "no", "noise": "noisy", "swap": "wrong"}


@dataclass(frozen=True)
class Decline:
    """A run's quality against the share of items that are corrupted.

    Attributes:
        name: of the run.
        rates: shares of 1, of the items that may be corrupted.
        evaluations: one a rate.
    """

    name: str
    rates: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]

    def values(self, metric: str) -> list[float]:
        """The metric at every rate, as a share of 1."""
        return [evaluation.metrics[metric] for evaluation in self.evaluations]

    def kept(self, metric: str) -> list[float]:
        """The metric at every rate, as a share of its value at the first."""
        first, *_ = values = self.values(metric)
        return [value / first if first else 0.0 for value in values]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        points = zip(self.rates, self.evaluations, strict=True)
        return {"run": self.name, "points": [{"rate": rate, **found.metrics} for rate, found in points]}


def decline(
    folder: Path,
    modality: str,
    rates: Sequence[float],
    corruption: Corruption,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    name: str | None = None,
    moved: Mapping[str, Path | None] | None = None,
) -> Decline:
    """Evaluate a run's test queries with one modality removed from, or corrupted for, more and more items.

    The items corrupted at a rate are corrupted at every higher rate too.

    Args:
        folder: a finished run; its dataset and states must still be there, and live encoders need its media.
        modality: which one.
        rates: shares of 1.
        corruption: see ``CorruptedStates``.
        ids: the items that may be corrupted; None is all of them.
        seed: of the choice among them.
        name: of the run in the answer; that of its folder if None.
        moved: the folders ``dataset``, ``images`` and ``states`` where they are not found any more.

    Raises:
        ConfigError: a rate that is no share, a negative seed, or a modality that the run has not.
        DataError: an unknown item, or a dataset with other items than the run's.
        RunError: no finished run.
    """
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise ConfigError(f"the rates {list(rates)}", "shares from 0 to 1", "write e.g. 0,0.3,1")
    if seed < 0:
        raise ConfigError(f"the seed {seed}", "0 or more", "choose another seed")
    run = Run.load(folder)
    setup = build(run.config.model_copy(update=moved))
    network = restore(run, setup.network)
    whole, dataset = network.source, setup.dataset
    run.check_items(dataset)
    candidates = np.arange(dataset.num_items) if ids is None else dataset.item_index(ids)
    order = np.random.default_rng(seed).permutation(candidates)
    found: list[Evaluation] = []
    for rate in rates:
        corrupted = np.zeros(dataset.num_items, dtype=bool)
        corrupted[order[: round(rate * len(order))]] = True
        network.source = CorruptedStates(whole, modality, corrupted, corruption, seed)
        scorers = {folder.name: network_scorer(network)}
        found += measure(scorers, run.config.evaluation, dataset, setup.split).values()
    return Decline(name or folder.name, tuple(rates), tuple(found))
