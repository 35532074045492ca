"""Extraction on a cluster: workers hold the encoder, this process reads contents and writes the store.

Contents go to the workers and encoded shards come back through Ray's object store, so the workers need no disk in
common with this machine, only the encoder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iisan.encoders.contents import Contents
from iisan.encoders.encoder import Encoder
from iisan.encoders.precision import Precision
from iisan.errors import EncoderError
from iisan.scale.cluster import Cluster
from iisan.scale.workers import Place, Workers
from iisan.states.extract import Job, Start
from iisan.states.manifest import fingerprint_of
from iisan.states.writer import EncodedShard


@dataclass(frozen=True)
class _Part:
    """Contents of a task, and the names of their items."""

    values: list[Any]
    names: list[str]


class ClusterJob:
    """An extractor whose states are computed by the workers of a cluster, see ``iisan.states.extract.Extractor``.

    Args:
        cluster: The cluster.
        load: Loads an encoder by its name and ``pooling``.
        job: The job as it would be done on this machine.
    """

    def __init__(self, cluster: Cluster, load: Callable[..., Encoder], job: Job) -> None:
        self._job = job
        nothing = Contents(job.contents.modality, job.contents.kind, np.ones(0, bool), str, str)
        blank = partial(Job, contents=nothing, levels=job.levels, dtype=job.dtype, batch_size=job.batch_size)
        load = partial(load, job.encoder.source.full_name, pooling=job.encoder.pooling)
        setup = partial(_job_on, load, blank, _fingerprint(job.encoder))
        self._workers = Workers[Job](cluster, setup)

    def measure(self, sample: Sequence[int], requested: str) -> Start:
        """Let a worker measure the sample: its device, not that of this machine, decides about the precision."""
        what = f"measuring {self._job.contents.modality} states"
        ((_, start),) = self._workers.map(_measure, [(len(sample), (self._part(sample), requested))], 1, what)
        return start

    def encode(
        self, shards: Sequence[Sequence[int]], precision: Precision, mean: Tensor
    ) -> Iterator[tuple[int, EncodedShard]]:
        """Encode each shard as a task; its batches depend on the shard alone."""
        tasks = ((len(shard), (self._part(shard), precision, mean)) for shard in shards)
        try:
            yield from self._workers.map(
                _encode, tasks, len(shards), f"caching {self._job.contents.modality} states"
            )
        finally:
            self._workers.close()

    def _part(self, indices: Sequence[int]) -> _Part:
        contents = self._job.contents
        return _Part([contents.get(index) for index in indices], [contents.label(index) for index in indices])


def _fingerprint(encoder: Encoder) -> str:
    return fingerprint_of(encoder.settings, (), "", "")


def _job_on(load: Callable[[], Encoder], blank: Callable[..., Job], fingerprint: str, place: Place) -> Job:
    """The job of a worker, without contents yet."""
    encoder = load().eval().to(place.device)
    if _fingerprint(encoder) != fingerprint:
        got = f"'{encoder.source.name}' is another encoder than on the machine of the command"
        raise EncoderError(got, "the same files", "copy the folder of the model to all machines of the cluster")
    return blank(encoder, device=torch.device(place.device), threads=place.threads)


def _with(job: Job, part: _Part) -> Job:
    present = np.ones(len(part.values), bool)
    return replace(
        job,
        contents=replace(job.contents, present=present, get=part.values.__getitem__, label=part.names.__getitem__),
    )


def _measure(job: Job, task: tuple[_Part, str]) -> Start:
    part, requested = task
    return _with(job, part).measure(range(len(part.values)), requested)


def _encode(job: Job, task: tuple[_Part, Precision, Tensor]) -> EncodedShard:
    part, precision, mean = task
    ((_, shard),) = _with(job, part).encode([range(len(part.values))], precision, mean)
    return replace(shard, data=np.frombuffer(shard.data, np.uint8))  # which Ray does not copy
