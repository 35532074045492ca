"""What every request passes before its route: host and origin, size, time, number; and what is logged of it."""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iisan.errors import IisanError
from iisan.service.metrics import Metrics

log = logging.getLogger("iisan.service")

#: Content of pages: nothing from elsewhere. The OpenAPI page starts itself by an inline script.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS = "/docs"
_DOCS_POLICY = f"{_POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_CLOSE = {"connection": "close"}
_STATUS_ROUTES = ("/health", "/ready", "/metrics")
#: Methods that are counted by name; a request may have any.
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
_ITEMS = "/items"


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        body: Most bytes of a body.
        added_body: Most bytes of the body of ``POST /items``.
        at_once: Most requests that are worked on at once; further ones are refused with 503.
        seconds: Most seconds until a body has arrived, and until a list is computed.
        adding: Most requests that wait for ``POST`` or ``DELETE /items``; further ones are refused with 429.
        pixels: Most pixels of an added image.
        batch_seconds: Seconds that a query waits for others.
        batch: Most queries that are computed together.
    """

    body: int = 2**20
    added_body: int = 2**25
    at_once: int = 256
    seconds: float = 10.0
    adding: int = 4
    pixels: int = 25_000_000
    batch_seconds: float = 0.003
    batch: int = 64


LIMITS = Limits()


class Refused(IisanError):
    """A request that is not served.

    Args:
        status: Status of the answer.
        got: What was found.
        expected: What would be served.
        cure: What to do.
        headers: Headers of the answer.
    """

    def __init__(
        self, status: int, got: str, expected: str, cure: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(got, expected, cure)
        self.status, self.headers = status, dict(headers or {})


class _Gone(Exception):
    """The client closed the connection before its request ended, or does not read the answer."""


FAULT = Refused(500, "a fault of the service", "none", "see its log")


class Guard:
    """ASGI middleware around the whole service.

    Args:
        app: The service.
        hosts: Host names under which it may be called; ``*`` for any.
        token: Token that changes of items need; None if they are refused.
        limits: Limits of requests.
        metrics: Metrics of the service.
    """

    def __init__(
        self, app: ASGIApp, hosts: tuple[str, ...], token: str | None, limits: Limits, metrics: Metrics
    ) -> None:
        self.app, self.hosts, self.token, self.limits, self.metrics = app, hosts, token, limits, metrics
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, answered = time.perf_counter(), list[int]()
        # Routes see a path as it was sent, where a slash of an id is %2F.
        scope["path"] = scope["raw_path"].decode("latin-1")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])
                policy = _DOCS_POLICY if scope["path"].startswith(_DOCS) else _POLICY
                added = {"content-security-policy": policy, **_HEADERS}
                message["headers"] = [*message["headers"], *_encoded(added)]
            try:
                async with asyncio.timeout(self.limits.seconds):
                    await send(message)
            except TimeoutError:
                raise _Gone from None

        self._running += 1
        try:
            with contextlib.suppress(_Gone):
                await self._handle(scope, receive, send_with_headers, answered)
        finally:
            self._running -= 1
            self._record(scope, answered[0] if answered else 499, time.perf_counter() - began)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, answered: list[int]) -> None:
        try:
            self._check(scope)
            await self.app(scope, await self._whole(scope, receive), send)
        except Refused as refused:
            await _answer(send, refused)
        except _Gone:
            raise
        except Exception:
            self.metrics.errors.inc()
            log.exception("fault")
            if not answered:
                await _answer(send, FAULT)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if "*" not in self.hosts and _name(host) not in self.hosts:
            raise Refused(400, f"the host '{host}'", f"one of {', '.join(self.hosts)}", "start with --allow-host")
        if origin is not None and origin.partition("://")[2] != host:
            got = f"a request from a page of '{origin}'"
            raise Refused(403, got, "this service's own page", "call it from a program, or open its page")
        if self._running > self.limits.at_once and scope["path"] not in _STATUS_ROUTES:
            got, most = "too many requests at once", f"at most {self.limits.at_once}"
            raise Refused(503, got, most, "try again in a second", {"retry-after": "1"})
        if scope["method"] in ("POST", "DELETE") and f"{scope['path']}/".startswith(f"{_ITEMS}/"):
            self._check_token(headers.get("authorization", ""))

    def _check_token(self, authorization: str) -> None:
        if self.token is None:
            raise Refused(403, "a change of items", "requests that read", "start the service with IISAN_TOKEN")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(token.encode(), self.token.encode()):
            cure, asked = "send 'Authorization: Bearer TOKEN'", {"www-authenticate": "Bearer"}
            raise Refused(401, "no token, or another one", "that of the service", cure, asked)

    async def _whole(self, scope: Scope, receive: Receive) -> Receive:
        """Receive the whole body, and return a function that gives it to the service."""
        adds = scope["method"] == "POST" and scope["path"] == _ITEMS
        most = self.limits.added_body if adds else self.limits.body
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    chunks.append(message.get("body", b""))
                    size, more = size + len(chunks[-1]), message.get("more_body", False)
                    if size > most:
                        raise Refused(413, "a long body", f"at most {most:,} bytes", "send less", _CLOSE)
        except TimeoutError:
            got, expected = "a body that was not sent to its end", f"all of it within {self.limits.seconds:g} s"
            raise Refused(408, got, expected, "send it again", _CLOSE) from None
        body = iter([{"type": "http.request", "body": b"".join(chunks), "more_body": False}])

        async def replay() -> Message:
            return next(body, None) or await receive()

        return replay

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(method, route, status).inc()
        self.metrics.seconds.labels(method, route).observe(seconds)
        if route not in _STATUS_ROUTES:
            facts = {"method": method, "route": route, "status": status, "ms": round(1000 * seconds, 1)}
            log.info("request", extra={"fields": facts})


def _name(host: str) -> str:
    """Host name of a header, without its port; in brackets for an IPv6 address."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() and not name.endswith(":") else host).lower()


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def _answer(send: Callable[[Message], Any], refused: Refused) -> None:
    body = json.dumps({"detail": str(refused)}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    await send({"type": "http.response.start", "status": refused.status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})
