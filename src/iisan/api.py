"""The Python interface: fit, recommend, find similar items, save, load, export."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.data.histories import ids_of, in_the_form_of, known_rows, read_histories
from iisan.data.ids import index_of
from iisan.data.sequences import Sequences
from iisan.data.splits import Queries, whole_histories
from iisan.errors import DataError, RunError
from iisan.evaluate.ranks import check_length
from iisan.names import ITEM_ID, TEXT, USER_ID
from iisan.recipes import load_config
from iisan.remote.opening import addressed
from iisan.runs.explain import Explanation
from iisan.runs.run import Run
from iisan.scale.cluster import Cluster
from iisan.scale.lists import make_on
from iisan.serve.batch import recommend_all, write_all
from iisan.serve.export import MANIFEST, check_format, export_vectors, replacing
from iisan.serve.hub import model_card, write_public_run
from iisan.serve.items import Change, add_items, remove_items
from iisan.serve.lists import ListMaker
from iisan.serve.onnx import export_onnx
from iisan.train.run import train


class Recommender(ModelHubMixin, library_name="iisan", tags=["recommendation", "sequential-recommendation"]):
    """A trained recommender of next items for known users and for any history.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are :class:`huggingface_hub.ModelHubMixin`'s.

    Args:
        run: A finished run.

    Example:
        >>> recommender = Recommender.load("my-run")  # doctest: +SKIP
        >>> recommender.recommend(history=["B005FU5HFI"], k=5)  # doctest: +SKIP
    """

    # The hub's mixin would write the arguments of the constructor, such as the run, to a file.
    _hub_mixin_config: Any = {}  # noqa: RUF012

    def __init__(self, run: Run) -> None:
        self.run = run

    @classmethod
    @addressed("dataset", "states", out="out")
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
    @addressed("folder", "dataset")
    def load(cls, folder: str | Path, dataset: str | Path | None = None) -> "Recommender":
        """Open a run folder of ``fit``, ``save`` or ``iisan train``, whose dataset may have moved to ``dataset``.

        Raises:
            RunError: The run does not exist, is unfinished or damaged.
        """
        run = Run.load(folder, with_additions=True)
        if dataset is not None:
            run = replace(run, config=run.config.model_copy(update={"dataset": Path(dataset)}))
        return cls(run)

    @addressed(out="folder")
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

    @addressed("states", out="out")
    def export(
        self,
        out: str | Path,
        format: str = "vectors",
        *,
        states: str | Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Write what other programs use of the run, without users, histories or paths.

        Args:
            out: Folder that is absent, empty, or an earlier export to the same format, which is replaced.
            format: ``vectors`` (item ids and vectors), ``onnx`` (these and the encoders as graphs), or ``hub`` (as
                ``save_pretrained``).
            states: Folder of state stores, if the run's own has moved; ``onnx`` reads the sizes of states there.
            say: Callback for messages.

        Returns:
            The manifest, ``config.json`` in the folder.

        Raises:
            ConfigError: An unknown format.
            RunError: The folder holds something else.
            MissingExtraError: ``onnx`` needs the extra of that name.
        """
        check_format(format)
        run, out = self.run, Path(out)
        if states is not None:
            run = replace(run, config=run.config.model_copy(update={"states": Path(states)}))
        match format:
            case "vectors":
                return export_vectors(run, out)
            case "onnx":
                return export_onnx(run, out, say)
        type(self)(run).save_pretrained(out)
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        return manifest

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder that ``from_pretrained`` opens, with a model card, and without users, histories or paths.

        Args:
            save_directory: Folder that is absent, empty, or an earlier export to the hub, which is replaced.
            options: Those of the mixin: ``push_to_hub``, ``repo_id``, and ``model_card_kwargs``, which are entries
                of the card's header such as ``{"license": "mit"}``.

        Raises:
            RunError: The folder holds something else.
        """
        out = Path(save_directory)
        with replacing(out, "hub") as aside:
            url = super().save_pretrained(aside, **{"repo_id": out.name, **options})
        return url

    def _save_pretrained(self, save_directory: Path) -> None:
        write_public_run(self.run, save_directory)

    def generate_model_card(self, *_: Any, **facts: Any) -> ModelCard:
        """Describe the run: data, protocol, metrics, cost, limits, licences of the encoders.

        Args:
            facts: Entries of the card's header, such as ``license``.
        """
        data = self._hub_mixin_info.model_card_data.to_dict()
        return model_card(self.run, {**data, **facts})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Recommender":
        """Open a folder of ``save_pretrained``, or a repository of the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: Folder, which needs no network, or ``owner/name``.
            options: Those of the mixin: ``revision``, ``token``, ``cache_dir``, ``force_download``,
                ``local_files_only``; and ``dataset``, as for ``load``.

        Raises:
            RunError: There is no such folder or repository, it cannot be read, or is damaged.
        """
        name = pretrained_model_name_or_path
        try:
            found: Recommender = super().from_pretrained(name, **options)
        except (OSError, ValueError, HfHubHTTPError) as error:
            got = f"'{name}' is no readable folder, and the hub does not give it ({type(error).__name__})"
            expected = "a folder of save_pretrained, or the id of a repository on the hub"
            raise RunError(got, expected, "check the name, the network, and access by `hf auth login`") from None
        return found

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, dataset: str | Path | None = None, **options: Any
    ) -> "Recommender":
        folder = model_id if Path(model_id).is_dir() else snapshot_download(model_id, **options)
        return cls.load(folder, dataset)

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics of the best epoch, as shares of 1; the protocol is in ``run.result``."""
        return dict(self.run.result["test"])

    @cached_property
    def _maker(self) -> ListMaker:
        return ListMaker(self.run)

    @property
    def dataset(self) -> Dataset:
        """The dataset of the run, or newer interactions of old and new users: for histories and columns of items.

        Raises:
            DataError: The dataset has moved.
        """
        return self._maker.dataset

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
        users: Iterable[Any] | None = None,
        histories: Any = None,
        user: str | None = None,
        history: Iterable[Any] | None = None,
        k: int = 10,
        filter_viewed: bool = True,
        items_to_recommend: Iterable[Any] | None = None,
        items_to_exclude: Iterable[Any] | None = None,
        where: Mapping[str, Any] | None = None,
        max_per: str | Mapping[str, int] | None = None,
        near_duplicates: float | None = None,
    ) -> pl.DataFrame | Any:
        """Recommend the ``k`` best next items for users of the dataset or for any histories.

        One of the first four arguments is given. Items that the run does not know are left out with a warning. An
        index of cells, if ``iisan index`` chose one, finds the items, except with ``max_per`` and
        ``near_duplicates``.

        Args:
            users: Users of the dataset, whose histories are all their interactions.
            histories: polars or pandas DataFrame with one row per interaction of any users: ``user_id``,
                ``item_id`` and, to order them by, ``timestamp`` or ``datetime``; without it, rows are in order.
                Rows count by their ``event`` and ``weight`` as in the dataset, whose rules are applied.
            user: One user of the dataset.
            history: Item ids of one history, oldest first.
            k: Number of items per list; a list is shorter where fewer are left.
            filter_viewed: Whether items of the history are left out.
            items_to_recommend: Ids of the items that may be recommended; defaults to all.
            items_to_exclude: Ids of items that may not be recommended.
            where: Conditions on columns of the dataset's items, all of which must hold: column -> value, or a list
                of values of which one is enough.
            max_per: Column of the dataset's items, each of whose values may occur once in a list, or column ->
                number of times. Items without a value are not limited.
            near_duplicates: Cosine of anchors, of all modalities side by side, above which an item is left out
                because of one higher in the list.

        Returns:
            ``user_id``, ``item_id``, ``score`` (as the run ranks by it) and ``rank`` from 1; a pandas DataFrame if
            ``users`` or ``histories`` are of pandas. For one user or history: ``item_id``, ``score``, ``rank``,
            ``text``.

        Raises:
            ConfigError: ``k``, ``max_per`` or ``near_duplicates`` is out of range.
            DataError: An unknown user, a history without a known item, a string in place of a sequence, an unknown
                column or value, or filters that leave nothing.
            RunError: ``near_duplicates`` for a run without an anchor, or an index of another run.
            MissingExtraError: The index needs FAISS, which is not installed.
        """
        given = {"users": users, "histories": histories, "user": user, "history": history}
        if sum(value is not None for value in given.values()) != 1:
            got = f"none or several of {', '.join(given)} are given"
            raise DataError(got, "one of them", "pass users=[…], histories=FRAME, user=… or history=[…]")
        check_length(k)
        names, queries = self._queries(**given)
        selection = self._maker.select(
            filter_viewed=filter_viewed,
            items_to_recommend=items_to_recommend,
            items_to_exclude=items_to_exclude,
            where=where,
            max_per=max_per,
            near_duplicates=near_duplicates,
        )
        lists = self._maker.table(names, ITEM_ID, self._maker.lists(queries, k, selection))
        self._maker.check_some(lists.height)
        if users is None and histories is None:
            texts = self.run.items.select(ITEM_ID, TEXT)
            return lists.drop(USER_ID).join(texts, on=ITEM_ID, how="left", maintain_order="left")
        return in_the_form_of(histories if users is None else users, lists)

    def add_items(self, items: Any, images: Path | str | None = None) -> Change:
        """Add items to the run, or update those that it has, without training.

        Args:
            items: polars or pandas DataFrame, or a file: ``item_id``, ``text``, ``image`` and further columns.
            images: Folder of the images and other media.

        Raises:
            IisanError: See :func:`iisan.serve.items.add_items`.
        """
        change = add_items(self.run.folder, items, images=None if images is None else Path(images))
        self._reopen()
        return change

    def remove_items(self, ids: Iterable[Any]) -> Change:
        """Remove items from all lists; in histories they still count.

        Raises:
            DataError: An unknown item.
        """
        change = remove_items(self.run.folder, ids_of(ids, "ids", "item"))
        self._reopen()
        return change

    def _reopen(self) -> None:
        """Read the run's folder again, and forget what was computed from its items."""
        config, folder = self.run.config, self.run.folder
        self.__dict__.clear()
        self.run = replace(Run.load(folder, with_additions=True), config=config)

    def explain(self, item: str, *, user: str | None = None, history: Iterable[Any] | None = None) -> Explanation:
        """Explain the score of any item for one user or one history, given as in ``recommend``.

        Raises:
            DataError: Unknown user or item, an empty history or a string, or neither or both of user and history.
        """
        if (user is None) == (history is None):
            got = "neither or both of user and history are given"
            raise DataError(got, "one of them", "pass user=… or history=[…]")
        _, query = self._queries(None, None, user, history)
        past = query.sequences.items[query.starts[0] : query.ends[0]].astype(np.int64)
        row = index_of(self.run.items[ITEM_ID], [item], "item")[0]
        return self._maker.explain(past, int(row))

    @overload
    def recommend_all(
        self, k: int = 10, *, out: None = None, cluster: Cluster | None = None, **options: Any
    ) -> pl.DataFrame: ...

    @overload
    def recommend_all(
        self, k: int = 10, *, out: str | Path, cluster: Cluster | None = None, **options: Any
    ) -> pl.LazyFrame: ...

    def recommend_all(
        self, k: int = 10, *, out: str | Path | None = None, cluster: Cluster | None = None, **options: Any
    ) -> pl.DataFrame | pl.LazyFrame:
        """Recommend the ``k`` best next items for every user of the dataset with interactions.

        Args:
            k: Number of items per list.
            out: File for the lists (.parquet, .csv, .jsonl), which are then never in memory together. After an
                interruption, the same call goes on with the users that are left.
            cluster: Ray cluster that makes the lists, see :func:`iisan.scale.cluster.connected`.
            options: Filters and limits of ``recommend``.

        Returns:
            ``user_id``, ``item_id``, ``score``, ``rank``; with ``out`` a lazy frame of the file.

        Raises:
            IisanError: As ``recommend``, or the file has another ending or is being written.
        """
        check_length(k)
        selection = self._maker.select(**options)
        make = None if cluster is None else partial(make_on, cluster, self._maker, k, options)
        if out is None:
            return recommend_all(self._maker, k, selection, make)
        return write_all(self._maker, k, selection, Path(out), make)

    def similar_items(self, ids: Iterable[Any], k: int = 10, by: str = "model") -> pl.DataFrame | Any:
        """List the ``k`` items most similar to each of some items.

        Items without the modality, or that training never reached, are left out with a warning.

        Args:
            ids: Item ids.
            k: Number of similar items per item.
            by: What the cosine is taken of: ``model`` for learned embeddings, ``anchor`` for the anchors of all
                modalities side by side, or the name of a modality, such as ``text``, for its anchors.

        Returns:
            ``item_id``, ``similar_id``, ``score`` (the cosine) and ``rank`` from 1; a pandas DataFrame if ``ids``
            are of pandas.

        Raises:
            ConfigError: ``k`` is out of range.
            DataError: No or unknown items, a string in place of a sequence, or only items that are left out.
            RunError: The run has no such embeddings or anchors.
        """
        check_length(k)
        item_ids = self.run.items[ITEM_ID]
        wanted = pl.Series(ids_of(ids, "ids", "item"), dtype=pl.String).unique(maintain_order=True)
        rows = index_of(item_ids, wanted.to_list(), "item")
        found = self._maker.similar(rows, k, by)
        return in_the_form_of(ids, self._maker.table(wanted.alias(ITEM_ID), "similar_id", found))

    def _queries(
        self, users: Iterable[Any] | None, histories: Any, user: str | None, history: Iterable[Any] | None
    ) -> tuple[pl.Series, Queries]:
        """Ids and histories of what is given; a single history has no id."""
        item_ids = self.run.items[ITEM_ID]
        if histories is not None:
            names, sequences = read_histories(histories, item_ids, self.run.config.dataset)
            return names, whole_histories(sequences, np.arange(len(names)))
        if history is not None:
            rows = known_rows(item_ids, history, "history")
            alone = Sequences(np.array([0, len(rows)]), rows.astype(np.int32))
            return pl.Series(USER_ID, [None], dtype=pl.String), whole_histories(alone, np.array([0]))
        wanted = [str(user)] if users is None else ids_of(users, "users", "user")
        names = pl.Series(USER_ID, wanted, dtype=pl.String).unique(maintain_order=True)
        return names, self._maker.histories_of(names)


def _saved(dataset: Dataset, folder: Path) -> Dataset:
    """Save a dataset beside its run, unless another one is there; an unfinished one has no manifest yet."""
    finished = (folder / "dataset.json").exists()
    if finished and Dataset.load(folder).content_hash != dataset.content_hash:
        raise RunError(f"'{folder}' holds another dataset, that of a run", "a new folder", "choose another out")
    return dataset.save(folder)
