"""Training of one run by several processes of a cluster, which Ray Train starts and connects.

What the processes do together is in :mod:`iisan.train.processes`.
"""

import contextlib
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iisan.config import Config
from iisan.errors import ClusterError, IisanError, MissingExtraError
from iisan.scale.cluster import Cluster
from iisan.scale.workers import library_versions, version_check
from iisan.train.folder import finished_result
from iisan.train.loop import METRICS
from iisan.train.processes import PATIENCE
from iisan.train.setup import resolve

#: Number of times that processes may be lost in one epoch.
_TRIES = 3


def train_on(
    cluster: Cluster, config: Config, out: Path, processes: int | None = None, start: Path | None = None
) -> dict[str, Any]:
    """Train and evaluate a configuration, or resume an interrupted run, by several processes.

    If a process is lost, all begin again after the last finished epoch.

    Args:
        cluster: The cluster.
        config: Configuration. Its folders must be there under the same paths on all machines.
        out: Run folder, which all machines share, too.
        processes: Number of processes, by default as many as the cluster has room for.
        start: Finished run of the same model that provides the initial weights.

    Returns:
        The content of ``result.json``.

    Raises:
        IisanError: As for :func:`iisan.train.run.train`; or there is no room for the processes, or they are lost
            again and again.
    """
    count = cluster.workers if processes is None else processes
    if not 1 <= count <= cluster.workers:
        cure = "start fewer" + ("" if cluster.gpu else ", or set OMP_NUM_THREADS to fewer threads of each")
        raise ClusterError(f"{count} processes where there is room for {cluster}", "as many as fit", cure)
    cluster.say(f"training: {count} of {cluster}")
    config, out = resolve(config), out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    start = start and start.resolve()
    epoch, losses = -1, 0
    while (reason := _together(cluster, count, config, out, start)) is not None:
        epoch, before = _finished_epochs(out), epoch
        losses = losses + 1 if epoch == before else 1
        if losses == _TRIES:
            got = f"processes ended {_TRIES} times after epoch {epoch} ({reason})"
            cure = "give them more memory, or start fewer; the same command goes on there"
            raise ClusterError(got, "processes that finish the next one", cure)
        cluster.say(f"training: a process was lost; all begin again after epoch {epoch}")
    result = finished_result(out)
    if result is None:
        cure = "choose an --out that all machines share, such as on a network file system"
        raise ClusterError(f"'{out}' on this machine is not what the processes wrote", "the same folder", cure)
    return result


def _together(cluster: Cluster, count: int, config: Config, out: Path, start: Path | None) -> str | None:
    """Train to the end; return why processes were lost, or None."""
    try:
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise MissingExtraError("ray[train]", "ray", "iisan train --ray") from None
    from ray.util.queue import Queue

    threads = cluster.threads
    each = {"GPU": 1.0, "CPU": 0.0} if cluster.gpu else {"CPU": float(threads)}
    refusals = list[IisanError]()
    messages = Queue(actor_options={"num_cpus": 0})
    reader = threading.Thread(target=_read, args=(messages, cluster.say, refusals), daemon=True)
    reader.start()
    # Ray Train's own files, which all machines must see; checkpoints and results are in the run folder.
    shared = None if cluster.machines == 1 else out.parent
    with tempfile.TemporaryDirectory(prefix=".ray-", dir=shared) as own:
        trainer = TorchTrainer(
            _process(),
            train_loop_config={
                "versions": library_versions(),
                "messages": messages,
                "config": config.model_dump(mode="json"),
                "out": str(out),
                "start": start and str(start),
                "threads": threads,
            },
            torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
            scaling_config=ScalingConfig(num_workers=count, use_gpu=cluster.gpu, resources_per_worker=each),
            run_config=RunConfig(storage_path=own, name="train"),
        )
        reason = None
        try:
            trainer.fit()
        except TrainingFailedError as error:
            reason = " ".join(str(error).split())[-200:]
        finally:
            messages.put(None)
            reader.join()
            messages.shutdown()
    if refusals:
        raise refusals[0]
    return reason


def _read(messages: Any, say: Callable[[str], None], refusals: list[IisanError]) -> None:
    """Pass on what the processes say, until None."""
    while (message := messages.get()) is not None:
        match message:
            case str():
                say(message)
            case IisanError():
                refusals.append(message)
            case _:
                refusals.append(ClusterError(*message))


def _finished_epochs(out: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return len((out / METRICS).read_text().splitlines())
    return 0


def _process() -> Callable[[dict[str, Any]], None]:
    """What every process does. Ray sends a function within a function as code, see ``version_check``."""
    different = version_check()

    def process(given: dict[str, Any]) -> None:
        import socket

        if refusal := different(given["versions"]):
            got, expected, cure = refusal
            given["messages"].put((f"on the machine {socket.gethostname()}, {got}", expected, cure))
            raise RuntimeError(got)
        from pathlib import Path

        import ray.train.torch
        import torch

        from iisan.config import parse
        from iisan.errors import IisanError
        from iisan.machine import keep_freed_memory
        from iisan.progress import hide_bars
        from iisan.runs.run import Run
        from iisan.train.run import train

        out, start = Path(given["out"]), given["start"]
        hide_bars()
        keep_freed_memory()
        torch.set_num_threads(given["threads"])
        if (device := ray.train.torch.get_device()).type == "cuda":
            torch.cuda.set_device(device)
        try:
            config, earlier = parse(given["config"]), Run.load(Path(start)) if start else None
            train(config, out, given["messages"].put, earlier)
        except IisanError as error:
            given["messages"].put(error)
            raise

    return process
