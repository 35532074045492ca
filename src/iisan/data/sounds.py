"""Opening sounds that come from anywhere."""

import io
import math
from typing import Any

import numpy as np

from iisan.errors import DataError, MissingExtraError

#: Sampling rates in Hz that are taken: below, little of a sound is left; above, nothing is recorded.
RATES = (4_000, 384_000)

#: One analysis window of the usual audio models; anything shorter has no spectrum.
MIN_SECONDS = 0.025

_CURE = "replace the sound, or leave it out"


def open_sound(data: bytes, rate: int, seconds: float) -> np.ndarray:
    """Decode the middle of a sound as one channel at a wanted sampling rate.

    The middle, because recordings tend to begin and end with silence. Channels are averaged; another sampling
    rate is converted with a polyphase filter.

    Args:
        data: the bytes of a file that libsndfile reads: WAV, FLAC, OGG, MP3, AIFF and more.
        rate: samples per second of the result.
        seconds: longest part that is taken; no more than this is decoded.

    Returns:
        Samples in fp32, at most ``int(seconds * rate)``, of a sound that is long enough exactly so many.

    Raises:
        DataError: not a sound, empty, shorter than 25 ms, damaged, or at a sampling rate out of ``RATES``.
        MissingExtraError: the extra ``audio`` is not installed.
    """
    soundfile = _soundfile()
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        raise DataError("bytes that are not a sound", "WAV, FLAC, OGG, MP3 or AIFF", _CURE) from None
    with file:
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise DataError(
                f"a sound at {file.samplerate:,} Hz", f"a sampling rate of {RATES[0]:,} to {RATES[1]:,} Hz", _CURE
            )
        if file.frames < MIN_SECONDS * file.samplerate:
            raise DataError(
                f"a sound of {1000 * file.frames / file.samplerate:.0f} ms",
                f"at least {1000 * MIN_SECONDS:.0f} ms",
                _CURE,
            )
        wanted = min(file.frames, math.ceil(seconds * file.samplerate))
        start = (file.frames - wanted) // 2
        # An MP3 frame may borrow bits from frames before it, so the first ones after a jump come out wrong.
        lead = min(start, file.samplerate)
        try:
            file.seek(start - lead)
            channels = file.read(lead + wanted, dtype="float32", always_2d=True)[lead:]
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise _damaged(str(error)) from None
        if len(channels) < wanted:
            raise _damaged(f"{wanted - len(channels)} of {wanted} samples missing")
        native = file.samplerate
    samples = channels.mean(axis=1)
    if not np.isfinite(samples).all():
        raise _damaged("samples that are not finite")
    if native != rate:
        # Loading it takes longer than most commands, and every command that opens a dataset comes by here.
        from scipy.signal import resample_poly

        shared = math.gcd(native, rate)
        samples = resample_poly(samples, rate // shared, native // shared)
    return samples[: int(seconds * rate)]


def _damaged(reason: str) -> DataError:
    return DataError(f"an unreadable or truncated sound ({reason})", "a whole sound", _CURE)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is there, its library is not
        raise MissingExtraError("soundfile", "audio", "reading sounds") from None
    return soundfile
