"""Soft whitening against a naive version in fp64."""

import numpy as np
import pytest
import torch

from iisan.errors import ConfigError, StoreError
from iisan.nn.anchor import BLOCK, fit_whitening


def states_of(count, levels=3, width=6, seed=0):
    """Correlated states far from zero, as of an encoder, ``[n, K, D]``."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(levels, width, width)) * rng.uniform(0.1, 2, size=(1, 1, width))
    drawn = np.einsum("nkd,kde->nke", rng.normal(size=(count, levels, width)), mixing)
    return torch.from_numpy(drawn + rng.normal(size=(levels, width)) * 5).float()


def fit(states, width=None, block=5):
    return fit_whitening(lambda: states.split(block), width, 0.3, "text")


def naive(states, later=None, shrinkage=0.3):
    """Similarities after whitening level by level, which do not depend on the signs of components."""
    parts, found = states.double().numpy(), (states if later is None else later).double().numpy()
    vectors = []
    for level in range(parts.shape[1]):
        mean = parts[:, level].mean(0)
        centred = parts[:, level] - mean
        _, singular, components = np.linalg.svd(centred, full_matrices=False)
        variances = singular**2 / len(parts)
        kept = singular > 1e-6 * singular[0]
        mean_variance = variances.sum() / parts.shape[2]
        scales = 1 / np.sqrt(variances[kept] + shrinkage * mean_variance)
        whitened = (found[:, level] - mean) @ components[kept].T * scales
        vectors.append(whitened / np.linalg.norm(whitened, axis=1, keepdims=True))
    joint = np.concatenate(vectors, axis=1) / len(vectors) ** 0.5
    return joint @ joint.T


@pytest.mark.parametrize("count", [40, 4], ids=["more items than dimensions", "fewer"])
def test_whitening_is_that_of_the_definition(count):
    states = states_of(count)
    anchors = fit(states).project(states)
    assert anchors.shape == (count, 18)
    np.testing.assert_allclose(anchors @ anchors.T, naive(states), atol=2e-5)
    # An item's similarity with itself is 1, to which all levels contribute alike.
    np.testing.assert_allclose(anchors.unflatten(1, (3, 6)).square().sum(2), 1 / 3, atol=1e-5)


def test_the_blocks_of_the_fit_do_not_matter():
    states = states_of(40)
    whole, blocks = (fit(states, block=size).project(states) for size in (40, 7))
    np.testing.assert_allclose(whole @ whole.T, blocks @ blocks.T, atol=2e-5)


def test_no_more_directions_are_kept_than_vary():
    whitening = fit(states_of(4))
    assert (whitening.maps.abs().sum(1) > 0).sum(1).tolist() == [3, 3, 3]


def test_a_constant_level_is_left_out():
    states = states_of(40)
    constant = torch.cat([torch.full((40, 1, 6), 3.7), states], dim=1)
    anchors = fit(constant).project(constant)
    assert not anchors[:, :6].any()
    np.testing.assert_allclose(anchors @ anchors.T, naive(states), atol=2e-5)


def test_later_items_are_projected_as_the_first_ones():
    states, later = states_of(40), states_of(9, seed=1)
    anchors = fit(states).project(later)
    np.testing.assert_allclose(anchors @ anchors.T, naive(states, later), atol=2e-5)
    assert fit(states).project(later[:0]).shape == (0, 18)


@pytest.mark.parametrize("width", [8, 30])
def test_an_item_gets_its_vector_bit_for_bit(width):
    """Alone, among others, at any position, in any number of blocks, and by another fit of the same items."""
    states = states_of(BLOCK + 90, levels=4, width=24)
    whitening = fit(states, width, block=100)
    anchors = whitening.project(states)
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(0))
    assert torch.equal(whitening.project(states[order]), anchors[order])
    for size in (1, 2, 7, 511):
        assert torch.equal(whitening.project(states[order[:size]]), anchors[order[:size]])
    assert torch.equal(fit(states, width, block=100).project(states), anchors)


def test_reduction_keeps_similarities():
    """Exactly, if the whitened levels have no more directions than that; else about."""
    states = states_of(200, levels=2, width=5).repeat(1, 3, 1)  # 10 distinct directions in 30 numbers
    whole, reduced, narrow = (fit(states, width, block=64) for width in (None, 10, 6))
    assert (whole.width, reduced.width, narrow.width) == (30, 10, 6)
    similarities = [anchors @ anchors.T for anchors in (each.project(states) for each in (whole, reduced, narrow))]
    np.testing.assert_allclose(similarities[1], similarities[0], atol=2e-5)
    assert 0.03 < (similarities[2] - similarities[0]).abs().mean() < 0.3
    assert reduced.project(states).norm(dim=1).sub(1).abs().max() < 1e-5
    assert fit(states, 30).basis.numel() == 0
    # Five items span at most five directions, however wide the anchor may be.
    few = fit(states[:5], 20)
    assert few.width == 5
    whole = fit(states[:5]).project(states[:5])
    np.testing.assert_allclose(few.project(states[:5]) @ few.project(states[:5]).T, whole @ whole.T, atol=2e-5)


def test_variance_outside_the_fit():
    """The fit sees the first two of four axes, in which a later item differs by 3 of 3² + 4²."""
    fitted = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0]])[:, None]
    whitening = fit(fitted)
    assert whitening.outside(fitted) == pytest.approx(0, abs=1e-6)
    assert whitening.outside(torch.tensor([[[3.0, 0, 4, 0]]])) == pytest.approx(16 / 25)
    assert whitening.outside(torch.tensor([[[0.0, 0, 0, 2]]])) == pytest.approx(1)


def test_states_without_use():
    states = states_of(6)
    for count in (0, 1):
        with pytest.raises(
            ConfigError, match=rf"too few items with states of text \({count}\); expected 2 or more"
        ):
            fit(states[:count])
    with pytest.raises(StoreError, match="the states of text are the same for all 6 items"):
        fit(states[:1].expand(6, -1, -1))
    for value in (torch.nan, torch.inf):
        broken = states.clone()
        broken[5, 2, 3] = value
        with pytest.raises(StoreError, match="states of text that are infinite or not a number; expected finite"):
            fit(broken)
    with pytest.raises(StoreError, match="states of text that are so large that their squares are infinite"):
        fit(states * 1e30)
