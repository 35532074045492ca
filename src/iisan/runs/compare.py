"""Comparison of finished runs: quality, cost, TPME, and whether differences are significant."""

import math
import statistics
from collections.abc import Mapping, Sequence
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
#: Settings in which runs of one method may differ.
_NOT_COMPARED = ("training.seed", "training.device", *FOLDERS)


@dataclass(frozen=True)
class Group:
    """Runs of one method, which differ only in their seed and perhaps their machine.

    Attributes:
        name: Name of the recipe, or of the first run's folder if several groups share a recipe.
        runs: Finished runs.
    """

    name: str
    runs: tuple[Run, ...]

    def metric(self, name: str) -> Spread | None:
        """Mean and standard deviation over the seeds."""
        return spread([run.result["test"][name] for run in self.runs if name in run.result["test"]])

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return int(self.runs[0].result["trainable_parameters"])

    def conditions(self) -> list[str]:
        """Conditions under which each run was trained."""
        return [conditions(run.result) for run in self.runs]

    def measurement(self) -> Measurement:
        """Seconds per epoch, trained parameters and peak memory, averaged over the runs."""
        results = [run.result for run in self.runs]
        seconds = statistics.fmean(map(_seconds_per_epoch, results))
        memory = statistics.fmean(result["peak_memory_bytes"] for result in results)
        return Measurement(self.name, seconds, self.parameters, memory)


def _seconds_per_epoch(result: Mapping[str, Any]) -> float:
    """Seconds of an epoch; of a joined run, of one epoch of every member."""
    trained = result.get("members", [result])
    return math.fsum(each["train_seconds"] / max(each["epochs"], 1) for each in trained)


@dataclass(frozen=True)
class Comparisons:
    """Comparison of runs, as printed by ``iisan compare``.

    Attributes:
        protocol: Protocol that all runs share.
        groups: Groups in the given order.
        costs: Group -> costs; empty if the runs' conditions differ.
        tpme: Group -> TPME over these groups; empty for a single group or without costs.
        tests: ``(other, comparison, p-value of the t-test, adjusted by Holm's method)`` of the first group against
            each other one on each metric.
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
        """Return the comparison as JSON."""
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
    """TPME of given measurements.

    Attributes:
        rows: Measurements, one per method.
        weights: Weights of the factors.
        tpme: Name -> TPME.
        won: Name -> share of all possible weights under which the method has the lowest TPME.
    """

    rows: list[Measurement]
    weights: Weights
    tpme: dict[str, float]
    won: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the measurements as JSON."""
        methods = {
            row.name: {**asdict(row), "tpme": self.tpme[row.name], "share_of_weights_won": self.won[row.name]}
            for row in self.rows
        }
        return {"weights": asdict(self.weights), "methods": methods}


def compare_measurements(
    rows: list[Measurement], weights: Weights, extremes: list[Measurement] | None = None
) -> Measured:
    """Compute TPME of measurements, normalised by their own extremes or those of another set.

    Raises:
        ConfigError: Fewer than two methods, or a name twice.
    """
    return Measured(rows, weights, tpme(rows, weights, extremes), shares(rows))


def compare_runs(folders: Sequence[Path], weights: Weights) -> Comparisons:
    """Compare run folders; runs that differ only in their seed are one method, on whatever machines they ran.

    Costs are compared only if all runs were trained on one machine and device, in one precision and with one
    number of threads.

    Raises:
        ConfigError: Runs of different data or protocols, or a run twice.
        RunError: A folder that is no finished run, or runs of different users.
    """
    runs = [Run.load(folder) for folder in folders]
    for key in ("data", "protocol"):
        # A dataset of version 0.1 has had another fingerprint since it got content keys.
        values = {run.result.get(f"previous_{key}", run.result[key]): run.folder for run in runs}
        if len(values) > 1:
            (one, first), (other, second), *_ = values.items()
            got = f"'{first}' and '{second}' have different {key} ({one} and {other})"
            cure = "evaluate both on the same data with the same protocol"
            raise ConfigError(got, "runs evaluated on the same targets", cure)
    groups = _groups(runs)
    mixed = why_not_compared({group.name: group.conditions() for group in groups})
    costs = {} if mixed else {group.name: group.measurement() for group in groups}
    first_frames, *others = [
        [pl.read_parquet(run.folder / PER_USER, glob=False) for run in group.runs] for group in groups
    ]
    found = [
        (other.name, compare(first_frames, frames, metric))
        for other, frames in zip(groups[1:], others, strict=True)
        for metric in METRICS
    ]
    adjusted = holm([comparison.p_t for _, comparison in found])
    return Comparisons(
        runs[0].result["protocol"],
        groups,
        costs,
        tpme(list(costs.values()), weights) if len(costs) > 1 else {},
        [(name, comparison, p) for (name, comparison), p in zip(found, adjusted, strict=True)],
    )


def _groups(runs: Sequence[Run]) -> list[Group]:
    members: dict[str, dict[int, Run]] = {}
    for run in runs:
        settings = dict(flatten(run.config.model_dump(mode="json")))
        method = {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
        method["states"] = sorted(run.result["states"].items())
        method["anchor_states"] = sorted(run.result.get("anchor_states", {}).items())
        # What auto chose depends on the machine.
        method["training.precision"] = run.result.get("requested_precision", run.config.training.precision)
        method["continued"] = run.result.get("continued_from") is not None
        seeds = members.setdefault(str(sorted(method.items(), key=lambda pair: pair[0])), {})
        if (before := seeds.setdefault(run.config.training.seed, run)) is not run:
            got = f"'{before.folder}' and '{run.folder}' have the same settings and the same seed"
            expected = "each run once, as the seeds show how much a method varies"
            raise ConfigError(got, expected, "leave one of them out")
    groups = [tuple(seeds.values()) for seeds in members.values()]
    recipes = [same[0].config.recipe for same in groups]
    folders = short_names([same[0].folder.absolute() for same in groups])
    return [
        Group(recipe if recipes.count(recipe) == 1 else folder, same)
        for recipe, folder, same in zip(recipes, folders, groups, strict=True)
    ]
