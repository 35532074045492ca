"""What the service answers: lists, items, reasons, changes, refusals."""

import base64
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from columns import COLUMNS
from iisan import Recommender
from iisan.serve.items import remove_items
from iisan.service.guard import Limits
from iisan.service.metrics import JsonLines
from iisan.service.served import ServedRun
from pictures import encoded, noise

TOKEN = {"authorization": "Bearer a secret"}
HISTORY = ["i0", "i1", "i2"]


def test_lists_are_those_of_the_python_interface(client, folder):
    recommender = Recommender.load(folder / "similarity")
    for options in ({}, {"k": 3}, {"filter_viewed": False, "items_to_exclude": ["i4"]}, {"near_duplicates": 0.5}):
        answer = client.post("/recommend", json={"history": HISTORY, **options}).json()
        expected = recommender.recommend(history=HISTORY, **options)
        assert [each["item_id"] for each in answer["items"]] == expected["item_id"].to_list()
        assert [each["rank"] for each in answer["items"]] == expected["rank"].to_list()
        assert [each["text"] for each in answer["items"]] == expected["text"].to_list()
        scores = [each["score"] for each in answer["items"]]
        assert scores == pytest.approx(expected["score"].to_list(), rel=1e-5)
        assert (answer["run"], answer["unknown"], answer["note"]) == ("similarity", [], None)
    by_user = client.post("/recommend", json={"user": "u7"}).json()["items"]
    assert [each["item_id"] for each in by_user] == recommender.recommend(user="u7")["item_id"].to_list()
    other = client.post("/recommend", json={"history": HISTORY, "run": "ids"}).json()
    expected = Recommender.load(folder / "ids").recommend(history=HISTORY)["item_id"].to_list()
    assert [each["item_id"] for each in other["items"]] == expected


def test_unknown_items_of_a_history_are_named(client):
    answer = client.post("/recommend", json={"history": ["nowhere", "i1", "nowhere"]}).json()
    assert answer["unknown"] == ["nowhere"]
    assert answer["note"] == "1 of the history left out, as the run does not know them"
    assert answer["items"] == client.post("/recommend", json={"history": ["i1"]}).json()["items"]


def test_queries_at_once_are_computed_together_and_each_gets_its_own_list(serve, folder):
    client = serve(folder / "similarity", limits=Limits(batch_seconds=0.2))
    histories = [[f"i{first}", f"i{first + 1}"] for first in range(12)]
    alone = [client.post("/recommend", json={"history": each, "k": 2}).json()["items"] for each in histories]
    found = [None] * len(histories)

    def ask(number):
        k = 2 if number % 2 else 5
        found[number] = client.post("/recommend", json={"history": histories[number], "k": k}).json()["items"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(histories))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, items in enumerate(found):
        assert len(items) == (2 if number % 2 else 5)
        assert [each["item_id"] for each in items[:2]] == [each["item_id"] for each in alone[number]]
    families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
    sums = {sample.name: sample.value for sample in families["iisan_batch_size"].samples}
    assert sums["iisan_batch_size_sum"] == 24
    assert sums["iisan_batch_size_count"] < 20
    (requests,) = (each for each in families["iisan_requests"].samples if each.labels["route"] == "/recommend")
    assert (requests.value, requests.labels["status"], requests.labels["method"]) == (24, "200", "POST")
    assert families["iisan_index_items"].samples[0].value == 30


def test_items_are_found_by_words_and_by_id(client):
    everything = client.get("/items").json()
    assert everything["total"] == 30
    assert len(everything["items"]) == 24
    text = client.get("/items/i7").json()["text"]
    words = " ".join(reversed(text.upper().split()))
    found = client.get("/items", params={"search": words, "limit": 30}).json()
    assert "i7" in [each["item_id"] for each in found["items"]]
    assert found["total"] == len(found["items"]) < 30
    assert [each["item_id"] for each in client.get("/items", params={"search": "i7"}).json()["items"]] == ["i7"]
    assert client.get("/items", params={"search": "no such words"}).json() == {"items": [], "total": 0}


