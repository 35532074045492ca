"""How raw tables become a dataset: columns, filters, and what happens to bad rows."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from iisan.errors import DataError

Format = Literal["reference", "table"]
#: In the place of a column of images: no column holds them.
NO_COLUMN = "none"


class PrepareOptions(BaseModel):
    """Options of ``prepare``; None takes the format's default.

    Filters act in this order: ``k_core``, ``min_length``, ``keep_last``, ``items``.

    Attributes:
        item_id: column of item ids, in both tables; default ``item_id``.
        text: column of item texts; default ``text``, else ``title``, else no item has a text.
        image: column of image paths or bytes, or ``none``; default ``image``, unless it holds web addresses. Where
            no column holds images, files are found by ``images``.
        user_id: column of user ids; default ``user_id``.
        timestamp: column of timestamps; default ``timestamp``, else the file's order is the order of time.
        columns: further columns with contents for an encoder -> their kind: ``text``, ``image``, ``audio`` or
            ``video``.
        images: folder of the images: the root of the paths in the image column or, where there is no such
            column, of files named after their items, such as ``<item_id>.jpg``, in it or in folders inside it.
            Paths are relative to the items file otherwise. Paths of other kinds of files are relative to the same
            folder.
        check_images: decode every image, sound and clip now, so that nothing fails later. Without it they are only
            read, for their content keys.
        on_bad: ``stop`` at the first kind of bad row, or ``skip`` such rows, counted and listed.
        quotes: fields may be quoted with ``"``; default true for CSV, false for TSV.
        k_core: keep users and items with at least this many interactions, repeated until it holds; 0 is off.
        min_length: keep users with at least this many interactions; default 3 (leave-one-out needs 3),
            reference 5.
        keep_last: keep only this many latest interactions of a user, 0 keeps all; default 0, reference 13.
        items: keep ``all`` items or those ``interacted`` with after all other filters; default all,
            reference interacted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: str | None = None
    text: str | None = None
    image: str | None = None
    user_id: str | None = None
    timestamp: str | None = None
    columns: dict[str, Literal["text", "image", "audio", "video"]] = {}
    images: Path | None = None
    check_images: bool = True
    on_bad: Literal["stop", "skip"] = "stop"
    quotes: bool | None = None
    k_core: NonNegativeInt | None = None
    min_length: NonNegativeInt | None = None
    keep_last: NonNegativeInt | None = None
    items: Literal["all", "interacted"] | None = None

    def filters(self, form: Format) -> "Filters":
        """The filters, with the format's defaults filled in."""
        chosen = {name: getattr(self, name) for name in Filters.model_fields}
        return _DEFAULTS[form].model_copy(update={name: v for name, v in chosen.items() if v is not None})


class Filters(BaseModel):
    """Resolved filters; see ``PrepareOptions``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k_core: int = 0
    min_length: int = 3
    keep_last: int = 0
    items: Literal["all", "interacted"] = "all"


_DEFAULTS: dict[Format, Filters] = {
    "table": Filters(),
    "reference": Filters(min_length=5, keep_last=13, items="interacted"),
}


def parse_options(values: dict[str, Any]) -> PrepareOptions:
    """Validate options given as keywords.

    Raises:
        DataError: an unknown option or a value of the wrong kind.
    """
    try:
        return PrepareOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(PrepareOptions.model_fields)
            raise DataError(f"unknown option '{name}'", f"one of {known}", "check its spelling") from None
        expected = first["msg"].removeprefix("Input should be ")
        raise DataError(
            f"option '{name}' has the value {first['input']!r}", expected, "change that value"
        ) from None
