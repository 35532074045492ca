"""The loss over distinct items against the slot-wise definition, and the batches that feed it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iisan.config import LossConfig
from iisan.data.sequences import Sequences, item_counts
from iisan.data.splits import leave_one_out, temporal
from iisan.errors import DataError
from iisan.losses import candidate_cross_entropy
from iisan.names import PAD
from iisan.train.batches import Batches, training_windows
from iisan.train.processes import Processes


def sequences_of(histories):
    lengths = [len(history) for history in histories]
    return Sequences(
        np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([*histories]).astype(np.int32), None
    )


def random_split(rng, users=9, num_items=7, low=3, high=9):
    histories = [rng.integers(num_items, size=rng.integers(low, high)) for _ in range(users)]
    return leave_one_out(sequences_of(histories), num_items), histories


def loss_of(batch, embeddings, queries, reduction):
    inputs, targets = batch.slots[:, :-1], batch.slots[:, 1:]
    window, position = (inputs != PAD).nonzero(as_tuple=True)
    return candidate_cross_entropy(
        queries[window, position],
        targets[window, position],
        embeddings[batch.rows],
        batch.log_q,
        batch.log_multiplicity,
        batch.excluded[window],
        reduction,
    )


def slot_wise_loss(windows, draws, owned, popularity, embeddings, queries, num_items, reduction):
    """The definition, in loops: every slot of the batch is a candidate of its own, draws behind them."""
    slots = [item for window in windows for item in window] + list(draws)
    share = len(draws) / len(slots)
    log_q = {i: np.log((1 - share) * popularity[i] + share / num_items) for i in set(slots)}
    losses = []
    start = 0
    for row, window in enumerate(windows):
        for t in range(len(window) - 1):
            query = queries[row, queries.shape[1] - (len(window) - 1) + t]
            own = start + t + 1
            logits = [query @ embeddings[slots[own]] - log_q[slots[own]]]
            for slot, item in enumerate(slots):
                if slot != own and item not in owned[row]:
                    logits.append(query @ embeddings[item] - log_q[item])
            logits = torch.stack(logits)
            losses.append(torch.logsumexp(logits, 0) - logits[0])
        start += len(window)
    losses = torch.stack(losses)
    return losses.mean() if reduction == "mean" else losses.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("exclude", ["window", "training"])
@pytest.mark.parametrize("negatives", [0, 5])
@pytest.mark.parametrize("pieces", ["last", "all"])
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_loss_over_distinct_items_equals_the_slot_wise_one(reduction, exclude, negatives, pieces, seed):
    rng = np.random.default_rng(seed)
    split, histories = random_split(rng)
    length = 4
    batches = Batches(split, length, 4, LossConfig(exclude=exclude, negatives=negatives), pieces, seed)
    chosen = rng.permutation(len(batches.windows.users))[:4]
    draws = rng.integers(split.num_items, size=negatives)
    batch = batches.collate(chosen, draws)
    torch.manual_seed(seed)
    embeddings = torch.randn(split.num_items, 3, dtype=torch.float64, requires_grad=True)
    queries = torch.randn(len(chosen), length, 3, dtype=torch.float64, requires_grad=True)

    every = [
        (user, list(history[:-2])[max(end - length - 1, 0) : end])
        for user, history in enumerate(histories)
        for end in range(len(history) - 2, 1, -length)[: 1 if pieces == "last" else None]
    ]
    users, windows = zip(*(every[row] for row in chosen), strict=True)
    training = [list(histories[user][:-2]) for user in users]
    owned = windows if exclude == "window" else training
    counts = np.bincount(np.concatenate([window for _, window in every]), minlength=split.num_items)
    naive = slot_wise_loss(
        windows, draws, owned, counts / counts.sum(), embeddings, queries, split.num_items, reduction
    )
    ours = loss_of(batch, embeddings.float(), queries.float(), reduction)
    torch.testing.assert_close(ours.double(), naive, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(naive, (embeddings, queries))
    found = torch.autograd.grad(ours, (embeddings, queries))
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


def test_full_softmax_is_plain_cross_entropy_without_own_items():
    split, _ = random_split(np.random.default_rng(3))
    batches = Batches(split, 4, 4, LossConfig(candidates="all", exclude="window"), "last", 0)
    batch = batches.collate(np.arange(4), np.empty(0, dtype=np.int64))
    torch.manual_seed(0)
    embeddings, queries = torch.randn(split.num_items, 3), torch.randn(4, 4, 3)
    terms = []
    for row in range(4):
        window = [int(i) for i in batch.slots[row] if i != PAD]
        for t, target in enumerate(window[1:]):
            logits = embeddings @ queries[row, 4 - (len(window) - 1) + t]
            kept = [i for i in range(split.num_items) if i == target or i not in window]
            terms.append(torch.logsumexp(logits[kept], 0) - logits[target])
    torch.testing.assert_close(loss_of(batch, embeddings, queries, "mean"), torch.stack(terms).mean())


@pytest.mark.parametrize(("pool", "items"), [("trained", [0, 1, 2, 4]), ("catalogue", [0, 1, 2, 3, 4, 5])])
def test_the_pool_decides_which_items_can_be_negatives(pool, items):
    """Nobody interacts with items 3 and 5 in the training subset."""
    split = leave_one_out(sequences_of([[0, 1, 2, 3, 3], [4, 1, 0, 1]]), 6)
    full = Batches(split, 4, 2, LossConfig(candidates="all", pool=pool), "last", 0)
    (batch,) = full.epoch(1)
    assert batch.rows.tolist() == items
    drawn = Batches(split, 4, 2, LossConfig(negatives=200, pool=pool), "last", 0)
    (batch,) = drawn.epoch(1)
    assert batch.rows.tolist() == items
    assert batch.log_q.exp().sum().item() == pytest.approx(1)


def test_popularity_and_pool_are_those_of_the_windows():
    split = leave_one_out(sequences_of([[0, 1, 2, 3, 4, 9, 9], [5, 1, 4, 9, 9], [6, 9, 9]]), 10)
    loss = LossConfig(negatives=1, pool="trained")
    last = Batches(split, 2, 2, loss, "last", 0)  # 2 3 4 | 5 1 4
    np.testing.assert_allclose(last.popularity * 6, [0, 1, 1, 1, 2, 1, 0, 0, 0, 0])
    assert last.pool.tolist() == [1, 2, 3, 4, 5]
    every = Batches(split, 2, 2, loss, "all", 0)  # 2 3 4 | 0 1 2 | 5 1 4, where 2 is a slot of two windows
    np.testing.assert_allclose(every.popularity * 9, [1, 2, 2, 1, 2, 1, 0, 0, 0, 0])
    assert every.pool.tolist() == [0, 1, 2, 3, 4, 5]
    slots = np.concatenate([batch.rows[batch.slots[batch.slots != PAD]] for batch in every.epoch(1)])
    np.testing.assert_allclose(np.bincount(slots, minlength=10) / 9, every.popularity)


def test_windows_of_the_published_data_hold_every_training_interaction(scientific):
    """Histories are cut there, so that popularity is that of all training interactions, whatever the windows."""
    for pieces in ("last", "all"):
        batches = Batches(scientific.split, 10, 64, LossConfig(), pieces, 0)
        np.testing.assert_array_equal(batches.popularity, scientific.split.train_counts() / 57_559)


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(negatives=300), LossConfig(candidates="all")])
def test_long_histories_are_trained_on_whole_and_are_nobodys_own_negatives(loss):
    """150 interactions a user: every training item but the first is a target once, and none is a negative."""
    rng = np.random.default_rng(1)
    split = leave_one_out(sequences_of([rng.permutation(400)[:150] for _ in range(12)]), 400)
    batches = Batches(split, 10, 16, loss, "all", 0)
    training = [
        split.sequences.items[start:end] for start, end in zip(split.train_starts, split.train_ends, strict=True)
    ]
    targets = [[] for _ in training]
    for batch in batches.epoch(1):
        for row, slots in enumerate(batch.slots):
            window = batch.rows[slots[slots != PAD]].tolist()
            (user,) = {user for user, items in enumerate(training) if set(window) <= set(items)}
            targets[user] += window[1:]
            negatives = batch.rows[~batch.excluded[row]].tolist()
            assert negatives
            assert not set(negatives) & set(training[user])
    assert [sorted(found) for found in targets] == [sorted(items[1:]) for items in training]


def test_counts_are_the_same_in_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    items, starts = rng.integers(9, size=80), np.sort(rng.integers(80, size=20))
    ends = np.minimum(starts + rng.integers(0, 9, size=20), 80)
    expected = np.bincount(np.concatenate([items[a:b] for a, b in zip(starts, ends, strict=True)]), minlength=11)
    for block in (1, 7, 1000):
        monkeypatch.setattr("iisan.data.sequences._BLOCK", block)
        assert item_counts(items, starts, ends, 11).tolist() == expected.tolist()


def test_windows_by_hand():
    split = leave_one_out(sequences_of([np.arange(9), np.arange(3), np.arange(4), np.arange(2)]), 9)
    # Training parts are 7, 1, 2 and 2 items long; one item alone predicts nothing.
    last = training_windows(split, 3, "last")
    assert list(zip(last.users, last.starts, last.ends, strict=True)) == [(0, 3, 7), (2, 12, 14), (3, 16, 18)]
    every = training_windows(split, 3, "all")
    assert list(zip(every.users, every.starts, every.ends, strict=True)) == [
        (0, 3, 7),
        (0, 0, 4),
        (2, 12, 14),
        (3, 16, 18),
    ]


@given(seed=st.integers(0, 1000), length=st.integers(1, 5))
@settings(max_examples=30)
def test_all_windows_make_every_training_item_but_the_first_a_target_once(seed, length):
    split, _ = random_split(np.random.default_rng(seed), low=1, high=14)
    windows = training_windows(split, length, "all")
    targets = [
        position
        for start, end in zip(windows.starts, windows.ends, strict=True)
        for position in range(start + 1, end)
    ]
    expected = [
        position
        for start, end in zip(split.train_starts, split.train_ends, strict=True)
        for position in range(start + 1, end)
    ]
    assert sorted(targets) == expected


def test_temporal_training_part_ends_at_the_moment():
    sequences = Sequences(
        np.array([0, 4, 6]), np.array([0, 1, 2, 3, 1, 2], np.int32), np.array([1, 2, 30, 40, 3, 50])
    )
    split = temporal(sequences, 4, shares=(0.4, 0.3, 0.3))
    windows = training_windows(split, 10, "last")
    assert list(windows.users) == [0]
    assert list(split.sequences.items[windows.starts[0] : windows.ends[0]]) == [0, 1]


def test_an_epoch_depends_on_seed_and_number_alone():
    split, _ = random_split(np.random.default_rng(5))
    config = LossConfig(negatives=3)
    first = list(Batches(split, 4, 2, config, "last", 7).epoch(3))
    again = list(Batches(split, 4, 2, config, "last", 7).epoch(3))
    other = list(Batches(split, 4, 2, config, "last", 7).epoch(4))
    assert len(first) == len(Batches(split, 4, 2, config, "last", 7))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.rows, two.rows)
        assert torch.equal(one.slots, two.slots)
    assert any(not torch.equal(one.slots, two.slots) for one, two in zip(first, other, strict=True))


def test_parts_of_a_batch_have_their_windows_and_the_positions_in_them():
    split = leave_one_out(sequences_of([np.arange(6), np.arange(4), np.arange(9), np.arange(5)]), 9)
    whole = Batches(split, 3, 4, LossConfig(), "last", 0).collate(np.arange(4), np.array([8]))
    assert whole.positions.tolist() == [0, 1, 2, 5, 6, 7, 8, 10, 11]  # inputs: 3, 1, 3 and 2 items
    assert whole.part(Processes()) is whole
    parts = [whole.part(Processes(rank, 3)) for rank in range(3)]
    assert [len(part.slots) for part in parts] == [2, 1, 1]
    assert [part.positions.tolist() for part in parts] == [[0, 1, 2, 5], [0, 1, 2], [1, 2]]
    for name in ("slots", "excluded"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for part in parts:
        assert part.predicted == whole.predicted == 9
        assert torch.equal(part.rows, whole.rows)


def test_rows_are_distinct_and_cover_all_slots():
    split, _ = random_split(np.random.default_rng(6))
    for batch in Batches(split, 4, 3, LossConfig(), "last", 0).epoch(1):
        assert len(batch.rows.unique()) == len(batch.rows)
        used = batch.slots[batch.slots != PAD]
        assert set(used.tolist()) == set(range(len(batch.rows)))
        multiplicity = torch.bincount(used, minlength=len(batch.rows))
        torch.testing.assert_close(batch.log_multiplicity.exp(), multiplicity.float())


def test_nothing_to_learn_from_is_one_sentence():
    split = leave_one_out(sequences_of([np.arange(3), np.arange(3)]), 3)
    with pytest.raises(DataError, match="no user has 2 interactions in the training part"):
        Batches(split, 3, 2, LossConfig(), "last", 0)
