"""How states are stored: plain fp32, or low-precision differences from a per-level mean.

Levels share a large common vector, next to which the spread between items is small; a low-precision format
spends its digits on that vector unless it is taken out first.

Legend: n rows, K levels, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iisan.encoders.levels import Level
from iisan.errors import ConfigError, StoreError

STATES, SCALES = "states", "scales"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}

#: Spread between items below this share of the states' size is rounding noise: the level is constant.
CONSTANT = 1e-5

_TINY = torch.finfo(torch.float32).tiny


def check_dtype(dtype: str) -> None:
    """Raise ConfigError unless ``dtype`` is a storage format."""
    if dtype not in DTYPES:
        raise ConfigError(f"storage dtype {dtype!r}", ", ".join(DTYPES), "choose one of these")


def level_means(states: Tensor, dtype: str) -> Tensor:
    """What is taken out of states [n, K, D] before storing: fp32 [K, D], zero for plain fp32."""
    return torch.zeros_like(states[0]) if dtype == "fp32" else states.double().mean(0).float()


def encode(states: Tensor, mean: Tensor, dtype: str) -> dict[str, Tensor]:
    """Turn fp32 states [n, K, D] into the tensors that are stored.

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
    """Undo :func:`encode`: fp32 [n, K, D]; without the mean the differences from it."""
    differences = stored.to(torch.float32, copy=True)
    if scales is not None:
        differences.mul_(scales.unsqueeze(-1))
    return differences if mean is None else differences.add_(mean)


def check_finite(values: Tensor, levels: Sequence[Level], label: Callable[[int], str], dtype: str) -> None:
    """Check that no value left the range of the storage format or of the computation.

    Args:
        values: states [n, K, D], or scales [n, K].
        levels: the K levels, for the message.
        label: from a row of ``values`` to the name of its item.
        dtype: the format of the values, for the message.

    Raises:
        StoreError: an infinite or undefined value.
    """
    finite = torch.isfinite(values).reshape(*values.shape[:2], -1).all(-1)
    if not finite.all():
        row, level = (int(index) for index in (~finite).nonzero()[0])
        raise StoreError(
            f"level {levels[level]} of {label(row)} is infinite or not a number in {dtype}",
            "finite states",
            "use --dtype bf16 or fp32 and --precision fp32, or leave this level out",
        )


def encode_checked(
    states: Tensor, mean: Tensor, dtype: str, levels: Sequence[Level], label: Callable[[int], str]
) -> dict[str, Tensor]:
    """:func:`encode` with :func:`check_finite`."""
    encoded = encode(states, mean, dtype)
    check_finite(encoded.get(SCALES, encoded[STATES]), levels, label, dtype)
    return encoded


def constant_levels(states: Tensor) -> Tensor:
    """Which levels of states [n, K, D] are the same in all rows but for rounding: bool [K]."""
    states = states.double()
    spread = (states - states.mean(0)).square().mean((0, 2))
    return spread <= CONSTANT**2 * states.square().mean((0, 2))


def check_distinct(states: Tensor, modality: str) -> None:
    """Check that the states [n, K, D] of n different contents differ at some level.

    Raises:
        StoreError: they differ at none.
    """
    if len(states) > 1 and constant_levels(states).all():
        raise StoreError(
            f"{len(states):,} different contents of {modality} have the same states at every level",
            "states that tell items apart",
            "check that the files of the model are complete and suit these contents, or leave this modality out",
        )


def relative_errors(stored: Tensor, reference: Tensor) -> list[float | None]:
    """Storage error of every level next to the spread between items, in all and in the middle channel.

    Decoders have channels thousands of times larger than the others. Those alone decide the error over all
    channels, which would call int8 fine where it rounds every other channel to nothing; so the median over the
    channels counts as well.

    Args:
        stored: what reading gives back, [n, K, D].
        reference: the same states computed and kept in fp32, [n, K, D].

    Returns:
        K times rms(stored − reference) / rms(reference − its mean), over the level's values or in the median of
        its channels that vary, whichever is larger; ``None`` for levels that are the same for all items.
    """
    stored, reference = stored.double(), reference.double()
    # Mean squares per level and channel, [K, D].
    error = (stored - reference).square().mean(0)
    spread = (reference - reference.mean(0)).square().mean(0)
    size = reference.square().mean(0)
    constant = constant_levels(reference)
    in_all = (error.mean(1) / spread.mean(1)).sqrt()
    # The median of nothing is undefined, and what is undefined is passed over.
    by_channel = torch.where(spread > CONSTANT**2 * size, error / spread, torch.nan).nanmedian(1).values.sqrt()
    return [None if constant[k] else float(in_all[k].fmax(by_channel[k])) for k in range(len(error))]


def storage_errors(
    states: Tensor,
    reference: Tensor,
    mean: Tensor,
    dtype: str,
    levels: Sequence[Level],
    label: Callable[[int], str],
) -> list[float | None]:
    """:func:`relative_errors` of states [n, K, D] that are stored and read again.

    Raises:
        StoreError: a value that the storage format cannot hold; see :func:`check_finite`.
    """
    encoded = encode_checked(states, mean, dtype, levels, label)
    return relative_errors(decode(encoded[STATES], encoded.get(SCALES), mean), reference)
