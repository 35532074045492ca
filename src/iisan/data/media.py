"""Columns of media files, such as images: paths or bytes."""

import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import polars as pl

from iisan.data.images import ADDRESS, open_image
from iisan.data.problems import VALUE, WHERE, Problems
from iisan.data.sounds import open_sound
from iisan.data.videos import sample_frames
from iisan.errors import DataError
from iisan.files import content_key
from iisan.names import AUDIO, IMAGE, ITEM_ID, VIDEO
from iisan.progress import track

#: Functions that decode the bytes of a file or raise ``DataError``, by kind.
_DECODERS: dict[str, Callable[[bytes], object]] = {
    IMAGE: open_image,
    AUDIO: partial(open_sound, rate=16_000, seconds=1.0),
    VIDEO: partial(sample_frames, count=1),
}


def read_file(path: Path) -> bytes:
    """Read a media file.

    Raises:
        DataError: The file is gone or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the file '{path}' cannot be read ({error.strerror or error})",
            "the file that the dataset was prepared with",
            "pass --images FOLDER if it moved, bring it back, or prepare the dataset again",
        ) from None


def inside(root: Path, relative: str) -> Path:
    """Join an untrusted path to a folder.

    Raises:
        DataError: The path leads out of the folder: by ``..``, as an absolute path or through a link.
    """
    # os.path is several times faster than pathlib here, and this runs once per item.
    base = os.path.realpath(root)
    try:
        joined = os.path.realpath(os.path.join(base, relative))  # noqa: PTH118
        contained = os.path.commonpath([base, joined]) == base
    except ValueError:  # null byte or another drive
        contained = False
    if not contained:
        got = f"the path '{relative}' leads out of '{root}'"
        raise DataError(got, "a path inside that folder", "give the files' folder, or move the file there")
    return Path(joined)


def clean_files(values: pl.Series, table: str) -> pl.Series:
    """Return paths or bytes (also those of Hugging Face's ``{bytes, path}``); empty ones become null.

    Raises:
        DataError: Values of another type.
    """
    if values.dtype == pl.Null:
        return values.cast(pl.String)
    if isinstance(values.dtype, pl.Struct) and values.dtype.to_schema().get("bytes") == pl.Binary:
        values = _embedded(values)
    if values.dtype not in (pl.String, pl.Binary):
        raise DataError(
            f"{table} has the column '{values.name}' of type {values.dtype}",
            "paths (strings) or bytes (binary, in every row where a struct holds them)",
            "write one of those, or choose another column",
        )
    nothing = "" if values.dtype == pl.String else b""
    return values.to_frame().select(pl.when(pl.col(values.name) != nothing).then(values.name)).to_series()


def _embedded(values: pl.Series) -> pl.Series:
    """The bytes of structs, unless a row has something else instead, such as a path."""
    content = values.struct.field("bytes")
    others = values.struct.unnest().drop("bytes").filter(content.is_null())
    return values if any(others[name].count() for name in others.columns) else content.alias(values.name)


def has_paths(values: pl.Series) -> bool:
    """Whether a cleaned column of files holds paths."""
    return values.dtype == pl.String and values.null_count() < len(values)


def checked_files(
    items: pl.DataFrame, column: str, kind: str, root: Path | None, decode: bool, problems: Problems
) -> tuple[pl.DataFrame, pl.Series]:
    """Read every file of a column; bad ones are reported and become null.

    Paths are relative to ``root``; with ``decode``, files are also decoded.

    Returns:
        The items, and the content keys of their files: strings [N], null where missing.

    Raises:
        DataError: A path that leads out of ``root``, or a bad file (policy ``stop``).
    """
    files = items[column]
    present = files.is_not_null().arg_true()
    if root is None and has_paths(files) and not files.drop_nulls().str.contains(ADDRESS).all():
        got = f"{column} paths without a folder that they are relative to"
        raise DataError(got, "images=FOLDER", "give the folder")

    def checked(index: int) -> tuple[int, str | None, str | None]:
        """Index of the item, and the key of its file or what is wrong with it."""
        content = files[index]
        if isinstance(content, str) and re.match(ADDRESS, content):
            return index, None, f"the web address '{content}' in the place of a file"
        path = inside(root, content) if root and isinstance(content, str) else None
        try:
            content = read_file(path) if path else content
            if decode:
                _DECODERS[kind](content)
        except DataError as error:
            return index, None, error.got
        return index, content_key(content), None

    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        # Warnings of decoders that matter are errors in `open_image`.
        warnings.simplefilter("ignore")
        rows = list(track(pool.map(checked, present), f"checking {column}s", total=len(present)))
    schema = {"index": pl.UInt32, "key": pl.String, VALUE: pl.String}
    found = pl.DataFrame(rows, schema, orient="row")
    bad = found.drop_nulls(VALUE)
    names = items[ITEM_ID].gather(bad["index"])
    bad = bad.with_columns(("item '" + names + "'").alias(WHERE))
    addresses = kind == IMAGE and has_paths(files) and files.str.contains(ADDRESS).any()
    hint = ", or download such pictures first with `iisan download-images`" if addresses else ""
    problems.report(bad, f"bad {column}", f"a readable {kind} of every item that has one", hint)
    is_bad = pl.int_range(pl.len(), dtype=pl.UInt32).is_in(bad["index"].to_list())
    keys = pl.repeat(None, len(items), dtype=pl.String, eager=True).scatter(found["index"], found["key"])
    return items.with_columns(pl.when(~is_bad).then(column)), keys.alias(column)
