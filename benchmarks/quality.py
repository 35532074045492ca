"""Time to quality: from raw files to the metrics of `similarity` and of `default`, step by step.

    python benchmarks/quality.py DATA MODEL --out benchmarks/results/quality.json

DATA is Amazon "Industrial & Scientific" (titles only), MODEL a text encoder. Every step is a command, as a user
would type it, with all threads. The paper reaches a test HR@10 of 6.83% on this data with text and images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import write_record

PAPER = 0.0683
POLICY = "evaluation.policy=exclude-all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    steps: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data, states = folder / "data", folder / "states"
        inputs = ["--dataset", data, "--states", states, "--set", POLICY]
        commands = {
            "prepare": ["prepare", "reference", arguments.data, "--out", data],
            "cache": ["cache", data, "--text", arguments.model, "--recipe", "default", "--out", states],
            "train similarity": ["train", "similarity", *inputs, "--out", folder / "similarity"],
            "train default": ["train", "default", *inputs, "--out", folder / "default"],
        }
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "iisan.cli", *map(str, command)], check=True)
            steps.append({"step": name, "seconds": time.perf_counter() - started})
            if command[0] == "train":
                result = json.loads((folder / command[1] / "result.json").read_text())
                runs[command[1]] = {"test": result["test"], "threads": result["threads"]}
                # Of the trainings, only its own is on the way to a run.
                before = sum(step["seconds"] for step in steps if not step["step"].startswith("train"))
                runs[command[1]]["seconds"] = before + steps[-1]["seconds"]
    lines = [
        "| step | seconds |",
        "|---|---:|",
        *(f"| {step['step']} | {step['seconds']:.0f} |" for step in steps),
        "",
        "| | minutes from raw files to metrics | test HR@10, % | test NDCG@10, % |",
        "|---|---:|---:|---:|",
    ]
    for name, run in runs.items():
        test = run["test"]
        lines.append(
            f"| `{name}` | {run['seconds'] / 60:.1f} | {100 * test['hr@10']:.2f} | {100 * test['ndcg@10']:.2f} |"
        )
    reached = [run["seconds"] for run in runs.values() if run["test"]["hr@10"] >= PAPER]
    said = f"after {min(reached) / 60:.1f} minutes" if reached else "not reached"
    threads = runs["default"]["threads"]
    lines += ["", f"The paper's HR@10 of {100 * PAPER:.2f}%: {said}. {threads} threads, seed 0."]
    write_record(arguments.out, "Time to quality", {"steps": steps, "runs": runs}, lines)


if __name__ == "__main__":
    main()
