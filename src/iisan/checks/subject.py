"""What the checks of a run look at, and what they see."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from iisan.config import Config, Policy
from iisan.data.dataset import Dataset
from iisan.data.splits import Queries, Split
from iisan.errors import IisanError
from iisan.evaluate.metrics import ranked_rows
from iisan.runs.run import Run

Status = Literal["passed", "failed", "not checked", "finding"]
#: Most queries that a check ranks.
QUERIES = 2000
#: Fewest queries of which an interval says anything.
FEWEST = 20


class NotCheckedError(Exception):
    """A check does not apply to a run, or something that it needs is not there; its text is the reason."""


@dataclass(frozen=True)
class Outcome:
    """What a check saw.

    Attributes:
        seen: Sentence with numbers.
        sound: Whether an invariant holds; true for findings.
        values: The numbers by name, as JSON.
    """

    seen: str
    sound: bool = True
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One check of a run.

    Attributes:
        name: What is checked.
        status: Result; a finding neither passes nor fails.
        seen: What was seen, or why nothing was checked.
        values: The numbers by name, as JSON.
    """

    name: str
    status: Status
    seen: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A run without its additions, and what it was trained and tested on.

    Attributes:
        run: The run.
        config: Its configuration, with the folders of this call.
        dataset: Its dataset.
        split: Its split.
    """

    run: Run
    config: Config
    dataset: Dataset
    split: Split

    @property
    def policy(self) -> Policy:
        """Policy of the run."""
        return self.config.evaluation.policy

    @property
    def metric(self) -> str:
        """Metric that the run was selected by."""
        return self.config.evaluation.select

    @property
    def num_items(self) -> int:
        """Number of items, ``N``."""
        return self.dataset.num_items

    @cached_property
    def test(self) -> Queries:
        """Sample of the test queries, those that the policy leaves out included."""
        return self.split.test.sample(QUERIES)

    @cached_property
    def ranked(self) -> Queries:
        """Sample of the test queries that the policy ranks.

        Raises:
            NotCheckedError: There are none.
        """
        return self.ranked_of(self.split.test)

    def ranked_of(self, queries: Queries) -> Queries:
        """Sample of some queries that the policy ranks; raises a ``NotCheckedError`` if there are none."""
        rows = ranked_rows(queries, self.policy)
        if not len(rows):
            raise NotCheckedError(f"the policy {self.policy} leaves out all {len(queries):,} queries")
        return queries[rows].sample(QUERIES)

    def require_same_data(self) -> None:
        """Raise a ``NotCheckedError`` if the dataset has changed since the run was trained."""
        if not self.run.trained_on(self.dataset):
            raise NotCheckedError("the dataset has changed since the run was trained on it")


@contextmanager
def at_hand() -> Iterator[None]:
    """Report states, media or encoders that cannot be opened as the reason why something is not checked."""
    try:
        yield
    except IisanError as error:
        raise NotCheckedError(str(error)) from None
    except OSError as error:
        where = f" ('{error.filename}')" if error.filename else ""
        raise NotCheckedError(f"{error.strerror or error}{where}") from None


def histories_of(queries: Queries) -> list[list[int]]:
    """Return the items of every history, read one by one: nothing of this is shared with the ranking."""
    items = np.asarray(queries.sequences.items)
    return [items[start:end].tolist() for start, end in zip(queries.starts, queries.ends, strict=True)]
