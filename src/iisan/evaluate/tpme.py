"""TPME, one number for training time, trainable parameters and memory (IISAN, eqs. 6–10); lower is better.

Every factor is min–max normalised over the compared methods, then the three are averaged with weights. So adding a
method to the compared set can change every TPME.

Letters: ``R`` methods compared, ``G`` points of a grid of weights.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from iisan.errors import ConfigError

Values = npt.NDArray[np.float64]

NAME = "name"
FACTORS = ("seconds", "parameters", "memory")
#: Scores closer than this are tied: rounding of three products must not decide.
_TIED = 1e-12


@dataclass(frozen=True)
class Measurement:
    """Costs of one method: seconds per epoch of training, number of trainable parameters, and peak memory.

    The unit of memory may be any that the compared methods share.

    Raises:
        ConfigError: The name is empty, or a factor is negative, NaN or infinite.
    """

    name: str
    seconds: float
    parameters: float
    memory: float

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a measurement without a name", "the name of the method", "name it")
        for factor, value in zip(FACTORS, _factors(self), strict=True):
            # Also refuses NaN, which compares false with everything.
            if not 0 <= value < float("inf"):
                got = f"{factor} {value} of '{self.name}'"
                raise ConfigError(got, "a number of 0 or more", "measure it again or leave it out")


def _factors(measurement: Measurement) -> tuple[float, ...]:
    return measurement.seconds, measurement.parameters, measurement.memory


@dataclass(frozen=True)
class Weights:
    """Weights of the factors: training time per epoch, trainable parameters, peak memory.

    Raises:
        ConfigError: A weight is negative or not a number, or they do not sum to 1.
    """

    time: float
    parameters: float
    memory: float

    def __post_init__(self) -> None:
        values = astuple(self)
        # Also refuses NaN.
        if not (all(value >= 0 for value in values) and abs(sum(values) - 1) <= 1e-9):
            got = f"the weights time {self.time}, parameters {self.parameters}, memory {self.memory}"
            cure = "choose weights such as 0.45, 0.10, 0.45"
            raise ConfigError(got, "three numbers of 0 or more that sum to 1", cure)


#: The weights that IISAN uses.
PAPER = Weights(time=0.45, parameters=0.10, memory=0.45)


def parse_weights(text: str) -> Weights:
    """Parse ``paper``, or time, parameters and memory such as ``0.3,0.1,0.6``; else raise a ``ConfigError``."""
    if text == "paper":
        return PAPER
    try:
        return Weights(*map(float, text.split(",")))
    except (ValueError, TypeError):
        raise ConfigError(
            f"the weights '{text}'", "'paper', or time,parameters,memory", "write such as 0.45,0.10,0.45"
        ) from None


def tpme(
    measurements: Sequence[Measurement], weights: Weights = PAPER, extremes: Sequence[Measurement] | None = None
) -> dict[str, float]:
    """Training time, parameter and memory efficiency of every method (IISAN, eqs. 6–10).

    ``TPME = w_t · t' + w_p · p' + w_m · m'`` with ``x' = (x − min) / (max − min)``.

    With ``extremes``, the minima and maxima are those of another set, as in the ablations of IISAN (tables 4–6),
    which use those of its table 3. Values outside are not clipped, so the result may be below 0 or above 1.

    Returns:
        TPME by name, as a share of 1: 0 is best in all factors, 1 worst in all. A factor in which the extremes do
        not differ contributes 0.

    Raises:
        ConfigError: Fewer than 2 measurements to take the extremes from, or a name twice.
    """
    totals = _normalised(measurements, extremes) @ np.array(astuple(weights))
    return {each.name: float(total) for each, total in zip(measurements, totals, strict=True)}


def winners(measurements: Sequence[Measurement], steps: int = 50) -> list[tuple[Weights, str]]:
    """Find the method of lowest TPME at every point of a grid over all possible weights.

    The grid has ``G = (steps + 1)(steps + 2) / 2`` points, edges and corners of the simplex included.

    Returns:
        Weights and winner, ordered by time, then by parameters. Tied methods have an entry each, in the given
        order.

    Raises:
        ConfigError: See ``tpme``; or ``steps`` below 1.
    """
    grid, wins = _wins(measurements, steps)
    return [
        (Weights(*grid[point].tolist()), measurements[method].name)
        for point, method in zip(*np.nonzero(wins), strict=True)
    ]


def shares(measurements: Sequence[Measurement], steps: int = 50) -> dict[str, float]:
    """Share of all possible weights, see ``winners``, under which each method has the lowest TPME.

    Tied methods divide a point among them, so the shares sum to 1.
    """
    _, wins = _wins(measurements, steps)
    divided = (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0)
    return {each.name: float(share) for each, share in zip(measurements, divided, strict=True)}


def read_csv(path: Path) -> list[Measurement]:
    """Read measurements from the columns ``name``, ``seconds``, ``parameters`` and ``memory`` of a CSV file.

    Raises:
        ConfigError: The file cannot be read, lacks a column, or holds a value that is not a number of 0 or more.
    """
    columns = (NAME, *FACTORS)
    header = ",".join(columns)
    try:
        # As text first: an error of polars would name the inferred type, not the method whose value is wrong.
        table = pl.read_csv(path.read_bytes(), infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} cannot be read ({reason})", f"a table with the header {header}", "write one line per method"
        ) from error
    found = ", ".join(table.columns)
    if missing := [column for column in columns if column not in table.columns]:
        raise ConfigError(f"{path} has the columns {found}", header, f"add {', '.join(missing)}")
    text = table.select(pl.col(columns).str.strip_chars())
    numbers = text.with_columns(pl.col(FACTORS).cast(pl.Float64, strict=False))
    for factor in FACTORS:
        wrong = text.filter(numbers[factor].is_null())
        if len(wrong):
            got = f"{path} (columns {found}) holds '{wrong[factor][0] or ''}' as {factor} of '{wrong[NAME][0]}'"
            raise ConfigError(got, "a number", "write digits with a decimal point, without units or separators")
    return [Measurement(name or "", *values) for name, *values in numbers.select(columns).iter_rows()]


def _matrix(measurements: Sequence[Measurement]) -> Values:
    """Factors of all methods, ``[R, 3]``."""
    twice = [name for name, count in Counter(each.name for each in measurements).items() if count > 1]
    if twice:
        raise ConfigError(f"'{twice[0]}' occurs twice", "one measurement per method", "rename one of them")
    return np.array([_factors(each) for each in measurements], dtype=np.float64).reshape(-1, len(FACTORS))


def _normalised(measurements: Sequence[Measurement], extremes: Sequence[Measurement] | None) -> Values:
    """Factors ``[R, 3]``, scaled to 0 at the minimum of the extremes and 1 at their maximum."""
    values = _matrix(measurements)
    bounds = values if extremes is None else _matrix(extremes)
    if len(bounds) < 2:
        got, expected = f"{len(bounds)} measurement(s) to take the extremes from", "at least 2, to compare"
        raise ConfigError(got, expected, "add the methods to compare with, or pass extremes")
    low = bounds.min(axis=0)
    spread = bounds.max(axis=0) - low
    return np.divide(values - low, spread, out=np.zeros_like(values), where=spread > 0)


def _wins(measurements: Sequence[Measurement], steps: int) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Grid of weights ``[G, 3]``, and whether a method is best there ``[G, R]``."""
    if steps < 1:
        raise ConfigError(f"steps {steps}", "a whole number of 1 or more", "choose steps such as 50")
    time, parameters = (axis.ravel() for axis in np.meshgrid(*2 * [np.arange(steps + 1)], indexing="ij"))
    inside = time + parameters <= steps
    time, parameters = time[inside], parameters[inside]
    grid: Values = np.stack([time, parameters, steps - time - parameters], axis=1) / steps
    scores = grid @ _normalised(measurements, None).T
    return grid, scores <= scores.min(axis=1, keepdims=True) + _TIED
