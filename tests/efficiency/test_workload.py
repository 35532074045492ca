import pytest

from iisan.data.dataset import Dataset
from iisan.efficiency.workload import DataShape, expected_distinct
from iisan.errors import DataError
from iisan.recipes import recipe


def test_expected_distinct_by_hand(scientific):
    assert expected_distinct([5, 5], 2) == pytest.approx(1.5)
    # Of three items two are trained: either is missed by one draw of 1/2 and one negative of 1/2.
    assert expected_distinct([5, 5, 0], 1, negatives=1, pool=2) == pytest.approx(1.5)
    assert expected_distinct([4, 0], 3, negatives=1, pool=2) == pytest.approx(1.5)
    # Published: 57,559 slots of 12,076 users, 276 distinct items in a batch of 64, 1,806 in one of 512.
    counts = scientific.split.train_counts()
    assert expected_distinct(counts, 64 * 57559 / 12076) == pytest.approx(276, rel=0.03)
    assert expected_distinct(counts, 512 * 57559 / 12076) == pytest.approx(1806, rel=0.03)


def test_shape_of_a_dataset(prepared):
    dataset = Dataset.load(prepared.dataset)
    config = recipe("default").override(["loss.candidates=all", "loss.negatives=0", "training.batch_size=7"])
    data = DataShape.of_dataset(dataset, config)
    trained = len({item for user in range(50) for item in train_part(dataset, user)})
    targets = [max(len(train_part(dataset, user)) - 1, 0) for user in range(50)]
    assert (data.windows, data.items, data.distinct) == (sum(-(-count // 10) for count in targets), 30, trained)
    assert data.present == {"text": 28 / 30, "image": 28 / 30}
    assert data.positions == pytest.approx(sum(targets) / data.windows)
    counts = DataShape.of_counts([3, 0, 1], 2, 1.0, config)
    assert (counts.items, counts.distinct) == (3, 2)


def test_a_dataset_without_a_training_window_has_no_shape(prepared):
    whole = Dataset.load(prepared.dataset)
    log = whole.interactions().group_by("user_id", maintain_order=True).head(3)
    with pytest.raises(DataError, match="no user has 2 interactions"):
        DataShape.of_dataset(Dataset.from_frames(whole.items, log), recipe("default"))


def train_part(dataset, user):
    start, end = dataset.sequences.offsets[user : user + 2]
    return dataset.sequences.items[start : max(end - 2, start)].tolist() if end - start > 2 else []
