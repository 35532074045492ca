"""Continued training: initial weights from a finished run, and how much its recommendations change."""

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.data.sequences import Index
from iisan.data.splits import Queries
from iisan.errors import RunError
from iisan.evaluate.ranks import top_k
from iisan.evaluate.scorer import Scorer
from iisan.model import load_trainable, trainable_state
from iisan.names import IMAGE, ITEM_ID, PAD, TEXT, USER_ID
from iisan.nested import difference
from iisan.runs.run import ABSENT, MODEL, PER_USER, Run
from iisan.train.setup import Setup, fingerprints

#: Length of the compared lists.
K = 10
#: Settings of the model's sections that concern training only.
_TRAINING = {
    "items": {"fusion_scale"},
    "sequence": {"dropout"},
    "tuning": {"learning_rate", "refresh", "gradient_checkpointing"},
}
#: Parameter with a row per item.
_ITEM_TABLE = "items.embedding.weight"
#: Prefix of the parameters inside encoders.
_ENCODERS = "source."


def check_same_model(run: Run, config: Config) -> None:
    """Check that a run can provide the initial weights of a configuration.

    Raises:
        RunError: Nothing was trained, several runs were joined, or a setting differs that makes it another model.
    """
    if not run.members:
        got = f"the run in '{run.folder}' has no trained weights"
        cure = f"train the recipe {run.config.recipe} again, without --from"
        raise RunError(got, "a trained run to start from", cure)
    run.only_member()
    # An encoder that was frozen may be trained from now on.
    frozen = run.config.tuning.method == "none"
    before, after = (_model_settings(each, frozen) for each in (run.config, config))
    if found := difference(before, after):
        key, theirs, ours = found
        got = f"the run in '{run.folder}' has {key} = {theirs!r}, and with {ours!r} it would be another model"
        cure = "leave this setting as it is, or train a new run without --from"
        raise RunError(got, f"{key} = {theirs!r}", cure)


def _model_settings(config: Config, frozen: bool) -> dict[str, Any]:
    sections = {"modalities", "items", "sequence"} | (set() if frozen else {"tuning"})
    settings = config.model_dump(mode="json", include=sections, exclude=_TRAINING)
    for name in config.modalities or ():
        settings[f"{name if name in (TEXT, IMAGE) else f'columns.{name}'}.levels"] = config.levels_of(name)
    return settings


def start_from(run: Run, setup: Setup) -> int:
    """Initialise a network with the weights of a run of the same model (see ``check_same_model``).

    Rows of an id table are matched by item id; those of items that the run does not know keep their initial
    values.

    Returns:
        Number of items of the dataset that the run knows.

    Raises:
        RunError: The states come from another encoder, the weights do not fit, or they were trained on what the
            configuration's split holds back of the same data.
    """
    _check_same_states(run, setup)
    same_data = run.trained_on(setup.dataset)
    if same_data and (before := str(setup.dataset.split(run.config.evaluation))) != (now := str(setup.split)):
        got = f"the run in '{run.folder}' was trained on this dataset under the split {before}, not {now}"
        cure = "set evaluation.split, shares and held_out_seed as in that run, or train a new run without --from"
        raise RunError(got, "the same split, so that no target was trained on", cure)
    saved, rows = run.weights(), _rows_in(run, setup.dataset)
    known = torch.from_numpy(rows != PAD)
    state = trainable_state(setup.network)
    if lost := saved.keys() - state.keys() - {ABSENT}:
        got = f"the run in '{run.folder}' has a parameter '{min(lost)}', which the network lacks"
        cure = "leave source and tuning as they are, or train a new run without --from"
        raise RunError(got, "the same parameters", cure)
    absent = state.keys() - saved.keys() - {ABSENT}
    if run.config.tuning.method == "none":  # Encoders that are trained from now on.
        absent = {name for name in absent if not name.startswith(_ENCODERS)}
    if absent:
        got = f"the run in '{run.folder}' lacks the parameter '{min(absent)}' of the network"
        cure = f"bring back its {MODEL}, or train a new run without --from"
        raise RunError(got, "the same parameters", cure)
    for name in state.keys() & saved.keys():
        if name == _ITEM_TABLE:
            state[name][known] = saved[name][torch.from_numpy(rows)[known]]
        else:
            state[name] = saved[name]
    load_trainable(setup.network, state)
    return int(known.sum())


def _check_same_states(run: Run, setup: Setup) -> None:
    source, theirs = setup.network.source, run.result.get("state_origins")
    ours: dict[str, Any] = source.origins
    if theirs is None:  # A run of an earlier version.
        ours = {
            "states": fingerprints(setup.config, setup.dataset, setup.stores)["states"],
            "encoders": source.digests,
        }
        theirs = {name: run.result[name] for name in ours}
    if found := difference(theirs, ours):
        key, before, now = found
        got = f"the states come from another encoder than those of the run in '{run.folder}': {key} is {now!r}"
        cure = "name states that were made with the same encoder and pooling, or train a new run without --from"
        raise RunError(got, repr(before), cure)


def _rows_in(run: Run, dataset: Dataset) -> Index:
    """Row of every item of the dataset in the run's catalogue, ``[N]``; ``PAD`` if the run does not know it."""
    known = run.items.select(ITEM_ID, row=pl.int_range(pl.len()))
    rows = dataset.items.select(ITEM_ID).join(known, on=ITEM_ID, how="left", maintain_order="left")
    return rows["row"].fill_null(PAD).to_numpy(writable=True)


class EarlierScorer:
    """A run's scorer over a later catalogue; ignores new items in histories and never recommends them."""

    def __init__(self, run: Run, dataset: Dataset) -> None:
        self.num_items = dataset.num_items
        self.history_length = run.scorer.history_length
        self._scorer = run.scorer
        self._rows = _rows_in(run, dataset)

    def start(self, histories: Index) -> Any:
        """Return the run's query for the items that it knows."""
        rows = np.where(histories == PAD, PAD, self._rows[histories])
        # Move the known items to the right, in their order.
        order = np.argsort(rows != PAD, axis=1, kind="stable")
        return self._scorer.start(np.take_along_axis(rows, order, axis=1))

    def score(self, query: Any, items: Tensor | slice) -> Tensor:
        """Return the scores ``[B, n]``, -inf for new items."""
        rows = torch.from_numpy(self._rows)[items]
        scores = self._scorer.score(query, rows.clamp_min(0))
        return scores.masked_fill_((rows == PAD).to(scores.device), -torch.inf)


def list_overlap(run: Run, scorer: Scorer, dataset: Dataset, queries: Queries) -> tuple[float | None, Queries]:
    """Compare the lists of a run with those of its continuation, for the users of the run's test.

    Scorer, dataset and queries are those of the continuation.

    Returns:
        Share of the ``K`` items of an earlier list that are in the later list, averaged over the queries of these
        users (None without any), and these queries.
    """
    tested = pl.read_parquet(run.folder / PER_USER, columns=[USER_ID], glob=False)[USER_ID].unique()
    both = dataset.user_ids.gather(queries.users).is_in(tested.implode()).to_numpy()
    queries = queries[np.flatnonzero(both)]
    if not len(queries):
        return None, queries
    k = min(K, len(run.items), dataset.num_items)
    before, after = (top_k(each, queries, k, "exclude-all")[0] for each in (EarlierScorer(run, dataset), scorer))
    listed = before != PAD
    kept = listed & (before[:, :, None] == after[:, None, :]).any(axis=2)
    return float((kept.sum(axis=1) / np.maximum(listed.sum(axis=1), 1)).mean()), queries
