"""Why an item has its score for a history: terms of the score, and what each item of the history adds.

Legend: S last items of a history, n of them that are there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from iisan.config import Policy
from iisan.data.sequences import Index, Sequences, padded
from iisan.data.splits import given_queries
from iisan.evaluate.metrics import ranked_rows
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.scorer import Scorer
from iisan.evaluate.terms import TermScorer
from iisan.names import ITEM_ID, PAD, TEXT
from iisan.runs.run import Run
from iisan.runs.similar import SimilarityScorer, similar_items

#: Number of nearest items.
_NEAREST = 3


@dataclass(frozen=True)
class HistoryItem:
    """An item of a history, and its effect on the score of another item.

    Attributes:
        item_id: Item id.
        text: Text of the item, if any.
        anchor: Its part of the anchor's terms, by modality, weights applied. Over the history, these add up to the
            terms.
        change: Change of the whole score when the item is taken out of the history; None if it is the only one.
            The changes do not add up to anything: the learned part is not additive, transitions depend on the last
            item alone, and an older item moves into the last S.
        similarity: Cosine of its anchor with that of the explained item, by modality; None if one of the two lacks
            the modality. Empty for a run without an anchor, as is ``anchor``.
        model_similarity: Cosine of their learned embeddings, averaged over members; None without a learned part,
            or if one of the two is not among the items that a run of ids was trained on.
    """

    item_id: str
    text: str | None
    anchor: dict[str, float]
    change: float | None
    similarity: dict[str, float | None]
    model_similarity: float | None


@dataclass(frozen=True)
class Neighbour:
    """An item that is similar to another one.

    Attributes:
        item_id: Item id.
        text: Text of the item, if any.
        score: Cosine of the two.
    """

    item_id: str
    text: str | None
    score: float


@dataclass(frozen=True)
class Explanation:
    """Why an item has its score for a history.

    Attributes:
        item_id: Id of the explained item.
        text: Its text, if any.
        score: Its score, as the run ranks by it.
        rank: 1 + number of items with a higher score; None if the policy excludes it, as it is in the history.
        tied: Number of other items with the same score.
        policy: Policy of the run, which says what is ranked.
        num_items: Number of items in the catalogue.
        terms: The score as a sum, weights applied: ``member 1`` (the learned part) and further members,
            ``anchor of`` each modality, ``popularity``, ``transitions``, ``repeats``. A run without an anchor has
            the learned part only.
        history: The last S items of the history, as many as the run reads, oldest first. An item that was
            interacted with twice is there twice.
        interactions: Length of the whole history.
        nearest: Most similar items of the catalogue, by ``model`` (learned embeddings) and by modality (anchors),
            as far as the run has these; none where the item lacks them.
    """

    item_id: str
    text: str | None
    score: float
    rank: int | None
    tied: int
    policy: Policy
    num_items: int
    terms: dict[str, float]
    history: tuple[HistoryItem, ...]
    interactions: int
    nearest: dict[str, tuple[Neighbour, ...]]

    def as_json(self) -> dict[str, Any]:
        """Return the explanation as JSON."""
        whole = asdict(self)
        nearest = {by: list(items) for by, items in whole["nearest"].items()}
        return {**whole, "history": list(whole["history"]), "nearest": nearest}


@torch.inference_mode()
def explain(run: Run, history: Index, item: int, compared: Mapping[str, SimilarityScorer]) -> Explanation:
    """Explain the score of an item for a history of one or more item indices, oldest first.

    Args:
        run: A finished run.
        history: Item indices ``[interactions]``.
        item: Index of the item.
        compared: Scorers that find the nearest items.
    """
    scorer: Scorer = run.scorer
    policy, length = run.config.evaluation.policy, scorer.history_length
    sequences = Sequences(np.array([0, len(history) + 1]), np.append(history, item).astype(np.int32))
    query = given_queries(sequences, np.zeros(1, np.int64))
    read = query.histories(length)
    past = read[read != PAD]
    # One item more than is read: it moves in where another one is taken out.
    without = _without_each(history[-length - 1 :], length)[-len(past) :]
    scores = scorer.score(scorer.start(np.concatenate([read, without])), torch.tensor([item]))
    score, *scores_without = scores[:, 0].tolist()
    rows = torch.from_numpy(np.append(item, past))
    terms, parts, similarity = {"member 1": score}, dict[str, list[float]](), dict[str, list[float | None]]()
    if isinstance(scorer, TermScorer):
        terms, parts = _terms(scorer, read, item)
        similarity = {name: _similarities(vectors[rows]) for name, vectors in scorer.anchors.items()}
    embeddings = [normalize(member.items[rows], dim=1) for member in run.members]
    by_model = _similarities(torch.cat(embeddings, dim=1)) if embeddings else [None] * len(past)
    ranked = ranked_rows(query, policy)
    ranks = rank_targets(scorer, query[ranked], policy)
    (item_id, text), *names = run.items[rows.numpy()].select(ITEM_ID, TEXT).rows()
    return Explanation(
        item_id,
        text,
        score,
        rank=int(ranks.above[0]) + 1 if len(ranked) else None,
        tied=int(ranks.ties[0]) - 1 if len(ranked) else 0,
        policy=policy,
        num_items=scorer.num_items,
        terms=terms,
        history=tuple(
            HistoryItem(
                past_id,
                past_text,
                anchor={modality: values[place] for modality, values in parts.items()},
                change=scores_without[place] - score if len(history) > 1 else None,
                similarity={modality: values[place] for modality, values in similarity.items()},
                model_similarity=by_model[place],
            )
            for place, (past_id, past_text) in enumerate(names)
        ),
        interactions=len(history),
        nearest={by: _nearest(run, other, item) for by, other in compared.items()},
    )


def _nearest(run: Run, scorer: SimilarityScorer, item: int) -> tuple[Neighbour, ...]:
    if not scorer.present[item]:
        return ()
    (found,), (cosines,) = similar_items(scorer, run.items, np.array([item]), _NEAREST, run.offered)
    rows = found[found != PAD]
    names = run.items[rows].select(ITEM_ID, TEXT).rows()
    found_cosines = zip(names, cosines.tolist(), strict=False)
    return tuple(Neighbour(item_id, text, cosine) for (item_id, text), cosine in found_cosines)


def terms_of(scorer: Scorer, history: Index, items: Index) -> list[dict[str, float]]:
    """Return the terms of the scores of some items ``[C]`` for a history, as in ``Explanation``."""
    read = padded(history, np.zeros(1, np.int64), np.array([len(history)]), scorer.history_length)
    if isinstance(scorer, TermScorer):
        terms = {name: values[0] for name, values in _weighted(scorer, read, items[None]).items()}
    else:
        terms = {"member 1": scorer.score(scorer.start(read), torch.from_numpy(items))[0].tolist()}
    return [dict(zip(terms, values, strict=True)) for values in zip(*terms.values(), strict=True)]


def _terms(scorer: TermScorer, read: Index, item: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Weighted terms of an item for a history ``[1, S]``, and those of the anchor for each of its items alone."""
    alone = np.where(np.eye(read.shape[1], dtype=bool), read, PAD)[read[0] != PAD]
    histories = np.concatenate([read, alone])
    found = _weighted(scorer, histories, np.full((len(histories), 1), item))
    parts = {name: [values[0] for values in found[f"anchor of {name}"][1:]] for name in scorer.anchors}
    return {name: values[0][0] for name, values in found.items()}, parts


