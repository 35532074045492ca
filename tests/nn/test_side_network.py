"""The side network against a naive loop over the papers' equations, item by item."""

import pytest
import torch
from torch import nn

from iisan.nn.hidden import Hidden
from iisan.nn.items import ItemTable, Projection, SideNetwork
from iisan.nn.sequences import SASRec
from iisan.recipes import paper, reference

SETTINGS = {"paper": paper().items, "reference": reference().items}


def sigmoid_gate(parameter):
    return 1 / (1 + torch.exp(-parameter / 0.1))


def san_block(blocks, i, x):
    inside = blocks.down.weight[i] @ x + blocks.down.bias[i]
    gelu = inside * (1 + torch.erf(inside / 2**0.5)) / 2
    hidden = gelu if blocks.activation == "gelu" else torch.clamp(inside, min=0)
    return x + blocks.up.weight[i] @ hidden + blocks.up.bias[i]


def naive_intra(tower, states, settings):
    if settings.first_block == "alone":
        state, first = san_block(tower.blocks, 0, states[0]), 1
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
        state = san_block(tower.blocks, i, mixed)
    return state


def pooled(vector, width):
    """Means of neighbours; where the widths do not divide, neighbouring means share an entry."""
    size = len(vector)
    return torch.stack([vector[i * size // width : -(-(i + 1) * size // width)].mean() for i in range(width)])


def naive_inter(tower, states, order):
    """``states``: modality -> list of level vectors of one item, absent modalities left out."""
    c = torch.zeros(tower.width)
    count = tower.levels
    for step in range(count):
        from_last = count - step
        total, weight, found = torch.zeros(tower.width), 0, 0
        for column, name in enumerate(order):
            if name not in states or len(states[name]) < from_last:
                continue
            found += 1
            h = states[name][-from_last]
            if name in tower.transforms:
                linears = tower.transforms[name]
                linear = linears[len(linears) - from_last]
                h = linear.weight @ h + linear.bias if isinstance(linear, nn.Linear) else pooled(h, tower.width)
            g = torch.cat([tower.gates[step], torch.zeros(1)]) / 0.1
            share = torch.exp(g[column]) / torch.exp(g).sum()
            total, weight = total + share * h, weight + share
        # Where an item has nothing at a level, nothing is added.
        c = san_block(tower.blocks, step, (total / weight if found else total) + c)
    return c


def naive_item(network, states, settings, order):
    parts = []
    for name in network.fusion.parts:
        tower = network.towers[name]
        if name == "inter":
            out = naive_inter(tower, states, order) if states else None
        else:
            out = naive_intra(tower, states[name], settings) if name in states else None
        if out is None:
            parts.append(None)
            continue
        if settings.projection != "single":
            out = network.dense[name].weight @ out + network.dense[name].bias
        parts.append(network.projections[name].weight @ out + network.projections[name].bias)
    fusion = network.fusion
    filled = [stand_in if part is None else part for part, stand_in in zip(parts, fusion.absent, strict=True)]
    return fusion.linear.weight @ torch.cat(filled) + fusion.linear.bias


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def side_network(levels, widths, settings, missing=False, **changes):
    options = settings.model_dump(exclude={"kind", "embedding_dim"}) | {"width": 5, "bottleneck": 3} | changes
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
    states = {m: Hidden(torch.randn(4, levels[m], widths[m]), positions) for m in levels}
    result = network(positions, states)
    for item in range(4):
        own = {m: list(values[item]) for m, (values, *_) in states.items()}
        torch.testing.assert_close(result[item], naive_item(network, own, settings, list(levels)))


VERSA = paper().items.model_copy(update={"projection": "narrow", "bottlenecks": {"text": 4, "inter": 2}})
SHAPES = {
    "one": {"text": (4, 6)},
    "symmetric": {"image": (4, 6), "text": (4, 6)},
    "deeper text": {"image": (3, 6), "text": (7, 6)},
    "deeper image": {"image": (6, 6), "text": (2, 6)},
    "wider text": {"image": (4, 6), "text": (4, 11)},
    "wider image": {"image": (4, 11), "text": (4, 6)},
    "three": {"image": (3, 8), "text": (5, 6), "audio": (2, 7)},
    "four": {"image": (3, 8), "text": (5, 12), "audio": (2, 7), "vector": (1, 9)},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_any_number_of_modalities_with_random_absences_equals_naive_equations(shape, seed):
    torch.manual_seed(seed)
    levels = {name: count for name, (count, _) in SHAPES[shape].items()}
    widths = {name: width for name, (_, width) in SHAPES[shape].items()}
    network = side_network(levels, widths, VERSA, missing=True)
    items = 9
    present = {name: torch.rand(items) < 0.6 for name in levels}
    for mask in present.values():
        mask[0], mask[1] = True, False  # one item has everything, one nothing
    states = {
        name: Hidden(torch.randn(int(mask.sum()), levels[name], widths[name]), mask.nonzero().squeeze(1))
        for name, mask in present.items()
    }
    result = network(torch.arange(items), states)
    for item in range(items):
        own = {
            name: list(values[positions.tolist().index(item)])
            for name, (values, positions, _) in states.items()
            if item in positions
        }
        torch.testing.assert_close(result[item], naive_item(network, own, VERSA, list(levels)))


@pytest.mark.parametrize("width", [9, 12])
def test_states_that_are_pooled_to_the_narrower_width_equal_naive_means_and_train_nothing(width):
    torch.manual_seed(0)
    settings, levels, widths = SETTINGS["paper"], {"image": 3, "text": 5}, {"image": 6, "text": width}
    network = side_network(levels, widths, settings, transform="pool")
    assert not list(network.towers["inter"].transforms.parameters())
    positions = torch.arange(3)
    states = {m: Hidden(torch.randn(3, levels[m], widths[m]), positions) for m in levels}
    result = network(positions, states)
    for item in range(3):
        own = {m: list(values[item]) for m, (values, *_) in states.items()}
        torch.testing.assert_close(result[item], naive_item(network, own, settings, list(levels)))


def test_pooled_states_in_bf16_are_those_of_fp32():
    widths = {"image": 48, "text": 24}
    network = SideNetwork({"image": 3, "text": 3}, widths, transform="pool")
    states = {name: Hidden(torch.randn(5, 3, width) + 3, torch.arange(5)) for name, width in widths.items()}
    whole = network(torch.arange(5), states)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(torch.arange(5), states).float()
    torch.testing.assert_close(low, whole, atol=0.02, rtol=0.02)


def test_with_two_modalities_the_inter_modal_tower_is_equation_2():
    """``c_i = SANB_i(β_i · h_i^image + (1 − β_i) · h_i^text + c_{i-1})``; β is 1 where there is no text."""
    torch.manual_seed(5)
    tower = side_network({"image": 3, "text": 3}, {"image": 6, "text": 6}, SETTINGS["paper"]).towers["inter"]
    image, text = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    both, without_text = torch.ones(2, 1), torch.tensor([[1.0], [0.0]])
    items = torch.arange(2)
    states = {"image": (Hidden(image, items), both), "text": (Hidden(text, items), without_text)}
    result = tower(tower.inputs(states))
    for item in range(2):
        c = torch.zeros(6)
        for i in range(3):
            beta = sigmoid_gate(tower.gates[i, 0]) if item == 0 else 1.0
            c = san_block(tower.blocks, i, beta * image[item, i] + (1 - beta) * text[item, i] + c)
        torch.testing.assert_close(result[item], c)


def test_towers_have_their_own_bottlenecks_and_projections():
    network = side_network({"image": 2, "text": 2}, {"image": 6, "text": 8}, VERSA)
    hidden = {name: tower.blocks.bottleneck for name, tower in network.towers.items()}
    assert hidden == {"image": 3, "inter": 2, "text": 4}
    widths = {
        name: (network.dense[name].out_features, network.projections[name].in_features) for name in network.towers
    }
    assert widths == {"image": (5, 5), "inter": (6, 6), "text": (5, 5)}


def test_a_model_trained_on_whole_items_puts_zeros_in_the_place_of_what_is_missing():
    torch.manual_seed(1)
    network = side_network({"image": 3, "text": 3}, {"image": 6, "text": 6}, SETTINGS["paper"])
    assert not any("absent" in name for name in network.state_dict())
    states = {
        "image": Hidden(torch.randn(2, 3, 6), torch.arange(2)),
        "text": Hidden(torch.randn(1, 3, 6), torch.tensor([1])),
    }
    own = {"image": list(states["image"][0][0])}
    expected = naive_item(network, own, SETTINGS["paper"], ["image", "text"])
    torch.testing.assert_close(network(torch.arange(2), states)[0], expected)


def test_missing_modalities_take_no_part():
    torch.manual_seed(1)
    settings = SETTINGS["paper"]
    network = side_network({"image": 3, "text": 3}, {"image": 6, "text": 6}, settings, missing=True)
    present = {"image": [0, 2], "text": [0, 1, 4]}  # item 3 has nothing
    states = {m: Hidden(torch.randn(len(rows), 3, 6), torch.tensor(rows)) for m, rows in present.items()}
    result = network(torch.arange(5), states)
    for item in range(5):
        own = {m: list(states[m][0][rows.index(item)]) for m, rows in present.items() if item in rows}
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
    torch.testing.assert_close(
        normed(rows, {"text": Hidden(values, rows)}), plain(rows, {"text": Hidden(by_hand, rows)})
    )


def test_without_gates_states_are_added():
    torch.manual_seed(3)
    network = side_network({"text": 2}, {"text": 6}, SETTINGS["paper"], gated=False)
    tower = network.towers["text"]
    states = torch.randn(3, 2, 6)
    blocks = tower.blocks
    expected = torch.stack(
        [san_block(blocks, 1, san_block(blocks, 0, first) + second) for first, second in states]
    )
    result = tower(tower.inputs(Hidden(states, torch.arange(3))))
    torch.testing.assert_close(result, expected)
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


def test_the_gate_value_is_the_weight_of_the_previous_state_in_every_recipe():
    for settings in SETTINGS.values():
        tower = side_network({"text": 3}, {"text": 6}, settings).towers["text"]
        carry = tower.inputs(Hidden(torch.randn(1, 3, 6), torch.arange(1))).carry
        torch.testing.assert_close(tower.gate_values(), carry[-len(tower.gates) :].detach())
        own = sigmoid_gate(tower.gates).detach()
        torch.testing.assert_close(tower.gate_values(), own if settings.gate_on == "previous" else 1 - own)


def test_reference_has_the_published_number_of_parameters():
    settings = reference()
    network = SideNetwork(
        {"image": 7, "text": 7},
        {"image": 768, "text": 768},
        **settings.items.model_dump(exclude={"kind", "embedding_dim"}),
    )
    sequence = SASRec(
        64, settings.sequence.max_length, settings.sequence.num_layers, settings.sequence.num_heads, 0.1
    )
    count = sum(parameter.numel() for module in (network, sequence) for parameter in module.parameters())
    assert count == 4_113_877


def test_every_parameter_gets_a_gradient():
    for settings in SETTINGS.values():
        network = side_network({"image": 3, "text": 4}, {"image": 6, "text": 8}, settings, missing=True)
        rows = torch.arange(4)
        states = {"image": Hidden(torch.randn(2, 3, 6), rows[:2]), "text": Hidden(torch.randn(2, 4, 8), rows[1:3])}
        network(rows, states).square().sum().backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_projection_by_hand():
    torch.manual_seed(4)
    network = Projection({"image": 3, "text": 4}, width=2)
    rows = torch.arange(2)
    states = {"image": Hidden(torch.randn(2, 2, 3), rows), "text": Hidden(torch.randn(2, 1, 4), rows)}
    parts = [nn.functional.gelu(network.projections[m](states[m][0][:, -1])) for m in states]
    torch.testing.assert_close(network(rows, states), network.fusion.linear(torch.cat(parts, 1)))


def test_table_gives_a_row_per_item():
    table = ItemTable(5, 3)
    rows = torch.tensor([4, 0])
    torch.testing.assert_close(table(rows, {}), table.embedding.weight[rows])


def test_in_bf16_a_whole_modality_and_one_that_some_items_lack():
    torch.manual_seed(8)
    items = 40
    rows, some = torch.arange(items), torch.arange(0, items, 3)
    network = SideNetwork({"image": 3, "text": 3}, {"image": 64, "text": 64}, missing=True)
    mean = 30 * torch.randn(3, 64)
    states = {
        "image": Hidden(torch.randn(items, 3, 64).bfloat16(), rows, mean),
        "text": Hidden(torch.randn(len(some), 3, 64).bfloat16(), some, mean),
    }
    plain = network(rows, {name: Hidden(each.whole(), each.positions) for name, each in states.items()})
    with torch.autocast("cpu", torch.bfloat16):
        low = network(rows, states)
    spread = (plain[some] - plain[some].mean(0)).square().mean().sqrt()
    error = low - plain
    assert (error - error[some].mean(0))[some].square().mean().sqrt() < 0.02 * spread


# Centred states have one size whatever is left of them, so what rounding adds is bounded by about the spread.
@pytest.mark.parametrize(("level_norm", "lost"), [("none", 1.0), ("layer", 1.0), ("centred", 0.8)])
def test_in_bf16_items_keep_their_differences_from_a_large_mean(level_norm, lost):
    """Rounded to bf16 as they are, these states would all be the same."""
    torch.manual_seed(7)
    levels, widths, items = {"image": 3, "text": 3}, {"image": 64, "text": 64}, 40
    network = SideNetwork(levels, widths, level_norm=level_norm)
    rows, large = torch.arange(items), 100 * torch.randn(3, 64)
    differences = {m: 0.1 * torch.randn(items, 3, 64).bfloat16() for m in levels}
    for modality in levels if level_norm == "centred" else ():
        network.norm.measure(modality, Hidden(differences[modality] + large, rows))
    whole = network(rows, {m: Hidden(differences[m] + large, rows) for m in levels})
    with torch.autocast("cpu", torch.bfloat16):
        stored = network(rows, {m: Hidden(differences[m], rows, large) for m in levels})
        live = network(rows, {m: Hidden(differences[m] + large, rows) for m in levels})
    rounded = network(rows, {m: Hidden((differences[m] + large).bfloat16().float(), rows) for m in levels})
    spread, *errors = (
        (found - found.mean(0)).square().mean().sqrt()
        for found in (whole, stored - whole, live - whole, rounded - whole)
    )
    assert max(errors[:2]) < 0.05 * spread < lost * spread < errors[2]
