"""Studies on a tiny dataset: kills, several processes, stopped and failed trials, the test at the end."""

import contextlib
import json
import shutil
import subprocess
import sys
import time

import optuna
import pytest

from iisan.errors import MissingExtraError, RunError
from iisan.experiments.report import write_report
from iisan.recipes import load_config
from iisan.runs.assess import measure
from iisan.train.loop import CHECKPOINT
from iisan.tune.results import KIND, read_result
from iisan.tune.space import Space, with_settings
from iisan.tune.study import _open_trials, _Search, tune

#: Settings of short trials.
QUICK = {
    **{"training.epochs": 2, "training.batch_size": 16, "loss.negatives": 5, "items.embedding_dim": 16},
    "anchor.enabled": False,
}
VARIED = {
    "optimizer.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "items.bottleneck": {"low": 4, "high": 32, "step": 4},
    "sequence.num_layers": [1, 2],
}


def space(**changes):
    whole = {
        "objective": "ndcg@10",
        "settings": QUICK,
        "space": VARIED,
        "trials": 3,
        "seeds": [0],
        "prune_after": 1,
    }
    return Space.model_validate(whole | changes)


@pytest.fixture
def folders(prepared):
    return {"dataset": prepared.dataset, "states": prepared.states}


def without_times(result):
    trials = [{key: value for key, value in trial.items() if key != "seconds"} for trial in result["trials"]]
    return result | {"trials": trials}


def finished_trials(study):
    """Number -> all that is stored of a trial that has ended, with the moment when it did."""
    trials = optuna.load_study(study_name=KIND, storage=f"sqlite:///{study}/trials.db").trials
    return {trial.number: trial for trial in trials if trial.state.is_finished()}


