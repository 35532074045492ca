"""The lists of a run: which items may be in them, and the search that finds these.

Legend: N items of the run, Q queries, k length of a list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from iisan.config import Policy
from iisan.data.conditions import allowed_items, matching
from iisan.data.dataset import Dataset
from iisan.data.filters import Mask
from iisan.data.histories import in_rows_of
from iisan.data.ids import index_of, quoted
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import Queries, whole_histories
from iisan.errors import DataError
from iisan.evaluate.diversity import Distance, Limit, diverse_top_k, limits_per
from iisan.names import ITEM_ID, PAD
from iisan.runs.explain import Explanation, explain
from iisan.runs.run import Run
from iisan.runs.similar import ANCHOR, SimilarityScorer, comparable, similar_items
from iisan.serve.index import open_index
from iisan.serve.search import CellIndex, Lists, search_top_k
from iisan.states.configured import open_dataset


@dataclass(frozen=True)
class Selection:
    """Items that lists may hold, and how they may be combined.

    Attributes:
        policy: ``unseen`` leaves out items of the history.
        allowed: Mask ``[N]`` of the items.
        limits: Largest numbers of items of a kind.
        distance: Least distance of the items of a list.
    """

    policy: Policy
    allowed: Mask
    limits: tuple[Limit, ...] = ()
    distance: Distance | None = None


class ListMaker:
    """Makes lists of a run; all that they need is read at its first use.

    Args:
        run: A finished run, with its additions.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._scorers: dict[str, SimilarityScorer] = {}

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset of the run, or newer interactions of old and new users: for histories and columns of items.

        Raises:
            DataError: The dataset has moved.
        """
        return open_dataset(self.run.config)

    @cached_property
    def sequences(self) -> Sequences:
        """The interactions of the dataset in rows of the run's items; those with other items are left out."""
        return in_rows_of(self.run.items[ITEM_ID], self.dataset)

    @cached_property
    def catalogue(self) -> pl.DataFrame:
        """Columns of the run's items, in their order: those of the dataset, and of items that were added."""
        ids, items = self.run.items.select(ITEM_ID), self.dataset.items
        return self.run.additions.columns(ids.join(items, on=ITEM_ID, how="left", maintain_order="left"))

    @cached_property
    def index(self) -> CellIndex | None:
        """The index of cells, if ``iisan index`` chose one."""
        return open_index(self.run)

    def _scorer_by(self, by: str) -> SimilarityScorer:
        """Scorer of similarity, which is kept: it holds the vectors of all items."""
        if by not in self._scorers:
            self._scorers[by] = SimilarityScorer(self.run, by)
        return self._scorers[by]

    def similar(self, rows: Index, k: int, by: str) -> Lists:
        """List the ``k`` items most similar to each of the items ``rows [Q]``, see ``similar_items``."""
        run = self.run
        return similar_items(self._scorer_by(by), run.items, rows, min(k, len(run.items)), run.offered)

    def explain(self, history: Index, item: int) -> Explanation:
        """Explain the score of an item for a history of item indices."""
        compared = {by: self._scorer_by(by) for by in comparable(self.run) if by != ANCHOR}
        return explain(self.run, history, item, compared)

    def users_with_histories(self) -> Index:
        """Rows of the dataset's users with interactions."""
        return np.flatnonzero(self.sequences.lengths)

    def histories_of(self, users: pl.Series) -> Queries:
        """Return the whole histories of users of the dataset.

        Raises:
            DataError: An unknown user, or one without interactions with items of the run.
        """
        rows, sequences = index_of(self.dataset.user_ids, users.to_list(), "user"), self.sequences
        without = users.filter(pl.Series(sequences.lengths[rows] == 0))
        if len(without):
            got = f"user {quoted(without)} has given queries only, no interactions"
            if self.dataset.sequences.lengths[rows].all():
                got = f"user {quoted(without)} has interactions with unknown items only"
            raise DataError(got, "users with a history", "pass history=[…] (--history)")
        return whole_histories(sequences, rows)

    def select(
        self,
        *,
        filter_viewed: bool = True,
        items_to_recommend: Iterable[Any] | None = None,
        items_to_exclude: Iterable[Any] | None = None,
        where: Mapping[str, Any] | None = None,
        max_per: str | Mapping[str, int] | None = None,
        near_duplicates: float | None = None,
    ) -> Selection:
        """Select the items of lists by the arguments of ``Recommender.recommend``, whose errors it raises."""
        run = self.run
        allowed = allowed_items(run.items[ITEM_ID], items_to_recommend, items_to_exclude) & run.offered
        if where is not None:
            allowed &= matching(self.catalogue, where)
        limits = [] if max_per is None else limits_per(self.catalogue, max_per)
        distance = None
        if near_duplicates is not None:
            distance = Distance(self._scorer_by(ANCHOR).items.cpu().numpy(), near_duplicates)
        return Selection("unseen" if filter_viewed else "all", allowed, tuple(limits), distance)

    def index_for(self, selection: Selection) -> CellIndex | None:
        """The index of cells that finds the items of lists, if there is one: none with limits or a distance."""
        return None if selection.limits or selection.distance is not None else self.index

    def lists(self, queries: Queries, k: int, selection: Selection) -> Lists:
        """List the ``k`` best selected items of every query, ``[Q, min(k, N)]``, as the run ranks them."""
        k, (policy, allowed) = min(k, len(self.run.items)), (selection.policy, selection.allowed)
        if (index := self.index_for(selection)) is not None:
            return search_top_k(index, self.run.scorer, queries, k, policy, allowed)
        limits, distance = selection.limits, selection.distance
        return diverse_top_k(self.run.scorer, queries, k, policy, allowed, limits=limits, distance=distance)

    def table(self, names: pl.Series, column: str, lists: Lists) -> pl.DataFrame:
        """Table of lists ``[Q, k]``, one for each of the ``names [Q]``, with the ids of the items in a column."""
        items, scores = lists
        query, position = np.nonzero(items != PAD)
        columns = {
            names.name: names.gather(query),
            column: self.run.items[ITEM_ID].gather(items[query, position]),
            "score": scores[query, position],
            "rank": position + 1,
        }
        return pl.DataFrame(columns)

    def check_some(self, rows: int) -> None:
        """Raise a ``DataError`` if lists have no ``rows``."""
        if not rows:
            got = f"history and filters leave none of the {self.run.num_offered:,} items"
            raise DataError(got, "at least one to recommend", "relax the filters")
