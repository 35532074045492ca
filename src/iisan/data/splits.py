"""Splits of the interactions into training, validation and test."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from iisan.config import SHARES, Shares, SplitName
from iisan.data.sequences import Index, Sequences, item_counts, padded, positions_of, ragged
from iisan.errors import DataError
from iisan.names import PAD

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
        settings: Settings of the rule other than the defaults, in the words of the protocol line.
    """

    name: SplitName
    num_items: int
    sequences: Sequences
    train_ends: Index
    validation: Queries
    test: Queries
    settings: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.settings}".rstrip()

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
            got = f"a run that was trained on all interactions (split given), under the split {self}"
            expected = "a split with targets that it was not trained on"
            raise DataError(got, expected, f"evaluate it under given, or train a run under {self}")
        if self.name == "given":
            return replace(self, train_ends=trained.train_ends)

        def unknown(queries: Queries) -> Queries:
            # The position of a target is where its history ends.
            trained_on = queries.ends < trained.train_ends[queries.users]
            selected_on = np.isin(queries.ends, trained.validation.ends)
            return queries[np.flatnonzero(~(trained_on | selected_on))]

        validation, test = unknown(self.validation), unknown(self.test)
        return replace(self, train_ends=trained.train_ends, validation=validation, test=test)

    def trained_later(self, queries: Queries) -> npt.NDArray[np.float64] | None:
        """Share of training interactions later than each query's target, ``[Q]``; None without timestamps."""
        timestamps, moments = self.sequences.timestamps, queries.sequences.timestamps
        if timestamps is None or moments is None:
            return None
        _, times = ragged(timestamps, self.train_starts, self.train_ends)
        earlier = np.searchsorted(np.sort(times), moments[queries.ends], side="right")
        later: npt.NDArray[np.float64] = 1 - earlier / len(times)
        return later


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


def temporal(sequences: Sequences, num_items: int, shares: Shares = SHARES) -> Split:
    """Split globally at two moments; training ends at the first.

    The moments are quantiles of all timestamps: the first share of all interactions lies before the first moment,
    the first two before the second. The target in each period is the user's first interaction, and the history all
    earlier ones. Users without either have no query.

    Raises:
        DataError: There are no timestamps, or a period has no target.
    """
    if sequences.timestamps is None:
        expected = "a timestamp for every interaction, which a global temporal split needs"
        cure = "prepare it with a timestamp column, or use the leave-one-out split"
        raise DataError("the dataset has no timestamps", expected, cure)
    timestamps = np.asarray(sequences.timestamps)
    # Rounded, as 0.1 + 0.2 is more than 0.3.
    moments = np.quantile(timestamps, np.cumsum(shares[:2]).round(12), method="higher")
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    owners = np.repeat(np.arange(sequences.num_users), sequences.lengths)

    def first_at_or_after(moment: float) -> Index:
        return starts + np.bincount(owners[timestamps < moment], minlength=sequences.num_users)

    def queries(subset: Subset, first: Index, limit: Index) -> Queries:
        users = np.flatnonzero((first > starts) & (first < limit))
        _check_targets(len(users), subset, "temporal", shares, "a user with interactions before and in its period")
        return _queries(sequences, users, first[users])

    validation_starts, test_starts = (first_at_or_after(moment) for moment in moments)
    validation = queries("validation", validation_starts, test_starts)
    test = queries("test", test_starts, ends)
    return Split("temporal", num_items, sequences, validation_starts, validation, test, _named(shares))


def ratio(sequences: Sequences, num_items: int, shares: Shares = SHARES) -> Split:
    """Split the interactions of every user, in order of time, by shares.

    Every interaction of a part is a target, and the history all earlier ones. Of n interactions, validation and
    test have their shares of n, rounded down, but one at least, first test, then validation, as long as training
    keeps one: with the default shares, a user's only interaction is in training, the second of two in test, and
    three are one each. The rest is training. RecBole divides in this way.

    Raises:
        DataError: No user has enough interactions for a validation target.
    """
    lengths, ends = sequences.lengths, sequences.offsets[1:]
    # The small number makes up for shares without an exact form, such as 0.29 of 100.
    validated, tested = (np.floor(share * lengths + 1e-9).astype(np.int64) for share in shares[1:])
    tested += (tested == 0) & (lengths - validated > 1)
    validated += (validated == 0) & (lengths - tested > 1)
    test_starts = ends - tested
    train_ends = test_starts - validated

    def queries(subset: Subset, starts: Index, ends: Index) -> Queries:
        users, positions = positions_of(starts, ends)
        _check_targets(len(users), subset, "ratio", shares, "a user with more interactions")
        return _queries(sequences, users, positions)

    validation, test = queries("validation", train_ends, test_starts), queries("test", test_starts, ends)
    return Split("ratio", num_items, sequences, train_ends, validation, test, _named(shares))


