"""The facade: fit, recommend, save, load."""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from iisan.config import Config, Policy
from iisan.data.dataset import Dataset, index_of
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import Queries
from iisan.errors import DataError, RunError
from iisan.evaluate.ranks import top_k
from iisan.names import ITEM_ID, PAD, TEXT, USER_ID
from iisan.recipes import load_config
from iisan.runs.run import Run
from iisan.states.configured import open_dataset
from iisan.train.run import train


class Recommender:
    """A trained recommender: answers "what next?" for known users and for any history.

    Args:
        run: a finished run.

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
            dataset: a dataset or its folder.
            states: folder of state stores, where the configuration names none; not needed for ids.
            config: a recipe's name, a YAML file, or a configuration; None is that of ``start``, or the recipe
                ``default``.
            out: run folder; a temporary one where None (``save`` keeps it).
            overrides: ``key.key=value`` settings, such as ``"training.epochs=5"``.
            start: a recommender of the same model, whose weights the training starts from; the dataset may have
                new interactions and other items.

        Raises:
            IisanError: whatever is wrong with the input, in one sentence.
        """
        folder = Path(out).resolve() if out is not None else Path(tempfile.mkdtemp(prefix="iisan-run-"))
        if isinstance(dataset, Dataset) and dataset.folder is None:
            dataset = _saved(dataset, folder.with_name(folder.name + "-dataset"))
        path = dataset.folder if isinstance(dataset, Dataset) else Path(dataset)
        earlier = start.run if start else None
        if config is None:
            config = earlier.config if earlier else "default"
        chosen = config if isinstance(config, Config) else load_config(config)
        given = {"dataset": path} | ({} if states is None else {"states": Path(states)})
        if isinstance(dataset, Dataset):
            given["images"] = dataset.image_root
        chosen = chosen.override(overrides).model_copy(update=given)
        train(chosen, folder, start=earlier)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path, dataset: str | Path | None = None) -> "Recommender":
        """Open a run folder that ``fit``, ``save`` or ``iisan train`` wrote.

        Args:
            folder: the run folder.
            dataset: where the dataset is now, if it moved.

        Raises:
            RunError: absent, unfinished or damaged.
        """
        run = Run.load(folder)
        if dataset is not None:
            run = replace(run, config=run.config.model_copy(update={"dataset": Path(dataset)}))
        return cls(run)

    def save(self, folder: str | Path) -> None:
        """Copy the run folder to ``folder``, which must not exist.

        Raises:
            RunError: it exists.
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
            DataError: it is no longer where it was, or has other items now.
        """
        dataset = open_dataset(self.run.config)
        self.run.check_items(dataset)
        return dataset

    @property
    def item_embeddings(self) -> np.ndarray[Any, Any]:
        """``[N, E]`` fp32, in the order of ``run.items``."""
        return self.run.scorer.items.cpu().numpy()

    def recommend(
        self,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        k: int = 10,
        include_seen: bool = False,
    ) -> pl.DataFrame:
        """The ``k`` best next items of one user or one history.

        Args:
            user: a user of the dataset, with all interactions as history; or
            history: item ids, oldest first.
            k: how many.
            include_seen: whether items of the history may be recommended again.

        Returns:
            ``rank`` from 1, ``item_id``, ``score`` (dot product), ``text``.

        Raises:
            DataError: unknown user or item, an empty history, or neither or both arguments.
        """
        if (user is None) == (history is None):
            raise DataError(
                "neither or both of user and history are given", "one of them", "pass user=… or history=[…]"
            )
        if history is not None:
            queries = _history_queries(index_of(self.run.items[ITEM_ID], history, "item"))
        else:
            queries = _user_queries(self.dataset, np.array([self.dataset.user_index(str(user))]))
        return self._lists(queries, k, include_seen).drop("query")

    def recommend_all(self, k: int = 10, include_seen: bool = False) -> pl.DataFrame:
        """The ``k`` best next items of every user of the dataset.

        Returns:
            ``user_id``, ``rank`` from 1, ``item_id``, ``score``, ``text``.
        """
        users = np.flatnonzero(self.dataset.sequences.lengths > 0)
        lists = self._lists(_user_queries(self.dataset, users), k, include_seen)
        names = self.dataset.user_ids.gather(users).gather(lists["query"])
        return lists.drop("query").insert_column(0, names.alias(USER_ID))

    def _lists(self, queries: Queries, k: int, include_seen: bool) -> pl.DataFrame:
        k = min(k, self.run.scorer.num_items)
        policy: Policy = "all" if include_seen else "unseen"
        items, scores = top_k(self.run.scorer, queries, k, policy)
        found = items != PAD
        query, position = np.nonzero(found)
        chosen = self.run.items[items[found]]
        return pl.DataFrame(
            {
                "query": query,
                "rank": position + 1,
                ITEM_ID: chosen[ITEM_ID],
                "score": scores[found],
                TEXT: chosen[TEXT],
            }
        )


def _saved(dataset: Dataset, folder: Path) -> Dataset:
    """Save a dataset beside its run; that of another run is not replaced."""
    # One whose writing was killed has no manifest, and is written again.
    finished = (folder / "dataset.json").exists()
    if finished and Dataset.load(folder).content_hash != dataset.content_hash:
        raise RunError(f"'{folder}' holds another dataset, that of a run", "a new folder", "choose another out")
    return dataset.save(folder)


def _user_queries(dataset: Dataset, users: Index) -> Queries:
    """What each user takes after the last interaction; the answer is not known."""
    offsets = dataset.sequences.offsets
    unknown = np.full(len(users), PAD)
    return Queries(dataset.sequences, users, offsets[users], offsets[users + 1], unknown)


def _history_queries(items: Index) -> Queries:
    """The same for one history from outside."""
    if not len(items):
        raise DataError("the history is empty", "one item or more", "name at least one item")
    zero, end = np.zeros(1, np.int64), np.array([len(items)])
    sequences = Sequences(np.array([0, len(items)]), items.astype(np.int32))
    return Queries(sequences, zero, zero, end, np.array([PAD]))
