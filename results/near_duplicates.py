"""Measure near-duplicates in the lists of runs, and what leaving them out changes.

    python results/near_duplicates.py RECORD.json RUN…

On the validation queries of each run under the policy unseen; the thresholds are cosines of anchors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from iisan.evaluate.diversity import Distance, diverse_top_k
from iisan.evaluate.metrics import ranked_rows
from iisan.names import PAD
from iisan.runs.run import Run
from iisan.runs.similar import ANCHOR, item_vectors
from iisan.states.configured import open_dataset

LENGTH = 10
THRESHOLDS = (0.99, 0.95, 0.9, 0.8)


def measured(run: Run) -> dict[str, Any]:
    """Shares of near-duplicates by threshold, and metrics of lists without them."""
    split = open_dataset(run.config).split(run.config.evaluation.split)
    queries = split.validation[ranked_rows(split.validation, "unseen")]
    vectors = item_vectors(run, ANCHOR).cpu().numpy()
    cold = split.train_counts()[queries.targets] == 0

    def lists(threshold: float | None = None) -> tuple[np.ndarray, dict[str, float]]:
        distance = None if threshold is None else Distance(vectors, threshold)
        items, _ = diverse_top_k(run.scorer, queries, LENGTH, distance=distance)
        hit = (items == queries.targets[:, None]).any(1)
        coverage = len(np.unique(items[items != PAD])) / run.scorer.num_items
        return items, {"hr@10": hit.mean(), "cold_hr@10": hit[cold].mean(), "coverage@10": coverage}

    items, metrics = lists()
    of_items = vectors[items]
    histories = queries.histories(run.scorer.history_length)
    past = vectors[histories] * (histories != PAD)[..., None]
    # Cosines with items higher in the list, and the largest with one of the history.
    higher = np.tril(of_items @ of_items.swapaxes(1, 2), -1)
    bought = (of_items @ past.swapaxes(1, 2)).max(2)
    targets = (past @ vectors[queries.targets][:, :, None]).max((1, 2))
    rows = {}
    for threshold in THRESHOLDS:
        rows[str(threshold)] = {
            "lists_with_a_pair": (higher > threshold).any((1, 2)).mean(),
            "items_near_the_history": (bought > threshold).mean(),
            "targets_near_the_history": (targets > threshold).mean(),
            **lists(threshold)[1],
        }
    return {"recipe": run.config.recipe, "queries": len(queries), "metrics": metrics, "thresholds": rows}


def main(record: Path, folders: list[str]) -> None:
    """Write the record of some runs."""
    rows = [measured(Run.load(folder)) for folder in folders]
    record.write_text(json.dumps(rows, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