def users(sequences: Sequences, num_items: int, held_out: Mapping[Subset, Index], settings: str = "") -> Split:
    """Hold users out of training entirely, and train on all interactions of the others.

    The target of a user who is held out is the last interaction, and the history all earlier ones. Users with a
    single interaction have no query.

    Args:
        sequences: All interactions.
        num_items: Number of items in the catalogue.
        held_out: User indices by subset.
        settings: See ``Split``.

    Raises:
        DataError: No user of a subset has two interactions, or all are held out.
    """
    train_ends, found = sequences.offsets[1:].copy(), dict[Subset, Queries]()
    for subset, members in held_out.items():
        train_ends[members] = sequences.offsets[members]
        queried = members[sequences.lengths[members] >= 2]
        if not len(queried):
            got = f"no {subset} user of the split users has 2 interactions or more"
            raise DataError(got, "one or more", "hold out other users, or use the leave-one-out split")
        found[subset] = _queries(sequences, queried, sequences.offsets[queried + 1] - 1)
    if (train_ends == sequences.offsets[:-1]).all():
        raise DataError("the split users holds out every user", "users to train on", "hold out fewer")
    return Split("users", num_items, sequences, train_ends, found["validation"], found["test"], settings)


def draw_users(sequences: Sequences, shares: Shares = SHARES, seed: int = 0) -> dict[Subset, Index]:
    """Draw validation and test users at random among those with two interactions or more, for ``users``.

    Raises:
        DataError: There are too few for one user of each subset and one to train on.
    """
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(sequences.lengths >= 2))
    validated, tested = (max(1, round(share * len(drawn))) for share in shares[1:])
    if validated + tested >= len(drawn):
        got = f"{len(drawn):,} users with 2 interactions or more, under the split users {_named(shares)}".rstrip()
        cure = "hold out smaller shares, or use the leave-one-out split"
        raise DataError(got, f"more than the {validated + tested:,} of validation and test", cure)
    return {"validation": np.sort(drawn[:validated]), "test": np.sort(drawn[validated : validated + tested])}


def _check_targets(count: int, subset: Subset, name: SplitName, shares: Shares, expected: str) -> None:
    if not count:
        got = f"the {subset} part under the split {name} {_named(shares)}".rstrip() + " has no target"
        cure = "choose other shares (evaluation.shares), or use the leave-one-out split"
        raise DataError(got, expected, cure)


def _named(shares: Shares) -> str:
    """Shares in percent; empty for the defaults."""
    return "" if tuple(shares) == SHARES else "/".join(f"{100 * share:.10g}" for share in shares)


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
    sequences: Sequences,
    num_items: int,
    name: SplitName,
    shares: Shares = SHARES,
    seed: int = 0,
    queries: Mapping[Subset, Queries] | None = None,
    held_out: Mapping[Subset, Index] | None = None,
) -> Split:
    """Apply the split rule of that name.

    Args:
        sequences: All interactions.
        num_items: Number of items in the catalogue.
        name: Name of the rule.
        shares: Shares of training, validation and test, for ``temporal``, ``ratio`` and ``users``.
        seed: Seed of the draw of ``users``.
        queries: Queries by subset, for ``given``.
        held_out: Users by subset, for ``users``; by default they are drawn.

    Raises:
        DataError: The data does not allow this split.
    """
    match name:
        case "given":
            return given(sequences, num_items, queries or {})
        case "leave-one-out":
            return leave_one_out(sequences, num_items)
        case "temporal":
            return temporal(sequences, num_items, shares)
        case "ratio":
            return ratio(sequences, num_items, shares)
    if held_out is not None:
        return users(sequences, num_items, held_out, "(given)")
    settings = f"{_named(shares)} {f'(seed {seed})' if seed else ''}".strip()
    return users(sequences, num_items, draw_users(sequences, shares, seed), settings)
