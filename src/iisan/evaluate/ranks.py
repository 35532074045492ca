"""Full-catalogue ranking and top-k lists, in blocks of items: memory is ``O(batch × block)``.

Duplicate items must tie exactly, whatever the rounding of floating-point sums. So all scores of a batch of users,
including those of the targets, come from calls of one shape.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from iisan.config import Policy
from iisan.data.filters import Mask
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.errors import ConfigError, RunError
from iisan.evaluate.metrics import Ranks, target_seen
from iisan.evaluate.scorer import DIVERGED, ItemScores, Scorer
from iisan.names import PAD
from iisan.progress import track

#: Counts of a block are summed in float32 (several times faster than in integers), which is exact up to this size.
MAX_BLOCK = 2**24
#: Columns of which only the best is compared at first, where a block is wide.
_CHUNK = 64


@torch.inference_mode()
def rank_targets(
    scorer: Scorer, queries: Queries, policy: Policy, *, batch: int = 128, block: int = 32768
) -> Ranks:
    """Count, for every query, the items scored above its target and those tied with it.

    All ``N`` items compete, except those that the policy excludes, which score -inf:

    - ``unseen`` excludes the whole history, not only the part that the scorer reads. Queries whose target is in it
      have no rank and must be left out before, see ``ranked_rows``.
    - ``all`` excludes nothing (IISAN).
    - ``exclude-all`` is ``unseen``, but a target in its own history is ranked, tied with the rest of the history
      at the very end: a forced miss (published code).

    ``batch`` users and at most ``block`` items are scored at a time.

    Raises:
        RunError: A score is NaN or +inf.
        ConfigError: ``batch`` or ``block`` is out of range, or a query is one that the policy leaves out.
    """
    above, ties = np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64)
    width = _width(scorer, block)
    flags: Tensor | None = None  # One buffer for all blocks: new memory costs more than the comparison.
    for rows, chunk in batches(queries, batch):
        query = scorer.start(chunk.histories(scorer.history_length))
        if policy == "unseen" and target_seen(chunk).any():
            got = "queries whose target is in their own history, under the policy unseen"
            raise ConfigError(got, "queries without them", "leave them out with ranked_rows")
        target_scores: Tensor | None = None
        if width < scorer.num_items:
            target_scores = _target_scores(scorer, query, chunk.targets, width)
            if policy == "exclude-all":
                target_scores[torch.from_numpy(target_seen(chunk)).to(target_scores.device)] = -torch.inf
        not_below = higher = torch.zeros(len(chunk), dtype=torch.int64)
        for start, scores in _blocks(scorer, query, excluded_pairs(chunk, policy), width):
            inside = np.flatnonzero((chunk.targets >= start) & (chunk.targets < start + scores.shape[1]))
            own = _indices(inside, chunk.targets[inside] - start, scores.device)
            if target_scores is None:
                # One block is the whole catalogue, so the targets' scores are in it.
                target_scores = scores[own]
            else:
                scores[own] = target_scores[own[0]]
            if flags is None:
                flags = scores.new_empty(batch * width)
            flag = flags[: scores.numel()].view(scores.shape)
            bar = target_scores[:, None]
            not_below = not_below + torch.ge(scores, bar, out=flag).sum(1).long().cpu()
            higher = higher + torch.gt(scores, bar, out=flag).sum(1).long().cpu()
        above[rows], ties[rows] = higher.numpy(), (not_below - higher).numpy()
    return Ranks(above, ties)


@torch.inference_mode()
def top_k(
    scorer: Scorer,
    queries: Queries,
    k: int,
    policy: Policy = "unseen",
    allowed: Mask | None = None,
    *,
    batch: int = 128,
    block: int = 32768,
) -> tuple[Index, npt.NDArray[np.float32]]:
    """List the ``k`` best items of every query, whatever its target; of equal scores the lower index comes first.

    ``policy``, ``batch`` and ``block`` are those of ``rank_targets``. Of the items, only those of the mask
    ``allowed [N]`` are listed, by default all.

    Returns:
        Item indices ``[Q, k]``, best first, and their scores; ``PAD`` and -inf where no item is left.

    Raises:
        RunError: A score is NaN or +inf.
        ConfigError: ``k``, ``batch`` or ``block`` is out of range.
    """
    check_length(k)
    items = np.full((len(queries), k), PAD, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for rows, chunk in batches(queries, batch):
        query = scorer.start(chunk.histories(scorer.history_length))
        excluded = excluded_pairs(chunk, policy)
        items[rows], scores[rows] = best_items(scorer, query, k, allowed, excluded, block=block)
    return items, scores


@torch.inference_mode()
def best_items(
    scorer: ItemScores,
    query: Any,
    k: int,
    allowed: Mask | None = None,
    excluded: tuple[Index, Index] | None = None,
    *,
    block: int = 32768,
) -> tuple[Index, npt.NDArray[np.float32]]:
    """List the ``k`` best items for each of the B users of a query, as ``top_k`` does.

    Args:
        scorer: Scorer of the query.
        query: Query of the scorer.
        k: Number of items per list.
        allowed: Mask ``[N]`` of the listed items, by default all.
        excluded: Pairs of a user's number and an item that are left out, by ascending item.
        block: Most items that are scored at a time.
    """
    width = _width(scorer, block)
    barred = None if allowed is None or allowed.all() else torch.from_numpy(~allowed)
    nothing = np.empty(0, np.int64)
    best: tuple[Tensor, Tensor] | None = None
    for start, scores in _blocks(scorer, query, excluded or (nothing, nothing), width):
        if barred is not None:
            barred = barred.to(scores.device)
            scores.masked_fill_(barred[start : start + scores.shape[1]], -torch.inf)
        values, columns = _top_of_block(scores, min(k, scores.shape[1]))
        if best is None:
            best = values, columns + start
            continue
        # Earlier blocks hold lower indices and stand first, so a stable sort keeps the order of ties.
        merged = torch.cat([best[0], values], 1).sort(dim=1, descending=True, stable=True)
        found = torch.cat([best[1], columns + start], 1).gather(1, merged.indices)
        best = merged.values[:, :k], found[:, :k]
    assert best is not None
    values, found = best[0].cpu(), best[1].cpu()
    free = (0, k - values.shape[1])
    items = pad(torch.where(values == -torch.inf, PAD, found), free, value=PAD)
    return items.numpy(), pad(values, free, value=-torch.inf).numpy()


def check_length(k: int) -> None:
    """Raise a ``ConfigError`` if no list has ``k`` items."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"lists of {k!r} items", "1 item or more", "ask for a positive number of items")


