"""The best achievable recommendations on the synthetic catalogue, computed from the process itself.

For the leave-one-out test subset, scores are exactly ``P(next item | history)`` under the process, so no ranking
by the history alone has a higher expected HR@k or NDCG@k. Exactness requires that a history lies before the launch
and its next step after it; for validation queries, which lie before the launch, pass ``launched=False``.
"""

import numpy as np
import torch

from iisan.data.sequences import Index
from iisan.demo.catalogue import Catalogue
from iisan.demo.process import Floats, Process
from iisan.errors import DataError
from iisan.names import PAD


def next_item_probabilities(
    process: Process, histories: Index, launched: bool = True, attributes: tuple[str, ...] | None = None
) -> Floats:
    """Compute ``P(next item | history)`` by forward filtering over the hidden styles.

    Args:
        process: Behaviour of the users.
        histories: Complete histories ``[B, S]`` of item numbers, oldest first, left-padded with ``PAD``.
        launched: Whether new items are available at the next step.
        attributes: Names of the known attributes; the others are assumed to have no effect. Defaults to all.

    Returns:
        Probabilities ``[B, N]``; rows sum to 1, items of the history have probability 0.
    """
    after = process.attraction(attributes)
    before = after * ~process.is_new
    total = after.sum(axis=1)
    total_before = before.sum(axis=1)
    belief = np.tile(process.initial, (len(histories), 1))
    seen = np.zeros_like(belief)
    seen_before = np.zeros_like(belief)
    for items in histories.T:
        rows = np.flatnonzero(items != PAD)
        chosen = items[rows]
        is_new = process.is_new[chosen, None]
        attraction = after[:, chosen].T
        available = np.where(is_new, total - seen[rows], total_before - seen_before[rows])
        posterior = belief[rows] * attraction / available
        posterior /= posterior.sum(axis=1, keepdims=True)
        belief[rows] = posterior @ process.transitions
        seen[rows] += attraction
        seen_before[rows] += before[:, chosen].T
    attraction, available = (after, total - seen) if launched else (before, total_before - seen_before)
    probabilities = (belief / available) @ attraction
    rows, columns = np.nonzero(histories != PAD)
    probabilities[rows, histories[rows, columns]] = 0.0
    return probabilities


class OracleScorer:
    """Scores every item by its true probability of being next.

    Args:
        catalogue: The synthetic catalogue.
        item_order: Ids of the dataset's items in row order; histories and scores refer to these rows.
        launched: See ``next_item_probabilities``; also ``attributes``.

    Raises:
        DataError: An item of ``item_order`` is not in the catalogue.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        item_order: list[str],
        launched: bool = True,
        attributes: tuple[str, ...] | None = None,
    ) -> None:
        numbers = {item: number for number, item in enumerate(catalogue.item_ids)}
        unknown = [item for item in item_order if item not in numbers]
        if unknown:
            raise DataError(
                f"item '{unknown[0]}'",
                f"one of the {len(numbers)} items of the catalogue with seed {catalogue.seed}",
                "use the catalogue that the dataset was made from",
            )
        self.num_items = len(item_order)
        # The filter needs complete histories.
        self.history_length = int(catalogue.log.lengths.max())
        self._process = catalogue.process
        self._numbers = np.array([numbers[item] for item in item_order], dtype=np.int64)
        self._launched = launched
        self._attributes = attributes

    def start(self, histories: Index) -> torch.Tensor:
        """Compute the probabilities for complete histories ``[B, S]``, left-padded with ``PAD``."""
        numbers = np.where(histories == PAD, PAD, self._numbers[histories])
        probabilities = next_item_probabilities(self._process, numbers, self._launched, self._attributes)
        return torch.from_numpy(probabilities[:, self._numbers].astype(np.float32))

    def score(self, query: torch.Tensor, items: torch.Tensor | slice) -> torch.Tensor:
        """Return a copy of the probabilities of some items (row numbers or a slice), ``[B, n]`` float32."""
        return query[:, items].clone()
