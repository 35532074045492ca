"""What a request has to pass before its route, and what it may not leave behind."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from iisan.service.guard import Guard, Limits
from iisan.service.metrics import Metrics

SCOPE = {"type": "http", "method": "POST", "path": "/recommend", "raw_path": b"/recommend"}
HOST = [(b"host", b"localhost")]


def handled(messages, app, send, **limits):
    """Give messages of a request to a guard; returns the statuses that it counted."""
    metrics = Metrics()
    guard = Guard(app, ("localhost",), None, Limits(seconds=0.05, **limits), metrics)
    left = iter(messages)

    async def receive():
        return next(left)

    asyncio.run(guard({**SCOPE, "headers": HOST}, receive, send))
    (family,) = metrics.requests.collect()
    return [sample.labels["status"] for sample in family.samples if sample.name.endswith("_total")]


async def never(*_):
    raise AssertionError("this is not called")


def test_a_body_that_ends_early_is_not_handled():
    part = {"type": "http.request", "body": b"{}", "more_body": True}
    assert handled([part, {"type": "http.disconnect"}], never, never) == ["499"]


def test_who_does_not_read_an_answer_does_not_keep_a_place():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise AssertionError("sending ends before")

    async def send(message):
        await asyncio.sleep(60)

    whole = {"type": "http.request", "body": b"{}", "more_body": False}
    assert handled([whole], app, send) == ["200"]
    # An error is not sent twice either.
    assert handled([{**whole, "body": b"{}" * 10}], never, send, body=10) == ["413"]


def test_the_token_is_checked_before_a_body_is_read(client):
    large = {"content": b" " * 2**21}
    assert client.post("/items", **large).status_code == 401
    for header in ("Bearer", "Bearer other", "Bearer a secret ", "Basic a secret", "a secret", "Bearer ü"):
        answer = client.post("/items", **large, headers={"authorization": header.encode("latin-1")})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert client.post("/items", **large, headers={"authorization": "bearer a secret"}).status_code == 422
    assert client.post("/recommend", **large).status_code == 413


def test_methods_and_paths_of_any_name_are_counted_together(client):
    for method in ("FOO", "BAR"):
        assert client.request(method, "/items/i1").status_code == 405
        assert client.request(method, "/nowhere").status_code == 404
    families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
    found = {(each.labels["method"], each.labels["route"]) for each in families["iisan_requests"].samples}
    assert found == {("other", "/items/{item_id}"), ("other", "other")}


@pytest.mark.parametrize("host", ["shop.example", "Shop.Example:80", "[fe80::1]:8000", "[FE80::1]"])
def test_names_of_hosts_in_any_case_and_addresses(serve, folder, host):
    client = serve(folder / "similarity", hosts=("SHOP.example", "fe80::1"))
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_paths_that_do_not_exist_are_refused_in_a_sentence(client):
    for path in ("/nowhere", "/runs/", "/items/i1/similar/", "/a//runs", "/%72uns"):
        answer = client.get(path, follow_redirects=False)
        expected = "a path that does not exist; expected one of the interface: see /docs"
        assert (answer.status_code, answer.json()["detail"]) == (404, expected)


@pytest.mark.parametrize("token", ["", " ", "a\nb", "schl\xfcssel", "\udcff", "end "])
def test_a_token_that_no_header_can_hold_is_refused(iisan, folder, monkeypatch, token):
    monkeypatch.setenv("IISAN_TOKEN", token)
    code, _, error = iisan("serve", folder / "similarity")
    assert (code, error.partition(";")[0]) == (
        2,
        "error: IISAN_TOKEN is empty, or has characters that a header cannot have",
    )
