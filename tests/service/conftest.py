"""A served run and clients of its service."""

import dataclasses
import shutil
import threading
import time

import polars as pl
import pytest
from starlette.testclient import TestClient

pytest.importorskip("fastapi")

import uvicorn

from columns import COLUMNS
from iisan.data.dataset import Dataset
from iisan.recipes import recipe
from iisan.service.app import create_app
from iisan.service.served import ServedRun
from iisan.train.run import train

TOKEN = "a secret"


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """Folder with `states`, and the finished runs `similarity` and `ids`."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copytree(prepared.states, folder / "states")
    settings = {"dataset": prepared.dataset, "states": folder / "states"}
    train(recipe("similarity").model_copy(update=settings), folder / "similarity")
    quick = ["training.epochs=1", "training.batch_size=16", "loss.negatives=5", "anchor=false"]
    train(recipe("ids").model_copy(update=settings).override(quick), folder / "ids")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the trained runs, which a test may change."""
    return shutil.copytree(trained, tmp_path / "runs")


@pytest.fixture
def odd(prepared, tmp_path):
    """The dataset of the runs with columns of many types."""
    dataset = Dataset.load(prepared.dataset)
    columns = [
        pl.Series(name, [value(n) for n in range(30)], dtype=dtype) for name, (dtype, value) in COLUMNS.items()
    ]
    given = {"folder": None, "items": dataset.items.with_columns(columns), "stored_keys": dataset.keys}
    dataclasses.replace(dataset, **given).save(tmp_path / "odd")
    return tmp_path / "odd"


@pytest.fixture
def serve():
    """A function from run folders to a client of their service."""
    clients = []

    def start(*folders, token=TOKEN, moved=None, **options):
        served = [ServedRun(each.name, each, moved or {}) for each in folders]
        client = TestClient(create_app(served, token=token, **options), base_url="http://localhost")
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve, folder):
    return serve(folder / "similarity", folder / "ids")


@pytest.fixture
def listen():
    """A function from run folders to the port where their service listens."""
    running = []

    def start(*folders, token=TOKEN, moved=None, **options):
        served = [ServedRun(each.name, each, moved or {}) for each in folders]
        service = create_app(served, token=token, **options)
        server = uvicorn.Server(uvicorn.Config(service, "127.0.0.1", 0, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return server.servers[0].sockets[0].getsockname()[1]

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()
