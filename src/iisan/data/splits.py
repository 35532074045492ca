"""Splits of the interactions into training, validation and test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from iisan.data.sequences import Index, Sequences, item_counts, padded, ragged
from iisan.errors import DataError
from iisan.names import PAD

SplitName = Literal["given", "leave-one-out", "temporal"]
#: Subsets with queries; the third subset is train.
Subset = Literal["validation", "test"]


@dataclass(frozen=True)
class Queries:
    """Histories with their next item, the target.

    Attributes:
        sequences: Sequences that contain the histories.
        users: User indices ``[Q]``.
        starts: First positions of the histories in ``sequences.items``, ``[Q]``.
        ends: Positions after the last, ``[Q]``.
        targets: Item indices of the targets, ``[Q]``; ``PAD`` if unknown.
    """

    sequences: Sequences
    users: Index
    starts: Index
    ends: Index
    targets: Index

    def __len__(self) -> int:
        return len(self.users)

    @property
    def num_users(self) -> int:
        """Number of distinct users."""
        return len(np.unique(self.users))

    @property
    def unit(self) -> str:
        """What a query stands for: ``users`` if each has only one, else ``queries``."""
        return "users" if self.num_users == len(self) else "queries"

    def __str__(self) -> str:
        return f"{len(self):,} {self.unit}" + (f" of {self.num_users:,} users" if self.unit == "queries" else "")

    def __getitem__(self, rows: slice | Index) -> "Queries":
        return Queries(self.sequences, self.users[rows], self.starts[rows], self.ends[rows], self.targets[rows])

    def sample(self, count: int | None) -> "Queries":
        """Sample at most ``count`` queries with a fixed seed, so all runs on the same data get the same sample."""
        if count is None or count >= len(self):
            return self
        return self[np.sort(np.random.default_rng(0).choice(len(self), count, replace=False))]

    def histories(self, length: int) -> Index:
        """Return the last ``length`` items of each history, ``[Q, length]``, left-padded with ``PAD``."""
        return padded(self.sequences.items, self.starts, self.ends, length)

    def seen(self) -> tuple[Index, Index]:
        """Return all items of all histories as pairs ``(query, item)``, each ``[pairs]``."""
        return ragged(self.sequences.items, self.starts, self.ends)


@dataclass(frozen=True)
class Split:
    """Training prefix of every user, validation queries and test queries.

    Attributes:
        name: Name of the rule.
        num_items: Number of items in the catalogue, ``N``.
        sequences: All interactions. Queries under the rule ``given`` have other sequences, their own.
        train_ends: Position after each user's last training interaction, ``[users]``.
        validation: Validation queries, which select the best epoch.
        test: Test queries.
    """

    name: SplitName
    num_items: int
    sequences: Sequences
    train_ends: Index
    validation: Queries
    test: Queries

    @property
    def train_starts(self) -> Index:
        """Position of each user's first training interaction, ``[users]``."""
        return self.sequences.offsets[:-1]

    def train_counts(self) -> Index:
        """Count the training interactions of every item, ``[N]``."""
        return item_counts(self.sequences.items, self.train_starts, self.train_ends, self.num_items)

    def subset(self, name: Subset) -> Queries:
        """Return the queries of a subset."""
        return self.test if name == "test" else self.validation

    def after(self, trained: "Split") -> "Split":
        """Return this split, with the training interactions of the split that a model was trained under.

        Queries whose target the model was trained or selected on are left out; given queries are no interactions,
        so none of them is.

        Raises:
            DataError: The model was trained on all interactions, as under the rule ``given``.
        """
        if trained.name == "given":
            got = f"a run that was trained on all interactions (split given), under the split {self.name}"
            expected = "a split with targets that it was not trained on"
            raise DataError(got, expected, f"evaluate it under given, or train a run under {self.name}")
        if self.name == "given":
            return replace(self, train_ends=trained.train_ends)

        def unknown(queries: Queries) -> Queries:
            # The position of a target is where its history ends.
            trained_on = queries.ends < trained.train_ends[queries.users]
            selected_on = np.isin(queries.ends, trained.validation.ends)
            return queries[np.flatnonzero(~(trained_on | selected_on))]

        validation, test = unknown(self.validation), unknown(self.test)
        return replace(self, train_ends=trained.train_ends, validation=validation, test=test)

    def trained_later(self, queries: Queries) -> float | None:
        """Share of training interactions later than a query's target, averaged; None without timestamps."""
        timestamps, moments = self.sequences.timestamps, queries.sequences.timestamps
        if timestamps is None or moments is None:
            return None
        _, times = ragged(timestamps, self.train_starts, self.train_ends)
        earlier = np.searchsorted(np.sort(times), moments[queries.ends], side="right")
        return 1 - float(earlier.mean()) / len(times)


