"""Several trained runs joined into one: the sum of their learned scores beside one anchor."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from iisan.errors import RunError
from iisan.evaluate.metrics import ranked_rows
from iisan.nested import difference
from iisan.recipes import JOINT
from iisan.runs.anchoring import ANCHOR, SIMILARITY, TERMS, Anchoring
from iisan.runs.run import MODEL, Run, member_prefixes
from iisan.train.folder import claimed, finished_result, validation_metrics, write_run
from iisan.train.setup import open_inputs

#: Costs of a member that its entry in the result repeats, and that the result adds up.
_COSTS = ("epochs", "trainable_parameters", "total_parameters", "train_seconds", "validation_seconds")
#: Facts by modality, of which a member of item ids has none.
_BY_MODALITY = ("states", "anchor_states", "encoders", "encoder_parameters")
#: Facts that hold for all members.
_COMMON = ("data", "previous_data", "selection", "requested_precision", "processes")


def join(
    runs: Sequence[Run],
    out: Path,
    say: Callable[[str], None] = lambda line: None,
    moved: Mapping[str, Path | None] | None = None,
) -> dict[str, Any]:
    """Join finished runs, such as seeds or recipes, into one that adds up their learned scores.

    The weights of the members and of the anchor's terms are chosen on the validation subset. The result records
    each member's costs, and the validation metric without it.

    Args:
        runs: Two or more anchored runs on the same items, interactions and states.
        out: Run folder.
        say: Callback for progress messages.
        moved: ``dataset`` and ``states`` -> folder, for those that moved.

    Returns:
        The content of ``result.json``.

    Raises:
        RunError: A run cannot be joined with the first one, the dataset has changed since they were trained, or
            ``out`` contains something else.
        DataError: The dataset has other items.
    """
    anchoring = _check_alike(runs)
    first = runs[0]
    recipes = [run.config.recipe for run in runs]
    config = first.config.model_copy(update={"recipe": JOINT.join(recipes), **(moved or {})})
    inputs = open_inputs(config)
    first.check_items(inputs.dataset)
    if not first.trained_on(inputs.dataset):
        got = f"the dataset '{inputs.dataset.folder}' has changed since the run in '{first.folder}' was trained"
        cure = "name that dataset with --dataset, or train the runs again"
        raise RunError(got, "the dataset that the runs were trained on", cure)
    fingerprints = [run.fingerprint for run in runs]
    if len(set(fingerprints)) < len(runs):
        raise RunError("one run several times", "different runs", "name each run once")
    with claimed(out, config):
        finished = finished_result(out)
        if finished is not None and [each["fingerprint"] for each in finished["members"]] == fingerprints:
            say(f"{out} is finished already; nothing to do")
            return finished
        if finished is not None:
            raise RunError(f"'{out}' holds a run of other members", "a new folder", "choose another --out")
        evaluation, every = config.evaluation, inputs.split.validation
        queries = every.sample(evaluation.validation_users)
        # The same sample as that of the members' own metrics.
        validation = every[ranked_rows(every, evaluation.policy)].sample(evaluation.validation_users)
        members = [run.only_member() for run in runs]
        scorer, choice = anchoring.choose(members, queries, evaluation.policy, evaluation.select)
        metrics = validation_metrics(scorer, validation, evaluation)
        say(f"{len(runs)} members  validation {evaluation.select.upper()} {100 * metrics[evaluation.select]:.2f}%")
        tensors = anchoring.tensors()
        described = []
        for number, (run, prefix) in enumerate(zip(runs, member_prefixes(), strict=False)):
            saved = load_file(run.folder / MODEL)
            tensors |= {
                prefix + name: value for name, value in saved.items() if not name.startswith((ANCHOR, TERMS))
            }
            described.append(
                {
                    "folder": run.folder.name,
                    "fingerprint": fingerprints[number],
                    "config": run.config.model_dump(mode="json"),
                    "weight": choice.weights.learned[number],
                    "validation_without": choice.record["without"].get(f"member {number + 1}"),
                    **{name: run.result[name] for name in ("best_epoch", "validation", *_COSTS)},
                }
            )
        facts = {
            **{name: first.result[name] for name in _COMMON if name in first.result},
            **{name: _merged(runs, name) for name in _BY_MODALITY},
            **{name: sum(run.result[name] for run in runs) for name in _COSTS},
            # Members are trained one after the other.
            "peak_memory_bytes": max(run.result["peak_memory_bytes"] for run in runs),
            "best_epoch": 0,
            "gates": {},
            "validation": metrics,
            "terms": {**choice.as_json(), SIMILARITY: first.result["terms"][SIMILARITY]},
            "members": described,
        }
        write_run(inputs, out, scorer, anchoring.parts(members, choice.weights), tensors, facts)
        finished = finished_result(out)
    assert finished is not None
    return finished


def _merged(runs: Sequence[Run], name: str) -> dict[str, Any]:
    return {key: value for run in runs for key, value in run.result.get(name, {}).items()}


def _check_alike(runs: Sequence[Run]) -> Anchoring:
    """Return the anchor of runs that can be joined; raise a ``RunError`` for others."""
    if len(runs) < 2:
        raise RunError(f"{len(runs)} run", "two or more to join", "name further runs, such as other seeds")
    first = runs[0]
    for run in runs:
        run.only_member()
        if run.anchoring is None:
            cure = "train it with --set anchor=true"
            raise RunError(f"the run in '{run.folder}' has no anchor beside which it could be joined", "one", cure)
        if found := difference(_shared(first), _shared(run)):
            key, theirs, ours = found
            got = f"the runs in '{first.folder}' and '{run.folder}' differ in {key}: {theirs!r} and {ours!r}"
            raise RunError(got, "members of one catalogue, encoder and protocol", "train them alike")
    assert first.anchoring is not None, "checked above"
    return first.anchoring


def _shared(run: Run) -> dict[str, Any]:
    """What all members have in common."""
    return {
        "data": run.result["data"],
        "states": {**run.result["states"], **run.result.get("anchor_states", {})},
        "sequence.max_length": run.config.sequence.max_length,
        "levels": {name: run.config.states_of(name).levels for name in run.config.anchor.modalities or ()},
        **run.config.model_dump(mode="json", include={"anchor", "evaluation"}),
    }
