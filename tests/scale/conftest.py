"""A cluster of two workers with a thread each, for all tests of a module."""

import os
from collections.abc import Iterator

import pytest

from iisan.scale.cluster import SETTINGS, Cluster, connected


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a cluster, which this process is connected to."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    os.environ.update(SETTINGS)
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cluster(address: str, said: list[str]) -> Iterator[Cluster]:
    with connected("auto", said.append) as cluster:
        yield cluster
