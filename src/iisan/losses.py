"""Cross-entropy over candidate items, debiased by how likely each was to become a candidate."""

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
    """Debiased cross-entropy over distinct items (P1 eqs. 4–5), equal to the one over batch slots.

    A candidate j that stands in several slots counts several times, so ``log multiplicity_j`` is added to
    its logit; the target counts once. Logits are ``ŷ − log q``, q the probability with which an item becomes a
    candidate: its popularity among the batch's own items, mixed with uniform draws where there are any.

    Args:
        queries: ``[P, E]``, one per position that is predicted.
        targets: ``[P]`` index of the target among the U candidates.
        items: ``[U, E]`` embeddings of the distinct candidates.
        log_q: ``[U]``.
        log_multiplicity: ``[U]``.
        excluded: ``[P, U]`` true where a candidate is no negative for the position; ignored at its target.
        reduction: over positions.

    Returns:
        Scalar in nats.
    """
    logits = (queries @ items.T).float() + (log_multiplicity - log_q)
    target = targets[:, None]
    own = logits.gather(1, target) - log_multiplicity[target]
    logits = logits.masked_fill(excluded, -torch.inf).scatter(1, target, own)
    return nn.functional.cross_entropy(logits, targets, reduction=reduction)
