"""Options of `iisan prepare`: columns, rules for interactions, filters, and the policy for bad rows."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError, field_validator

from iisan.errors import DataError

#: Value of the option ``image`` if no column holds images.
NO_COLUMN = "none"
#: Value of the options ``events`` and ``min_weight`` if every interaction counts.
ALL: Final = "all"
#: Options about which interactions count: columns, and rules for them.
RULE_OPTIONS = ("event", "weight", "events", "min_weight")
#: Treatment of repeated interactions of a user with an item.
Repeats = Literal["keep", "drop-consecutive", "drop-all"]


class PrepareOptions(BaseModel):
    """Options of ``prepare``; None stands for the format's default.

    Filters are applied in the order ``complete``, ``repeats``, ``k_core``, ``min_length``, ``sample_users``,
    ``keep_last``, ``items``. None applies to given queries, and where there are some, none is on by default.

    Attributes:
        item_id: Column of item ids in both tables; default ``item_id``.
        text: Column of item texts; default ``text`` or ``title``.
        image: Column of image paths or bytes, or ``none``; default ``image``, unless it holds web addresses.
        user_id: Column of user ids; default ``user_id``.
        timestamp: Column of timestamps; default ``timestamp``. Without it, rows are in order of time.
        event: Column of the kinds of events; default ``event`` or ``event_type``.
        weight: Column of weights; default ``weight`` or ``rating``.
        events: Events that count, as a list or separated by commas, or ``all``; required where events differ.
        min_weight: Minimum weight of interactions that count, or ``all``; required where weights differ.
        columns: Kinds (``text``, ``image``, ``audio``, ``video``) of further columns with contents for an encoder.
        images: Folder that paths of media are relative to, by default that of the items file. Without an image
            column, images ``<item_id>.jpg`` (or similar) are searched in it and its subfolders.
        check_images: Decode every image, sound and video now; otherwise they are only read for their keys.
        on_bad: ``stop`` at the first kind of bad row, or ``skip``, count and list bad rows.
        quotes: Whether fields may be quoted with ``"``; default true for CSV, false for TSV.
        complete: Keep only items with all contents, such as both a text and an image; default false.
        repeats: Repeated interactions of a user with an item: ``keep`` all, ``drop-consecutive`` leaves out those
            that follow one with the same item, ``drop-all`` all but the first; default keep.
        k_core: Minimum interactions per user and item (iterated k-core); 0 is off.
        min_length: Minimum interactions per user; default 3 (leave-one-out needs 3), reference 5.
        sample_users: Number of users to draw at random; default 0 (all).
        seed: Random seed of that draw; default 0.
        keep_last: Keep only the last interactions of each user; default 0 (all), reference 13.
        items: Keep ``all`` items or those ``interacted`` with after all other filters; default all, reference
            interacted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: str | None = None
    text: str | None = None
    image: str | None = None
    user_id: str | None = None
    timestamp: str | None = None
    event: str | None = None
    weight: str | None = None
    events: Literal["all"] | tuple[str, ...] | None = None
    min_weight: Literal["all"] | float | None = None
    columns: dict[str, Literal["text", "image", "audio", "video"]] = {}
    images: Path | None = None
    check_images: bool = True
    on_bad: Literal["stop", "skip"] = "stop"
    quotes: bool | None = None
    complete: bool | None = None
    repeats: Repeats | None = None
    k_core: NonNegativeInt | None = None
    min_length: NonNegativeInt | None = None
    sample_users: NonNegativeInt | None = None
    seed: NonNegativeInt | None = None
    keep_last: NonNegativeInt | None = None
    items: Literal["all", "interacted"] | None = None

    @field_validator("events", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if value is None or value == ALL:
            return value
        given = value.split(",") if isinstance(value, str) else value
        names = [str(each).strip() for each in given] if isinstance(given, list | tuple) else []
        if not all(names) or not names:
            raise ValueError("names of events, or all")
        return tuple(names)

    @field_validator("min_weight", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if value is None or value == ALL:
            return value
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError("a finite number, or all")
        return number

    def with_defaults(self, defaults: Mapping[str, Any]) -> "PrepareOptions":
        """Return the options with defaults in the place of None."""
        return self.model_copy(update={k: value for k, value in defaults.items() if getattr(self, k) is None})

    def filters(self, given_queries: bool = False) -> "Filters":
        """Resolve the filters; with given queries, none is on by default."""
        defaults = Filters(min_length=0) if given_queries else Filters()
        chosen = {name: getattr(self, name) for name in Filters.model_fields}
        return defaults.model_copy(update={name: v for name, v in chosen.items() if v is not None})


class Filters(BaseModel):
    """Resolved filters; see ``PrepareOptions``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    complete: bool = False
    repeats: Repeats = "keep"
    k_core: int = 0
    min_length: int = 3
    sample_users: int = 0
    seed: int = 0
    keep_last: int = 0
    items: Literal["all", "interacted"] = "all"


def parse_options(values: dict[str, Any]) -> PrepareOptions:
    """Validate options given as keywords, or raise DataError."""
    try:
        return PrepareOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name, expected = first["loc"][0], re.sub("^(Input should be|Value error,) ", "", first["msg"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(PrepareOptions.model_fields)
            raise DataError(f"unknown option '{name}'", f"one of {known}", "check its spelling") from None
        got = f"option '{name}' has the value {first['input']!r}"
        raise DataError(got, expected, "change that value") from None
