"""Decoding of images from untrusted sources, and their search in folders."""

import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from iisan.data.problems import VALUE, WHERE, Problems
from iisan.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats of Pillow that are read, and the extensions that files of them are given.
_EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tiff"}
FORMATS = tuple(_EXTENSIONS)
#: Extensions that are searched in a folder of images; the last two are found in order to be refused.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic"),
)

#: Pattern of web addresses.
ADDRESS = r"^(?i:https?)://"
_CURE = "replace the image, or leave it out"
#: Characters of item ids that are escaped in file names: those that some file system refuses, and ``%`` itself.
_ESCAPED = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|%]|^\.')


def open_image(data: bytes, pixels: int | None = None) -> "Image":
    """Decode the bytes of an image file to mode RGB.

    Transparent parts become white, the EXIF orientation is applied, and the first frame of an animation is taken.

    Args:
        data: The bytes.
        pixels: Maximum number of pixels, if less than Pillow's own.

    Raises:
        DataError: Not an image in one of ``FORMATS``, truncated, or above the limit of pixels.
    """
    from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

    # Pillow's limit of 1 MB for each text and colour profile of a PNG would refuse sound profiles.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    limit = min((each for each in (pixels, Image.MAX_IMAGE_PIXELS) if each is not None), default=None)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Pillow warns here and refuses only at twice the limit.
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
            f"at most {limit:,} pixels",
            "scale it down, or leave it out",
        ) from None
    except Exception as error:  # decoders fail in many ways on damaged bytes: OSError, SyntaxError, struct.error…
        raise DataError(f"an unreadable or truncated image ({error})", "a whole image", _CURE) from None


def extension_of(data: bytes) -> str:
    """Extension of an image file that :func:`open_image` can open, by its bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _EXTENSIONS[str(image.format)]


def file_stem(item_id: str) -> str:
    """Name of an item's image file without its extension: the id, percent-encoded where file systems need that."""
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", item_id)


def image_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Names without extension, and paths relative to the folder, of the images in it and its subfolders."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, ending = os.path.splitext(name)  # noqa: PTH122
            if ending.lower() in SUFFIXES:
                yield stem, os.path.relpath(os.path.join(parent, name), folder)  # noqa: PTH118


def are_addresses(values: pl.Series) -> bool:
    """Whether a column holds only web addresses, or lists of them."""
    first = values.list.first() if values.dtype == pl.List(pl.String) else values
    return first.dtype == pl.String and 0 < first.count() == first.str.contains(ADDRESS).sum()


def find_images(folder: Path, item_ids: pl.Series, required: bool, problems: Problems) -> pl.Series:
    """Find the files ``<item_id>.jpg`` (or another of ``SUFFIXES``) in a folder and its subfolders.

    Ids that cannot be file names are looked up as :func:`file_stem` writes them.

    Returns:
        Paths relative to the folder, ``[N]``, null where missing; items with several files are reported.

    Raises:
        DataError: No such folder, several images of one item (policy ``stop``), or none at all if ``required``.
    """
    if not folder.is_dir():
        raise DataError(f"no folder '{folder}'", "the folder of the images", "check the path")
    found: dict[str, list[str]] = defaultdict(list)
    for stem, path in image_files(folder):
        found[stem].append(path)
    files = [found.get(item) or found.get(file_stem(item), []) for item in item_ids]
    if required and files and not any(files):
        there = next((each[0] for each in found.values()), None)
        raise DataError(
            f"none of the {len(files):,} items has an image in '{folder}', which holds "
            + (f"'{there}' for example" if there else "no image"),
            f"files such as '{item_ids[0]}.jpg' in it or in folders inside it ({', '.join(SUFFIXES)})",
            "check the folder and the item ids, or name the column of paths with --image COLUMN",
        )
    several = [
        (f"item '{item}'", ", ".join(each)) for item, each in zip(item_ids, files, strict=True) if len(each) > 1
    ]
    rows = pl.DataFrame(several, schema={WHERE: pl.String, VALUE: pl.String}, orient="row")
    hint = ", or name the files in a column and pass --image COLUMN"
    problems.report(rows, "several images of one item", "one file per item", hint)
    return pl.Series([each[0] if len(each) == 1 else None for each in files], dtype=pl.String)
