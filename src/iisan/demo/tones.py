"""Short tones of products, computed for whole blocks of items: instruments of different timbre, at any pitch."""

import wave
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from iisan.demo.products import Attributes, columns

RATE: Final = 16_000  # Hz
SAMPLES: Final = 6_400
Tones = npt.NDArray[np.int16]

_LOWEST = 220.0  # Hz; pitches are spread over the octave above
#: One row per value of the timbre: strength of a partial relative to the one before it, of even partials, decay
#: (1/s), vibrato and tremolo (shares of pitch and strength).
_INSTRUMENTS: Final = np.array(
    [
        (0.0, 1.0, 0.0, 0.00, 0.0),
        (0.8, 1.0, 0.0, 0.00, 0.0),
        (0.8, 0.0, 0.0, 0.00, 0.0),
        (0.4, 1.0, 0.0, 0.08, 0.0),
        (0.8, 1.0, 14.0, 0.00, 0.0),
        (0.4, 1.0, 0.0, 0.00, 0.9),
    ]
)
_PARTIALS = 10
_ATTACK = 0.02  # seconds
_TURNS = 12.0  # of vibrato and tremolo, Hz


def render(attributes: Attributes, rng: np.random.Generator) -> Tones:
    """Play a tone of each product.

    Args:
        attributes: ``[n, 9]`` value numbers, columns as in ``EXTENDED_ATTRIBUTES``.
        rng: source of pitch, loudness, phases, tempo and noise, none of which tells anything.

    Returns:
        ``[n, SAMPLES]`` int16 at ``RATE``.
    """
    (timbre,) = attributes[:, columns(("timbre",))].T
    fade, even, decay, vibrato, tremolo = _INSTRUMENTS[timbre].T[..., None]

    def uniform(low: float, high: float) -> npt.NDArray[np.floating[Any]]:
        return rng.uniform(low, high, (len(attributes), 1))

    time = np.arange(SAMPLES) / RATE
    turns = 2 * np.pi * _TURNS * uniform(0.8, 1.25)
    start = uniform(0, 2 * np.pi)
    pitch = 2 * np.pi * _LOWEST * 2 ** uniform(0, 1)
    # The integral of pitch · (1 + vibrato · cos(turns · t + start)).
    phase = pitch * (time + vibrato / turns * np.sin(turns * time + start))
    tone = np.zeros((len(attributes), SAMPLES))
    for number in range(1, _PARTIALS + 1):
        strength = fade ** (number - 1) * (even if number % 2 == 0 else 1.0)
        tone += strength * np.sin(number * phase + uniform(0, 2 * np.pi))
    tone *= (
        np.minimum(time / _ATTACK, 1) * np.exp(-decay * time) * (1 - tremolo * (0.5 + np.sin(turns * time) / 2))
    )
    tone *= uniform(0.2, 0.8) / abs(tone).max(axis=1, keepdims=True)
    tone += 0.01 * rng.standard_normal(tone.shape)
    return (np.clip(tone, -1, 1) * 32_767).astype(np.int16)


def write(tone: Tones, path: Path) -> None:
    """Write one tone, ``[SAMPLES]``, as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(tone.astype("<i2").tobytes())
