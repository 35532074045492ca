"""What may be connected to, and what a server may do; against a server on this machine, which tests permit."""

import ipaddress
import socket
import ssl
import time
from email.utils import formatdate
from threading import Event

import hypothesis
import pytest
from hypothesis import strategies as st

from iisan.data.fetch import FetchError, Stopped, Target, fetch, is_public
from web import CERTIFICATE, Server, permit

PUBLIC = ["8.8.8.8", "151.101.1.16", "2606:4700::6810:84e5", "2a00:1450:4001:82f::200e", "64:ff9b::808:808"]
NOT_PUBLIC = [
    *("127.0.0.1", "127.255.0.3", "0.0.0.0", "10.0.0.1", "172.16.9.9", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "203.0.113.7"),
    *("168.63.129.16", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8", "100::1", "fe80::1"),
    *("fe80::1%1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "2001::1", "3fff::1"),
    *("2002:7f00:1::", "2002:808:808::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address), 443)
    assert not is_public(ipaddress.ip_address(address), 8080)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address), 443)


PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/3",
)


@hypothesis.given(st.ip_addresses(v=4))
def test_no_way_to_write_a_private_address_in_ipv6_is_public(address):
    number = int(address)
    forms = (0xFFFF << 32, 0, 0x64FF9B << 96, 0x2002 << 112, 0x20010000 << 96)
    inside = any(address in ipaddress.ip_network(each) for each in PRIVATE)
    for form in forms:
        wrapped = ipaddress.IPv6Address(form | (number << 80 if form == 0x2002 << 112 else number))
        assert not (inside and is_public(wrapped, 80))
    assert not (inside and is_public(address, 80))


@pytest.mark.parametrize(
    "address",
    [
        *(
            "ftp://example.com/a",
            "file:///etc/passwd",
            "data:image/png;base64,aaaa",
            "gopher://a/",
            "//a/b",
            "a.png",
            "",
        ),
        *("http://", "http:///a", "http://user@example.com/", "http://a:b@example.com/", "http://@example.com/"),
        *("http://example.com:x/", "http://example.com:99999/", "http://[::1", "http://[fe80::1%25eth0]/"),
        *("http://exa mple.com/", "http://a..b/", "http://exa\\mple.com/", "http://a%2eb/", "http://a:80\\@b/"),
        *("http://" + "a" * 64 + ".com/", "http://ex\x00ample.com/", "http://a\u2100b.com/"),
    ],
)
def test_addresses_that_are_refused_without_a_request(address):
    with pytest.raises(FetchError) as caught:
        Target.of(address)
    assert (caught.value.reason, caught.value.final) == ("refused address", True)


def test_what_an_address_asks_for():
    target = Target.of("HTTPS://Bücher.Example.:443/a b/ü%20x?q=1 2&r=%41#part")
    assert (target.scheme, target.host, target.port) == ("https", "xn--bcher-kva.example", 443)
    assert target.path == "/a%20b/%C3%BC%20x?q=1%202&r=%41"
    head = target.request.decode().split("\r\n")
    assert head[:2] == ["GET /a%20b/%C3%BC%20x?q=1%202&r=%41 HTTP/1.1", "Host: xn--bcher-kva.example"]
    assert b"Host: [2606:4700::1]:8080\r\n" in Target.of("http://[2606:4700::1]:8080").request
    assert Target.of("../b?x", "http://h.example/a/c/d").address == "http://h.example/a/b?x"


@hypothesis.given(st.text(), st.text())
def test_no_address_adds_a_line_to_the_request(path, query):
    try:
        request = Target.of(f"http://example.com/{path}?{query}").request
    except FetchError:
        return
    assert request.count(b"\n") == request.count(b"\r") == 7
    assert request.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"),
        *("0x7f.1", "0", "[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "１２７.0.0.1", "127。0。0。1"),
    ],
)
def test_this_machine_is_refused_however_it_is_written(host):
    with pytest.raises(FetchError, match=r"not a public address|unknown host") as caught:
        fetch(f"http://{host}/a.png", 100, 5.0)
    # A name server may not know one of these forms, but none may be connected to.
    assert caught.value.final or "unknown" in caught.value.reason


