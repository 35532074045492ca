"""Loading models, processors and tokenizers from a folder, and checking that they are complete."""

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

#: Names of the parts of multimodal models by kind, and names of the inputs that models of a kind read.
_PARTS = {
    TEXT: ("text_model", "language_model"),
    IMAGE: ("vision_model", "vision_tower"),
    AUDIO: ("audio_model", "audio_tower"),
}
_MAIN_INPUTS = {TEXT: ("input_ids",), IMAGE: ("pixel_values",), AUDIO: ("input_values", "input_features")}
_DTYPES: dict[str, torch.dtype | str] = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True)
class Loading:
    """Number format and placement of the weights of a large model; by default, fp32 on one device.

    Attributes:
        dtype: Number format of the weights and of the residual stream, so of the states' precision: ``"fp32"``,
            ``"bf16"``, or ``"auto"``, the format of the file.
        device_map: Placement on devices as in ``from_pretrained``, by accelerate: ``"auto"`` fills the GPUs, then
            memory, then the disk. States do not depend on it.
        quantise: Quantisation of linear layers by bitsandbytes, ``"8bit"`` or ``"4bit"``; implies ``device_map``
            ``"auto"``.
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
        """Whether the placement of the weights is fixed when they are loaded."""
        return self.device_map is not None or self.quantise is not None

    def arguments(self, name: str) -> dict[str, Any]:
        """Return arguments of ``from_pretrained`` for the model ``name``.

        Raises:
            MissingExtraError: accelerate or bitsandbytes is not installed.
            EncoderError: Quantisation without a GPU.
        """
        arguments: dict[str, Any] = {"dtype": _DTYPES[self.dtype]}
        if not self.placed:
            return arguments
        if self.quantise is not None and not torch.cuda.is_available():
            got = f"quantise '{self.quantise}' for '{name}' on a machine without CUDA"
            cure = "leave quantise out; dtype bf16 halves the memory anywhere"
            raise EncoderError(got, "a GPU for bitsandbytes", cure)
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
    """Silence progress bars and messages of transformers; relevant problems are checked and raised."""
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
    """Load a processor, tokenizer or configuration (named ``kind`` in messages) by an auto class of transformers.

    Raises:
        EncoderError: It is missing or unusable.
    """
    try:
        with quiet(), warnings.catch_warnings():
            # AST's extractor warns about its own default settings.
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
    """Load a tokenizer and check it, see :func:`check_tokenizer`."""
    from transformers import AutoTokenizer

    tokenizer = load_processor(AutoTokenizer, source, "tokenizer", trust_remote_code)
    check_tokenizer(source, tokenizer)
    return tokenizer


def check_tokenizer(source: Source, tokenizer: Any) -> None:
    """Raise an ``EncoderError`` if a tokenizer has no words: transformers does not notice a missing vocabulary."""
    reason = "its vocabulary has no words"
    try:
        words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - {*tokenizer.all_special_tokens}
        # Without its files, T5's has one, the mark of a space.
        if len(words) > 1:
            tokenizer("a word, and a sign that few vocabularies have: \N{SNOWMAN}")
            return
    except Exception as error:  # errors of an incomplete vocabulary differ between classes
        reason = str(error)
    raise _unusable(source, "tokenizer", reason)


def load_image_processor(source: Source, trust_remote_code: bool) -> Any:
    """Load an image processor that uses Pillow: states must not depend on whether torchvision is installed."""
    from transformers import AutoImageProcessor

    processor = load_processor(AutoImageProcessor, source, "image processor", trust_remote_code, backend="pil")
    if getattr(processor, "backend", "pil") != "pil":
        got = f"the image processor of '{source.name}' requires torchvision"
        raise EncoderError(got, "one that works with Pillow", "use another image model")
    return processor


def load_model(
    auto: Any, source: Source, trust_remote_code: bool, loading: Loading = PLAIN
) -> tuple[Any, set[str]]:
    """Load a model and return it with the names of the weights that are missing from its folder.

    Raises:
        EncoderError: The model cannot be loaded.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    arguments = loading.arguments(source.name) | {"trust_remote_code": trust_remote_code}
    try:
        with quiet():
            model, report = auto.from_pretrained(
                source.folder, local_files_only=True, output_loading_info=True, **arguments
            )
    except Exception as error:  # any error of the model's constructor
        got = f"'{source.name}' cannot be loaded ({' '.join(str(error).split())[:200]})"
        cure = "download it again, or use another model"
        raise EncoderError(got, "a complete Hugging Face model", cure) from None
    return model, set(report["missing_keys"])


