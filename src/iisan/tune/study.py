"""Studies: trials of settings on the validation subset, and a test of the best ones at the end.

A study may be killed at any moment, and several processes may work on it. A trial is stored with all its settings
before it begins, and has a folder, locked while it runs, with the checkpoint of its training. A trial without a
result in an unlocked folder was interrupted, and whoever finds it goes on with it. What is suggested depends only
on the seed, the trial's number and the trials before it, so one process suggests the same after any interruption.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from iisan.config import FOLDERS, Config
from iisan.errors import ConfigError, MissingExtraError, RunError
from iisan.evaluate.metrics import ranked_rows
from iisan.evaluate.significance import spread
from iisan.files import LOCK, aside, locked, read_manifest, write_json
from iisan.nested import difference, flatten, merge
from iisan.train.folder import header
from iisan.train.run import train, train_and_validate
from iisan.train.setup import fingerprints, open_inputs, resolve
from iisan.tune.results import BEST, KIND, MANIFEST, RESULT, SCHEMA, TRIALS, described, is_study, read_result
from iisan.tune.space import Range, Space, holds_whole_numbers, with_settings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Say = Callable[[str], None]
#: Finished trials that the median, below which others are stopped, is taken of at least.
_UNSTOPPED = 5
#: Names of Optuna's states in results.
_STATES = {"RUNNING": "running", "COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}


class _Taken(RunError):
    """A trial that another process runs."""


def tune(
    space: Space, out: Path, folders: Mapping[str, Path | None], say: Say = lambda line: None
) -> dict[str, Any]:
    """Search for the settings that validate best, train them with several seeds, and test these runs.

    Args:
        space: Search space.
        out: Folder of the study, which an interrupted call, and other processes, go on with.
        folders: ``dataset``, ``states`` and ``images`` -> folder.
        say: Callback for progress messages.

    Returns:
        The content of ``result.json``.

    Raises:
        ConfigError: The space has a key or value that cannot be used.
        RunError: ``out`` contains something else, such as a study of another space or dataset, or all trials
            failed.
        MissingExtraError: The extra ``tune`` is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "tune", "`iisan tune`") from None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        cure = "start `iisan tune` itself several times; these processes share the study"
        raise ConfigError("`iisan tune` was started by torchrun", "one process for each trial", cure)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    base = space.base().model_copy(update=folders)
    identity = _identity(space, base)
    _check_folder(out, identity)  # Before a lock file is put into it.
    with locked(out, RunError, wait=True):
        _check_folder(out, identity)
        if not is_study(out):
            write_json(out / MANIFEST, {"kind": KIND, "schema": SCHEMA, **identity})
        study = _open_trials(out / TRIALS, space)
    return _Search(study, space, base, out, say).run(identity)


def _identity(space: Space, base: Config) -> dict[str, Any]:
    """What all calls for a study agree in, as JSON; also finds out now what would be an error after the trials."""
    resolved = resolve(base)
    inputs = open_inputs(resolved)
    for queries in (inputs.split.validation, inputs.split.test):
        ranked_rows(queries, resolved.evaluation.policy)
    found = {
        # The number of trials may be changed until the test.
        "space": space.model_dump(mode="json", exclude={"trials"}),
        "config": base.model_dump(mode="json", exclude=set(FOLDERS)),
        **fingerprints(resolved, inputs.dataset, inputs.stores),
    }
    return json.loads(json.dumps(found))


def _check_folder(out: Path, identity: Mapping[str, Any]) -> None:
    """Raise a ``RunError`` if a folder holds anything but this study."""
    entries = list(out.iterdir()) if out.is_dir() else [out] if out.exists() else []
    if is_study(out):
        manifest = read_manifest(out / MANIFEST, KIND, SCHEMA, RunError, "choose another --out")
        theirs = {name: value for name, value in manifest.items() if name not in ("kind", "schema")}
        if found := difference(theirs, identity):
            key, before, now = found
            got = f"'{out}' holds a study with {key} = {before!r}, not {now!r}"
            raise RunError(
                got, "a new folder, or one of a study of the same space and data", "choose another --out"
            )
    elif any(entry.name != LOCK and not entry.name.startswith(f".{MANIFEST}.") for entry in entries):
        raise RunError(f"'{out}' is neither a study nor empty", "a new or empty folder", "choose another --out")


