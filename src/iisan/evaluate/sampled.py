"""Sampled metrics: the target among a few drawn items instead of the whole catalogue.

They are biased, and may order two models the other way round than the full ranking does (Krichene & Rendle 2020,
"On sampled metrics for item recommendation"). They are here to compare with numbers that others published.
"""

import numpy as np
import torch

from iisan.config import Policy
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.errors import ConfigError
from iisan.evaluate.metrics import Ranks, target_seen
from iisan.evaluate.ranks import batches, check_scores
from iisan.evaluate.scorer import Scorer

#: Prefix of metrics of sampled ranks.
SAMPLED = "sampled_"
#: Most items, targets and drawn ones, that are scored at a time.
_ITEMS = 32768


def draw_negatives(queries: Queries, count: int, policy: Policy, num_items: int) -> Index:
    """Draw items for each query, uniformly and without replacement, from those that compete with its target.

    The seed is fixed, so every scorer is compared with the same items.

    Returns:
        Item indices ``[Q, count]``, none of which is the target or, unless the policy is ``all``, in the history.

    Raises:
        ConfigError: ``count`` is not positive, or a query has fewer candidates.
    """
    rng = np.random.default_rng(0)
    drawn = np.empty((len(queries), count), np.int64)
    items = queries.sequences.items
    for row, (start, end, target) in enumerate(zip(queries.starts, queries.ends, queries.targets, strict=True)):
        history = items[start:end] if policy != "all" else ()
        excluded = np.unique(np.append(history, target)).astype(np.int64)
        candidates = num_items - len(excluded)
        if not 1 <= count <= candidates:
            got, expected = f"{count:,} sampled items", f"1 to {candidates:,}, the candidates of each query"
            raise ConfigError(got, expected, "sample fewer, or use the full ranking")
        chosen = rng.choice(candidates, count, replace=False, shuffle=False)
        # Number of excluded items below the n-th candidate: those with fewer than n candidates below them.
        below = np.searchsorted(excluded - np.arange(len(excluded)), chosen, side="right")
        drawn[row] = chosen + below
    return drawn


@torch.inference_mode()
def rank_among_sampled(scorer: Scorer, queries: Queries, count: int, policy: Policy) -> Ranks:
    """Rank every target among ``count`` drawn items, see ``draw_negatives``.

    Under ``exclude-all`` a target in its own history comes last, as in ``rank_targets``.

    Raises:
        RunError: A score is NaN or +inf.
        ConfigError: See ``draw_negatives``.
    """
    negatives = draw_negatives(queries, count, policy, scorer.num_items)
    above, ties = np.empty(len(queries), np.int64), np.empty(len(queries), np.int64)
    for rows, chunk in batches(queries, max(1, _ITEMS // (count + 1))):
        query = scorer.start(chunk.histories(scorer.history_length))
        candidates = np.column_stack([chunk.targets, negatives[rows]])
        items, columns = np.unique(candidates, return_inverse=True)
        # All from one call, so that equal items tie exactly.
        scores = scorer.score(query, torch.from_numpy(items)).cpu()
        check_scores(scores, "a sampled item")
        own = scores.gather(1, torch.from_numpy(columns.reshape(candidates.shape))).numpy()
        above[rows] = (own[:, 1:] > own[:, :1]).sum(1)
        ties[rows] = (own == own[:, :1]).sum(1)
    if policy == "exclude-all":
        seen = target_seen(queries)
        above[seen], ties[seen] = count, 1
    return Ranks(above, ties)