def check_weights(source: Source, part: str, missing: set[str]) -> None:
    """Raise an ``EncoderError`` if weights of a part of a model are missing."""
    if missing:
        got = f"'{source.name}' lacks {len(missing)} weights of {part}, such as {min(missing)}"
        cure = "download the model again, or use the folder of the whole model"
        raise EncoderError(got, "trained values for all of them", cure)


def read_config(source: Source) -> Any:
    """Read a model's configuration; its folder needs no weights.

    Raises:
        EncoderError: It is missing, or of a model that transformers does not support.
    """
    from transformers import AutoConfig

    check_folder(source, trust_remote_code=False, weights=False)
    with quiet():
        return AutoConfig.from_pretrained(source.folder, local_files_only=True)


def model_without_weights(config: Any, source: Source, kind: str) -> Any:
    """Build the part of a model that reads a kind of content on torch's meta device."""
    from transformers import AutoModel

    with quiet(), torch.device("meta"):
        return _part_for(kind, AutoModel.from_config(config, dtype=torch.float32), source)[1]


def load_weights(source: Source, kind: str, trust_remote_code: bool, loading: Loading = PLAIN) -> Any:
    """Load the part of a model that reads a kind of content, in evaluation mode.

    Poolers and heads on top of ``last_hidden_state`` are replaced by the identity: their outputs are never used,
    and checkpoints often lack their weights.

    Raises:
        EncoderError: The model cannot be loaded, lacks weights, or is of another kind.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    from transformers import AutoModel

    model, missing_keys = load_model(AutoModel, source, trust_remote_code, loading)
    prefix, part = _part_for(kind, model, source)
    used = {f"{prefix}{name}" for name, _ in part.named_parameters()}
    check_weights(source, f"its {kind} encoder", used & missing_keys)
    return part.eval()


class _NoHead(nn.Module):
    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


def _part_for(kind: str, model: Any, source: Source) -> tuple[str, Any]:
    """The part of a model that reads a kind of content, without heads, and the prefix of its parameters' names."""
    path, part, medium = "", model, IMAGE if kind == VIDEO else kind
    encoder = ("encoder",) if getattr(model.config, "is_encoder_decoder", False) else ()
    for name in (*encoder, *_PARTS[medium]):
        if isinstance(getattr(part, name, None), nn.Module):
            path, part = f"{path}{name}.", getattr(part, name)
    reads = getattr(part, "main_input_name", None)
    if kind == IMAGE and hasattr(part.config, "num_frames"):
        reads = "videos"
    if reads not in (None, *_MAIN_INPUTS[medium]):
        cure = "pass it for the right kind of content, or choose another model"
        raise EncoderError(f"'{source.name}' ({type(part).__name__}) reads {reads}", f"a model for {kind}", cure)
    for name in ("pooler", "head"):
        if isinstance(getattr(part, name, None), nn.Module):
            setattr(part, name, _NoHead())
    if isinstance(getattr(part, "masked_spec_embed", None), nn.Parameter):
        # A replacement for masked audio in pretraining, which fine-tuned checkpoints often lack as well.
        part.masked_spec_embed = None
    if hasattr(part.config, "use_cache"):
        part.config.use_cache = False
    return path, part


def module_weights(model: nn.Module) -> Iterator[Tensor]:
    """Iterate over a model's parameters, each once, and the running statistics of its batch normalisation.

    Parameters offloaded to disk are loaded one module at a time.
    """
    saved = model.state_dict().keys()
    statistics = [name for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()]
    for name in [*dict(model.named_parameters()), *statistics]:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        with _on_device(module) if getattr(module, leaf).is_meta else contextlib.nullcontext():
            yield getattr(module, leaf)


def _on_device(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    from accelerate.utils import align_module_device

    return align_module_device(module)
