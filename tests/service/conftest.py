"""A served run and a client of its service."""

import shutil

import pytest
from starlette.testclient import TestClient

pytest.importorskip("fastapi")

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
def serve():
    """A function from run folders to a client of their service."""
    clients = []

    def start(*folders, token=TOKEN, **options):
        served = [ServedRun(each.name, each, {}) for each in folders]
        client = TestClient(create_app(served, token=token, **options), base_url="http://localhost")
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve, folder):
    return serve(folder / "similarity", folder / "ids")
