"""From sequences to batches of index arrays: distinct items, slots, and what the loss must know."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

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
    """One step's input.

    Attributes:
        rows: ``[U]`` distinct items, as catalogue indices.
        slots: ``[B, S + 1]`` training windows as positions in ``rows``, left-padded with ``PAD``.
        positions: ``[P]`` where the inputs, ``[B · S]``, hold an item, whose successor is predicted; so a GPU need
            not be asked.
        predicted: P of the whole batch, of which several processes have a part each.
        log_q: ``[U]`` fp32, log-probability with which an item becomes a candidate.
        log_multiplicity: ``[U]`` fp32, log of how many slots and draws hold the item.
        excluded: ``[B, U]`` true where an item is no negative for a row.
    """

    rows: Tensor
    slots: Tensor
    positions: Tensor
    predicted: int
    log_q: Tensor
    log_multiplicity: Tensor
    excluded: Tensor

    def part(self, processes: Processes) -> "Batch":
        """The same candidates for this process's share of the windows."""
        if processes.size == 1:
            return self
        slots = processes.share(self.slots)
        return replace(self, slots=slots, positions=_positions(slots), excluded=processes.share(self.excluded))

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: sent(value, device) for name, value in tensors.items()}
        return replace(self, **moved)


def _positions(slots: Tensor) -> Tensor:
    return (slots[:, :-1] != PAD).flatten().nonzero().squeeze(1)


@dataclass(frozen=True)
class Windows:
    """Pieces of training sequences, each at most S + 1 items long.

    Attributes:
        users: ``[W]`` user index.
        starts: ``[W]`` first position in ``sequences.items``.
        ends: ``[W]`` one past the last position.
    """

    users: Index
    starts: Index
    ends: Index


def training_windows(split: Split, length: int, pieces: str) -> Windows:
    """Cut every user's training part into windows with at least one position to predict.

    Args:
        split: gives the training part.
        length: S; a window holds up to S inputs shifted against S targets.
        pieces: ``last`` takes the last window only; ``all`` walks back by S, so that every item but the
            first is a target once.
    """
    starts, ends = split.train_starts, split.train_ends
    targets = np.maximum(ends - starts - 1, 0)
    counts = np.minimum(targets, 1) if pieces == "last" else -(-targets // length)
    users = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    window_ends = ends[users] - nth * length
    return Windows(users, np.maximum(window_ends - length - 1, starts[users]), window_ends)


class Batches:
    """Draws batches; every epoch is a function of ``(seed, epoch)`` alone, so a resumed run sees the same.

    Popularity is that of the windows' slots, as these are what candidates come from: an item that ends one window
    and begins the next counts twice, and one that lies in no window not at all.

    Args:
        split: what is trained on.
        length: S.
        batch: B.
        loss: candidates, negatives and exclusions.
        pieces: see ``training_windows``.
        seed: of order and negatives.

    Raises:
        DataError: there is nothing to learn from.
    """

    def __init__(self, split: Split, length: int, batch: int, loss: LossConfig, pieces: str, seed: int) -> None:
        self.split = split
        self.length = length
        self.batch = batch
        self.loss = loss
        self.seed = seed
        self.windows = training_windows(split, length, pieces)
        if not len(self.windows.users):
            raise DataError(
                f"no user has 2 interactions in the training part of the split {split.name}",
                "at least one such user, as the next item is what is learnt",
                "prepare the dataset with more interactions per user",
            )
        counts = item_counts(split.sequences.items, self.windows.starts, self.windows.ends, split.num_items)
        self.popularity = counts / counts.sum()
        #: Where an item stands in the rows of this batch, or stood in those of an earlier one.
        self._places = np.zeros(split.num_items, np.int64)
        self.pool = np.flatnonzero(counts) if loss.pool == "trained" else np.arange(split.num_items)

    def __len__(self) -> int:
        return -(-len(self.windows.users) // self.batch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All windows once, in random order; the last batch may be smaller."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.windows.users))
        for first in range(0, len(order), self.batch):
            draws = self.pool[rng.integers(len(self.pool), size=self.loss.negatives)]
            yield self.collate(order[first : first + self.batch], draws)

    def collate(self, chosen: Index, draws: Index) -> Batch:
        """Build the batch of the ``chosen`` windows with the drawn negatives."""
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
            # Every item of a batch stands in a window or was drawn, so the mixture is positive.
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
