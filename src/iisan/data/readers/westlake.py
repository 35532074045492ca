"""MicroLens, PixelRec and NineRec: short videos and their covers, by item id."""

from iisan.data.options import PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import (
    CSV,
    DUPLICATE_ITEM,
    UNKNOWN_ITEM,
    Files,
    Layout,
    Part,
    RawTables,
    Reader,
    read_interactions,
    read_items,
)
from iisan.names import ITEM_ID, TIMESTAMP, USER_ID

_COUNTS = (
    *("view_number", "comment_number", "thumbup_number", "share_number", "coin_number"),
    *("favorite_number", "barrage_number"),
)
_KNOWN = (UNKNOWN_ITEM, DUPLICATE_ITEM)


def _read_microlens(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    # Titles of 50K have a header line, those of 100K have none.
    titles = files["titles"][0]
    items = read_items(titles, options, problems, form=CSV, header=("item", "title"), detect=True)
    return RawTables(items, read_interactions(files["pairs"][0], options, problems, form=CSV))


def _read_pixelrec(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    keep = ("title", "title_en", "tag", "description")
    items = read_items(files["items"][0], options, problems, keep=keep, numbers=_COUNTS, form=CSV)
    return RawTables(items, read_interactions(files["interactions"][0], options, problems, form=CSV))


def _read_ninerec(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    header = (ITEM_ID, "title", "title_en")
    items = read_items(files["items"][0], options, problems, keep=header[1:], form=CSV, header=header)
    pairs = (ITEM_ID, USER_ID, TIMESTAMP)
    return RawTables(items, read_interactions(files["pairs"][0], options, problems, form=CSV, header=pairs))


MICROLENS = Reader(
    (
        Layout(
            "MicroLens",
            (
                Part("titles", ("*_titles.csv", "*_title_en.csv")),
                Part("pairs", ("*_pairs.csv",), ("user", "item", "timestamp")),
            ),
            _read_microlens,
            {"item_id": "item", "user_id": "user", "timestamp": "timestamp", "text": "title"},
            ("*covers",),
        ),
    ),
    known=_KNOWN,
)
PIXELREC = Reader(
    (
        Layout(
            "PixelRec",
            (
                Part("items", ("*.csv",), ("item_id", "title", "view_number")),
                Part("interactions", ("*.csv",), ("item_id", "user_id", "timestamp")),
            ),
            _read_pixelrec,
            {"item_id": "item_id", "user_id": "user_id", "timestamp": "timestamp", "text": "title"},
            ("cover*",),
        ),
    ),
    known=_KNOWN,
)
NINEREC = Reader(
    (
        Layout(
            "NineRec",
            (Part("items", ("*_item.csv",)), Part("pairs", ("*_pair.csv",))),
            _read_ninerec,
            {"item_id": ITEM_ID, "user_id": USER_ID, "timestamp": TIMESTAMP, "text": "title"},
            ("*_cover",),
        ),
    ),
    known=_KNOWN,
)
