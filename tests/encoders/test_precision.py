import pytest
import torch

from iisan.encoders.precision import autocast, choose_precision, choose_training_precision
from iisan.errors import ConfigError


@pytest.mark.parametrize("requested", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_taken(requested: str) -> None:
    assert choose_precision("cpu", requested) == requested


@pytest.mark.parametrize(("amx", "avx", "expected"), [(0, 0, "fp32"), (1, 0, "bf16"), (0, 1, "bf16")])
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, amx: int, avx: int, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx))
    assert choose_precision("cpu") == expected
    assert choose_training_precision("cpu", "auto", width=256) == expected
    assert choose_training_precision("cpu", "auto", width=255) == "fp32"
    assert choose_training_precision("cpu", "bf16", width=64) == "bf16"


@pytest.mark.parametrize(("major", "expected"), [(7, "fp32"), (8, "bf16")])
def test_auto_asks_the_gpu(monkeypatch: pytest.MonkeyPatch, major: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (major, 0))
    assert choose_precision("cuda") == choose_training_precision("cuda", "auto", width=64) == expected


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp8"):
        choose_precision("cpu", "fp8")


def test_autocast_reaches_matrix_products_only_below_fp32() -> None:
    values = torch.ones(2, 2)
    with autocast("cpu", "bf16"):
        assert (values @ values).dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert (values @ values).dtype == torch.float32
