"""Finding a model, a folder or a model of the Hugging Face hub at some revision, and checking its files."""

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
    """A model folder on this machine.

    Attributes:
        name: hub id (perhaps with ``@revision``) or folder as the user gave it, for messages.
        folder: where its files lie, an absolute path.
        revision: commit hash of a hub model, ``None`` for a folder of the user's own.
    """

    name: str
    folder: Path
    revision: str | None

    @property
    def full_name(self) -> str:
        """Hub id, or the folder's absolute path: one name however the user spelt it."""
        return str(self.folder) if self.revision is None else self.name


def folder_of(name: str) -> Path:
    """The absolute path of the folder that a name stands for, if it stands for one."""
    path = Path(name)
    with contextlib.suppress(RuntimeError, ValueError):  # no such user as in "~someone", or no path at all
        path = path.expanduser().resolve()
    return path


def locate(name: str) -> Source:
    """Find a model: a folder, else the hub's copy on this machine, else a download.

    A copy on this machine is used as it is, so a model does not change between two runs and no network is
    touched. A revision (branch, tag or commit) is pinned by ``owner/name@revision``.

    Raises:
        EncoderError: no such folder or hub model, or the hub cannot be reached.
    """
    folder = folder_of(name)
    with contextlib.suppress(OSError):  # too long for a path
        if folder.is_dir():
            return Source(name, folder, None)
    hub_id = _HUB_ID.fullmatch(name)
    if not hub_id:
        raise EncoderError(
            f"there is no folder '{name}'",
            "a model folder or a hub id such as 'owner/name' or 'owner/name@revision'",
            "check the path",
        )
    repository, revision = hub_id.groups()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError:
        raise EncoderError(f"'{name}' is no model", "a folder or a hub id", "check the name") from None
    if isinstance(config, str) and has_weights(Path(config).parent):
        folder = Path(config).parent
    else:
        folder = _download(name, repository, revision)
    return Source(name, folder, folder.name)


def _download(name: str, repository: str, revision: str | None) -> Path:
    """Fetch configuration, processor and one set of weights; one short request notices a dead network."""
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
        raise EncoderError(
            f"'{name}' is not on this machine and the hub cannot be reached ({type(error).__name__})",
            "a downloaded model",
            f"on a machine with network run: hf download {name} --local-dir FOLDER, and pass FOLDER instead",
        ) from None


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds weights in one of the known files."""
    return any(_WEIGHTS.fullmatch(file.name) for file in folder.iterdir())


def check_folder(source: Source, trust_remote_code: bool, weights: bool = True) -> None:
    """Check that a folder holds a model that transformers knows, or may run code for.

    Args:
        source: the folder.
        trust_remote_code: whether code of the model's own may run.
        weights: whether there must be weights.

    Raises:
        EncoderError: no configuration or weights, a git-lfs pointer in the place of a file, or code of the
            model's own that was not trusted.
    """
    _check_pointers(source)
    path = source.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict) or (weights and not has_weights(source.folder)):
        missing = "readable config.json" if not isinstance(config, dict) else "weights (model.safetensors)"
        raise EncoderError(
            f"'{source.name}' has no {missing}",
            "a Hugging Face model folder",
            "save it with save_pretrained, or download all of its files",
        )
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if not known and not trust_remote_code:
        if "auto_map" in config:
            raise EncoderError(
                f"'{source.name}' brings program code of its own",
                "a model that transformers knows",
                "read that code and, if you trust it, set trust_remote_code",
            )
        raise EncoderError(
            f"'{source.name}' has model_type {model_type!r}",
            "a type that transformers knows",
            "upgrade transformers, or use another model",
        )


def _check_pointers(source: Source) -> None:
    """Check that no file that will be read is a git-lfs pointer, which a clone without git-lfs leaves."""
    files = sorted(file for file in source.folder.iterdir() if file.is_file())
    unread = ".bin" if any(file.suffix == ".safetensors" for file in files) else None
    for file in files:
        if file.suffix == unread or not (_WEIGHTS.fullmatch(file.name) or _OTHERS.fullmatch(file.name)):
            continue
        with file.open("rb") as content:
            pointer = content.read(len(_POINTER)) == _POINTER
        if pointer:
            raise EncoderError(
                f"'{file.name}' of '{source.name}' is a git-lfs pointer, not the file itself",
                "all files of the model",
                "run `git lfs pull` in that folder, or download the model again",
            )
