"""Image encoders from Hugging Face.

Legend: n images in a batch, K requested levels, D width.
"""

import inspect
import io
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from iisan.data.images import open_image
from iisan.encoders.encoder import Encoder
from iisan.encoders.hub import Source, find_model
from iisan.encoders.layers import Pool, check_class_token, grid_means, has_class_token, masked_mean
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, load_image_processor, load_weights
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import IMAGE

#: How bytes become the processor's input; part of the fingerprint. ``jpeg_draft`` was once an option: stores made
#: without it keep their fingerprints.
_DECODING = {"decoder": "pillow", "backend": "pil", "jpeg_draft": False}

#: Input of models that keep the aspect ratio of an image: a mask of the real patches.
_MASK = "pixel_attention_mask"


class ImageEncoder(Encoder):
    """An image model and its processor; contents are the bytes of image files."""

    kind: ClassVar[str] = IMAGE
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "tokens")

    def __init__(
        self, model: nn.Module, source: Source, pooling: str, processor: Any, loading: Loading = PLAIN
    ) -> None:
        super().__init__(model, source, pooling, loading)
        self.processor = processor
        self._accepted = set(inspect.signature(model.forward).parameters)
        if pooling == "tokens" and (hasattr(model.config, "hidden_sizes") or _MASK in self._accepted):
            raise EncoderError(
                f"the tokens of '{source.name}', which has feature maps or images of different sizes",
                "a transformer with equally many tokens for every image, for partial training",
                "use another method, or another model",
            )
        if pooling == "cls":
            check_class_token(model, source.name)

    @property
    def processor_digest(self) -> str:
        """SHA-256 of the processor's configuration and of how images are decoded."""
        return sha256_json({**self.processor.to_dict(), **_DECODING})

    def prepare(self, contents: Sequence[bytes]) -> dict[str, Tensor]:
        """Decode and preprocess n images: pixels [n, 3, height, width], and further inputs of some models.

        Raises:
            DataError: Bytes that are not an image.
        """
        images = [open_image(content) for content in contents]
        processed = self.processor(images=images, return_tensors="pt")
        return {name: processed[name] for name in processed if name in self._accepted}

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states [n, K, D] of some levels; layers above the highest are not run.

        Raises:
            EncoderError: The processor's images have another size than the model expects.
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
                f"{wanted[0]} × {wanted[1]}, the input size of the model",
                "correct the size in its preprocessor_config.json, or download the model again",
            ) from None

    def sample(self) -> bytes:
        """Return a small grey image."""
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), "grey").save(buffer, "PNG")
        return buffer.getvalue()

    def mean(self, inputs: dict[str, Tensor]) -> Pool:
        """Mean over all tokens, over the real patches if there is a mask, or over the cells of feature maps."""
        mask = inputs.get(_MASK)
        if mask is not None:
            return lambda hidden: masked_mean(hidden, mask)
        return lambda hidden: grid_means(hidden, self.width) if hidden.ndim == 4 else hidden.float().mean(1)


def load_image(
    name_or_folder: str, pooling: str | None = None, trust_remote_code: bool = False, loading: Loading = PLAIN
) -> ImageEncoder:
    """Load an image encoder, see :func:`iisan.encoders.load.load_encoder`."""
    source = find_model(name_or_folder, trust_remote_code)
    processor = load_image_processor(source, trust_remote_code)
    model = load_weights(source, IMAGE, trust_remote_code, loading)
    pooling = pooling or ("cls" if has_class_token(model) else "mean")
    return ImageEncoder(model, source, pooling, processor, loading)
