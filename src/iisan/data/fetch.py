"""One file from a web address that nobody vouches for: public hosts only, within limits of bytes and time."""

import functools
import io
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from threading import Event
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

_PORTS = {"http": 80, "https": 443}
#: IPv4 addresses that are not public although they are not listed as private: protocol assignments (among them a
#: cloud's metadata), relays of 6to4, and a cloud's own services.
_IPV4_REFUSED = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv4Network("168.63.129.16/32"))
#: The IPv6 addresses of hosts; and those among them that lead to IPv4, or are for protocols and documents.
_IPV6_HOSTS = IPv6Network("2000::/3")
_IPV6_REFUSED = (IPv6Network("2001::/23"), IPv6Network("2002::/16"), IPv6Network("3fff::/20"))
#: IPv6 addresses that end in the IPv4 address of a host.
_TRANSLATED = IPv6Network("64:ff9b::/96")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
#: Characters of a path and of a query that need no escape; ``%`` because escapes are escaped already.
_SAFE = "/%:@!$&'()*+,;=~?"
_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
_AT_ONCE = 2**16
#: Statuses of requests that may succeed later.
_LATER = (408, 425, 429)

Address = IPv4Address | IPv6Address
Permitted = Callable[[Address, int], bool]


class FetchError(Exception):
    """A file that was not fetched.

    Args:
        reason: Kind of failure, of which there are a few.
        detail: What was found.
        final: Whether the same request is useless later.
        wait: Seconds for which the host asks not to be called.
    """

    def __init__(self, reason: str, detail: str, *, final: bool = False, wait: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.final, self.wait = reason, detail, final, wait


class Stopped(Exception):
    """The program stops before the file was fetched."""


def is_public(address: Address, port: int) -> bool:
    """Whether this is an address of the public internet, and the port of http or https."""
    if port not in _PORTS.values():
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not (address.is_multicast or any(address in each for each in _IPV4_REFUSED))
    if address in _TRANSLATED:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF), port)
    return address in _IPV6_HOSTS and address.is_global and not any(address in each for each in _IPV6_REFUSED)


