import io
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from iisan.data import videos
from iisan.data.videos import sample_frames
from iisan.errors import DataError, MissingExtraError
from pictures import encoded

KINDS = [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("webm", "libvpx"), ("avi", "mpeg4"), ("mov", "mpeg4")]


def encode(pictures, form="mp4", codec="libx264", rate=10, gop=250, rotation=0):
    """A video of arrays [height, width, 3]."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def greys(count):
    """Images of distinct greys."""
    return [np.full((32, 32, 3), 40 + 160 * number // count, dtype=np.uint8) for number in range(count)]


def every_frame(data):
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("form", "codec"), KINDS)
@pytest.mark.parametrize("gop", [4, 250])
def test_the_frames_are_the_middles_of_equal_parts(form, codec, gop):
    data = encode(greys(25), form, codec, gop=gop)
    frames = every_frame(data)
    assert len(frames) == 25
    for count, wanted in ((1, [12]), (2, [6, 18]), (5, [2, 7, 12, 17, 22])):
        images = sample_frames(data, count)
        assert [(image.mode, image.size) for image in images] == [("RGB", (32, 32))] * count
        for image, position in zip(images, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(image), frames[position])
            assert abs(np.asarray(image).mean() - (40 + 160 * position // 25)) < 4


def test_short_videos_repeat_frames():
    data = encode(greys(2))
    first, second = every_frame(data)
    images = [np.asarray(image) for image in sample_frames(data, 5)]
    # 1/10, 3/10, 5/10, 7/10, 9/10 of two frames
    for image, frame in zip(images, (first, first, second, second, second), strict=True):
        np.testing.assert_array_equal(image, frame)


def test_segments_without_requested_frames_are_not_decoded(monkeypatch):
    decoded = []
    original = videos._decode

    def counting(*arguments):
        for frame in original(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(videos, "_decode", counting)
    data = encode(greys(100), codec="mpeg4", gop=5)
    frames = every_frame(data)
    for image, position in zip(sample_frames(data, 2), (25, 75), strict=True):
        np.testing.assert_array_equal(np.asarray(image), frames[position])
    assert len(decoded) <= 10


def test_open_segments_decode_the_frames_that_they_refer_to():
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(40)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:b-adapt=0:scenecut=0"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = buffer.getvalue()
    _, segments = videos._index(av, data)
    assert any(len(needed) == 2 for needed in segments.values())
    frames = every_frame(data)
    for count in range(1, 41):
        for part, image in enumerate(sample_frames(data, count)):
            np.testing.assert_array_equal(np.asarray(image), frames[(2 * part + 1) * 40 // (2 * count)])


def test_a_turned_camera_is_turned_back():
    picture = np.zeros((32, 64, 3), dtype=np.uint8)
    picture[:, :16] = 255  # white on the left
    upright = sample_frames(encode([picture] * 3, rotation=90), 1)[0]
    assert upright.size == (32, 64)
    lower_end = np.asarray(upright)[-8:].mean()
    assert lower_end > 230  # counter-clockwise: left becomes bottom
    assert np.asarray(upright)[:8].mean() < 25


def test_pictures_are_videos_of_one_frame():
    data = encoded(Image.new("RGB", (8, 6), (10, 200, 30)))
    assert [image.getpixel((0, 0)) for image in sample_frames(data, 2)] == [(10, 200, 30)] * 2


@pytest.mark.parametrize(
    "data", [b"", b"<html>not found</html>", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n"]
)
def test_bytes_that_are_not_a_video_are_refused(data):
    with pytest.raises(DataError, match="not a video"):
        sample_frames(data, 2)


def test_a_file_with_sound_only_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="without a video stream"):
        sample_frames(buffer.getvalue(), 2)


def test_damaged_videos_are_refused():
    data = encode(greys(25))
    with pytest.raises(DataError):
        sample_frames(data[: len(data) // 2], 2)
    start, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
    noise = np.random.default_rng(0).integers(0, 256, end - start, dtype=np.uint8).tobytes()
    with pytest.raises(DataError, match="unreadable"):
        sample_frames(data[:start] + noise + data[end:], 2)


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[video\]"'):
        sample_frames(b"", 1)
