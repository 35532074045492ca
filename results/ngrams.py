"""Vectors of another kind for the items of a dataset: hashed character n-grams of titles, reduced by an SVD.

    python results/ngrams.py DATASET OUT        writes OUT.npy [N, 256] and OUT.txt, the ids

Nothing is learned from other texts: two titles are close when they share letters.
"""

import sys
import zlib
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import svds

from iisan.data.dataset import Dataset

SIZES, BUCKETS, WIDTH = (3, 4, 5), 2**18, 256


def ngrams(text: str) -> list[int]:
    """The bucket of every n-gram of a lower-cased title, with spaces at its ends."""
    padded = f" {text.lower()} "
    return [
        zlib.crc32(padded[start : start + size].encode()) % BUCKETS
        for size in SIZES
        for start in range(len(padded) - size + 1)
    ]


def main() -> None:
    """Write the vectors of a dataset's items."""
    dataset, out = Dataset.load(sys.argv[1]), Path(sys.argv[2])
    buckets = [ngrams(text or "") for text in dataset.items["text"]]
    rows = np.repeat(np.arange(len(buckets)), [len(each) for each in buckets])
    counts = csr_matrix((np.ones(len(rows), np.float32), (rows, np.concatenate(buckets))), (len(buckets), BUCKETS))
    counts.data = 1 + np.log(counts.data)
    frequency = np.bincount(counts.indices, minlength=BUCKETS)
    weighted = counts @ diags(np.log(len(buckets) / np.maximum(frequency, 1)).astype(np.float32))
    lengths = np.sqrt(weighted.multiply(weighted).sum(1)).A1
    left, values, _ = svds(diags(1 / np.maximum(lengths, 1e-12)) @ weighted, k=WIDTH, random_state=0)
    np.save(out.with_suffix(".npy"), (left * values)[:, ::-1].astype(np.float32))
    out.with_suffix(".txt").write_text("\n".join(dataset.items["item_id"]), encoding="utf-8")


if __name__ == "__main__":
    main()
