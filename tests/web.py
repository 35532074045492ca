"""A server on this machine that behaves as a test says."""

import contextlib
import ssl
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

#: Self-signed certificate of ``pictures.example`` with its key, good for nothing else.
CERTIFICATE = Path(__file__).parent / "fixtures" / "pictures.example.pem"

Answer = tuple[int, dict[str, str], bytes]


def permit(*_: Any) -> bool:
    """Whether an address may be connected to: all, since a test's server has none that is public."""
    return True


class Server:
    """A context manager that serves until it ends.

    Args:
        routes: Answers (status, headers, body), or functions that return one, by path.
        raw: What is sent in answer to every request instead.
        tls: Whether connections are encrypted.

    Attributes:
        requested: Paths of the requests so far.
        headers: Their headers.
    """

    def __init__(
        self,
        routes: dict[str, Answer | Callable[[], Answer]] | None = None,
        raw: Iterable[bytes] | None = None,
        tls: bool = False,
    ) -> None:
        self.routes, self.requested, self.headers = routes or {}, list[str](), list[dict[str, str]]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requested.append(self.path)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                with contextlib.suppress(OSError):  # whoever asked may hang up
                    if raw is not None:
                        for part in raw:
                            self.wfile.write(part)
                        return
                    answer = outer.routes.get(self.path, (404, {}, b""))
                    status, headers, body = answer() if callable(answer) else answer
                    self.send_response(status)
                    for name, value in {"content-length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def url(self, path: str) -> str:
        """Address of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> "Server":
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
