"""MovieLens in its three layouts: 100K, 1M and 10M, and 20M and later."""

import polars as pl

from iisan.data.options import ALL, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import (
    CSV,
    UNKNOWN_ITEM,
    Files,
    Layout,
    Part,
    RawTables,
    Reader,
    read_interactions,
    read_items,
)
from iisan.data.tables import Form, Table
from iisan.names import ITEM_ID, TEXT, TIMESTAMP, USER_ID

_RATINGS = (USER_ID, ITEM_ID, "rating", TIMESTAMP)
#: Genres of MovieLens 100K, in the order of its last columns.
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_DATES = ("release_date", "video_release_date", "imdb_url")
# Titles of 100K and 1M are in Latin-1, those of 10M in UTF-8.
_COLONS, _BARS = Form("::", fallback="latin-1"), Form("|", fallback="latin-1")
_NAMED = {"item_id": ITEM_ID, "user_id": USER_ID, "timestamp": TIMESTAMP, "weight": "rating", "text": TEXT}


def _tables(items: Table, ratings: Table) -> RawTables:
    """Add the year at the end of a title, as in ``Heat (1995)``, as a column."""
    year = pl.col(TEXT).str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).alias("year")
    return RawTables(Table(items.frame.with_columns(year), items.where), ratings)


def _read_100k(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    header = (ITEM_ID, TEXT, *_DATES, *_GENRES)
    items = read_items(files["movies"][0], options, problems, keep=_DATES[:1], form=_BARS, header=header)
    ratings = files["ratings"][0]
    return _tables(items, read_interactions(ratings, options, problems, form=Form("\t"), header=_RATINGS))


def _read_dat(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    header = (ITEM_ID, TEXT, "genres")
    items = read_items(files["movies"][0], options, problems, keep=("genres",), form=_COLONS, header=header)
    ratings = files["ratings"][0]
    return _tables(items, read_interactions(ratings, options, problems, form=_COLONS, header=_RATINGS))


def _read_csv(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    items = read_items(files["movies"][0], options, problems, keep=("genres",), form=CSV)
    return _tables(items, read_interactions(files["ratings"][0], options, problems, form=CSV))


MOVIELENS = Reader(
    (
        Layout(
            "MovieLens 100K",
            (Part("movies", ("u.item",)), Part("ratings", ("u.data",))),
            _read_100k,
            _NAMED,
            ("posters",),
        ),
        Layout(
            "MovieLens 1M and 10M",
            (Part("movies", ("movies.dat",)), Part("ratings", ("ratings.dat",))),
            _read_dat,
            _NAMED,
            ("posters",),
        ),
        Layout(
            "MovieLens 20M, 25M, 32M and latest",
            (
                Part("movies", ("movies.csv", "movies.csv.gz"), ("movieId", "title")),
                Part("ratings", ("ratings.csv", "ratings.csv.gz"), ("userId", "movieId", "rating")),
            ),
            _read_csv,
            {
                "item_id": "movieId",
                "user_id": "userId",
                "timestamp": "timestamp",
                "weight": "rating",
                "text": "title",
            },
            ("posters",),
        ),
    ),
    {"min_weight": ALL},
    known=(UNKNOWN_ITEM,),
)
