"""The common interface to encoders of all kinds of content."""

from iisan.encoders.audio import load_audio
from iisan.encoders.encoder import Encoder
from iisan.encoders.image import load_image
from iisan.encoders.loading import PLAIN, Loading
from iisan.encoders.text import load_text
from iisan.encoders.video import load_video
from iisan.errors import ConfigError
from iisan.names import KINDS


def load_encoder(
    kind: str,
    name_or_folder: str,
    *,
    pooling: str | None = None,
    max_tokens: int | None = None,
    max_seconds: float | None = None,
    frames: int | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
) -> Encoder:
    """Load an encoder for a kind of content.

    Args:
        kind: ``"text"``, ``"image"``, ``"audio"`` or ``"video"``.
        name_or_folder: Hub id, perhaps with ``@revision``, or local folder of a Hugging Face model:

            - Text: any encoder or decoder, the text encoder of CLIP and similar models.
            - Image: any transformer, ConvNeXt or ResNet, the image encoder of CLIP and similar models.
            - Audio: AST, Wav2Vec2, HuBERT, WavLM, Whisper (its encoder), other transformers of constant width.
            - Video: VideoMAE, ViViT, TimeSformer, or any image transformer, whose states are averaged over frames.
        pooling: ``"mean"`` over the real tokens; ``"cls"``, the class token (BERT and similar, ViT, AST, ...);
            ``"last"``, the last real token (text only). Defaults to the pooling of a Sentence-Transformers folder,
            the class token of an image model that has one, or the mean.
        max_tokens: Maximum number of tokens of a text, special tokens included. Defaults to that of a
            Sentence-Transformers folder or 64, at most the model's own limit.
        max_seconds: Maximum duration of the encoded part of a sound, its middle. Defaults to the model's window
            (AST 10.24, Whisper 30) or 10.
        frames: Number of evenly spaced frames of a video. Defaults to the number that a video model was trained
            with, or 8 for image models.
        trust_remote_code: Whether to run code that comes with the model.
        loading: How to place and quantise the weights of a large model.

    Raises:
        ConfigError: An unknown kind.
        EncoderError: The model is not found, incomplete, of another kind, or does not support these settings.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    rest = trust_remote_code, loading
    match kind:
        case "text":
            return load_text(name_or_folder, pooling, max_tokens, *rest)
        case "image":
            return load_image(name_or_folder, pooling, *rest)
        case "audio":
            return load_audio(name_or_folder, pooling, max_seconds, *rest)
        case "video":
            return load_video(name_or_folder, pooling, frames, *rest)
    raise ConfigError(f"an encoder for '{kind}'", f"one for {', '.join(KINDS)}", "choose one of these kinds")
