"""Quality of a run when a modality is missing or corrupted."""

import json
import shutil

import numpy as np
import pytest
import torch

from iisan.errors import ConfigError, DataError
from iisan.evaluate.tpme import PAPER
from iisan.experiments.robustness import decline
from iisan.model import load_trainable
from iisan.recipes import recipe
from iisan.runs.compare import compare_runs
from iisan.runs.run import Run
from iisan.states.corruption import CorruptedStates
from iisan.train.run import train
from iisan.train.setup import build


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """A run without and one with modality dropout."""
    out = tmp_path_factory.mktemp("robustness")
    folders = {"dataset": prepared.dataset, "states": prepared.states}
    for name, rate in (("plain", 0.0), ("dropout", 0.4)):
        changes = ["training.epochs=3", "training.precision=fp32", "loss.negatives=0"]
        config = recipe("default").model_copy(update=folders)
        train(config.override([*changes, f"training.modality_dropout={rate}"]), out / name)
    return out


def test_without_corruption_metrics_are_those_of_the_run(runs):
    test = json.loads((runs / "plain" / "result.json").read_text())["test"]
    found = decline(runs / "plain", "text", [0.0, 1.0], "remove")
    assert found.evaluations[0].metrics == pytest.approx(test)
    assert found.kept("hr@10")[0] == 1.0
    assert found.values("hr@10") == [each.metrics["hr@10"] for each in found.evaluations]


def test_without_any_text_a_run_is_one_of_images_alone(runs):
    run = Run.load(runs / "dropout")
    network = build(run.config).network
    load_trainable(network, run.weights())
    before = network.item_embeddings()
    network.source = CorruptedStates(network.source, "text", np.ones(30, dtype=bool), "remove")
    after = network.item_embeddings()
    torch.testing.assert_close(before[3], after[3])  # it never had a text
    assert torch.equal(after[4], after[5])  # without image and now without text: the cold item
    assert torch.equal(before[5], after[5])
    assert not torch.isclose(before[0], after[0]).all()


def test_only_the_named_items_are_corrupted(runs):
    whole = decline(runs / "plain", "text", [0.0], "remove")
    lacking = decline(runs / "plain", "text", [1.0], "remove", ids=["i3", "i5"])  # items without a text
    assert lacking.evaluations[0].per_user.equals(whole.evaluations[0].per_user)
    with pytest.raises(DataError, match="unknown item 'x'"):
        decline(runs / "plain", "text", [1.0], "remove", ids=["x"])
    with pytest.raises(ConfigError, match=r"the rates \[2.0\]"):
        decline(runs / "plain", "text", [2.0], "remove")
    with pytest.raises(ConfigError, match="the seed -1; expected 0 or more"):
        decline(runs / "plain", "text", [1.0], "remove", seed=-1)


def test_the_command_prints_and_draws(runs, tmp_path, iisan):
    command = ["robustness", runs / "plain", runs / "dropout", "--modality", "image", "--how", "swap"]
    code, printed, _ = iisan(*command, "--rates", "0,0.5", "--out", tmp_path / "d.svg")
    assert code == 0
    assert "wrong image" in printed
    assert "(100%)" in printed
    assert (tmp_path / "d.svg").read_text().startswith("<svg")


def test_runs_in_folders_of_one_name_are_told_apart(runs, tmp_path, iisan):
    folders = [
        shutil.copytree(runs / name, tmp_path / name / "run", dirs_exist_ok=True) for name in ("plain", "dropout")
    ]
    drawn = tmp_path / "d.svg"
    code, printed, _ = iisan(
        "robustness", *folders, "--modality", "text", "--rates", "0,1", "--out", drawn, "--json"
    )
    assert (code, [each["run"] for each in json.loads(printed)]) == (0, ["plain/run", "dropout/run"])
    assert all(name in drawn.read_text() for name in ("plain/run", "dropout/run"))
    assert list(compare_runs(folders, PAPER).tpme) == ["plain/run", "dropout/run"]


def test_ids_that_are_not_text(runs, tmp_path, iisan):
    (tmp_path / "ids").write_bytes("é".encode("latin-1"))
    code, _, error = iisan("robustness", runs / "plain", "--modality", "text", "--items", tmp_path / "ids")
    assert (code, error.count("\n")) == (2, 1)
    assert "ids' is not UTF-8 text; expected item ids, one per line: save it as UTF-8" in error


def test_an_id_is_a_line(runs, tmp_path, iisan):
    (tmp_path / "ids").write_text(" i3 \r\n\ni 5\n")
    code, _, error = iisan("robustness", runs / "plain", "--modality", "text", "--items", tmp_path / "ids")
    assert (code, "unknown item 'i 5'" in error) == (2, True)


def test_seeds_that_are_not_decimal_numbers(iisan):
    code, _, error = iisan("experiment", "table-3", "--seeds", "0,²")
    assert (code, error.count("\n")) == (2, 1)
    assert "the seeds '0,²'" in error
