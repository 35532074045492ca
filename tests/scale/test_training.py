"""Processes of a cluster train the run of one process, and go on if one of them is lost."""

import contextlib
import json
import queue
import re
from dataclasses import replace

import psutil
import pytest

from iisan.errors import ClusterError, RunError
from iisan.scale import training
from iisan.scale.training import train_on
from iisan.train.run import train

pytest.importorskip("ray.train", reason="the extra 'ray' is not installed")

#: Dropout off: each process draws its own.
STEADY = (
    "training.precision=fp32",
    "training.device=cpu",
    "sequence.dropout=0",
    "training.batch_size=16",
    "training.epochs=6",
    "loss.negatives=5",
)


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training_processes():
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_two_processes_of_which_one_is_killed_train_the_run_of_one(prepared, cluster, said, tmp_path):
    config = prepared.config("default", *STEADY)
    alone = train(config, tmp_path / "alone")
    killed = []

    def say(line):
        said.append(line)
        if line.startswith("epoch   2") and not killed:
            killed.extend(training_processes()[-1:])
            killed[0].kill()

    result = train_on(replace(cluster, say=say), config, tmp_path / "two", 2)
    assert killed
    assert sum("a process was lost; all begin again after epoch" in line for line in said) == 1
    assert sum(line.startswith("best epoch") for line in said) == 0  # the command says it
    assert (result["status"], result["processes"]) == ("finished", 2)
    for ours, theirs in zip(history(tmp_path / "alone"), history(tmp_path / "two"), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert result["best_epoch"] == alone["best_epoch"]
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "two"}


def test_what_a_process_refuses_ends_the_command(prepared, cluster, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is neither a run folder nor empty"):
        train_on(cluster, prepared.config("ids", *STEADY), tmp_path / "run", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_another_version_is_named():
    messages, refusals = queue.Queue(), []
    with pytest.raises(RuntimeError, match="the version of torch"):
        training._process()({"versions": {"torch": "0.1"}, "messages": messages})
    messages.put(None)
    training._read(messages, print, refusals)
    sentence = r"^on the machine .*, the version of torch is .*; expected 0\.1, as here: install the same versions"
    assert re.match(sentence, str(refusals[0]))
    assert isinstance(refusals[0], ClusterError)


def test_more_processes_than_fit_are_refused(prepared, cluster, tmp_path):
    with pytest.raises(ClusterError, match="3 processes where there is room for 2 workers with 1 thread each"):
        train_on(cluster, prepared.config("ids", *STEADY), tmp_path / "run", 3)


def test_processes_need_a_cluster(iisan, tmp_path):
    code, _, err = iisan("train", "ids", "--out", tmp_path / "run", "--processes", 2)
    assert code == 2
    assert err.startswith("error: --processes without --ray; expected a cluster that they run on")
