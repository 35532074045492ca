"""From frozen states to the terms beside the learned score: fit, choose weights, save and load.

The keys of the tensors are those in the ``model.safetensors`` of a run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from iisan.config import Config, Policy
from iisan.data.dataset import Dataset
from iisan.data.splits import Queries, Split
from iisan.errors import DataError, StoreError
from iisan.evaluate.scorer import EmbeddingScorer, Scorer
from iisan.evaluate.terms import TermScorer, Transitions, Weights, smoothing, transition_shares
from iisan.evaluate.weights import Choice, choose_weights
from iisan.machine import choose_device
from iisan.nn.anchor import BLOCK, Whitening, fit_whitening
from iisan.states.configured import anchor_config, open_stores, state_source
from iisan.states.sources import StateSource
from iisan.states.store import StateStore

#: Names of the two parts of an anchored run, in results and tables.
LEARNED, SIMILARITY = "learned part alone", "similarity"
#: Prefixes of the tensors of the terms.
ANCHOR, TERMS = "anchor.", "terms."
#: Items read at a time while the anchor is fitted.
_READ = 4 * BLOCK
#: Weights from which the search without a learned part starts.
_START = Weights(decay=0.7, popularity=0.05, transitions=1.0)
#: Weights of the anchors, relative to a learned part's, from which the search with one starts: it ends in a local
#: optimum, and learned scores are of different sizes.
_BESIDE_LEARNED = (1.0, 4.0, 16.0)


@dataclass(frozen=True)
class Anchoring:
    """The terms of a catalogue, fitted on frozen states and training interactions.

    Attributes:
        whitenings: Whitening of each modality, which also projects other states of the items.
        scorer: Scorer of these terms, without a learned part.
    """

    whitenings: dict[str, Whitening]
    scorer: TermScorer

    def beside(self, learned: Sequence[EmbeddingScorer], weights: Weights) -> TermScorer:
        """Return a scorer that adds the terms to the scores of trained members."""
        own = self.scorer
        return TermScorer(learned, own.anchors, own.counts, own.transitions, weights, own.history_length)

    def parts(self, learned: Sequence[EmbeddingScorer], weights: Weights) -> dict[str, Scorer]:
        """Return the learned part and the terms, each alone: name -> scorer."""
        anchor = dict.fromkeys(self.scorer.anchors, 0.0)
        alone = self.beside(learned, Weights(weights.learned, anchor)) if len(learned) > 1 else learned[0]
        return {LEARNED: alone, SIMILARITY: self.scorer}

    def of_states(self, source: StateSource) -> "Anchoring":
        """Return the terms of the same weights, whitenings and interactions for other states of the items."""
        anchors = item_anchors(source, self.whitenings, self.scorer.num_items)
        own = self.scorer
        transitions = Transitions(own.transitions.shares, smoothing(anchors))
        scorer = TermScorer((), anchors, own.counts, transitions, own.weights, own.history_length)
        return replace(self, scorer=scorer)

    def choose(
        self, learned: Sequence[EmbeddingScorer], queries: Queries, policy: Policy, metric: str
    ) -> tuple[TermScorer, Choice]:
        """Choose the weights beside trained members, starting from multiples of those without members."""
        own = self.scorer.weights
        starts = [own] if not learned else [_beside(own, len(learned), factor) for factor in _BESIDE_LEARNED]
        scorer = self.beside(learned, starts[0])
        choice = choose_weights(scorer, queries, policy, metric, starts)
        return scorer.reweighted(choice.weights), choice

    def tensors(self) -> dict[str, Tensor]:
        """Return whitenings, anchors, counts and transitions as named tensors."""
        found = {TERMS + "counts": self.scorer.counts}
        for name, whitening in self.whitenings.items():
            parts = {**vars(whitening), "vectors": self.scorer.anchors[name]}
            found |= {f"{ANCHOR}{name}.{part}": tensor.cpu().contiguous() for part, tensor in parts.items()}
        for name, matrix in vars(self.scorer.transitions).items():
            for part in ("data", "indices", "indptr"):
                found[f"{TERMS}{name}.{part}"] = torch.from_numpy(getattr(matrix, part))
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], weights: Weights, length: int) -> "Anchoring":
        """Return what ``tensors`` was called on.

        Raises:
            KeyError: A tensor is absent.
            ValueError: A sparse matrix is not valid.
        """
        counts = tensors[TERMS + "counts"]
        whitenings, anchors = {}, {}
        for name in weights.anchor:
            parts = {part: tensors[f"{ANCHOR}{name}.{part}"] for part in ("mean", "maps", "basis", "vectors")}
            anchors[name] = parts.pop("vectors")
            whitenings[name] = Whitening(**parts)
        matrices = {}
        for name, rows in (("shares", len(counts)), ("neighbours", len(counts) + 1)):
            arrays = tuple(tensors[f"{TERMS}{name}.{part}"].numpy() for part in ("data", "indices", "indptr"))
            matrices[name] = sparse.csr_array(arrays, shape=(rows, len(counts)))
            # scipy would read and write memory at indices of no item.
            matrices[name].check_format()
        transitions = Transitions(**matrices)
        return cls(whitenings, TermScorer((), anchors, counts, transitions, weights, length))


def _beside(weights: Weights, members: int, factor: float) -> Weights:
    """Weights of terms times a factor, which is that of the anchors together, beside members of weight 1."""
    unit = factor * members / (sum(weights.anchor.values()) or 1.0)
    scaled = {name: unit * getattr(weights, name) for name in ("popularity", "transitions", "repeats")}
    anchor = {name: unit * weight for name, weight in weights.anchor.items()}
    return replace(weights, learned=(1.0,) * members, anchor=anchor, **scaled)


def frozen_states(config: Config, dataset: Dataset, stores: Mapping[str, StateStore] | None = None) -> StateSource:
    """Open the frozen states that the anchor of a resolved configuration is fitted on; see ``anchor_config``.

    Args:
        config: Configuration.
        dataset: Items whose states are read.
        stores: Stores by modality instead of those of the configuration.

    Raises:
        StoreError: They are not stored, or were made with other settings.
    """
    frozen = anchor_config(config)
    try:
        source = state_source(frozen, dataset, open_stores(frozen) if stores is None else stores)
    except StoreError as error:
        if config.items.kind == "none":
            raise
        raise StoreError(error.got, error.expected, f"{error.cure}, or set anchor to false") from None
    source.eval()
    if not source.stored:
        # Live encoders compute all states once, on the device of the run.
        source.hold(True)
        device = choose_device(config.training.device)
        source.to(device)(torch.empty(0, dtype=torch.int64, device=device))
    return source


@torch.inference_mode()
def fit_anchoring(config: Config, dataset: Dataset, split: Split, source: StateSource) -> Anchoring:
    """Fit the terms of a resolved configuration on its frozen states and the training part of a split.

    Raises:
        ConfigError: There are fewer than two items with states of a modality.
        StoreError: The states of a modality are not finite, or the same for all items.
    """
    settings, items = config.anchor, torch.arange(dataset.num_items)

    def blocks(name: str) -> Iterator[Tensor]:
        for rows in items.split(_READ):
            hidden = source(rows).modalities[name]
            if len(hidden.positions):
                yield hidden.whole()

    whitenings = {
        name: fit_whitening(partial(blocks, name), settings.width, settings.shrinkage, name)
        for name in source.widths
    }
    anchors = item_anchors(source, whitenings, len(items))
    transitions = Transitions(transition_shares(split), smoothing(anchors))
    weights = replace(_START, anchor=dict.fromkeys(anchors, 1.0))
    counts = torch.from_numpy(np.asarray(split.train_counts()))
    return Anchoring(whitenings, TermScorer((), anchors, counts, transitions, weights, config.sequence.max_length))


def item_anchors(source: StateSource, whitenings: Mapping[str, Whitening], count: int) -> dict[str, Tensor]:
    """Project the states of N = ``count`` items: modality -> anchors ``[N, A]``, zero for items without it."""
    anchors = {name: torch.zeros(count, whitening.width) for name, whitening in whitenings.items()}
    for rows in torch.arange(count).split(_READ):
        for name, hidden in source(rows).modalities.items():
            anchors[name][rows[hidden.positions]] = whitenings[name].project(hidden.whole())
    return anchors


def fit_similarity(
    config: Config, dataset: Dataset, split: Split, validation: Queries, source: StateSource
) -> tuple[Anchoring, Choice]:
    """Fit the terms and choose their weights without a learned part.

    Raises:
        DataError: The split has no validation query.
    """
    if not len(validation):
        raise DataError(
            "no validation query, to choose the weights of the terms on", "at least one", "set anchor to false"
        )
    anchoring = fit_anchoring(config, dataset, split, source)
    evaluation = config.evaluation
    scorer, choice = anchoring.choose((), validation, evaluation.policy, evaluation.select)
    return replace(anchoring, scorer=scorer), choice
