import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iisan.backbones.levels import layer_drop, parse_levels
from iisan.errors import BackboneError


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


def test_parse_levels() -> None:
    assert parse_levels("layerdrop", 6) == (0, 2, 4, 6, "last")
    assert parse_levels("all", 3) == (0, 1, 2, 3, "last")
    assert parse_levels("last, 6,0", 12) == (0, 6, "last")
    assert parse_levels(["last", 2], 2) == (2, "last")


@pytest.mark.parametrize("spec", ["", "0,7", "-1", "first", "1,1", "1.5", [], [0, "last", "last"]])
def test_unusable_levels_are_refused(spec: str | list[int | str]) -> None:
    with pytest.raises(BackboneError):
        parse_levels(spec, 6)  # type: ignore[arg-type]
