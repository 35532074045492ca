import pytest
import torch

from iisan.encoders import precision
from iisan.encoders.precision import (
    autocast,
    choose_precision,
    faster,
    feed_forward,
    time_products,
    timed_products,
)
from iisan.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize("requested", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_taken_and_nothing_is_measured(
    requested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(precision, "time_products")
    assert choose_precision("cpu", requested, [feed_forward(9, 8)]) == requested


@pytest.mark.parametrize(
    ("full", "low", "expected"),
    [
        ([1.2, 1.2, 1.2], [1.0, 1.0, 1.0], "bf16"),
        ([1.19, 1.19, 1.19], [1.0, 1.0, 1.0], "fp32"),
        ([1.0, 1.0, 1.0], [1.5, 1.5, 1.5], "fp32"),
        # One slow repeat decides nothing; nor do many of them, if the best case says otherwise.
        ([2.0, 2.0, 2.0], [1.0, 1.0, 90.0], "bf16"),
        ([1.0, 90.0, 90.0], [1.0, 1.0, 1.0], "fp32"),
        ([2.0, 2.0, 2.0], [1.0, 90.0, 90.0], "fp32"),
    ],
)
def test_bf16_must_win_by_a_fifth(full: list[float], low: list[float], expected: str) -> None:
    assert faster({"fp32": full, "bf16": low}) == expected


@pytest.mark.parametrize(("low", "expected"), [(1.0, "bf16"), (2.0, "fp32")])
def test_auto_is_what_was_measured_for_these_products(
    monkeypatch: pytest.MonkeyPatch, low: float, expected: str
) -> None:
    asked = []

    def timer(*arguments: object) -> dict[str, list[float]]:
        asked.append(arguments)
        return {"fp32": [2.0], "bf16": [low]}

    monkeypatch.setattr(precision, "time_products", timer)
    assert choose_precision("cpu", "auto", [(7, 8, 9)], training=True) == expected
    assert asked == [(CPU, [(7, 8, 9)], True)]


def test_where_nothing_is_multiplied_auto_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(precision, "time_products")
    assert choose_precision("cpu", "auto", []) == "fp32"


@pytest.mark.parametrize("training", [False, True])
def test_both_precisions_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """By a clock that adds one second at every look: whatever is timed takes one."""
    seen: list[torch.dtype] = []
    multiply = precision.linear

    def counted(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        assert (values.requires_grad, values.shape, weights.shape) == (training, (5, 4), (6, 4))
        seen.append(values.dtype)
        return multiply(values, weights)

    ticks = iter(range(1000))
    monkeypatch.setattr(precision, "linear", counted)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: float(next(ticks)))
    # The time is over at once, so each is repeated three times, after one that warms up.
    assert time_products(CPU, [(5, 4, 6)], training) == {"fp32": [1.0] * 3, "bf16": [1.0] * 3}
    assert seen == 4 * [torch.float32, torch.bfloat16]


def test_large_products_are_cut_to_what_is_quick() -> None:
    products = [feed_forward(100, 16), (5000, 768, 64), feed_forward(10**6, 4096)]
    assert timed_products(CPU, products) == [(100, 16, 64), (5000, 768, 64), (256, 1024, 1024)]
    assert timed_products(torch.device("cuda"), products)[2] == (4096, 1024, 1024)


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp8"):
        choose_precision("cpu", "fp8", [])


def test_autocast_reaches_matrix_products_only_below_fp32() -> None:
    values = torch.ones(2, 2)
    with autocast("cpu", "bf16"):
        assert (values @ values).dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert (values @ values).dtype == torch.float32
