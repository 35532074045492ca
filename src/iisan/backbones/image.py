"""Image encoders of Hugging Face as backbones."""

import io
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from iisan.backbones.backbone import Backbone
from iisan.backbones.blocks import Pool
from iisan.backbones.loading import Source, check_folder, load_tower, locate, quiet
from iisan.data.images import open_image
from iisan.errors import BackboneError
from iisan.files import sha256_json
from iisan.names import IMAGE

#: How bytes become pixels before the processor; part of the fingerprint. JPEG draft mode, which decodes at a
#: fraction of the size, is faster and changes the pixels, so it is off.
_DECODING = {"decoder": "pillow", "jpeg_draft": False, "backend": "pil"}


class ImageBackbone(Backbone):
    """An image tower and its processor; contents are the bytes of image files."""

    modality: ClassVar[str] = IMAGE

    def __init__(self, tower: nn.Module, source: Source, pooling: str, processor: Any) -> None:
        super().__init__(tower, source, pooling)
        self.processor = processor
        if pooling == "cls" and not _has_class_token(tower):
            raise BackboneError(
                f"pooling 'cls' for '{source.name}', which has no class token",
                "pooling 'mean' for such models (SigLIP, for one)",
                "use mean pooling",
            )

    @property
    def processor_digest(self) -> str:
        """SHA-256 over the processor's configuration and the way images are decoded."""
        return sha256_json({**self.processor.to_dict(), **_DECODING})

    def prepare(self, contents: Sequence[bytes]) -> dict[str, Tensor]:
        """Decode and preprocess n images: pixels [n, 3, height, width].

        Raises:
            DataError: bytes that are not an image.
        """
        images = [open_image(content) for content in contents]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}

    def sample(self) -> bytes:
        """A small grey picture."""
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), "grey").save(buffer, "PNG")
        return buffer.getvalue()

    @cached_property
    def _blank(self) -> Tensor:
        return torch.zeros_like(self.prepare([self.sample()])["pixel_values"])

    def inputs_like(self, mask: Tensor) -> dict[str, Tensor]:
        """Blank pixels: all pictures have equally many tokens."""
        return {"pixel_values": self._blank.to(mask.device).expand(len(mask), -1, -1, -1)}

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """Class token, mean over all tokens of the tower, or every token."""
        if self.pooling == "tokens":
            return lambda hidden: hidden.float().flatten(0, 1)
        if self.pooling == "cls":
            return lambda hidden: hidden[:, 0].float()
        return lambda hidden: hidden.float().mean(1)


def load_image(name_or_folder: str, pooling: str = "cls", trust_remote_code: bool = False) -> ImageBackbone:
    """Load an image backbone.

    Preprocessing always uses Pillow, so states do not depend on what else is installed.

    Args:
        name_or_folder: hub id or local folder of any Hugging Face image transformer; of two-tower models the
            image tower is taken.
        pooling: ``"cls"``, the class token, or ``"mean"`` over all tokens.
        trust_remote_code: run program code that comes with the model.

    Raises:
        BackboneError: not found, incomplete, of another kind, or unfit for these settings.
    """
    from transformers import AutoImageProcessor

    source = locate(name_or_folder)
    check_folder(source, trust_remote_code)
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                source.folder, backend="pil", trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # processors raise whatever their parsers raise
        raise BackboneError(
            f"'{source.name}' has no usable image processor ({' '.join(str(error).split())[:120]})",
            "preprocessor_config.json beside the weights",
            "download all files of the model, or use an image model",
        ) from None
    if getattr(processor, "backend", "pil") != "pil":
        raise BackboneError(
            f"the image processor of '{source.name}' has no Pillow form",
            "one that works without torchvision",
            "use another image model",
        )
    return ImageBackbone(load_tower(source, IMAGE, trust_remote_code), source, pooling, processor)


def _has_class_token(tower: nn.Module) -> bool:
    names = ("cls_token", "class_token", "class_embedding")
    return any(name.rpartition(".")[2] in names for name, _ in tower.named_parameters())
