"""Finished runs side by side: quality, cost, TPME, and whether the difference is more than chance."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from iisan.config import FOLDERS
from iisan.errors import ConfigError
from iisan.evaluate.significance import Comparison, Spread, compare, holm, spread
from iisan.evaluate.tpme import Measurement, Weights, shares, tpme
from iisan.nested import flatten
from iisan.runs.conditions import conditions, why_not_compared
from iisan.runs.naming import short_names
from iisan.runs.run import PER_USER, Run

METRICS = ("hr@10", "ndcg@10")
#: Settings that do not make another method: the draw, and where things are.
_NOT_COMPARED = ("training.seed", "training.device", *FOLDERS)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, and perhaps in their machine.

    Attributes:
        name: of the recipe, or of the first run's folder where several groups share a recipe.
        runs: finished.
    """

    name: str
    runs: tuple[Run, ...]

    def metric(self, name: str) -> Spread | None:
        """Mean and deviation over the seeds."""
        return spread([run.result["test"][name] for run in self.runs if name in run.result["test"]])

    def frames(self) -> list[pl.DataFrame]:
        """The rank of every user's target, run by run."""
        return [pl.read_parquet(run.folder / PER_USER) for run in self.runs]

    @property
    def parameters(self) -> int:
        """Trained parameters."""
        return int(self.runs[0].result["trainable_parameters"])

    def conditions(self) -> list[str]:
        """Under which conditions the runs were trained, run by run."""
        return [conditions(run.result) for run in self.runs]

    def measurement(self) -> Measurement:
        """Seconds an epoch, trained parameters and peak memory, as the runs noted them."""
        results = [run.result for run in self.runs]
        return Measurement(
            self.name,
            statistics.fmean(result["train_seconds"] / result["epochs"] for result in results),
            self.parameters,
            statistics.fmean(result["peak_memory_bytes"] for result in results),
        )


@dataclass(frozen=True)
class Comparisons:
    """What ``iisan compare`` prints.

    Attributes:
        protocol: that all runs share.
        groups: in the order given.
        costs: group -> what it cost; empty where the runs' conditions differ.
        tpme: group -> TPME over these groups; empty for a single one, and without costs.
        tests: of the first group against each other one on each metric: ``(other, comparison, p of the t-test,
            adjusted by Holm's method over all of them)``.
    """

    protocol: str
    groups: list[Group]
    costs: dict[str, Measurement]
    tpme: dict[str, float]
    tests: list[tuple[str, Comparison, float]]

    @property
    def conditions(self) -> dict[str, list[str]]:
        """Group -> conditions of its runs."""
        return {group.name: group.conditions() for group in self.groups}

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "protocol": self.protocol,
            "costs_left_out": why_not_compared(self.conditions) or None,
            "methods": {
                group.name: {
                    "runs": [str(run.folder) for run in group.runs],
                    "conditions": group.conditions(),
                    "test": [run.result["test"] for run in group.runs],
                    "parameters": group.parameters,
                    **(asdict(self.costs[group.name]) if self.costs else {}),
                    "tpme": self.tpme.get(group.name),
                }
                for group in self.groups
            },
            "tests": [
                {"against": other, **asdict(found), "p_t_holm": adjusted} for other, found, adjusted in self.tests
            ],
        }


@dataclass(frozen=True)
class Measured:
    """TPME of anyone's measurements.

    Attributes:
        rows: the methods.
        weights: of the factors.
        tpme: name -> TPME.
        won: name -> share of all weights under which the method is the best.
    """

    rows: list[Measurement]
    weights: Weights
    tpme: dict[str, float]
    won: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "weights": asdict(self.weights),
            "methods": {
                row.name: {**asdict(row), "tpme": self.tpme[row.name], "share_of_weights_won": self.won[row.name]}
                for row in self.rows
            },
        }


def compare_measurements(
    rows: list[Measurement], weights: Weights, extremes: list[Measurement] | None = None
) -> Measured:
    """TPME of measurements, normalised by their own extremes or those of another set.

    Raises:
        ConfigError: fewer than two methods, or a name twice.
    """
    return Measured(rows, weights, tpme(rows, weights, extremes), shares(rows))


def compare_runs(folders: Sequence[Path], weights: Weights) -> Comparisons:
    """Compare run folders; those that differ in their seed alone are one method, on whatever machines they ran.

    Costs are compared only where all runs were trained on one machine and device, in one precision and with one
    number of threads.

    Raises:
        ConfigError: runs of different data or protocols, or a run twice.
        RunError: a folder that is no finished run, or runs of different users.
    """
    runs = [Run.load(folder) for folder in folders]
    for key in ("data", "protocol"):
        # A dataset of version 0.1 has had another fingerprint since it got content keys.
        values = {run.result.get(f"previous_{key}", run.result[key]): run.folder for run in runs}
        if len(values) > 1:
            (one, first), (other, second), *_ = values.items()
            raise ConfigError(
                f"'{first}' and '{second}' have different {key} ({one} and {other})",
                "runs that answered the same questions",
                "evaluate both on the same data with the same protocol",
            )
    groups = _groups(runs)
    mixed = why_not_compared({group.name: group.conditions() for group in groups})
    costs = {} if mixed else {group.name: group.measurement() for group in groups}
    frames, *others = [group.frames() for group in groups]
    found = [
        (other, compare(frames, theirs, metric))
        for other, theirs in zip(groups[1:], others, strict=True)
        for metric in METRICS
    ]
    adjusted = holm([comparison.p_t for _, comparison in found])
    return Comparisons(
        runs[0].result["protocol"],
        groups,
        costs,
        tpme(list(costs.values()), weights) if len(costs) > 1 else {},
        [(other.name, comparison, p) for (other, comparison), p in zip(found, adjusted, strict=True)],
    )


def _groups(runs: Sequence[Run]) -> list[Group]:
    members: dict[str, list[Run]] = {}
    for run in runs:
        settings = dict(flatten(run.config.model_dump(mode="json")))
        settings = {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
        settings["states"] = sorted(run.result["states"].items())
        settings["continued"] = run.result.get("continued_from") is not None
        members.setdefault(str(sorted(settings.items(), key=lambda pair: pair[0])), []).append(run)
    for same in members.values():
        first: dict[int, Run] = {}
        for run in same:
            before = first.setdefault(run.config.training.seed, run)
            if before is not run:
                raise ConfigError(
                    f"'{before.folder}' and '{run.folder}' have the same settings and the same seed",
                    "each run once, as its seeds tell how much a method varies",
                    "leave one of them out",
                )
    recipes = [same[0].config.recipe for same in members.values()]
    folders = short_names([same[0].folder.absolute() for same in members.values()])
    return [
        Group(recipe if recipes.count(recipe) == 1 else folder, tuple(same))
        for recipe, folder, same in zip(recipes, folders, members.values(), strict=True)
    ]
