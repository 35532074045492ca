"""Quality of a run when a modality is missing or wrong for some items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iisan.errors import ConfigError
from iisan.evaluate.evaluation import Evaluation
from iisan.model import load_trainable
from iisan.runs.anchoring import frozen_states
from iisan.runs.assess import measure, other_version
from iisan.runs.run import Run, network_scorer
from iisan.states.corruption import CorruptedStates, Corruption
from iisan.states.sources import StateSource
from iisan.train.setup import Setup, build, open_inputs

#: Description of each corruption, to be followed by the name of the modality.
CORRUPTED: dict[Corruption, str] = {"remove": "no", "noise": "noisy", "swap": "wrong"}


@dataclass(frozen=True)
class Decline:
    """Quality of a run by the share of items that are corrupted.

    Attributes:
        name: Name of the run.
        rates: Corrupted shares of the items that may be corrupted.
        evaluations: One evaluation per rate.
    """

    name: str
    rates: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]

    def values(self, metric: str) -> list[float]:
        """The metric at every rate, as a share of 1."""
        return [evaluation.metrics[metric] for evaluation in self.evaluations]

    def kept(self, metric: str) -> list[float]:
        """The metric at every rate, relative to the first."""
        first, *_ = values = self.values(metric)
        return [value / first if first else 0.0 for value in values]

    def as_json(self) -> dict[str, Any]:
        """Return the metrics at every rate as JSON."""
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
    """Evaluate a run on the test subset with a modality removed or corrupted for a growing share of items.

    Items that are corrupted at a rate are corrupted at every higher rate too.

    Args:
        folder: Folder of a finished run; live encoders also need the media of its dataset.
        modality: Modality to corrupt.
        rates: Shares from 0 to 1.
        corruption: See ``CorruptedStates``.
        ids: Items that may be corrupted; defaults to all.
        seed: Seed of the choice among them.
        name: Name of the run in the result; defaults to its folder's.
        moved: ``dataset``, ``images`` and ``states`` -> folder, for those that moved.

    Raises:
        ConfigError: A rate outside 0 to 1, a negative seed, or a modality that the run lacks.
        DataError: An unknown item, or a dataset with other items than the run's.
        RunError: No finished run.
    """
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise ConfigError(f"the rates {list(rates)}", "shares from 0 to 1", "write e.g. 0,0.3,1")
    if seed < 0:
        raise ConfigError(f"the seed {seed}", "0 or more", "choose another seed")
    run = Run.load(folder)
    config = run.config.model_copy(update=moved)
    if run.members:
        run.only_member()
    setup = build(config) if run.members else open_inputs(config)
    dataset = setup.dataset
    run.check_items(dataset)
    network = setup.network if isinstance(setup, Setup) else None
    states = None if network is None else network.source
    frozen = None if run.anchoring is None else frozen_states(config, dataset)
    known = dict.fromkeys(name for each in (states, frozen) if each is not None for name in each.widths)
    if modality not in known:
        got = f"the run in '{folder}' has no modality '{modality}'"
        raise ConfigError(got, f"one of {', '.join(known)}" if known else "a run with states", "choose another")
    if network is not None:
        load_trainable(network, run.weights())
    candidates = np.arange(dataset.num_items) if ids is None else dataset.item_index(ids)
    evaluation, remark = run.config.evaluation, other_version(run, dataset)
    order = np.random.default_rng(seed).permutation(candidates)
    found: list[Evaluation] = []
    for rate in rates:
        corrupted = np.isin(np.arange(dataset.num_items), order[: round(rate * len(order))])

        def corrupt(source: StateSource, items: npt.NDArray[np.bool_] = corrupted) -> StateSource:
            # The learned part and the anchor may read different modalities.
            lacks = modality not in source.widths
            return source if lacks else CorruptedStates(source, modality, items, corruption, seed)

        if network is not None and states is not None:
            network.source = corrupt(states)
        learned = None if network is None else network_scorer(network)
        scorer = run.rescored(learned, None if frozen is None else corrupt(frozen))
        found += measure({folder.name: scorer}, evaluation, dataset, setup.split, remark=remark).values()
    return Decline(name or folder.name, tuple(rates), tuple(found))
