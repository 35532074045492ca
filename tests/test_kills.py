"""Kill ``iisan cache`` and ``iisan train`` at random moments: they resume, and the result is the same.

The tests kill each command three times; ``python tests/test_kills.py 20`` does it as often as wanted and
prints what happened.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from iisan.data.prepare import PrepareOptions, prepare
from iisan.demo.catalogue import generate
from iisan.demo.run import ENCODERS

IISAN = [sys.executable, "-m", "iisan.cli"]


def make_dataset(folder, num_items=240):
    generate(seed=3, num_items=num_items, num_users=300).write(folder / "raw")
    sources = [folder / "raw" / "items.csv", folder / "raw" / "interactions.csv"]
    prepare("table", sources, folder / "dataset", PrepareOptions(images=folder / "raw" / "images"))
    return folder / "dataset"


def cache_command(dataset, out):
    models = ["--text", str(ENCODERS / "text"), "--image", str(ENCODERS / "image")]
    return [*IISAN, "cache", str(dataset), *models, "--out", str(out), "--shard-rows", "32", "--precision", "fp32"]


def train_command(dataset, states, out):
    folders = ["--dataset", str(dataset), "--states", str(states), "--out", str(out)]
    settings = [
        "--set",
        "training.epochs=8",
        "--set",
        "training.precision=fp32",
        "--set",
        "loss.negatives=50",
        "--set",
        "training.early_stopping_patience=0",
    ]
    return [*IISAN, "train", "default", *folders, *settings]


def run(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def run_with_kills(command, folder, kills, seconds, rng, check):
    """Run the command to its end several times, killing it at random moments until it was killed often enough.

    Args:
        command: writes ``folder``, and goes on with what it finds there.
        folder: removed whenever the command has come to its end.
        kills: how many.
        seconds: that an uninterrupted run took.
        rng: of the moments.
        check: called whenever the command has come to its end.

    Returns:
        The moments of the kills, pass by pass.
    """
    passes = []
    while sum(map(len, passes)) < kills:
        if folder.exists():
            shutil.rmtree(folder)
        moments = []
        while sum(map(len, passes)) + len(moments) < kills:
            moment = rng.uniform(0.3, 1.0) * seconds
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                _, errors = process.communicate(timeout=moment)
                assert process.returncode == 0, errors
                if not moments:
                    # The machine may have become faster since, and no moment would come before the end.
                    seconds = time.perf_counter() - started
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                moments.append(moment)
        run(command)
        check()
        passes.append(moments)
    return passes


def contents(folder, patterns):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.rglob(pattern))
    }


def store_contents(folder):
    return contents(folder, ["*.safetensors", "manifest.json"])


def run_contents(folder):
    result = json.loads((folder / "result.json").read_text())
    outcome = {key: result[key] for key in ("status", "best_epoch", "epochs", "test")}
    return outcome, contents(folder, ["model.safetensors", "per_user.parquet"])


def check(work, kills, seed, say=print):
    rng = random.Random(seed)
    dataset = make_dataset(work)
    states, killed_states = work / "states", work / "killed-states"
    seconds = run(cache_command(dataset, states))

    def check_states():
        assert store_contents(killed_states) == store_contents(states)
        assert not list(killed_states.rglob("*.part"))

    command = cache_command(dataset, killed_states)
    passes = run_with_kills(command, killed_states, kills, seconds, rng, check_states)
    say(f"cache: {seconds:.1f} s uninterrupted; killed {described(passes)}")

    whole, killed = work / "run", work / "killed-run"
    seconds = run(train_command(dataset, states, whole))

    def check_run():
        assert run_contents(killed) == run_contents(whole)

    passes = run_with_kills(train_command(dataset, states, killed), killed, kills, seconds, rng, check_run)
    say(f"train: {seconds:.1f} s uninterrupted; killed {described(passes)}")
    say("all resumed; stores and runs are equal to the uninterrupted ones, byte for byte")


def described(passes):
    """How often, and when."""
    moments = "; ".join(", ".join(f"{moment:.1f}" for moment in kills) or "–" for kills in passes)
    return f"{sum(map(len, passes))} times in {len(passes)} passes, seconds after each start: {moments}"


@pytest.mark.parametrize("seed", [0])
def test_killed_commands_resume_to_the_same_result(tmp_path, seed):
    check(tmp_path, kills=3, seed=seed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        check(Path(name), int(sys.argv[1]), seed=1)
