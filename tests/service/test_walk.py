"""The walk of docs/service.md, from a trained run to an item that was added, recommended and removed again."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

from iisan import Recommender
from iisan.demo.catalogue import generate
from iisan.demo.run import ENCODERS, SETTINGS, demo_dataset
from iisan.recipes import recipe
from iisan.states.caching import cache
from iisan.train.run import train

PAGE = Path(__file__).resolve().parents[2] / "docs" / "service.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def demo(out):
    """The demo's catalogue and one of its runs, with fewer epochs."""
    dataset = demo_dataset(generate(seed=0), out)
    cache(dataset, out / "states", {name: str(ENCODERS / name) for name in ("image", "text")})
    config = recipe("default").override((*SETTINGS, "training.epochs=5"))
    folders = {"dataset": out / "dataset", "states": out / "states"}
    train(config.model_copy(update=folders), out / "runs" / "iisan")


def curl(command):
    """Send what a command of curl sends; returns the JSON of the answer."""
    url, *options = shlex.split(command.replace("\\\n", " "))[1:]
    pairs = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for name, value in pairs if name == "-H")
    (body,) = (value for name, value in pairs if name == "-d")
    with urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers)) as answer:
        return json.load(answer)


def test_the_walk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    section = PAGE.read_text(encoding="utf-8").split("\n## A walk on the demo\n")[1].split("\n## ")[0]
    lists, service = [], None
    try:
        for language, text in BLOCK.findall(section.replace(":8000", f":{port}")):
            if language == "csv":
                Path("new.csv").write_text(text, encoding="utf-8")
            elif language == "bash":
                answer = curl(text)
                lists.append([each["item_id"] for each in answer["items"]] if "items" in answer else answer)
            for line in text.splitlines() if language == "console" else ():
                arguments = shlex.split(line.removeprefix("$ "))[1:]
                command = [sys.executable, "-m", "iisan.cli", *arguments]
                if arguments == ["demo"]:
                    demo(Path("iisan-demo"))
                elif arguments[0] == "serve":
                    service = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.PIPE, text=True)
                    ready(port, service)
                else:
                    subprocess.run(command, check=True)
                    until_taken_over(port, gone=arguments[0] == "remove-items")
        before, after, reasons = lists
        assert "new-lamp" not in before
        assert "new-lamp" in after
        assert sum(reasons["terms"].values()) == pytest.approx(reasons["score"], abs=1e-4)
        assert reasons["terms"]["anchor of text"] > 0 or reasons["terms"]["anchor of image"] > 0
        history = {"history": ["p00941", "p01756", "p00208", "p01217", "p00000"], "k": 10}
        at_the_end = curl(
            f"curl http://127.0.0.1:{port}/recommend -H 'content-type: application/json' "
            f"-d '{json.dumps(history)}'"
        )
        assert "new-lamp" not in [each["item_id"] for each in at_the_end["items"]]
        those_who_like_such_things_see_it_first()
    finally:
        if service is not None:
            service.terminate()
            _, log = service.communicate(timeout=30)
    assert service.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["items"] for line in lines if line["event"] == "run taken over"] == [2001, 2000]


def those_who_like_such_things_see_it_first():
    """Before they bought what the new item resembles, the buyers of that had it nearer to the top than others."""
    recommender = Recommender.load("iisan-demo/runs/iisan")
    ids = recommender.run.items["item_id"].to_list()
    sequences, like = recommender.dataset.sequences, ids.index("p00284")

    def rank(history):
        return recommender.explain("new-lamp", history=[ids[item] for item in history]).rank

    histories = [
        sequences.items[start:end].tolist()
        for start, end in zip(sequences.offsets, sequences.offsets[1:], strict=False)
    ]
    buyers = [rank(each[: each.index(like)]) for each in histories if like in each[1:]][:40]
    others = [rank(each) for each in histories[:40]]
    assert np.median(buyers) < np.median(others) / 3


def ready(port, service):
    ends = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready").close()
            return
        except OSError:
            assert service.poll() is None, service.stderr.read()
            assert time.monotonic() < ends
            time.sleep(0.1)


def until_taken_over(port, gone):
    ends = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/items/new-lamp").close()
            found = True
        except urllib.error.HTTPError:
            found = False
        if found != gone:
            return
        assert time.monotonic() < ends
        time.sleep(0.1)
