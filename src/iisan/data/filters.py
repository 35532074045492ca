"""Which interactions stay. Pure functions on index arrays; nothing here loops over users or interactions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iisan.data.options import Filters
from iisan.data.sequences import Index, Sequences

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Events:
    """Interactions, ordered by user, then by time.

    Attributes:
        users: ``[interactions]`` user number.
        items: ``[interactions]`` item number.
        timestamps: ``[interactions]`` int64, or None.
    """

    users: npt.NDArray[np.integer]
    items: npt.NDArray[np.integer]
    timestamps: Index | None

    def where(self, kept: Mask) -> "Events":
        """The interactions of a mask."""
        if kept.all():
            return self
        timestamps = None if self.timestamps is None else self.timestamps[kept]
        return Events(self.users[kept], self.items[kept], timestamps)

    def counts(self) -> dict[str, int]:
        """Distinct users and items, and interactions."""
        return {
            "users": int(np.count_nonzero(np.bincount(self.users))),
            "items": int(np.count_nonzero(np.bincount(self.items))),
            "interactions": len(self.users),
        }


def k_core(events: Events, k: int) -> Events:
    """Drop users and items with fewer than ``k`` interactions until none is left to drop."""
    while True:
        enough_of_user = np.bincount(events.users) >= k
        enough_of_item = np.bincount(events.items) >= k
        kept: Mask = enough_of_user[events.users] & enough_of_item[events.items]
        if kept.all():
            return events
        events = events.where(kept)


def min_length(events: Events, least: int) -> Events:
    """Drop users with fewer than ``least`` interactions."""
    return events.where((np.bincount(events.users) >= least)[events.users])


def keep_last(events: Events, most: int) -> Events:
    """Keep the latest ``most`` interactions of every user."""
    ends = np.cumsum(np.bincount(events.users))
    return events.where(ends[events.users] - np.arange(len(events.users)) <= most)


def apply_filters(events: Events, filters: Filters) -> tuple[Events, list[dict[str, str | int]]]:
    """Apply the filters that are on, in their order.

    Returns:
        What stays, and per step the users, items with interactions and interactions after it.
    """
    steps: list[dict[str, str | int]] = [{"step": "read", **events.counts()}]
    for name, least, rule in (("k_core", 2, k_core), ("min_length", 2, min_length), ("keep_last", 1, keep_last)):
        value = getattr(filters, name)
        if value >= least and len(events.users):
            events = rule(events, value)
            steps.append({"step": f"{name}={value}", **events.counts()})
    return events, steps


def renumber(numbers: npt.NDArray[np.integer], size: int) -> tuple[Index, npt.NDArray[np.integer]]:
    """Number the values that occur from 0 on, in their order.

    Args:
        numbers: values below ``size``.
        size: how many values there may be.

    Returns:
        The old number of every new one, and ``numbers`` in new ones.
    """
    occurs = np.bincount(numbers, minlength=size) > 0
    new = np.cumsum(occurs, dtype=numbers.dtype) - 1
    return np.flatnonzero(occurs), new[numbers]


def to_sequences(events: Events, num_users: int) -> Sequences:
    """The interactions of users ``0 … num_users − 1`` as index arrays."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(events.users, minlength=num_users))])
    return Sequences(offsets.astype(np.int64), events.items.astype(np.int32), events.timestamps)
