import numpy as np
import polars as pl
import pytest

from iisan.data.dataset import Dataset
from iisan.efficiency.workload import DataShape
from iisan.errors import DataError
from iisan.recipes import recipe


def test_published_number_of_distinct_items(scientific):
    """276 in a batch of 64 users, 1,806 in one of 512."""
    users = scientific.user_ids.gather(np.repeat(np.arange(12076), scientific.sequences.lengths))
    items = scientific.item_ids.gather(scientific.sequences.items)
    log = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": range(len(items))})
    titles = pl.DataFrame({"item_id": scientific.item_ids, "text": scientific.titles, "image": None})
    dataset = Dataset.from_frames(titles, log)
    for batch, distinct in ((64, 276), (512, 1806)):
        config = recipe("reference").override([f"training.batch_size={batch}"])
        data = DataShape.of_dataset(dataset, config)
        assert (data.windows, data.distinct) == (12076, pytest.approx(distinct, rel=0.03))


def test_shape_of_a_dataset(prepared):
    dataset = Dataset.load(prepared.dataset)
    config = recipe("default").override(["loss.candidates=all", "loss.negatives=0", "training.batch_size=7"])
    data = DataShape.of_dataset(dataset, config)
    trained = len({item for user in range(50) for item in train_part(dataset, user)})
    targets = [max(len(train_part(dataset, user)) - 1, 0) for user in range(50)]
    assert (data.windows, data.items, data.distinct) == (sum(-(-count // 10) for count in targets), 30, trained)
    assert data.present == {"text": 28 / 30, "image": 28 / 30}
    assert data.positions == pytest.approx(sum(targets) / data.windows)


def test_a_dataset_without_a_training_window_has_no_shape(prepared):
    whole = Dataset.load(prepared.dataset)
    log = whole.interactions().group_by("user_id", maintain_order=True).head(3)
    with pytest.raises(DataError, match="no user has 2 interactions"):
        DataShape.of_dataset(Dataset.from_frames(whole.items, log), recipe("default"))


def train_part(dataset, user):
    start, end = dataset.sequences.offsets[user : user + 2]
    return dataset.sequences.items[start : max(end - 2, start)].tolist() if end - start > 2 else []
