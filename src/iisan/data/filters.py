"""Filters of interactions: pure, vectorised functions on index arrays."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from iisan.data.options import Filters, Repeats
from iisan.data.sequences import Index, Sequences

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Events:
    """Interactions, ordered by user, then by time.

    Attributes:
        users: User numbers ``[interactions]``.
        items: Item numbers ``[interactions]``.
        timestamps: Timestamps ``[interactions]``, int64, or None.
    """

    users: npt.NDArray[np.integer]
    items: npt.NDArray[np.integer]
    timestamps: Index | None

    def where(self, mask: Mask) -> "Events":
        """Select the interactions of a mask."""
        if mask.all():
            return self
        timestamps = None if self.timestamps is None else self.timestamps[mask]
        return Events(self.users[mask], self.items[mask], timestamps)

    def counts(self) -> dict[str, int]:
        """Count distinct users, distinct items, and interactions."""
        return {
            "users": int(np.count_nonzero(np.bincount(self.users))),
            "items": int(np.count_nonzero(np.bincount(self.items))),
            "interactions": len(self.users),
        }


def drop_repeats(events: Events, repeats: Repeats) -> Events:
    """Drop a user's interactions with the same item as the previous one, or as any earlier one; or keep all."""
    if repeats == "keep":
        return events
    users, items = events.users, events.items
    if repeats == "drop-consecutive":
        return events.where(np.append(True, (users[1:] != users[:-1]) | (items[1:] != items[:-1])))
    # Sorted by user and item, and within these by time, as the sort is stable.
    order = np.lexsort((items, users))
    first = np.empty(len(order), bool)
    first[order] = np.append(True, (np.diff(users[order]) != 0) | (np.diff(items[order]) != 0))
    return events.where(first)


def k_core(events: Events, k: int, repeats: Repeats = "keep") -> Events:
    """Iteratively drop users and items with fewer than ``k`` interactions (the k-core).

    ``repeats`` are dropped again after each step, as an item that is dropped may leave two interactions with
    another one side by side.
    """
    while True:
        frequent_users = np.bincount(events.users) >= k
        frequent_items = np.bincount(events.items) >= k
        mask: Mask = frequent_users[events.users] & frequent_items[events.items]
        if mask.all():
            return events
        events = events.where(mask)
        if len(events.users):
            events = drop_repeats(events, repeats)


def min_length(events: Events, length: int) -> Events:
    """Drop users with fewer than ``length`` interactions."""
    return events.where((np.bincount(events.users) >= length)[events.users])


def keep_last(events: Events, count: int) -> Events:
    """Keep the last ``count`` interactions of every user."""
    ends = np.cumsum(np.bincount(events.users))
    return events.where(ends[events.users] - np.arange(len(events.users)) <= count)


def sample_users(events: Events, count: int, seed: int) -> Events:
    """Keep ``count`` users, drawn at random, or all where there are no more."""
    users = np.flatnonzero(np.bincount(events.users))
    if count >= len(users):
        return events
    drawn = np.zeros(users[-1] + 1, bool)
    drawn[np.random.default_rng(seed).choice(users, count, replace=False)] = True
    return events.where(drawn[events.users])


def apply_filters(
    events: Events, filters: Filters, complete: Mask | None = None
) -> tuple[Events, list[dict[str, str | int]]]:
    """Apply the enabled filters in the order of ``PrepareOptions``.

    Args:
        events: All interactions.
        filters: Filters.
        complete: The items that count, ``[items]``; all without it.

    Returns:
        The remaining interactions, and the numbers of users, items and interactions after each step.
    """
    steps: list[dict[str, str | int]] = [{"step": "read", **events.counts()}]
    if complete is not None:
        events = events.where(complete[events.items])
        steps.append({"step": "complete items", **events.counts()})
    if filters.repeats != "keep" and len(events.users):
        events = drop_repeats(events, filters.repeats)
        steps.append({"step": f"repeats={filters.repeats}", **events.counts()})
    core, draw = partial(k_core, repeats=filters.repeats), partial(sample_users, seed=filters.seed)
    for name, lowest, apply in (
        ("k_core", 2, core),
        ("min_length", 2, min_length),
        ("sample_users", 1, draw),
        ("keep_last", 1, keep_last),
    ):
        value = getattr(filters, name)
        if value >= lowest and len(events.users):
            events = apply(events, value)
            steps.append({"step": f"{name}={value}", **events.counts()})
    return events, steps


def renumber(numbers: npt.NDArray[np.integer], size: int) -> tuple[Index, npt.NDArray[np.integer]]:
    """Renumber the occurring values consecutively from 0, in ascending order.

    Args:
        numbers: Values below ``size``.
        size: Number of possible values.

    Returns:
        The old value of every new one, and ``numbers`` renumbered.
    """
    occurs = np.bincount(numbers, minlength=size) > 0
    new = np.cumsum(occurs, dtype=numbers.dtype) - 1
    return np.flatnonzero(occurs), new[numbers]


def to_sequences(events: Events, num_users: int) -> Sequences:
    """Convert the interactions of users ``0 … num_users − 1`` to flat index arrays."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(events.users, minlength=num_users))])
    return Sequences(offsets.astype(np.int64), events.items.astype(np.int32), events.timestamps)
