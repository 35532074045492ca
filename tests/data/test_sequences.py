import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from iisan.data.sequences import Sequences, padded, ragged
from iisan.names import PAD

histories = st.lists(st.lists(st.integers(0, 50), max_size=6), min_size=1, max_size=8)


def sequences_of(lists, timestamps=None):
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    items = np.array([item for one in lists for item in one], dtype=np.int32)
    return Sequences(offsets, items, timestamps)


@given(histories.filter(any), st.integers(1, 8))
def test_padded_is_the_left_padded_tail_of_every_history(lists, length):
    sequences = sequences_of(lists)
    expected = [([PAD] * length + one)[-length:] for one in lists]
    found = padded(sequences.items, sequences.offsets[:-1], sequences.offsets[1:], length)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@given(histories)
def test_ragged_lists_every_pair(lists):
    sequences = sequences_of(lists)
    rows, items = ragged(sequences.items, sequences.offsets[:-1], sequences.offsets[1:])
    pairs = [(row, item) for row, one in enumerate(lists) for item in one]
    assert list(zip(rows.tolist(), items.tolist(), strict=True)) == pairs


def test_ragged_of_overlapping_ranges_in_any_order():
    items = np.array([7, 8, 9])
    rows, listed = ragged(items, np.array([1, 0, 2]), np.array([3, 2, 2]))
    assert rows.tolist() == [0, 0, 1, 1]
    assert listed.tolist() == [8, 9, 7, 8]


def test_round_trip_maps_the_files_and_forgets_old_timestamps(tmp_path):
    lists = [[3, 1], [], [2]]
    sequences_of(lists, np.array([5, 6, 7])).save(tmp_path)
    assert Sequences.load(tmp_path).timestamps.tolist() == [5, 6, 7]
    sequences_of(lists).save(tmp_path)
    loaded = Sequences.load(tmp_path)
    assert isinstance(loaded.items, np.memmap)
    assert loaded.timestamps is None
    assert loaded.items.tolist() == [3, 1, 2]
    assert loaded.lengths.tolist() == [2, 0, 1]
    assert loaded.num_users == 3
