"""Folders of studies: what they hold, and the result of a finished one."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iisan.errors import RunError
from iisan.evaluate.metrics import REPORTED
from iisan.files import read_manifest

KIND = "iisan-study"
SCHEMA = 1
#: What a study was begun with.
MANIFEST = "study.json"
RESULT = "result.json"
#: The best settings, as a configuration.
BEST = "best.yaml"
#: Trials, in the format of Optuna.
TRIALS = "trials.db"


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study, finished or not."""
    return (folder / MANIFEST).exists()


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result of a finished study.

    Raises:
        RunError: The study is not finished, or its result is damaged.
    """
    if is_study(folder) and not (folder / RESULT).exists():
        got = f"the study in '{folder}' is not finished"
        raise RunError(got, "one whose best settings have been tested", "repeat its command of `iisan tune`")
    return read_manifest(folder / RESULT, KIND, SCHEMA, RunError, "name a folder of `iisan tune`")


def counted(result: Mapping[str, Any]) -> str:
    """Number of trials by how they ended: ``20 trials, 6 stopped, 1 failed``."""
    states = Counter(trial["state"] for trial in result["trials"])
    rest = [f"{states[name]} {name}" for name in ("stopped", "failed") if states[name]]
    return ", ".join([f"{states.total()} trials", *rest])


def tested(result: Mapping[str, Any]) -> str:
    """Test metrics at the objective's cut-off: ``HR@10 10.32 ± 0.11 %, … (seeds 0, 1, 2)``."""
    cutoff = result["objective"].partition("@")[2]
    spreads = {name.upper(): result["test"][name] for name in (f"{kind}@{cutoff}" for kind in REPORTED)}
    values = ", ".join(
        f"{name} {100 * each['mean']:.2f}" + (f" ± {100 * each['deviation']:.2f} %" if each["count"] > 1 else " %")
        for name, each in spreads.items()
    )
    return f"{values} (seeds {', '.join(map(str, result['space']['seeds']))})"


def described(settings: dict[str, Any]) -> str:
    """Settings in one line: ``sequence.num_layers=2, sequence.dropout=0.213``."""
    return ", ".join(f"{key}={shown(value)}" for key, value in settings.items())


def shown(value: Any) -> str:
    """A value of a setting; fractions with three significant digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
