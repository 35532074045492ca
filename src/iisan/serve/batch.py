"""Lists for all users of a dataset: shard by shard, in bounded memory, into one file.

The lists of a shard depend only on the run, its dataset and the selection of items, so any process can make them,
and make them again. Finished shards are kept beside the file until all are there, so an interrupted batch goes on.
"""

import glob
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import polars as pl

from iisan.data.sequences import Index
from iisan.data.splits import whole_histories
from iisan.errors import RunError
from iisan.files import FRAMES, LOCK, aside, check_ending, locked, settle, sha256_file, sha256_json, write_json
from iisan.names import ITEM_ID, USER_ID
from iisan.progress import track
from iisan.serve.index import INDEX, MANIFEST
from iisan.serve.lists import ListMaker, Selection

#: Makes the lists of shards of users: yields them, in any order, with their positions.
Make: TypeAlias = Callable[[Sequence[Index]], Iterable[tuple[int, pl.DataFrame]]]

#: Types of the columns of the lists.
SCHEMA = {USER_ID: pl.String, ITEM_ID: pl.String, "score": pl.Float32, "rank": pl.Int64}
#: Most users of a shard, and most rows of its lists.
_USERS, _ROWS = 4096, 2**20
#: Names in the folder of finished shards: what the lists were made of, and the file that is made of them.
_ORIGIN, _WHOLE = "origin.json", "whole"


def shards_of(maker: ListMaker, k: int) -> list[Index]:
    """Divide the users of a dataset with interactions into shards of consecutive rows, at least one."""
    users = maker.users_with_histories()
    size = max(1, min(_USERS, _ROWS // min(k, len(maker.run.items))))
    return [users[first : first + size] for first in range(0, max(1, len(users)), size)]


def recommend_shard(maker: ListMaker, users: Index, k: int, selection: Selection) -> pl.DataFrame:
    """Make the lists of users ``[U]``, rows of the dataset: ``user_id``, ``item_id``, ``score``, ``rank``."""
    lists = maker.lists(whole_histories(maker.sequences, users), k, selection)
    return maker.table(maker.dataset.user_ids.gather(users), ITEM_ID, lists)


def make_here(
    maker: ListMaker, k: int, selection: Selection, shards: Sequence[Index]
) -> Iterable[tuple[int, pl.DataFrame]]:
    """Make the lists of shards one after the other in this process, see ``Make``."""
    for number, users in enumerate(track(shards, "recommending")):
        yield number, recommend_shard(maker, users, k, selection)


def recommend_all(maker: ListMaker, k: int, selection: Selection, make: Make | None = None) -> pl.DataFrame:
    """Return the lists of all users, see ``recommend_shard``; ``make`` and errors as in ``write_all``."""
    made = dict((make or partial(make_here, maker, k, selection))(shards_of(maker, k)))
    lists = pl.concat([made[number] for number in sorted(made)])
    maker.check_some(lists.height)
    return lists


def write_all(maker: ListMaker, k: int, selection: Selection, out: Path, make: Make | None = None) -> pl.LazyFrame:
    """Write the lists of all users into a file, which replaces an earlier one at the end.

    Finished shards are in a hidden folder beside the file until then, and are taken from there if the same lists
    are wanted again. If others are wanted, they are deleted, with a warning.

    Args:
        maker: Maker of the lists.
        k: Number of items per list.
        selection: Items of the lists.
        out: File, whose ending decides its format, see ``FRAMES``.
        make: Makes the lists of shards, by default in this process.

    Returns:
        The lists in the file, unread.

    Raises:
        ConfigError: The ending is that of no format.
        DataError: No list has an item.
        RunError: Another process is writing the same file.
    """
    check_ending(out, FRAMES)
    shards = shards_of(maker, k)
    place = out.with_name(f".{out.name}.shards")
    with locked(place, RunError):
        _keep(place, origin_of(maker, k, selection) | {"size of shards": [_USERS, _ROWS]})
        files = [place / f"{number:06}.parquet" for number in range(len(shards))]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        make = make or partial(make_here, maker, k, selection)
        for position, lists in make([shards[number] for number in missing]) if missing else ():
            with aside(files[missing[position]]) as temporary:
                lists.write_parquet(temporary)
            del lists  # while the next ones are made
        scanned = pl.scan_parquet(files, glob=False)
        rows = scanned.select(pl.len()).collect().item()
        if rows:
            getattr(scanned, f"sink_{_kind(out)}")(place / _WHOLE)
            settle(place / _WHOLE)
            (place / _WHOLE).replace(out)
        shutil.rmtree(place)
    maker.check_some(rows)
    return read_lists(out)


def read_lists(path: Path) -> pl.LazyFrame:
    """Return the lists in a file of ``write_all``, unread."""
    kind = _kind(path)
    options = {} if kind == "parquet" else {"schema": SCHEMA}
    found: pl.LazyFrame = getattr(pl, f"scan_{kind}")(glob.escape(str(path)), **options)
    return found


def _kind(path: Path) -> str:
    return FRAMES[path.suffix.lower()]


def _keep(place: Path, origin: dict[str, Any]) -> None:
    """Empty a folder of shards if they are not of this origin."""
    path = place / _ORIGIN
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if earlier == origin:
        return
    if earlier:
        other = ", ".join(name for name in origin if origin[name] != earlier.get(name))
        finished = len(list(place.glob("*.parquet")))
        warnings.warn(f"all lists are made anew: {finished} finished shards have another {other}", stacklevel=4)
    for file in place.iterdir():
        if file.name != LOCK:
            file.unlink()
    write_json(path, origin)


def origin_of(maker: ListMaker, k: int, selection: Selection) -> dict[str, Any]:
    """Describe all that decides the lists, so that shards of others are not mixed with them."""
    run, data = maker.run, maker.dataset.manifest
    index = maker.index_for(selection) is not None
    limits, distance = selection.limits, selection.distance
    return {
        "run": sha256_json([run.fingerprint, run.result.get("terms")]),
        "state of the run's items": list(run.segments),
        "index": sha256_file(run.folder / INDEX / MANIFEST) if index else None,
        "dataset": data.get("content_hash") or sha256_json(data),
        "k": k,
        "policy": selection.policy,
        "selection of items": _hash(selection.allowed),
        "max_per": [[_hash(limit.values), int(limit.count)] for limit in limits],
        "near_duplicates": None if distance is None else float(distance.threshold),
    }


def _hash(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
