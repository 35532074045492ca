"""Full ranking next to its bound, and next to the usual sort, in one run.

    python benchmarks/ranking.py --out benchmarks/results/ranking.json

As many users and items as Amazon "Industrial & Scientific" has (12,076 and 20,314), random embeddings as wide as
those of the recipe ``default`` without its anchor (128) and with it (641), histories of ten, and then many items
(2,000 users, 1,000,000 items), where memory has to stay bounded. The bound is the matrix product by itself, in the
same blocks, with as many columns added as the kernels like; ``product and pass`` also compares every score once.
``sort`` is what evaluation scripts usually do, for a tenth of the users, times ten.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import PeakMemory, faster, take_turns, told, write_record
from torch import Tensor, nn

from iisan.data.sequences import Index, Sequences
from iisan.data.splits import Queries
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.machine import keep_freed_memory

HISTORY = 10
#: The learned part of ``default``, and its sum with an anchor and popularity.
WIDTHS = (128, 641)
SCIENTIFIC = (12_076, 20_314)
LARGE = (2_000, 1_000_000)
BATCH, BLOCK, MULTIPLE = 128, 32_768, 64


class Random:
    """Random embeddings, histories and targets.

    Args:
        users: Q.
        items: N.
        width: E.
    """

    def __init__(self, users: int, items: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self.items = torch.randn(items, width)
        self.users = torch.randn(users, width)
        offsets = np.arange(users + 1) * HISTORY
        histories = rng.integers(0, items, users * HISTORY, dtype=np.int32)
        targets = rng.integers(0, items, users)
        sequences = Sequences(offsets, histories)
        self.queries = Queries(sequences, np.arange(users), offsets[:-1], offsets[1:], targets)
        self._next = 0

    def rank(self) -> None:
        """What evaluation does."""
        self._next = 0
        rank_targets(EmbeddingScorer(self.items, self._encode, HISTORY), self.queries, "exclude-all")

    def product(self, compare: bool = False) -> None:
        """The same product and nothing else, or one comparison of every score besides."""
        every = nn.functional.pad(self.items, (0, 0, 0, -len(self.items) % MULTIPLE))
        width = min(BLOCK, len(every))
        scores = torch.empty(BATCH * width)
        flags = torch.empty(BATCH * width)
        for users in self.users.split(BATCH):
            for items in every.split(width):
                size = len(users) * len(items)
                block = scores[:size].view(len(users), len(items))
                torch.mm(users, items.T, out=block)
                if compare:
                    torch.gt(block, block[:, :1], out=flags[:size].view_as(block)).sum(1)

    def sort(self) -> None:
        """The position of the target in the sorted catalogue."""
        targets = torch.from_numpy(self.queries.targets)
        for users, wanted in zip(self.users.split(BATCH), targets.split(BATCH), strict=True):
            (users @ self.items.T).argsort(dim=1, descending=True).eq(wanted[:, None]).nonzero()

    def _encode(self, histories: Index) -> Tensor:
        found = self.users[self._next : self._next + len(histories)]
        self._next += len(histories)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()  # as ``iisan evaluate`` does
    threads, widths, lines = torch.get_num_threads(), {}, []
    for width in WIDTHS:
        found = measure(width, arguments.turns)
        widths[width] = found
        lines += [
            f"{SCIENTIFIC[0]:,} users, {SCIENTIFIC[1]:,} items of width {width}, {threads} threads; "
            "median (quartiles).",
            "",
            "| | seconds | processor seconds |",
            "|---|---:|---:|",
            *(f"| {name} | {told(each)} | {told(each, 'processor')} |" for name, each in found["seconds"].items()),
            "",
            f"Ranking takes {found['times_the_product']['wall']:.2f} times its product; sorting all users would "
            f"take {found['times_faster_than_sorting']['wall']:.0f} times as long.",
            "",
        ]
    large = measure_many(WIDTHS[0])
    rank, product = (large["seconds"][side]["wall"]["median"] for side in ("rank", "product"))
    lines.append(
        f"{LARGE[0]:,} users, {LARGE[1]:,} items of width {WIDTHS[0]}: {rank:.1f} s "
        f"(the product alone {product:.1f} s), "
        f"{large['bytes_beside_the_embeddings'] / 1e6:.0f} MB beside the embeddings."
    )
    results = {"users_and_items": SCIENTIFIC, "widths": widths, "large": large, "threads": threads}
    write_record(arguments.out, "Ranking of all items for all users", results, lines)


def measure(width: int, turns: int) -> dict[str, Any]:
    """Of as many users and items as in Scientific."""
    data, tenth = Random(*SCIENTIFIC, width), Random(SCIENTIFIC[0] // 10, SCIENTIFIC[1], width)
    found = take_turns(
        {
            "rank": data.rank,
            "product": data.product,
            "product and pass": lambda: data.product(compare=True),
            "sort a tenth": tenth.sort,
        },
        turns,
    )
    sorting = {kind: 10 * value for kind, value in faster(found, "sort a tenth", "rank").items()}
    return {
        "seconds": found,
        "times_the_product": faster(found, "rank", "product"),
        "times_faster_than_sorting": sorting,
    }


def measure_many(width: int) -> dict[str, Any]:
    """Of many items, and the memory that ranking them takes."""
    data, memory = Random(*LARGE, width), PeakMemory()
    held = memory.now()
    with memory:
        rank = take_turns({"rank": data.rank}, 1)["rank"]
    product = take_turns({"product": data.product}, 1)["product"]
    return {
        "users_and_items": LARGE,
        "seconds": {"rank": rank, "product": product},
        "bytes_beside_the_embeddings": memory.peak - held,
    }


if __name__ == "__main__":
    main()
