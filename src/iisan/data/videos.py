"""Decoding of videos from untrusted sources."""

import io
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iisan.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

#: FFmpeg's names of the accepted containers; an image is a video of one frame. Others are refused, because some
#: (playlists) would open further files and addresses.
FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif"),
    *("png_pipe", "jpeg_pipe", "webp_pipe"),
)

_CURE = "replace the video, or leave it out"


def sample_frames(data: bytes, count: int) -> list["Image"]:
    """Decode evenly spaced frames of a video: the middle frame of each of ``count`` equal parts.

    The packets are read twice, first only for their times, because the frame counts of containers are often wrong
    or missing. Segments (from one key frame to the next) without a requested frame are not decoded, and only the
    requested frames are kept in memory.

    Args:
        data: Bytes of an MP4, MOV, WEBM, MKV, AVI, MPEG, FLV, WMV, OGG or GIF file.
        count: Number of frames n; shorter videos repeat some.

    Returns:
        n upright RGB images in temporal order.

    Raises:
        DataError: Not a video in one of these formats, without a video stream, or damaged.
        MissingExtraError: The extra ``video`` is not installed.
    """
    av = import_av()
    frames: list[Image] = []
    try:
        times, segments = _index(av, data)
        if not times:
            raise DataError("a video without a frame that has a timestamp", "at least one frame", _CURE)
        wanted = [times[(2 * part + 1) * len(times) // (2 * count)] for part in range(count)]
        needed = {segment for time in set(wanted) for segment in segments[time]}
        for frame in _decode(av, data, needed):
            repeats = bisect_left(wanted[len(frames) :], frame.pts + 1)
            if repeats:
                frames.extend([frame.to_image().rotate(frame.rotation, expand=True)] * repeats)
            if len(frames) == count:
                return frames
    except (av.FFmpegError, ValueError) as error:
        reason = str(error).partition(":")[0]
        raise DataError(f"an unreadable or truncated video ({reason})", "a complete video", _CURE) from None
    if not frames:
        raise DataError("a video of which no frame can be decoded", "a complete video", _CURE)
    # Some codecs have frames that are decoded but never shown.
    return frames + frames[-1:] * (count - len(frames))


def _index(av: Any, data: bytes) -> tuple[list[int], dict[int, tuple[int, ...]]]:
    """Ascending times of all frames, and the segments needed for each; segment i begins with key frame i."""
    times: dict[int, tuple[int, ...]] = {}
    start, segment = 0, 0
    with _open(av, data) as container:
        for packet in container.demux(_stream(container)):
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                start, segment = packet.pts, segment + 1
            # A frame that is shown before its key frame refers to the previous segment as well.
            times[packet.pts] = (segment,) if packet.pts >= start else (segment - 1, segment)
    return sorted(times), times


def _decode(av: Any, data: bytes, segments: set[int]) -> Iterator[Any]:
    segment = 0
    with _open(av, data) as container:
        for packet in container.demux(_stream(container)):
            segment += packet.is_keyframe
            # The last packet is empty and flushes the decoder.
            if segment in segments or not packet.size:
                yield from (frame for frame in packet.decode() if frame.pts is not None)


def _open(av: Any, data: bytes) -> Any:
    try:
        return av.open(io.BytesIO(data), options={"format_whitelist": ",".join(FORMATS)})
    except (av.FFmpegError, ValueError):
        raise DataError("bytes that are not a video", "MP4, WEBM, MKV, AVI, MPEG or GIF", _CURE) from None


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise DataError("a file without a video stream", "a video", _CURE)
    return container.streams.video[0]


def import_av(purpose: str = "reading videos") -> Any:
    """Import the optional library PyAV, or raise MissingExtraError."""
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "video", purpose) from None
    return av
