"""Items that come with a request: their images decoded with care, then added as ``iisan add-items`` adds them."""

import base64
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from iisan.data.images import open_image
from iisan.data.values import as_column
from iisan.errors import DataError
from iisan.names import IMAGE, ITEM_ID, TEXT
from iisan.serve.items import Change, add_items
from iisan.service.schemas import NewItem


def add(folder: Path, items: Sequence[NewItem], moved: Mapping[str, Path | None], pixels: int) -> Change:
    """Add items to a run.

    Args:
        folder: Run folder.
        items: The items.
        moved: ``states`` -> its folder, if that moved.
        pixels: Most pixels of an image.

    Raises:
        DataError: Items of one id, a column of a reserved name, or bytes that are not an image, or a large one.
        IisanError: See :func:`iisan.serve.items.add_items`.
    """
    ids = [item.item_id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise DataError(f"item '{twice}' twice in a request", "each item once", "leave one out")
    names = dict.fromkeys(name for item in items for name in item.columns)
    if reserved := {ITEM_ID, TEXT, IMAGE} & set(names):
        got = f"a column named '{min(reserved)}'"
        raise DataError(got, f"columns beside {ITEM_ID}, {TEXT} and {IMAGE}", "give it as a field of the item")
    columns = {name: as_column(name, [item.columns.get(name) for item in items]) for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        files = [_written(item, Path(temporary), pixels) for item in items]
        columns |= {ITEM_ID: pl.Series(ids), TEXT: pl.Series([item.text for item in items], dtype=pl.String)}
        root = None
        if any(files):
            columns[IMAGE], root = pl.Series(files, dtype=pl.String), Path(temporary)
        return add_items(folder, pl.DataFrame(columns), images=root, moved=moved)


def _written(item: NewItem, folder: Path, pixels: int) -> str | None:
    """Write an item's image under a name of our own, after decoding it."""
    if item.image is None:
        return None
    where = f"the image of item '{item.item_id}'"
    try:
        content = base64.b64decode(item.image, validate=True)
    except ValueError:
        raise DataError(f"{where} is not base64", "the file's bytes in base64", "encode it") from None
    try:
        open_image(content, pixels)
    except DataError as error:
        raise DataError(f"{where} is {error.got}", error.expected, error.cure) from None
    name = secrets.token_hex(8)
    (folder / name).write_bytes(content)
    return name
