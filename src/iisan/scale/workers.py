"""Processes of a Ray cluster that hold something costly, such as an encoder, and work on one task after the other.

A worker that is lost is replaced, and its tasks are given to others. Ray Data does not fit here: results have a
place in an artefact that outlives this process, and which of them are there decides what is still to be done.
"""

import importlib.metadata
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

from iisan.errors import ClusterError, IisanError
from iisan.progress import track
from iisan.scale.cluster import Cluster

S = TypeVar("S")
A = TypeVar("A")
B = TypeVar("B")

#: Number of tasks that a worker has: the one it works on, and the next.
_HELD = 2
#: Number of workers that may end at one task, and of times that all may end in succession while they start.
_TRIES, _STARTS = 5, 3
#: A task that takes so many times the median is also given to an idle worker.
_SLOW = 3
#: Seconds between two messages about progress, and for which results are waited for at a time.
_REPORT, _WAIT = 30.0, 1.0
_LIBRARIES = ("iisan", "torch", "transformers", "tokenizers", "Pillow", "polars")


@dataclass(frozen=True)
class Place:
    """Where a worker computes.

    Attributes:
        device: Device of its models.
        threads: Number of threads that prepare contents.
    """

    device: str
    threads: int


@dataclass
class _Task:
    number: int
    size: int
    payload: Any
    losses: int = 0
    copies: int = 0


@dataclass
class _Worker:
    """An actor; ``starting`` is the reference of its name until it is ready."""

    actor: Any
    starting: Any
    name: str = ""
    #: Reference of a result -> its task and when it was given to the worker.
    running: dict[Any, tuple[_Task, float]] = field(default_factory=dict)

    @property
    def awaited(self) -> list[Any]:
        return [*self.running] if self.starting is None else [self.starting]


