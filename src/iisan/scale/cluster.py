"""A connection to a Ray cluster, and how many workers fit into it.

Only this folder imports Ray, and only when a command is to run on a cluster.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from iisan.errors import ClusterError, MissingExtraError

#: Seconds within which a cluster must accept a connection.
_SECONDS = 10
#: Environment of Ray where it does not say otherwise.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise workers of a local cluster wait for whatever else the machine does.
    "RAY_worker_niceness": "0",
    # Paths stay those of the command in the processes of a training.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray's next default, about whose change it warns.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A cluster, and the workers that it has room for.

    Workers have a GPU each if there are some, else as many threads as this process: results of matrix products
    depend on the number of threads.

    Attributes:
        workers: Number of workers.
        machines: Number of machines.
        gpu: Whether workers have a GPU.
        threads: Number of threads of a worker.
        preparing_threads: Number of threads of a worker that prepare contents.
        say: Receives messages about progress and lost workers.
    """

    workers: int
    machines: int
    gpu: bool
    threads: int
    preparing_threads: int
    say: Callable[[str], None]

    @classmethod
    def of(cls, machines: list[dict[str, float]], threads: int, say: Callable[[str], None]) -> "Cluster":
        """Divide machines with numbers of ``CPU`` and ``GPU`` between workers.

        Raises:
            ClusterError: No machine has as many processors as a worker has threads.
        """
        processors, gpus = ([int(each.get(name, 0)) for each in machines] for name in ("CPU", "GPU"))
        if sum(gpus):
            return cls(sum(gpus), len(machines), True, threads, max(1, sum(processors) // sum(gpus)), say)
        workers = sum(each // threads for each in processors)
        if not workers:
            got = f"the largest machine of the cluster offers {max(processors, default=0)} processors"
            cure = f"set OMP_NUM_THREADS, which is {threads} now, to at most that number"
            raise ClusterError(got, "one for each thread of this process", cure)
        return cls(workers, len(machines), False, threads, threads, say)

    def __str__(self) -> str:
        """Describe the workers in half a sentence."""
        kind = "a GPU" if self.gpu else f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.workers} workers with {kind} each on {self.machines} machine{'s' * (self.machines > 1)}"


@contextlib.contextmanager
def connected(address: str, say: Callable[[str], None]) -> Iterator[Cluster]:
    """Connect to a cluster, and leave it at the end; a connection that this process has is used and kept.

    What Ray prints goes to standard error meanwhile, as standard output is for results.

    Args:
        address: ``local`` starts a cluster on this machine, ``auto`` finds the one that it is part of; or
            ``HOST:PORT``.
        say: Receives messages about progress and lost workers.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: There is no such cluster, or it has no room for a worker.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if address != "local":
        # By default, Ray tries for minutes, and logs every attempt.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        _check_port(address)
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "--ray") from None
    with contextlib.redirect_stdout(sys.stderr):
        own = not ray.is_initialized()
        if own:
            _connect(ray, address)
        try:
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            yield Cluster.of(machines, torch.get_num_threads(), say)
        finally:
            if own:
                ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (Exception, SystemExit) as error:  # Ray ends the process where a port is not that of a cluster
        raise _unreachable(address, " ".join(str(error).split())[:200]) from None


def _check_port(address: str) -> None:
    """Raise a ``ClusterError`` if nothing listens at an address, which Ray would try to reach for minutes."""
    if address == "auto":
        return
    host, separator, port = address.rpartition(":")
    if not (host and separator and port.isdigit()) or "/" in host:
        expected = "local, auto or HOST:PORT"
        raise ClusterError(f"'{address}' is no address of a Ray cluster", expected, "correct --ray")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, reason: str) -> ClusterError:
    cure = "start one by `ray start --head`, correct the address, or use --ray local"
    return ClusterError(f"no Ray cluster answers at '{address}' ({reason})", "a running cluster", cure)