@dataclass(frozen=True)
class Target:
    """Where a request goes.

    Attributes:
        address: The web address.
        scheme: ``http`` or ``https``.
        host: Host name in ASCII, or IP address.
        port: Port.
        path: Escaped path with the query.
    """

    address: str
    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, address: str, base: str = "") -> "Target":
        """Parse a web address, which may be relative to another.

        Raises:
            FetchError: Not an address of http or https, a user in it, or a host that is none.
        """
        try:
            address = urljoin(base, address)
            parts = urlsplit(address)
            port, host = parts.port, parts.hostname or ""
            if ":" not in host:
                host = host.encode("idna").decode().removesuffix(".").lower()
        except ValueError as error:  # UnicodeError is one
            raise FetchError("refused address", str(error), final=True) from None
        if parts.scheme not in _PORTS:
            raise FetchError("refused address", f"the scheme '{parts.scheme}'", final=True)
        if "@" in parts.netloc:
            raise FetchError("refused address", "a user name in it", final=True)
        if not _HOST.fullmatch(host):
            raise FetchError("refused address", f"the host '{host}'", final=True)
        path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
        return cls(address, parts.scheme, host, _PORTS[parts.scheme] if port is None else port, path)

    @property
    def request(self) -> bytes:
        """The request, to its last byte."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = (
            f"GET {self.path} HTTP/1.1",
            f"Host: {host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}"),
            "User-Agent: iisan",
            "Accept: image/*",
            # An encoded body could unpack to any size.
            "Accept-Encoding: identity",
            "Connection: close",
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def fetch(
    address: str,
    max_bytes: int,
    seconds: float,
    *,
    permitted: Permitted = is_public,
    turn: Callable[[str], None] = lambda host: None,
    stop: Event | None = None,
) -> tuple[bytes, str]:
    """Fetch a file.

    Every address that a host name stands for is checked, and the connection goes to one that was checked, without
    a second look-up; so after each redirect. Proxies are not used, since they look up names themselves.

    Args:
        address: Web address.
        max_bytes: Maximum size of the file.
        seconds: Maximum duration of all requests together.
        permitted: Whether an IP address and a port may be connected to.
        turn: Called with the host before each request; returns when it may be sent.
        stop: Stops the transfer when set.

    Returns:
        The file's bytes, and their type as the server names it.

    Raises:
        FetchError: No such file, or not within these limits.
        Stopped: ``stop`` was set.
    """
    target = Target.of(address)
    turn(target.host)
    deadline = time.monotonic() + seconds

    def left() -> float:
        if stop is not None and stop.is_set():
            raise Stopped
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise FetchError("timed out", f"after {seconds:g} s")
        return remaining

    for _ in range(_REDIRECTS + 1):
        try:
            with closing(_connected(target, permitted, left)) as connection:
                response = HTTPResponse(_Received(connection, left), method="GET")  # type: ignore[arg-type]
                connection.settimeout(left())
                connection.sendall(target.request)
                response.begin()
                if (location := _redirected(response)) is None:
                    return _body(response, max_bytes), response.headers.get_content_type()
        except TimeoutError:
            raise FetchError("timed out", f"'{target.host}' did not answer") from None
        except ssl.SSLError as error:
            raise FetchError("no secure connection", str(error.reason or error)) from None
        except (OSError, HTTPException) as error:
            raise FetchError("connection failed", str(error) or type(error).__name__) from None
        target = Target.of(location, target.address)
        turn(target.host)
    raise FetchError("too many redirects", f"more than {_REDIRECTS}", final=True)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _connected(target: Target, permitted: Permitted, left: Callable[[], float]) -> socket.socket:
    """Connect to a host after all of its addresses were checked."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError("unknown host", f"'{target.host}' ({error})") from None
    for *_, place in found:
        if not permitted(ip_address(place[0]), target.port):
            detail = f"'{target.host}' is {place[0]}, port {target.port}"
            raise FetchError("not a public address or port", detail, final=True)
    failed = OSError("no address")
    for family, kind, protocol, _, place in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(min(left(), _CONNECT_SECONDS))
            connection.connect(place)
            if target.scheme == "https":
                connection.settimeout(left())
                connection = _tls().wrap_socket(connection, server_hostname=target.host)
            return connection
        except OSError as error:
            connection.close()
            failed = error
        except BaseException:
            connection.close()
            raise
    raise failed


class _Received(io.RawIOBase):
    """What a connection receives, with one deadline for all of it instead of one for each part."""

    def __init__(self, connection: socket.socket, left: Callable[[], float]) -> None:
        self._connection, self._left = connection, left

    def readable(self) -> bool:
        """As of a file."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what there is, looking every second whether to stop."""
        while True:
            self._connection.settimeout(min(self._left(), 1.0))
            with suppress(TimeoutError):
                return self._connection.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        """As of a socket."""
        return io.BufferedReader(self)


def _redirected(response: HTTPResponse) -> str | None:
    """Where a response sends the request; None if it has the file.

    Raises:
        FetchError: Any other status.
    """
    if response.status == 200:
        return None
    if response.status in (301, 302, 303, 307, 308) and (location := response.headers["location"]):
        return quote(str(location).encode("latin-1", "replace"), safe=f"{_SAFE}#[]")
    status = response.status
    final = status < 500 and status not in _LATER
    raise FetchError(f"status {status}", response.reason, final=final, wait=_wait(response))


def _wait(response: HTTPResponse) -> float | None:
    """Seconds of ``Retry-After``, which may be a number or a date."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _body(response: HTTPResponse, max_bytes: int) -> bytes:
    if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
        raise FetchError("encoded", f"the encoding '{encoding}' was not asked for", final=True)
    # What the header says is no promise: bytes are counted too.
    size, content = response.length or 0, bytearray()
    while size <= max_bytes and (part := response.read(_AT_ONCE)):
        content += part
        size = max(size, len(content))
    if size > max_bytes:
        raise FetchError("too large", f"more than {max_bytes:,} bytes", final=True)
    if response.length:
        raise FetchError("truncated", f"{response.length:,} bytes are missing")
    return bytes(content)
