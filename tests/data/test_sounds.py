import io
import struct
import sys

import numpy as np
import pytest
import soundfile

from iisan.data.sounds import open_sound
from iisan.errors import DataError, MissingExtraError


def tone(frequency, seconds, rate):
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def encode(samples, rate, form="WAV", **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "subtype", "tolerance"),
    [("WAV", "FLOAT", 0), ("FLAC", "PCM_16", 1e-4), ("OGG", "VORBIS", 0.1), ("MP3", "MPEG_LAYER_III", 0.1)],
)
def test_the_usual_formats_open(form, subtype, tolerance):
    wave = 0.5 * tone(440, 1, 16_000)
    samples = open_sound(encode(wave, 16_000, form, subtype=subtype), 16_000, 0.5)
    assert samples.dtype == np.float32
    assert samples.shape == (8_000,)
    np.testing.assert_allclose(samples, wave[4_000:12_000], atol=tolerance)


def test_the_middle_is_taken_and_short_sounds_are_whole():
    wave = np.arange(1_000, dtype=np.float32) / 1_000
    data = encode(wave, 8_000, subtype="FLOAT")
    np.testing.assert_array_equal(open_sound(data, 8_000, 0.1), wave[100:900])
    np.testing.assert_array_equal(open_sound(data, 8_000, 10), wave)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_jump_into_an_mp3_does_not_change_it(rate):
    data = encode(0.5 * tone(440, 5, rate), rate, "MP3")
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    start = (len(whole) - rate) // 2
    np.testing.assert_allclose(open_sound(data, rate, 1), whole[start : start + rate], atol=1e-5)


def test_channels_are_averaged():
    both = np.stack([np.full(400, 0.5), np.full(400, -0.25)], axis=1)
    np.testing.assert_array_equal(open_sound(encode(both, 8_000, subtype="FLOAT"), 8_000, 1), np.full(400, 0.125))


@pytest.mark.parametrize("native", [8_000, 11_025, 44_100, 48_000])
def test_another_rate_is_converted(native):
    samples = open_sound(encode(tone(440, 1, native), native, subtype="FLOAT"), 16_000, 1)
    assert samples.dtype == np.float32
    assert samples.shape == (16_000,)
    inner = slice(200, -200)  # the filter rings at the ends
    np.testing.assert_allclose(samples[inner], tone(440, 1, 16_000)[inner], atol=5e-3)


def test_frequencies_above_the_new_nyquist_are_filtered_out():
    samples = open_sound(encode(tone(15_000, 1, 44_100), 44_100, subtype="FLOAT"), 16_000, 1)
    assert np.abs(samples[200:-200]).max() < 0.01


@pytest.mark.parametrize("native", [8_000, 22_050, 44_100])
def test_long_sounds_all_become_equally_long(native):
    sound = encode(np.zeros(native * 2, dtype=np.float32), native)
    assert len(open_sound(sound, 16_000, 0.7)) == 11_200


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>"])
def test_bytes_that_are_not_a_sound_are_refused(data):
    with pytest.raises(DataError, match="not a sound"):
        open_sound(data, 16_000, 1)


def test_empty_and_too_short_sounds_are_refused():
    for length, duration in ((0, "0 ms"), (199, "25 ms")):
        with pytest.raises(DataError, match=f"a sound of {duration}"):
            open_sound(encode(np.zeros(length), 8_000), 16_000, 1)
    assert len(open_sound(encode(np.zeros(200), 8_000), 16_000, 1)) == 400


@pytest.mark.parametrize("rate", [1_000, 400_000])
def test_unusable_rates_are_refused(rate):
    with pytest.raises(DataError, match=f"a sound at {rate:,} Hz"):
        open_sound(encode(np.zeros(rate), rate), 16_000, 1)


def test_truncated_and_infinite_sounds_are_refused():
    noise = np.random.default_rng(0).normal(size=32_000) / 5
    flac = encode(noise, 16_000, "FLAC")
    with pytest.raises(DataError, match="truncated"):
        open_sound(flac[: len(flac) // 2], 16_000, 10)
    infinite = bytearray(encode(np.zeros(400), 8_000, subtype="FLOAT"))
    infinite[-4:] = struct.pack("<f", float("inf"))
    with pytest.raises(DataError, match="not finite"):
        open_sound(bytes(infinite), 8_000, 1)


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[audio\]"'):
        open_sound(b"", 16_000, 1)
