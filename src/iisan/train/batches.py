"""Batches of training windows as index arrays: distinct items, slots, and the inputs of the loss."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iisan.config import LossConfig
from iisan.data.sequences import Index, item_counts, padded, ragged
from iisan.data.splits import Split
from iisan.errors import DataError
from iisan.names import PAD
from iisan.nn.hidden import sent
from iisan.train.processes import Processes


@dataclass(frozen=True)
class Batch:
    """Input of one forward pass.

    Attributes:
        rows: Distinct items ``[U]``, as catalogue indices.
        slots: Training windows ``[B, S + 1]`` as positions in ``rows``, left-padded with ``PAD``.
        positions: Positions ``[P]`` of the flattened inputs ``[B · S]`` that hold an item, whose successor is
            predicted. Found on the CPU, as the GPU would have to be waited for.
        predicted: P of the whole batch, also in a part of it.
        log_q: Log-probability ``[U]``, fp32, that an item becomes a candidate.
        log_multiplicity: Log of the number of slots and draws that hold an item, ``[U]``, fp32.
        excluded: Whether an item is not a negative for a window, ``[B, U]``.
    """

    rows: Tensor
    slots: Tensor
    positions: Tensor
    predicted: int
    log_q: Tensor
    log_multiplicity: Tensor
    excluded: Tensor

    def part(self, processes: Processes) -> "Batch":
        """Return this process's share of the windows, with all candidates."""
        if processes.size == 1:
            return self
        slots = processes.share(self.slots)
        return replace(self, slots=slots, positions=_positions(slots), excluded=processes.share(self.excluded))

    def to(self, device: torch.device) -> "Batch":
        """Return a copy on another device."""
        moved = {name: sent(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **cast(dict[str, Any], moved))


def _positions(slots: Tensor) -> Tensor:
    return (slots[:, :-1] != PAD).flatten().nonzero().squeeze(1)


@dataclass(frozen=True)
class Windows:
    """Training windows, each of at most S + 1 items.

    Attributes:
        users: User indices ``[W]``.
        starts: First positions in ``sequences.items``, ``[W]``.
        ends: Positions after the last, ``[W]``.
    """

    users: Index
    starts: Index
    ends: Index


def training_windows(split: Split, length: int, pieces: str) -> Windows:
    """Cut every user's training part into windows of up to S = ``length`` inputs and S targets, at least one each.

    ``pieces`` is ``last``, the last window only, or ``all``, in which every item but the first is a target once.
    """
    starts, ends = split.train_starts, split.train_ends
    targets = np.maximum(ends - starts - 1, 0)
    counts = np.minimum(targets, 1) if pieces == "last" else -(-targets // length)
    users = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    window_ends = ends[users] - nth * length
    return Windows(users, np.maximum(window_ends - length - 1, starts[users]), window_ends)


@dataclass(eq=False)
class Batches:
    """Draws batches; an epoch depends on ``(seed, epoch)`` only, so a resumed run draws the same.

    Popularity is counted over the slots of the windows, which candidates come from: an item that ends one window
    and begins the next counts twice, an item in no window not at all.

    Args:
        split: Split whose training part is used.
        length: Maximum number of inputs of a window, S.
        batch: Number of windows in a batch, B.
        loss: Candidates, negatives and exclusions.
        pieces: ``last`` or ``all`` windows, see ``training_windows``.
        seed: Seed of order and negatives.

    Raises:
        DataError: There is no position to predict.
    """

    split: Split
    length: int
    batch: int
    loss: LossConfig
    pieces: str
    seed: int

    def __post_init__(self) -> None:
        split, loss = self.split, self.loss
        self.windows = training_windows(split, self.length, self.pieces)
        if not len(self.windows.users):
            got = f"no user has 2 interactions in the training part of the split {split}"
            expected = "at least one such user, to learn the next item from"
            raise DataError(got, expected, "prepare the dataset with more interactions per user")
        counts = item_counts(split.sequences.items, self.windows.starts, self.windows.ends, split.num_items)
        self.popularity = counts / counts.sum()
        #: Position of an item in the rows of this batch, or of an earlier one; allocated once.
        self._places = np.zeros(split.num_items, np.int64)
        self.pool = np.flatnonzero(counts) if loss.pool == "trained" else np.arange(split.num_items)
        #: Items that are never a candidate, ``[n]``.
        drawn = self.pool if loss.negatives or loss.candidates == "all" else ()
        self.unreachable = np.setdiff1d(np.flatnonzero(counts == 0), drawn)

    def __len__(self) -> int:
        return -(-len(self.windows.users) // self.batch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield all windows once, in random order; the last batch may be smaller."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.windows.users))
        for first in range(0, len(order), self.batch):
            draws = self.pool[rng.integers(len(self.pool), size=self.loss.negatives)]
            yield self.collate(order[first : first + self.batch], draws)

    def collate(self, chosen: Index, draws: Index) -> Batch:
        """Build the batch of the ``chosen`` windows, with negatives ``draws``."""
        windows = self.windows
        items = padded(self.split.sequences.items, windows.starts[chosen], windows.ends[chosen], self.length + 1)
        real = items != PAD
        if self.loss.candidates == "all":
            rows = self.pool
            log_q = log_multiplicity = np.zeros(len(rows))
        else:
            occurrences = np.concatenate([items[real], draws])
            rows, multiplicity = np.unique(occurrences, return_counts=True)
            log_multiplicity = np.log(multiplicity)
            uniform_share = len(draws) / len(occurrences)
            # Every item of a batch is in a window or was drawn, so the mixture is positive.
            log_q = np.log((1 - uniform_share) * self.popularity[rows] + uniform_share / len(self.pool))
        slots = np.where(real, np.searchsorted(rows, items), PAD)
        positions = _positions(torch.from_numpy(slots))
        return Batch(
            torch.from_numpy(rows),
            torch.from_numpy(slots),
            positions,
            len(positions),
            torch.from_numpy(log_q).float(),
            torch.from_numpy(log_multiplicity).float(),
            torch.from_numpy(self._excluded(chosen, rows, slots)),
        )

    def _excluded(self, chosen: Index, rows: Index, slots: Index) -> npt.NDArray[np.bool_]:
        excluded = np.zeros((len(chosen), len(rows)), dtype=bool)
        if self.loss.exclude == "window":
            window, position = np.nonzero(slots != PAD)
            excluded[window, slots[window, position]] = True
            return excluded
        users = self.windows.users[chosen]
        window, item = ragged(
            self.split.sequences.items, self.split.train_starts[users], self.split.train_ends[users]
        )
        self._places[rows] = np.arange(len(rows))
        position = np.minimum(self._places[item], len(rows) - 1)
        present = rows[position] == item
        excluded[window[present], position[present]] = True
        return excluded
