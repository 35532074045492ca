"""Lists for all users on a cluster: workers open the run and its dataset, this process writes the file.

The folders of run and dataset must be on every machine, under the same paths.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from iisan.data.sequences import Index
from iisan.errors import RunError
from iisan.machine import keep_freed_memory
from iisan.runs.run import Run
from iisan.scale.cluster import Cluster
from iisan.scale.workers import Place, Workers
from iisan.serve.batch import origin_of, recommend_shard
from iisan.serve.lists import ListMaker, Selection


@dataclass(frozen=True)
class _Made:
    maker: ListMaker
    k: int
    selection: Selection


def make_on(
    cluster: Cluster, maker: ListMaker, k: int, options: Mapping[str, Any], shards: Sequence[Index]
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Make the lists of shards on a cluster, see ``iisan.serve.batch.Make``.

    Args:
        cluster: The cluster.
        maker: Maker of the lists on this machine.
        k: Number of items per list.
        options: Arguments of ``ListMaker.select``.
        shards: Users of each shard.
    """
    origin = origin_of(maker, k, maker.select(**options))
    dataset = maker.dataset.folder
    assert dataset is not None, "a run has a saved dataset"
    setup = partial(_open, maker.run.folder.resolve(), dataset.resolve(), k, dict(options), origin)
    workers = Workers[_Made](cluster, setup)
    tasks = ((len(users), users) for users in shards)
    try:
        yield from workers.map(_recommend, tasks, len(shards), "recommending")
    finally:
        workers.close()


def _open(
    folder: Path, dataset: Path, k: int, options: dict[str, Any], origin: dict[str, Any], place: Place
) -> _Made:
    """What a worker makes lists with, if they are the lists that are wanted."""
    keep_freed_memory()
    run = Run.load(folder, with_additions=True)
    maker = ListMaker(replace(run, config=run.config.model_copy(update={"dataset": dataset})))
    selection = maker.select(**options)
    found = origin_of(maker, k, selection)
    if found != origin:
        other = ", ".join(name for name in origin if origin[name] != found[name])
        got = f"the lists of '{folder}' have another {other} than on the machine of the command"
        raise RunError(got, "the same files", "put run and dataset where all machines of the cluster see them")
    return _Made(maker, k, selection)


def _recommend(made: _Made, users: Index) -> pl.DataFrame:
    return recommend_shard(made.maker, users, made.k, made.selection)