def test_a_killed_study_loses_and_repeats_no_trial_and_finds_the_same(folders, tmp_path):
    searched = space(trials=20, seeds=[0, 1])
    whole = tune(searched, tmp_path / "whole", folders)
    assert {trial["state"] for trial in whole["trials"]} == {"finished", "stopped"}
    assert whole["importance"].keys() == VARIED.keys()
    assert sum(whole["importance"].values()) == pytest.approx(1)
    page = write_report([tmp_path / "whole"], tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 2
    assert "(PED-ANOVA)" in page

    file, killed = tmp_path / "space.yaml", tmp_path / "killed"
    file.write_text(json.dumps(searched.model_dump(mode="json")))
    named = [f"--{name}={folder}" for name, folder in folders.items()]
    command = [sys.executable, "-m", "iisan.cli", "tune", file, *named, "--out", killed]
    before = {}
    for number in (3, 8, 13):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            # Within a trial, after the first epoch of two.
            while not any((killed / f"trial-{each}" / CHECKPOINT).exists() for each in range(number, 20)):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -9
        after = finished_trials(killed)
        assert before.items() <= after.items()
        assert number <= len(after) < 20
        before = after
    found = tune(searched, killed, folders)
    assert before.items() <= finished_trials(killed).items()
    assert without_times(found) == without_times(whole)
    assert not list(killed.glob("trial-*"))


def test_trials_do_not_evaluate_the_test_subset(folders, tmp_path, monkeypatch):
    said, tested = [], []

    def measured(*given):
        tested.append(len(said))
        return measure(*given)

    monkeypatch.setattr("iisan.train.folder.measure", measured)
    result = tune(space(seeds=[3, 5]), tmp_path / "study", folders, said.append)
    # Three lines of trials come first, and one of the first seed between its test and the second one.
    assert tested == [3, 4]
    assert result["runs"] == ["seed-3", "seed-5"]
    runs = [json.loads((tmp_path / "study" / run / "result.json").read_text()) for run in result["runs"]]
    ours, theirs = (run["test"]["hr@10"] for run in runs)
    assert result["test"]["hr@10"]["mean"] == pytest.approx((ours + theirs) / 2)
    assert result["test"]["hr@10"]["deviation"] == pytest.approx(abs(ours - theirs) / 2**0.5)


def test_a_finished_study_is_printed_again_and_can_not_be_changed(folders, tmp_path, iisan):
    out = tmp_path / "study"
    first = tune(space(), out, folders)
    best = max(first["trials"], key=lambda trial: trial["value"] or 0)
    assert first["best"] == {"trial": best["number"], "value": best["value"], "settings": best["settings"]}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    said = []
    assert tune(space(), out, folders, said.append) == first == read_result(out)
    assert said == [f"{out} is finished already; nothing to do"]
    assert before.items() >= {path: path.stat().st_mtime_ns for path in out.glob("seed*/*.json")}.items()
    with pytest.raises(RunError, match="finished study of 3 trials, not 4"):
        tune(space(trials=4), out, folders)
    assert len(finished_trials(out)) == 3
    # The best settings are those of the run, as a configuration.
    again = with_settings(load_config(out / "best.yaml"), {"training.seed": 0})
    trained = load_config(out / "seed-0" / "config.yaml")
    for name in (*QUICK, *VARIED, "evaluation.select", "training.precision"):
        section, key = name.split(".")
        assert getattr(getattr(again, section), key) == getattr(getattr(trained, section), key)

    page = write_report([out], tmp_path / "page.html").read_text()
    assert page.count('<th scope="row">trial ') == 3
    assert "study (study)" in page
    shutil.copytree(out, tmp_path / "copy" / "study")
    both = write_report([out, tmp_path / "copy" / "study"], tmp_path / "page.html").read_text()
    assert both.count('<th scope="row">trial ') == 6
    assert "copy/study (study)" in both
    assert "Validation NDCG@10 of the finished trials" in page


def test_failed_trials_are_kept_with_their_reason_and_skipped(folders, tmp_path):
    rates = {"optimizer.learning_rate": [1e-3, 1e30]}
    result = tune(space(space=rates, trials=6), tmp_path / "study", folders)
    states = {trial["number"]: trial["state"] for trial in result["trials"]}
    failed = [trial for trial in result["trials"] if trial["state"] == "failed"]
    assert "finished" in states.values()
    assert {trial["settings"]["optimizer.learning_rate"] for trial in failed} == {1e30}
    assert all("a finite loss" in trial["error"] for trial in failed)
    page = write_report([tmp_path / "study"], tmp_path / "page.html").read_text()
    assert f"6, of which {len(failed)} failed" in page

    rates = {"optimizer.learning_rate": [1e29, 1e30]}
    for _ in range(2):
        with pytest.raises(RunError, match=r"all 2 trials in .* failed, the first because of 'RunError: the loss"):
            tune(space(space=rates, trials=2), tmp_path / "hopeless", folders)


def test_trials_below_the_median_are_stopped_unless_told_otherwise(folders, tmp_path):
    rates = {"optimizer.learning_rate": {"low": 1e-9, "high": 1e-1, "log": True}}
    stopped = tune(space(space=rates, trials=8), tmp_path / "stopped", folders)
    every = tune(space(space=rates, trials=8, prune_after=None), tmp_path / "every", folders)
    assert {trial["state"] for trial in every["trials"]} == {"finished"}
    curves = [trial["curve"]["1"] for trial in stopped["trials"]]
    assert [trial["state"] for trial in stopped["trials"][:5]] == ["finished"] * 5
    for number, trial in enumerate(stopped["trials"][5:], start=5):
        reached = sorted(curves[each] for each in range(number) if stopped["trials"][each]["state"] == "finished")
        median = (reached[len(reached) // 2] + reached[~(len(reached) // 2)]) / 2
        if curves[number] < median:
            assert (trial["state"], trial["epochs"], trial["value"]) == ("stopped", 1, None)


def test_an_interrupted_trial_is_taken_over_but_a_running_one_is_not(folders, tmp_path):
    searched = space()

    def search():
        base = searched.base().model_copy(update=folders)
        return _Search(_open_trials(tmp_path / "trials.db", searched), searched, base, tmp_path, print)

    ours, theirs = search(), search()
    with contextlib.ExitStack() as held:
        first = ours._claim(held)
        with contextlib.ExitStack() as also_held:
            second = theirs._claim(also_held)
            assert (first.number, second.number) == (0, 1)
            assert first.params != second.params
    with contextlib.ExitStack() as held:
        again = theirs._claim(held)
        assert (again.number, again.params) == (0, first.params)
        theirs._run(again)
    # Whoever saw it running finds it finished.
    with contextlib.ExitStack() as held:
        assert ours._claim(held).number == 1


def test_the_number_of_trials_may_change_until_the_test(folders, tmp_path):
    def interrupted(line):
        raise KeyboardInterrupt

    out = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        tune(space(trials=2), out, folders, interrupted)
    with pytest.raises(RunError, match="is not finished"):
        write_report([out], tmp_path / "page.html")
    changed = tune(space(trials=3), out, folders)
    whole = tune(space(trials=3), tmp_path / "whole", folders)
    assert without_times(changed) == without_times(whole)


def test_a_study_of_something_else_is_refused_and_stays(folders, prepared, tmp_path, iisan):
    out, file = tmp_path / "study", tmp_path / "space.yaml"
    tune(space(trials=1), out, folders)
    named = ["--states", prepared.states, "--out", out]
    file.write_text(json.dumps(space(trials=1, seed=1).model_dump(mode="json")))
    code, _, errors = iisan("tune", file, "--dataset", prepared.dataset, *named)
    assert code == 2
    assert "holds a study with space.seed = 0, not 1" in errors

    other = tmp_path / "other"
    shutil.copytree(prepared.dataset, other)
    manifest = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(manifest | {"content_hash": "0" * 64}))
    file.write_text(json.dumps(space(trials=1).model_dump(mode="json")))
    code, _, errors = iisan("tune", file, "--dataset", other, *named)
    assert code == 2
    assert "holds a study with data = " in errors
    assert errors.count("\n") == 1

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="neither a study nor empty"):
        tune(space(), foreign, folders)
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]

    (out / "result.json").unlink()
    (out / "trials.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError, match=r"trials\.db' cannot be read"):
        tune(space(trials=1), out, folders)


def test_without_optuna_the_extra_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[tune\]"'):
        tune(space(), tmp_path / "study", folders)
    assert not (tmp_path / "study").exists()
