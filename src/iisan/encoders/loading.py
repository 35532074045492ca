"""From a model folder to the one tower that is needed, without noise, long waits or surprises."""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iisan.encoders.hub import Source, check_folder
from iisan.errors import ConfigError, EncoderError, MissingExtraError
from iisan.names import AUDIO, IMAGE, TEXT, VIDEO

_TOWERS = {
    TEXT: ("text_model", "language_model"),
    IMAGE: ("vision_model", "vision_tower"),
    AUDIO: ("audio_model", "audio_tower"),
    VIDEO: ("vision_model", "vision_tower"),
}
_MAIN_INPUT = {
    TEXT: ("input_ids",),
    IMAGE: ("pixel_values",),
    AUDIO: ("input_values", "input_features"),
    VIDEO: ("pixel_values",),
}
_DTYPES: dict[str, torch.dtype | str] = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True)
class Loading:
    """How the weights of a large model are held; the default is whole, in fp32, on one device.

    Attributes:
        dtype: number format of the weights: ``"fp32"``, ``"bf16"``, or ``"auto"``, the one they are stored in.
            The residual stream takes it too, so states are less exact than with fp32 weights.
        device_map: how accelerate spreads the model over devices, as in ``from_pretrained``: ``"auto"`` fills the
            GPUs, then memory, then the disk. The numbers stay the same.
        quantise: ``"8bit"`` or ``"4bit"`` linear layers, by bitsandbytes; implies ``device_map`` ``"auto"``.
    """

    dtype: str = "fp32"
    device_map: str | Mapping[str, Any] | None = None
    quantise: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ConfigError(f"weight dtype {self.dtype!r}", " or ".join(_DTYPES), "choose one of these")
        if self.quantise not in (None, "8bit", "4bit"):
            raise ConfigError(f"quantise {self.quantise!r}", "'8bit' or '4bit'", "choose one of these")

    @property
    def placed(self) -> bool:
        """Whether loading decides where the weights lie, so that the tower must not be moved."""
        return self.device_map is not None or self.quantise is not None

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` for the model ``name``.

        Raises:
            MissingExtraError: accelerate or bitsandbytes is not installed.
            EncoderError: quantisation without a GPU.
        """
        arguments: dict[str, Any] = {"dtype": _DTYPES[self.dtype]}
        if not self.placed:
            return arguments
        if self.quantise is not None and not torch.cuda.is_available():
            raise EncoderError(
                f"quantise '{self.quantise}' for '{name}' on a machine without CUDA",
                "a GPU for bitsandbytes",
                "leave quantise out; dtype bf16 halves the memory anywhere",
            )
        _require("accelerate", "a device map")
        arguments["device_map"] = self.device_map or "auto"
        if self.quantise is not None:
            _require("bitsandbytes", "quantisation")
            from transformers import BitsAndBytesConfig

            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantise == "8bit",
                load_in_4bit=self.quantise == "4bit",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        return arguments


PLAIN = Loading()


def _require(library: str, purpose: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise MissingExtraError(library, "large", purpose)


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


def load_processor(auto: Any, source: Source, kind: str, trust_remote_code: bool, **options: Any) -> Any:
    """Load what turns contents into a model's inputs, or its answers into text.

    Args:
        auto: class of transformers that finds the right one.
        source: the model.
        kind: how messages call it.
        trust_remote_code: run program code that comes with the model.
        options: for ``auto.from_pretrained``.

    Raises:
        EncoderError: none in the folder, or an unusable one.
    """
    try:
        with quiet(), warnings.catch_warnings():
            # AST's own extractor warns about its own settings (a mel filter too narrow for any frequency).
            warnings.simplefilter("ignore", UserWarning)
            return auto.from_pretrained(
                source.folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
            )
    except Exception as error:  # processors raise whatever their parsers raise
        raise _unusable(source, kind, str(error)) from None


def _unusable(source: Source, kind: str, reason: str) -> EncoderError:
    return EncoderError(
        f"'{source.name}' has no usable {kind} ({' '.join(reason.split())[:120]})",
        f"the files of its {kind} beside the weights",
        f"download all files of the model, or use a model with {kind}",
    )


def load_tokenizer(source: Source, trust_remote_code: bool) -> Any:
    """Load a tokenizer.

    Raises:
        EncoderError: none in the folder, or an unusable one; see :func:`check_tokenizer`.
    """
    from transformers import AutoTokenizer

    tokenizer = load_processor(AutoTokenizer, source, "tokenizer", trust_remote_code)
    check_tokenizer(source, tokenizer)
    return tokenizer


def check_tokenizer(source: Source, tokenizer: Any) -> None:
    """Check that a tokenizer has a vocabulary: without its files, transformers makes one of special tokens alone.

    Raises:
        EncoderError: it has none, or cannot tokenise.
    """
    reason = "its vocabulary has no words"
    try:
        words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - {*tokenizer.all_special_tokens}
        # T5 without its files has one, the mark of a space.
        if len(words) > 1:
            tokenizer("a word, and a sign that few vocabularies have: \N{SNOWMAN}")
            return
    except Exception as error:  # what an incomplete vocabulary leads to differs from class to class
        reason = str(error)
    raise _unusable(source, "tokenizer", reason)


def load_image_processor(source: Source, trust_remote_code: bool) -> Any:
    """Load an image processor that works with Pillow, so that states do not depend on what else is installed.

    Raises:
        EncoderError: none in the folder, or none that works without torchvision.
    """
    from transformers import AutoImageProcessor

    processor = load_processor(AutoImageProcessor, source, "image processor", trust_remote_code, backend="pil")
    if getattr(processor, "backend", "pil") != "pil":
        raise EncoderError(
            f"the image processor of '{source.name}' has no Pillow form",
            "one that works without torchvision",
            "use another image model",
        )
    return processor


def load_model(
    auto: Any, source: Source, trust_remote_code: bool, loading: Loading = PLAIN
) -> tuple[Any, set[str]]:
    """Load a model; checkpoints may be in one piece or in shards.

    Returns:
        The model, and the names of the weights that its folder lacks.

    Raises:
        EncoderError: not loadable.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    arguments = loading.arguments(source.name)
    try:
        with quiet():
            model, report = auto.from_pretrained(
                source.folder,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # a wrong entry of the configuration raises whatever its use raises
        raise EncoderError(
            f"'{source.name}' cannot be loaded ({' '.join(str(error).split())[:200]})",
            "a whole Hugging Face model",
            "download it again, or use another model",
        ) from None
    return model, set(report["missing_keys"])


def check_weights(source: Source, part: str, missing: set[str]) -> None:
    """Check that no weight of a part of a model is missing.

    Raises:
        EncoderError: some are.
    """
    if missing:
        raise EncoderError(
            f"'{source.name}' lacks {len(missing)} weights of {part}, such as {min(missing)}",
            "trained values for all of them",
            "download the model again, or use the folder of the whole model",
        )


def read_config(source: Source) -> Any:
    """A model's configuration; its folder needs no weights.

    Raises:
        EncoderError: none, or of a model that transformers does not know.
    """
    from transformers import AutoConfig

    check_folder(source, trust_remote_code=False, weights=False)
    with quiet():
        return AutoConfig.from_pretrained(source.folder, local_files_only=True)


def tower_without_weights(config: Any, source: Source, kind: str) -> Any:
    """The tower of a model that reads a kind of content, on torch's meta device.

    Raises:
        EncoderError: a model of another kind.
    """
    from transformers import AutoModel

    with quiet(), torch.device("meta"):
        return tower_of(AutoModel.from_config(config, dtype=torch.float32), source, kind)[1]


def load_tower(source: Source, kind: str, trust_remote_code: bool, loading: Loading = PLAIN) -> Any:
    """Load the tower that reads a kind of content, in eval mode.

    Of two-tower models the other tower is let go, and poolers on top of ``last_hidden_state`` are replaced by
    the identity: nothing here reads them, and checkpoints often leave them to chance.

    Raises:
        EncoderError: not loadable, weights missing from the folder, or a model of another kind.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    from transformers import AutoModel

    model, missing_keys = load_model(AutoModel, source, trust_remote_code, loading)
    path, tower = tower_of(model, source, kind)
    used = {f"{path}{name}" for name, _ in tower.named_parameters()}
    check_weights(source, f"its {kind} tower", used & missing_keys)
    return tower.eval()


class _NoHead(nn.Module):
    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


def tower_of(model: Any, source: Source, kind: str) -> tuple[str, Any]:
    """The tower of a model that reads a kind of content, without heads, and the prefix of its weights' names.

    Raises:
        EncoderError: a model of another kind.
    """
    path, tower = "", model
    if getattr(model.config, "is_encoder_decoder", False) and isinstance(
        getattr(model, "encoder", None), nn.Module
    ):
        path, tower = "encoder.", model.encoder
    for name in _TOWERS[kind]:
        if isinstance(getattr(tower, name, None), nn.Module):
            path, tower = f"{path}{name}.", getattr(tower, name)
    if getattr(tower, "main_input_name", None) not in (None, *_MAIN_INPUT[kind]):
        raise EncoderError(
            f"'{source.name}' ({type(tower).__name__}) reads {tower.main_input_name}",
            f"a model for {kind}",
            "pass it for the right kind of content, or choose another model",
        )
    if kind == IMAGE and hasattr(tower.config, "num_frames"):
        raise EncoderError(
            f"'{source.name}' ({type(tower).__name__}) reads videos",
            "a model for image",
            "pass it for video, or choose another model",
        )
    for name in ("pooler", "head"):
        if isinstance(getattr(tower, name, None), nn.Module):
            setattr(tower, name, _NoHead())
    if isinstance(getattr(tower, "masked_spec_embed", None), nn.Parameter):
        # What stands for masked audio in pretraining; fine-tuned checkpoints leave it to chance as well.
        tower.masked_spec_embed = None
    if hasattr(tower.config, "use_cache"):
        tower.config.use_cache = False
    return path, tower


def module_weights(tower: nn.Module) -> Iterator[Tensor]:
    """All that training left in a tower: its parameters, each once, and the statistics of batch normalisation.

    Parameters that a device map put on the disk are fetched one module at a time.
    """
    saved = tower.state_dict().keys()
    statistics = [name for name, buffer in tower.named_buffers() if name in saved and buffer.is_floating_point()]
    for name in [*dict(tower.named_parameters()), *statistics]:
        path, _, leaf = name.rpartition(".")
        module = tower.get_submodule(path)
        with _fetched(module) if getattr(module, leaf).is_meta else contextlib.nullcontext():
            yield getattr(module, leaf)


def _fetched(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    from accelerate.utils import align_module_device

    return align_module_device(module)
