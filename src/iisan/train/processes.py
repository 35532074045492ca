"""Training of one network by several processes that ``torchrun`` started, each on a share of every batch.

All draw the same batches. Each encodes its share of a batch's distinct items, gathers the embeddings of all, and
computes the loss of its share of the windows over all candidates. So, without dropout, the sum of all gradients is
that of one process on the whole batch. A single process runs the same code, without communication.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from iisan.errors import ConfigError

#: How long processes wait for each other: the first one alone fits the anchor, evaluates and writes.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """This process, by its ``rank`` (from 0), among the ``size`` processes that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, values: Tensor) -> Tensor:
        """Return this process's rows of ``values``; the shares of all processes, in order, are the whole."""
        return values.tensor_split(self.size)[self.rank]

    def gather(self, share: Tensor, total: int) -> Tensor:
        """Concatenate all shares to ``[total, …]``; each share receives the gradients of all processes."""
        return share if self.size == 1 else _Gather.apply(share, total, self)

    def add(self, values: Tensor) -> Tensor:
        """Sum ``values`` over all processes, without gradients."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of every parameter; a parameter that no process used keeps None."""
        if self.size == 1:
            return
        parameters = list(parameters)
        used = torch.tensor([float(each.grad is not None) for each in parameters], device=parameters[0].device)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        summed = self.add(torch.cat([each.flatten() for each in gradients]))
        pieces = summed.split([each.numel() for each in parameters])
        for parameter, piece, users in zip(parameters, pieces, self.add(used).tolist(), strict=True):
            parameter.grad = piece.view_as(parameter) if users else None

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Connect the processes that ``torchrun`` started, by NCCL if ``device`` is CUDA (one GPU each), else by gloo.

    Raises:
        ConfigError: There are more processes than GPUs, or ``device`` is one GPU for all of them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or distributed.is_initialized():
        yield ALONE if size == 1 else Processes(distributed.get_rank(), size)
        return
    if device.type == "cuda":
        place, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        expected = "a GPU for each process"
        if place >= gpus:
            got = f"process {place + 1} on a machine with {gpus} GPUs"
            raise ConfigError(got, expected, "start fewer, or set training.device to cpu")
        if device.index is not None:
            got = f"training.device '{device}' for {size} processes"
            raise ConfigError(got, expected, "set training.device to cuda")
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Concatenates the shares of all processes; backward sums the gradients of all processes."""

    @staticmethod
    def forward(context: Any, share: Tensor, total: int, processes: Processes) -> Tensor:
        context.processes = processes
        sizes = [len(part) for part in torch.empty(total).tensor_split(processes.size)]
        # Collective operations need equal sizes.
        padded = share.new_zeros(max(sizes), *share.shape[1:])
        padded[: len(share)] = share
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return context.processes.share(context.processes.add(gradients[0])), None, None
