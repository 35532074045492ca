"""The state of a training between two epochs, as one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from iisan.errors import RunError
from iisan.files import aside
from iisan.model import SequentialRecommender, load_trainable, trainable_state


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: finished epochs.
        best_epoch: the one with the best validation metric; 0 before the first.
        best_value: that metric.
        history: one record per finished epoch.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = float("-inf")
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    network: SequentialRecommender,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: Progress,
    inputs: Mapping[str, Any],
) -> None:
    """Write everything that the next epoch depends on; ``inputs`` says what was trained on."""
    tensors = {f"model.{name}": value for name, value in trainable_state(network).items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.cpu().contiguous() for key, value in state.items()}
    with aside(path) as temporary:
        save_file(tensors, temporary, metadata=_metadata(progress=asdict(progress), inputs=inputs))


def _metadata(**values: Any) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in values.items()}


def changed_inputs(trained: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """Which inputs are others now than a training had; what it did not note is not compared."""
    changed = {name for name in inputs if name in trained and trained[name] != inputs[name]}
    # A dataset of version 0.1 has had another fingerprint since it got content keys.
    return sorted(changed - ({"data"} if trained.get("data") == inputs.get("previous_data") else set()))


def check_inputs(place: Path, trained: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Make sure that a training goes on with what it began with.

    Raises:
        RunError: the dataset, a store or an encoder is another one now.
    """
    changed = changed_inputs(trained, inputs)
    if changed:
        names = " and ".join(changed).replace("continued_from", "initial weights")
        raise RunError(
            f"'{place}' was trained with other {names} than are given now",
            "the same as at its beginning",
            "choose another --out, or delete it",
        )


def load_checkpoint(
    path: Path, network: SequentialRecommender, optimizer: torch.optim.Optimizer, inputs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Progress]:
    """Restore network and optimizer; returns the best parameters so far and the progress.

    Raises:
        RunError: the file is damaged, belongs to another network or was trained on something else.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(value) for name, value in file.metadata().items()}
            progress = Progress(**metadata["progress"])
            for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                group, name = key.split(".", 1)
                # A copy: the file is mapped, and it is replaced while the training goes on.
                groups[group][name] = file.get_tensor(key).clone()
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the checkpoint '{path}' cannot be read ({error})",
            "a file that was written to its end",
            "delete it; the training then starts again",
        ) from None
    check_inputs(path, metadata.get("inputs", {}), inputs)
    load_trainable(network, groups["model"])
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in groups["optimizer"].items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)
    return groups["best"], progress
