"""``iisan demo``: the complete pipeline on the built-in catalogue, with the same functions as for real data."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisan.api import Recommender
from iisan.data.dataset import Dataset
from iisan.data.prepare import PrepareOptions, prepare
from iisan.demo.catalogue import Catalogue, generate
from iisan.demo.oracle import OracleScorer
from iisan.errors import DataError
from iisan.evaluate.baselines import most_popular
from iisan.files import read_manifest, write_json
from iisan.names import AUDIO, IMAGE, ITEM_ID, TEXT, VIDEO
from iisan.recipes import recipe
from iisan.runs.anchoring import LEARNED, SIMILARITY
from iisan.runs.assess import measure
from iisan.runs.run import Run
from iisan.states.caching import cache
from iisan.train.run import train

ENCODERS = Path(__file__).parent / "encoders"
#: Name of the model that writes captions.
CAPTIONER = "captioner"

#: Manifest beside the raw files, identifying their catalogue.
CATALOGUE = "catalogue.json"
KIND = "iisan-catalogue"
SCHEMA = 1

POPULARITY, ORACLE = "most popular", "oracle (best achievable)"
#: Name in the table -> recipe and its overrides.
RUNS: dict[str, tuple[str, ...]] = {
    "ids (SASRec)": ("ids",),
    "frozen states": ("frozen",),
    "IISAN, text only": ("default", "modalities=[text]"),
    "IISAN, images only": ("default", "modalities=[image]"),
    "IISAN": ("default",),
}
_ALL = "modalities=[image,text,audio,video]"
#: The same for the extended catalogue, adding one modality per row, then modality dropout.
EXTENDED_RUNS: dict[str, tuple[str, ...]] = {
    "IISAN, text only": ("default", "modalities=[text]"),
    "IISAN, text and images": ("default", "modalities=[image,text]"),
    "IISAN, no clips": ("default", "modalities=[image,text,audio]"),
    "IISAN": ("default", _ALL),
    "IISAN, modality dropout": ("default", _ALL, "training.modality_dropout=0.3"),
}
#: Overrides of all runs: a small network, few epochs and high learning rates suffice here.
SETTINGS = (
    "items.embedding_dim=64",
    "items.bottleneck=64",
    "sequence.num_layers=1",
    "sequence.dropout=0.1",
    "loss.negatives=200",
    "optimizer.learning_rate=0.004",
    "optimizer.san_learning_rate=0.004",
    "training.epochs=12",
)


@dataclass(frozen=True)
class DemoReport:
    """Results of the demo.

    Attributes:
        protocol: Protocol of the evaluation.
        metrics: Test metrics by row name, as fractions.
        recommended: Recommendations of IISAN for one user.
        folder: Folder of all artefacts.
    """

    protocol: str
    metrics: dict[str, dict[str, float]]
    recommended: list[dict[str, Any]]
    folder: str

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """Return title, column names and rows of the printed table."""
        names = ("hr@10", "ndcg@10", "cold_hr@10")
        rows = [
            [name, *(f"{100 * found[key]:.2f}" if key in found else "–" for key in names)]
            for name, found in self.metrics.items()
        ]
        return f"{self.protocol}; in %", ["", "HR@10#", "NDCG@10#", "cold HR@10#"], rows

    def closing(self) -> str:
        """Return an interpretation of the table and suggestions for next commands."""
        folder, share = self.folder, self.metrics["IISAN"]["hr@10"] / self.metrics[ORACLE]["hr@10"]
        return (
            f"IISAN reaches {100 * share:.0f}% of the oracle's HR@10. The oracle knows the process that generated "
            "the users;\nno recommender can beat it.\n"
            "All of this data is GENERATED: it shows that the pipeline works, not what to expect on your data.\n\n"
            "Next steps:\n"
            f"  iisan describe {folder}/dataset\n"
            f"  iisan evaluate {folder}/runs/iisan\n"
            f"  iisan recommend {folder}/runs/iisan --user u00001\n\n"
            "With your own data (a table of items, a table of interactions, a folder of images):\n"
            "  iisan prepare table items.csv purchases.csv --images photos --out my-data\n"
            "  iisan cache my-data --text MODEL --image MODEL --out my-states\n"
            "  iisan train default --dataset my-data --states my-states --out my-run\n"
            "  iisan recommend my-run --all-users --out recommendations.parquet"
        )


def run_demo(
    out: Path, seed: int = 0, extended: bool = False, say: Callable[[str], None] = lambda line: None
) -> DemoReport:
    """Generate, prepare, cache, train five models, compare them with popularity and the oracle, recommend.

    Finished steps are kept, so an interrupted call can be repeated.

    Args:
        out: Output folder.
        seed: Random seed of the catalogue and of all training runs.
        extended: Whether products also have tones and clips.
        say: Callback for progress messages.

    Raises:
        ConfigError: A negative seed.
        DataError: ``out`` holds another catalogue.
        MissingExtraError: ``extended`` without the extras ``audio`` and ``video``.
    """
    modalities = (IMAGE, TEXT, *((AUDIO, VIDEO) if extended else ()))
    methods = EXTENDED_RUNS if extended else RUNS
    say(f"1/5 generating a catalogue (seed {seed}) and preparing it")
    catalogue = generate(seed, extended=extended)
    dataset = demo_dataset(catalogue, out)
    say(f"    {dataset.num_items:,} items, {dataset.num_users:,} users, {dataset.num_interactions:,} interactions")
    say(f"2/5 caching the hidden states of {len(modalities)} small encoders")
    cache(dataset, out / "states", {name: str(ENCODERS / name) for name in modalities}, say=say)
    say(f"3/5 training {len(methods)} models")
    runs = {name: _run(name, *method, out=out, seed=seed, say=say) for name, method in methods.items()}
    say("4/5 ranking the whole catalogue for every user")
    protocol = runs["IISAN"].config.evaluation
    subsets = dataset.split(protocol)
    oracle = OracleScorer(catalogue, dataset.items[ITEM_ID].to_list())
    baselines = measure({POPULARITY: most_popular(subsets), ORACLE: oracle}, protocol, dataset, subsets)
    parts = runs["IISAN"].result["parts"]
    metrics = {POPULARITY: baselines[POPULARITY].metrics, SIMILARITY: parts[SIMILARITY]}
    metrics |= {name: run.result["test"] for name, run in runs.items()}
    metrics[f"IISAN, {LEARNED}"] = parts[LEARNED]
    metrics[ORACLE] = baselines[ORACLE].metrics
    say("5/5 recommending")
    recommended = Recommender(runs["IISAN"]).recommend(user=dataset.user_ids[1], k=5).to_dicts()
    return DemoReport(baselines[ORACLE].protocol, metrics, recommended, str(out))


def demo_dataset(catalogue: Catalogue, out: Path) -> Dataset:
    """Write a catalogue's raw files and prepare them, or open the dataset of an earlier call.

    Raises:
        DataError: ``out`` holds another catalogue.
    """
    raw, folder = out / "raw", out / "dataset"
    prepared = (folder / "dataset.json").exists()
    _check_catalogue(raw / CATALOGUE, catalogue, prepared)
    if prepared:
        return Dataset.load(folder)
    catalogue.write(raw)
    if catalogue.extended:
        options = PrepareOptions(columns={AUDIO: AUDIO, VIDEO: VIDEO})
    else:
        options = PrepareOptions(images=raw / "images")
    return prepare("table", [raw / "items.csv", raw / "interactions.csv"], folder, options)


def _check_catalogue(path: Path, catalogue: Catalogue, prepared: bool) -> None:
    """Write the manifest of a catalogue before its first file, or check the existing manifest against it."""
    ours = {"seed": catalogue.seed, "extended": catalogue.extended}
    if not path.exists():
        if not prepared:  # early versions wrote datasets without this manifest
            write_json(path, {"kind": KIND, "schema": SCHEMA, **ours})
        return
    cure = "choose another --out"
    theirs = read_manifest(path, KIND, SCHEMA, DataError, cure)
    for name, value in ours.items():
        if theirs.get(name) != value:
            got = f"'{path.parent}' holds a catalogue with {name} = {theirs.get(name)!r}, not {value!r}"
            raise DataError(got, "a new folder, or one with the same catalogue", cure)


def _run(name: str, base: str, *changes: str, out: Path, seed: int, say: Callable[[str], None]) -> Run:
    folder = out / "runs" / "-".join(re.findall(r"\w+", name.lower()))
    config = recipe(base).override((*SETTINGS, f"training.seed={seed}", *changes))
    config = config.model_copy(update={"dataset": out / "dataset", "states": out / "states"})
    result = train(config, folder)
    say(
        f"    {name}: {result['trainable_parameters']:,} parameters, {result['epochs']} epochs, "
        f"{result['train_seconds'] + result['validation_seconds']:.0f} s"
    )
    return Run.load(folder)
