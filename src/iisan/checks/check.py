"""All checks of a run: ``iisan check``."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iisan.checks import contents, findings, ranking
from iisan.checks.subject import Check, NotCheckedError, Outcome, Status, Subject
from iisan.errors import IisanError
from iisan.progress import track
from iisan.runs.run import Run
from iisan.states.configured import open_dataset

KIND, SCHEMA = "iisan-check", 1
#: What has to hold, by name.
INVARIANTS: dict[str, Callable[[Subject], Outcome]] = {
    "the queries follow the split": ranking.follow_the_split,
    "no target is in its own history": ranking.seen_targets,
    "random scores give chance": ranking.random_gives_chance,
    "repeated items rank as counted": ranking.repeats_are_known,
    "equal scores tie": ranking.equal_scores_tie,
    "scores depend on the history": ranking.scores_depend_on_histories,
    "evaluation equals recommendation": ranking.lists_agree,
    "the recorded ranks are found again": ranking.recorded_ranks_are_repeated,
    "popularity is that of the data": contents.counts_agree,
    "cached equals live": contents.cached_equals_live,
    "an added item equals itself": contents.added_equals_itself,
}
#: What the numbers rest on, by name.
FINDINGS: dict[str, Callable[[Subject], Outcome]] = {
    "against the baselines": findings.what_beats_what,
    "with histories of other users": findings.other_histories,
    "with histories in random order": findings.shuffled_histories,
    "validation and test": findings.validation_and_test,
    "effective rank of the vectors": findings.effective_ranks,
    "equal lists": findings.equal_lists,
}


@dataclass(frozen=True)
class Checked:
    """Result of the checks of a run.

    Attributes:
        run: Run folder.
        protocol: Protocol of its test metrics.
        checks: Invariants, then findings.
    """

    run: str
    protocol: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> int:
        """Number of failed invariants."""
        return sum(check.status == "failed" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {"kind": KIND, "schema": SCHEMA, "failed": self.failed, **asdict(self)}


def check_run(folder: Path, moved: Mapping[str, Path | None] | None = None) -> Checked:
    """Check a run as it was trained, without the items that were added since; nothing is written.

    Args:
        folder: Run folder.
        moved: ``dataset``, ``images`` and ``states`` -> folder, for those that moved.

    Raises:
        ConfigError: The dataset is not there.
        DataError: The dataset has other items than the run.
        RunError: No finished run.
    """
    run = Run.load(folder)
    config = run.config.model_copy(update=moved)
    dataset = open_dataset(config)
    run.check_items(dataset)
    subject = Subject(run, config, dataset, dataset.split(config.evaluation))
    every = INVARIANTS | FINDINGS
    checks = [_checked(name, every[name], subject) for name in track(every, "checking", len(every))]
    return Checked(str(folder), run.result["protocol"], tuple(checks))


def _checked(name: str, check: Callable[[Subject], Outcome], subject: Subject) -> Check:
    try:
        outcome = check(subject)
    except NotCheckedError as reason:
        return Check(name, "not checked", str(reason))
    except Exception as error:  # Scores that are not finite, say; one check must not hide the others.
        text = str(error) if isinstance(error, IisanError) else f"{type(error).__name__}: {error}"
        return Check(name, "failed" if name in INVARIANTS else "not checked", text)
    status: Status = "finding" if name in FINDINGS else "passed" if outcome.sound else "failed"
    return Check(name, status, outcome.seen, outcome.values)
