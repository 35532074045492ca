"""A finished run and the baselines, measured side by side under one protocol."""

from collections.abc import Mapping

import torch

from iisan.config import Config, EvaluationConfig
from iisan.data.dataset import Dataset
from iisan.data.splits import Part, Split, split
from iisan.errors import DataError
from iisan.evaluate.baselines import Markov, last_item_similarity, most_popular, recently_popular
from iisan.evaluate.evaluation import Evaluation, evaluate
from iisan.evaluate.scorer import Scorer
from iisan.names import ITEM_ID, LAST
from iisan.runs.run import Run
from iisan.states.configured import open_dataset, open_stores
from iisan.states.store import StateStore


def _frozen_similarity(stores: Mapping[str, StateStore], dataset: Dataset) -> Scorer:
    """Cosine similarity of the frozen last states, all modalities side by side, with the history's last item."""
    vectors, present = [], torch.zeros(dataset.num_items, dtype=torch.bool)
    for store in stores.values():
        rows = torch.from_numpy(store.rows_for(dataset))
        having = rows >= 0
        values = torch.zeros(dataset.num_items, store.width)
        values[having] = torch.nn.functional.normalize(store.read(rows[having], (LAST,))[:, 0], dim=1)
        vectors.append(values)
        present |= having
    return last_item_similarity(torch.cat(vectors, dim=1), present)


def baselines(config: Config, dataset: Dataset, parts: Split) -> dict[str, Scorer]:
    """The untrained rivals of a run: popularity, Markov, and frozen similarity where last states are stored."""
    scorers: dict[str, Scorer] = {
        "most popular": most_popular(parts),
        "recently popular": recently_popular(parts),
        "Markov": Markov(parts),
    }
    stores = open_stores(config)
    if stores and all(LAST in store.levels for store in stores.values()):
        scorers["last item, frozen states"] = _frozen_similarity(stores, dataset)
    return scorers


def assess(run: Run, config: Config, part: Part = "test", with_baselines: bool = True) -> dict[str, Evaluation]:
    """Evaluate a run, and the baselines before it, under the protocol of ``config``.

    Under another split than the run's own all are trained on what the run was trained on, and only other targets
    than these are asked for.

    Args:
        run: finished.
        config: the run's own, or one with another ``evaluation`` section or dataset folder.
        part: which queries.
        with_baselines: whether to measure the baselines too.

    Returns:
        Name -> evaluation, the run last, under its recipe's name.

    Raises:
        DataError: the dataset has other items than the run, or nothing is left to ask for.
    """
    dataset = open_dataset(config)
    run.check_items(dataset)
    own, asked = run.config.evaluation.split, config.evaluation.split
    parts = split(dataset.sequences, dataset.num_items, asked)
    left_out = ""
    if asked != own:
        whole, parts = parts, parts.after(split(dataset.sequences, dataset.num_items, own))
        targets, left = len(whole.part(part)), len(parts.part(part))
        if left < targets:
            left_out = f" (of {targets:,} targets {targets - left:,} were trained on under {own} and are left out)"
        if not left:
            raise DataError(
                f"all {targets:,} targets of the {asked} {part} were trained on under {own}",
                "some that the run has not seen",
                f"evaluate it under {own}",
            )
    scorers = baselines(config, dataset, parts) if with_baselines else {}
    scorers[run.config.recipe] = run.scorer
    return measure(scorers, config.evaluation, dataset, parts, part, left_out)


def measure(
    scorers: Mapping[str, Scorer],
    config: EvaluationConfig,
    dataset: Dataset,
    parts: Split,
    part: Part = "test",
    remark: str = "",
) -> dict[str, Evaluation]:
    """Evaluate several scorers on the same queries under the same protocol, whose name ``remark`` adds to."""
    return {
        name: evaluate(
            scorer,
            parts.part(part),
            name=f"{parts.name} {part}{remark}",
            policy=config.policy,
            cutoffs=config.cutoffs,
            train_counts=parts.train_counts(),
            user_ids=dataset.user_ids,
            item_ids=dataset.items[ITEM_ID],
        )
        for name, scorer in scorers.items()
    }
