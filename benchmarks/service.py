"""A load test of `iisan serve`: requests at a steady rate, and the rate that the service still keeps up with.

    python benchmarks/service.py RUN --out benchmarks/results/service.json

RUN is a finished run with its dataset, whose histories are asked for. The service is a process of its own, the
generator another one, both on the same machine. A request's time begins when it was due, not when it was sent, so
that a slow answer counts for all that had to wait behind it.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from prometheus_client.parser import text_string_to_metric_families
from timing import take_turns, write_record

from iisan import Recommender
from iisan.names import ITEM_ID

#: The required rate in requests a second and its duration; the most milliseconds of 99% of the requests.
RATE, SECONDS, MOST = 200, 60, 50.0
#: Further rates, each for a shorter time.
RATES, SHORT = (250, 300, 350, 400, 500, 600, 800), 15
#: Connections of the generator, and different histories.
CONNECTIONS, HISTORIES = 64, 4096
LENGTH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="Threads that compute in the service.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    recommender = Recommender.load(arguments.run)
    histories = _histories(recommender)
    bodies = [json.dumps({"history": each, "k": LENGTH}).encode() for each in histories]
    with _serving(arguments) as port:
        asyncio.run(_load(port, bodies, 50, 5))  # warms up
        loads, before = [], (0.0, 0.0)
        for rate, seconds in ((RATE, SECONDS), *((rate, SHORT) for rate in RATES)):
            load = asyncio.run(_load(port, bodies, rate, seconds))
            after = _batches(port)
            batches = after[1] - before[1]
            load["queries_a_batch"], before = (after[0] - before[0]) / batches, after
            loads.append(load)
            print(load)
            if load["p99"] > MOST or load["errors"]:
                break
    torch.set_num_threads(arguments.threads)
    bounds = _bounds(recommender, histories, loads[0]["queries_a_batch"])
    kept = max((load["rate"] for load in loads if load["p99"] <= MOST and not load["errors"]), default=0)
    facts = {
        "items": len(recommender.run.items),
        "width": recommender.run.scorer.vectors(slice(1)).shape[1],
        "threads": arguments.threads,
        "loads": loads,
        "milliseconds_of": bounds,
        "rate_kept": kept,
    }
    lines = [
        f"{facts['items']:,} items, vectors of {facts['width']}, histories of users, lists of {LENGTH}; "
        f"{facts['threads']} thread computes, generator on the same cores.",
        "",
        "| requests / s | seconds | answered / s | errors | p50, ms | p99, ms | slowest, ms | queries a batch |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {each['rate']} | {each['seconds']} | {each['answered']:.0f} | {each['errors']} | "
            f"{each['p50']:.1f} | {each['p99']:.1f} | {each['slowest']:.0f} | {each['queries_a_batch']:.1f} |"
            for each in loads
        ),
        "",
        f"p99 stays within {MOST:g} ms up to {kept} requests a second.",
        "",
        "| without the service | ms |",
        "|---|---:|",
        *(f"| {name} | {value:.1f} |" for name, value in bounds.items()),
    ]
    write_record(arguments.out, "Service under load", facts, lines)


def _histories(recommender: Recommender) -> list[list[str]]:
    sequences, ids = recommender.dataset.sequences, recommender.run.items[ITEM_ID].to_numpy()
    users = np.random.default_rng(0).choice(sequences.num_users, HISTORIES)
    return [ids[sequences.items[sequences.offsets[u] : sequences.offsets[u + 1]]].tolist() for u in users]


@contextmanager
def _serving(arguments: argparse.Namespace) -> Iterator[int]:
    options = ["--port", arguments.port, "--threads", arguments.threads, "--log-level", "warning"]
    command = [sys.executable, "-m", "iisan.cli", "serve", arguments.run, *options]
    service = subprocess.Popen(list(map(str, command)))
    try:
        for _ in range(300):
            time.sleep(0.2)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{arguments.port}/ready").close()
                break
            except OSError:
                assert service.poll() is None, "the service ended"
        yield arguments.port
    finally:
        service.terminate()
        service.wait()


async def _load(port: int, bodies: list[bytes], rate: int, seconds: int) -> dict[str, float]:
    """Send requests at a rate over open connections."""
    loop, due = asyncio.get_running_loop(), asyncio.Queue[float | None]()
    times: list[float] = []
    errors = 0

    async def connection(number: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (when := await due.get()) is not None:
            body = bodies[(number + len(times)) % len(bodies)]
            head = f"POST /recommend HTTP/1.1\r\nhost: localhost:{port}\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"content-length: (\d+)", answer)
            await reader.readexactly(int(length))
            times.append(loop.time() - when)
            errors += not answer.startswith(b"HTTP/1.1 200")
        writer.close()

    connections = [asyncio.create_task(connection(number)) for number in range(CONNECTIONS)]
    began = loop.time() + 0.1
    for number in range(rate * seconds):
        when = began + number / rate
        if (early := when - loop.time()) > 0:
            await asyncio.sleep(early)
        due.put_nowait(when)
    for _ in connections:
        due.put_nowait(None)
    await asyncio.gather(*connections)
    milliseconds = [1000 * each for each in times]
    percentiles = statistics.quantiles(milliseconds, n=100)
    return {
        "rate": rate,
        "seconds": seconds,
        "answered": len(times) / (loop.time() - began),
        "errors": errors,
        "p50": percentiles[49],
        "p99": percentiles[98],
        "slowest": max(milliseconds),
    }


def _batches(port: int) -> tuple[float, float]:
    """Queries and batches so far."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    (family,) = (each for each in text_string_to_metric_families(text) if each.name == "iisan_batch_size")
    values = {sample.name: sample.value for sample in family.samples}
    return values["iisan_batch_size_sum"], values["iisan_batch_size_count"]


def _bounds(recommender: Recommender, histories: list[list[str]], size: float) -> dict[str, float]:
    """Milliseconds of the bare matrix product, and of lists in Python, for one query and for a batch."""
    items = recommender.run.scorer.items
    count = max(1, round(size))
    queries = torch.randn(count, items.shape[1])
    sides = {
        "matrix product, 1 query": lambda: queries[:1] @ items.T,
        f"matrix product, {count} queries": lambda: queries @ items.T,
        "list in Python, 1 query": lambda: recommender.recommend(history=histories[0], k=LENGTH),
    }
    found = take_turns(sides, 30)
    return {name: 1000 * each["wall"]["median"] for name, each in found.items()}


if __name__ == "__main__":
    main()
