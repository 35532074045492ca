"""Sizes of a dataset that determine the costs of training."""

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

    Windows rarely contain an item twice, so a real batch has slightly more than these independent draws.

    Args:
        counts: Training interactions per item, [N]; p is their share.
        draws: Items in the windows of a batch.
        negatives: Items drawn uniformly in addition.
        pool: Number of items that these are drawn from: N, or the items with an interaction.
    """
    values = np.asarray(counts, dtype=np.float64)
    pooled = (values > 0) if pool < len(values) else np.ones(len(values))
    unseen = (1 - values / values.sum()) ** draws * (1 - pooled / pool) ** negatives
    return float((1 - unseen).sum())


@dataclass(frozen=True)
class DataShape:
    """Sizes of a dataset under a configuration.

    Attributes:
        windows: Training windows per epoch.
        items: N.
        distinct: U, mean number of distinct items per batch.
        positions: Mean number of predicted positions per window.
        present: Modality -> share of the items that have it; defaults to 1.
        largest: U of the largest sampled batch; 0 if unknown.
    """

    windows: int
    items: int
    distinct: float
    positions: float
    present: Mapping[str, float] = field(default_factory=dict)
    largest: int = 0

    @classmethod
    def of_counts(cls, counts: npt.ArrayLike, windows: int, positions: float, config: Config) -> "DataShape":
        """Compute from the training interactions per item, [N], with U by `expected_distinct`."""
        values, loss = np.asarray(counts), config.loss
        pool = int((values > 0).sum()) if loss.pool == "trained" else len(values)
        draws = min(config.training.batch_size, windows) * (positions + 1)
        by_chance = expected_distinct(values, draws, loss.negatives, pool)
        return cls(windows, len(values), pool if loss.candidates == "all" else by_chance, positions)

    @classmethod
    def of_dataset(cls, dataset: Dataset, config: Config) -> "DataShape":
        """Measure on the first batches of training, at most 20."""
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