def check_scores(scores: Tensor, of: str) -> None:
    """Raise a ``RunError`` if a score is NaN or +inf; ``of`` names the items."""
    # amax copies no scores that lie apart in memory, as max does.
    if not scores.amax() < torch.inf:
        got = f"a score of {of} is NaN or infinite"
        raise RunError(got, "finite scores, or -inf for an item that must not be recommended", DIVERGED)


def _width(scorer: ItemScores, block: int) -> int:
    if not 1 <= block <= MAX_BLOCK:
        raise ConfigError(f"blocks of {block} items", f"1 to {MAX_BLOCK}", "choose a block such as 32768")
    # As few blocks as may be, and as even: the last one overlaps the one before.
    return math.ceil(scorer.num_items / math.ceil(scorer.num_items / block))


def batches(queries: Queries, batch: int) -> Iterator[tuple[slice, Queries]]:
    """Yield ``batch`` queries at a time, with their place among all."""
    if batch < 1:
        raise ConfigError(f"batches of {batch} users", "1 or more", "choose a batch such as 512")
    for first in track(range(0, len(queries), batch), "ranking"):
        rows = slice(first, min(first + batch, len(queries)))
        yield rows, queries[rows]


def excluded_pairs(queries: Queries, policy: Policy) -> tuple[Index, Index]:
    """Return the pairs of a query and an item that a policy excludes, by ascending item."""
    if policy == "all":
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows, items = queries.seen()
    order = np.argsort(items, kind="stable")
    return rows[order], items[order]


def _blocks(
    scorer: ItemScores, query: Any, excluded: tuple[Index, Index], width: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the catalogue in blocks: ``(first item, scores [B, n] with excluded items at -inf)``."""
    rows, items = excluded
    for first in range(0, scorer.num_items, width):
        # The last block overlaps the one before instead of being shorter, so that all calls have one shape.
        origin = min(first, scorer.num_items - width)
        scores = scorer.score(query, slice(origin, origin + width))
        check_scores(scores, f"items {origin} to {origin + width - 1}")
        here = slice(*np.searchsorted(items, (first, origin + width)))
        scores[_indices(rows[here], items[here] - origin, scores.device)] = -torch.inf
        yield first, scores[:, first - origin :]


def _target_scores(scorer: Scorer, query: Any, targets: Index, width: int) -> Tensor:
    """Score every query's own target, ``[B]``, in calls of the same shape as those of the blocks."""
    scores = []
    for first in range(0, len(targets), width):
        some = targets[first : first + width]
        items = torch.from_numpy(np.pad(some, (0, width - len(some))))
        scores.append(scorer.score(query, items)[first : first + width].diagonal())
    return torch.cat(scores)


def _top_of_block(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best ``k`` values and columns of every row, ``[B, k]``; ties by ascending column.

    In a wide block they are searched in the ``k`` best chunks of columns: any other one has ``k`` better columns,
    or equal ones before it.
    """
    wide = scores.shape[1] - scores.shape[1] % _CHUNK
    if wide < 4 * k * _CHUNK:
        return _best_columns(scores, k)
    best = scores[:, :wide].unflatten(1, (-1, _CHUNK)).amax(2)
    chunks = _best_columns(best, k)[1].sort(dim=1).values
    among = (chunks[:, :, None] * _CHUNK + torch.arange(_CHUNK, device=scores.device)).flatten(1)
    rest = torch.arange(wide, scores.shape[1], device=scores.device).expand(len(scores), -1)
    among = torch.cat([among, rest], 1)
    values, places = _best_columns(scores.gather(1, among), k)
    return values, among.gather(1, places)


def _best_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return what ``_top_of_block`` does, by comparing all columns."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    worst = values[:, k - 1 : k]
    columns = columns[:, :k]
    if values.shape[1] > k:
        # The choice is ambiguous only where the best column left out equals the worst one chosen.
        tied = (values[:, k] == worst[:, 0]).nonzero()[:, 0]
        if len(tied):
            columns[tied] = _lowest_columns(scores[tied], worst[tied], k)
    columns = columns.sort(dim=1).values
    best = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return best.values, columns.gather(1, best.indices)


def _lowest_columns(scores: Tensor, worst: Tensor, k: int) -> Tensor:
    """Return the columns above ``worst`` and the first of those equal to it, ``k`` per row, ascending."""
    better, equal = scores > worst, scores == worst
    wanted = k - better.sum(1, keepdim=True)
    taken = better | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted))
    return taken.nonzero()[:, 1].view(-1, k)


def _indices(rows: Index, columns: Index, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
