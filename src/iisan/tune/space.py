"""Search spaces: which settings a study varies, read from YAML and checked against the configuration."""

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from iisan.config import FOLDERS, Config, Section
from iisan.errors import ConfigError
from iisan.nested import closest, expected_of, flatten, read_yaml
from iisan.recipes import recipe


class Range(Section):
    """Numbers between two ends, both included.

    Attributes:
        low, high: The ends. Whole numbers are drawn where the configuration key holds one.
        log: Whether numbers are drawn uniformly in their logarithm.
        step: Distance between the numbers, counted from ``low``; any number, or every whole one, if None.
    """

    low: float
    high: float
    log: bool = False
    step: PositiveFloat | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        if self.step is not None and not round((self.high - self.low) / self.step, 6).is_integer():
            raise ValueError(f"step {self.step:g} does not divide the range from {self.low:g} to {self.high:g}")
        return self


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len({json.dumps(value, sort_keys=True, default=str) for value in values}) < len(values):
        raise ValueError("a choice is listed twice")
    return values


#: Values to choose from; one that is a mapping sets several keys of its section together.
Choices = Annotated[tuple[Any, ...], Field(min_length=2), AfterValidator(_different)]


class Space(Section):
    """What a study varies, and how it goes about it.

    Attributes:
        recipe: Recipe that trials start from.
        settings: Configuration keys that are the same in all trials.
        space: Configuration key -> a range of numbers, or a list of values to choose from.
        objective: Validation metric that is maximised, and that selects the best epoch of each trial. Defaults to
            ``evaluation.select`` of the recipe.
        trials: Number of trials, failed and stopped ones included.
        prune_after: Epoch from which on a trial is stopped if its best epoch so far is below the median of the
            finished trials at the same epoch, once five have finished. None stops no trial.
        seed: Seed of the search; that of each trial is ``training.seed``.
        seeds: Seeds that the best settings are trained with at the end.
    """

    recipe: str = "default"
    settings: Mapping[str, Any] = Field(default_factory=dict)
    space: Annotated[dict[str, Range | Choices], Field(min_length=1)]
    objective: str | None = None
    trials: PositiveInt = 50
    prune_after: NonNegativeInt | None = 5
    seed: NonNegativeInt = 0
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_different)] = (0, 1, 2)

    def base(self) -> Config:
        """Return the configuration that the varied keys are set in, and check every value of the space in it.

        Raises:
            ConfigError: An unknown recipe, key or objective, a value that a key cannot have, or a key that would
                change what trials are compared by.
        """
        base = with_settings(recipe(self.recipe), self.settings)
        if base.recipe != self.recipe:
            got = f"the settings of the search space name the recipe '{base.recipe}'"
            raise ConfigError(got, f"settings of one recipe, here '{self.recipe}'", "name it as 'recipe' itself")
        if self.objective is not None:
            try:
                base = with_settings(base, {"evaluation.select": self.objective})
            except ConfigError:
                cutoffs = ", ".join(map(str, base.evaluation.cutoffs))
                expected = (
                    f"a validation metric with a cut-off of {cutoffs}, such as ndcg@{base.evaluation.cutoffs[0]}"
                )
                raise ConfigError(f"the objective '{self.objective}'", expected, "name one of these") from None
        if base.training.precision == "auto":  # might choose differently from trial to trial
            base = with_settings(base, {"training.precision": "fp32"})
        for key, values in self.space.items():
            ends = (values.low, values.high) if isinstance(values, Range) else values
            for value in ends:
                self._check(base, with_settings(base, {key: _number(value)}), key)
            if isinstance(values, Range):
                holds_whole_numbers(base, key, values)
        return base

    def _check(self, base: Config, changed: Config, key: str) -> None:
        fixed = ["evaluation", "recipe", *FOLDERS]
        seeded = base.training.seed != changed.training.seed
        if seeded or any(getattr(base, name) != getattr(changed, name) for name in fixed):
            got = f"the key '{key}' in the search space"
            cure = "leave it out; 'settings' may fix evaluation settings, and 'seeds' those of the end"
            raise ConfigError(got, "settings of a model whose trials are compared on the same validation", cure)


def read_space(path: Path) -> Space:
    """Read a search space from a YAML file.

    Raises:
        ConfigError: No such file, or the first invalid entry.
    """
    try:
        return Space.model_validate(read_yaml(path))
    except ValidationError as invalid:
        # Of a union, the member that the value was meant for says more; a misspelt key more than a missing one.
        order = ["extra_forbidden", "other", "missing", "model_type", "tuple_type"]
        error = min(
            invalid.errors(), key=lambda each: order.index(each["type"] if each["type"] in order else "other")
        )
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("Range", "function-after")))
    if error["type"] == "extra_forbidden":
        known = [*Range.model_fields] if key.startswith("space.") else [*Space.model_fields]
        hint = closest(key.rpartition(".")[2], known)
        raise ConfigError(f"'{path}' has the unknown key '{key}'", "a known key", hint)
    if error["type"] == "missing":
        raise ConfigError(f"'{path}' lacks '{key}'", "a search space", "add it")
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        raise ConfigError(f"'{path}' has {key}: {message}", "values that can be searched", "change them")
    expected = expected_of(error)
    if error["type"] in ("model_type", "tuple_type"):
        expected = "low and high, or a list of values"
    got = f"'{path}' has {key} = {error['input']!r}"
    raise ConfigError(got, expected, "change that value")


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Set configuration keys, dotted or nested."""
    return config.override(f"{key}={json.dumps(value, default=str)}" for key, value in flatten(settings))


def _number(value: Any) -> Any:
    """A whole number as such, as some keys hold nothing else."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def holds_whole_numbers(base: Config, key: str, values: Range) -> bool:
    """Whether a key holds whole numbers; raise a ``ConfigError`` if it holds no numbers at all."""
    changed = with_settings(base, {key: _number(values.high)}).model_dump(mode="json")
    held = reduce(lambda section, name: section[name], key.split("."), changed)
    if isinstance(held, bool) or not isinstance(held, int | float):
        got = f"a range for the key '{key}', which holds no numbers"
        raise ConfigError(got, "a list of values", f"write e.g. {key}: [{json.dumps(held)}, …]")
    if isinstance(held, int) and values.step is not None and not values.step.is_integer():
        raise ConfigError(
            f"step {values.step:g} for the key '{key}'", "a whole number, as the key holds", "round it"
        )
    return isinstance(held, int)
