"""Locating a model, in a local folder or on the Hugging Face hub, and checking its files."""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from iisan.errors import EncoderError

#: ``owner/name`` or ``owner/name@revision``.
_HUB_ID = re.compile(r"(\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?")
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_OTHERS = re.compile(r"[^/]+\.(json|txt|model|py|jinja)|\d+_Pooling/config\.json")
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Source:
    """A local model folder.

    Attributes:
        name: Hub id (perhaps with ``@revision``) or folder as given by the user, for messages.
        folder: Absolute path of the folder.
        revision: Commit hash of a hub model; None for the user's own folder.
    """

    name: str
    folder: Path
    revision: str | None

    @property
    def full_name(self) -> str:
        """Hub id, or the folder's absolute path."""
        return str(self.folder) if self.revision is None else self.name


def folder_of(name: str) -> Path:
    """Return the absolute path of a name, if it is the path of a folder."""
    path = Path(name)
    with contextlib.suppress(RuntimeError, ValueError):  # unknown user in "~user", or not a path
        path = path.expanduser().resolve()
    return path


def hub_id(name: str) -> str | None:
    """Return a name that is a hub id; None for a local folder."""
    return name if _HUB_ID.fullmatch(name) and not folder_of(name).is_dir() else None


def find_model(name: str, trust_remote_code: bool) -> Source:
    """Locate a model and check its folder, see :func:`locate` and :func:`check_folder`."""
    source = locate(name)
    check_folder(source, trust_remote_code)
    return source


def locate(name: str) -> Source:
    """Locate a model: a folder, the cached copy of a hub model, or a download.

    A cached copy is used as it is, without network access, so a model does not change between runs.
    ``owner/name@revision`` pins a branch, tag or commit.

    Raises:
        EncoderError: No such folder or hub model, or the hub cannot be reached.
    """
    folder = folder_of(name)
    with contextlib.suppress(OSError):  # too long for a path
        if folder.is_dir():
            return Source(name, folder, None)
    if (known := _HUB_ID.fullmatch(name)) is None:
        expected = "a model folder or a hub id such as 'owner/name' or 'owner/name@revision'"
        raise EncoderError(f"there is no folder '{name}'", expected, "check the path")
    repository, revision = known.groups()
    folder = _cached(name, repository, revision) or _download(name, repository, revision)
    return Source(name, folder, folder.name)


def is_here(name: str) -> bool:
    """Whether a model is a folder or a cached copy, so that nothing would be downloaded."""
    known = _HUB_ID.fullmatch(name)
    return folder_of(name).is_dir() or (known is not None and _cached(name, *known.groups()) is not None)


def _cached(name: str, repository: str, revision: str | None) -> Path | None:
    """Folder of the cached copy of a hub model, None if there is none or it has no weights."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError:
        raise EncoderError(f"'{name}' is no model", "a folder or a hub id", "check the name") from None
    return Path(config).parent if isinstance(config, str) and has_weights(Path(config).parent) else None


def _download(name: str, repository: str, revision: str | None) -> Path:
    """Download configuration, processor and one set of weights; a first short request fails early if offline."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=5)
        files = [file.rfilename for file in info.siblings or []]
        weights = [file for file in files if _WEIGHTS.fullmatch(file)]
        safe = [file for file in weights if ".safetensors" in file]
        others = [file for file in files if _OTHERS.fullmatch(file) and file not in weights]
        # By the revision's name, not by its commit, so that it is found under that name without a network.
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*(safe or weights), *others]))
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise EncoderError(
            f"the hub does not give '{name}' (status {status})",
            "the id of a public model, or of one you have access to, and one of its revisions",
            "check the id and the revision, or run: hf auth login",
        ) from None
    except Exception as error:  # each version of the hub's client has transport errors of its own
        got = f"'{name}' is not on this machine and the hub cannot be reached ({type(error).__name__})"
        pinned = name.replace("@", " --revision ")
        cure = f"on a machine with network run: hf download {pinned} --local-dir FOLDER, and pass FOLDER instead"
        raise EncoderError(got, "a downloaded model", cure) from None


def has_weights(folder: Path) -> bool:
    """Whether a model folder contains a known weights file."""
    return any(_WEIGHTS.fullmatch(file.name) for file in folder.iterdir())


def check_folder(source: Source, trust_remote_code: bool, weights: bool = True) -> None:
    """Check that a folder contains a model that transformers can load.

    Args:
        source: The folder.
        trust_remote_code: Whether code that comes with the model may run.
        weights: Whether weights are required.

    Raises:
        EncoderError: Configuration or weights are missing, a file is a git-lfs pointer, the model type is unknown,
            or the model's own code is not trusted.
    """
    _check_pointers(source)
    path = source.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict) or (weights and not has_weights(source.folder)):
        missing = "readable config.json" if not isinstance(config, dict) else "weights (model.safetensors)"
        cure = "save it with save_pretrained, or download all of its files"
        raise EncoderError(f"'{source.name}' has no {missing}", "a Hugging Face model folder", cure)
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if not known and not trust_remote_code:
        if "auto_map" in config:
            got, cure = "comes with its own code", "read that code and, if you trust it, set trust_remote_code"
        else:
            got, cure = f"has model_type {model_type!r}", "upgrade transformers, or use another model"
        raise EncoderError(f"'{source.name}' {got}", "a model that transformers supports", cure)


def _check_pointers(source: Source) -> None:
    """Check that no required file is a git-lfs pointer, as after a clone without git-lfs."""
    files = sorted(file for file in source.folder.iterdir() if file.is_file())
    unread = ".bin" if any(file.suffix == ".safetensors" for file in files) else None
    for file in files:
        if file.suffix == unread or not (_WEIGHTS.fullmatch(file.name) or _OTHERS.fullmatch(file.name)):
            continue
        with file.open("rb") as content:
            pointer = content.read(len(_POINTER)) == _POINTER
        if pointer:
            got = f"'{file.name}' of '{source.name}' is a git-lfs pointer, not the file itself"
            cure = "run `git lfs pull` in that folder, or download the model again"
            raise EncoderError(got, "all files of the model", cure)
