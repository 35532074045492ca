"""A run as a folder for the Hugging Face Hub: the run without users, histories and paths, and its model card.

The folder is a run folder, so all commands open it that need neither ranks of users nor, without ``--dataset``, a
dataset.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from iisan.config import FOLDERS, Config, parse
from iisan.data.dataset import manifest_of as dataset_manifest
from iisan.encoders.hub import hub_id
from iisan.errors import IisanError
from iisan.files import write_json
from iisan.names import ITEM_ID, TEXT
from iisan.runs.run import CONFIG, ITEMS, MODEL, RESULT, SCHEMA, Run
from iisan.serve.export import MANIFEST, headlines, manifest_of
from iisan.serve.origins import origins

#: Entries of a result that are exported; others, such as folders, are not.
_PUBLIC = (
    *("kind", "schema", "recipe", "versions", "machine", "status", "protocol", "test", "parts", "terms"),
    *("data", "previous_data", "states", "anchor_states", "store_bytes", "state_origins", "continued_from"),
    *("encoders", "encoder_parameters", "items_without_content", "gates"),
    *("device", "threads", "processes", "precision", "requested_precision", "peak_memory_bytes", "memory"),
    *("selection", "validation", "best_epoch", "epochs", "trainable_parameters", "total_parameters"),
    *("train_seconds", "validation_seconds"),
)
_PUBLIC_OF_MEMBER = (
    *("fingerprint", "weight", "validation_without", "validation", "best_epoch", "epochs"),
    *("trainable_parameters", "total_parameters", "train_seconds", "validation_seconds"),
)
_TEMPLATE = Path(__file__).with_name("card.md.j2")


def write_public_run(run: Run, folder: Path) -> None:
    """Write a run into an empty folder, its result last.

    Items that were added are included. Those that were removed are in no list, but in histories they still count;
    their texts are not written.
    """
    removed = list(run.removed)

    def public(items: pl.DataFrame) -> pl.DataFrame:
        text = pl.when(~pl.col(ITEM_ID).is_in(removed)).then(TEXT)
        return items.select(ITEM_ID, text.alias(TEXT))

    shutil.copyfile(run.folder / MODEL, folder / MODEL)
    public(pl.read_parquet(run.folder / ITEMS, glob=False)).write_parquet(folder / ITEMS)
    run.additions.copy_to(folder, public)
    (folder / CONFIG).write_text(_public_config(run.config).to_yaml(), encoding="utf-8")
    write_json(
        folder / MANIFEST, manifest_of(run, "hub", items=len(run.items) - len(removed), states=origins(run))
    )
    write_json(folder / RESULT, _public_result(run.result))


def _public_config(config: Config) -> Config:
    """A configuration without folders, whether of data or of encoders."""

    def public(section: Any) -> Any:
        return section.model_copy(update={"encoder": section.encoder and hub_id(section.encoder)})

    columns = {name: public(column) for name, column in config.columns.items()}
    encoders = {"text": public(config.text), "image": public(config.image), "columns": columns}
    return config.model_copy(update={**dict.fromkeys(FOLDERS), **encoders})


def _public_result(result: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: result[name] for name in _PUBLIC if name in result}
    if "members" in result:
        found["members"] = [
            {
                "config": _public_config(parse(each["config"])).model_dump(mode="json"),
                **{name: each[name] for name in _PUBLIC_OF_MEMBER if name in each},
            }
            for each in result["members"]
        ]
    return {**found, "schema": SCHEMA}


def model_card(run: Run, header: Mapping[str, Any]) -> ModelCard:
    """Describe a run: data, protocol, metrics, cost, limits, licences of the encoders.

    Args:
        run: A finished run.
        header: Entries of the card's header, such as ``license`` and ``tags``.
    """
    result, known = run.result, origins(run)
    metrics = headlines(result["test"])
    # The hub wants a dataset of each number; which one it is, is not known here.
    results = [
        EvalResult(
            task_type="recommendation",
            dataset_type="interactions",
            dataset_name="interactions of the run, unpublished",
            dataset_config=result["protocol"],
            metric_type=name,
            metric_value=result["test"][name],
        )
        for name in metrics
    ]
    encoders = [each["id"].partition("@")[0] for each in known.values() if each["id"]]
    entries = {"license": "unknown", "base_model": sorted(set(encoders)) or None, **header}
    data = ModelCardData(model_name=f"iisan {run.config.recipe}", eval_results=results, **entries)
    tests = {**result.get("parts", {}), run.config.recipe: result["test"]}
    return ModelCard.from_template(
        data,
        str(_TEMPLATE),
        recipe=run.config.recipe,
        run=run,
        result=result,
        tests=tests,
        metrics=metrics,
        counts=_counts(run),
        offered=len(run.items) - len(run.removed),
        added=len(run.items) - run.num_trained,
        origins=known,
        length=run.scorer.history_length,
        terms=result.get("terms", {}).get("weights"),
        licensed=entries["license"],
    )


def _counts(run: Run) -> dict[str, Any]:
    """Counts of the dataset of the training; empty if it is not there."""
    if run.config.dataset is None:
        return {}
    try:
        manifest = dataset_manifest(run.config.dataset)
    except IisanError:
        return {}
    return manifest["counts"] if manifest["content_hash"] == run.result["data"] else {}
