"""Opening images that come from anywhere."""

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from iisan.data.problems import VALUE, WHERE, Problems
from iisan.errors import DataError
from iisan.names import IMAGE, ITEM_ID
from iisan.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
#: Files looked for in a folder of images, the first of these that exists.
SUFFIXES = ("jpg", "jpeg", "png", "webp")

_CURE = "replace the image, or leave it out"


def open_image(data: bytes) -> "Image":
    """Decode an image completely.

    Transparent parts become white, the EXIF orientation is applied, of an animation the first frame is taken.

    Args:
        data: the bytes of a JPEG, PNG, WEBP, GIF or BMP file.

    Returns:
        The image in mode RGB.

    Raises:
        DataError: not an image of these formats, truncated, or larger than Pillow's limit of pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            # Pillow itself warns here, and refuses at twice the limit only.
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                upright = upright.point(lambda value: value / 256).convert("L")
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            return upright.convert("RGB")
    except UnidentifiedImageError:
        raise DataError("bytes that are not an image", f"one of {', '.join(FORMATS)}", _CURE) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            "an image that unpacks to too many pixels (decompression bomb)",
            f"at most {Image.MAX_IMAGE_PIXELS:,} pixels",
            "scale it down, or leave it out",
        ) from None
    except Exception as error:  # decoders fail in many ways on damaged bytes: OSError, SyntaxError, struct.error…
        raise DataError(f"an unreadable or truncated image ({error})", "a whole image", _CURE) from None


def check_image(data: bytes | Path) -> None:
    """Decode an image, given as bytes or file, and throw it away.

    Raises:
        DataError: as ``open_image``, or the file cannot be read.
    """
    open_image(data if isinstance(data, bytes) else read_image(data))


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        DataError: the file is gone or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the image file '{path}' cannot be read ({error.strerror or error})",
            "the file that the dataset was prepared with",
            "bring it back, or prepare the dataset again",
        ) from None


def inside(root: Path, relative: str) -> Path:
    """Join a path from outside to a folder.

    Raises:
        DataError: the path leads out of the folder, by ``..``, as an absolute path or through a link.
    """
    # os.path is several times faster than pathlib here, and this runs once per item.
    base = os.path.realpath(root)
    try:
        joined = os.path.realpath(os.path.join(base, relative))  # noqa: PTH118
        contained = os.path.commonpath([base, joined]) == base
    except ValueError:  # a zero byte, another drive
        contained = False
    if not contained:
        raise DataError(
            f"the image path '{relative}' leads out of '{root}'",
            "a path inside that folder",
            "give the images' folder, or move the image there",
        )
    return Path(joined)


def find_images(folder: Path, item_ids: pl.Series) -> pl.Series:
    """Find ``<item_id>.jpg|jpeg|png|webp`` in a folder.

    Returns:
        File name per item, null where there is none.

    Raises:
        DataError: the folder does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"no folder '{folder}'", "the folder of the images", "check the path")
    files = pl.DataFrame({IMAGE: sorted(path.name for path in folder.iterdir())}, schema={IMAGE: pl.String})
    parts = pl.col(IMAGE).str.extract_groups(r"^(?<stem>.+)\.(?<suffix>[^.]+)$").struct
    preference = {suffix: number for number, suffix in enumerate(SUFFIXES)}
    found = (
        files.with_columns(parts.field("stem").alias(ITEM_ID), parts.field("suffix").str.to_lowercase())
        .with_columns(pl.col("suffix").replace_strict(preference, default=None).alias("preference"))
        .drop_nulls("preference")
        .sort("preference", maintain_order=True)
        .unique(ITEM_ID, keep="first")
    )
    wanted = pl.DataFrame({ITEM_ID: item_ids})
    return wanted.join(found, on=ITEM_ID, how="left", maintain_order="left")[IMAGE]


def checked_images(items: pl.DataFrame, root: Path | None, decode: bool, problems: Problems) -> pl.DataFrame:
    """Check every image of a table; bad ones are reported and become null.

    Args:
        items: columns ``item_id`` and ``image`` (paths relative to ``root``, or bytes).
        root: folder of the paths.
        decode: also decode the images, in threads; otherwise only paths are checked.
        problems: where bad images are reported.

    Raises:
        DataError: a path that leads out of ``root``, or a bad image where the policy is ``stop``.
    """
    images = items[IMAGE]
    present = images.is_not_null().arg_true()

    def fault(index: int) -> str | None:
        content = images[index]
        path = None if isinstance(content, bytes) else inside(_required(root), content)
        if not decode:
            return None
        try:
            check_image(path or content)
        except DataError as error:
            return error.got
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        # Every decoder warning is either an error in `open_image` or of no concern to the caller.
        warnings.simplefilter("ignore")
        faults = list(track(pool.map(fault, present), "checking images", total=len(present)))
    bad = pl.DataFrame({"index": present, VALUE: faults}, schema={"index": pl.UInt32, VALUE: pl.String})
    bad = bad.drop_nulls(VALUE)
    names = items[ITEM_ID].gather(bad["index"])
    rows = bad.with_columns(("item '" + names + "'").alias(WHERE))
    problems.report(rows, "bad image", "a readable image of every item that has one")
    is_bad = pl.int_range(pl.len(), dtype=pl.UInt32).is_in(bad["index"].to_list())
    return items.with_columns(pl.when(~is_bad).then(IMAGE))


def _required(root: Path | None) -> Path:
    if root is None:
        raise DataError(
            "image paths without a folder that they are relative to", "images=FOLDER", "give the folder"
        )
    return root