def _queries(sequences: Sequences, users: Index, positions: Index) -> Queries:
    """Queries whose targets are at these positions of ``sequences.items``."""
    targets = sequences.items[positions].astype(np.int64)
    return Queries(sequences, users, sequences.offsets[users], positions, targets)


def whole_histories(sequences: Sequences, users: Index) -> Queries:
    """Queries for what comes after all interactions of some users ``[Q]``, so without targets."""
    ends = sequences.offsets[users + 1]
    return Queries(sequences, users, sequences.offsets[users], ends, np.full(len(users), PAD))


def given_queries(sequences: Sequences, users: Index) -> Queries:
    """Queries from sequences that are each a history and its target, and their users ``[Q]``."""
    ends = sequences.offsets[1:] - 1
    return Queries(sequences, users, sequences.offsets[:-1], ends, sequences.items[ends].astype(np.int64))


def leave_one_out(sequences: Sequences, num_items: int) -> Split:
    """Split off each user's last item for test and the one before for validation (IISAN, sec. 4.1).

    The test history includes the validation item. Users with fewer than three interactions are in training only.

    Raises:
        DataError: No user has three interactions.
    """
    ends = sequences.offsets[1:]
    users = np.flatnonzero(sequences.lengths >= 3)
    if not len(users):
        got = f"no user among {sequences.num_users} has 3 interactions or more"
        expected = "at least one such user for a leave-one-out split"
        raise DataError(got, expected, "prepare the dataset with more interactions per user")
    train_ends = np.where(sequences.lengths >= 3, ends - 2, ends)
    validation, test = (_queries(sequences, users, ends[users] - back) for back in (2, 1))
    return Split("leave-one-out", num_items, sequences, train_ends, validation, test)


def temporal(sequences: Sequences, num_items: int, shares: Sequence[float] = (0.8, 0.9)) -> Split:
    """Split globally at two moments; training ends at the first.

    The moments are quantiles of all timestamps: ``shares`` of all interactions lie before them. The target in each
    period is the user's first interaction, and the history all earlier ones. Users without either have no query.

    Raises:
        DataError: There are no timestamps, or a period has no target.
    """
    if sequences.timestamps is None:
        expected = "a timestamp for every interaction, which a global temporal split needs"
        cure = "prepare it with a timestamp column, or use the leave-one-out split"
        raise DataError("the dataset has no timestamps", expected, cure)
    timestamps = np.asarray(sequences.timestamps)
    moments = np.quantile(timestamps, shares, method="higher")
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    owners = np.repeat(np.arange(sequences.num_users), sequences.lengths)

    def first_at_or_after(moment: float) -> Index:
        return starts + np.bincount(owners[timestamps < moment], minlength=sequences.num_users)

    def queries(first: Index, limit: Index) -> Queries:
        users = np.flatnonzero((first > starts) & (first < limit))
        if not len(users):
            got = f"no user has an interaction before and inside a period of the temporal split {shares}"
            cure = "choose other shares, or use the leave-one-out split"
            raise DataError(got, "periods with targets", cure)
        return _queries(sequences, users, first[users])

    validation_starts, test_starts = (first_at_or_after(moment) for moment in moments)
    validation, test = queries(validation_starts, test_starts), queries(test_starts, ends)
    return Split("temporal", num_items, sequences, validation_starts, validation, test)


def given(sequences: Sequences, num_items: int, queries: Mapping[Subset, Queries]) -> Split:
    """Train on all interactions; validate and test on the given queries.

    Raises:
        DataError: There are no given queries.
    """
    if not queries:
        cure = "prepare it with --validation FILE and --test FILE, or use the leave-one-out split"
        raise DataError("the dataset has no given queries", "a dataset with them, for the split given", cure)
    return Split("given", num_items, sequences, sequences.offsets[1:], queries["validation"], queries["test"])


def split(
    sequences: Sequences, num_items: int, name: SplitName, queries: Mapping[Subset, Queries] | None = None
) -> Split:
    """Apply the split rule of that name; ``queries`` are for the rule ``given``."""
    if name == "given":
        return given(sequences, num_items, queries or {})
    return leave_one_out(sequences, num_items) if name == "leave-one-out" else temporal(sequences, num_items)
