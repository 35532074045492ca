"""Opening images that come from anywhere."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from iisan.errors import DataError
from iisan.names import IMAGE, ITEM_ID

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
#: Files looked for in a folder of images, the first of these that exists.
SUFFIXES = ("jpg", "jpeg", "png", "webp")

_CURE = "replace the image, or leave it out"


def open_image(data: bytes, at_least: int | None = None) -> "Image":
    """Decode an image completely.

    Transparent parts become white, the EXIF orientation is applied, of an animation the first frame is taken.

    Args:
        data: the bytes of a JPEG, PNG, WEBP, GIF or BMP file.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (draft mode) as long as both edges keep this
            many pixels; None decodes it at its own size.

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
            if at_least is not None:
                image.draft(None, (at_least, at_least))
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
