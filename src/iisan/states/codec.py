"""Storage formats of states: plain fp32, or low-precision differences from a per-level mean.

The states of a level share a large common vector, next to which the differences between items are small. A
low-precision format would spend its digits on that vector, so it is subtracted first.

Legend: n rows, K levels, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iisan.encoders.levels import Level
from iisan.errors import ConfigError, StoreError

STATES, SCALES = "states", "scales"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}

#: A level whose spread between items is below this fraction of its magnitude is constant up to rounding.
CONSTANT = 1e-5

_TINY = torch.finfo(torch.float32).tiny


def check_dtype(dtype: str) -> None:
    """Raise ConfigError if ``dtype`` is not a storage format."""
    if dtype not in DTYPES:
        raise ConfigError(f"storage dtype {dtype!r}", ", ".join(DTYPES), "choose one of these")


def level_means(states: Tensor, dtype: str) -> Tensor:
    """Mean of states [n, K, D] to subtract before storing: fp32 [K, D], zeros for plain fp32."""
    return torch.zeros_like(states[0]) if dtype == "fp32" else states.double().mean(0).float()


def encode(states: Tensor, mean: Tensor, dtype: str) -> dict[str, Tensor]:
    """Encode fp32 states [n, K, D] as the tensors to store.

    Returns:
        ``states`` [n, K, D] and, for int8, ``scales`` fp32 [n, K] = absmax / 127 per row and level.
    """
    differences = states - mean
    if dtype != "int8":
        return {STATES: differences.to(DTYPES[dtype])}
    scales = differences.abs().amax(-1) / 127
    quantised = (differences / scales.clamp(min=_TINY).unsqueeze(-1)).round()
    return {STATES: quantised.to(torch.int8), SCALES: scales}


def decode(stored: Tensor, scales: Tensor | None, mean: Tensor | None = None) -> Tensor:
    """Invert :func:`encode`: fp32 states [n, K, D], or their differences from the mean if it is not given."""
    differences = stored.to(torch.float32, copy=True)
    if scales is not None:
        differences.mul_(scales.unsqueeze(-1))
    return differences if mean is None else differences.add_(mean)


def check_finite(values: Tensor, levels: Sequence[Level], label: Callable[[int], str], dtype: str) -> None:
    """Check that states [n, K, D] or scales [n, K] are finite.

    Raises:
        StoreError: An infinite or undefined value; names its level, item (by ``label``, from a row) and format.
    """
    finite = torch.isfinite(values).reshape(*values.shape[:2], -1).all(-1)
    if not finite.all():
        row, level = (int(index) for index in (~finite).nonzero()[0])
        got = f"level {levels[level]} of {label(row)} is infinite or not a number in {dtype}"
        raise StoreError(got, "finite states", "use --dtype bf16 or fp32 and --precision fp32, or omit this level")


def encode_checked(
    states: Tensor, mean: Tensor, dtype: str, levels: Sequence[Level], label: Callable[[int], str]
) -> dict[str, Tensor]:
    """:func:`encode`, then :func:`check_finite`."""
    encoded = encode(states, mean, dtype)
    check_finite(encoded.get(SCALES, encoded[STATES]), levels, label, dtype)
    return encoded


def constant_levels(states: Tensor) -> Tensor:
    """Mask [K] of the levels whose states [n, K, D] are constant up to rounding, boolean."""
    states = states.double()
    spread = (states - states.mean(0)).square().mean((0, 2))
    return spread <= CONSTANT**2 * states.square().mean((0, 2))


def check_distinct(states: Tensor, modality: str) -> None:
    """Check that the states [n, K, D] of n different contents differ at some level.

    Raises:
        StoreError: All levels are constant.
    """
    if len(states) > 1 and constant_levels(states).all():
        raise StoreError(
            f"{len(states):,} different contents of {modality} have the same states at every level",
            "states that distinguish items",
            "check that the files of the model are complete and suit these contents, or leave this modality out",
        )


def relative_errors(stored: Tensor, reference: Tensor) -> list[float | None]:
    """Storage error of every level relative to the spread between items.

    Some channels of decoders are thousands of times larger than the others and dominate the error over all
    channels, which would look small even if int8 rounded all other channels to zero. So the median over channels
    counts too.

    Args:
        stored: States as read from the store, [n, K, D].
        reference: The same states computed and kept in fp32, [n, K, D].

    Returns:
        For each of the K levels, rms(stored − reference) / rms(reference − mean) over all values or in the median
        of the varying channels, whichever is larger; ``None`` for levels that are equal for all items.
    """
    stored, reference = stored.double(), reference.double()
    # Mean squares per level and channel, [K, D].
    error = (stored - reference).square().mean(0)
    spread = (reference - reference.mean(0)).square().mean(0)
    size = reference.square().mean(0)
    constant = constant_levels(reference)
    overall = (error.mean(1) / spread.mean(1)).sqrt()
    # Without any varying channel the median is nan, which fmax ignores.
    by_channel = torch.where(spread > CONSTANT**2 * size, error / spread, torch.nan).nanmedian(1).values.sqrt()
    return [None if constant[k] else float(overall[k].fmax(by_channel[k])) for k in range(len(error))]


def storage_errors(
    states: Tensor,
    reference: Tensor,
    mean: Tensor,
    dtype: str,
    levels: Sequence[Level],
    label: Callable[[int], str],
) -> list[float | None]:
    """:func:`relative_errors` of states [n, K, D] after a round trip through :func:`encode_checked`."""
    encoded = encode_checked(states, mean, dtype, levels, label)
    return relative_errors(decode(encoded[STATES], encoded.get(SCALES), mean), reference)
