"""The runs behind "What the inter-modal tower adds" in docs/method.md: generated data, three seeds.

    python results/towers.py WORK

WORK is a folder for everything; finished runs are kept, so the script can be stopped and repeated. No run has the
anchor, which would add the same terms to each.
"""

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from iisan.demo.catalogue import generate
from iisan.demo.run import ENCODERS, demo_dataset
from iisan.names import IMAGE, TEXT
from iisan.recipes import recipe
from iisan.states.caching import cache
from iisan.train.loop import METRICS
from iisan.train.run import train

ALL = (
    *("anchor=false", "modalities=[image,text]", "sequence.num_layers=1", "training.precision=fp32"),
    *("training.epochs=80", "training.early_stopping_patience=5"),
)
#: Network, loss and rates: those of the demo's experiments, and those that suit real titles.
DEMO = (
    *("sequence.dropout=0.1", "items.embedding_dim=64", "loss.negatives=0"),
    *("optimizer.learning_rate=4e-3", "optimizer.san_learning_rate=4e-3"),
)
REAL = (
    *("sequence.dropout=0.2", "items.embedding_dim=128", "loss.negatives=800"),
    *("optimizer.learning_rate=1e-3", "optimizer.san_learning_rate=5e-4"),
)
DOT = ("sequence.similarity=dot", "training.batch_size=64")
COSINE = ("sequence.similarity=cosine", "training.batch_size=128", "items.level_norm=centred")
#: Recipe and changes to it.
TOWERS = {
    "intra and inter": ("default", "items.bottleneck=64"),
    "intra alone": ("default", "items.bottleneck=64", "items.inter=false"),
    "frozen states": ("frozen",),
}
#: Name in the table -> settings.
SETTINGS = {
    "dot product, `layer`": (*DEMO, *DOT, "items.level_norm=layer"),
    "dot product, `centred`, at most 8 epochs": (*DEMO, *DOT, "items.level_norm=centred", "training.epochs=8"),
    "cosine, `centred`": (*DEMO, *COSINE),
    "cosine, `centred`, settings for real titles": (*REAL, *COSINE),
}
SEEDS = range(3)


def main(work: Path) -> None:
    """Prepare the catalogue, train, and write the records that ``make.py`` reads."""
    cache(demo_dataset(generate(), work), work / "states", {name: str(ENCODERS / name) for name in (IMAGE, TEXT)})
    records: list[dict[str, Any]] = []
    for (settings, changes), (towers, (base, *own)), seed in product(SETTINGS.items(), TOWERS.items(), SEEDS):
        config = recipe(base).override((*ALL, *own, *changes, f"training.seed={seed}"))
        config = config.model_copy(update={"dataset": work / "dataset", "states": work / "states"})
        folder = work / "runs" / f"{len(records):02}"
        result = train(config, folder, print)
        history = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        facts = {"best_epoch": result["best_epoch"]}
        for subset in ("validation", "test"):
            facts[subset] = {key: round(result[subset][key], 6) for key in ("hr@10", "ndcg@10")}
        curve = [epoch["hr@10"] for epoch in history]
        records.append({"settings": settings, "towers": towers, "seed": seed, **facts, "curve": curve})
    path = Path(__file__).parent / "demo" / "towers.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