def _weighted(scorer: TermScorer, histories: Index, items: Index) -> dict[str, list[list[float]]]:
    """Weighted terms of items ``[B, C]`` for histories ``[B, S]``, by name."""
    found = scorer.unweighted(histories, items, [scorer.weights.decay])
    return {
        # Adding zero turns -0.0 into 0.0.
        name.partition(",")[0]: (factor * found[name] + 0.0).tolist()
        for name, factor in scorer.weights.factors().items()
    }


def _without_each(items: Index, length: int) -> Index:
    """Take each of n items out in turn: the last ``length`` of the others, left-padded, ``[n, length]``."""
    count = len(items)
    others = np.tile(items, (count, 1))[~np.eye(count, dtype=bool)]
    ends = np.arange(1, count + 1) * (count - 1)
    return padded(others, ends - (count - 1), ends, length)


def _similarities(vectors: Tensor) -> list[float | None]:
    """Cosine of the first of the vectors ``[1 + n, V]`` with each other one, ``[n]``; None where one is zero."""
    known = vectors.any(dim=1)
    cosines = cosine_similarity(vectors[:1], vectors[1:], dim=1)
    both = (known[:1] & known[1:]).tolist()
    return [cosine if present else None for cosine, present in zip(cosines.tolist(), both, strict=True)]
