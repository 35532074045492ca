"""Running an experiment: one record per run, failures included; finished runs are not run again."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from iisan.config import FOLDERS, Config
from iisan.efficiency.measure import measure
from iisan.encoders.load import load_encoder
from iisan.errors import IisanError
from iisan.experiments.records import KIND, SCHEMA
from iisan.experiments.tables import WITH_COSTS, Scale, experiment
from iisan.files import sha256_json, write_json
from iisan.names import IMAGE, TEXT
from iisan.nested import difference, with_defaults
from iisan.states.configured import open_dataset, open_stores
from iisan.train.checkpoint import changed_inputs
from iisan.train.loop import METRICS
from iisan.train.run import train
from iisan.train.setup import fingerprints, resolve, with_split

#: Keys that a record copies from a run's result.
_COPIED = (
    *("versions", "machine", "data", "states", "encoders", "encoder_parameters", "store_bytes", "protocol"),
    *("best_epoch", "epochs", "validation", "test", "precision", "device", "memory", "threads", "processes"),
)

#: Costs in a record: those logged by training, measured in a separate process, or none.
Costs = Literal["logged", "measured", "none"]


def run_experiment(
    name: str, scale: Scale, out: Path, seeds: Sequence[int] = (0,), say: Callable[[str], None] = lambda line: None
) -> Path:
    """Run every row of an experiment with every seed, or only the first seed (see ``Scale.live``).

    A failed row is recorded with its error, and the others continue. Rows with equal configurations share one
    training, also across experiments. A finished row is run again if its data, states or live encoders changed.

    Returns:
        Folder of the records, ``<out>/<scale>/<name>/``; runs go to ``<out>/runs/``.

    Raises:
        ConfigError: An unknown experiment.
    """
    rows = experiment(name)(scale)
    records = out / scale.name / name
    for seed in seeds:
        for position, (row, config) in enumerate(rows.items()):
            if scale.live and config.source != "cached" and seed != seeds[0]:
                continue
            path = records / f"{_slug(row)}-seed{seed}.json"
            # ``auto`` may choose differently from row to row, but costs are compared in one precision.
            precision = "fp32" if config.training.precision == "auto" else config.training.precision
            seeded = with_split(config).override((f"training.seed={seed}", f"training.precision={precision}"))
            if _finished(path, seeded):
                say(f"{row}, seed {seed}: finished already")
                continue
            facts = {"experiment": name, "scale": scale.name, "row": row, "position": position, "seed": seed}
            costs: Costs = "logged" if name not in WITH_COSTS else "measured" if seed == seeds[0] else "none"
            record = _run(seeded, out / "runs", costs)
            write_json(path, {"kind": KIND, "schema": SCHEMA, **facts, **record})
            say(_line(row, seed, record))
    return records


def _run(config: Config, runs: Path, costs: Costs) -> dict[str, Any]:
    """Train one row and measure its costs; return its part of the record, for a failure too."""
    settings = _portable(config)
    try:
        resolved = resolve(config)
        folder = runs / sha256_json([_portable(resolved), _inputs(resolved)])[:16]
        result = train(resolved, folder)
        trained = resolved.items.kind != "none"
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines() if trained else []
        history = [json.loads(line) for line in lines]
        efficiency = {key: result[key] for key in ("trainable_parameters", "total_parameters")}
        if trained and costs == "logged":
            seconds = [epoch["train_seconds"] for epoch in history]
            efficiency["seconds_per_epoch"] = _typical(seconds, resolved.tuning.refresh)
        elif trained and costs == "measured":
            found = measure(resolved)
            for key in ("seconds_per_epoch", "seconds_per_step", "peak_memory_bytes", "baseline_memory_bytes"):
                efficiency[key] = getattr(found, key)
            efficiency |= {f"{stage}_seconds": seconds for stage, seconds in found.stages.items()}
    # No error of one row may stop the others.
    except Exception as error:
        return {"status": "failed", "error": f"{type(error).__name__}: {error}", "config": settings}
    return {
        "status": "finished",
        "config": settings,
        **{key: result[key] for key in _COPIED},
        "anchor_states": result.get("anchor_states", {}),
        "history": history,
        # The inter tower has a weight per modality, of which the first is kept.
        "gates": {
            tower: [value[0] if isinstance(value, list) else value for value in values]
            for tower, values in result["gates"].items()
        },
        "efficiency": efficiency,
    }


def _typical(seconds: Sequence[float], cycle: int) -> float:
    """Mean over the places in a cycle of epochs (see ``tuning.refresh``) of the median at each place.

    Medians are robust to epochs in which the machine was busy with other work.
    """
    return statistics.fmean(statistics.median(seconds[place::cycle]) for place in range(min(cycle, len(seconds))))


def _portable(config: Config) -> dict[str, Any]:
    """Settings without the folders of this machine; fingerprints identify data and states."""
    settings = config.model_dump(mode="json", exclude=set(FOLDERS))
    for section in (*(settings[kind] for kind in (TEXT, IMAGE)), *settings["columns"].values()):
        name = section["encoder"]
        section["encoder"] = name and (Path(name).name if Path(name).is_dir() else name)
    return settings


def _inputs(config: Config) -> dict[str, Any]:
    """Fingerprints of what a resolved row reads, under their keys in a record."""
    found = fingerprints(config, open_dataset(config), open_stores(config))
    if config.source == "live":  # fingerprints of stores include those of their encoders
        for modality in config.modalities or ():
            wanted = config.states_of(modality)
            digest = load_encoder(str(wanted.kind), str(wanted.encoder)).weight_digest
            found.setdefault("encoders", {})[modality] = digest
    return found


def _finished(path: Path, config: Config) -> bool:
    if not path.exists():
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    recorded = with_defaults(record["config"], Config().model_dump(mode="json"))
    if record["status"] != "finished" or difference(recorded, _portable(config)):
        return False
    try:
        return not changed_inputs(record, _inputs(resolve(config)))
    except IisanError:  # reported when the row is run
        return False


def _slug(row: str) -> str:
    """Make a file name from a row's name."""
    kept = "".join(letter if letter.isalnum() or letter in "+-" else " " for letter in row.lower())
    return "-".join(kept.split())


def _line(row: str, seed: int, record: dict[str, Any]) -> str:
    if record["status"] == "failed":
        return f"{row}, seed {seed}: FAILED ({record['error']})"
    costs = record["efficiency"]
    seconds = f", {costs['seconds_per_epoch']:.1f} s each" if "seconds_per_epoch" in costs else ""
    return (
        f"{row}, seed {seed}: HR@10 {100 * record['test']['hr@10']:.2f}%, {record['epochs']} epochs{seconds}, "
        f"{costs['trainable_parameters']:,} parameters"
    )
