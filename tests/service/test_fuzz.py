"""The service answers whatever it is sent: requests by schemathesis, and by a fuzzer that knows its weak places.

``IISAN_FUZZ`` in the environment is the number of requests of each of the two, by default a few hundred.
"""

import base64
import collections
import contextlib
import copy
import fnmatch
import http.client
import json
import os
import random
import re
import socket
import struct
import zlib

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from columns import COLUMNS
from iisan.service import schemas
from iisan.service.guard import Limits
from pictures import encoded

REQUESTS = int(os.environ.get("IISAN_FUZZ", "250"))
#: Requests that add items, which take a second each.
ADDED = max(4, REQUESTS // 200)
TOKEN = "Bearer a secret"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture
def port(listen, folder, odd):
    moved = {"dataset": odd, "images": None}
    return listen(folder / "similarity", folder / "ids", moved=moved, limits=Limits(seconds=2.0, pixels=10_000))


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_what_schemathesis_finds(port):
    address = f"http://127.0.0.1:{port}"
    config = {"checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}}}
    config = schemathesis.Config.from_dict(config)
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
    operations = [each.ok() for each in schema.get_all_operations()]
    share = REQUESTS // (2 * len(operations))
    statuses = collections.Counter()
    with requests.Session() as session:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                adds = operation.label == "POST /items" and mode == GenerationMode.POSITIVE
                options = {"deadline": None, "database": None, "derandomize": True}
                count = min(share, ADDED) if adds else share

                @settings(max_examples=count, suppress_health_check=list(HealthCheck), **options)
                @given(operation.as_strategy(generation_mode=mode))
                def ask(case):
                    answer = case.call_and_validate(
                        session=session, headers={"Authorization": TOKEN}, checks=CHECKS
                    )
                    statuses[answer.status_code] += 1
                    check_error(answer.status_code, answer.content)

                with contextlib.suppress(Unsatisfiable):  # Nothing can be wrong with no parameters.
                    ask()
    print(f"\n{statuses.total():,} requests by schemathesis, by status: {dict(sorted(statuses.items()))}")
    assert {200, 404, 422} <= set(statuses)


def check_error(status, content):
    """An error is one sentence that names no folder of this machine, and there are no faults."""
    assert status < 500 or status == 503, content
    if status >= 400:
        answer = json.loads(content)
        assert list(answer) == ["detail"], answer
        assert re.fullmatch(r"\S.*; expected .*: .*\S", answer["detail"], re.DOTALL), answer
        assert len(answer["detail"]) < 3_000, answer
        assert "/tmp/" not in answer["detail"], answer
        assert "Traceback" not in answer["detail"], answer


IDS = [
    *(
        "i0",
        "i1",
        "i2",
        "i29",
        "gone",
        "nowhere",
        "similar",
        "image",
        "a/similar",
        "a/image",
        "..",
        ".",
        "/",
        "//",
    ),
    *("../../etc/passwd", "%", "%00", "\0", " ", "i1 ", "i1\n", "ü", "\u202e", "🦊", "i1?x=1#y", "i1;", "x" * 512),
    *("x" * 513, "'; DROP TABLE items", "{}", "__class__", "None", "null", "i1/", "/i1", "\\i1", "\ufeffi1"),
]
VALUES = [
    *(None, True, False, 0, -1, 1, 10, 1000, 1001, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64, 10**400, 0.5, -0.0),
    *(1e308, 1e999, float("nan"), "", "i1", "\0", "\ud800", "\ud83d\ude00", "x" * 30_000, [], {}, [[]], [None]),
    *({"": 0}, {"\ud800": 1}, ["i1"] * 11_000, "nan", "1", "true", "shoes", "new", list(range(2_000))),
]
COLUMN_NAMES = [
    *COLUMNS,
    *("item_id", "text", "title", "image", "id", "__line__", "__row__", "row", "__index__", "\0", "a\nb", "", " "),
    *("\ud800", "x" * 513, "vectors", "user_id", "timestamp", "image_original", "literal", "ü", "run", "count"),
]
HEADERS = [
    *({"host": "evil.example"}, {"host": "localhost:x"}, {"host": "127.0.0.1@evil.example"}, {"host": ""}),
    *({"origin": "null"}, {"origin": "http://evil.example"}, {"origin": "http://"}, {"origin": "\xff"}),
    *(
        {"content-type": "text/plain"},
        {"content-type": "application/xml"},
        {"content-type": "form-data"},
    ),
    *({"content-type": "application/json; charset=utf-16"}, {"content-type": "\xff"}, {"accept": "text/html"}),
    *({"authorization": "Bearer"}, {"authorization": "Bearer \xff"}, {"authorization": "Basic YTpi"}),
    *({"authorization": "bearer a secret"}, {"authorization": f"{TOKEN} "}, {"expect": "100-continue"}),
    *({"x-forwarded-host": "evil.example"}, {"cookie": "a=\x01"}, {"range": "bytes=0-1"}, {"x": "y" * 5_000}),
]
METHODS = ["PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "FOO", "X" * 100, "PROPFIND"]
PATHS = [
    *("/", "/page/", "/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "//", "/items/", "/items//similar", "/items//"),
    *("/docs", "/docs/..", "/static-offline-docs/..%2f..%2f..%2fetc%2fpasswd", "/openapi.json", "/runs/", "/nope"),
    *(
        "/items/%ff",
        "/items/%c0%ae%c0%ae",
        "/items/%",
        "/items/%zz",
        "/items/i1/similar/",
        "/ITEMS",
        "/items/i1%2fimage",
    ),
    *(
        "/health?%00",
        "/metrics/..",
        "/items?search=%ff&limit=1e3",
        "/items?search=" + "a+" * 300,
        "http://evil/",
        "*",
    ),
]
#: What http.client refuses to send, and what a parser of HTTP refuses to read.
RAW = [
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\n",
    b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET /it\xc3\xbcms HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    b"GET /items?search=\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(500)) + b"\r\n",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{}",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n{}",
    b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


def png_of(width, height, data=b""):
    """A PNG that says it is large, of few bytes."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


def pictures():
    """Images in base64: sound ones of all kinds, truncated ones, and ones that lie."""
    sound = [encoded(Image.new("RGB", (8, 8)), form) for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]
    broken = [content[: len(content) * share // 4] for content in sound for share in (1, 2, 3)]
    lying = [png_of(65_000, 65_000), png_of(50, 50), png_of(8, 8, bytes(200_000)), png_of(0, 0), b"", b"<svg/>"]
    every = [base64.b64encode(content).decode() for content in sound + broken + lying]
    return [*every, "", "no base64!", "AAA", "ü", "data:image/png;base64,AAAA", "x" * 2_000]


class Fuzzer:
    """Makes requests from a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.pictures = pictures()
        self.left = ADDED

    def request(self):
        """Return method, path, headers and body, or bytes as they are sent."""
        make = self.random.choices(
            [self.question, self.lookup, self.change, self.removal, self.path, lambda: self.random.choice(RAW)],
            [45, 25, 10, 5, 10, 5],
        )[0]()
        if isinstance(make, bytes):
            return make
        method, path, headers, body = make
        if self.random.random() < 0.1:
            headers = {**headers, **self.random.choice(HEADERS)}
        if self.random.random() < 0.05:
            method = self.random.choice(METHODS)
        return method, path, headers, body

    def value(self):
        return self.random.choice([*VALUES, *IDS])

    def ids(self):
        return [self.random.choice(IDS[:5] * 5 + IDS) for _ in range(self.random.randint(1, 6))]

    def column(self):
        return self.random.choice([*COLUMNS, *COLUMN_NAMES])

    def question(self):
        path = self.random.choice(["/recommend", "/recommend", "/explain"])
        body = (
            {"history": self.ids()} if self.random.random() < 0.9 else {"user": self.random.choice(["u1", *IDS])}
        )
        if path == "/explain":
            body["item"] = self.random.choice(IDS)
        else:
            options = {
                "k": self.random.randint(1, 40),
                "filter_viewed": False,
                "items_to_recommend": self.ids(),
                "items_to_exclude": self.ids(),
                "where": {self.column(): self.random.choice([*VALUES[:20], "shoes", ["shoes", 1], "1.5"])},
                "max_per": self.random.choice([self.column(), {self.column(): self.random.choice(VALUES)}]),
                "near_duplicates": self.random.choice([0, 0.5, 0.99, 1, -1]),
            }
            for name in self.random.sample(list(options), self.random.randint(0, 3)):
                body[name] = options[name]
        if self.random.random() < 0.3:
            body["run"] = self.random.choice(["ids", "similarity", None, "other", ".."])
        return "POST", path, {"content-type": "application/json"}, self.text(body)

    def text(self, body):
        """A body as JSON, often with something wrong."""
        if self.random.random() < 0.4:
            body = self.changed(copy.deepcopy(body))
        text = json.dumps(body, ensure_ascii=self.random.random() < 0.7 or "\\ud" in json.dumps(body))
        kind = self.random.random()
        if kind < 0.04:
            text = text[: self.random.randrange(len(text) + 1)]
        elif kind < 0.08:
            text = text.replace("{", '{"k": 1, "k": -1, "history": [], ', 1)
        elif kind < 0.10:
            text = "[" * self.random.choice([10, 1_000, 100_000]) + text
        elif kind < 0.12:
            text = text.replace(":", ": " + "9" * 5_000 + ", ", 1)
        content = text.encode()
        if kind > 0.97:
            place = self.random.randrange(len(content))
            content = content[:place] + bytes([self.random.randrange(256)]) + content[place:]
        elif kind > 0.95:
            content = text.encode("utf-16")
        elif kind > 0.945:
            content += b" " * 2**20
        return content

    def changed(self, body):
        """Replace, add or take out a value somewhere in a body."""
        place = body
        while (inner := [each for each in place.values() if isinstance(each, dict) and each]) and (
            self.random.random() < 0.5
        ):
            place = self.random.choice(inner)
        kind = self.random.random()
        if kind < 0.6:
            place[self.random.choice(list(place))] = self.value()
        elif kind < 0.8:
            place[self.random.choice(["k", "run", "item", "x", "\ud800", "x" * 5_000, "columns"])] = self.value()
        else:
            del place[self.random.choice(list(place))]
        return body

    def lookup(self):
        item = quoted(self.random.choice(IDS[:5] * 3 + IDS))
        path = self.random.choice(
            [
                "/items",
                "/items?search=",
                "/runs",
                f"/items/{item}",
                f"/items/{item}/similar",
                f"/items/{item}/image",
            ]
        )
        names = ["search", "limit", "run", "by", "k", "other"]
        values = [
            "",
            "1",
            "0",
            "-1",
            "1001",
            "1e3",
            "9" * 5_000,
            "text",
            "anchor",
            "model",
            "image",
            "ids",
            "\0",
            "red",
        ]
        for _ in range(self.random.randint(0, 3)):
            mark = "&" if "?" in path else "?"
            path += f"{mark}{self.random.choice(names)}={quoted(self.random.choice(values + IDS))}"
        return "GET", path, {}, None

    def change(self):
        items = []
        for _ in range(self.random.choice([1, 1, 1, 2, 101])):
            item = {
                "item_id": self.random.choice(IDS[4:]),
                "text": self.random.choice(["red pump", None, "\0", "&amp;"]),
            }
            if self.random.random() < 0.5:
                item["image"] = self.random.choice(self.pictures)
            if self.random.random() < 0.5:
                item["columns"] = {
                    self.column(): self.random.choice(VALUES) for _ in range(self.random.randint(1, 3))
                }
            items.append(item)
        body = {"items": items, "update": self.random.random() < 0.7}
        if self.random.random() < 0.2:
            body["run"] = self.random.choice(["ids", "other"])
        headers = {"content-type": "application/json"}
        if self.left > 0 and self.random.random() < 0.8:
            headers["authorization"] = TOKEN
            self.left -= 0.25  # Most are refused.
        return "POST", "/items", headers, self.text(body)

    def removal(self):
        headers = {"authorization": TOKEN} if self.random.random() < 0.5 else {}
        return "DELETE", f"/items/{quoted(self.random.choice(IDS[4:]))}", headers, None

    def path(self):
        return "GET", self.random.choice(PATHS), {}, None


def quoted(text):
    return requests.utils.quote(text, safe="")


def send(connection, request):
    """Send a request, and return status, headers and body; None where the service closes the connection."""
    if isinstance(request, bytes):
        with socket.create_connection((connection.host, connection.port), timeout=20) as raw:
            raw.sendall(request)
            raw.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(raw, method="GET")
            try:
                answer.begin()
            except http.client.BadStatusLine:
                return None
            return answer.status, answer.headers, answer.read()
    method, path, headers, body = request
    for last in (False, True):
        try:
            connection.putrequest(method, path, skip_host="host" in headers)
            for name, value in headers.items():
                connection.putheader(name, value.encode("latin-1"))
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except ConnectionError:  # A connection that was idle for seconds is closed; a new one has to work.
            connection.close()
            if last:
                raise
    return None


def route_of(paths, method, path):
    """The description of what a request asked for."""
    path = path.partition("?")[0]
    for pattern, methods in paths.items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]*", pattern), path) and method.lower() in methods:
            return methods[method.lower()]
    return None


@pytest.fixture
def connection(port):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as made:
        yield made


def test_what_a_fuzzer_finds(connection):
    paths = json.loads(send(connection, ("GET", "/openapi.json", {}, None))[2])["paths"]
    fuzzer, statuses = Fuzzer(seed=7), collections.Counter()
    fuzzed = send(connection, ("DELETE", "/items/i28", {"authorization": TOKEN}, None))
    assert fuzzed[0] == 200
    for number in range(REQUESTS):
        request = fuzzer.request()
        try:
            answer = send(connection, request)
        except ValueError:  # http.client does not send it.
            connection.close()
            statuses["not sent"] += 1
            continue
        except (http.client.HTTPException, ConnectionError) as error:
            raise AssertionError(f"request {number} got no answer: {request!r:.2000}") from error
        if answer is None:
            assert isinstance(request, bytes)
            statuses["closed"] += 1
            continue
        status, headers, content = answer
        statuses[status] += 1
        try:
            check(paths, request, status, headers, content)
        except Exception as error:
            raise AssertionError(f"request {number}: {status} {content!r:.500} for {request!r:.2000}") from error
    print(f"\n{REQUESTS:,} requests of the fuzzer, by status: {dict(sorted(statuses.items(), key=str))}")
    assert {200, 400, 401, 403, 404, 405, 422} <= set(statuses)
    assert send(connection, ("GET", "/ready", {}, None))[0] == 200


def check(paths, request, status, headers, content):
    """Check an answer against the description of the interface."""
    if isinstance(request, bytes) or request[0] in ("HEAD", "CONNECT"):
        # The parser of HTTP answers for itself.
        assert status < 500
        return
    assert headers["x-content-type-options"] == "nosniff" or content == b"Invalid HTTP request received."
    described = route_of(paths, request[0], request[1])
    if content == b"Invalid HTTP request received.":
        assert status == 400
        return
    check_error(status, content)
    if described is None:
        assert status in (200, 400, 403, 404, 405, 413)
        return
    if status != 405:
        told = described["responses"][str(status)]["content"]
        assert any(fnmatch.fnmatch(headers.get_content_type(), each) for each in told)
        reference = told.get("application/json", {}).get("schema", {}).get("$ref")
        if reference is not None:
            getattr(schemas, reference.rpartition("/")[2]).model_validate_json(content)
