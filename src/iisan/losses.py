"""Cross-entropy over candidate items, debiased by their sampling probabilities."""

from typing import Literal

import torch
from torch import Tensor, nn


def candidate_cross_entropy(
    queries: Tensor,
    targets: Tensor,
    items: Tensor,
    log_q: Tensor,
    log_multiplicity: Tensor,
    excluded: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Debiased cross-entropy over distinct items (IISAN, eqs. 4–5), equal to the one over batch slots.

    A candidate j in several slots counts once per slot, so ``log multiplicity_j`` is added to its logit; the
    target counts once. Logits are ``ŷ − log q`` with q the sampling probability of an item: its popularity, mixed
    with the uniform distribution if there are extra negatives.

    Args:
        queries: Query vectors ``[P, E]``, one per predicted position.
        targets: Indices ``[P]`` of the targets among the U candidates.
        items: Embeddings ``[U, E]`` of the distinct candidates.
        log_q: Log sampling probabilities ``[U]``.
        log_multiplicity: Log numbers of slots ``[U]``.
        excluded: Mask ``[P, U]``, true where a candidate is not a negative of the position; ignored at the target.
        reduction: Reduction over positions.

    Returns:
        The scalar loss in nats.
    """
    logits = (queries @ items.T).float() + (log_multiplicity - log_q)
    target = targets[:, None]
    own = logits.gather(1, target) - log_multiplicity[target]
    logits = logits.masked_fill(excluded, -torch.inf).scatter(1, target, own)
    return nn.functional.cross_entropy(logits, targets, reduction=reduction)
