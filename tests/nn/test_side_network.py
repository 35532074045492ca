"""The side network against a naive loop over the papers' equations, item by item."""

import pytest
import torch
from torch import nn

from iisan.nn.items import ItemTable, Projection, SideNetwork
from iisan.nn.sequences import SASRec
from iisan.recipes import paper, reference

SETTINGS = {"paper": paper().items, "reference": reference().items}


def sigmoid_gate(parameter):
    return 1 / (1 + torch.exp(-parameter / 0.1))


def san_block(block, x):
    hidden = torch.clamp(block.down.weight @ x + block.down.bias, min=0)
    return x + block.up.weight @ hidden + block.up.bias


def naive_intra(tower, states, settings):
    if settings.first_block == "alone":
        state, first = san_block(tower.blocks[0], states[0]), 1
        gates = [None, *tower.gates]
    else:
        state, first = torch.zeros_like(states[0]), 0
        gates = list(tower.gates)
    for i in range(first, len(states)):
        g = sigmoid_gate(gates[i])
        if settings.gate_on == "previous":
            mixed = g * state + (1 - g) * states[i]
        else:
            mixed = g * states[i] + (1 - g) * state
        state = san_block(tower.blocks[i], mixed)
    return state


def naive_inter(tower, states, order):
    """``states``: modality -> list of level vectors of one item, absent modalities left out."""
    c = 0
    count = tower.steps
    for step in range(count):
        from_last = count - step
        total, weight = 0, 0
        having = 0
        for column, name in enumerate(order):
            if name not in states or len(states[name]) < from_last:
                continue
            having += 1
            h = states[name][-from_last]
            if name in tower.transforms:
                linears = tower.transforms[name]
                linear = linears[len(linears) - from_last]
                h = linear.weight @ h + linear.bias
            g = torch.cat([tower.gates[step], torch.zeros(1)]) / 0.1
            share = torch.exp(g[column]) / torch.exp(g).sum()
            total, weight = total + share * h, weight + share
        c = san_block(tower.blocks[step], total / weight + c)
    return c


def naive_item(network, states, settings, order):
    parts = []
    for index, name in enumerate(network.fusion.parts):
        tower = network.towers[name]
        if name == "inter":
            out = naive_inter(tower, states, order) if states else None
        else:
            out = naive_intra(tower, states[name], settings) if name in states else None
        if out is None:
            parts.append(network.fusion.absent[index])
            continue
        if settings.head == "two":
            out = network.dense[name].weight @ out + network.dense[name].bias
        parts.append(network.heads[name].weight @ out + network.heads[name].bias)
    return network.fusion.linear.weight @ torch.cat(parts) + network.fusion.linear.bias


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def side_network(levels, widths, settings, missing=False, **changes):
    options = settings.model_dump(exclude={"kind"}) | {"width": 5, "bottleneck": 3} | changes
    network = SideNetwork(levels, widths, **options, missing=missing)
    randomise(network)
    return network


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("levels", "widths"),
    [
        ({"image": 4, "text": 4}, {"image": 6, "text": 6}),
        ({"image": 4, "text": 4}, {"image": 6, "text": 9}),
        ({"image": 3, "text": 5}, {"image": 9, "text": 6}),
        ({"text": 4}, {"text": 6}),
        ({"image": 1}, {"image": 6}),
    ],
)
def test_equals_naive_equations(name, levels, widths):
    torch.manual_seed(0)
    settings = SETTINGS[name]
    network = side_network(levels, widths, settings)
    positions = torch.arange(4)
    states = {m: (torch.randn(4, levels[m], widths[m]), positions) for m in levels}
    result = network(positions, states)
    for item in range(4):
        own = {m: list(values[item]) for m, (values, _) in states.items()}
        torch.testing.assert_close(result[item], naive_item(network, own, settings, list(levels)))


