"""Opening videos that come from anywhere."""

import io
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iisan.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

#: FFmpeg's names of the containers that are opened; a picture is a video of one frame. Others are not, because
#: some (playlists) would open further files and addresses.
FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif"),
    *("png_pipe", "jpeg_pipe", "webp_pipe"),
)

_CURE = "replace the video, or leave it out"


def sample_frames(data: bytes, count: int) -> list["Image"]:
    """Decode evenly spaced frames of a video: the middle frame of each of ``count`` equal parts.

    The packets are read twice, first only for their times: what containers say about the number of frames is
    often wrong or missing. Stretches from one key frame to the next that hold no wanted frame are not decoded,
    and never more than the wanted frames are kept.

    Args:
        data: the bytes of an MP4, MOV, WEBM, MKV, AVI, MPEG, FLV, WMV, OGG or GIF file.
        count: number of frames n; shorter videos repeat some.

    Returns:
        n images in mode RGB, upright, in the order of time.

    Raises:
        DataError: not a video of these formats, without pictures, or damaged.
        MissingExtraError: the extra ``video`` is not installed.
    """
    av = import_av()
    frames: list[Image] = []
    try:
        times, stretches = _index(av, data)
        if not times:
            raise DataError("a video without any frame that has a time", "at least one frame", _CURE)
        wanted = [times[(2 * part + 1) * len(times) // (2 * count)] for part in range(count)]
        needed = {stretch for time in set(wanted) for stretch in stretches[time]}
        for frame in _decode(av, data, needed):
            repeats = bisect_left(wanted[len(frames) :], frame.pts + 1)
            if repeats:
                frames.extend([frame.to_image().rotate(frame.rotation, expand=True)] * repeats)
            if len(frames) == count:
                return frames
    except (av.FFmpegError, ValueError) as error:
        reason = str(error).partition(":")[0]
        raise DataError(f"an unreadable or truncated video ({reason})", "a whole video", _CURE) from None
    if not frames:
        raise DataError("a video of which no frame can be decoded", "a whole video", _CURE)
    # Some codecs have frames that are decoded but never shown.
    return frames + frames[-1:] * (count - len(frames))


def _index(av: Any, data: bytes) -> tuple[list[int], dict[int, tuple[int, ...]]]:
    """Times of all frames, ascending, and the stretches that each needs; stretch i begins with key frame i."""
    times: dict[int, tuple[int, ...]] = {}
    start, stretch = 0, 0
    with _open(av, data) as container:
        for packet in container.demux(_stream(container)):
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                start, stretch = packet.pts, stretch + 1
            # A frame that is shown before its key frame refers to the stretch before as well.
            times[packet.pts] = (stretch,) if packet.pts >= start else (stretch - 1, stretch)
    return sorted(times), times


def _decode(av: Any, data: bytes, stretches: set[int]) -> Iterator[Any]:
    stretch = 0
    with _open(av, data) as container:
        for packet in container.demux(_stream(container)):
            stretch += packet.is_keyframe
            # The last packet is empty; it makes the decoder give what it has held back.
            if stretch in stretches or not packet.size:
                yield from (frame for frame in packet.decode() if frame.pts is not None)


def _open(av: Any, data: bytes) -> Any:
    try:
        return av.open(io.BytesIO(data), options={"format_whitelist": ",".join(FORMATS)})
    except (av.FFmpegError, ValueError):
        raise DataError("bytes that are not a video", "MP4, WEBM, MKV, AVI, MPEG or GIF", _CURE) from None


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise DataError("a file without moving pictures", "a video", _CURE)
    return container.streams.video[0]


def import_av(purpose: str = "reading videos") -> Any:
    """PyAV, which few installations need.

    Raises:
        MissingExtraError: the extra ``video`` is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "video", purpose) from None
    return av
