"""Kill workers and commands of ``--ray`` at random moments: the stores are those of one machine, byte for byte.

The test kills three workers and one command; ``python tests/test_killed_clusters.py 10 3`` does it as often as
wanted and prints what happened.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from iisan.scale.cluster import SETTINGS
from test_kills import cache_command, make_dataset, run, store_contents

pytest.importorskip("ray", reason="the extra 'ray' is not installed")


def workers():
    """Processes of workers, of the clusters that this process started, which are at a task."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::Worker.call"]:
                found.append(process)
    return found


def run_with_kills(command, folder, worker_kills, driver_kills, rng):
    """Run a command until it ends by itself; return the numbers of workers and commands that were killed.

    They are killed while workers are at a task, so that there is work to lose.
    """
    killed = [0, 0]
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with process:
            while process.poll() is None:
                time.sleep(rng.uniform(0.0, 0.5))
                if not (running := workers()) or not list(folder.rglob("manifest.json")):
                    continue
                if killed[0] < worker_kills and (killed[1] == driver_kills or rng.random() < 0.7):
                    rng.choice(running).kill()
                    killed[0] += 1
                elif killed[1] < driver_kills:
                    process.kill()
                    killed[1] += 1
                    break
            errors = process.stderr.read()
        if process.returncode == 0:
            return killed, errors
        assert process.returncode == -9, errors


def check(work, worker_kills, driver_kills, seed, say=print):
    import ray

    os.environ.update(SETTINGS, OMP_NUM_THREADS="1")
    rng, dataset = random.Random(seed), make_dataset(work, num_items=1500)
    states, killed_states = work / "states", work / "killed-states"
    run(cache_command(dataset, states))
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=2, num_gpus=0, **options)
    try:
        command = [*cache_command(dataset, killed_states), "--ray", ray.get_runtime_context().gcs_address]
        passes, left = [], [worker_kills, driver_kills]
        while any(left):
            killed, errors = run_with_kills(command, killed_states, *left, rng)
            assert store_contents(killed_states) == store_contents(states), errors
            assert not list(killed_states.rglob("*.part"))
            lost = max([0, *(int(number) for number in re.findall(r"(\d+) workers lost", errors))])
            passes.append(f"{killed[0]} workers ({lost} reported by the last command) and {killed[1]} commands")
            left = [wanted - done for wanted, done in zip(left, killed, strict=True)]
            shutil.rmtree(killed_states)
    finally:
        ray.shutdown()
    say(f"killed, pass by pass: {'; '.join(passes)}; every store is that of one machine, byte for byte")


def test_killed_workers_and_commands_lose_nothing(tmp_path):
    check(tmp_path, worker_kills=3, driver_kills=1, seed=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        check(Path(name), int(sys.argv[1]), int(sys.argv[2]), seed=1)
