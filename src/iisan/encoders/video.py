"""Video encoders from Hugging Face, and image encoders applied to frames.

Legend: n videos in a batch, F frames of each, S tokens, K requested levels, D width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from iisan.data.videos import sample_frames
from iisan.encoders.hub import Source, find_model
from iisan.encoders.image import ImageEncoder
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, load_image_processor, load_weights
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import VIDEO

#: Default number of frames for image models.
DEFAULT_FRAMES = 8
_SAMPLING = {"container": "pyav", "frames": "middles of equal parts"}


class VideoEncoder(ImageEncoder):
    """A video model, or an image model whose states are averaged over frames; contents are the bytes of videos.

    Attributes:
        frames: Number F of evenly spaced frames sampled from a video.
    """

    kind: ClassVar[str] = VIDEO

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        pooling: str,
        processor: Any,
        frames: int | None,
        loading: Loading = PLAIN,
    ) -> None:
        super().__init__(model, source, pooling, processor, loading)
        #: Number of frames that a video model requires; ``None`` for image models.
        self._required: int | None = getattr(model.config, "num_frames", None)
        self.frames = (self._required or DEFAULT_FRAMES) if frames is None else frames
        if self.frames < 1 or self.frames != (self._required or self.frames):
            raise EncoderError(
                f"{frames} frames for '{source.name}'",
                f"{self._required}, as in its training" if self._required else "at least 1",
                "omit the number of frames, or choose another",
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the states depend on, as JSON."""
        return {**super().settings, "frames": self.frames}

    @property
    def processor_digest(self) -> str:
        """SHA-256 of the processor's configuration and of how frames are sampled and decoded."""
        return sha256_json({"image": super().processor_digest, **_SAMPLING})

    def prepare(self, contents: Sequence[bytes]) -> dict[str, Tensor]:
        """Decode and preprocess F frames of each of n videos: pixels [n, F, 3, height, width].

        Raises:
            DataError: Bytes that are not a video.
        """
        pictures = [picture for content in contents for picture in sample_frames(content, self.frames)]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.reshape(len(contents), self.frames, *pixels.shape[-3:])}

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states [n, K, D] of some levels; layers above the highest are not run."""
        if self._required:
            return super().forward(inputs, levels)
        pixels = inputs["pixel_values"]
        states = super().forward({"pixel_values": pixels.flatten(0, 1)}, levels)
        return states if self.pooling == "tokens" else states.unflatten(0, pixels.shape[:2]).mean(1)

    def resume(self, first: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Compute the output from the input of layer ``first`` on; an image model reads one frame per row."""
        if not self._required:
            hidden = hidden.unflatten(1, (self.frames, -1)).flatten(0, 1)
        return super().resume(first, hidden, mask)


def load_video(
    name_or_folder: str,
    pooling: str | None = None,
    frames: int | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
) -> VideoEncoder:
    """Load a video encoder, see :func:`iisan.encoders.load.load_encoder`."""
    source = find_model(name_or_folder, trust_remote_code)
    processor = load_image_processor(source, trust_remote_code)
    model = load_weights(source, VIDEO, trust_remote_code, loading)
    return VideoEncoder(model, source, pooling or "mean", processor, frames, loading)
