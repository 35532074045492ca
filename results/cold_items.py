"""Measure items that are added after training: cold items that were held out of everything, and added to the run.

    python results/cold_items.py RECORD.json WORK RUN…

Of the items without a training interaction, a random half is taken out of the dataset of the runs, together with
the validation queries whose target they are. The configuration of each run is trained on the rest, into WORK, and
that half is added by ``add_items``. The terms get the weights of the run itself. So the same test queries rank the
same catalogue: once all of it was there from the start, once half of its cold items came later.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from iisan.data.dataset import Dataset
from iisan.data.histories import in_rows_of
from iisan.data.sequences import ragged
from iisan.data.splits import Split, leave_one_out
from iisan.evaluate.evaluation import evaluate
from iisan.evaluate.significance import QUERIES, VALUE, compare, interval, per_user
from iisan.evaluate.terms import Weights
from iisan.names import HISTORY, ITEM_ID, TARGET, TEXT, USER_ID
from iisan.runs.run import PER_USER, Run
from iisan.serve.items import add_items
from iisan.states.configured import open_dataset
from iisan.train.run import train

METRIC = "hr@10"
ADDED, STAYED, WARM = "added", "stayed", "warm"


def some_items(dataset: Dataset, chosen: pl.Expr) -> pl.DataFrame:
    """Items of a dataset as a source that cleaning turns into them again, as it unescapes ampersands."""
    return dataset.items.filter(chosen).with_columns(pl.col(TEXT).str.replace_all("&", "&amp;", literal=True))


def held_out(split: Split, ids: pl.Series) -> pl.Series:
    """Draw a random half of the items without a training interaction."""
    cold = np.flatnonzero(split.train_counts() == 0)
    return ids.gather(np.sort(np.random.default_rng(0).permutation(cold)[: len(cold) // 2]))


def without(dataset: Dataset, split: Split, held: pl.Series, folder: Path) -> Dataset:
    """The training interactions and validation queries of a split, without some items that have none of the first.

    The dataset needs test queries as well, which nothing here reads: they are the validation queries again.
    """
    ids, users = dataset.items[ITEM_ID], dataset.user_ids
    owners, items = ragged(split.sequences.items, split.train_starts, split.train_ends)
    log = pl.DataFrame({USER_ID: users.gather(owners), ITEM_ID: ids.gather(items)})
    asked = split.validation
    histories = [
        ids.gather(split.sequences.items[start:end]).to_list()
        for start, end in zip(asked.starts, asked.ends, strict=True)
    ]
    queries = pl.DataFrame(
        {USER_ID: users.gather(asked.users), HISTORY: histories, TARGET: ids.gather(asked.targets)}
    ).filter(~pl.col(TARGET).is_in(held.implode()))
    kept = some_items(dataset, ~pl.col(ITEM_ID).is_in(held.implode()))
    return Dataset.from_frames(kept, log, validation=queries, test=queries).save(folder)


def ranked(run: Run, held: pl.Series, data: Path, out: Path) -> pl.DataFrame:
    """Train the configuration of a run without some items, add them, and rank the test targets of the run."""
    config = run.config.model_copy(update={"dataset": data}).override(["evaluation.split=given"])
    train(config, out, say=print)
    dataset = open_dataset(run.config)
    change = add_items(out, some_items(dataset, pl.col(ITEM_ID).is_in(held.implode())), say=print)
    print(f"{out.name}: {change}", flush=True)
    grown = Run.load(out, with_additions=True)
    assert grown.anchoring is not None, "runs of this measurement have an anchor"
    split = leave_one_out(in_rows_of(grown.items[ITEM_ID], dataset), len(grown.items))
    return evaluate(
        grown.anchoring.beside(grown.members, Weights.from_json(run.result["terms"]["weights"])),
        split.test,
        name="test",
        policy=run.config.evaluation.policy,
        cutoffs=(10,),
        train_counts=split.train_counts(),
        user_ids=dataset.user_ids,
        item_ids=grown.items[ITEM_ID],
        list_length=None,
    ).per_user


def measured(whole: list[pl.DataFrame], grown: list[pl.DataFrame], held: pl.Series) -> dict[str, Any]:
    """Hit rates of the targets that were added, of the other cold ones and of the rest, in both kinds of runs."""
    added = pl.col(ITEM_ID).is_in(held.implode())
    kinds = {ADDED: added, STAYED: pl.col("cold") & ~added, WARM: ~pl.col("cold")}
    found: dict[str, Any] = {}
    values = {}
    for kind, chosen in kinds.items():
        with_added, from_start = ([each.filter(chosen) for each in frames] for frames in (grown, whole))
        users = per_user(with_added, METRIC)
        values[kind] = users[VALUE].to_numpy()
        weights = (users[QUERIES] / users[QUERIES].mean()).to_numpy()
        found[kind] = {
            "targets": int(users[QUERIES].sum()),
            "interval": interval(values[kind], weights),
            **vars(compare(with_added, from_start, METRIC)),
        }
    # Other targets, so not paired.
    welch = stats.ttest_ind(values[ADDED], values[STAYED], equal_var=False)
    difference = values[ADDED].mean() - values[STAYED].mean()
    return found | {"halves": {"difference": difference, "interval": [*welch.confidence_interval()]}}


def main(record: Path, work: Path, folders: list[str]) -> None:
    """Write the record of some runs on one dataset."""
    frames: dict[str, tuple[list[pl.DataFrame], list[pl.DataFrame]]] = defaultdict(lambda: ([], []))
    dataset = open_dataset(Run.load(folders[0]).config)
    split = dataset.split("leave-one-out")
    held = held_out(split, dataset.items[ITEM_ID])
    data = work / "data"
    if not data.exists():
        without(dataset, split, held, data)
    for folder in folders:
        run = Run.load(folder)
        assert run.trained_on(dataset), "all runs are on one dataset"
        whole, grown = frames[run.config.recipe]
        whole.append(pl.read_parquet(run.folder / PER_USER, glob=False))
        grown.append(ranked(run, held, data, work / run.folder.name))
    found = {
        "protocol": run.result["protocol"],
        "items": dataset.num_items,
        "cold_items": int((split.train_counts() == 0).sum()),
        "held_out": len(held),
        "runs": {
            recipe: {"seeds": len(whole), **measured(whole, grown, held)}
            for recipe, (whole, grown) in frames.items()
        },
    }
    record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
