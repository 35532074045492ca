"""From two raw tables to the parts of a dataset: the only place where rows are cleaned, checked and dropped."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from iisan.data.clean import clean_texts, clean_timestamps, storable
from iisan.data.filters import Events, apply_filters, renumber, to_sequences
from iisan.data.held_out import subsets_of_users, users_by_subset
from iisan.data.images import are_addresses, find_images
from iisan.data.media import checked_files, clean_files, has_paths
from iisan.data.options import NO_COLUMN, Filters, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.queries import index_queries
from iisan.data.rules import apply_rules, rule_roles
from iisan.data.sequences import Sequences
from iisan.data.splits import Queries, Subset
from iisan.data.tables import LINE, Role, Table, numbered, renamed
from iisan.errors import DataError
from iisan.names import IMAGE, ITEM_ID, TEXT, TIMESTAMP, USER_ID, check_modality

_ITEM, _USER = "__item__", "__user__"


@dataclass(frozen=True)
class Parts:
    """The parts of a dataset, see :class:`iisan.data.dataset.Dataset`.

    Attributes:
        counts: Numbers of users, items and interactions after each step, of missing contents, of given queries, of
            interactions that rules leave out, and of rows with faults that the source is known to have.
        queries: Given queries by subset; their users may have no interactions.
        held_out: Subset of each user who is held out of training, null for the others; None if no user is named.
    """

    items: pl.DataFrame
    user_ids: pl.Series
    sequences: Sequences
    image_root: Path | None
    kinds: dict[str, str]
    keys: pl.DataFrame
    counts: dict[str, Any]
    skipped: pl.DataFrame
    queries: dict[Subset, Queries]
    held_out: pl.Series | None = None


def item_roles(options: PrepareOptions) -> list[Role]:
    """Columns of an items table."""
    return [
        Role.of(ITEM_ID, options.item_id, ITEM_ID),
        Role.of(TEXT, options.text, TEXT, "title", required=False, lists="join"),
        *(
            []
            if options.image == NO_COLUMN
            else [Role.of(IMAGE, options.image, IMAGE, required=False, lists="join")]
        ),
        *(
            Role(
                name,
                (name,),
                cure=f"correct or leave out --column {name}={kind}",
                given=True,
                lists="join" if kind == TEXT else "refuse",
            )
            for name, kind in options.columns.items()
            if name not in (TEXT, IMAGE)
        ),
    ]


def interaction_roles(options: PrepareOptions) -> list[Role]:
    """Columns of an interactions table."""
    return [
        Role.of(USER_ID, options.user_id, USER_ID),
        Role.of(ITEM_ID, options.item_id, ITEM_ID),
        Role.of(TIMESTAMP, options.timestamp, TIMESTAMP, "datetime", required=False),
        *rule_roles(options),
    ]


def assemble(
    items: Table,
    interactions: Table,
    options: PrepareOptions,
    filters: Filters,
    problems: Problems,
    image_root: Path | None,
    queries: Mapping[Subset, Table] | None = None,
    held_out: Table | None = None,
) -> Parts:
    """Clean, check, filter and index two tables with canonical column names.

    Image paths are relative to ``image_root``, unless ``options.images`` names their folder. The columns are
    those of :func:`item_roles` and :func:`interaction_roles`, in tables of given ``queries`` those of
    :func:`iisan.data.queries.query_roles`, in one of ``held_out`` users ``user_id`` and ``subset``. No filter
    applies to queries.

    Raises:
        DataError: A bad row (policy ``stop``), an invalid name of a further column, different events or weights
            without a rule, or no user, or none of the held-out users of a subset, is left.
    """
    catalogue, kinds, root = _catalogue(items, options, problems, image_root)
    interactions, left_out = apply_rules(interactions, options, problems)
    user_ids, events, unit = index_interactions(interactions, catalogue[ITEM_ID], problems)
    del interactions
    contents = [name for name in kinds if name != IMAGE or options.image != NO_COLUMN or options.images]
    complete = catalogue.select(pl.all_horizontal(pl.col(*contents).is_not_null())).to_series().to_numpy()
    events, steps = apply_filters(events, filters, complete if filters.complete else None)
    if not len(events.users):
        left = ", then ".join(f"{step['step']}: {step['users']:,} users" for step in steps)
        raise DataError(f"no user is left ({left})", "at least one user after the filters", "relax the filters")
    kept_users, users = renumber(events.users, len(user_ids))
    item_numbers, num_listed = events.items, len(catalogue)
    if filters.items == "interacted":
        kept_items, item_numbers = renumber(events.items, len(catalogue))
        catalogue = catalogue[kept_items]
    elif filters.complete:
        item_numbers = (np.cumsum(complete) - 1)[events.items]
        catalogue = catalogue.filter(complete)
    all_users, user_ids, found = user_ids, user_ids.gather(kept_users), dict[Subset, Queries]()
    known = "an item id of the items table"
    if filters.items == "interacted":
        known += " with an interaction (items=interacted)"
    for subset, table in (queries or {}).items():
        found[subset], user_ids = index_queries(table, catalogue[ITEM_ID], user_ids, problems, known)
    subsets = None if held_out is None else subsets_of_users(held_out, all_users, user_ids, problems)
    catalogue, keys = _checked(catalogue, kinds, root, options, problems)
    counts = {
        "items_listed": num_listed,
        "steps": steps,
        "items": len(catalogue),
        "users": len(user_ids),
        "interactions": len(users),
        "missing": {name: catalogue[name].null_count() for name in kinds},
        "timestamps": unit,
    }
    if left_out:
        counts["left_out"] = left_out
    if problems.dropped:
        counts["dropped"] = dict(problems.dropped)
    if found:
        counts["queries"] = {subset: len(each) for subset, each in found.items()}
    if subsets is not None:
        counts["held_out"] = {subset: len(users) for subset, users in users_by_subset(subsets).items()}
    return Parts(
        items=catalogue,
        user_ids=user_ids,
        sequences=to_sequences(Events(users, item_numbers, events.timestamps), len(user_ids)),
        image_root=root if any(has_paths(catalogue[name]) for name in keys.columns) else None,
        kinds=kinds,
        keys=keys,
        counts=counts,
        skipped=problems.skipped,
        queries=found,
        held_out=subsets,
    )


def assemble_items(items: Table, options: PrepareOptions, problems: Problems, image_root: Path | None) -> Parts:
    """Clean, check and index a table of items alone, as ``assemble`` does: a dataset without users."""
    catalogue, kinds, root = _catalogue(items, options, problems, image_root)
    catalogue, keys = _checked(catalogue, kinds, root, options, problems)
    return Parts(
        items=catalogue,
        user_ids=pl.Series(dtype=pl.String),
        sequences=Sequences(np.zeros(1, np.int64), np.empty(0, np.int32)),
        image_root=root if any(has_paths(catalogue[name]) for name in keys.columns) else None,
        kinds=kinds,
        keys=keys,
        counts={"items": len(catalogue), "missing": {name: catalogue[name].null_count() for name in kinds}},
        skipped=problems.skipped,
        queries={},
    )


def _catalogue(
    items: Table, options: PrepareOptions, problems: Problems, image_root: Path | None
) -> tuple[pl.DataFrame, dict[str, str], Path | None]:
    """Clean items, find their images, and return them with the kinds of their contents and the folder of files."""
    kinds: dict[str, str] = {TEXT: TEXT, IMAGE: IMAGE, **options.columns}
    for name, kind in kinds.items():
        check_modality(name, kind)
    catalogue = _clean_items(_with_images(items, options.image), kinds, problems)
    root = options.images or image_root
    root = Path(os.path.realpath(root)) if root is not None else None
    if root is not None and not root.is_dir():
        raise DataError(f"no folder '{root}'", "the folder of the images", "check the path")
    if IMAGE not in catalogue.columns:
        paths = pl.Series([None], dtype=pl.String).new_from_index(0, len(catalogue))
        if options.images:
            # The folder may hold other kinds of files only.
            required = all(kind == TEXT for kind in options.columns.values())
            paths = find_images(options.images, catalogue[ITEM_ID], required, problems)
        catalogue = catalogue.with_columns(paths.alias(IMAGE))
    return catalogue.select(ITEM_ID, TEXT, IMAGE, pl.exclude(ITEM_ID, TEXT, IMAGE)), kinds, root


def _checked(
    catalogue: pl.DataFrame,
    kinds: Mapping[str, str],
    root: Path | None,
    options: PrepareOptions,
    problems: Problems,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Check the files of a catalogue; return it and their content keys, a column per column of files."""
    keys: dict[str, pl.Series] = {}
    for name, kind in kinds.items():
        if kind != TEXT:
            catalogue, keys[name] = checked_files(catalogue, name, kind, root, options.check_images, problems)
    return catalogue, pl.DataFrame(keys)


