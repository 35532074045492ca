"""Sizes of a dataset that determine the costs of training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.encoders.contents import Contents
from iisan.names import IMAGE, TEXT
from iisan.train.batches import Batches

_SAMPLED_BATCHES = 20


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
    def of_dataset(cls, dataset: Dataset, config: Config) -> "DataShape":
        """Measure on the first batches of training, at most 20."""
        training = config.training
        parts = dataset.split(config.evaluation)
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