def _open_trials(path: Path, space: Space) -> "Study":
    """Open the trials of a study, or begin with none."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    def connect(path: Path) -> optuna.storages.RDBStorage:
        # Not by its address, in which characters of a path may have a meaning. Other processes write as well.
        creator = lambda: sqlite3.connect(path, timeout=100, check_same_thread=False)  # noqa: E731
        return optuna.storages.RDBStorage("sqlite:///" + TRIALS, engine_kwargs={"creator": creator})

    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if space.prune_after is not None:
        pruner = optuna.pruners.MedianPruner(_UNSTOPPED, space.prune_after)
    try:
        if not path.exists():
            with aside(path) as temporary:
                storage = connect(temporary)
                optuna.create_study(storage=storage, study_name=KIND, direction="maximize")
                storage.engine.dispose()
        return optuna.load_study(study_name=KIND, storage=connect(path), pruner=pruner)
    except (optuna.exceptions.OptunaError, SQLAlchemyError, KeyError, RuntimeError) as error:
        got = f"'{path}' cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)})"
        raise RunError(got, "the trials of a study", "choose another --out, or restore the file") from None


@dataclass(frozen=True)
class _Search:
    """A study that this process works on."""

    study: "Study"
    space: Space
    base: Config
    out: Path
    say: Say

    def run(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Run trials until all have ended, also those of other processes, which may be killed; then conclude."""
        while True:
            with contextlib.ExitStack() as held:
                with locked(self.out, RunError, wait=True):
                    if (self.out / RESULT).exists():
                        return self._known_result()
                    trial = self._claim(held)
                    if trial is None and all(each.state.is_finished() for each in self.trials()):
                        # Locked, so that another process waits for this result.
                        return self._conclude(identity)
                if trial is not None:
                    self._run(trial)
                else:
                    time.sleep(0.5)

    def _known_result(self) -> dict[str, Any]:
        result = read_result(self.out)
        if (trials := result["space"]["trials"]) != self.space.trials:
            got = f"'{self.out}' holds a finished study of {trials} trials, not {self.space.trials}"
            raise RunError(got, "the same number, as its test result is known", "choose another --out")
        self.say(f"{self.out} is finished already; nothing to do")
        return result

    def trials(self) -> list["FrozenTrial"]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def _folder(self, number: int) -> Path:
        return self.out / f"trial-{number}"

    def _claim(self, held: contextlib.ExitStack) -> "FrozenTrial | None":
        """Lock an interrupted trial, or else a new one, until ``held`` is closed; None if there is none."""
        for trial in self.trials():
            folder = self._folder(trial.number)
            if trial.state.is_finished():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with contextlib.suppress(_Taken):
                held.enter_context(locked(folder, _Taken))
                # It may have been finished since.
                if not (now := self.trials()[trial.number]).state.is_finished():
                    return now
        if len(self.trials()) >= self.space.trials:
            return None
        self._suggest()
        trial = self.trials()[-1]
        held.enter_context(locked(self._folder(trial.number), _Taken))
        return trial

    def _suggest(self) -> None:
        """Store a new trial with all its settings."""
        import optuna

        earlier = self.trials()
        seed = np.random.SeedSequence([self.space.seed, len(earlier)]).generate_state(1)[0]
        # A copy in memory, as settings of the trial itself would be stored one by one.
        model = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=int(seed)))
        model.add_trials(earlier)
        distributions = self._distributions()
        params, state = model.ask(distributions).params, optuna.trial.TrialState.RUNNING
        self.study.add_trial(optuna.create_trial(state=state, params=params, distributions=distributions))

    def _distributions(self) -> dict[str, "BaseDistribution"]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {}
        for key, values in self.space.space.items():
            if not isinstance(values, Range):
                found[key] = CategoricalDistribution([json.dumps(value) for value in values])
            elif holds_whole_numbers(self.base, key, values):
                step = int(values.step or 1)
                found[key] = IntDistribution(int(values.low), int(values.high), values.log, step)
            else:
                found[key] = FloatDistribution(values.low, values.high, values.log, values.step)
        return found

    def settings(self, trial: "FrozenTrial") -> dict[str, Any]:
        """The varied settings of a trial."""
        ranged = {key: isinstance(values, Range) for key, values in self.space.space.items()}
        return {key: value if ranged[key] else json.loads(value) for key, value in trial.params.items()}

    def _run(self, claimed: "FrozenTrial") -> None:
        """Run a trial, or go on with it, and store its value or why it has none."""
        import optuna

        # Adding to a stored trial that another process began is not part of Optuna's documented interface.
        trial = optuna.Trial(self.study, claimed._trial_id)
        select = self.base.evaluation.select

        def watch(record: dict[str, Any]) -> None:
            if select in record:
                if record["epoch"] not in claimed.intermediate_values:
                    trial.report(record[select], record["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned

        value, state = None, None
        try:
            config = with_settings(self.base, self.settings(claimed))
            value = train_and_validate(config, self._folder(claimed.number), watch)[select]
        except optuna.TrialPruned:
            state = optuna.trial.TrialState.PRUNED
        except OSError:  # A full disk is no fault of the settings.
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            state = optuna.trial.TrialState.FAIL
        self.say(self._line(self.study.tell(claimed.number, value, state)))
        shutil.rmtree(self._folder(claimed.number), ignore_errors=True)  # Another process may remove it, too.

    def _line(self, trial: "FrozenTrial") -> str:
        """Say how a trial ended, and how many have."""
        state, epochs = _STATES[trial.state.name], trial.last_step or 0
        outcome = f"{state} after {epochs} epochs" if epochs else state
        if state == "finished":
            outcome += f", validation {self.base.evaluation.select.upper()} {100 * (trial.value or 0):.2f}%"
            outcome += ", the best so far" if trial.number == self._best().number else ""
        elif state == "failed":
            outcome = f"FAILED ({trial.user_attrs['error']})"
        done = sum(each.state.is_finished() for each in self.trials())
        return f"{done}/{self.space.trials}  trial {trial.number}: {outcome}; {described(self.settings(trial))}"

    def _finished(self) -> list["FrozenTrial"]:
        return [trial for trial in self.trials() if _STATES[trial.state.name] == "finished"]

    def _best(self) -> "FrozenTrial":
        """The finished trial with the largest value, the first of several."""
        trials, finished = self.trials(), self._finished()
        if not finished:
            reason = trials[0].user_attrs["error"]
            got = f"all {len(trials)} trials in '{self.out}' failed, the first because of '{reason}'"
            raise RunError(got, "settings that can be trained", "change the space, and choose another --out")
        return max(finished, key=lambda trial: (trial.value, -trial.number))

    def _conclude(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Train the best settings with several seeds, test these runs, and write the result of the study."""
        best, trials = self._best(), self.trials()
        settings = self.settings(best)
        config = with_settings(self.base, settings)
        fixed = {"training.precision": config.training.precision, "evaluation.select": config.evaluation.select}
        chosen = {**self.space.settings, **fixed, **settings}
        chosen = merge({}, flatten({"recipe": self.space.recipe, **chosen}))
        with aside(self.out / BEST) as temporary:
            temporary.write_text(yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True), encoding="utf-8")
        runs = {}
        for seed in self.space.seeds:
            folder = self.out / f"seed-{seed}"
            runs[folder.name] = train(with_settings(config, {"training.seed": seed}), folder)
            self.say(f"best settings, seed {seed}: trained and tested, {runs[folder.name]['epochs']} epochs")
        tests = [run["test"] for run in runs.values()]
        spreads = {name: spread([test[name] for test in tests]) for name in tests[0]}
        result = {
            **header(config),
            **identity,
            **{"kind": KIND, "schema": SCHEMA, "status": "finished"},
            "space": self.space.model_dump(mode="json"),
            "objective": config.evaluation.select,
            "best": {"trial": best.number, "value": best.value, "settings": settings},
            "protocol": next(iter(runs.values()))["protocol"],
            "runs": list(runs),
            "test": {
                name: {"mean": each.mean, "deviation": each.deviation, "count": each.count}
                for name, each in spreads.items()
                if each is not None
            },
            "importance": self._importance(),
            "trials": [self._as_json(trial) for trial in trials],
        }
        write_json(self.out / RESULT, result)
        return result

    def _importance(self) -> dict[str, float]:
        """Share of each key in what distinguishes the best tenth of the trials from all but failed ones.

        Empty for fewer than ten of these, or if all are alike.
        """
        import optuna

        model = optuna.create_study(direction="maximize")
        for trial in self.trials():
            state = _STATES[trial.state.name]
            if state != "failed":
                # One that was stopped is not among the best, whatever its value would have been.
                value = trial.value if state == "finished" else 0.0
                model.add_trial(
                    optuna.create_trial(value=value, params=trial.params, distributions=trial.distributions)
                )
        values = {trial.value for trial in model.trials}
        return (
            optuna.importance.get_param_importances(model) if len(model.trials) >= 10 and len(values) > 1 else {}
        )

    def _as_json(self, trial: "FrozenTrial") -> dict[str, Any]:
        begun, ended = trial.datetime_start, trial.datetime_complete
        assert begun is not None, "a trial has begun"
        assert ended is not None, "all trials are finished"
        return {
            "number": trial.number,
            "state": _STATES[trial.state.name],
            # Optuna's value of a stopped trial is the last of its curve, without the terms of the anchor.
            "value": trial.value if _STATES[trial.state.name] == "finished" else None,
            "settings": self.settings(trial),
            "epochs": trial.last_step or 0,
            "curve": {str(epoch): value for epoch, value in sorted(trial.intermediate_values.items())},
            "error": trial.user_attrs.get("error"),
            "seconds": (ended - begun).total_seconds(),
        }
