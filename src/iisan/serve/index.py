"""The index of a run: measured, chosen and stored by ``iisan index``, opened for recommendations.

It lies in the run folder and holds at most one file of FAISS, which is memory-mapped; all other vectors are those
of the run. It is bound to the run's model and weights. Items that were added, updated or removed after it was made
are searched beside its cells, so that it never shows an older state.
"""

import secrets
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from iisan.config import Policy
from iisan.data.histories import in_rows_of
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import Queries, whole_histories
from iisan.errors import ConfigError, DataError, MissingExtraError, RunError
from iisan.evaluate.cells import divide, load_faiss
from iisan.evaluate.ranks import top_k
from iisan.evaluate.terms import DenseScorer
from iisan.files import LOCK, aside, locked, read_manifest, sha256_json, write_json
from iisan.machine import processor_name
from iisan.names import ITEM_ID, PAD
from iisan.runs.additions import segment_hash, segment_rows
from iisan.runs.run import Run
from iisan.serve.search import CellIndex, Lists, Vectors, search_top_k
from iisan.states.configured import open_dataset

#: Folder of the index in a run folder, and the manifest in it.
INDEX, MANIFEST = "index", "index.json"
KIND, SCHEMA = "iisan-index", 1
#: Kinds of search.
EXACT, IVF = "exact", "ivf"
IndexKind = Literal["auto", "exact", "ivf"]
#: Least recall@10 by default.
RECALL = 0.95
#: Length of the lists that are compared, and how many are.
_LENGTH, _QUERIES = 10, 256
_POLICY: Policy = "unseen"
#: Lists that are timed, one at a time.
_TIMED = 31
#: How many times as fast as the exact search one has to be to earn its file.
_FASTER = 2.0
#: Largest share of the cells that a search may read, and of items that changed since the cells were determined.
_READ, _CHANGED = 0.25, 0.5
_CURE = "run `iisan index` again"

Search = Callable[[Queries], Lists]


