"""TPME, one number for training time, trainable parameters and memory (P1 eqs. 6–10); lower is better.

Every factor is min–max normalised over the compared methods, then the three are averaged with weights. So a
TPME belongs to its compared set: another method in the set can change everybody's number. Print the set.

Letters: ``R`` methods compared, ``G`` points of a grid of weights.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from iisan.errors import ConfigError

Values = npt.NDArray[np.float64]

NAME = "name"
FACTORS = ("seconds", "parameters", "memory")
#: Scores closer than this are tied: rounding of three products must not choose a winner.
_TIED = 1e-12


@dataclass(frozen=True)
class Measurement:
    """What one method cost.

    Attributes:
        name: the method.
        seconds: training time of an epoch.
        parameters: trainable parameters.
        memory: peak memory in bytes, or in any other unit that the compared methods share.

    Raises:
        ConfigError: the name is empty, or a factor is negative, NaN or infinite.
    """

    name: str
    seconds: float
    parameters: float
    memory: float

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a measurement without a name", "the name of the method", "name it")
        for factor in FACTORS:
            value = getattr(self, factor)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"{factor} {value} of '{self.name}'",
                    "a number of 0 or more",
                    "measure it again or leave it out",
                )


@dataclass(frozen=True)
class Weights:
    """How much each factor counts.

    Attributes:
        time: share of the time of an epoch.
        parameters: share of the trainable parameters.
        memory: share of the peak memory.

    Raises:
        ConfigError: a weight is negative or not a number, or they do not sum to 1.
    """

    time: float
    parameters: float
    memory: float

    def __post_init__(self) -> None:
        values = (self.time, self.parameters, self.memory)
        # Written so that NaN, which compares false with everything, is refused as well.
        if not (all(value >= 0 for value in values) and abs(sum(values) - 1) <= 1e-9):
            raise ConfigError(
                f"the weights time {self.time}, parameters {self.parameters}, memory {self.memory}",
                "three numbers of 0 or more that sum to 1",
                "choose weights such as 0.45, 0.10, 0.45",
            )


#: The published weights (P1).
PAPER = Weights(time=0.45, parameters=0.10, memory=0.45)


def parse_weights(text: str) -> Weights:
    """Weights as typed: ``paper``, or numbers for time, parameters and memory, such as ``0.3,0.1,0.6``.

    Raises:
        ConfigError: neither.
    """
    if text == "paper":
        return PAPER
    try:
        return Weights(*map(float, text.split(",")))
    except (ValueError, TypeError):
        raise ConfigError(
            f"the weights '{text}'", "'paper', or time,parameters,memory", "write such as 0.45,0.10,0.45"
        ) from None


def tpme(
    measurements: Sequence[Measurement],
    weights: Weights = PAPER,
    extremes: Sequence[Measurement] | None = None,
) -> dict[str, float]:
    """Training time, parameter and memory efficiency of every method (P1 eqs. 6–10).

    ``TPME = w_t · t' + w_p · p' + w_m · m'`` with ``x' = (x − min) / (max − min)``.

    Args:
        measurements: the methods.
        weights: how much each factor counts.
        extremes: the set whose minima and maxima are used in place of the methods' own, as the ablations of P1
            (its tables 4–6) use those of its table 3. Values outside are not clipped: the result may then be
            below 0 or above 1.

    Returns:
        Name -> TPME as a share of 1, in the given order. 0 is best in all factors, 1 worst in all. A factor on
        which the extremes do not differ cannot tell methods apart and contributes 0.

    Raises:
        ConfigError: fewer than 2 measurements to take the extremes from, or a name twice.
    """
    totals = _normalised(measurements, extremes) @ _row(weights)
    return {each.name: float(total) for each, total in zip(measurements, totals, strict=True)}


def winners(measurements: Sequence[Measurement], steps: int = 50) -> list[tuple[Weights, str]]:
    """The method of lowest TPME at every point of a grid over all possible weights.

    Args:
        measurements: the methods.
        steps: parts that 1 is divided into; the grid has ``G = (steps + 1)(steps + 2) / 2`` points, the
            edges and corners of the simplex included.

    Returns:
        Weights and winner, ordered by time, then by parameters. Where several methods tie, one entry for
        each, in the given order.

    Raises:
        ConfigError: see ``tpme``; or ``steps`` below 1.
    """
    grid, wins = _wins(measurements, steps)
    return [
        (Weights(*grid[point].tolist()), measurements[method].name)
        for point, method in zip(*np.nonzero(wins), strict=True)
    ]


def shares(measurements: Sequence[Measurement], steps: int = 50) -> dict[str, float]:
    """The share of all possible weights under which each method has the lowest TPME.

    Args:
        measurements: the methods.
        steps: fineness of the grid, see ``winners``; every point counts the same.

    Returns:
        Name -> share of 1, in the given order; they sum to 1, as tied methods divide a point among them.

    Raises:
        ConfigError: see ``winners``.
    """
    _, wins = _wins(measurements, steps)
    divided = (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0)
    return {each.name: float(share) for each, share in zip(measurements, divided, strict=True)}


def read_csv(path: Path) -> list[Measurement]:
    """Read measurements from a table with the columns ``name``, ``seconds``, ``parameters``, ``memory``.

    Further columns are ignored.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or holds a value that is not a number of 0 or more.
    """
    columns = (NAME, *FACTORS)
    header = ",".join(columns)
    try:
        # As text first: polars would say which type it guessed, not which method's value is wrong.
        table = pl.read_csv(path.read_bytes(), infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} cannot be read ({reason})", f"a table with the header {header}", "write one, a method a line"
        ) from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ConfigError(
            f"{path} has the columns {', '.join(table.columns)}",
            f"{', '.join(columns)}",
            f"add {', '.join(missing)}",
        )
    text = table.select(pl.col(columns).str.strip_chars())
    numbers = text.with_columns(pl.col(FACTORS).cast(pl.Float64, strict=False))
    for factor in FACTORS:
        wrong = text.filter(numbers[factor].is_null())
        if len(wrong):
            raise ConfigError(
                f"{path} (columns {', '.join(table.columns)}) holds '{wrong[factor][0] or ''}' as {factor} of "
                f"'{wrong[NAME][0]}'",
                "a number",
                "write digits with a decimal point, without units or separators",
            )
    return [Measurement(name or "", *values) for name, *values in numbers.select(columns).iter_rows()]


def _row(weights: Weights) -> Values:
    return np.array([weights.time, weights.parameters, weights.memory])


def _columns(measurements: Sequence[Measurement]) -> Values:
    """``[R, 3]``, in the order of ``FACTORS``."""
    twice = [name for name, count in Counter(each.name for each in measurements).items() if count > 1]
    if twice:
        raise ConfigError(f"'{twice[0]}' occurs twice", "one measurement a method", "rename one of them")
    rows = [[getattr(each, factor) for factor in FACTORS] for each in measurements]
    return np.array(rows, dtype=np.float64).reshape(-1, len(FACTORS))


def _normalised(measurements: Sequence[Measurement], extremes: Sequence[Measurement] | None) -> Values:
    """``[R, 3]``, 0 at the minimum of the extremes and 1 at their maximum."""
    values = _columns(measurements)
    bounds = values if extremes is None else _columns(extremes)
    if len(bounds) < 2:
        raise ConfigError(
            f"{len(bounds)} measurement(s) to take the extremes from",
            "at least 2, as TPME is relative to a compared set",
            "add the methods to compare with, or pass extremes",
        )
    low = bounds.min(axis=0)
    spread = bounds.max(axis=0) - low
    return np.divide(values - low, spread, out=np.zeros_like(values), where=spread > 0)


def _wins(measurements: Sequence[Measurement], steps: int) -> tuple[Values, npt.NDArray[np.bool_]]:
    """The grid of weights ``[G, 3]`` and which methods are best there ``[G, R]``."""
    if steps < 1:
        raise ConfigError(f"steps {steps}", "a whole number of 1 or more", "choose steps such as 50")
    time, parameters = (axis.ravel() for axis in np.meshgrid(*2 * [np.arange(steps + 1)], indexing="ij"))
    inside = time + parameters <= steps
    time, parameters = time[inside], parameters[inside]
    grid: Values = np.stack([time, parameters, steps - time - parameters], axis=1) / steps
    scores = grid @ _normalised(measurements, None).T
    return grid, scores <= scores.min(axis=1, keepdims=True) + _TIED
