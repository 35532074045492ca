"""Ten million interactions in the layouts of two public datasets, from files to a dataset folder.

    python benchmarks/sources.py --out benchmarks/results/sources.json

Generated files in the layouts of Amazon reviews of 2023 (compressed JSON lines with a text of some 200
characters) and of MovieLens 32M (CSV): a million users, 200,000 items, rows in no order. Every step is a process
with one thread: its wall time, processor seconds and largest resident memory. ``read`` is what polars alone needs
to read the ids and times of the same files into memory, the bound of any preparation.
"""

import argparse
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import IO, cast

import numpy as np
import polars as pl
from preparation import ITEMS, USERS, Cost, run
from timing import write_record

_AT_ONCE = 500_000

_READ = {
    "amazon-2023": """
import sys, polars as pl
schema = {"user_id": pl.String, "parent_asin": pl.String, "timestamp": pl.Int64}
pl.read_ndjson(sys.argv[1], schema={"parent_asin": pl.String, "title": pl.String})
pl.read_ndjson(sys.argv[2], schema=schema)
""",
    "movielens": """
import sys, polars as pl
pl.read_csv(sys.argv[1])
pl.read_csv(sys.argv[2], columns=["userId", "movieId", "timestamp"])
""",
}
FILES = {
    "amazon-2023": ("meta_Generated.jsonl.gz", "Generated.jsonl.gz"),
    "movielens": ("movies.csv", "ratings.csv"),
}


def write_files(folder: Path, interactions: int) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5_000)])
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), (10_000, 24))]]
    for name in FILES:
        (folder / name).mkdir()
    with gzip.open(folder / "amazon-2023" / FILES["amazon-2023"][0], "wt", compresslevel=1) as file:
        for number in range(ITEMS):
            images = [{"thumb": "t", "large": f"https://i.example/{number}.jpg", "variant": "MAIN"}]
            item = {
                "main_category": "Tools",
                "title": texts[number % len(texts)][:60],
                "average_rating": 4.5,
                "rating_number": 9,
                "features": ["Strong"],
                "description": [texts[-number % len(texts)]],
                "price": None if number % 3 else 3.99,
                "images": images,
                "store": "S",
                "categories": ["Tools"],
                "parent_asin": f"B{number:09d}",
            }
            file.write(json.dumps(item) + "\n")
    movies = pl.DataFrame(
        {"movieId": range(ITEMS), "title": [f"{texts[n % len(texts)][:40]} (1999)" for n in range(ITEMS)]}
    )
    movies.with_columns(genres=pl.lit("Drama|War")).write_csv(folder / "movielens" / "movies.csv")
    with (
        gzip.open(folder / "amazon-2023" / FILES["amazon-2023"][1], "wb", compresslevel=1) as reviews,
        (folder / "movielens" / "ratings.csv").open("wb") as ratings,
    ):
        for start in range(0, interactions, _AT_ONCE):
            count = min(_AT_ONCE, interactions - start)
            log = pl.DataFrame(
                {
                    "userId": rng.integers(0, USERS, count),
                    "movieId": (ITEMS * rng.random(count) ** 2).astype(np.int64),
                    "rating": rng.integers(1, 6, count).astype(float),
                    "timestamp": rng.integers(1_500_000_000, 1_700_000_000, count),
                }
            )
            log.write_csv(ratings, include_header=not start)
            log.select(
                "rating",
                title=pl.lit("Good"),
                text=pl.Series(texts).gather(rng.integers(0, len(texts), count)),
                images=pl.lit([], dtype=pl.List(pl.String)),
                asin=pl.format("B{}", pl.col("movieId").cast(pl.String).str.zfill(9)),
                parent_asin=pl.format("B{}", pl.col("movieId").cast(pl.String).str.zfill(9)),
                user_id=pl.format("AGKHLEW2SOWHNMFQIJG{}", pl.col("userId").cast(pl.String).str.zfill(9)),
                timestamp=pl.col("timestamp") * 1000,
                helpful_vote=pl.lit(0),
                verified_purchase=pl.lit(True),
            ).write_ndjson(cast(IO[bytes], reviews))


def measure(folder: Path, name: str) -> dict[str, Cost]:
    paths = [folder / name / file for file in FILES[name]]
    return {
        f"read {name}": run("-c", _READ[name], *paths),
        f"prepare {name}": run(
            "-m", "iisan.cli", "prepare", name, folder / name, "--out", folder / f"{name}-data"
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--interactions", type=int, nargs="+", default=[2_500_000, 10_000_000])
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_files(arguments.out, arguments.interactions[0])
        return
    os.environ |= {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    lines = [
        "| interactions | | file GB | seconds | processor seconds | peak GB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    results = {}
    for count in arguments.interactions:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            # In a process of its own: the peak of a child is at least what its parent holds when it starts it.
            run(__file__, f"--out={folder}", "--interactions", str(count), "--write")
            for name in FILES:
                size = sum((folder / name / file).stat().st_size for file in FILES[name])
                costs = measure(folder, name)
                results[f"{count} {name}"] = {step: vars(cost) for step, cost in costs.items()}
                lines += [
                    f"| {count:,} | {step} | {size / 1e9:.2f} | {cost.wall:.1f} | {cost.processor:.1f} "
                    f"| {cost.peak_bytes / 1e9:.2f} |"
                    for step, cost in costs.items()
                ]
    lines += ["", "Memory is that of the ids and times of all interactions; the texts of reviews take none."]
    write_record(arguments.out, "Reading ten million interactions as published", results, lines)


if __name__ == "__main__":
    main()
