"""What is trained on, what is validated on and what is tested on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from iisan.data.sequences import Index, Sequences, item_counts, padded, ragged
from iisan.errors import DataError

SplitName = Literal["leave-one-out", "temporal"]
#: Subsets with queries; the third subset, train, is what a model learns from.
Subset = Literal["validation", "test"]


@dataclass(frozen=True)
class Queries:
    """Questions "what does this user take next?", each with its answer.

    Attributes:
        sequences: where the histories lie.
        users: ``[Q]`` user index.
        starts: ``[Q]`` first position of the history in ``sequences.items``.
        ends: ``[Q]`` one past its last position.
        targets: ``[Q]`` item index of the answer.
    """

    sequences: Sequences
    users: Index
    starts: Index
    ends: Index
    targets: Index

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, rows: slice | Index) -> "Queries":
        return Queries(self.sequences, self.users[rows], self.starts[rows], self.ends[rows], self.targets[rows])

    def sample(self, count: int | None) -> "Queries":
        """At most ``count`` of the queries, drawn with a fixed seed: every run on the same data gets the same."""
        if count is None or count >= len(self):
            return self
        return self[np.sort(np.random.default_rng(0).choice(len(self), count, replace=False))]

    def histories(self, length: int) -> Index:
        """Last ``length`` items of each history, ``[Q, length]``, left-padded with ``PAD``."""
        return padded(self.sequences.items, self.starts, self.ends, length)

    def seen(self) -> tuple[Index, Index]:
        """All items of all histories as pairs ``(query, item)``, each ``[pairs]``."""
        return ragged(self.sequences.items, self.starts, self.ends)


@dataclass(frozen=True)
class Split:
    """Training prefix of every user, validation queries, test queries.

    Attributes:
        name: the rule it was made by.
        num_items: items in the catalogue, ``N``.
        sequences: all interactions.
        train_ends: ``[users]`` one past each user's last training position; training starts at
            ``sequences.offsets[:-1]``.
        validation: queries whose targets choose the best epoch.
        test: queries whose targets are reported.
    """

    name: SplitName
    num_items: int
    sequences: Sequences
    train_ends: Index
    validation: Queries
    test: Queries

    @property
    def train_starts(self) -> Index:
        """First training position of every user, ``[users]``."""
        return self.sequences.offsets[:-1]

    def train_counts(self) -> Index:
        """Training interactions of every item, ``[N]``."""
        return item_counts(self.sequences.items, self.train_starts, self.train_ends, self.num_items)

    def subset(self, name: Subset) -> Queries:
        """Queries of that subset."""
        return self.test if name == "test" else self.validation

    def after(self, trained: "Split") -> "Split":
        """This split for a model that was trained under another one, whose training interactions it takes over.

        Queries whose target the model was trained or selected on are left out.
        """

        def unknown(queries: Queries) -> Queries:
            # A target stands where its history ends.
            trained_on = queries.ends < trained.train_ends[queries.users]
            selected_on = np.isin(queries.ends, trained.validation.ends)
            return queries[np.flatnonzero(~(trained_on | selected_on))]

        validation, test = unknown(self.validation), unknown(self.test)
        return replace(self, train_ends=trained.train_ends, validation=validation, test=test)

    def trained_later(self, queries: Queries) -> float | None:
        """Share of the training interactions that are later than a query's target, averaged over the queries.

        None without timestamps.
        """
        timestamps = self.sequences.timestamps
        if timestamps is None:
            return None
        _, times = ragged(timestamps, self.train_starts, self.train_ends)
        earlier = np.searchsorted(np.sort(times), timestamps[queries.ends], side="right")
        return 1 - float(earlier.mean()) / len(times)


def leave_one_out(sequences: Sequences, num_items: int) -> Split:
    """Last item of each user = test, the one before = validation, the rest = training (P1 §4.1).

    The test history includes the validation item. Users with fewer than three interactions
    only train.

    Raises:
        DataError: no user has three interactions.
    """
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    users = np.flatnonzero(sequences.lengths >= 3)
    if not len(users):
        raise DataError(
            f"no user among {sequences.num_users} has 3 interactions or more",
            "at least one such user for a leave-one-out split",
            "prepare the dataset with more interactions per user",
        )

    def queries(position_from_end: int) -> Queries:
        ends_of_history = ends[users] - position_from_end
        targets = sequences.items[ends_of_history].astype(np.int64)
        return Queries(sequences, users, starts[users], ends_of_history, targets)

    train_ends = np.where(sequences.lengths >= 3, ends - 2, ends)
    return Split("leave-one-out", num_items, sequences, train_ends, queries(2), queries(1))


def temporal(sequences: Sequences, num_items: int, shares: Sequence[float] = (0.8, 0.9)) -> Split:
    """Global split at two moments: nothing after the first is trained on.

    The moments are quantiles of all timestamps. Each user's first interaction at or after a moment
    is its target; the history is all that user did before. Users without a history or without a
    later interaction have no query.

    Args:
        sequences: all interactions, with timestamps.
        num_items: items in the catalogue, ``N``.
        shares: share of all interactions before the validation and before the test period.

    Raises:
        DataError: there are no timestamps, or a period has no target.
    """
    if sequences.timestamps is None:
        raise DataError(
            "the dataset has no timestamps",
            "a timestamp for every interaction, which a global temporal split needs",
            "prepare it with a timestamp column, or use the leave-one-out split",
        )
    timestamps = np.asarray(sequences.timestamps)
    moments = np.quantile(timestamps, shares, method="higher")
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    owners = np.repeat(np.arange(sequences.num_users), sequences.lengths)

    def first_at_or_after(moment: float) -> Index:
        return starts + np.bincount(owners[timestamps < moment], minlength=sequences.num_users)

    def queries(first: Index, limit: Index) -> Queries:
        users = np.flatnonzero((first > starts) & (first < limit))
        if not len(users):
            raise DataError(
                f"no user has an interaction before and inside a period of the temporal split {shares}",
                "periods with targets",
                "choose other shares, or use the leave-one-out split",
            )
        targets = sequences.items[first[users]].astype(np.int64)
        return Queries(sequences, users, starts[users], first[users], targets)

    validation_starts, test_starts = (first_at_or_after(moment) for moment in moments)
    return Split(
        "temporal",
        num_items,
        sequences,
        validation_starts,
        queries(validation_starts, test_starts),
        queries(test_starts, ends),
    )


def split(sequences: Sequences, num_items: int, name: SplitName) -> Split:
    """Make the split of that name."""
    return leave_one_out(sequences, num_items) if name == "leave-one-out" else temporal(sequences, num_items)
