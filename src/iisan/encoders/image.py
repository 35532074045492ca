"""Image encoders of Hugging Face as encoders."""

import inspect
import io
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from iisan.data.images import open_image
from iisan.encoders.encoder import Encoder
from iisan.encoders.hub import Source, check_folder, locate
from iisan.encoders.layers import Pool, grid_means, has_class_token, masked_mean
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, load_image_processor, load_tower
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import IMAGE

#: How bytes become pixels before the processor; part of the fingerprint.
#: Draft mode was once a choice; stores made without it keep their fingerprints.
_DECODING = {"decoder": "pillow", "backend": "pil", "jpeg_draft": False}

#: Input of towers that keep a picture's proportions: which patches are real.
_MASK = "pixel_attention_mask"


class ImageEncoder(Encoder):
    """An image tower and its processor; contents are the bytes of image files."""

    kind: ClassVar[str] = IMAGE
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "tokens")

    def __init__(
        self,
        tower: nn.Module,
        source: Source,
        pooling: str,
        processor: Any,
        loading: Loading = PLAIN,
    ) -> None:
        super().__init__(tower, source, pooling, loading)
        self.processor = processor
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
        return sha256_json({**self.processor.to_dict(), **_DECODING})

    def prepare(self, contents: Sequence[bytes]) -> dict[str, Tensor]:
        """Decode and preprocess n images: pixels [n, 3, height, width], or what else the tower reads.

        Raises:
            DataError: bytes that are not an image.
        """
        images = [open_image(content) for content in contents]
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

    Raises:
        EncoderError: not found, incomplete, of another kind, or unfit for these settings.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    source = locate(name_or_folder)
    check_folder(source, trust_remote_code)
    processor = load_image_processor(source, trust_remote_code)
    tower = load_tower(source, IMAGE, trust_remote_code, loading)
    pooling = pooling or ("cls" if has_class_token(tower) else "mean")
    return ImageEncoder(tower, source, pooling, processor, loading)
