"""Image encoders of Hugging Face as encoders."""

import inspect
import io
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from iisan.data.images import open_image
from iisan.encoders.encoder import Encoder
from iisan.encoders.layers import Pool, grid_means, has_class_token, masked_mean
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, Source, check_folder, load_image_processor, load_tower, locate
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import IMAGE

#: How bytes become pixels before the processor; part of the fingerprint.
_DECODING = {"decoder": "pillow", "backend": "pil"}

#: Input of towers that keep a picture's proportions: which patches are real.
_MASK = "pixel_attention_mask"


class ImageEncoder(Encoder):
    """An image tower and its processor; contents are the bytes of image files.

    Args:
        tower: the model.
        source: where it comes from.
        pooling: see ``load_image``.
        processor: of its pictures.
        loading: how the weights are held.
        jpeg_draft: see ``load_image``.

    Attributes:
        draft_edge: pixels that both edges of a JPEG in draft mode keep; None where it is decoded whole.
    """

    kind: ClassVar[str] = IMAGE
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "tokens")

    def __init__(
        self,
        tower: nn.Module,
        source: Source,
        pooling: str,
        processor: Any,
        loading: Loading = PLAIN,
        jpeg_draft: bool = False,
    ) -> None:
        super().__init__(tower, source, pooling, loading)
        self.processor = processor
        self.jpeg_draft = jpeg_draft
        self.draft_edge = self._shrunk_edge() if jpeg_draft else None
        self._accepted = set(inspect.signature(tower.forward).parameters)
        if pooling == "tokens" and (hasattr(tower.config, "hidden_sizes") or _MASK in self._accepted):
            raise EncoderError(
                f"the tokens of '{source.name}', which has feature maps or pictures of unlike sizes",
                "a transformer with equally many tokens for every picture, for partial training",
                "use another method, or another model",
            )
        if pooling == "cls" and not has_class_token(tower):
            raise EncoderError(
                f"pooling 'cls' for '{source.name}', which has no class token",
                "pooling 'mean' for such models (SigLIP, ConvNeXt, ResNet)",
                "use mean pooling",
            )

    @property
    def processor_digest(self) -> str:
        """SHA-256 over the processor's configuration and the way images are decoded."""
        return sha256_json({**self.processor.to_dict(), **_DECODING, "jpeg_draft": self.jpeg_draft})

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the states' values, as JSON."""
        return {**super().settings, **({"jpeg_draft": True} if self.jpeg_draft else {})}

    def _shrunk_edge(self) -> int:
        """Pixels of an edge above which the processor only shrinks pictures."""
        sizes = [edge for edge in dict(getattr(self.processor, "size", None) or {}).values() if edge]
        if not sizes or not getattr(self.processor, "do_resize", False):
            raise EncoderError(
                f"JPEG draft mode for '{self.source.name}', whose processor brings pictures to no fixed size",
                "a model for pictures of one size",
                "leave --jpeg-draft out",
            )
        # Some processors cut a margin off afterwards.
        return math.ceil(max(sizes) / (getattr(self.processor, "crop_pct", None) or 1))

    def prepare(self, contents: Sequence[bytes]) -> dict[str, Tensor]:
        """Decode and preprocess n images: pixels [n, 3, height, width], or what else the tower reads.

        Raises:
            DataError: bytes that are not an image.
        """
        images = [open_image(content, self.draft_edge) for content in contents]
        processed = self.processor(images=images, return_tensors="pt")
        return {name: processed[name] for name in processed if name in self._accepted}

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states [n, K, D] of some levels; blocks above the highest are not run.

        Raises:
            EncoderError: pictures of a size that the tower does not take.
        """
        try:
            return super().forward(inputs, levels)
        except (ValueError, RuntimeError) as error:
            edges: Any = getattr(self.tower.config, "image_size", None)
            wanted = [edges] * 2 if isinstance(edges, int) else edges and list(edges)
            got = [*inputs["pixel_values"].shape[-2:]]
            if not wanted or got == wanted or isinstance(error, torch.OutOfMemoryError):
                raise
            raise EncoderError(
                f"the image processor of '{self.source.name}' gives pictures of {got[0]} × {got[1]} pixels "
                f"({' '.join(str(error).split())[:120]})",
                f"{wanted[0]} × {wanted[1]}, as the model takes them",
                "mend the size in its preprocessor_config.json, or download the model again",
            ) from None

    def sample(self) -> bytes:
        """A small grey picture."""
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), "grey").save(buffer, "PNG")
        return buffer.getvalue()

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """Class token, mean over all tokens of the tower (over its real patches where it has others), every token.

        Feature maps are pooled by :func:`iisan.encoders.layers.grid_means`.
        """
        if self.pooling == "tokens":
            return lambda hidden: hidden.float().flatten(0, 1)
        if self.pooling == "cls":
            return lambda hidden: hidden[:, 0].float()
        mask = inputs.get(_MASK)
        if mask is not None:
            return lambda hidden: masked_mean(hidden, mask)
        return lambda hidden: grid_means(hidden, self.width) if hidden.ndim == 4 else hidden.float().mean(1)


def load_image(
    name_or_folder: str,
    pooling: str | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
    jpeg_draft: bool = False,
) -> ImageEncoder:
    """Load an image encoder.

    Preprocessing always uses Pillow, so states do not depend on what else is installed.

    Args:
        name_or_folder: hub id or local folder of any Hugging Face image transformer, ConvNeXt or ResNet; of
            two-tower models the image tower is taken.
        pooling: ``"cls"``, the class token, or ``"mean"`` over all tokens or the feature map; ``None`` is the
            class token where there is one.
        trust_remote_code: run program code that comes with the model.
        loading: how the weights of a large model are held.
        jpeg_draft: decode JPEGs at 1/2, 1/4 or 1/8 of their size, where the processor shrinks them further anyway;
            several times faster, and pixels differ a little.

    Raises:
        EncoderError: not found, incomplete, of another kind, or unfit for these settings.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    source = locate(name_or_folder)
    check_folder(source, trust_remote_code)
    processor = load_image_processor(source, trust_remote_code)
    tower = load_tower(source, IMAGE, trust_remote_code, loading)
    pooling = pooling or ("cls" if has_class_token(tower) else "mean")
    return ImageEncoder(tower, source, pooling, processor, loading, jpeg_draft)
