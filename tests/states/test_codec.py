import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iisan.errors import ConfigError, StoreError
from iisan.states.codec import (
    DTYPES,
    check_distinct,
    check_dtype,
    decode,
    encode,
    encode_checked,
    level_means,
    relative_errors,
)

RELATIVE_ROUNDING = {"fp32": 2.0**-22, "bf16": 2.0**-8, "fp16": 2.0**-10}


def states_of(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(seed)) * scale


@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from(list(DTYPES)))
def test_a_round_trip_is_exact_up_to_rounding(seed: int, scale: float, dtype: str) -> None:
    states = states_of(seed, scale) + 10 * scale
    mean = level_means(states, dtype)
    encoded = encode(states, mean, dtype)
    decoded = decode(encoded["states"], encoded.get("scales"), mean)
    assert encoded["states"].dtype == DTYPES[dtype]
    assert decoded.dtype == torch.float32
    differences = (states - mean).abs()
    if dtype == "int8":
        bound = differences.amax(-1, keepdim=True) / 127 / 2
    else:
        # Half of fp16's smallest step is an absolute bound below its normal range.
        bound = differences * RELATIVE_ROUNDING[dtype] + (2.0**-25 if dtype == "fp16" else 0)
    assert ((decoded - states).abs() <= bound * 1.001 + 20 * scale * 2**-22).all()


def test_int8_by_hand() -> None:
    states = torch.tensor([[[254.0, -127.0, 1.9]], [[0.0, 0.0, 0.0]]])
    encoded = encode(states, torch.zeros(1, 3), "int8")
    assert encoded["scales"].tolist() == [[2.0], [0.0]]
    assert encoded["states"].tolist() == [[[127, -64, 1]], [[0, 0, 0]]]  # -63.5 rounds to even
    decoded = decode(encoded["states"], encoded["scales"], torch.full((1, 3), 5.0))
    assert decoded.tolist() == [[[259.0, -123.0, 7.0]], [[5.0, 5.0, 5.0]]]


def test_a_subtracted_common_vector_costs_no_precision() -> None:
    states = states_of(0) + 1000
    centred = encode(states, level_means(states, "bf16"), "bf16")["states"]
    error = relative_errors(decode(centred, None, states.mean(0)), states)
    plain = relative_errors(states.bfloat16().float(), states)
    assert max(error) < 0.004  # type: ignore[type-var]
    assert min(plain) > 0.5  # type: ignore[type-var]


def test_relative_errors_by_hand() -> None:
    # Spread 3 around the mean 4; errors 0.3 and 0; level 1 is the same for all.
    reference = torch.tensor([[[1.0], [8.0]], [[7.0], [8.0]]])
    stored = torch.tensor([[[1.3], [8.0]], [[7.0], [8.1]]])
    first, constant = relative_errors(stored, reference)
    assert first == pytest.approx(0.3 / math.sqrt(2) / 3, rel=1e-6)
    assert constant is None


def test_one_huge_channel_does_not_hide_the_error_of_the_others() -> None:
    states = torch.randn(64, 1, 64, generator=torch.Generator().manual_seed(0))
    states[:, 0, 5] = torch.tensor([1e5, -1e5]).repeat(32)
    encoded = encode(states, level_means(states, "int8"), "int8")
    stored = decode(encoded["states"], encoded["scales"], level_means(states, "int8"))
    # Over all values the error is small, because one channel dominates; the others are rounded to zero.
    assert (stored - states).square().mean().sqrt() / (states - states.mean(0)).square().mean().sqrt() < 0.01
    assert relative_errors(stored, states) == [pytest.approx(1.0)]
    by_bf16 = decode(encode(states, states.mean(0), "bf16")["states"], None, states.mean(0))
    (error,) = relative_errors(by_bf16, states)
    assert error is not None
    assert error < 2**-8


def test_the_middle_channel_by_hand() -> None:
    # Spreads 3, 30 and 3 with errors 0.3, 0.3 and none, and a channel that does not vary: the median is 0.1 / √2.
    reference = torch.tensor([[[1.0, 10.0, 1.0, 5.0]], [[7.0, 70.0, 7.0, 5.0]]])
    stored = torch.tensor([[[1.3, 10.3, 1.0, 6.0]], [[7.0, 70.0, 7.0, 5.0]]])
    in_all = math.sqrt((2 * 0.3**2 + 1) / 2 / 4) / math.sqrt((9 + 900 + 9) / 4)
    median = sorted([0.3 / math.sqrt(2) / 3, 0.3 / math.sqrt(2) / 30, 0.0])[1]
    assert relative_errors(stored, reference) == [pytest.approx(max(in_all, median), rel=1e-6)]
    stored[0, 0, 3] = 5.0
    assert relative_errors(stored, reference) == [
        pytest.approx(max(math.sqrt(2 * 0.09 / 8) / math.sqrt(918 / 4), median), rel=1e-5)
    ]


def test_values_out_of_range_name_item_and_level() -> None:
    states = torch.zeros(3, 2, 4)
    states[1, 1, 2] = 7e4
    for dtype, bad in (("fp16", True), ("bf16", False), ("fp32", False), ("int8", False)):
        if bad:
            with pytest.raises(StoreError, match=r"level last of item 1 .* fp16"):
                encode_checked(states, torch.zeros(2, 4), dtype, (0, "last"), lambda row: f"item {row}")
        else:
            encode_checked(states, torch.zeros(2, 4), dtype, (0, "last"), str)
    states[2, 0, 0] = math.nan
    for dtype in DTYPES:
        with pytest.raises(StoreError, match="infinite or not a number"):
            encode_checked(states, torch.zeros(2, 4), dtype, (0, "last"), str)


def test_states_that_differ_at_no_level() -> None:
    states = torch.randn(1, 3, 5).repeat(4, 1, 1)
    noise = 1e-6 * torch.randn(4, 3, 5)
    for alike in (states, states + noise, torch.zeros(4, 3, 5)):
        with pytest.raises(StoreError, match="4 different contents of text have the same states at every level"):
            check_distinct(alike, "text")
        check_distinct(alike[:1], "text")
    states[2, 1, 0] += 0.1
    check_distinct(states, "text")


def test_unknown_dtype() -> None:
    with pytest.raises(ConfigError, match="'int4'"):
        check_dtype("int4")
