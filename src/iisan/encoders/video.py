"""Video encoders of Hugging Face, and image encoders looking at frames, as encoders.

Legend: n videos in the batch, F frames of each, S tokens, K wanted levels, D width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from iisan.data.videos import sample_frames
from iisan.encoders.image import ImageEncoder
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, Source, check_folder, load_image_processor, load_tower, locate
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import VIDEO

#: Frames that an image model looks at.
DEFAULT_FRAMES = 8
_SAMPLING = {"container": "pyav", "frames": "middles of equal parts"}


class VideoEncoder(ImageEncoder):
    """A video tower, or an image tower whose states are averaged over frames; contents are the bytes of videos.

    Attributes:
        frames: F, how many evenly spaced frames of a video are looked at.
    """

    kind: ClassVar[str] = VIDEO

    def __init__(
        self,
        tower: nn.Module,
        source: Source,
        pooling: str,
        processor: Any,
        frames: int | None,
        loading: Loading = PLAIN,
    ) -> None:
        super().__init__(tower, source, pooling, processor, loading)
        #: Frames that a video tower takes, ``None`` for image towers.
        self._own: int | None = getattr(tower.config, "num_frames", None)
        self.frames = (self._own or DEFAULT_FRAMES) if frames is None else frames
        if self.frames < 1 or self.frames != (self._own or self.frames):
            raise EncoderError(
                f"{frames} frames for '{source.name}'",
                f"{self._own}, as it was trained" if self._own else "at least 1",
                "leave the number of frames out, or choose another",
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the states' values, as JSON."""
        return {**super().settings, "frames": self.frames}

    @property
    def processor_digest(self) -> str:
        """SHA-256 over the processor's configuration and the way frames are chosen and decoded."""
        return sha256_json({"image": super().processor_digest, **_SAMPLING})

    def prepare(self, contents: Sequence[bytes]) -> dict[str, Tensor]:
        """Decode and preprocess F frames of each of n videos: pixels [n, F, 3, height, width].

        Raises:
            DataError: bytes that are not a video.
        """
        pictures = [picture for content in contents for picture in sample_frames(content, self.frames)]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.reshape(len(contents), self.frames, *pixels.shape[-3:])}

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states [n, K, D] of some levels; blocks above the highest are not run."""
        if self._own:
            return super().forward(inputs, levels)
        pixels = inputs["pixel_values"]
        states = super().forward({"pixel_values": pixels.flatten(0, 1)}, levels)
        return states if self.pooling == "tokens" else states.unflatten(0, pixels.shape[:2]).mean(1)

    def resume(self, first: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """The answer from the input of block ``first`` on; an image tower's tokens go back to their frames."""
        if not self._own:
            hidden = hidden.unflatten(1, (self.frames, -1)).flatten(0, 1)
        return super().resume(first, hidden, mask)


def load_video(
    name_or_folder: str,
    pooling: str | None = None,
    frames: int | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
) -> VideoEncoder:
    """Load a video encoder.

    Args:
        name_or_folder: hub id or local folder of a video transformer (VideoMAE, ViViT, TimeSformer) or of any
            image transformer, whose states are then averaged over the frames.
        pooling: ``"mean"`` over all tokens, which is what ``None`` stands for, or ``"cls"``, the class token,
            which VideoMAE has not.
        frames: how many evenly spaced frames are looked at; ``None`` is as many as a video model was trained with,
            8 for image models.
        trust_remote_code: run program code that comes with the model.
        loading: how the weights of a large model are held.

    Raises:
        EncoderError: not found, incomplete, of another kind, or unfit for these settings.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    source = locate(name_or_folder)
    check_folder(source, trust_remote_code)
    processor = load_image_processor(source, trust_remote_code)
    tower = load_tower(source, VIDEO, trust_remote_code, loading)
    return VideoEncoder(tower, source, pooling or "mean", processor, frames, loading)
