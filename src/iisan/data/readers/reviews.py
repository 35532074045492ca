"""Reviews of games (Steam), books (Goodreads) and places (Yelp)."""

import ast
from typing import Any

import polars as pl

from iisan.data.options import ALL, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import (
    DUPLICATE_ITEM,
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
from iisan.names import TIMESTAMP

_KNOWN = (UNKNOWN_ITEM, DUPLICATE_ITEM, REPEATED)
#: Lines that are literals of Python, not JSON.
_LITERALS = Form(None, parse=ast.literal_eval)


def _read_steam(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    keep = ("genres", "tags", "specs", "developer", "publisher", "release_date")
    form = Form(None, parse=_game)
    items = read_items(files["games"][0], options, problems, keep=keep, numbers=("price",), form=form)
    reviews = read_interactions(files["reviews"][0], options, problems, form=_LITERALS)
    return RawTables(items, without_repeats(reviews, problems))


def _game(line: str) -> Any:
    """Parse a game; its id has another name in the reviews, and some have only one of two titles."""
    game = ast.literal_eval(line)
    if isinstance(game, dict):
        game["product_id"] = game.get("id")
        game["title"] = game.get("title") or game.get("app_name")
    return game


def _read_goodreads(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    keep = ("description", "publisher", "format", "language_code", "image_url")
    numbers = ("num_pages", "publication_year", "average_rating", "ratings_count")
    books = files["books"][0]
    items = read_items(books, options, problems, keep=keep, numbers=numbers, markup=True, form=JSON_LINES)
    shelved = read_interactions(files["interactions"][0], options, problems, form=JSON_LINES)
    # Such as "Fri Aug 25 13:55:02 -0700 2017".
    date = pl.col(TIMESTAMP).str.to_datetime("%a %b %d %H:%M:%S %z %Y", time_unit="us", strict=False)
    marked = shelved.frame.with_columns(date.alias("date"))
    expected = "a date as in 'Fri Aug 25 13:55:02 -0700 2017'"
    dated = Table(marked, shelved.where).reject(
        pl.col("date").is_null(), TIMESTAMP, "unparsable timestamp", expected, problems
    )
    frame = dated.frame.with_columns(pl.col("date").alias(TIMESTAMP)).drop("date")
    return RawTables(items, without_repeats(Table(frame, shelved.where), problems))


def _read_yelp(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    keep = ("categories", "city", "state")
    places = files["businesses"][0]
    items = read_items(places, options, problems, keep=keep, numbers=("stars", "review_count"), form=JSON_LINES)
    reviews = read_interactions(files["reviews"][0], options, problems, form=JSON_LINES)
    return RawTables(items, without_repeats(reviews, problems))


STEAM = Reader(
    (
        Layout(
            "Steam reviews",
            (
                Part("games", ("steam_games.json.gz", "steam_games.json"), ("app_name",), form=_LITERALS),
                Part(
                    "reviews",
                    ("steam_reviews.json.gz", "steam_reviews.json"),
                    ("username", "product_id", "date"),
                    form=_LITERALS,
                ),
            ),
            _read_steam,
            {
                "item_id": "product_id",
                "user_id": "username",
                "timestamp": "date",
                "weight": "hours",
                "text": "title",
            },
        ),
    ),
    {"min_weight": ALL},
    known=(*_KNOWN, "zero-length item_id"),
)
GOODREADS = Reader(
    (
        Layout(
            "Goodreads (UCSD Book Graph)",
            (
                Part(
                    "books",
                    ("goodreads_books*.json.gz", "goodreads_books*.json"),
                    ("book_id", "title"),
                    form=JSON_LINES,
                ),
                Part(
                    "interactions",
                    ("goodreads_interactions*.json.gz", "goodreads_interactions*.json"),
                    ("user_id", "book_id", "date_added"),
                    form=JSON_LINES,
                ),
            ),
            _read_goodreads,
            {
                "item_id": "book_id",
                "user_id": "user_id",
                "timestamp": "date_added",
                "weight": "rating",
                "text": "title",
            },
        ),
    ),
    {"min_weight": ALL},
    known=_KNOWN,
)
YELP = Reader(
    (
        Layout(
            "Yelp Open Dataset",
            (
                Part(
                    "businesses",
                    ("yelp_academic_dataset_business.json*", "business.json*"),
                    ("business_id", "name"),
                    form=JSON_LINES,
                ),
                Part(
                    "reviews",
                    ("yelp_academic_dataset_review.json*", "review.json*"),
                    ("user_id", "business_id", "date"),
                    form=JSON_LINES,
                ),
            ),
            _read_yelp,
            {
                "item_id": "business_id",
                "user_id": "user_id",
                "timestamp": "date",
                "weight": "stars",
                "text": "name",
            },
        ),
    ),
    {"min_weight": ALL},
    known=_KNOWN,
)