def test_an_item_its_image_and_what_is_similar(client, folder):
    item = client.get("/items/i7").json()
    assert (item["image"], item["run"], item["columns"]) == ("/items/i7/image", "similarity", {})
    image = client.get(item["image"])
    assert image.headers["content-type"] == "image/png", image.text
    assert Image.open(io.BytesIO(image.content)).size == (16, 16)
    assert client.get("/items/i4").json()["image"] is None
    assert client.get("/items/i4/image").status_code == 404
    recommender = Recommender.load(folder / "similarity")
    for by in ("anchor", "text", "image"):
        found = client.get("/items/i7/similar", params={"by": by, "k": 4}).json()["items"]
        expected = recommender.similar_items(["i7"], k=4, by=by)["similar_id"].to_list()
        assert [each["item_id"] for each in found] == expected
    facts = client.get("/runs").json()
    assert facts["adding"] is True
    first, second = facts["runs"]
    assert first["similar_by"] == ["anchor", "text", "image"]
    assert (first["modalities"], first["images"], first["num_items"]) == (["text", "image"], True, 30)
    assert second["similar_by"] == ["model"]
    assert first["metrics"]["hr@10"] == recommender.metrics["hr@10"]


def test_reasons_are_those_of_the_python_interface(client, folder):
    body = {"history": ["nowhere", *HISTORY], "item": "i9"}
    found = client.post("/explain", json=body).json()
    expected = json.loads(
        json.dumps(Recommender.load(folder / "similarity").explain("i9", history=HISTORY).as_json())
    )
    assert found.pop("unknown") == ["nowhere"]
    assert found.pop("run") == "similarity"
    assert {by: [each.pop("rank") for each in nearest] for by, nearest in found["nearest"].items()} == {
        "text": [1, 2, 3],
        "image": [1, 2, 3],
    }
    for each in (*found["history"], *found["nearest"]["text"], *found["nearest"]["image"]):
        assert each.pop("image") == (
            None if each["item_id"] in ("i4", "i5") else f"/items/{each['item_id']}/image"
        )
    assert found == expected
    assert sum(found["terms"].values()) == pytest.approx(found["score"], abs=1e-5)
    without_text = client.post("/explain", json={**body, "item": "i3"}).json()
    assert (without_text["nearest"]["text"], len(without_text["nearest"]["image"])) == ([], 3)


@pytest.mark.parametrize("run", ["similarity", "ids"])
def test_a_list_may_come_with_the_terms_of_its_scores(client, run):
    body = {"history": HISTORY, "run": run, "k": 4}
    plain = client.post("/recommend", json=body).json()
    found = client.post("/recommend", json={**body, "terms": True}).json()
    for item in found["items"]:
        reasons = client.post("/explain", json={"history": HISTORY, "run": run, "item": item["item_id"]}).json()
        assert item.pop("terms") == pytest.approx(reasons["terms"], rel=1e-5, abs=1e-6)
    assert found == plain


def test_an_item_is_added_listed_updated_and_removed(client, folder):
    rng = np.random.default_rng(7)
    image = base64.b64encode(encoded(Image.fromarray(noise(rng, 16, 16)))).decode()
    new = {"item_id": "a/new ünit", "text": "red steel pump", "image": image, "columns": {"colour": "red"}}
    assert client.post("/items", json={"items": [new]}).status_code == 401
    added = client.post("/items", json={"items": [new]}, headers=TOKEN)
    assert added.status_code == 200, added.text
    assert (added.json()["added"], added.json()["updated"]) == (1, 0)
    path = "/items/a%2Fnew%20%C3%BCnit"
    assert client.get(path).json()["text"] == "red steel pump"
    listed = client.post("/recommend", json={"history": HISTORY, "k": 31}).json()["items"]
    assert "a/new ünit" in [each["item_id"] for each in listed]
    assert len(client.get(f"{path}/similar", params={"by": "image"}).json()["items"]) == 10
    again = client.post("/items", json={"items": [new]}, headers=TOKEN)
    assert (again.status_code, again.json()["detail"]) == (
        409,
        "item 'a/new ünit' of the run; expected new ones: pass \"update\": true to change it",
    )
    changed = {"item_id": "a/new ünit", "text": "blue glove", "image": image}
    updated = client.post("/items", json={"items": [changed], "update": True}, headers=TOKEN).json()
    assert (updated["added"], updated["updated"]) == (0, 1)
    assert client.get(path).json()["text"] == "blue glove"
    assert client.request("DELETE", path).status_code == 401
    assert client.request("DELETE", path, headers=TOKEN).json() == {"removed": 1}
    assert client.get(path).status_code == 404
    listed = client.post("/recommend", json={"history": HISTORY, "k": 31}).json()["items"]
    assert "a/new ünit" not in [each["item_id"] for each in listed]
    # In a history it still counts.
    assert client.post("/recommend", json={"history": ["a/new ünit"]}).json()["unknown"] == []
    assert Recommender.load(folder / "similarity").run.removed == {"a/new ünit"}