def looks_up(monkeypatch, names):
    """Replace the look-up of names; returns those that were asked for."""
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, port, **options):
        asked.append(host)
        found = names(host) if callable(names) else names[host]
        return [each for address in found for each in real(address, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("found", [["10.0.0.5"], ["8.8.8.8", "10.0.0.5"], ["2606:4700::1", "::1"]])
def test_a_name_that_stands_for_a_private_address_is_refused(monkeypatch, found):
    looks_up(monkeypatch, {"pictures.example": found})
    monkeypatch.setattr(socket, "socket", None)  # nothing is connected to
    with pytest.raises(FetchError, match=r"not a public address or port: 'pictures\.example' is .*, port 80"):
        fetch("http://pictures.example/a.png", 100, 5.0)


def test_a_name_is_looked_up_once_so_that_a_second_answer_means_nothing(monkeypatch):
    """DNS rebinding: the first answer is permitted, later ones are not."""
    with Server({"/a": (200, {}, b"picture")}) as server:
        answers = iter([["127.0.0.1"], ["127.0.0.2"]])
        asked = looks_up(monkeypatch, lambda _: next(answers))
        permitted = lambda address, port: str(address) == "127.0.0.1"  # noqa: E731
        content, _ = fetch(f"http://rebinds.example:{server.port}/a", 100, 5.0, permitted=permitted)
        assert (content, asked) == (b"picture", ["rebinds.example"])
        with pytest.raises(FetchError, match=r"not a public address or port: 'rebinds\.example' is 127\.0\.0\.2"):
            fetch(f"http://rebinds.example:{server.port}/a", 100, 5.0, permitted=permitted)
        assert server.requested == ["/a"]


def test_an_unknown_host_may_be_known_later(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match=r"unknown host: 'gone\.example'") as caught:
        fetch("http://gone.example/a.png", 100, 5.0)
    assert not caught.value.final


def test_a_file_and_its_type():
    with Server({"/a.png?x=1": (200, {"content-type": "image/png"}, b"\x89PNG")}) as server:
        assert fetch(server.url("/a.png?x=1"), 4, 5.0, permitted=permit) == (b"\x89PNG", "image/png")
        with pytest.raises(FetchError, match="too large: more than 3 bytes"):
            fetch(server.url("/a.png?x=1"), 3, 5.0, permitted=permit)


def test_redirects_are_followed_with_the_same_rules():
    routes = {f"/{n}": (301 + n % 2, {"location": f"/{n + 1}"}, b"") for n in range(6)} | {"/6": (200, {}, b"end")}
    with Server(routes) as server:
        assert fetch(server.url("/1"), 9, 5.0, permitted=permit) == (b"end", "text/plain")
        assert server.requested == [f"/{n}" for n in range(1, 7)]
        with pytest.raises(FetchError, match="too many redirects: more than 5") as caught:
            fetch(server.url("/0"), 9, 5.0, permitted=permit)
        assert caught.value.final


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2:{port}/secret", "not a public address or port"),
        ("//127.0.0.2:{port}/secret", "not a public address or port"),
        ("http://[::1]:{port}/secret", "not a public address or port"),
        ("http://169.254.169.254/latest/meta-data/", "not a public address or port"),
        ("http://2852039166/latest/meta-data/", "not a public address or port"),
        ("http://127.0.0.1:22/", "not a public address or port"),
        ("file:///etc/passwd", "refused address"),
        ("ftp://127.0.0.1/a", "refused address"),
        ("http://user@127.0.0.1:{port}/secret", "refused address"),
        ("http://[::1", "refused address"),
        ("data:image/png;base64,iVBORw0KGgo=", "refused address"),
    ],
)
def test_redirects_to_what_is_not_permitted(location, reason):
    with Server() as server:
        server.routes |= {"/a": (302, {"location": location.format(port=server.port)}, b"")}
        server.routes |= {"/secret": (200, {}, b"secret")}
        permitted = lambda address, port: (str(address), port) == ("127.0.0.1", server.port)  # noqa: E731
        with pytest.raises(FetchError) as caught:
            fetch(server.url("/a"), 100, 5.0, permitted=permitted)
        assert (caught.value.reason, caught.value.final, server.requested) == (reason, True, ["/a"])


def test_a_redirect_without_a_place_is_a_status():
    with Server({"/a": (302, {}, b"")}) as server, pytest.raises(FetchError, match="status 302"):
        fetch(server.url("/a"), 100, 5.0, permitted=permit)


@pytest.mark.parametrize(
    ("status", "final"),
    [(404, True), (410, True), (403, True), (204, True), (408, False), (429, False), (503, False)],
)
def test_statuses(status, final):
    with (
        Server({"/a": (status, {}, b"")}) as server,
        pytest.raises(FetchError, match=f"status {status}") as caught,
    ):
        fetch(server.url("/a"), 100, 5.0, permitted=permit)
    assert (caught.value.final, caught.value.wait) == (final, None)


def test_a_host_may_ask_to_wait():
    routes = {"/s": (503, {"retry-after": "7"}, b""), "/x": (503, {"retry-after": "soon"}, b"")}
    routes["/d"] = (503, {"retry-after": formatdate(time.time() + 100, usegmt=True)}, b"")
    with Server(routes) as server:
        waits = []
        for path in ("/s", "/d", "/x"):
            with pytest.raises(FetchError) as caught:
                fetch(server.url(path), 100, 5.0, permitted=permit)
            waits.append(caught.value.wait)
    assert waits[0] == 7
    assert 95 < waits[1] <= 100
    assert waits[2] is None


