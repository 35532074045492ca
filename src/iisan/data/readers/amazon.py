"""Amazon reviews, as released in 2018 (``asin``, lists) and in 2023 (``parent_asin``, images in several sizes)."""

import json
from typing import Any

import polars as pl

from iisan.data.options import ALL, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import (
    DUPLICATE_ITEM,
    PAGE_CODE,
    REPEATED,
    UNKNOWN_ITEM,
    Files,
    Layout,
    Part,
    RawTables,
    Reader,
    read_interactions,
    read_items,
    without_repeats,
)
from iisan.data.tables import JSON_LINES, Form, Table
from iisan.names import TEXT

_KNOWN = (UNKNOWN_ITEM, DUPLICATE_ITEM, REPEATED, PAGE_CODE)
_SIZES = ("hi_res", "large", "thumb")


def _read_2018(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    keep = ("brand", "main_cat", "category", "description", "price", "image_url")
    form = Form(None, parse=_item_of_2018)
    items = read_items(files["metadata"][0], options, problems, keep=keep, markup=True, form=form)
    # A script of the page was taken for the title of some items.
    code = items.frame[TEXT].str.contains("getTime", literal=True).fill_null(False)
    problems.report(items.rows(pl.lit(code), pl.col(TEXT)), PAGE_CODE, "a title")
    items = Table(items.frame.with_columns(pl.when(~code).then(TEXT).alias(TEXT)), items.where)
    reviews = read_interactions(files["reviews"][0], options, problems, form=JSON_LINES)
    return RawTables(items, without_repeats(reviews, problems))


def _item_of_2018(line: str) -> Any:
    item = json.loads(line)
    if isinstance(item, dict):
        # The same picture in two sizes.
        lists = [_listed(item.get(name))[:1] for name in ("imageURLHighRes", "imageURL")]
        item["image_url"] = [url for urls in lists for url in urls]
    return item


def _listed(urls: Any) -> list[str]:
    return [url for url in (urls if isinstance(urls, list) else [urls]) if isinstance(url, str)]


def _read_2023(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    keep = ("store", "main_category", "categories", "features", "description", "image_url")
    numbers = ("price", "average_rating", "rating_number")
    form = Form(None, parse=_item_of_2023)
    items = read_items(files["metadata"][0], options, problems, keep=keep, numbers=numbers, markup=True, form=form)
    reviews = read_interactions(files["reviews"][0], options, problems, form=JSON_LINES)
    return RawTables(items, without_repeats(reviews, problems))


def _item_of_2023(line: str) -> Any:
    item = json.loads(line)
    if isinstance(item, dict):
        images = [each for each in item.get("images") or () if isinstance(each, dict)]
        main = next((each for each in images if each.get("variant") == "MAIN"), images[0] if images else {})
        item["image_url"] = [url for size in _SIZES for url in _listed(main.get(size))]
    return item


def _layout(title: str, read: Any, ending: str, columns: dict[str, str]) -> Layout:
    item, user = columns["item_id"], columns["user_id"]
    endings = (f"{ending}.gz", ending)
    return Layout(
        title,
        (
            Part("metadata", tuple(f"meta_*{each}" for each in endings), (item,), form=JSON_LINES),
            Part("reviews", tuple(f"*{each}" for each in endings), (user, item), form=JSON_LINES),
        ),
        read,
        columns,
    )


AMAZON_2018 = Reader(
    (
        _layout(
            "Amazon reviews of 2018",
            _read_2018,
            ".json",
            {
                "item_id": "asin",
                "user_id": "reviewerID",
                "timestamp": "unixReviewTime",
                "weight": "overall",
                "text": "title",
            },
        ),
    ),
    {"min_weight": ALL},
    presets={"paper": {"complete": True, "min_length": 5, "items": "interacted"}},
    known=_KNOWN,
)
AMAZON_2023 = Reader(
    (
        _layout(
            "Amazon reviews of 2023",
            _read_2023,
            ".jsonl",
            {
                "item_id": "parent_asin",
                "user_id": "user_id",
                "timestamp": "timestamp",
                "weight": "rating",
                "text": "title",
            },
        ),
    ),
    {"min_weight": ALL},
    known=_KNOWN,
)
