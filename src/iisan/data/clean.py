"""Cleaning of raw columns: ids, texts, timestamps, weights. Pure functions on polars series."""

import html
from typing import Any

import polars as pl

from iisan.errors import DataError

#: Formats of date strings after replacing ``T`` by a space and ``Z`` by an offset.
_NAIVE = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M")
_WITH_OFFSET = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f%z")
_LARGEST = 2.0**63
_TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Null)


def storable(frame: pl.DataFrame) -> list[str]:
    """Columns that a dataset can store and hash: no Python objects, nested bytes or empty structs."""
    return [name for name, dtype in frame.schema.items() if _is_storable(dtype)]


def _is_storable(dtype: Any, inside: bool = False) -> bool:
    if dtype == pl.Struct:
        return bool(dtype.fields) and all(_is_storable(field.dtype, True) for field in dtype.fields)
    if dtype in (pl.List, pl.Array):
        return _is_storable(dtype.inner, True)
    return bool(dtype != pl.Object and not (inside and dtype == pl.Binary))


def clean_ids(ids: pl.Series, table: str) -> pl.Series:
    """Convert ids to strings; whole numbers read as floats, because of missing values, lose their fraction.

    Raises:
        DataError: Ids that are neither strings nor whole numbers.
    """
    if ids.dtype.is_float():
        whole = ids.cast(pl.Int64, strict=False)
        changed = (whole.cast(ids.dtype) != ids).fill_null(True)
        fractional = ids.filter(changed & ids.is_not_null() & ids.is_not_nan())
        if len(fractional):
            raise DataError(
                f"{table} has the {ids.name} {fractional[0]}", "strings or whole numbers", "write them as strings"
            )
        ids = whole
    if not (ids.dtype.is_integer() or ids.dtype in _TEXTS):
        raise DataError(
            f"{table} has {ids.name}s of type {ids.dtype}", "strings or whole numbers", "write them as strings"
        )
    return ids.cast(pl.String)


def clean_texts(texts: pl.Series) -> pl.Series:
    """Unescape HTML entities and normalise white space; empty texts become null.

    Lists of texts are joined with spaces.

    Raises:
        DataError: Values that are not texts, such as structs.
    """
    inner = texts.dtype.inner if isinstance(texts.dtype, pl.List | pl.Array) else texts.dtype
    if inner.is_nested() or inner in (pl.Binary, pl.Duration, pl.Object):
        got = f"texts of type {texts.dtype} in the column '{texts.name}'"
        raise DataError(got, "strings, or lists of them", "choose another column")
    if texts.dtype.is_nested():
        texts = texts.cast(pl.List(pl.String)).list.join(" ", ignore_nulls=True)
    texts = (texts.fill_nan(None) if texts.dtype.is_float() else texts).cast(pl.String)
    escaped = texts.filter(texts.str.contains("&", literal=True)).unique()
    unescaped = pl.Series(map(html.unescape, escaped), dtype=pl.String)
    texts = texts.replace(escaped, unescaped) if len(escaped) else texts
    # Rust's \s is Unicode white space, non-breaking spaces included.
    texts = texts.str.replace_all(r"\s+", " ").str.strip_chars()
    return texts.set(texts == "", None)


def clean_timestamps(timestamps: pl.Series) -> tuple[pl.Series, str]:
    """Convert timestamps to whole numbers.

    Numbers keep their unit, unless one has a fraction: then all are multiplied by a million. Datetimes and ISO
    strings become microseconds since 1970 in UTC, which is also the default time zone.

    Returns:
        Timestamps as Int64, null where unparsable, and their unit.

    Raises:
        DataError: Neither numbers nor dates nor strings.
    """
    if timestamps.dtype.is_temporal() and timestamps.dtype not in (pl.Time, pl.Duration):
        return timestamps.cast(pl.Datetime("us")).dt.epoch("us"), "microseconds"
    if timestamps.dtype.is_integer():
        return timestamps.cast(pl.Int64, strict=False), "as in the source"
    if timestamps.dtype.is_float():
        return _from_floats(timestamps)
    if not (timestamps.dtype.is_decimal() or timestamps.dtype in _TEXTS):
        raise DataError(
            f"timestamps of type {timestamps.dtype}", "numbers, dates or ISO strings", "write one of those"
        )
    texts = timestamps.cast(pl.String).str.strip_chars()
    whole = texts.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole, "as in the source"
    numbers = texts.cast(pl.Float64, strict=False)
    if 2 * numbers.count() >= texts.count():
        fractional = numbers.filter(whole.is_null() & numbers.is_not_null())
        return _from_floats(numbers) if len(fractional) else (whole, "as in the source")
    return _from_dates(texts), "microseconds"


def clean_weights(weights: pl.Series) -> pl.Series:
    """Convert weights to Float64; null where missing, no number, or not finite.

    Raises:
        DataError: Neither numbers nor strings.
    """
    if weights.dtype in _TEXTS:
        weights = weights.cast(pl.String).str.strip_chars()
    elif not weights.dtype.is_numeric():
        raise DataError(f"weights of type {weights.dtype}", "numbers", "write numbers")
    numbers = weights.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(False), None)


def _from_floats(numbers: pl.Series) -> tuple[pl.Series, str]:
    numbers = numbers.cast(pl.Float64)
    finite = numbers.set(~numbers.is_finite().fill_null(False), None)
    unit = "as in the source"
    if (finite != finite.round()).any():
        finite, unit = (finite * 1e6).round(), "millionths of the source's"
    return finite.set(finite.abs() >= _LARGEST, None).cast(pl.Int64), unit


def _from_dates(texts: pl.Series) -> pl.Series:
    texts = texts.str.replace("T", " ", literal=True).str.replace(r"\s?Z$", "+00:00")
    parsed = pl.repeat(None, len(texts), dtype=pl.Datetime("us"), eager=True)
    for form in _NAIVE + _WITH_OFFSET:
        if parsed.null_count():
            zone = "UTC" if form in _WITH_OFFSET else None
            dates = texts.str.to_datetime(form, time_unit="us", time_zone=zone, strict=False)
            parsed = parsed.zip_with(parsed.is_not_null(), dates.dt.replace_time_zone(None))
    return parsed.dt.epoch("us")
