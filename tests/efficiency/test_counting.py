import pytest
import torch
from torch import nn

from iisan.efficiency.counting import Meter, Work, weightless


def test_work_adds_up():
    assert Work(1, 2, 3, 4) + Work(10, 20, 30, 40) * 2 == Work(21, 42, 63, 84)
    assert Work(1, 2).flops == 3


def test_operators_and_what_they_write():
    x = torch.ones(2, 3)
    with Meter() as meter:
        y = x + 1
        y.relu_()
        y.T.reshape(6)  # views write nothing, but this one must copy
    assert meter.work == Work(elements=3 * 6, operators=5)


def test_products_by_hand():
    linear = nn.Linear(4, 5)
    x = torch.ones(3, 4)
    with Meter() as forward:
        loss = linear(x).sum()
    assert (forward.work.products, forward.work.attention) == (2 * 3 * 4 * 5, 0)
    with Meter() as backward:
        loss.backward()
    # The gradient of the weight alone: the input needs none.
    assert backward.work.products == 2 * 3 * 4 * 5


def test_fused_attention_by_hand():
    with weightless():
        states = torch.zeros(2, 4, 9, 8, requires_grad=True)
        with Meter() as forward:
            out = nn.functional.scaled_dot_product_attention(states, states, states)
        with Meter() as backward:
            out.sum().backward()
    product = 2 * 2 * 4 * 9 * 9 * 8
    assert (forward.work.products, forward.work.attention) == (0, 2 * product)
    # Scores are computed anew before four gradients.
    assert backward.work.attention == 5 * product


@pytest.mark.parametrize("within", [weightless, lambda: torch.device("cpu")])
def test_memory_that_is_alive_and_the_most_that_was(within):
    with within(), Meter() as meter:
        kept = torch.zeros(100)
        torch.zeros(300)
        kept.view(10, 10)
        assert (meter.held, meter.peak) == (400, 1600)
        del kept
    assert (meter.held, meter.peak) == (0, 1600)


def test_a_network_keeps_what_autograd_saves():
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 2))
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    own = {value.untyped_storage()._cdata for value in network.parameters()}
    x = torch.ones(5, 8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), Meter() as meter:
        out = network(x)
    expected = sum(size for place, size in saved.items() if place not in {*own, x.untyped_storage()._cdata})
    assert meter.held - out.untyped_storage().nbytes() == expected == 4 * 5 * (16 + 16 + 16 + 2)
