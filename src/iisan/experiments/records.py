"""Records of runs, and tables made from them.

A record is the JSON file that a run of an experiment leaves, failed or not. The runs of a row differ only in their
seed, so a table shows the mean and the sample standard deviation over them.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from iisan.errors import ConfigError, RunError
from iisan.evaluate.significance import Spread, spread
from iisan.legacy import upgraded_config, upgraded_keys
from iisan.names import INTER
from iisan.runs.conditions import conditions, listed, why_not_compared

KIND = "iisan-record"
SCHEMA = 2
MISSING = "–"
#: Mark of rows that may not have converged.
LIMITED = " †"
#: Costs that depend on the machine.
_COSTS = {"seconds_per_epoch", "peak_memory_bytes"}
#: Fields in which the records of a table agree, with their plurals.
_SHARED = {"experiment": "experiments", "scale": "scales", "data": "data", "protocol": "protocols"}
_AGAIN = "make it again, or move it away"
CURE = "name the record files, or the folders that 'iisan experiment' wrote"


def _numbers(value: Any) -> Any:
    """Leave out what is no number, such as a protocol's name or a metric that was not measured."""
    if not isinstance(value, dict):
        return value
    return {k: v for k, v in value.items() if isinstance(v, int | float) and not isinstance(v, bool)}


Numbers = Annotated[dict[str, float], BeforeValidator(_numbers)]


class Record(BaseModel):
    """Result of one run. Metrics are shares of 1; a failed run may lack everything after ``error``.

    Attributes:
        experiment: Table or sweep that the run belongs to, such as ``table-3``.
        scale: Size that it ran at, such as ``demo``; runs of different scales are never averaged.
        row: Row of the table.
        position: Position of the row in its table, from 0.
        seed: Seed of the run; None if nothing is drawn at random.
        status, error: Whether the run finished, and if not, why.
        config: Resolved configuration.
        versions: Versions of the libraries.
        machine, device, threads, processes, precision: Conditions of training; there is no precision in records of
            version 0.1.
        data, states: Fingerprints of the dataset, and of the state store of each modality.
        encoder_parameters, store_bytes: Parameters of the encoder and size of the state store of each modality,
            where known.
        protocol: Evaluation protocol, in words.
        best_epoch, epochs: The tested epoch, from 1, and the number of epochs trained.
        validation, test: Metrics of the best epoch.
        history: ``epoch``, ``loss``, validation metrics and seconds of every epoch.
        gates: Tower -> learned weight per gated level: of the previous state within a modality (IISAN, eq. 1), of
            the first modality for ``inter`` (IISAN, eq. 2).
        efficiency: ``seconds_per_epoch``, ``trainable_parameters``, ``total_parameters`` and
            ``peak_memory_bytes``, where measured.
        source: File that the record was read from.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    experiment: str
    scale: str = ""
    row: str
    position: int = 0
    seed: int | None = None
    status: Literal["finished", "failed"]
    error: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    device: str | None = None
    threads: int | None = None
    processes: int | None = None
    precision: str | None = None
    data: str | None = None
    states: dict[str, Any] = Field(default_factory=dict)
    encoder_parameters: Numbers = Field(default_factory=dict)
    store_bytes: Numbers = Field(default_factory=dict)
    protocol: str | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    validation: Numbers = Field(default_factory=dict)
    test: Numbers = Field(default_factory=dict)
    history: tuple[Numbers, ...] = ()
    gates: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    efficiency: Numbers = Field(default_factory=dict)
    source: str = ""

    @property
    def finished(self) -> bool:
        """Whether the run finished, so that its figures count."""
        return self.status == "finished"

    @property
    def stopped_early(self) -> bool:
        """Whether training ended before its limit of epochs, as the validation metric no longer rose."""
        return self.epochs is None or self.epochs < self.config.get("training", {}).get("epochs", math.inf)

    @property
    def reason(self) -> str:
        """The error in one line, empty for a finished run."""
        return "" if self.finished else " ".join((self.error or "no error was recorded").split())


@dataclass(frozen=True)
class Row:
    """One row of a table; None stands for what no finished run measured.

    Attributes:
        name: Name of the row.
        runs: Finished runs.
        failures: Failed runs.
        hr, ndcg, cold_hr: Test HR@10, NDCG@10, and HR@10 of cold targets, as shares of 1.
        seconds_per_epoch, peak_memory_bytes: Means; None if the conditions of the table's runs differ.
        trainable_parameters: Mean number of trained weights.
        encoder_parameters: Modality -> parameters of the encoder; empty if unknown.
        store_bytes: Size of all state stores together.
    """

    name: str
    runs: tuple[Record, ...]
    failures: tuple[Record, ...]
    hr: Spread | None
    ndcg: Spread | None
    cold_hr: Spread | None
    seconds_per_epoch: float | None
    trainable_parameters: float | None
    peak_memory_bytes: float | None
    encoder_parameters: Mapping[str, float]
    store_bytes: float | None

    @property
    def limited(self) -> bool:
        """Whether the training of a run ended at its limit of epochs."""
        return not all(run.stopped_early for run in self.runs)


def read_records(paths: Iterable[str | Path], required: bool = True) -> list[Record]:
    """Read records from files, and from folders and all that is below them, in the order of their names.

    JSON of another kind is skipped; a file that is reached twice counts once.

    Raises:
        ConfigError: A path that does not exist, or no record at all where one is ``required``.
        RunError: A file that is not JSON, or a record that is damaged or of a newer schema.
    """
    paths = list(paths)
    found = [_record(path, value) for path, value in json_of_kind(paths, KIND, SCHEMA)]
    if required and not found:
        places = ", ".join(f"'{path}'" for path in paths) or "no path at all"
        raise ConfigError(f"no record in {places}", f'JSON files with "kind": "{KIND}"', CURE)
    return found


def json_of_kind(paths: Iterable[str | Path], kind: str, schema: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield files of a kind with what they hold, as ``read_records`` finds them, and raises its errors."""
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigError(f"'{path}' does not exist", "a record or a folder of records", CURE)
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            files.setdefault(file.resolve(), file)
    for path in files.values():
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise RunError(f"'{path}' is not readable JSON", "a record that was written whole", _AGAIN) from None
        if not isinstance(value, dict) or value.get("kind") != kind:
            continue
        if not isinstance(value.get("schema"), int) or value["schema"] > schema:
            got = f"'{path}' has schema {value.get('schema')!r}"
            raise RunError(got, f"schema {schema} or older", "upgrade iisan")
        yield path, value


