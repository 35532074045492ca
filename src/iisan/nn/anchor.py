"""The anchor: soft-whitened frozen states of the items, fitted once and never trained.

The states of an encoder share directions in which all items vary a lot, such as the length of a text. Whitening
scales these down, after which cosine similarity compares contents. Legend: K levels, D width, A anchor width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from iisan.errors import ConfigError, StoreError

#: Items are projected in blocks of this many rows, padded if fewer, because kernels of matrix products round
#: differently for other shapes: an item that is added again gets its vector bit for bit.
BLOCK = 512
#: Most items whose whitened states determine the directions that are kept in A numbers.
_SAMPLE = 16_384
#: Variance relative to the squared mean below which a level is the same for all items.
_CONSTANT = 1e-10


@dataclass(frozen=True)
class Whitening:
    """Soft whitening of the states of one modality.

    Attributes:
        mean: Mean of each level, ``[K, D]``.
        maps: Rotation and scaling of each level, ``[K, D, D]``; columns of dropped directions are zero.
        basis: Orthonormal basis ``[K·D, A]`` that the concatenated levels are reduced to, or ``[0, 0]`` for none.
    """

    mean: Tensor
    maps: Tensor
    basis: Tensor

    @property
    def width(self) -> int:
        """Anchor width A."""
        return self.basis.shape[1] or self.mean.numel()

    def project(self, states: Tensor) -> Tensor:
        """Project states ``[n, K, D]`` to anchors ``[n, A]`` of length 1, to which all levels contribute alike."""
        if not len(states):
            return states.new_zeros(0, self.width)
        return torch.cat([self._project_block(block) for block in states.split(BLOCK)])

    def _project_block(self, states: Tensor) -> Tensor:
        return self.project_at_once(pad(states, (0, 0, 0, 0, 0, BLOCK - len(states))))[: len(states)]

    def project_at_once(self, states: Tensor) -> Tensor:
        """Project states as ``project`` does, but not in blocks: rounding depends on their number."""
        levels = normalize(self._whiten(states), dim=2).flatten(1)
        return normalize(levels @ self.basis if self.basis.numel() else levels, dim=1)

    def _whiten(self, states: Tensor) -> Tensor:
        """Whiten states ``[n, K, D]`` to ``[n, K, D]``."""
        return torch.bmm((states - self.mean).transpose(0, 1), self.maps).transpose(0, 1)

    def outside(self, states: Tensor) -> float:
        """Share of the variance of states ``[n, K, D]`` that lies in directions that the fit did not see."""
        centred = (states - self.mean).transpose(0, 1)
        # The columns of a map are orthogonal, so its normalised columns are the directions that it keeps.
        kept = torch.bmm(centred, normalize(self.maps, dim=1)).square().sum()
        share = 1 - kept / centred.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
        return float(share.clamp_min(0))


def fit_whitening(
    blocks: Callable[[], Iterable[Tensor]], width: int | None, shrinkage: float, name: str
) -> Whitening:
    """Fit the whitening of a modality in two passes over its states, a block of items at a time.

    Each level is centred, rotated to its principal components, and component c is divided by
    ``√(σ_c² + shrinkage · mean σ²)``. Levels that are the same for all items are left out: their map is zero.

    Args:
        blocks: Function that returns the states of the items, in blocks ``[n, K, D]``.
        width: Anchor width A; None keeps all K·D numbers.
        shrinkage: λ, which limits how much directions of little variance are scaled up.
        name: Modality, for messages.

    Raises:
        ConfigError: There are fewer than two items.
        StoreError: A state is not finite or too large, or all items have the same states.
    """
    without = f"leave {name} out of anchor.modalities, or set anchor to false"
    count = 0
    first = total = products = torch.empty(0)
    for block in blocks():
        if not torch.isfinite(block).all():
            got = f"states of {name} that are infinite or not a number"
            raise StoreError(got, "finite states", f"run `iisan cache` again, or {without}")
        if not count:
            # Sums of differences from a typical state are exact enough in fp32 where sums of states are not.
            first = block.mean(0)
            total = torch.zeros_like(first, dtype=torch.float64)
            products = total[:, :, None] * total[:, None, :]
        shifted = (block - first).transpose(0, 1)
        count += len(block)
        total += shifted.double().sum(1)
        products += torch.bmm(shifted.transpose(1, 2), shifted).double()
    if count < 2:
        got = f"too few items with states of {name} ({count})"
        raise ConfigError(got, "2 or more to fit an anchor on", without)
    if not torch.isfinite(products).all():
        got = f"states of {name} that are so large that their squares are infinite"
        raise StoreError(got, "states of ordinary size", f"scale them before they are imported, or {without}")
    shift = total / count
    mean = (first + shift).float()
    variances, rotations = torch.linalg.eigh(products / count - shift[:, :, None] * shift[:, None, :])
    typical = variances.mean(1, keepdim=True).clamp_min(0)
    varies = typical > _CONSTANT * (first + shift).square().mean(1, keepdim=True)
    if not varies.any():
        cure = f"choose other levels or another pooling and run `iisan cache` again, or {without}"
        raise StoreError(f"the states of {name} are the same for all {count:,} items", "states that differ", cure)
    # At most count - 1 directions vary; variances are in ascending order.
    kept = variances > torch.finfo(torch.float32).eps * variances[:, -1:]
    kept[:, : max(0, mean.shape[1] - (count - 1))] = False
    scales = torch.where(kept & varies, (variances.clamp_min(0) + shrinkage * typical).rsqrt(), 0)
    # Contiguous as they are loaded: kernels round differently for other strides.
    maps = (rotations * scales[:, None, :]).float().contiguous()
    whitening = Whitening(mean, maps, mean.new_empty(0, 0))
    if width is None or width >= mean.numel():
        return whitening
    every = -(-count // _SAMPLE)
    sample = torch.cat([whitening.project(block[::every]) for block in blocks()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        basis = torch.svd_lowrank(sample, q=width)[2]
    return Whitening(whitening.mean, whitening.maps, basis.contiguous())
