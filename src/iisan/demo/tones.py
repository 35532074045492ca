"""Short tones of products, rendered for whole blocks of items: instruments of different timbre, at any pitch."""

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
#: One row per timbre: ratio of successive partials, factor of even partials, decay (1/s), depths of vibrato
#: (fraction of the pitch) and tremolo (fraction of the amplitude).
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
_MODULATION = 12.0  # rate of vibrato and tremolo, Hz


def render(attributes: Attributes, rng: np.random.Generator) -> Tones:
    """Render tones of products with attributes ``[n, 9]``: samples ``[n, SAMPLES]`` at ``RATE``, int16.

    Pitch, loudness, phases, modulation rate and noise are random.
    """
    (timbre,) = attributes[:, columns(("timbre",))].T
    fade, even, decay, vibrato, tremolo = _INSTRUMENTS[timbre].T[..., None]

    def uniform(low: float, high: float) -> npt.NDArray[np.floating[Any]]:
        return rng.uniform(low, high, (len(attributes), 1))

    time = np.arange(SAMPLES) / RATE
    rate = 2 * np.pi * _MODULATION * uniform(0.8, 1.25)
    start = uniform(0, 2 * np.pi)
    pitch = 2 * np.pi * _LOWEST * 2 ** uniform(0, 1)
    # The integral of pitch · (1 + vibrato · cos(rate · t + start)).
    phase = pitch * (time + vibrato / rate * np.sin(rate * time + start))
    tone = np.zeros((len(attributes), SAMPLES))
    for number in range(1, _PARTIALS + 1):
        strength = fade ** (number - 1) * (even if number % 2 == 0 else 1.0)
        tone += strength * np.sin(number * phase + uniform(0, 2 * np.pi))
    tone *= np.minimum(time / _ATTACK, 1) * np.exp(-decay * time) * (1 - tremolo * (0.5 + np.sin(rate * time) / 2))
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
