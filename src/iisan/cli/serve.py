"""The command ``serve``."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from iisan.cli.common import DatasetOption, ImagesOption, StatesOption, app, given
from iisan.errors import ConfigError, MissingExtraError
from iisan.progress import hide_bars
from iisan.remote.address import cache_folder

#: Seconds after which a thread that computes lets the one with the requests run; Python's 0.005 add up.
_SWITCH = 0.0005
#: Seconds that running requests have to end after a signal to stop.
_GRACE = 20


@app.command()
def serve(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN2]", help="Finished runs; the first one by default.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name of requests, beside localhost; * for any; repeatable."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute. Defaults to PyTorch's.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    dataset: DatasetOption = None,
    states: StatesOption = None,
    images: ImagesOption = None,
) -> None:
    """Serve runs: an HTTP interface and a page. IISAN_TOKEN in the environment allows items to be added."""
    try:
        import uvicorn

        from iisan.service.app import create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve", "`iisan serve`") from None
    import torch

    from iisan.service.metrics import log_json
    from iisan.service.served import ServedRun

    if threads is not None:
        torch.set_num_threads(threads)
    token = os.environ.get("IISAN_TOKEN")
    if token is not None and not (token.strip() == token != "" and token.isascii() and token.isprintable()):
        got = "IISAN_TOKEN is empty, or has characters that a header cannot have"
        raise ConfigError(got, "ASCII without spaces at its ends", "set another secret, or unset the variable")
    if token is not None and any(run.absolute().is_relative_to(cache_folder()) for run in runs):
        got = (
            "IISAN_TOKEN is set, and a run is a copy of one in an object store, which added items would not reach"
        )
        raise ConfigError(got, "a run in a folder", "unset IISAN_TOKEN and use `iisan add-items`, or copy the run")
    moved = given(dataset=dataset, states=states, images=images)
    with _listening(host, port) as listener:
        served = [ServedRun(name, folder, moved) for name, folder in zip(_names(runs), runs, strict=True)]
        service = create_app(served, token=token, hosts=(host, *(allow_host or ())))
        log_json(log_level)
        hide_bars()
        sys.setswitchinterval(_SWITCH)
        port = listener.getsockname()[1]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(f"page: {address}   HTTP API: {address}/docs   stop: Ctrl+C", file=sys.stderr)
        # uvicorn answers what it has accepted, then raises the signal again.
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, lambda *_: sys.exit(0))
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        config = uvicorn.Config(service, timeout_graceful_shutdown=_GRACE, **quiet)
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """Listen before the runs are read, so that an address in use is said at once."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        got = f"{host}:{port} cannot be listened on ({str(error.strerror).partition(' (')[0]})"
        expected = "a free port and an address of this machine"
        raise ConfigError(got, expected, "choose another --port or --host") from None


def _names(folders: list[Path]) -> list[str]:
    """Name runs by their folders; those of one name are numbered."""
    names: list[str] = []
    for folder in folders:
        name = folder.resolve().name
        count = sum(each == name or each.startswith(f"{name}-") for each in names)
        names.append(f"{name}-{count + 1}" if count else name)
    return names