def test_changes_are_refused_without_a_token_of_the_service(serve, folder):
    client = serve(folder / "similarity", token=None)
    assert client.get("/runs").json()["adding"] is False
    for answer in (
        client.post("/items", json={"items": [{"item_id": "new", "text": "red"}]}, headers=TOKEN),
        client.request("DELETE", "/items/i1", headers=TOKEN),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (
            403,
            "a change of items; expected requests that read: start the service with IISAN_TOKEN",
        )


@pytest.mark.parametrize(
    ("item", "status", "sentence"),
    [
        ({"image": "no base64!"}, 422, "the image of item 'new' is not base64"),
        ({"image": "ü"}, 422, "the image of item 'new' is not base64"),
        (
            {"image": base64.b64encode(b"no image").decode()},
            422,
            "the image of item 'new' is bytes that",
        ),
        ({"image": "HALF"}, 422, "the image of item 'new' is an unreadable or truncated image"),
        (
            {"image": "LARGE"},
            422,
            "the image of item 'new' is an image that unpacks to too many pixels (decompression bomb); "
            "expected at most 10,000 pixels",
        ),
        ({"columns": {"text": "x"}}, 422, "a column named 'text'"),
        ({"text": 3}, 422, "items.0.text = '3'; expected a valid string"),
        ({"colour": "red"}, 422, "items.0.colour = 'red'; expected Extra inputs are not permitted"),
    ],
)
def test_an_item_that_cannot_be_added(serve, folder, item, status, sentence):
    client = serve(folder / "similarity", limits=Limits(pixels=10_000))
    if item.get("image") == "LARGE":
        item = {"image": base64.b64encode(encoded(Image.new("RGB", (200, 200)))).decode()}
    if item.get("image") == "HALF":
        content = encoded(Image.fromarray(noise(0, 50, 50)), "JPEG")
        item = {"image": base64.b64encode(content[: len(content) // 2]).decode()}
    before = sorted(folder.rglob("*"))
    answer = client.post("/items", json={"items": [{"item_id": "new", **item}]}, headers=TOKEN)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(sentence)
    assert sorted(folder.rglob("*")) == before


def test_items_of_runs_that_cannot_place_them(client):
    new = {"items": [{"item_id": "new", "text": "red pump"}], "run": "ids"}
    answer = client.post("/items", json=new, headers=TOKEN)
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("the run in 'ids' knows items by their ids only")
    new["items"][0]["image"] = "aaaa"
    answer = client.post("/items", json=new, headers=TOKEN)
    assert (answer.status_code, answer.json()["detail"][:27]) == (422, "an image for the run 'ids';")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 422, "the body; expected exactly one of history and user"),
        ({"history": [], "k": 2}, 422, "history; expected List with at least 1 item"),
        ({"history": HISTORY, "user": "u1"}, 422, "the body; expected exactly one of history and user"),
        ({"history": "i1"}, 422, "history = 'i1'; expected a valid list"),
        ({"history": [1]}, 422, "history.0 = '1'; expected a valid string"),
        ({"history": ["i1"] * 10_001}, 422, "history; expected List with at most 10000 items"),
        ({"history": ["i1"] * 400_000}, 413, "a long body; expected at most 1,048,576 bytes: send less"),
        ({"history": ["x"]}, 422, "a history of unknown items only, such as 'x'"),
        ({"history": ["i1"], "k": 0}, 422, "k = '0'; expected greater than or equal to 1: see /docs"),
        ({"history": ["i1"], "k": 1_000_000}, 422, "k = '1000000'; expected less than or equal to 1000"),
        ({"history": ["i1"], "k": "5"}, 422, "k = '5'; expected a valid integer"),
        ({"history": ["i1"], "where": {"color": "red"}}, 422, "the items have no column 'color'"),
        ({"history": ["i1"], "max_per": "brand"}, 422, "the items have no column 'brand'"),
        ({"history": ["i1"], "items_to_recommend": ["i1"]}, 422, "history and filters leave none of the 30 items"),
        ({"history": ["i1"], "run": "other"}, 404, "unknown run 'other'; expected one of similarity, ids"),
        ({"history": ["i1"], "run": "ids", "near_duplicates": 0.5}, 422, "the run in 'ids' has no anchor"),
        ({"user": "nobody"}, 422, "unknown user 'nobody'"),
        ({"history": ["i1"], "surprise": 1}, 422, "surprise = '1'; expected Extra inputs"),
        ({"history": ["i1"], "\ud800": 1}, 422, "the body = '\\ud800'; expected a valid string"),
        ({"history": ["i1"], "where": {"\ud800": 1}}, 422, "where"),
        ({"history": ["i1"], "x" * 9_000: 1}, 422, "x" * 60 + " = '1'; expected"),
        ({"history": ["i1"], "where": {"brand": ["x"] * 51}}, 422, "where.brand"),
        ({"history": ["i1"], "where": {str(n): "x" for n in range(21)}}, 422, "where; expected"),
        ({"history": ["i1"], "max_per": {str(n): 1 for n in range(21)}}, 422, "max_per"),
        ({str(n): 1 for n in range(101)}, 422, "the body; expected at most 100 fields should be given: see"),
        ({"history": ["i1"], "where": {str(n): 1 for n in range(101)}}, 422, "where; expected at most 100 fields"),
    ],
)
def test_a_bad_question_gets_a_sentence(client, body, status, sentence):
    answer = client.post("/recommend", content=json.dumps(body), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["detail"][: len(sentence)]) == (status, sentence)


def test_a_body_that_is_not_said_to_be_json(client):
    answer = client.post("/recommend", content=b'{"user": "u1"}', headers={"content-type": "text/plain"})
    sentence = "a body of another type; expected JSON: send content-type: application/json"
    assert (answer.status_code, answer.json()["detail"]) == (422, sentence)


def test_bodies_that_are_not_json(client):
    for content in (b"{", b"\xff", b"", b"[" * 100_000, b'{"history": ["\\ud800"]}', b'{"k": NaN, "user": "u1"}'):
        answer = client.post("/recommend", content=content, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500
        assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"host": ""}, 400),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "shop.example", "origin": "http://shop.example"}, 200),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "http://localhost:81"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://[broken"}, 403),
    ],
)
def test_foreign_hosts_and_origins_are_refused(serve, folder, headers, status):
    client = serve(folder / "similarity", hosts=("shop.example",))
    answer = client.post("/recommend", json={"history": HISTORY}, headers=headers)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_paths_do_not_reach_the_file_system(client):
    for path in ("/page/..%2Fapp.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/items/..%2F..%2Fetc/image"):
        assert client.get(path).status_code == 404


