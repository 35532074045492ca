"""Normalisation of hidden states against formulas."""

import torch

from iisan.nn.hidden import Hidden, LevelNorm


def states_of(names=("text",), mean=None):
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(5, 2, 4, generator=generator) for name in names}
    return {name: Hidden(each, torch.tensor([0, 1, 3, 4, 6]), mean) for name, each in values.items()}


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_centred_levels_are_normalised_differences_from_the_measured_mean():
    states = states_of()
    whole = states["text"].values
    norm = LevelNorm("centred", {"text": (2, 4)})
    norm.measure("text", Hidden(whole[:3], torch.arange(3)))
    found = norm(states, torch.float32)["text"]
    torch.testing.assert_close(found.whole(), layer_norm(whole - whole[:3].mean(0)))
    assert torch.equal(found.positions, states["text"].positions)
    # The same states, split as in a store of low precision.
    mean = torch.linspace(-1, 1, 8).view(2, 4)
    split = {"text": Hidden(whole - mean, states["text"].positions, mean)}
    torch.testing.assert_close(norm(split, torch.float32)["text"].whole(), found.whole(), atol=1e-5, rtol=1e-5)


def test_the_means_are_saved_whatever_a_modality_is_called():
    names = ("kind", "forward", "text")
    norm = LevelNorm("centred", dict.fromkeys(names, (2, 4)))
    for name, hidden in states_of(names).items():
        norm.measure(name, hidden)
    other = LevelNorm("centred", dict.fromkeys(names, (2, 4)))
    other.load_state_dict(norm.state_dict())
    states = states_of(names)
    for name in names:
        assert torch.equal(other(states, torch.float32)[name].whole(), norm(states, torch.float32)[name].whole())
        torch.testing.assert_close(
            other(states, torch.float32)[name].whole(),
            layer_norm(states[name].values - states[name].values.mean(0)),
        )


def test_other_kinds_have_no_means():
    states = states_of()
    found = LevelNorm("none", {"text": (2, 4)})(states, torch.float32)["text"]
    assert all(ours is theirs for ours, theirs in zip(found, states["text"], strict=True))
    norm = LevelNorm("layer", {"text": (2, 4)})
    torch.testing.assert_close(norm(states, torch.float32)["text"].whole(), layer_norm(states["text"].values))
    assert not norm.state_dict()
