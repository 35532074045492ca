"""Tasks on workers: each once, also when workers are lost, slow, refused or cannot start."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from iisan.errors import ClusterError, DataError, MissingExtraError
from iisan.scale import workers as workers_module
from iisan.scale.cluster import Cluster, connected
from iisan.scale.workers import Workers


def logged(folder: Path):
    """A function of a task that leaves a file whenever it begins; as it is nested, Ray sends its code."""

    def function(state, task):
        (folder / f"{task}.{os.getpid()}.{time.monotonic_ns()}").touch()
        time.sleep(0.3)
        return state, task * task

    return function


def begun(folder: Path) -> list[int]:
    return sorted(int(path.name.partition(".")[0]) for path in folder.iterdir())


@pytest.fixture
def workers(cluster):
    made = Workers(cluster, lambda place: (place.device, place.threads))
    yield made
    made.close()


def test_tasks_are_taken_as_they_are_needed_and_worked_on_once(workers, tmp_path, said):
    taken = []

    def tasks():
        for number in range(9):
            taken.append(number)
            yield 10, number

    results = {}
    for number, result in workers.map(logged(tmp_path), tasks(), 9, "squaring"):
        assert len(taken) <= len(results) + 5  # the two of each worker, and this one
        results[number] = result
    assert results == {number: (("cpu", 1), number**2) for number in range(9)}
    assert begun(tmp_path) == list(range(9))
    assert len({path.name.split(".")[1] for path in tmp_path.iterdir()}) == 2
    assert said[0] == "squaring: 9 shards, 2 of 2 workers with 1 thread each on 1 machine"
    assert said[-1].startswith("squaring: 9 of 9 shards, ")


def test_only_the_task_that_a_lost_worker_was_at_is_begun_again(workers, tmp_path, said):
    kills, results = 3, {}
    for number, result in workers.map(logged(tmp_path), ((1, task) for task in range(24)), 24, "squaring"):
        results[number] = result[1]
        if len(results) in (4, 10, 16):
            ready = [worker for worker in workers._workers if worker.name]
            os.kill(int(ready[len(results) % len(ready)].name.rpartition(":")[2]), signal.SIGKILL)
    assert results == {number: number**2 for number in range(24)}
    assert sorted({*begun(tmp_path)}) == list(range(24))
    assert 24 <= len(begun(tmp_path)) <= 24 + kills
    assert sum("was lost, and is replaced" in line for line in said) == kills
    assert said[-1].endswith("3 workers lost")


def test_a_task_that_takes_long_is_also_given_to_an_idle_worker(workers, tmp_path):
    def function(_, task):
        marker = tmp_path / f"{task}"
        if task == 3 and not marker.exists():
            marker.touch()
            time.sleep(600)
        time.sleep(0.1)
        return task

    began = time.monotonic()
    assert dict(workers.map(function, ((1, task) for task in range(6)), 6, "waiting")) == {n: n for n in range(6)}
    assert time.monotonic() - began < 300


def test_a_task_that_ends_its_workers_is_given_up(workers, monkeypatch):
    monkeypatch.setattr(workers_module, "_TRIES", 2)

    def function(_, task):
        if task == 1:
            os._exit(1)
        return task

    with pytest.raises(ClusterError, match=r"2 workers ended at the same shard .* give workers more memory"):
        dict(workers.map(function, ((1, task) for task in range(3)), 3, "ending"))


def test_workers_that_do_not_start_are_given_up(cluster, monkeypatch):
    monkeypatch.setattr(workers_module, "_STARTS", 1)
    workers = Workers(cluster, lambda place: os._exit(1))
    with pytest.raises(ClusterError, match="2 workers in succession ended while they started"):
        dict(workers.map(lambda *_: None, [(1, 1)], 1, "starting"))


def test_errors_of_tasks_and_of_the_setup_arrive_as_they_are(workers, cluster):
    def bad(_, task):
        raise DataError(f"item {task} is bad", "a good one", "mend it")

    with pytest.raises(DataError, match=r"^item 7 is bad; expected a good one: mend it$"):
        dict(workers.map(bad, [(1, 7)], 1, "failing"))

    def absent(place):
        raise DataError("there is no file", "a file", "copy it")

    workers.close()
    refused = Workers(cluster, absent)
    with pytest.raises(ClusterError, match=r"^on the worker .*:\d+, there is no file; expected a file: copy it$"):
        dict(refused.map(bad, [(1, 7)], 1, "failing"))
    refused.close()


@pytest.mark.parametrize("library", ["iisan", "torch", "transformers"])
def test_workers_with_other_versions_are_refused(cluster, monkeypatch, library):
    versions = workers_module.library_versions()
    monkeypatch.setattr(workers_module, "library_versions", lambda: versions | {library: "0.0.1"})
    workers = Workers(cluster, lambda place: None)
    expected = rf"the version of {library} is {versions[library]}; expected 0.0.1, as here: install the same"
    with pytest.raises(ClusterError, match=expected):
        dict(workers.map(lambda *_: None, [(1, 1)], 1, "refused"))
    workers.close()


MACHINES = [
    ([{"CPU": 8.0}, {"CPU": 5.0}], 2, (6, 2, False, 2)),
    ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}], 8, (4, 3, True, 9)),
]


@pytest.mark.parametrize(("machines", "threads", "expected"), MACHINES)
def test_how_many_workers_fit(machines, threads, expected):
    cluster = Cluster.of(machines, threads, print)
    assert (cluster.workers, cluster.machines, cluster.gpu, cluster.preparing_threads) == expected
    assert cluster.threads == threads


def test_a_cluster_without_room_is_refused():
    with pytest.raises(ClusterError, match=r"offers 2 processors.*set OMP_NUM_THREADS, which is 4 now"):
        Cluster.of([{"CPU": 2.0}, {}], 4, print)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1' .*refused.*use --ray local"),
        ("ray://127.0.0.1:1", "is no address of a Ray cluster; expected local, auto or HOST:PORT"),
        ("no-such-host.invalid:6379", "no Ray cluster answers"),
        ("everywhere", "'everywhere' is no address of a Ray cluster"),
        ("host:port", "'host:port' is no address"),
    ],
)
def test_a_cluster_that_is_not_there_is_reported_at_once(iisan, prepared, tmp_path, address, message):
    began = time.monotonic()
    arguments = ["cache", prepared.dataset, "--text", prepared.text, "--out", tmp_path / "s", "--ray", address]
    code, out, err = iisan(*arguments)
    assert (code, out) == (2, "")
    assert time.monotonic() - began < 60
    assert err.startswith("error: ")
    assert re.search(message, err)
    assert err.count("\n") == 1


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r'--ray needs it; .*pip install "iisan\[ray\]"'),
        connected("local", print),
    ):
        pass
