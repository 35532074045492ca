import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iisan.encoders.levels import group_drop, layer_drop, parse_levels
from iisan.errors import EncoderError


@pytest.mark.parametrize(
    ("depth", "levels"),
    [
        (12, (0, 2, 4, 6, 8, 10, 12)),
        (6, (0, 2, 4, 6)),
        (5, (0, 1, 3, 5)),
        (2, (0, 2)),
        (1, (0, 1)),
    ],
)
def test_layer_drop(depth: int, levels: tuple[int, ...]) -> None:
    assert layer_drop(depth) == levels


@given(st.integers(1, 200))
def test_layer_drop_counts_pairs_from_the_top(depth: int) -> None:
    levels = layer_drop(depth)
    assert levels[0] == 0
    assert levels[-1] == depth
    assert len(levels) == 1 + (depth + 1) // 2
    assert all(high - low == 2 for low, high in itertools.pairwise(levels[1:]))


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (80, [4, 19, 34, 49, 64, 79]),
        (32, [1, 7, 13, 19, 25, 31]),
        (28, [2, 7, 12, 17, 22, 27]),
        (24, [3, 7, 11, 15, 19, 23]),
        (12, [1, 3, 5, 7, 9, 11]),
    ],
)
def test_group_layer_dropping_keeps_the_published_layers(depth: int, layers: list[int]) -> None:
    """Published code: 0-based layers l are the states h_{l+1}, after h_0."""
    assert group_drop(depth, 6) == (0, *(layer + 1 for layer in layers))
    assert parse_levels("group-6", depth) == (0, *(layer + 1 for layer in layers), "last")


@pytest.mark.parametrize(
    ("depth", "count", "fits"), [(12, 8, "4 or 6"), (12, 1, "2 or 3"), (4, 9, "2 or 4"), (12, 0, "2 or 3")]
)
def test_group_layer_dropping_that_would_leave_the_first_layers_out(depth: int, count: int, fits: str) -> None:
    with pytest.raises(EncoderError, match=f"{count} out of {depth} layers.*such as {fits}: "):
        group_drop(depth, count)


def test_parse_levels() -> None:
    assert parse_levels("layerdrop", 6) == (0, 2, 4, 6, "last")
    assert parse_levels("all", 3) == (0, 1, 2, 3, "last")
    assert parse_levels("last, 6,0", 12) == (0, 6, "last")
    assert parse_levels(["last", 2], 2) == (2, "last")


@pytest.mark.parametrize("spec", ["", "0,7", "-1", "first", "1,1", "1.5", [], [0, "last", "last"]])
def test_unusable_levels_are_refused(spec: str | list[int | str]) -> None:
    with pytest.raises(EncoderError):
        parse_levels(spec, 6)  # type: ignore[arg-type]