def test_missing_modalities_take_no_part():
    torch.manual_seed(1)
    settings = SETTINGS["paper"]
    network = side_network({"image": 3, "text": 3}, {"image": 6, "text": 6}, settings, missing=True)
    having = {"image": [0, 2], "text": [0, 1, 4]}  # item 3 has nothing
    states = {m: (torch.randn(len(rows), 3, 6), torch.tensor(rows)) for m, rows in having.items()}
    result = network(torch.arange(5), states)
    for item in range(5):
        own = {m: list(states[m][0][rows.index(item)]) for m, rows in having.items() if item in rows}
        torch.testing.assert_close(result[item], naive_item(network, own, settings, ["image", "text"]))


def test_levels_are_normalised_without_parameters():
    torch.manual_seed(2)
    plain = side_network({"text": 3}, {"text": 6}, SETTINGS["paper"])
    normed = side_network({"text": 3}, {"text": 6}, SETTINGS["paper"], level_norm="layer")
    normed.load_state_dict(plain.state_dict())
    values, rows = torch.randn(4, 3, 6) * 7 + 3, torch.arange(4)
    by_hand = (values - values.mean(-1, keepdim=True)) / (
        values.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(normed(rows, {"text": (values, rows)}), plain(rows, {"text": (by_hand, rows)}))


def test_without_gates_states_are_added():
    torch.manual_seed(3)
    network = side_network({"text": 2}, {"text": 6}, SETTINGS["paper"], gated=False)
    tower = network.towers["text"]
    states = torch.randn(3, 2, 6)
    expected = tower.blocks[1](tower.blocks[0](states[:, 0]) + states[:, 1])
    torch.testing.assert_close(tower(states), expected)
    assert tower.gate_values() is None


def test_towers_follow_the_switches():
    both = {"image": 2, "text": 2}, {"image": 4, "text": 4}
    parts = lambda **changes: side_network(*both, SETTINGS["paper"], **changes).fusion.parts  # noqa: E731
    assert parts() == ("image", "inter", "text")
    assert parts(concatenation="inter-last") == ("image", "text", "inter")
    assert parts(intra=False) == ("inter",)
    assert parts(inter=False) == ("image", "text")


def test_gates_start_at_one_half_and_are_sharp():
    network = SideNetwork({"image": 3, "text": 3}, {"image": 4, "text": 4})
    torch.testing.assert_close(network.towers["inter"].gate_values(), torch.full((3, 2), 0.5))
    torch.testing.assert_close(network.towers["text"].gate_values(), torch.full((2,), 0.5))
    with torch.no_grad():
        network.towers["inter"].gates.fill_(0.1)
    torch.testing.assert_close(network.towers["inter"].gate_values()[0, 0], torch.sigmoid(torch.tensor(1.0)))


def test_reference_has_the_published_number_of_parameters():
    settings = reference()
    network = SideNetwork(
        {"image": 7, "text": 7}, {"image": 768, "text": 768}, **settings.items.model_dump(exclude={"kind"})
    )
    sequence = SASRec(64, settings.sequence.length, settings.sequence.blocks, settings.sequence.heads, 0.1)
    count = sum(parameter.numel() for module in (network, sequence) for parameter in module.parameters())
    assert count == 4_113_877


def test_every_parameter_gets_a_gradient():
    for settings in SETTINGS.values():
        network = side_network({"image": 3, "text": 4}, {"image": 6, "text": 8}, settings, missing=True)
        rows = torch.arange(4)
        states = {"image": (torch.randn(2, 3, 6), rows[:2]), "text": (torch.randn(2, 4, 8), rows[1:3])}
        network(rows, states).square().sum().backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_projection_by_hand():
    torch.manual_seed(4)
    network = Projection({"image": 3, "text": 4}, width=2)
    rows = torch.arange(2)
    states = {"image": (torch.randn(2, 2, 3), rows), "text": (torch.randn(2, 1, 4), rows)}
    parts = [nn.functional.gelu(network.heads[m](states[m][0][:, -1])) for m in states]
    torch.testing.assert_close(network(rows, states), network.fusion.linear(torch.cat(parts, 1)))


def test_table_gives_a_row_per_item():
    table = ItemTable(5, 3)
    rows = torch.tensor([4, 0])
    torch.testing.assert_close(table(rows, {}), table.embedding.weight[rows])
