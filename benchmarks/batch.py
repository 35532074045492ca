"""Lists for all users next to the bare matrix product, and a batch of as many users as fit in some minutes.

    python benchmarks/batch.py --out benchmarks/results/batch.json

100,000 items of the width that ships: a learned part of 128 with its sequence encoder, an anchor of 512,
popularity, transitions and repeats. Vectors are random; each user has ten interactions, drawn with a skew, and the
transitions are those of a million such users, shared by 50 random neighbours of an item. The product multiplies as
many query vectors with the same item vectors, in blocks of the size that ranking has, and does nothing else. Lists
of ten without seen items, written as Parquet.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy import sparse
from timing import PeakMemory, faster, take_turns, told, write_record
from torch import Tensor
from torch.nn.functional import normalize

from iisan.data.dataset import Dataset
from iisan.data.sequences import Index, Sequences
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.evaluate.terms import NEIGHBOURS, TermScorer, Transitions, Weights
from iisan.machine import keep_freed_memory
from iisan.model import encode_queries, sequence_encoder
from iisan.recipes import recipe
from iisan.runs.run import MODEL, Run
from iisan.serve.batch import recommend_shard, write_all
from iisan.serve.lists import ListMaker

ITEMS, LEARNED, ANCHOR, HISTORY, K = 100_000, 128, 512, 10, 10
MILLION = 1_000_000
#: Users and items whose scores are computed at a time, as in ranking.
BATCH, BLOCK = 128, 25_000


def unit(width: int) -> Tensor:
    return normalize(torch.randn(ITEMS, width), dim=1)


def make_scorer(drawn: Index) -> TermScorer:
    config = recipe("default")
    embeddings, length = unit(LEARNED), config.sequence.max_length
    encode = partial(encode_queries, sequence_encoder(config.sequence, LEARNED), embeddings)
    rows, columns = drawn[:, :-1].ravel(), drawn[:, 1:].ravel()
    shares = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(ITEMS, ITEMS))
    shares.sum_duplicates()
    shares.data /= np.maximum(shares.sum(axis=1), 1).astype(np.float32).repeat(np.diff(shares.indptr))
    near = np.random.default_rng(1).integers(0, ITEMS, NEIGHBOURS * ITEMS, dtype=np.int32)
    ends = NEIGHBOURS * np.append(np.arange(ITEMS + 1), ITEMS)
    neighbours = sparse.csr_array((np.full(len(near), 1 / NEIGHBOURS, np.float32), near, ends), (ITEMS + 1, ITEMS))
    counts = torch.from_numpy(np.bincount(drawn.ravel(), minlength=ITEMS))
    weights = Weights((1.0,), {"text": 3.0}, 0.7, 0.05, 1.5, -0.5)
    learned = [EmbeddingScorer(embeddings, encode, length)]
    return TermScorer(learned, {"text": unit(ANCHOR)}, counts, Transitions(shares, neighbours), weights, length)


def make_maker(folder: Path) -> ListMaker:
    torch.manual_seed(0)
    drawn = (ITEMS * np.random.default_rng(0).random((MILLION, HISTORY)) ** 2.5).astype(np.int32)
    items = pl.DataFrame({"item_id": [f"item-{number}" for number in range(ITEMS)], "text": [None] * ITEMS})
    users = pl.Series("user_id", [f"user-{number}" for number in range(MILLION)])
    sequences = Sequences(np.arange(MILLION + 1) * HISTORY, drawn.ravel())
    (folder / MODEL).touch()
    maker = ListMaker(Run(folder, recipe("default"), {}, items, make_scorer(drawn.astype(np.int64)), ()))
    # Nothing is read from a folder: dataset and histories are these.
    dataset = Dataset(None, items, sequences, users, None, None, {"content_hash": "drawn"})
    maker.__dict__.update(dataset=dataset, sequences=sequences)
    return maker


def product(queries: Tensor, items: Tensor) -> None:
    out = torch.empty(BATCH * BLOCK)
    for some in queries.split(BATCH):
        for block in items.split(BLOCK):
            torch.mm(some, block.T, out=out[: len(some) * len(block)].view(len(some), len(block)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=1024, help="users of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10, help="of the long batch")
    arguments = parser.parse_args()
    keep_freed_memory()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as temporary:
        maker = make_maker(Path(temporary))
        scorer, selection, users = maker.run.scorer, maker.select(), np.arange(arguments.users)
        queries = torch.randn(len(users), scorer.items.shape[1])
        seconds = take_turns(
            {
                "batch": lambda: recommend_shard(maker, users, K, selection),
                "product": lambda: product(queries, scorer.items),
            },
            arguments.turns,
        )
        rate = len(users) / seconds["batch"]["wall"]["median"]
        count = min(MILLION, max(BATCH, int(rate * 60 * arguments.minutes)))
        whole = maker.sequences
        maker.__dict__["sequences"] = Sequences(whole.offsets[: count + 1], whole.items[: count * HISTORY])
        memory = PeakMemory()
        held, began, worked = memory.now(), time.perf_counter(), time.process_time()
        with memory:
            lists = write_all(maker, K, selection, Path(temporary) / "lists.parquet")
        long = {
            "users": count,
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - worked,
            "rows": lists.select(pl.len()).collect().item(),
            "bytes_of_the_file": (Path(temporary) / "lists.parquet").stat().st_size,
            "bytes_held_before": held,
            "bytes_at_most_beside_them": memory.peak - held,
        }
        load.append(os.getloadavg()[0])
    results = {
        "items": ITEMS,
        "width": scorer.items.shape[1],
        "users_of_a_turn": len(users),
        "turns": arguments.turns,
        "seconds": seconds,
        "times_the_product": faster(seconds, "batch", "product"),
        "long": long,
        "extrapolated_hours_of_a_million_users": {
            "batch": MILLION * long["seconds"] / long["users"] / 3600,
            "batch, in processor time": MILLION * long["processor_seconds"] / long["users"] / 3600,
            "product, in processor time": MILLION * seconds["product"]["processor"]["median"] / len(users) / 3600,
        },
        "threads": torch.get_num_threads(),
        "load_average_before_and_after": load,
    }
    write_record(arguments.out, "Lists for all users", results, page(results))


def page(results: dict[str, Any]) -> list[str]:
    seconds, users, threads = results["seconds"], results["users_of_a_turn"], results["threads"]
    ratio, long, hours = (
        results[name] for name in ("times_the_product", "long", "extrapolated_hours_of_a_million_users")
    )
    before, after = results["load_average_before_and_after"]
    share = long["processor_seconds"] / long["seconds"]
    peak = long["bytes_held_before"] + long["bytes_at_most_beside_them"]
    return [
        f"{results['items']:,} items of width {results['width']}, lists of {K}, "
        f"{threads} thread{'s' * (threads > 1)}; load average {before:.1f} before, {after:.1f} after. Median "
        f"(quartiles) of {results['turns']} turns of {users:,} users.",
        "",
        "| | seconds | processor seconds | users per processor second |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {told(each)} | {told(each, 'processor')} | {users / each['processor']['median']:.0f} |"
            for name, each in seconds.items()
        ),
        "",
        f"The batch takes {ratio['processor']:.2f} times the processor time of its product, and "
        f"{ratio['wall']:.2f} times the time on the clock, which other work on the machine decides, too.",
        "",
        f"{long['users']:,} users were written in {long['seconds'] / 60:.1f} minutes, "
        f"{long['users'] / long['seconds']:.0f} a second, while the batch got {share:.2f} processors: "
        f"{long['users'] / long['processor_seconds']:.0f} users per processor second. The file has "
        f"{long['rows']:,} rows in {long['bytes_of_the_file'] / 1e6:.1f} MB. The process held {peak / 1e9:.2f} GB "
        f"at most, {long['bytes_held_before'] / 1e9:.2f} GB of it before: the model, a million histories, the "
        "libraries, and what the turns left.",
        "",
        f"Extrapolated, not measured: a million users take {hours['batch']:.1f} hours at that rate on the clock, "
        f"and {hours['batch, in processor time']:.2f} processor hours, of which the product alone is "
        f"{hours['product, in processor time']:.2f}.",
    ]


if __name__ == "__main__":
    main()