def test_too_many_requests_at_once_are_refused(serve, folder, monkeypatch):
    client = serve(folder / "similarity", limits=Limits(at_once=2, batch_seconds=0.5))
    statuses = []

    def ask():
        answer = client.post("/recommend", json={"history": HISTORY})
        statuses.append((answer.status_code, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert client.get("/health").status_code == 200
    for thread in threads:
        thread.join()
    assert sorted(statuses, key=str) == [(200, None)] * 2 + [(503, "1")] * 3


def test_a_list_that_takes_too_long_is_given_up(serve, folder):
    client = serve(folder / "similarity", limits=Limits(seconds=0.1, batch_seconds=0.5))
    answer = client.post("/recommend", json={"history": HISTORY})
    assert (answer.status_code, answer.json()["detail"][:30]) == (503, "an answer that takes too long;")


def test_changes_of_the_folder_are_taken_over_and_bad_ones_are_not(serve, folder, monkeypatch, caplog):
    monkeypatch.setattr("iisan.service.app._FOLLOW", 0.05)
    client = serve(folder / "similarity")

    def until(condition):
        ends = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < ends
            time.sleep(0.02)

    def items():
        return client.get("/items").json()["total"]

    remove_items(folder / "similarity", ["i1"])
    until(lambda: items() == 29)
    caplog.set_level(logging.ERROR, "iisan.service")
    result = folder / "similarity" / "result.json"
    content = result.read_text()
    result.write_text("{")
    until(lambda: caplog.records)
    assert caplog.records[0].getMessage() == "run not taken over"
    assert items() == 29
    assert client.post("/recommend", json={"history": HISTORY}).status_code == 200
    result.write_text(content)
    remove_items(folder / "similarity", ["i2"])
    until(lambda: items() == 28)
    assert len(caplog.records) == 1


def test_a_fault_of_the_service_is_logged_counted_and_answered_without_details(serve, folder, monkeypatch, caplog):
    client = serve(folder / "similarity")
    client._transport.raise_server_exceptions = False
    monkeypatch.setattr("iisan.service.served.ServedRun.details", lambda *_: 1 / 0)
    answer = client.get("/items/i1")
    assert (answer.status_code, answer.json()["detail"]) == (
        500,
        "a fault of the service; expected none: see its log",
    )
    assert "ZeroDivisionError" in JsonLines().format(next(each for each in caplog.records if each.exc_info))
    assert "iisan_errors_total 1.0" in client.get("/metrics").text


def test_log_lines_are_json(caplog, client):
    caplog.set_level(logging.INFO, "iisan.service")
    client.get("/items/i1")
    line = json.loads(JsonLines().format(caplog.records[-1]))
    assert line.pop("ms") > 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "request",
        "method": "GET",
        "route": "/items/{item_id}",
        "status": 200,
    }


def test_the_status_and_the_description_of_the_interface(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/items"]) == {"get", "post"}
    page = client.get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text


def test_serving_loads_no_transformers(folder):
    code = (
        "import sys; from pathlib import Path; from iisan.service.app import create_app; "
        "from iisan.service.served import ServedRun; "
        f"create_app([ServedRun('run', Path({str(folder / 'similarity')!r}), {{}})]); "
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_columns_of_every_type(serve, folder, odd):
    client = serve(folder / "similarity", moved={"dataset": odd, "images": None})
    (facts,) = client.get("/runs").json()["runs"]
    assert facts["columns"]["price"] == {"type": "number", "values": [-0.0, 1.5]}
    assert facts["columns"]["tags"] == {"type": "text", "values": ["new", "red"]}
    shown = client.get("/items/i1").json()["columns"]
    assert list(shown) == list(COLUMNS)
    assert (shown["price"], shown["sizes"], shown["digest"]) == (None, [1.0, None], None)
    assert (shown["large"], shown["tax"], shown["since"]) == (2**64 - 2, "0.25", "2020-01-02")
    assert client.get("/items/i1/image").status_code == 200
    for name in facts["columns"]:
        value = facts["columns"][name]["values"][0]
        body = {"history": ["i29"], "where": {name: value}, "filter_viewed": False}
        assert client.post("/recommend", json=body).status_code == 200
    # What does not fit a column is left out of it.
    values = dict.fromkeys(COLUMNS, "x")
    new = {"items": [{"item_id": "new", "text": "red pump", "columns": values}]}
    assert client.post("/items", json=new, headers=TOKEN).status_code == 200
    shown = client.get("/items/new").json()["columns"]
    assert (shown["category"], shown["sold"], shown["tags"], shown["price"]) == ("x", None, None, None)
    assert client.get("/items/i1").json()["columns"]["sold"] is False


def test_what_a_message_does_not_tell(serve, folder):
    """Neither users, nor where anything lies on this machine."""
    client = serve(folder / "similarity", moved={"states": folder / "states"})
    answer = client.post("/recommend", json={"user": "u"})
    sentence = "unknown user 'u'; expected a user of the run 'similarity' with interactions: pass a history"
    assert (answer.status_code, answer.json()["detail"]) == (422, sentence)
    new = {"items": [{"item_id": word, "text": word} for word in ("zzz", "qqq")]}
    answer = client.post("/items", json=new, headers=TOKEN)
    assert (answer.status_code, answer.json()["detail"][:27]) == (409, "the tokenizer of 'bert' kno")
    (folder / "states").rename(folder / "elsewhere")
    answer = client.post("/items", json={"items": [{"item_id": "new", "text": "red"}]}, headers=TOKEN)
    assert answer.status_code == 409
    assert "/" not in answer.json()["detail"].replace("--states", "")


def test_ids_with_slashes(client):
    for item in ("a/similar", "../image", "%2F", "similar", "\0"):
        answer = client.get(f"/items/{quote(item, safe='')}")
        assert (answer.status_code, answer.json()["detail"].partition(";")[0]) == (404, f"unknown item '{item}'")
    assert client.get(f"/items/{'%2F' * 512}").status_code == 404
    assert client.get(f"/items/{'%2F' * 513}").status_code == 422


def test_unknown_items_of_filters_are_left_out(client):
    """Without a warning, which Python would keep as long as the service runs."""
    body = {"history": HISTORY, "items_to_recommend": ["nowhere", "i4", "i5"], "items_to_exclude": ["i5", "none"]}
    items = client.post("/recommend", json=body).json()["items"]
    assert [each["item_id"] for each in items] == ["i4"]
    answer = client.post("/recommend", json={"history": HISTORY, "items_to_recommend": ["nowhere"]})
    assert (answer.status_code, answer.json()["detail"][:22]) == (422, "unknown item 'nowhere'")


def test_a_long_search_is_refused(client):
    words = [f"w{number}" for number in range(17)]
    assert client.get("/items", params={"search": " ".join(words[:16] * 2)}).json()["total"] == 0
    answer = client.get("/items", params={"search": " ".join(words)})
    assert (answer.status_code, answer.json()["detail"][:21]) == (422, "a search for 17 words")


def test_an_image_of_the_catalogue_that_cannot_be_read(client, monkeypatch):
    monkeypatch.setattr("iisan.data.dataset.Dataset.content_bytes", lambda *_: b"no image")
    answer = client.get("/items/i7/image")
    assert (answer.status_code, answer.json()["detail"][:38]) == (404, "item 'i7' has no image that can be rea")


def test_a_folder_that_cannot_be_written(client, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "/somewhere/secret")

    monkeypatch.setattr("iisan.service.app.remove_items", full)
    answer = client.request("DELETE", "/items/i1", headers=TOKEN)
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "the run 'similarity' cannot be written (No space left on device); expected a folder with room: "
        "see the log of the service",
    )


def test_lists_with_limits_do_not_keep_others_waiting(client, monkeypatch):
    went_on, lists = threading.Event(), ServedRun.lists

    def slow(self, histories, k, selection):
        if "near_duplicates" in selection:
            assert went_on.wait(20)
        return lists(self, histories, k, selection)

    monkeypatch.setattr(ServedRun, "lists", slow)
    found = []
    body = {"history": HISTORY, "near_duplicates": 0.5}
    thread = threading.Thread(target=lambda: found.append(client.post("/recommend", json=body).status_code))
    thread.start()
    assert client.post("/recommend", json={"history": HISTORY}).status_code == 200
    assert found == []
    went_on.set()
    thread.join()
    assert found == [200]


def test_a_fault_of_a_folder_does_not_end_the_following(serve, folder, monkeypatch, caplog):
    monkeypatch.setattr("iisan.service.app._FOLLOW", 0.05)
    client = serve(folder / "similarity")
    with monkeypatch.context() as patch:
        patch.setattr("iisan.service.registry.ServedRun", lambda *_: 1 / 0)
        remove_items(folder / "similarity", ["i1"])
        ends = time.monotonic() + 20
        while not caplog.records:
            assert time.monotonic() < ends
            time.sleep(0.02)
    assert caplog.records[0].exc_info
    remove_items(folder / "similarity", ["i2"])
    while client.get("/items").json()["total"] != 28:
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_an_address_that_is_taken_is_said_before_anything_is_read(iisan, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, error = iisan("serve", tmp_path / "nowhere", "--port", port)
    assert (code, out) == (2, "")
    assert error.startswith(
        f"error: 127.0.0.1:{port} cannot be listened on (Address already in use); expected a free"
    )