def _record(path: Path, value: dict[str, Any]) -> Record:
    try:
        config = upgraded_config(value.get("config", {}))
        record = Record.model_validate(upgraded_keys(value) | {"config": config, "source": str(path)})
        match value:
            case {"schema": 1, "config": {"items": {"gate_on": "hidden"}}}:
                record = record.model_copy(update={"gates": _complements(record.gates)})
        return record
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise RunError(f"'{path}' has a damaged field '{field}' ({first['msg']})", "a record", _AGAIN) from None


def _complements(gates: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """Convert gates of a record that holds the weights of the hidden states to those of the previous states."""
    return {
        tower: values if tower == INTER else tuple(1 - value for value in values)
        for tower, values in gates.items()
    }


def table(records: Sequence[Record], experiment: str | None = None) -> list[Row]:
    """Group the records of an experiment by row; quality is averaged over machines, costs are not (see `remark`).

    Rows, including those without a finished run, are ordered by position, then as first seen. ``experiment`` None
    means that all records are of one.

    Raises:
        ConfigError: No such record; several experiments, scales, data or protocols; or a seed that finished twice
            in a row.
    """
    chosen = [record for record in records if experiment is None or record.experiment == experiment]
    if not chosen:
        wanted = "no record" if experiment is None else f"no record of the experiment '{experiment}'"
        names = sorted({record.experiment for record in records})
        raise ConfigError(wanted, f"one of {', '.join(names)}" if names else "at least one", CURE)
    for field, plural in _SHARED.items():
        values = sorted({value for record in chosen if (value := getattr(record, field)) is not None})
        if len(values) > 1:
            raise ConfigError(
                f"records of the {plural} {', '.join(map(repr, values))} in one table",
                "records of one",
                "leave the others out, and give each an --out folder of its own",
            )
    names = list(dict.fromkeys(record.row for record in sorted(chosen, key=lambda record: record.position)))
    comparable = not why_not_compared(_conditions(chosen, costly=True))
    return [_row(name, [record for record in chosen if record.row == name], comparable) for name in names]


def remark(records: Sequence[Record]) -> str:
    """Say why the costs of an experiment's records are left out, or else which machines they ran on if several.

    Rows that may not have converged, as training reached its limit of epochs, are explained, too.
    """
    ran = _conditions(records, costly=False)
    several = len({condition for each in ran.values() for condition in each}) > 1
    said = why_not_compared(_conditions(records, costly=True)) or (f"run on: {listed(ran)}" if several else "")
    limits = sorted({record.epochs or 0 for record in records if record.finished and not record.stopped_early})
    if not limits:
        return said
    epochs = " or ".join(map(str, limits))
    return f"{said}{'; ' * bool(said)}{LIMITED.strip()} ended after {epochs} epochs, perhaps before it converged"


def _conditions(records: Sequence[Record], costly: bool) -> dict[str, list[str]]:
    """Row -> conditions of its finished runs; only of those that measured costs if ``costly``."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.finished and not (costly and _COSTS.isdisjoint(record.efficiency)):
            found.setdefault(record.row, []).append(conditions(record.model_dump()))
    return found


def _row(name: str, records: Sequence[Record], comparable: bool) -> Row:
    runs = tuple(record for record in records if record.finished)
    by_seed: dict[int | None, Record] = {}
    for run in runs:
        # Two runs of one seed are not two samples: the deviation would be too small.
        if run.seed in by_seed:
            got = f"seed {run.seed} of '{name}' finished twice ('{by_seed[run.seed].source}' and '{run.source}')"
            raise ConfigError(got, "one finished record for each seed of a row", "leave one of the two out")
        by_seed[run.seed] = run

    def cost(key: str) -> float | None:
        wanted = comparable or key not in _COSTS
        values = [run.efficiency[key] for run in runs if wanted and key in run.efficiency]
        return statistics.fmean(values) if values else None

    def quality(metric: str) -> Spread | None:
        return spread([run.test[metric] for run in runs if metric in run.test])

    return Row(
        name=name,
        runs=runs,
        failures=tuple(record for record in records if not record.finished),
        hr=quality("hr@10"),
        ndcg=quality("ndcg@10"),
        cold_hr=quality("cold_hr@10"),
        seconds_per_epoch=cost("seconds_per_epoch"),
        trainable_parameters=cost("trainable_parameters"),
        peak_memory_bytes=cost("peak_memory_bytes"),
        encoder_parameters=runs[0].encoder_parameters if runs else {},
        store_bytes=(sum(runs[0].store_bytes.values()) or None) if runs else None,
    )


def percent(value: Spread | None) -> str:
    """Format as ``10.32 ± 0.11 (3)``: in %, the number of seeds in brackets; one seed has no deviation."""
    if value is None:
        return MISSING
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"
    return f"{100 * value.mean:.2f}{deviation} ({value.count})"


def grid(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the heads of a table and its rows of cells, as text.

    Cold targets, costs and failures have a column only if there are any; encoders and state stores only if rows
    differ in their size.
    """

    def number(value: float | None, places: int = 0, unit: float = 1) -> str:
        return MISSING if value is None else f"{value / unit:,.{places}f}"

    def differing(values: Sequence[float | None]) -> Sequence[float | None]:
        return values if len({value for value in values if value}) > 1 else [None] * len(values)

    encoders = differing([sum(row.encoder_parameters.values()) or None for row in rows])
    stores = differing([row.store_bytes for row in rows])
    memory = [row.peak_memory_bytes for row in rows]
    digits = 0 if max((size or 0 for size in memory), default=0) >= 1e9 else 1
    always = {
        "": [row.name + LIMITED * row.limited for row in rows],
        "HR@10 (%)": [percent(row.hr) for row in rows],
        "NDCG@10 (%)": [percent(row.ndcg) for row in rows],
    }
    columns = {
        "cold HR@10 (%)": [percent(row.cold_hr) for row in rows],
        "s / epoch": [number(row.seconds_per_epoch, 2) for row in rows],
        "encoders' parameters": [number(size) for size in encoders],
        "stores (MB)": [number(size, 1, 1e6) for size in stores],
        "trained parameters": [number(row.trainable_parameters) for row in rows],
        "peak memory (MB)": [number(size, digits, 1e6) for size in memory],
        "failed runs": [str(len(row.failures) or MISSING) for row in rows],
    }
    shown = always | {head: cells for head, cells in columns.items() if set(cells) != {MISSING}}
    return list(shown), [list(cells) for cells in zip(*shown.values(), strict=True)]


def failures(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return ``(row, seed, error)`` of every failed run."""
    return [
        (row.name, MISSING if run.seed is None else str(run.seed), run.reason)
        for row in rows
        for run in row.failures
    ]


def markdown(records: Sequence[Record], experiment: str) -> str:
    """Return the table of an experiment in Markdown, followed by its remark and its failed runs.

    Raises:
        ConfigError: See ``table``.
    """
    rows = table(records, experiment)
    heads, body = grid(rows)
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    lines = [f"| {' | '.join(map(_cell, cells))} |" for cells in [heads, rule, *body]]
    lost = [f"- {_cell(name)}, seed {seed}: {_cell(error)}" for name, seed, error in failures(rows)]
    said = remark([run for row in rows for run in row.runs])
    lines += ["", f"{said[0].upper()}{said[1:]}."] if said else []
    return "\n".join([*lines, *(["", "Failed runs:", "", *lost] if lost else [])]) + "\n"


def _cell(text: str) -> str:
    """Escape text so that it cannot end its cell or line."""
    return " ".join(text.split()).replace("|", "\\|")
