"""A frozen or trained backbone: contents in, pooled states of the wanted levels out.

Legend: n contents in the batch, S tokens, K wanted levels, D width, T blocks.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from iisan.backbones.blocks import Pool, find_blocks, pooled_states
from iisan.backbones.levels import Level
from iisan.backbones.loading import Source
from iisan.errors import BackboneError

POOLINGS = ("cls", "mean")


class Backbone(nn.Module):
    """One tower with its preprocessing; use :func:`load_text` or :func:`load_image` to get one.

    Attributes:
        modality: ``"text"`` or ``"image"``.
        pooling: ``"cls"`` or ``"mean"``.
        width: D.
        depth: T, the number of blocks.
    """

    modality: ClassVar[str]

    def __init__(self, tower: nn.Module, source: Source, pooling: str) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise BackboneError(f"pooling {pooling!r}", " or ".join(POOLINGS), "choose one of these")
        config: Any = tower.config
        self.tower = tower
        self.source = source
        self.pooling = pooling
        self._block_path = find_blocks(tower, getattr(config, "num_hidden_layers", None))
        self.depth = len(self._blocks)
        width = getattr(config, "hidden_size", None)
        if not isinstance(width, int):
            raise BackboneError(
                f"'{source.name}' ({type(tower).__name__}) has hidden_size {width!r}",
                "one width for all levels",
                "use a transformer of constant width, not a hierarchical or convolutional model",
            )
        self.width = width

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.tower.get_submodule(self._block_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @cached_property
    def weight_digest(self) -> str:
        """SHA-256 over the tower's parameters as they are when first asked.

        Tensors are hashed one by one and their digests sorted, so that parameter names, which change between
        versions of transformers, do not matter.
        """
        with ThreadPoolExecutor() as pool:
            digests = sorted(pool.map(_tensor_digest, self.tower.parameters()))
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the states' values, as JSON."""
        return {
            "modality": self.modality,
            "backbone": self.source.name,
            "revision": self.source.revision,
            "architecture": type(self.tower).__name__,
            "weight_digest": self.weight_digest,
            "processor_digest": self.processor_digest,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
        }

    @property
    def max_tokens(self) -> int | None:
        """Longest token sequence, special tokens included; ``None`` where contents are not cut."""
        return None

    @property
    def processor_digest(self) -> str:
        """SHA-256 over the preprocessing's settings."""
        raise NotImplementedError

    def prepare(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """Turn n contents into the tower's inputs, on the CPU."""
        raise NotImplementedError

    def lengths(self, contents: Sequence[Any]) -> list[int]:
        """Relative cost of every content, by which they are put into batches."""
        return [1] * len(contents)

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """The pooling for one batch of inputs."""
        raise NotImplementedError

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states of some levels; blocks above the highest are not run.

        Args:
            inputs: what :meth:`prepare` gave, on the tower's device.
            levels: the K wanted levels.

        Returns:
            States [n, K, D] in fp32, in the order of ``levels``.
        """
        return pooled_states(self.tower, self._blocks, inputs, levels, self.pool(inputs), self.width)


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()