class Workers(Generic[S]):
    """The workers of a cluster.

    Args:
        cluster: The cluster.
        setup: Function that a worker calls once; what it returns is the first argument of its tasks. Its
            ``IisanError`` ends the caller.
    """

    def __init__(self, cluster: Cluster, setup: Callable[[Place], S]) -> None:
        import ray

        resources = {"num_gpus": 1, "num_cpus": 0} if cluster.gpu else {"num_cpus": cluster.threads}
        self._ray: Any = ray
        self._class = self._ray.remote(max_restarts=0, **resources)(_worker_class())
        self._setup = ray.put(setup)
        self._cluster = cluster
        self._workers = list[_Worker]()
        self._failed_starts = self._lost = 0

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers.clear()

    def map(
        self, function: Callable[[S, A], B], tasks: Iterable[tuple[int, A]], total: int, what: str
    ) -> Iterator[tuple[int, B]]:
        """Yield the results of ``total`` tasks with their positions, as they come; starts the workers they need.

        Args:
            function: Function of what the setup returned and a task.
            tasks: Number of contents and argument of each task; taken when a worker has room for it.
            total: Number of tasks.
            what: Name of the work, for messages.

        Raises:
            IisanError: That of a task.
            ClusterError: Workers end while they start, or too many at the same task.
        """
        self._new, self._waiting = enumerate(tasks), deque[_Task]()
        self._finished, self._seconds = set[int](), list[float]()
        while len(self._workers) < min(total, self._cluster.workers):
            self._workers.append(self._start())
        self._what = what
        self._cluster.say(f"{what}: {total} shard{'s' * (total > 1)}, {len(self._workers)} of {self._cluster}")
        yield from track(self._results(function, total), what, total)

    def _results(self, function: Callable[[S, A], B], total: int) -> Iterator[tuple[int, B]]:
        done, began = 0, 0.0
        reported = time.monotonic()
        while len(self._finished) < total:
            self._give_tasks(function)
            began = began or time.monotonic() * any(worker.running for worker in self._workers)
            owners = {each: worker for worker in self._workers for each in worker.awaited}
            ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=_WAIT)
            for reference in ready:
                worker = owners[reference]
                try:
                    result = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, IisanError | OSError):
                        raise error.cause from None
                    raise
                except self._ray.exceptions.RayError as error:
                    self._replace(worker, str(error))
                    continue
                if reference == worker.starting:
                    self._started(worker, *result)
                    continue
                task, given = worker.running.pop(reference)
                self._seconds.append(time.monotonic() - given)
                if task.number not in self._finished:
                    self._finished.add(task.number)
                    done += task.size
                    yield task.number, result
            now = time.monotonic()
            if now - reported > _REPORT or len(self._finished) == total:
                reported = now
                progress = "waiting for workers to start"
                if began:
                    progress = f"{len(self._finished)} of {total} shards, {done / (now - began):,.1f} a second"
                lost = f", {self._lost} workers lost" if self._lost else ""
                self._cluster.say(f"{self._what}: {progress}{lost}")

    def _start(self) -> _Worker:
        actor, cluster = self._class.remote(), self._cluster
        # In a list, the setup is not unpacked before the versions are compared.
        place = ("cuda" if cluster.gpu else "cpu", cluster.threads, cluster.preparing_threads)
        return _Worker(actor, actor.start.remote(library_versions(), [self._setup], *place))

    def _started(self, worker: _Worker, name: str, refusal: tuple[str, str, str] | None) -> None:
        if refusal:
            raise ClusterError(f"on the worker {name}, {refusal[0]}", *refusal[1:])
        worker.name, worker.starting, self._failed_starts = name, None, 0

    def _give_tasks(self, function: Callable[[S, A], B]) -> None:
        for count in range(_HELD):
            for worker in self._workers:
                if worker.starting is None and len(worker.running) == count and (task := self._next_task(worker)):
                    task.copies += 1
                    reference = worker.actor.call.remote(function, task.payload)
                    worker.running[reference] = task, time.monotonic()

    def _next_task(self, worker: _Worker) -> _Task | None:
        """A task of a lost worker, a new one, or for an idle worker one that takes long elsewhere."""
        if self._waiting:
            return self._waiting.popleft()
        for number, (size, payload) in self._new:
            return _Task(number, size, self._ray.put(payload))
        if worker.running or not self._seconds:
            return None
        limit = time.monotonic() - _SLOW * median(self._seconds)
        running = [pair for other in self._workers for pair in other.running.values()]
        late = [(given, task.number, task) for task, given in running if given < limit and task.copies < 2]
        return min(late)[2] if late else None

    def _replace(self, worker: _Worker, error: str) -> None:
        """Start another worker for one that was lost, and give its unfinished tasks to others."""
        if worker not in self._workers:
            return  # a second result of a lost worker
        reason = " ".join(error.split())[:200]
        name = f"the worker {worker.name}" if worker.name else "a worker that was starting"
        self._cluster.say(f"{self._what}: {name} was lost, and is replaced")
        self._workers.remove(worker)
        self._lost += 1
        self._failed_starts += worker.starting is not None
        if self._failed_starts == _STARTS * self._cluster.workers:
            got = f"{self._failed_starts} workers in succession ended while they started ({reason})"
            raise ClusterError(
                got, "workers that load what they need", "see Ray's logs, and the memory of workers"
            )
        for position, (task, _) in enumerate(worker.running.values()):
            task.copies -= 1
            task.losses += position == 0
            if task.losses == _TRIES:
                got = f"{_TRIES} workers ended at the same shard ({reason})"
                cure = "give workers more memory, or make smaller shards; finished ones are kept"
                raise ClusterError(got, "workers that finish it", cure)
            if task.number not in self._finished and not task.copies:
                self._waiting.append(task)
        self._workers.append(self._start())


def library_versions() -> dict[str, str]:
    """Versions of what workers must have, without the builds that differ with the device."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in _LIBRARIES}


def version_check() -> Callable[[dict[str, str]], tuple[str, str, str] | None]:
    """Return a function that compares versions with those of a worker; it returns the parts of an error, or None.

    Ray sends functions and classes within a function as code; one that is imported by name could not even say that
    a worker has another version of its module, or none.
    """

    def different(wanted: dict[str, str]) -> tuple[str, str, str] | None:
        import contextlib
        import importlib.metadata

        for library, expected in wanted.items():
            found = "none"
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found = importlib.metadata.version(library).partition("+")[0]
            if found != expected:
                cure = "install the same versions on all machines of the cluster"
                return f"the version of {library} is {found}", f"{expected}, as here", cure
        return None

    return different


def _worker_class() -> type:
    """The class of a worker, which Ray sends as code, see ``version_check``."""
    different = version_check()

    class Worker:
        def start(
            self, wanted: dict[str, str], setup: list[Any], device: str, threads: int, preparing: int
        ) -> tuple[str, tuple[str, str, str] | None]:
            import os
            import socket

            name = f"{socket.gethostname()}:{os.getpid()}"
            if refusal := different(wanted):
                return name, refusal
            import ray
            import torch

            from iisan.errors import IisanError
            from iisan.progress import hide_bars
            from iisan.scale.workers import Place

            hide_bars()
            torch.set_num_threads(threads)
            try:
                self.state = ray.get(setup[0])(Place(device, preparing))
            except IisanError as error:
                return name, (error.got, error.expected, error.cure)
            return name, None

        def call(self, function: Callable[[Any, Any], Any], task: Any) -> Any:
            return function(self.state, task)

    return Worker