def build_index(
    run: Run,
    *,
    kind: IndexKind = "auto",
    recall: float = RECALL,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure the kinds of search, and store the one that is chosen as the index of a run.

    ``ivf`` is chosen if it reaches the recall by reading at most a quarter of its cells, in at most half of the
    time of ``exact``. Cells that are there already take in what changed; after many changes they are determined
    again.

    Args:
        run: A finished run, with its additions.
        kind: ``exact`` or ``ivf`` instead of the better one.
        recall: Least share of the items of exact lists of ten that ``ivf`` has to find.
        say: Callback for messages.

    Returns:
        The manifest.

    Raises:
        ConfigError: The recall is out of range.
        MissingExtraError: ``ivf`` without FAISS.
        RunError: Another process is writing the index.
    """
    if not 0 < recall <= 1:
        raise ConfigError(f"a recall of {recall}", "more than 0, at most 1", "choose a recall such as 0.95")
    place = run.folder / INDEX
    with locked(place, RunError):
        source, queries = _sample(run)
        exact = partial(top_k, run.scorer, k=_LENGTH, policy=_POLICY, allowed=run.offered)
        width = run.scorer.vectors(slice(1)).shape[1]
        measured: dict[str, Any] = {EXACT: {"recall@10": 1.0, "bytes": 4 * width * len(run.items)}}
        sides: dict[str, Search] = {EXACT: exact}
        facts: dict[str, Any] = {}
        if kind != EXACT and run.scorer.column_weights().any():
            try:
                sides[IVF], facts = _divided(run, queries, exact(queries)[0], recall)
                measured[IVF] = {name: facts.pop(name) for name in ("recall@10", "bytes")}
            except MissingExtraError as error:
                if kind == IVF:
                    raise
                say(str(error))
        for name, milliseconds in _timed(sides, queries).items():
            measured[name]["milliseconds"] = milliseconds
        search = IVF if IVF in measured and (kind == IVF or _earns_its_file(measured, recall)) else EXACT
        manifest = {
            "kind": KIND,
            "schema": SCHEMA,
            "run": _identity(run),
            "segments": {name: segment_hash(run.folder, name) for name in run.segments},
            "search": search,
            **(facts if search == IVF else {}),
            "measured": measured,
            "wanted_recall": recall,
            "queries": len(queries),
            "queries_of": source,
            "machine": processor_name(),
            "device": run.scorer.vectors(slice(1)).device.type,
            "threads": torch.get_num_threads(),
        }
        write_json(place / MANIFEST, manifest)
        for path in place.iterdir():  # earlier files, and those of killed processes
            if path.name not in (MANIFEST, LOCK, manifest.get("file")):
                path.unlink()
    return manifest


def open_index(run: Run) -> CellIndex | None:
    """Open the index of a run, up to date with the items that were added to it.

    Returns:
        None where the search is exact: by choice, without an index, or because the index is of a newer state than
        the opened run.

    Raises:
        RunError: The index is damaged, or of another run.
        MissingExtraError: FAISS is not installed.
    """
    manifest = _manifest(run)
    if manifest is None or manifest["search"] == EXACT:
        return None
    changed = _changed(run, manifest)
    if changed is None:
        return None
    path, size = run.folder / INDEX / manifest["file"], manifest["measured"][IVF]["bytes"]
    if not path.exists() and manifest != _manifest(run):
        return open_index(run)  # It was replaced at this moment.
    if not path.exists() or path.stat().st_size != size:
        raise RunError(f"'{path}' is absent or damaged", f"a file of {size:,} bytes", _CURE)
    return _mapped(run, path, manifest["probes"], changed)


def _manifest(run: Run) -> dict[str, Any] | None:
    path = run.folder / INDEX / MANIFEST
    return read_manifest(path, KIND, SCHEMA, RunError, _CURE) if path.exists() else None


def _identity(run: Run) -> str:
    """Hash of what decides which vectors are in the cells."""
    return sha256_json({"model": run.fingerprint, "weights": run.scorer.column_weights().tolist()})


def _changed(run: Run, manifest: Mapping[str, Any]) -> Index | None:
    """Rows of a run that changed since its index was made; None if the run was opened before.

    Raises:
        RunError: The index is of another run, or of other additions.
    """
    known = list(manifest["segments"])
    same = all(
        name == other and segment_hash(run.folder, name) == manifest["segments"][name]
        for name, other in zip(run.segments, known, strict=False)
    )
    if not same or manifest["run"] != _identity(run):
        got = f"the index in '{run.folder / INDEX}' is of another run, or of items that were since deleted"
        raise RunError(got, "an index of this run", _CURE)
    if len(known) > len(run.segments):
        return None
    rows = [segment_rows(run.folder, name) for name in run.segments[len(known) :]]
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows]))


def _sample(run: Run) -> tuple[str, Queries]:
    """Sample histories of the run's dataset or, where that is not at hand, items of the run, each as a history."""
    try:
        sequences = in_rows_of(run.items[ITEM_ID], open_dataset(run.config))
        users = np.flatnonzero(sequences.lengths)
    except (ConfigError, DataError):
        users = np.empty(0, np.int64)
    if len(users):
        return "histories", whole_histories(sequences, users).sample(_QUERIES)
    count = len(run.items)
    alone = Sequences(np.arange(count + 1), np.arange(count, dtype=np.int32))
    return "single items", whole_histories(alone, np.arange(count)).sample(_QUERIES)


def _divided(run: Run, queries: Queries, wanted: Index, recall: float) -> tuple[Search, dict[str, Any]]:
    """Write the vectors of a run in cells, and find how many of these a search has to read.

    Returns:
        The search, and the facts about it for the manifest, with its recall and the size of its file.
    """
    cells = _earlier_cells(run)
    if cells is None:
        cells = divide(_scaled(run.scorer), len(run.items), "an index of cells")
    path = run.folder / INDEX / f"{secrets.token_hex(8)}.faiss"
    write_cells(cells, path)
    index = _mapped(run, path, 1, np.empty(0, np.int64))
    search = partial(search_top_k, index, run.scorer, k=_LENGTH, policy=_POLICY, allowed=run.offered)
    while (found := share_found(search(queries)[0], wanted)) < recall and 2 * index.probes <= _READ * cells.nlist:
        index.probes *= 2
    facts = {"file": path.name, "cells": cells.nlist, "probes": index.probes}
    return search, {**facts, "recall@10": found, "bytes": path.stat().st_size}


def _earlier_cells(run: Run) -> Any:
    """Cells of the run's index with what changed since; None if there are none, or after too many changes."""
    try:
        manifest = _manifest(run)
        changed = None if manifest is None or manifest["search"] == EXACT else _changed(run, manifest)
        if manifest is None or changed is None or len(changed) > _CHANGED * len(run.items):
            return None
        faiss = load_faiss("an index of cells")
        cells = faiss.read_index(str(run.folder / INDEX / manifest["file"]))
    except (RunError, RuntimeError):
        return None  # The index of another run is replaced.
    if len(changed):
        cells.remove_ids(faiss.IDSelectorBatch(changed))
        cells.add_with_ids(_scaled(run.scorer)(torch.from_numpy(changed)).numpy(), changed)
    return cells if cells.ntotal == len(run.items) else None


def _scaled(scorer: DenseScorer) -> Vectors:
    """Item vectors in the cells, so that near ones have similar scores: weighted, without columns of weight 0."""
    weights = scorer.column_weights()
    return lambda rows: (scorer.vectors(rows).cpu() * weights)[:, weights != 0]


def _mapped(run: Run, path: Path, probes: int, changed: Index) -> CellIndex:
    scorer = run.scorer
    return CellIndex(map_cells(path), probes, scorer.vectors, len(run.items), scorer.column_weights(), changed)


def write_cells(cells: Any, path: Path) -> None:
    """Write a FAISS index atomically; raise a ``RunError`` if there is no room."""
    with aside(path) as temporary:
        try:
            load_faiss("an index of cells").write_index(cells, str(temporary))
        except RuntimeError as error:
            got = f"'{path}' could not be written ({error})"
            raise RunError(got, "room for the vectors", "make room, and run `iisan index` again") from None


def map_cells(path: Path) -> Any:
    """Memory-map the FAISS index of ``write_cells``; raise a ``RunError`` if it is damaged."""
    faiss = load_faiss("the index of this run")
    try:
        cells = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise RunError(f"'{path}' is damaged ({error})", "a file of FAISS", _CURE) from None
    # By default every search starts threads that read the cells, which takes longer than the search itself.
    faiss.downcast_InvertedLists(cells.invlists).prefetch_nthread = 0
    return cells


def share_found(found: Index, wanted: Index) -> float:
    """Share of the items of wanted lists ``[Q, k]`` that are in the found lists ``[Q, k]``."""
    hits = (found[:, :, None] == wanted[:, None]) & (wanted != PAD)[:, None]
    return float(hits.sum() / max(1, (wanted != PAD).sum()))


def _timed(sides: Mapping[str, Search], queries: Queries) -> dict[str, float]:
    """Median of the milliseconds that a list takes, the sides in turns after one turn that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(_TIMED + 1):
        number = turn % len(queries)
        for name, search in sides.items():
            began = time.perf_counter()
            search(queries[number : number + 1])
            seconds[name].append(time.perf_counter() - began)
    return {name: 1000 * statistics.median(each[1:]) for name, each in seconds.items()}


def _earns_its_file(measured: Mapping[str, Any], recall: float) -> bool:
    quick = _FASTER * measured[IVF]["milliseconds"] <= measured[EXACT]["milliseconds"]
    return quick and measured[IVF]["recall@10"] >= recall
