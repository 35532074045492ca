"""Columns of every type that a dataset can hold."""

import datetime
from decimal import Decimal

import polars as pl

#: Types by name, and functions from an item's number to its value.
COLUMNS = {
    "category": (pl.String, lambda n: ["shoes", "bags", None][n % 3]),
    "price": (pl.Float64, lambda n: [1.5, float("nan"), float("inf"), -0.0, None][n % 5]),
    "stock": (pl.UInt8, lambda n: n),
    "debt": (pl.Int16, lambda n: -n),
    "large": (pl.UInt64, lambda n: 2**64 - 1 - n),
    "sold": (pl.Boolean, lambda n: [True, False, None][n % 3]),
    "tags": (pl.List(pl.String), lambda n: [["new", "red"], [], None, ["new"]][n % 4]),
    "sizes": (pl.List(pl.Float64), lambda n: [1.0, float("nan")]),
    "maker": (pl.Struct({"name": pl.String, "since": pl.Date}), lambda n: {"name": "x", "since": None}),
    "level": (pl.Enum(["low", "high"]), lambda n: ["low", "high"][n % 2]),
    "kind": (pl.Categorical, lambda n: f"k{n % 2}"),
    "since": (pl.Date, lambda n: datetime.date(2020, 1, 1 + n % 28)),
    "at": (pl.Datetime("us", "UTC"), lambda n: datetime.datetime(2020, 1, 1, n % 24, tzinfo=datetime.UTC)),
    "lasts": (pl.Duration, lambda n: datetime.timedelta(n)),
    "tax": (pl.Decimal(10, 2), lambda n: Decimal(n) / 4),
    "digest": (pl.Binary, lambda n: b"\xff\x00"),
    "nothing": (pl.Null, lambda n: None),
}
