"""Causality, padding and shape of every sequence encoder; SASRec against plain attention."""

import pytest
import torch
from torch import nn

from iisan.config import SequenceConfig
from iisan.model import sequence_encoder

KINDS = ["sasrec", "gru4rec", "nextitnet"]


def encoder(kind):
    torch.manual_seed(0)
    module = sequence_encoder(SequenceConfig(kind=kind, max_length=6), 8).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, 8, generator=generator)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, :4] = False
    mask[1, :1] = False
    return x, mask


@pytest.mark.parametrize("kind", KINDS)
def test_later_items_do_not_reach_earlier_positions(kind):
    module, (x, mask) = encoder(kind), batch()
    changed = x.clone()
    changed[:, -1, 0] += 1
    before, after = module(x, mask), module(changed, mask)
    torch.testing.assert_close(before[:, :-1][mask[:, :-1]], after[:, :-1][mask[:, :-1]])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_reaches_nothing_and_stays_finite(kind):
    module, (x, mask) = encoder(kind), batch()
    changed = torch.where(mask[..., None], x, torch.full_like(x, 9.0))
    torch.testing.assert_close(module(x, mask)[mask], module(changed, mask)[mask])
    assert torch.isfinite(module(x, torch.zeros_like(mask))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_in_the_batch_change_nothing(kind):
    module, (x, mask) = encoder(kind), batch()
    together = module(x, mask)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], module(x[row : row + 1], mask[row : row + 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_items_do_reach_later_positions(kind):
    module, (x, mask) = encoder(kind), batch()
    changed = x.clone()
    changed[2, 3, 0] += 1
    assert not torch.allclose(module(x, mask)[2, -1], module(changed, mask)[2, -1])


def test_gru_of_a_padded_history_equals_the_gru_of_the_short_one():
    module, (x, mask) = encoder("gru4rec"), batch()
    alone, _ = module.gru(x[:1, 4:])
    torch.testing.assert_close(module(x, mask)[:1, 4:], alone)


def test_sasrec_equals_attention_written_out():
    module, (x, mask) = encoder("sasrec"), batch()
    row, real = x[0, 4:], [4, 5]
    state = module.norm(row + module.positions.weight[real])
    for block in module.blocks:
        query, key, value = block.query(state), block.key(state), block.value(state)
        heads = []
        for head in range(block.heads):
            part = slice(head * 4, (head + 1) * 4)
            scores = query[:, part] @ key[:, part].T / 2.0  # sqrt(4)
            scores[0, 1] = -torch.inf
            heads.append(scores.softmax(-1) @ value[:, part])
        state = block.norm_attention(state + block.output(torch.cat(heads, 1)))
        state = block.norm_forward(state + block.down(torch.relu(block.up(state))))
    torch.testing.assert_close(module(x, mask)[0, 4:], state)


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_are_divided_by_a_learned_temperature(kind):
    """A query times an item of length 1 is their cosine over the temperature; the encoder reads items √E long."""
    plain, (x, mask) = encoder(kind), batch()
    x = torch.nn.functional.normalize(x, dim=-1) * mask[..., None]
    config = SequenceConfig(kind=kind, max_length=6, similarity="cosine", temperature=0.05)
    module = sequence_encoder(config, 8).eval()
    module.encoder.load_state_dict(plain.state_dict())
    found = module(x, mask)
    torch.testing.assert_close(found[mask].norm(dim=-1), torch.full((int(mask.sum()),), 20.0))
    queries, item = plain(x * 8**0.5, mask)[:, -1], x[0, -1]
    cosine = torch.nn.functional.cosine_similarity(queries, item[None], dim=1)
    torch.testing.assert_close(found[:, -1] @ item, cosine / 0.05)
    assert module.log_temperature.exp().item() == pytest.approx(0.05)
    found.sum().backward()
    assert module.log_temperature.grad != 0
