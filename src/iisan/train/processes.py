"""Several processes that train one network, each on a share of every batch: what ``torchrun`` starts.

All draw the same batches. Each encodes its share of a batch's distinct items, gets everyone's embeddings, and
computes the loss of its share of the windows over all candidates; so with dropout off the sum of all gradients is
that of one process on the whole batch. One process alone is the same code with nothing to exchange.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from iisan.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def share(self, values: Tensor) -> Tensor:
        """This process's rows of ``values``; all processes' shares, in order, are the whole."""
        return values.tensor_split(self.size)[self.rank]

    def gather(self, share: Tensor, total: int) -> Tensor:
        """The whole ``[total, …]`` of everyone's share; each share gets the gradients of all processes."""
        return share if self.size == 1 else _Gather.apply(share, total, self)

    def add(self, values: Tensor) -> Tensor:
        """Sum of everyone's ``values``, without gradients."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients; one that no process used keeps none."""
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
        """Go on when all have come here."""
        if self.size > 1:
            distributed.barrier()


#: One process by itself.
ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, connected by gloo, or by NCCL where each has a GPU of its own.

    Args:
        device: what the configuration computes on.

    Raises:
        ConfigError: more processes than GPUs, or one GPU for all of them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or distributed.is_initialized():
        yield ALONE if size == 1 else Processes(distributed.get_rank(), size)
        return
    on_gpu, place = device.type == "cuda", int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu and place >= torch.cuda.device_count():
        raise ConfigError(
            f"process {place + 1} on a machine with {torch.cuda.device_count()} GPUs",
            "a GPU for each process",
            "start fewer, or set training.device to cpu",
        )
    if on_gpu and device.index is not None:
        raise ConfigError(
            f"training.device '{device}' for {size} processes",
            "a GPU for each process",
            "set training.device to cuda",
        )
    if on_gpu:
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Everyone's share in one tensor; backward, everyone's gradients of it are summed."""

    @staticmethod
    def forward(context: Any, share: Tensor, total: int, processes: Processes) -> Tensor:
        context.processes = processes
        sizes = [len(part) for part in torch.empty(total).tensor_split(processes.size)]
        # Collectives want equal sizes.
        padded = share.new_zeros(max(sizes), *share.shape[1:])
        padded[: len(share)] = share
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return context.processes.share(context.processes.add(gradients[0])), None, None
