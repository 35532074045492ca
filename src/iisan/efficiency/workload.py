"""The sizes of a dataset, under a configuration, that decide what training costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.data.splits import split
from iisan.encoders.contents import Contents
from iisan.names import IMAGE, TEXT
from iisan.train.batches import Batches

_SAMPLED_BATCHES = 20


def expected_distinct(counts: npt.ArrayLike, draws: float, negatives: int = 0, pool: int = 1) -> float:
    """Expected number of distinct items: ``Σ_i 1 − (1 − p_i)^draws · (1 − 1/pool)^negatives``.

    Windows hold an item seldom twice, so a real batch has a few more than these independent draws.

    Args:
        counts: training interactions of every item, [N]; p is their share.
        draws: items in the windows of a batch.
        negatives: drawn uniformly besides.
        pool: how many items these come from: N, or the items with an interaction.
    """
    values = np.asarray(counts, dtype=np.float64)
    pooled = (values > 0) if pool < len(values) else np.ones(len(values))
    unseen = (1 - values / values.sum()) ** draws * (1 - pooled / pool) ** negatives
    return float((1 - unseen).sum())


@dataclass(frozen=True)
class DataShape:
    """The sizes of a dataset, under a configuration, that decide what training costs.

    Attributes:
        windows: training windows (users, where each gives its last one) an epoch.
        items: N.
        distinct: U, items that a batch encodes, mean.
        positions: predicted positions of a window, mean.
        present: share of the items that have a modality; 1 for modalities that are not named.
        largest: the most items that one of the batches looked at encodes; 0 is not known, then U.
    """

    windows: int
    items: int
    distinct: float
    positions: float
    present: Mapping[str, float] = field(default_factory=dict)
    largest: int = 0

    @classmethod
    def of_counts(
        cls,
        counts: npt.ArrayLike,
        windows: int,
        positions: float,
        config: Config,
        present: Mapping[str, float] | None = None,
    ) -> "DataShape":
        """From the training interactions of every item, [N], with U by :func:`expected_distinct`."""
        values, loss = np.asarray(counts), config.loss
        pool = int((values > 0).sum()) if loss.pool == "trained" else len(values)
        draws = min(config.training.batch_size, windows) * (positions + 1)
        by_chance = expected_distinct(values, draws, loss.negatives, pool)
        return cls(windows, len(values), pool if loss.candidates == "all" else by_chance, positions, present or {})

    @classmethod
    def of_dataset(cls, dataset: Dataset, config: Config) -> "DataShape":
        """Measured on the first batches (at most 20) that training would see."""
        training = config.training
        parts = split(dataset.sequences, dataset.num_items, config.evaluation.split)
        batches = Batches(
            parts, config.sequence.max_length, training.batch_size, config.loss, training.windows, training.seed
        )
        sizes = [len(batch.rows) for _, batch in zip(range(_SAMPLED_BATCHES), batches.epoch(1), strict=False)]
        windows = batches.windows
        return cls(
            len(windows.users),
            dataset.num_items,
            float(np.mean(sizes)),
            float(np.mean(windows.ends - windows.starts - 1)),
            {name: float(Contents.of(dataset, name).present.mean()) for name in (TEXT, IMAGE)},
            max(sizes),
        )
