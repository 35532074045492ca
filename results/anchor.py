"""Collect the records of the tables with and without the anchor from finished runs.

    python results/anchor.py WORK RECORD.json

WORK holds run folders named ROW-seedN. Every anchored run also gives a row of its learned part alone.
"""

import json
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl

from iisan.evaluate.evaluation import evaluate
from iisan.evaluate.metrics import metrics_from_frame
from iisan.evaluate.significance import compare
from iisan.names import ITEM_ID
from iisan.runs.anchoring import LEARNED
from iisan.runs.run import PER_USER, Run
from iisan.states.configured import open_dataset

METRICS = ("hr@10", "ndcg@10", "cold_hr@10", "warm_hr@10")
COPIED = (
    *("best_epoch", "epochs", "trainable_parameters", "train_seconds", "validation_seconds", "threads"),
    "peak_memory_bytes",
)


def frame_of_learned(run: Run) -> pl.DataFrame:
    """Ranks of the test targets under the learned part alone."""
    config, dataset = run.config.evaluation, open_dataset(run.config)
    split = dataset.split(config.split)
    found = evaluate(
        run.parts[LEARNED],
        split.test,
        name="test",
        policy=config.policy,
        cutoffs=(10,),
        train_counts=split.train_counts(),
        user_ids=dataset.user_ids,
        item_ids=dataset.items[ITEM_ID],
        list_length=None,
    )
    return found.per_user


def measured(frame: pl.DataFrame) -> dict[str, float]:
    """Metrics of all, cold and warm targets."""
    warm = metrics_from_frame(frame.filter(~pl.col("cold")), (10,))
    found = metrics_from_frame(frame, (10,)) | {f"warm_{name}": value for name, value in warm.items()}
    return {name: found[name] for name in METRICS if name in found}


def main(work: Path, record: Path) -> None:
    """Write the record of all runs in a folder."""
    rows: dict[str, dict[str, Any]] = defaultdict(lambda: {"runs": []})
    protocols = set()
    frames: dict[str, list[pl.DataFrame]] = defaultdict(list)
    selection = machine = None
    for folder in sorted(work.glob("*-seed*/")):
        run, name = Run.load(folder), folder.name.rpartition("-seed")[0]
        selection, machine = run.result["selection"], run.result["machine"]
        terms = run.result.get("terms", {})
        validations = {name: run.result["validation"]}
        if learned := terms.get("learned_validation"):
            validations[f"{name}, {LEARNED}"] = learned
        for row, validation in validations.items():
            entry = {
                "seed": run.config.training.seed,
                "validation": {key: validation[key] for key in METRICS[:2]},
                **{key: run.result[key] for key in COPIED if key in run.result},
            }
            protocols.add(run.result["protocol"])
            if row == name:
                entry |= {key: terms.get(key) for key in ("weights", "seconds")}
            ranks = folder / PER_USER
            frame = pl.read_parquet(ranks, glob=False) if row == name else frame_of_learned(run)
            frames[row].append(frame)
            entry["test"] = measured(frame)
            if run.config.evaluation.policy == "exclude-all":
                # The same items compete; only the targets in their own history are left out.
                entry["unseen"] = measured(frame.filter(~pl.col("seen")))
            rows[row]["runs"].append(entry)
    tests = [
        {"a": a, "b": b, **vars(compare(frames[a], frames[b], metric))}
        for a, b in combinations(frames, 2)
        for metric in ("hr@10", "ndcg@10")
    ]
    (protocol,) = protocols
    found = {"protocol": protocol, "selection": selection, "machine": machine, "rows": rows, "tests": tests}
    record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
