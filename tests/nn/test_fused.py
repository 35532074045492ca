"""The fused recurrence against the plain one, in fp64, where both must agree to the last digits."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

from iisan.nn import fused, items
from iisan.nn.hidden import Hidden

TWO = {"image": (3, 4), "text": (3, 4)}
UNLIKE = {"image": (3, 6), "text": (5, 4)}
#: What is switched on: the modalities' levels and widths, and settings of the side network.
CASES = {
    "defaults": (TWO, {}),
    "gate on previous, first block gated": (TWO, {"first_block": "gated"}),
    "gate on hidden, first block alone": (TWO, {"gate_on": "hidden"}),
    "gate on hidden, first block gated": (TWO, {"gate_on": "hidden", "first_block": "gated"}),
    "no gates": (TWO, {"gated": False}),
    "no gates, unlike towers": (UNLIKE, {"gated": False}),
    "gelu": (TWO, {"activation": "gelu"}),
    "phm": (TWO, {"block": "phm", "phm": 2}),
    "low-rank": (TWO, {"block": "low-rank", "rank": 2}),
    "unlike towers": (UNLIKE, {}),
    "unlike towers, pooled": (UNLIKE, {"transform": "pool"}),
    "unlike bottlenecks": (TWO, {"bottlenecks": {"image": 3, "inter": 1}}),
    "normalised levels": (TWO, {"level_norm": "layer"}),
    "normalised levels, unlike towers": (UNLIKE, {"level_norm": "layer"}),
    "double projection": (UNLIKE, {"projection": "double"}),
    "narrow projection": (UNLIKE, {"projection": "narrow", "concatenation": "inter-last"}),
    "intra only": (TWO, {"inter": False}),
    "inter only": (UNLIKE, {"intra": False}),
    "one modality": ({"text": (3, 4)}, {}),
    "three modalities": ({"image": (3, 6), "text": (5, 4), "vector": (1, 5)}, {}),
}
#: Items of each modality where some lack it; item 2 has none.
PRESENT = {"image": [0, 1, 4], "text": [0, 3, 4], "vector": [1, 3]}
COUNT = 5


def plain_outputs(towers, inputs, projections):
    return [tower(each) @ weight.mT for tower, each, weight in zip(towers, inputs, projections, strict=True)]


def encoder(case, missing):
    """A side network of random weights whose activations are far from the kink of relu."""
    torch.manual_seed(0)
    shapes, changes = CASES[case]
    levels, widths = ({name: shape[part] for name, shape in shapes.items()} for part in (0, 1))
    network = items.SideNetwork(levels, widths, 2, **{"bottleneck": 2} | changes, missing=missing).double()
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.1)
        if name.endswith("down.bias"):
            parameter.data += torch.where(torch.arange(parameter.shape[1]) % 2 == 0, 3.0, -3.0)
    return network


def hidden_states(case, missing, centred):
    """Modality -> (values, positions, mean or None), in fp64."""
    torch.manual_seed(1)
    found = {}
    for name, (levels, width) in CASES[case][0].items():
        positions = torch.tensor(PRESENT[name] if missing else range(COUNT))
        values = torch.randn(len(positions), levels, width).double()
        mean = 2 * torch.randn(levels, width).double() if centred else None
        found[name] = values, positions, mean
    return found


def learned(network, states):
    """Everything that has a gradient: parameters, values of the hidden states, and their means."""
    tensors = dict(network.named_parameters())
    for name, (values, _, mean) in states.items():
        tensors |= {f"values of {name}": values} | ({} if mean is None else {f"mean of {name}": mean})
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def embeddings(network, states, tensors):
    parameters = {name: tensors[name] for name, _ in network.named_parameters()}
    hidden = {
        name: Hidden(tensors[f"values of {name}"], positions, tensors.get(f"mean of {name}"))
        for name, (_, positions, _) in states.items()
    }
    return functional_call(network, parameters, (torch.arange(COUNT), hidden))


@pytest.mark.parametrize("centred", [False, True], ids=["whole", "centred"])
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_all_gradients_are_those_of_the_plain_recurrence(case, missing, centred, monkeypatch):
    network, states = encoder(case, missing), hidden_states(case, missing, centred)
    tensors = learned(network, states)
    found = []
    for outputs in (fused.tower_outputs, plain_outputs):
        monkeypatch.setattr(items, "tower_outputs", outputs)
        result = embeddings(network, states, tensors)
        weights = torch.linspace(-1, 1, result.numel()).double().view_as(result)
        gradients = torch.autograd.grad((result * weights).sum(), tensors.values(), materialize_grads=True)
        found.append(dict(zip(["output", *tensors], [result.detach(), *gradients], strict=True)))
    assert {value.dtype for value in found[0].values()} == {torch.float64}
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", [fused.tower_outputs, plain_outputs], ids=["fused", "plain"])
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(case, missing, outputs, monkeypatch):
    monkeypatch.setattr(items, "tower_outputs", outputs)
    network, states = encoder(case, missing), hidden_states(case, missing, centred=True)
    tensors = learned(network, states)

    def of(*values):
        return embeddings(network, states, dict(zip(tensors, values, strict=True)))

    assert gradcheck(of, tuple(tensors.values()), fast_mode=True)


def test_gates_that_are_not_trained_leave_all_other_gradients_as_they_are(monkeypatch):
    network, states = encoder("defaults", False), hidden_states("defaults", False, True)
    tensors = learned(network, states)
    trained = {name: tensor for name, tensor in tensors.items() if not name.endswith("gates")}
    frozen = {name: tensor if name in trained else tensor.detach() for name, tensor in tensors.items()}
    one, two = (
        torch.autograd.grad(embeddings(network, states, each).sum(), trained.values())
        for each in (tensors, frozen)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("stored", [False, True], ids=["fp32", "differences in bf16"])
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_states_of_a_lower_precision_are_computed_with_in_that_of_the_parameters(missing, stored, monkeypatch):
    network, rows = encoder("unlike towers", missing), torch.arange(COUNT)
    low, exact = {}, {}
    for name, (values, positions, mean) in hidden_states("unlike towers", missing, stored).items():
        rounded = values.to(torch.bfloat16 if stored else torch.float32)
        low[name] = Hidden(rounded, positions, mean.float() if stored else None)
        exact[name] = Hidden(rounded.double() + (mean.float().double() if stored else 0), positions)
    found = network(rows, low)
    monkeypatch.setattr(items, "tower_outputs", plain_outputs)
    torch.testing.assert_close(found, network(rows, exact), rtol=1e-10, atol=1e-10)
