"""Checkpoints: the state of training between two epochs, in one safetensors file."""

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
    """Progress of training: finished epochs with their records, and the epoch (0 for none) of the best metric."""

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = float("-inf")
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    network: SequentialRecommender,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    progress: Progress,
    inputs: Mapping[str, Any],
) -> None:
    """Write everything that the next epoch depends on.

    ``best`` and ``average`` are the best epoch's weights and the moving average, ``inputs`` identifies the data.
    """
    tensors = {f"model.{name}": value for name, value in trainable_state(network).items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors |= {f"average.{name}": value.cpu() for name, value in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.cpu().contiguous() for key, value in state.items()}
    metadata = {"progress": json.dumps(asdict(progress)), "inputs": json.dumps(inputs)}
    with aside(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def changed_inputs(trained: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """List the inputs that have changed since training, of those that it recorded."""
    changed = {name for name in inputs if name in trained and trained[name] != inputs[name]}
    # The hash of a dataset of version 0.1 changed when it got content keys.
    return sorted(changed - ({"data"} if trained.get("data") == inputs.get("previous_data") else set()))


def check_inputs(place: Path, trained: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Raise a ``RunError`` if data, states, encoders or initial weights have changed since training began."""
    changed = changed_inputs(trained, inputs)
    if changed:
        names = " and ".join(changed).replace("continued_from", "initial weights")
        names = names.replace("anchor_states", "states of the anchor")
        got = f"'{place}' was trained with other {names} than are given now"
        raise RunError(got, "the same as at its beginning", "choose another --out, or delete it")


def load_checkpoint(
    path: Path, network: SequentialRecommender, optimizer: torch.optim.Optimizer, inputs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Progress]:
    """Restore network and optimizer; return the best weights so far, the moving average, and the progress.

    Raises:
        RunError: The file is damaged, or belongs to another network or other data.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "average": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(value) for name, value in file.metadata().items()}
            progress = Progress(**metadata["progress"])
            for key in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
                group, name = key.split(".", 1)
                # A copy, as the mapped file is replaced during training.
                groups[group][name] = file.get_tensor(key).clone()
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        got = f"the checkpoint '{path}' cannot be read ({error})"
        raise RunError(got, "a complete checkpoint", "delete it; training then starts again") from None
    check_inputs(path, metadata.get("inputs", {}), inputs)
    load_trainable(network, groups["model"])
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in groups["optimizer"].items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)
    return groups["best"], groups["average"], progress
