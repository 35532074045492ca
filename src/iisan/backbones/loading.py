"""From a hub id or a folder to the one tower that is needed, without noise, long waits or surprises."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iisan.errors import BackboneError
from iisan.names import IMAGE, TEXT

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_OTHERS = re.compile(r"[^/]+\.(json|txt|model|py|jinja)")
_TOWERS = {TEXT: ("text_model", "language_model"), IMAGE: ("vision_model", "vision_tower")}
_MAIN_INPUT = {TEXT: "input_ids", IMAGE: "pixel_values"}


@dataclass(frozen=True)
class Source:
    """A model folder on this machine.

    Attributes:
        name: hub id or folder as the user gave it.
        folder: where its files lie.
        revision: commit hash of a hub model, ``None`` for a folder of the user's own.
    """

    name: str
    folder: Path
    revision: str | None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence loading bars and reports of transformers; what matters in them is checked and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def locate(name: str) -> Source:
    """Find a model: a folder, else the hub's copy on this machine, else a download.

    A copy on this machine is used as it is, so a model does not change between two runs and no network is
    touched.

    Raises:
        BackboneError: no such folder or hub model, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Source(name, folder, None)
    if not _HUB_ID.fullmatch(name):
        raise BackboneError(
            f"there is no folder '{name}'",
            "a model folder or a hub id such as 'owner/name'",
            "check the path",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except HFValidationError:
        raise BackboneError(f"'{name}' is no model", "a folder or a hub id", "check the name") from None
    except LocalEntryNotFoundError:
        folder = _download(name)
    else:
        if not (folder / "config.json").is_file() or not has_weights(folder):
            folder = _download(name)
    return Source(name, folder, folder.name)


def _download(name: str) -> Path:
    """Fetch configuration, processor and one set of weights; one short request notices a dead network."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(name, timeout=5)
        files = [file.rfilename for file in info.siblings or []]
        weights = [file for file in files if _WEIGHTS.fullmatch(file)]
        safe = [file for file in weights if ".safetensors" in file]
        others = [file for file in files if _OTHERS.fullmatch(file) and file not in weights]
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=[*(safe or weights), *others]))
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise BackboneError(
            f"the hub does not give '{name}' (status {status})",
            "the id of a public model, or of one you have access to",
            "check the id, or run: hf auth login",
        ) from None
    except Exception as error:  # each version of the hub's client has transport errors of its own
        raise BackboneError(
            f"'{name}' is not on this machine and the hub cannot be reached ({type(error).__name__})",
            "a downloaded model",
            f"on a machine with network run: hf download {name} --local-dir FOLDER, and pass FOLDER instead",
        ) from None


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds weights in one of the known files."""
    return any(_WEIGHTS.fullmatch(file.name) for file in folder.iterdir())


def check_folder(source: Source, trust_remote_code: bool) -> None:
    """Check that a folder holds a model that transformers knows, or may run code for.

    Raises:
        BackboneError: no configuration or weights, or code of the model's own that was not trusted.
    """
    path = source.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict) or not has_weights(source.folder):
        missing = "readable config.json" if not isinstance(config, dict) else "weights (model.safetensors)"
        raise BackboneError(
            f"'{source.name}' has no {missing}",
            "a Hugging Face model folder",
            "save it with save_pretrained, or download all of its files",
        )
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        if "auto_map" in config:
            raise BackboneError(
                f"'{source.name}' brings program code of its own",
                "a model that transformers knows",
                "read that code and, if you trust it, set trust_remote_code",
            )
        raise BackboneError(
            f"'{source.name}' has model_type {config.get('model_type')!r}",
            "a type that transformers knows",
            "upgrade transformers, or use another model",
        )


def load_tower(source: Source, modality: str, trust_remote_code: bool) -> Any:
    """Load the tower of one modality in fp32, in eval mode.

    Of two-tower models the other tower is let go, and poolers on top of ``last_hidden_state`` are replaced by
    the identity: nothing here reads them, and checkpoints often leave them to chance.

    Raises:
        BackboneError: not loadable, weights missing from the folder, or a model of another modality.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        with quiet():
            model, report = AutoModel.from_pretrained(
                source.folder,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        raise BackboneError(
            f"'{source.name}' cannot be loaded ({' '.join(str(error).split())[:200]})",
            "a whole Hugging Face encoder",
            "download it again, or use another model",
        ) from None
    path, tower = _tower(model, modality)
    if getattr(tower, "main_input_name", _MAIN_INPUT[modality]) != _MAIN_INPUT[modality]:
        raise BackboneError(
            f"'{source.name}' ({type(tower).__name__}) reads {tower.main_input_name}",
            f"a model for {modality}",
            "pass it for the other modality, or choose another model",
        )
    for name in ("pooler", "head"):
        if isinstance(getattr(tower, name, None), nn.Module):
            setattr(tower, name, nn.Identity())
    used = {f"{path}{name}" for name, _ in tower.named_parameters()}
    missing = sorted(used & set(report["missing_keys"]))
    if missing:
        raise BackboneError(
            f"'{source.name}' lacks {len(missing)} weights of its {modality} tower, such as {missing[0]}",
            "trained values for all of them",
            "download the model again, or use the folder of the whole model",
        )
    if hasattr(tower.config, "use_cache"):
        tower.config.use_cache = False
    return tower.eval()


def _tower(model: Any, modality: str) -> tuple[str, Any]:
    path, tower = "", model
    if getattr(model.config, "is_encoder_decoder", False) and isinstance(
        getattr(model, "encoder", None), nn.Module
    ):
        path, tower = "encoder.", model.encoder
    for name in _TOWERS[modality]:
        if isinstance(getattr(tower, name, None), nn.Module):
            path, tower = f"{path}{name}.", getattr(tower, name)
    return path, tower
