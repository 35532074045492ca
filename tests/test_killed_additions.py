"""Kill the adding of items at random moments, while another process searches: nothing is lost, nothing is mixed.

The test kills a few times; ``python tests/test_killed_additions.py 100 RECORD.json`` does it as often as wanted
and records what happened. Items are added by processes that fork from one with the libraries loaded, so that most
of their time goes into what may be interrupted.
"""

import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from iisan.data.dataset import Dataset
from iisan.data.sequences import Sequences
from iisan.data.splits import whole_histories
from iisan.demo.catalogue import generate
from iisan.demo.run import ENCODERS
from iisan.evaluate.ranks import top_k
from iisan.recipes import recipe
from iisan.runs.additions import ADDITIONS, MANIFEST, Additions
from iisan.runs.run import Run
from iisan.serve.index import build_index, open_index, share_found
from iisan.serve.items import add_items
from iisan.serve.search import search_top_k
from iisan.states.caching import cache
from iisan.states.store import StateStore
from iisan.train.run import train

PROCESSES = multiprocessing.get_context("forkserver")
LOADED = ["iisan.serve.items", "iisan.serve.index", "iisan.demo.run", "faiss", "pytest", "sympy", "torch._dynamo"]
LOADED += [f"transformers.models.{name}" for name in ("auto.modeling_auto", "auto.tokenization_auto")]
LOADED += [f"transformers.models.bert.{name}" for name in ("modeling_bert", "tokenization_bert")]
NEW, UPDATED = 5, 2
#: Changes after which the index is made again.
INDEXED = 10
#: Where a kill found the process.
BEFORE, DURING, AFTER = "before anything was written", "while it wrote", "after the change was complete"


def make_run(work):
    """A run of the recipe default on generated titles; returns these by item."""
    generate(seed=3, num_items=240, num_users=300).write(work / "raw")
    items = pl.read_csv(work / "raw" / "items.csv").select("item_id", "title")
    dataset = Dataset.from_frames(items, pl.read_csv(work / "raw" / "interactions.csv")).save(work / "data")
    cache(dataset, work / "states", {"text": str(ENCODERS / "text")}, precision="fp32")
    config = recipe("default").override(["training.epochs=1", "training.precision=fp32", "loss.negatives=50"])
    train(config.model_copy(update={"dataset": work / "data", "states": work / "states"}), work / "run")
    build_index(Run.load(work / "run", with_additions=True), kind="ivf")
    return dict(items.drop_nulls().iter_rows())


def change(number, titles):
    """New items, and items of the run with other titles: ids and titles."""
    rng = random.Random(number)
    words = sorted({word for title in titles.values() for word in title.split()})
    ids = [f"new {number}-{item}" for item in range(NEW)] + rng.sample(sorted(titles), UPDATED)
    return {each: " ".join(rng.choices(words, k=6)) for each in ids}


def add(folder, texts):
    torch.set_num_threads(1)
    add_items(folder, pl.DataFrame({"item_id": list(texts), "title": list(texts.values())}))


def rebuild(folder):
    torch.set_num_threads(1)
    build_index(Run.load(folder, with_additions=True), kind="ivf")


def parts(run):
    """Everything that the score of an item depends on, with one row an item."""
    scorer = run.scorer
    neighbours = scorer.transitions.neighbours.toarray()
    found = {f"member {number}": member.items.numpy() for number, member in enumerate(run.members)}
    found |= {name: anchors.numpy() for name, anchors in scorer.anchors.items()}
    return found | {"counts": scorer.counts.numpy(), "neighbours": neighbours[:-1]}


def digest(run):
    """Hash of the ids, texts, vectors and terms of a run, and of the lists that follow from them."""
    found = hashlib.sha256(run.items.write_json().encode())
    for values in parts(run).values():
        found.update(np.ascontiguousarray(values).tobytes())
    for values in top_k(run.scorer, histories(), 10, "unseen", run.offered):
        found.update(values.tobytes())
    return found.hexdigest()


def histories():
    """Some histories of the first items."""
    return whole_histories(Sequences(np.arange(0, 33, 4), np.arange(32, dtype=np.int32)), np.arange(8))


def read(folder, out, stop):
    """Open the run and its index and search, again and again; write what was seen."""
    torch.set_num_threads(1)
    with out.open("w") as file:
        while not stop.is_set():
            run = Run.load(folder, with_additions=True)
            seen = {"digest": digest(run), "items": len(run.items)}
            if (index := open_index(run)) is not None:
                lists, scores = search_top_k(index, run.scorer, histories(), 10, "unseen", run.offered)
                every, their = top_k(run.scorer, histories(), len(run.items), "unseen", run.offered)
                exact = np.empty((len(every), len(run.items) + 1), np.float32)
                np.put_along_axis(exact, every, their, 1)
                np.testing.assert_allclose(scores, np.take_along_axis(exact, lists, 1), rtol=1e-4, atol=1e-5)
                seen["found"] = share_found(lists, every[:, :10])
            file.write(json.dumps(seen) + "\n")
            file.flush()
            time.sleep(0.02)


