"""The one door to an encoder of any kind of content."""

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
        name_or_folder: hub id or local folder.
        pooling: see the kind's loader; None takes what suits the model.
        max_tokens: longest text, special tokens included.
        max_seconds: longest part of a sound that is heard.
        frames: of a video that are looked at.
        trust_remote_code: run program code that comes with the model.
        loading: how the weights of a large model are held.

    Raises:
        ConfigError: no encoder reads this kind.
        EncoderError: not found, incomplete, of another kind, or unfit for these settings.
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
