"""Search in cells of FAISS next to the exact one, with and without filters, in one run.

    python benchmarks/index.py --out benchmarks/results/index.json

A million vectors of the width that ships, a learned part of 128, an anchor of 512 and the popularity, in nested
groups of similar items; queries are near items of the catalogue. Filters keep a random tenth, hundredth and
thousandth. Lists of ten, a query at a time. The number of cells that are read is the least power of two with the
wanted recall@10 without a filter; the filtered searches follow from it. The cells are mapped from their file.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import faster, take_turns, told, write_record
from torch import Tensor
from torch.nn.functional import normalize

from iisan.evaluate.cells import divide
from iisan.serve.index import map_cells, share_found, write_cells
from iisan.serve.search import CellIndex, ExactIndex, VectorIndex

LEARNED, ANCHOR = 128, 512
#: Items per group, which are nested in each other, and the length of what is an item's own.
GROUPS, SPREAD = (50, 2_500, 125_000), 0.7
K, QUERIES = 10, 100
SHARES = (1.0, 0.1, 0.01, 0.001)


def unit(count: int, width: int) -> Tensor:
    return normalize(torch.randn(count, width), dim=1)


def catalogue(items: int) -> tuple[Tensor, Tensor]:
    """Item vectors ``[N, V]`` and queries ``[Q, V]``; a query is the mean of two similar items and some noise."""
    parts = []
    for width in (LEARNED, ANCHOR):
        centres = [unit(-(-items // size), width) for size in GROUPS]
        part = torch.randn(items, width).mul_(SPREAD / width**0.5)
        for rows in torch.arange(items).split(2**16):
            for each, size in zip(centres, GROUPS, strict=True):
                part[rows] += each[rows // size]
            part[rows] = normalize(part[rows], dim=1)
        parts.append(part)
    popularity = torch.empty(items, 1).exponential_()
    vectors = torch.cat([*parts, popularity], 1)[torch.randperm(items)]
    wanted = torch.randint(items, (QUERIES,))
    near = (vectors[wanted] @ vectors.T).topk(5).indices[:, -1]
    queries = (vectors[wanted] + vectors[near]) / 2 + 0.3 * unit(QUERIES, vectors.shape[1])
    queries[:, -1] = 0.05
    return vectors, queries


def one_by_one(index: VectorIndex, queries: Tensor, allowed: np.ndarray | None) -> None:
    for query in queries.split(1):
        index.search(query, K, allowed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the cells are written; by default a temporary folder")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    vectors, queries = catalogue(arguments.items)
    # As in a run, cells hold the columns times their weights in the queries.
    scale = torch.ones(vectors.shape[1])
    scale[-1] = 0.05
    began = time.process_time()
    cells = divide(lambda rows: vectors[rows] * scale, arguments.items, "this benchmark")
    seconds = time.process_time() - began
    exact = ExactIndex(vectors)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        path = Path(temporary) / "cells.faiss"
        write_cells(cells, path)
        mapped = map_cells(path)
        size = path.stat().st_size
        del cells
        index = CellIndex(mapped, 1, vectors.__getitem__, arguments.items, scale, np.empty(0, np.int64))
        wanted = exact.search(queries, K)[0]
        while share_found(index.search(queries, K)[0], wanted) < arguments.recall and index.probes < mapped.nlist:
            index.probes *= 2
        rng = np.random.default_rng(0)
        found: list[dict[str, Any]] = []
        for share in SHARES:
            allowed = None if share == 1 else rng.random(arguments.items) < share
            lists = [each.search(queries, K, allowed)[0] for each in (index, exact)]
            sides: dict[str, VectorIndex] = {"ivf": index, "exact": exact}
            spent = take_turns(
                {name: partial(one_by_one, each, queries, allowed) for name, each in sides.items()},
                arguments.turns,
            )
            found.append({"kept": share, "recall@10": share_found(*lists), "seconds": spent})
    results = {
        "items": arguments.items,
        "width": vectors.shape[1],
        "queries": QUERIES,
        "cells": mapped.nlist,
        "probes": index.probes,
        "seconds_of_building": seconds,
        "bytes": {"ivf": size, "exact": vectors.numel() * vectors.element_size()},
        "filters": found,
        "threads": torch.get_num_threads(),
    }
    lines = [
        f"{arguments.items:,} vectors of width {vectors.shape[1]}, {QUERIES} queries, one at a time, "
        f"{torch.get_num_threads()} threads; ms of the processor per query, median (quartiles) of "
        f"{arguments.turns} turns.",
        "",
        "| kept by the filter | recall@10 of IVF in % | IVF | exact | times faster |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {100 * each['kept']:g}% | {100 * each['recall@10']:.1f} | "
            f"{told(each['seconds']['ivf'], 'processor', 1000 / QUERIES)} | "
            f"{told(each['seconds']['exact'], 'processor', 1000 / QUERIES)} | "
            f"{faster(each['seconds'], 'exact', 'ivf')['processor']:.1f} |"
            for each in found
        ),
        "",
        f"{mapped.nlist:,} cells, of which a search without a filter reads {index.probes:,}; they were made in "
        f"{seconds:.0f} s of the processor and take {size / 1e6:,.0f} MB, the vectors themselves "
        f"{results['bytes']['exact'] / 1e6:,.0f} MB.",
    ]
    write_record(arguments.out, "Search in cells of FAISS and exact search", results, lines)


if __name__ == "__main__":
    main()
