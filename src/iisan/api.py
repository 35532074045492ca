"""The Python interface: fit, recommend, save, load."""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from iisan.config import Config
from iisan.data.dataset import Dataset, index_of
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import Queries
from iisan.errors import DataError, RunError
from iisan.evaluate.ranks import top_k
from iisan.names import ITEM_ID, PAD, TEXT, USER_ID
from iisan.recipes import load_config
from iisan.runs.explain import Explanation, explain
from iisan.runs.run import Run
from iisan.states.configured import open_dataset
from iisan.train.run import train


class Recommender:
    """A trained recommender of next items for known users and for any history.

    Args:
        run: A finished run.

    Example:
        >>> recommender = Recommender.load("my-run")  # doctest: +SKIP
        >>> recommender.recommend(history=["B005FU5HFI"], k=5)  # doctest: +SKIP
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @classmethod
    def fit(
        cls,
        dataset: Dataset | str | Path,
        states: str | Path | None = None,
        *,
        config: Config | str | Path | None = None,
        out: str | Path | None = None,
        overrides: Iterable[str] = (),
        start: "Recommender | None" = None,
    ) -> "Recommender":
        """Train on a dataset and its cached states.

        Args:
            dataset: Dataset or its folder.
            states: Folder of state stores; defaults to the configured one. Not needed for item ids.
            config: Name of a recipe, YAML file, or configuration. Defaults to that of ``start``, else to
                ``default``.
            out: Run folder. Defaults to a temporary folder, which ``save`` copies.
            overrides: ``key.key=value`` settings, such as ``"training.epochs=5"``.
            start: Recommender of the same model that provides the initial weights; the dataset may have new
                interactions and other items.

        Raises:
            IisanError: Any invalid input, described in one sentence.
        """
        folder = Path(out).resolve() if out is not None else Path(tempfile.mkdtemp(prefix="iisan-run-"))
        if isinstance(dataset, Dataset) and dataset.folder is None:
            dataset = _saved(dataset, folder.with_name(folder.name + "-dataset"))
        path = dataset.folder if isinstance(dataset, Dataset) else Path(dataset)
        earlier = start.run if start else None
        config = config or (earlier.config if earlier else "default")
        chosen = config if isinstance(config, Config) else load_config(config)
        given = {"dataset": path} | ({} if states is None else {"states": Path(states)})
        if isinstance(dataset, Dataset):
            given["images"] = dataset.image_root
        chosen = chosen.override(overrides).model_copy(update=given)
        train(chosen, folder, start=earlier)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path, dataset: str | Path | None = None) -> "Recommender":
        """Open a run folder of ``fit``, ``save`` or ``iisan train``, whose dataset may have moved to ``dataset``.

        Raises:
            RunError: The run does not exist, is unfinished or damaged.
        """
        run = Run.load(folder)
        if dataset is not None:
            run = replace(run, config=run.config.model_copy(update={"dataset": Path(dataset)}))
        return cls(run)

    def save(self, folder: str | Path) -> None:
        """Copy the run folder to ``folder``, which must not exist.

        Raises:
            RunError: The folder exists.
        """
        target = Path(folder)
        if target.exists():
            raise RunError(f"'{target}' exists already", "a new folder", "choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as aside:
            shutil.copytree(self.run.folder, Path(aside) / "run").rename(target)

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics of the best epoch, as shares of 1; the protocol is in ``run.result``."""
        return dict(self.run.result["test"])

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset of the run, needed for known users only.

        Raises:
            DataError: The dataset has moved, or has other items now.
        """
        dataset = open_dataset(self.run.config)
        self.run.check_items(dataset)
        return dataset

    @property
    def item_embeddings(self) -> np.ndarray[Any, Any]:
        """Learned item embeddings ``[N, E]``, fp32, in the order of ``run.items``.

        Raises:
            RunError: The run has no learned part, or several.
        """
        return self.run.only_member().items.cpu().numpy()

    def recommend(
        self,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        k: int = 10,
        include_seen: bool = False,
    ) -> pl.DataFrame:
        """Recommend the ``k`` best next items for one user or one history.

        Args:
            user: User of the dataset, whose history is all interactions.
            history: Item ids, oldest first, instead of a user.
            k: Number of items.
            include_seen: Whether items of the history may be recommended again.

        Returns:
            Table of ``rank`` from 1, ``item_id``, ``score`` (as the run ranks by it), ``text``.

        Raises:
            DataError: Unknown user or item, an empty history or a string, or neither or both arguments.
        """
        sequences, users = self._asked(user, history)
        return self._lists(sequences, users, k, include_seen).drop("query")

    def explain(self, item: str, *, user: str | None = None, history: Sequence[str] | None = None) -> Explanation:
        """Explain the score of any item for one user or one history, given as in ``recommend``.

        Raises:
            DataError: Unknown user or item, an empty history or a string, or neither or both of user and history.
        """
        sequences, users = self._asked(user, history)
        start, end = sequences.offsets[users[0] : users[0] + 2]
        row = index_of(self.run.items[ITEM_ID], [item], "item")[0]
        return explain(self.run, sequences.items[start:end].astype(np.int64), int(row))

    def _asked(self, user: str | None, history: Sequence[str] | None) -> tuple[Sequences, Index]:
        """Find the history of a user, or of given items: sequences, and the number of one of them, ``[1]``."""
        if (user is None) == (history is None):
            raise DataError(
                "neither or both of user and history are given", "one of them", "pass user=… or history=[…]"
            )
        if isinstance(history, str):
            raise DataError(f"the history '{history}' is a string", "a sequence of item ids", "pass history=[…]")
        if history is None:
            sequences, users = self.dataset.sequences, np.array([self.dataset.user_index(str(user))])
            if not sequences.lengths[users[0]]:
                got = f"the user '{user}' has given queries only, no interactions"
                raise DataError(got, "a user with a history", "pass history=[…] (--history)")
        elif len(history):
            items = index_of(self.run.items[ITEM_ID], history, "item").astype(np.int32)
            sequences, users = Sequences(np.array([0, len(items)]), items), np.array([0])
        else:
            raise DataError("the history is empty", "one item or more", "name at least one item")
        return sequences, users

    def recommend_all(self, k: int = 10, include_seen: bool = False) -> pl.DataFrame:
        """Recommend the ``k`` best next items for every user of the dataset.

        Returns:
            Table of ``user_id``, ``rank`` from 1, ``item_id``, ``score``, ``text``.
        """
        users = np.flatnonzero(self.dataset.sequences.lengths > 0)
        lists = self._lists(self.dataset.sequences, users, k, include_seen)
        names = self.dataset.user_ids.gather(users).gather(lists["query"])
        return lists.drop("query").insert_column(0, names.alias(USER_ID))

    def _lists(self, sequences: Sequences, users: Index, k: int, include_seen: bool) -> pl.DataFrame:
        starts, ends = sequences.offsets[users], sequences.offsets[users + 1]
        queries = Queries(sequences, users, starts, ends, np.full(len(users), PAD))
        k = min(k, self.run.scorer.num_items)
        items, scores = top_k(self.run.scorer, queries, k, "all" if include_seen else "unseen")
        found = items != PAD
        query, position = np.nonzero(found)
        lists = self.run.items[items[found]].with_columns(query=query, rank=position + 1, score=scores[found])
        return lists.select("query", "rank", ITEM_ID, "score", TEXT)


def _saved(dataset: Dataset, folder: Path) -> Dataset:
    """Save a dataset beside its run, unless another one is there; an unfinished one has no manifest yet."""
    finished = (folder / "dataset.json").exists()
    if finished and Dataset.load(folder).content_hash != dataset.content_hash:
        raise RunError(f"'{folder}' holds another dataset, that of a run", "a new folder", "choose another out")
    return dataset.save(folder)
