"""Evaluation of a finished run and the baselines under one protocol."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import torch

from iisan.config import AnchorConfig, Config, EvaluationConfig
from iisan.data.dataset import Dataset
from iisan.data.problems import Problems
from iisan.data.queries import index_queries, read_queries
from iisan.data.splits import Queries, Split, Subset
from iisan.data.tables import LINE, Role, read_table
from iisan.errors import ConfigError, DataError, MissingExtraError, StoreError
from iisan.evaluate.baselines import ItemKNN, Markov, last_item_similarity, most_popular, recently_popular
from iisan.evaluate.evaluation import Evaluation, evaluate, known_future
from iisan.evaluate.metrics import ranked_rows
from iisan.evaluate.scorer import Scorer
from iisan.evaluate.terms import TermScorer
from iisan.names import ITEM_ID, LAST, USER_ID
from iisan.runs.anchoring import SIMILARITY, fit_similarity, frozen_states
from iisan.runs.run import Run
from iisan.states.configured import anchor_config, levels_stored, open_dataset, open_stores
from iisan.states.store import StateStore


def _frozen_similarity(stores: Mapping[str, StateStore], dataset: Dataset) -> Scorer:
    """Cosine similarity to the last item of the history, over the frozen last states of all modalities."""
    vectors, present = [], torch.zeros(dataset.num_items, dtype=torch.bool)
    for store in stores.values():
        rows = torch.from_numpy(store.rows_for(dataset))
        stored = rows >= 0
        values = torch.zeros(dataset.num_items, store.width)
        values[stored] = torch.nn.functional.normalize(store.read(rows[stored], (LAST,))[:, 0], dim=1)
        vectors.append(values)
        present |= stored
    return last_item_similarity(torch.cat(vectors, dim=1), present)


def baselines(config: Config, dataset: Dataset, subsets: Split) -> dict[str, Scorer]:
    """Return the baselines of a run without parameters; frozen similarity only if the last states are stored."""
    scorers: dict[str, Scorer] = {
        "most popular": most_popular(subsets),
        "recently popular": recently_popular(subsets),
        "Markov": Markov(subsets),
        "item-kNN": ItemKNN(subsets),
    }
    stores = open_stores(config)
    if stores and all(LAST in store.levels for store in stores.values()):
        scorers["last item, frozen states"] = _frozen_similarity(stores, dataset)
    return scorers


def rivals(run: Run, config: Config, dataset: Dataset, subsets: Split) -> dict[str, Scorer]:
    """Return what a run is compared with: the baselines, and the parts of the run or the recipe ``similarity``."""
    scorers = baselines(config, dataset, subsets)
    return scorers | (run.parts or _similarity(config, dataset, subsets)) if run.members else scorers


def _similarity(config: Config, dataset: Dataset, subsets: Split) -> dict[str, Scorer]:
    """Fit the recipe ``similarity`` on the stored states of a configuration; empty if they do not allow it."""
    anchored = config.model_copy(update={"anchor": AnchorConfig(enabled=True, modalities=config.modalities)})
    frozen = anchor_config(anchored) if config.modalities and config.source == "cached" else None
    ranked = ranked_rows(subsets.validation, config.evaluation.policy)
    if frozen is None or not len(ranked) or not levels_stored(frozen):
        return {}
    try:
        source = frozen_states(anchored, dataset)
        anchoring, _ = fit_similarity(anchored, dataset, subsets, subsets.validation, source)
    # Constant states, say, which a run without an anchor may well have, or no FAISS.
    except (ConfigError, MissingExtraError, StoreError):
        return {}
    return {SIMILARITY: anchoring.scorer}


def assess(
    run: Run,
    config: Config,
    subset: Subset = "test",
    with_baselines: bool = True,
    queries: Path | None = None,
    sampled: int | None = None,
) -> dict[str, Evaluation]:
    """Evaluate a run, and the baselines, under the protocol of ``config``: the run's own with other settings.

    With a different split, targets that the run was trained or selected on are left out, and the baselines count
    the interactions that it was trained on. If the dataset has changed since, the protocol says so.

    With a file of ``queries`` (see :func:`iisan.data.queries.read_queries`), these are evaluated instead of a
    subset, under the run's own split. ``sampled`` is as in ``evaluate``.

    Returns:
        Name -> evaluation; the run comes last, under its recipe's name.

    Raises:
        DataError: The dataset has other items than the run, a query is invalid, or no target is left.
    """
    dataset = open_dataset(config)
    run.check_items(dataset)
    subsets, own = dataset.split(config.evaluation), dataset.split(run.config.evaluation)
    remark = other_version(run, dataset)
    if str(subsets) != str(own):
        total = len(subsets.subset(subset))
        subsets = subsets.after(own)
        left = subsets.subset(subset)
        if not len(left):
            got = f"the run was trained or selected on all {total:,} targets of the {subsets} {subset} under {own}"
            raise DataError(got, "at least one that it was not", f"evaluate it under {own}")
        remark += (
            f" of a run trained under {own} ({total - len(left):,} of {total:,} targets left out, which it was "
            "trained or selected on)"
        )
    scorers = rivals(run, config, dataset, subsets) if with_baselines else {}
    scorers[run.config.recipe] = run.scorer
    if queries is None:
        return measure(scorers, config.evaluation, dataset, subsets, subset, remark, sampled)
    given, user_ids = _read_queries(queries, dataset)
    name = f"given queries {queries.name}{remark}"
    return _measure(scorers, config.evaluation, dataset, subsets, given, name, user_ids, sampled)


def other_version(run: Run, dataset: Dataset) -> str:
    """Remark on a dataset that has changed since a run was trained on it, as targets may have been trained on."""
    return "" if run.trained_on(dataset) else " of another version of the dataset than the run was trained on"


def _read_queries(path: Path, dataset: Dataset) -> tuple[Queries, pl.Series]:
    """Read queries on the items of a dataset, in files as those it was prepared from; see ``index_queries``."""
    problems, options = Problems("stop", "correct it"), dataset.manifest["provenance"]["options"]
    table = read_queries(path, options.get("user_id"), problems, header=None, quotes=options.get("quotes"))
    return index_queries(
        table, dataset.items[ITEM_ID], dataset.user_ids, problems, "an item id of the run's catalogue"
    )


def read_users(path: Path, dataset: Dataset) -> pl.DataFrame:
    """Read a table of the users of a dataset: ``user_id``, as text, and any further columns.

    Raises:
        DataError: The file is absent, empty or damaged, or has no column of users or a row without one.
    """
    name = dataset.manifest["provenance"]["options"].get("user_id") or USER_ID
    role = Role(USER_ID, (name, USER_ID), cure=f"name the column of users {name}")
    problems = Problems("stop", "correct it")
    return read_table(path, [role], problems, rest=True).with_ids((USER_ID,), problems).frame.drop(LINE)


def measure(
    scorers: Mapping[str, Scorer],
    config: EvaluationConfig,
    dataset: Dataset,
    subsets: Split,
    subset: Subset = "test",
    remark: str = "",
    sampled: int | None = None,
) -> dict[str, Evaluation]:
    """Evaluate scorers on the same queries under one protocol; ``remark`` is added to its name.

    ``sampled`` is as in ``evaluate``.
    """
    name = f"{subsets} {subset}{remark}"
    return _measure(scorers, config, dataset, subsets, subsets.subset(subset), name, dataset.user_ids, sampled)


def _measure(
    scorers: Mapping[str, Scorer],
    config: EvaluationConfig,
    dataset: Dataset,
    subsets: Split,
    queries: Queries,
    name: str,
    user_ids: pl.Series,
    sampled: int | None,
) -> dict[str, Evaluation]:
    # Those of the run or of the baseline `similarity`: the lists of all scorers are compared by the same ones.
    anchors = next((scorer.anchors for scorer in scorers.values() if isinstance(scorer, TermScorer)), None)
    future = known_future(subsets, queries)
    found = {}
    for scorer_name, scorer in scorers.items():
        evaluation = evaluate(
            scorer,
            queries,
            name=name,
            policy=config.policy,
            cutoffs=config.cutoffs,
            train_counts=subsets.train_counts(),
            user_ids=user_ids,
            item_ids=dataset.items[ITEM_ID],
            anchors=anchors,
            sampled=sampled,
        )
        found[scorer_name] = replace(evaluation, future=future)
    return found
