"""A service under load while its folders change, or while it stops: no request is lost, none sees a mixture."""

import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref

import polars as pl
import pytest
import requests
from safetensors.torch import load_file, save_file

from iisan import Recommender
from iisan.runs.run import Run
from iisan.serve.index import build_index
from iisan.serve.items import add_items, remove_items
from iisan.service.registry import Registry

QUESTION = {"history": ["i0", "i1", "i2"], "k": 40}


def listed(run):
    """The list of a run folder as it is now: items and scores."""
    found = Recommender.load(run).recommend(history=QUESTION["history"], k=40)
    return List(found["item_id"].to_list(), found["score"].to_list())


class List:
    """A list, equal to one whose scores were computed in another batch."""

    def __init__(self, items, scores):
        self.items, self.scores = items, scores

    def __eq__(self, other):
        return self.items == other.items and self.scores == pytest.approx(other.scores, abs=1e-4)

    __hash__ = None


class Load:
    """Threads that ask the same question again and again; every second one by a new connection each time."""

    def __init__(self, port, threads=4):
        self.address = f"http://127.0.0.1:{port}/recommend"
        self.seen, self.failed, self.answered = [], [], 0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(bool(n % 2),)) for n in range(threads)]

    def ask(self, keep):
        with requests.Session() as session:
            while not self.stopped.is_set():
                headers = {} if keep else {"connection": "close"}
                try:
                    answer = session.post(self.address, json=QUESTION, headers=headers, timeout=30)
                except requests.ConnectionError as error:
                    self.failed.append(error)
                    return
                if answer.status_code != 200:
                    self.failed.append(answer.text)
                    continue
                self.answered += 1
                items = answer.json()["items"]
                found = List([each["item_id"] for each in items], [each["score"] for each in items])
                if not self.seen or self.seen[-1] != found:
                    self.seen.append(found)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.until(lambda: self.seen)
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def until(self, condition):
        ends = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < ends, self.failed
            time.sleep(0.02)

    def shows(self, state):
        """Wait until the last answer is that of a state."""
        self.until(lambda: self.seen[-1] == state)

    def check(self, *states):
        """Check that every answer was that of a state, and every state was seen."""
        assert self.failed == []
        assert all(found in states for found in self.seen)
        assert all(state in self.seen for state in states)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr("iisan.service.app._FOLLOW", 0.05)
    monkeypatch.setattr("iisan.service.registry._SETTLED", 0.2)


def test_items_that_another_process_changes_and_an_index(listen, folder, soon):
    pytest.importorskip("faiss")
    run = folder / "similarity"
    states = [listed(run)]
    with Load(listen(run)) as load:
        add_items(run, pl.DataFrame({"item_id": ["new"], "text": ["red pump"]}))
        states.append(listed(run))
        load.shows(states[-1])
        remove_items(run, ["i9"])
        states.append(listed(run))
        load.shows(states[-1])
        build_index(Run.load(run, with_additions=True), kind="ivf", recall=0.01)
        states.append(listed(run))
        load.shows(states[-1])
    load.check(*states)
    assert "new" in states[1].items
    assert "i9" not in states[2].items


def test_a_link_to_another_run(listen, folder, soon):
    current = folder / "current"
    current.symlink_to(folder / "similarity")
    states = [listed(folder / "similarity"), listed(folder / "ids")]
    assert states[0] != states[1]
    with Load(listen(current)) as load:
        for turn in range(3):
            (folder / "next").symlink_to(folder / ("similarity" if turn % 2 else "ids"))
            (folder / "next").rename(current)
            load.shows(states[(turn + 1) % 2])
    load.check(*states)


def test_a_run_that_is_copied_over_another_one(listen, folder, soon, tmp_path, monkeypatch):
    """Files are written over those that are served, the weights in parts; both runs have the same shapes."""
    monkeypatch.setattr("iisan.service.registry._SETTLED", 2.0)
    run, other = folder / "similarity", tmp_path / "other"
    shutil.copytree(run, other)
    result = json.loads((other / "result.json").read_text())
    result["terms"]["weights"]["popularity"] += 1.0
    (other / "result.json").write_text(json.dumps(result))
    weights = load_file(other / "model.safetensors")
    weights["terms.counts"] = weights["terms.counts"].flip(0)
    save_file(weights, other / "model.safetensors")
    states = [listed(run), listed(other)]
    assert states[0] != states[1]
    with Load(listen(run)) as load:
        for name in ("result.json", "model.safetensors"):
            content = (other / name).read_bytes()
            with (run / name).open("wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                time.sleep(0.2)
                file.write(content[len(content) // 2 :])
            # Long enough to open a run of two halves.
            time.sleep(1.0)
        load.shows(states[1])
    load.check(*states)


def test_a_run_without_its_end_is_never_taken_over(listen, folder, soon):
    run = folder / "similarity"
    states = [listed(run), listed(folder / "ids")]
    shutil.copytree(folder / "ids", folder / "half")
    os.truncate(folder / "half" / "model.safetensors", 2_000)
    with Load(listen(run)) as load:
        run.rename(folder / "before")
        (folder / "half").rename(run)
        time.sleep(1.0)
        load.check(states[0])
        shutil.rmtree(run)
        (folder / "ids").rename(run)
        load.shows(states[1])
    load.check(*states)


def test_a_run_that_was_replaced_leaves_memory(listen, folder, soon, monkeypatch):
    registries = []
    monkeypatch.setattr(Registry, "follow", lambda self, seconds: registries.append(self) or keep(self, seconds))
    keep = FOLLOW
    port = listen(folder / "similarity")
    (registry,) = registries
    gc.collect()
    gc.disable()
    try:
        with Load(port, threads=1) as load:
            vectors = weakref.ref(registry.get(None).run.scorer)
            remove_items(folder / "similarity", ["i9"])
            load.until(lambda: "i9" not in load.seen[-1].items)
            load.until(lambda: vectors() is None)
    finally:
        gc.enable()


FOLLOW = Registry.follow


def test_a_signal_to_stop_lets_requests_end(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "iisan.cli", "serve", str(folder / "similarity"), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(server.stderr))
    reader.start()
    try:
        ends = time.monotonic() + 60
        while not any("Application startup complete" in line for line in lines):
            assert time.monotonic() < ends, lines
            time.sleep(0.05)
        with Load(port, threads=8) as load:
            time.sleep(0.5)
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
            load.until(lambda: not any(thread.is_alive() for thread in load.threads))
    finally:
        server.kill()
        reader.join()
        server.stderr.close()
    accepted = [line for line in lines if re.search(r'"event": "request".*"status": 200', line)]
    assert load.answered == len(accepted) > 0
    assert all(isinstance(each, requests.ConnectionError) for each in load.failed)
    assert not any('"level": "error"' in line for line in lines), lines
