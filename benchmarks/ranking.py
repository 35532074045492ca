"""Full ranking next to its bound, and next to the usual sort, in one run.

    python benchmarks/ranking.py --out benchmarks/results/ranking.json

As many users and items as Amazon "Industrial & Scientific" has (12,076 and 20,314), random embeddings of width
64, histories of ten, and then many items (10,000 users, 1,000,000 items), where memory has to stay bounded. The
bound is the matrix product by itself, in the same blocks; ``product and pass`` also compares every score once.
``sort`` is what evaluation scripts usually do, for a tenth of the users, times ten.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import PeakMemory, faster, take_turns, told, write_record
from torch import Tensor

from iisan.data.sequences import Index, Sequences
from iisan.data.splits import Queries
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.scorer import EmbeddingScorer

WIDTH, HISTORY = 64, 10
SCIENTIFIC = (12_076, 20_314)
LARGE = (10_000, 1_000_000)
BATCH, BLOCK = 128, 32_768


class Random:
    """Random embeddings, histories and targets.

    Args:
        users: Q.
        items: N.
    """

    def __init__(self, users: int, items: int) -> None:
        rng = np.random.default_rng(0)
        self.items = torch.randn(items, WIDTH)
        self.users = torch.randn(users, WIDTH)
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
        width = min(BLOCK, len(self.items))
        scores = torch.empty(BATCH * width)
        flags = torch.empty(BATCH * width)
        for users in self.users.split(BATCH):
            for items in self.items.split(width):
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
    data, tenth = Random(*SCIENTIFIC), Random(SCIENTIFIC[0] // 10, SCIENTIFIC[1])
    found = take_turns(
        {
            "rank": data.rank,
            "product": data.product,
            "product and pass": lambda: data.product(compare=True),
            "sort a tenth": tenth.sort,
        },
        arguments.turns,
    )
    memory = PeakMemory()
    large = Random(*LARGE)
    held = memory.now()
    with memory:
        ranked = take_turns({"rank": large.rank}, 1)["rank"]
    bound = take_turns({"product": large.product}, 1)["product"]
    results: dict[str, Any] = {
        "users_and_items": SCIENTIFIC,
        "seconds": found,
        "times_the_product": faster(found, "rank", "product"),
        "times_faster_than_sorting": {
            kind: 10 * value for kind, value in faster(found, "sort a tenth", "rank").items()
        },
        "large": {
            "users_and_items": LARGE,
            "seconds": {"rank": ranked, "product": bound},
            "bytes_beside_the_embeddings": memory.peak - held,
        },
        "threads": torch.get_num_threads(),
    }
    lines = [
        f"{SCIENTIFIC[0]:,} users, {SCIENTIFIC[1]:,} items of width {WIDTH}, {torch.get_num_threads()} threads; "
        "median (quartiles).",
        "",
        "| | seconds | processor seconds |",
        "|---|---:|---:|",
        *(f"| {name} | {told(each)} | {told(each, 'processor')} |" for name, each in found.items()),
        "",
        f"Ranking takes {results['times_the_product']['wall']:.2f} times its product; sorting all users would "
        f"take {results['times_faster_than_sorting']['wall']:.0f} times as long.",
        "",
        f"{LARGE[0]:,} users, {LARGE[1]:,} items: {ranked['wall']['median']:.1f} s (the product alone "
        f"{bound['wall']['median']:.1f} s), {results['large']['bytes_beside_the_embeddings'] / 1e6:.0f} MB "
        "beside the embeddings.",
    ]
    write_record(arguments.out, "Ranking of all items for all users", results, lines)


if __name__ == "__main__":
    main()