@contextmanager
def reading(folder, out):
    """Have another process read while this is entered."""
    stop = PROCESSES.Event()
    process = PROCESSES.Process(target=read, args=(folder, out, stop))
    process.start()
    try:
        while not (out.exists() and out.read_text()) and process.is_alive():
            time.sleep(0.05)
        yield
    finally:
        stop.set()
        process.join()
    assert process.exitcode == 0, "the reader failed"


def run_process(function, *arguments):
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def written(work):
    """Files of the run's additions and of the stores, with what would tell that they changed."""
    places = work / "run" / ADDITIONS, work / "states"
    paths = [path for place in places for path in place.rglob("*") if path.name != ".lock"]
    found = {}
    for path in paths:
        try:
            found[path] = path.stat().st_mtime_ns, path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def add_and_kill(work, texts, seconds, rng):
    """Start to add items, and kill that: at any moment, or soon after the first file was written."""
    before, manifest = written(work), work / "run" / ADDITIONS / MANIFEST
    held = manifest.read_bytes() if manifest.exists() else b""
    process = PROCESSES.Process(target=add, args=(work / "run", texts))
    process.start()
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, seconds))
    else:
        while process.is_alive() and written(work) == before:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.3 * seconds))
    process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    assert process.exitcode < 0, "adding failed"
    if manifest.exists() and manifest.read_bytes() != held:
        return AFTER
    return BEFORE if written(work) == before else DURING


def check_change(before, run, texts):
    """All of a change is there, and everything else is bit for bit what it was."""
    rows = {each: row for row, each in enumerate(run.items["item_id"])}
    assert len(run.items) == len(before["counts"]) + NEW
    assert all(run.items["text"][rows[each]] == text for each, text in texts.items())
    kept = np.setdiff1d(np.arange(len(before["counts"])), [rows[each] for each in texts])
    for name, values in parts(run).items():
        old = before[name]
        assert np.array_equal(values[kept][:, : old.shape[1]] if old.ndim > 1 else values[kept], old[kept])
        assert name == "counts" or values[[rows[each] for each in texts]].any(axis=1).all()


def check(work, kills, seed, say=print):
    """Kill, repeat and compare until it was killed often enough; return what happened."""
    rng = random.Random(seed)
    PROCESSES.set_forkserver_preload(LOADED)
    titles = make_run(work)
    folder = work / "run"
    run_process(add, folder, change(0, titles))  # Loads what the next ones fork from.
    began = time.perf_counter()
    run_process(add, folder, change(1, titles))
    seconds = time.perf_counter() - began
    states = [digest(Run.load(folder, with_additions=True))]
    landed, number, finished = Counter(), 1, 0
    with reading(folder, work / "seen.jsonl"):
        while landed.total() < kills:
            number += 1
            texts, before = change(number, titles), parts(Run.load(folder, with_additions=True))
            moment = add_and_kill(work, texts, seconds, rng)
            if moment is None:
                finished += 1
            else:
                landed[moment] += 1
            run_process(add, folder, texts)
            run = Run.load(folder, with_additions=True)
            check_change(before, run, texts)
            states.append(digest(run))
            if not number % INDEXED:
                run_process(rebuild, folder)
    StateStore.find(work / "states", "text").verify()
    names = {path.name for path in (folder / ADDITIONS).iterdir() if path.is_dir()}
    assert names == set(Additions.read(folder).segments)
    seen = [json.loads(line) for line in (work / "seen.jsonl").read_text().splitlines()]
    order = [states.index(each["digest"]) for each in seen]  # Fails for a state that is neither old nor new.
    assert order == sorted(order), "an older state came back"
    found = [each["found"] for each in seen if "found" in each]
    record = {
        "kills": {moment: landed[moment] for moment in (BEFORE, DURING, AFTER)},
        "finished_before_the_kill": finished,
        "seconds_of_a_change": seconds,
        "changes": number,
        "reads": len(seen),
        "states_seen": len(set(order)),
        "reads_with_an_index": len(found),
        "share_of_exact_lists_found_in_it": sum(found) / max(1, len(found)),
    }
    say(json.dumps(record, indent=2))
    return record


def test_what_a_killed_change_leaves_is_the_old_or_the_new_state(tmp_path):
    pytest.importorskip("faiss")
    found = check(tmp_path, kills=2, seed=0, say=lambda text: None)
    assert found["reads"] > 3
    assert sum(found["kills"].values()) == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        record = check(Path(name), int(sys.argv[1]), seed=1)
        Path(sys.argv[2]).write_text(json.dumps(record, indent=2) + "\n")