def _with_images(items: Table, image: str | None) -> Table:
    """Rename a column ``image`` that is not used: by request, or because it holds web addresses."""
    frame = items.frame
    unused = image == NO_COLUMN or (image is None and IMAGE in frame.columns and are_addresses(frame[IMAGE]))
    if not unused or IMAGE not in frame.columns:
        return items
    named = renamed(frame.drop(LINE), {IMAGE: f"{IMAGE}_original"}, items.where)
    return Table(named.with_columns(frame[LINE]), items.where)


def _clean_items(table: Table, kinds: Mapping[str, str], problems: Problems) -> pl.DataFrame:
    table = table.with_ids((ITEM_ID,), problems)
    repeated = ~pl.col(ITEM_ID).is_first_distinct()
    table = table.reject(repeated, ITEM_ID, "duplicate item id", "every item id once", problems)
    frame = table.frame.drop(LINE)
    if TEXT not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.String).alias(TEXT))
    frame = frame.with_columns(
        clean_texts(frame[column]) if kind == TEXT else clean_files(frame[column], table.name)
        for column, kind in kinds.items()
        if column in frame.columns
    )
    return frame.select(storable(frame))


def index_interactions(
    table: Table, item_ids: pl.Series, problems: Problems
) -> tuple[pl.Series, Events, str | None]:
    """Return users in order of first appearance, interactions by user and time, and the unit of time."""
    table = table.with_ids((USER_ID, ITEM_ID), problems)
    table = Table(numbered(table.frame, ITEM_ID, item_ids, _ITEM), table.where)
    unknown = pl.col(_ITEM).is_null()
    table = table.reject(unknown, ITEM_ID, "unknown item", "an item id of the items table", problems)
    table = Table(table.frame.drop(ITEM_ID), table.where)
    frame, unit = table.frame, None
    if TIMESTAMP in frame.columns:
        moments, unit = clean_timestamps(frame[TIMESTAMP])
        expected = "a number or an ISO date, of one kind in the whole column"
        bad = pl.lit(moments.is_null())
        frame = table.reject(bad, TIMESTAMP, "unparsable timestamp", expected, problems).frame
        frame = frame.with_columns(moments.drop_nulls().alias(TIMESTAMP))
    del table
    user_ids, users = _first_seen(frame[USER_ID])
    frame = frame.drop(LINE, USER_ID).with_columns(users.alias(_USER))
    frame = _by_user_and_time(frame)
    timestamps = frame[TIMESTAMP].to_numpy() if unit else None
    numbers = frame.select(pl.col(_USER, _ITEM).cast(pl.Int32))
    return user_ids, Events(numbers[_USER].to_numpy(), numbers[_ITEM].to_numpy(), timestamps), unit


