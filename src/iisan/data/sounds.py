"""Decoding of sounds from untrusted sources."""

import io
import math

import numpy as np

from iisan.errors import DataError, MissingExtraError

#: Accepted sampling rates in Hz: lower ones lose most of a sound, higher ones are never recorded.
RATES = (4_000, 384_000)

#: Duration of one analysis window of common audio models; shorter sounds have no spectrum.
MIN_SECONDS = 0.025

_CURE = "replace the sound, or leave it out"


def open_sound(data: bytes, rate: int, seconds: float) -> np.ndarray:
    """Decode the middle of a sound to mono at a given sampling rate.

    Recordings tend to begin and end with silence, hence the middle. Channels are averaged; other sampling rates
    are converted by a polyphase filter.

    Args:
        data: Bytes of a file in a format of libsndfile: WAV, FLAC, OGG, MP3, AIFF and more.
        rate: Sampling rate of the result in Hz.
        seconds: Maximum duration; only this part is decoded.

    Returns:
        ``int(seconds * rate)`` samples in fp32, fewer if the sound is shorter.

    Raises:
        DataError: Not a sound, empty, shorter than 25 ms, damaged, or with a sampling rate outside ``RATES``.
        MissingExtraError: The extra ``audio`` is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is installed without its library
        raise MissingExtraError("soundfile", "audio", "reading sounds") from None
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
            got = f"a sound of {1000 * file.frames / file.samplerate:.0f} ms"
            raise DataError(got, f"at least {1000 * MIN_SECONDS:.0f} ms", _CURE)
        wanted = min(file.frames, math.ceil(seconds * file.samplerate))
        start = (file.frames - wanted) // 2
        # MP3 frames may use bits of earlier frames, so the first frames after a seek decode wrongly.
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
        # Imported here, because it takes longer than most commands that open a dataset.
        from scipy.signal import resample_poly

        divisor = math.gcd(native, rate)
        samples = resample_poly(samples, rate // divisor, native // divisor)
    return samples[: int(seconds * rate)]


def _damaged(reason: str) -> DataError:
    return DataError(f"an unreadable or truncated sound ({reason})", "a complete sound", _CURE)