def head(length=None, **headers):
    lines = {"content-length": length, **headers} if length is not None else headers
    return ("HTTP/1.1 200 OK\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode()


def endless(chunk, pause=0.0, start=b""):
    yield start
    while True:
        yield chunk
        time.sleep(pause)


def test_a_huge_body_is_refused_by_its_length_and_by_what_comes():
    promised = [head(10**12)]
    silent = endless(b"x" * 10_000, start=head())
    lying = endless(b"x" * 10_000, start=head(connection="close"))
    chunked = endless(b"2710\r\n" + b"x" * 10_000 + b"\r\n", start=head(**{"transfer-encoding": "chunked"}))
    for parts in (promised, silent, lying, chunked):
        with (
            Server(raw=parts) as server,
            pytest.raises(FetchError, match="too large: more than 100,000") as caught,
        ):
            fetch(server.url("/a"), 100_000, 5.0, permitted=permit)
        assert caught.value.final


@pytest.mark.parametrize(
    "parts",
    [
        lambda: endless(b"x", 0.05, head(1000)),
        lambda: endless(b"x", 0.05, b"HTTP/1.1 200 OK\r\nx: "),
        lambda: endless(b"x: y\r\n", 0.05, b"HTTP/1.1 200 OK\r\n"),
        lambda: endless(b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        lambda: endless(b"1\r\nx\r\n", 0.05, head(**{"transfer-encoding": "chunked"})),
        lambda: endless(b"", 0.05, head(1000)),
    ],
    ids=["body", "header", "headers", "continue", "chunks", "silence"],
)
def test_a_slow_answer_ends_at_the_deadline(parts):
    """Each byte comes soon enough for a timeout of the socket, but the whole does not."""
    with Server(raw=parts()) as server:
        began = time.monotonic()
        with pytest.raises(FetchError, match=r"timed out: after 0\.4 s") as caught:
            fetch(server.url("/a"), 10_000, 0.4, permitted=permit)
    assert not caught.value.final
    assert time.monotonic() - began < 3


def test_redirects_share_one_deadline():
    def slow():
        time.sleep(0.25)
        return 302, {"location": "/a"}, b""

    with Server({"/a": slow}) as server, pytest.raises(FetchError, match="timed out"):
        fetch(server.url("/a"), 100, 0.6, permitted=permit)
    assert len(server.requested) <= 3


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([head(10), b"12345"], "truncated"),
        ([head(**{"transfer-encoding": "chunked"}), b"5\r\n123"], "connection failed"),
        ([b"not http\r\n\r\n"], "connection failed"),
        ([b""], "connection failed"),
    ],
)
def test_a_broken_answer_may_be_whole_later(parts, reason):
    with Server(raw=parts) as server, pytest.raises(FetchError) as caught:
        fetch(server.url("/a"), 100, 5.0, permitted=permit)
    assert (caught.value.reason, caught.value.final) == (reason, False)


def test_an_encoded_body_is_not_unpacked():
    with Server({"/a": (200, {"content-encoding": "gzip"}, b"\x1f\x8b")}) as server:
        with pytest.raises(FetchError, match="encoded: the encoding 'gzip' was not asked for"):
            fetch(server.url("/a"), 100, 5.0, permitted=permit)
        assert "identity" in server.headers[0]["accept-encoding"]


def test_a_closed_port_is_a_failed_connection():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FetchError, match="connection failed") as caught:
        fetch(f"http://127.0.0.1:{port}/a", 100, 5.0, permitted=permit)
    assert not caught.value.final


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Server({"/a": (200, {}, b"direct")}) as server:
        assert fetch(server.url("/a"), 100, 5.0, permitted=permit)[0] == b"direct"


def test_a_transfer_can_be_stopped():
    stop = Event()
    with Server({"/a": (200, {}, b"x")}) as server:
        stop.set()
        with pytest.raises(Stopped):
            fetch(server.url("/a"), 100, 5.0, permitted=permit, stop=stop)


def test_certificates_are_verified_against_the_name(monkeypatch):
    looks_up(monkeypatch, lambda _: ["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    with Server({"/a": (200, {}, b"secure")}, tls=True) as server:
        address = f"https://pictures.example:{server.port}/a"
        with pytest.raises(FetchError, match="no secure connection") as caught:
            fetch(address, 100, 5.0, permitted=permit)
        assert not caught.value.final
        monkeypatch.setattr("iisan.data.fetch._tls", lambda: trusting)
        assert fetch(address, 100, 5.0, permitted=permit)[0] == b"secure"
        with pytest.raises(FetchError, match="no secure connection"):
            fetch(address.replace("pictures", "other"), 100, 5.0, permitted=permit)