def _first_seen(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Distinct ids in the order of their first appearance, and their numbers in that order."""
    # One pass of hashing; unique() and a join would be two, and most of the time of a large preparation.
    codes = ids.cast(pl.Categorical(pl.Categories.random())).to_physical()
    first = codes.is_first_distinct()
    order = codes.filter(first).to_numpy()
    numbers = np.empty(order.max(initial=0) + 1, np.uint32)
    numbers[order] = np.arange(len(order), dtype=np.uint32)
    return ids.filter(first), pl.Series(numbers[codes.to_numpy()])


def _by_user_and_time(frame: pl.DataFrame) -> pl.DataFrame:
    """Sort interactions by user, then time, then position in the file."""
    if TIMESTAMP not in frame.columns or frame.is_empty():
        return frame.sort(_USER, maintain_order=True)
    first, last = (int(moment) for moment in frame.select(a=pl.min(TIMESTAMP), b=pl.max(TIMESTAMP)).row(0))
    span = last - first + 1
    if span * len(frame) >= 2**63:
        return frame.sort(_USER, TIMESTAMP, maintain_order=True)
    # Sorting by one integer key is three times as fast as by two columns.
    key = pl.col(_USER).cast(pl.Int64) * span + (pl.col(TIMESTAMP) - first)
    return frame.sort(key, maintain_order=True)
