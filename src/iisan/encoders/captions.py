"""Captions of images and videos by image-to-text models from Hugging Face."""

from typing import TYPE_CHECKING, Any

import torch

from iisan.data.images import open_image
from iisan.data.videos import sample_frames
from iisan.encoders.encoder import config_digest, weight_digest
from iisan.encoders.hub import find_model
from iisan.encoders.loading import (
    check_tokenizer,
    check_weights,
    load_image_processor,
    load_model,
    load_processor,
    load_tokenizer,
    quiet,
)
from iisan.encoders.precision import autocast, choose_precision, feed_forward
from iisan.encoders.text import tokenizer_rules
from iisan.errors import ConfigError, EncoderError
from iisan.files import sha256_json
from iisan.names import IMAGE

if TYPE_CHECKING:
    from PIL.Image import Image

#: Default maximum length of a caption, in tokens.
MAX_TOKENS = 30
#: Number of tokens in the product that is timed to choose the precision.
_TIMED_TOKENS = 4096
#: Default prompt of models with a chat template.
PROMPT = "Describe this picture in one sentence."


class Captioner:
    """An image-to-text model that generates one caption per image by greedy search, which is deterministic.

    Args:
        name_or_folder: Hub id, perhaps with ``@revision``, or local folder of a captioning model (BLIP, GIT,
            ViT-GPT2) or a model with a chat template (LLaVA and similar).
        prompt: Prompt of a model with a chat template; others have none.
        max_tokens: Maximum number of tokens of a caption.
        precision: See :func:`iisan.encoders.precision.choose_precision`.
        device: Device of the model. Defaults to a GPU if there is one.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        EncoderError: The model is not found, incomplete, of another kind, or needs more input than an image.
        ConfigError: Invalid settings.
    """

    def __init__(
        self,
        name_or_folder: str,
        *,
        prompt: str = PROMPT,
        max_tokens: int = MAX_TOKENS,
        precision: str = "auto",
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        import transformers as hf
        from PIL import Image

        if max_tokens < 1:
            raise ConfigError(f"captions of at most {max_tokens} tokens", "at least 1", "raise max_tokens")
        self._source = source = find_model(name_or_folder, trust_remote_code)
        config = load_processor(hf.AutoConfig, source, "configuration", trust_remote_code)
        if type(config) not in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not trust_remote_code:
            got = f"'{source.name}' ({config.model_type}) writes no text about pictures"
            raise EncoderError(got, "an image-to-text model such as BLIP, GIT or ViT-GPT2", "choose another model")
        decoder = config.get_text_config(decoder=True)
        positions = getattr(decoder, "max_position_embeddings", None)
        if positions is not None and max_tokens >= positions:
            got = f"captions of at most {max_tokens} tokens"
            raise ConfigError(got, f"fewer than the {positions} positions of '{source.name}'", "lower max_tokens")
        whole = load_processor(hf.AutoProcessor, source, "processor", trust_remote_code, backend="pil")
        has_chat = hasattr(whole, "image_processor") and getattr(whole, "chat_template", None)
        self._chat: Any = whole if has_chat else None
        if self._chat is None:
            # Some captioning models have no joint processor for images and text.
            self._pixels = load_image_processor(source, trust_remote_code)
            self._tokenizer = load_tokenizer(source, trust_remote_code)
        else:
            self._tokenizer = self._chat.tokenizer
            check_tokenizer(source, self._tokenizer)
            self._tokenizer.padding_side = "left"  # generation continues the prompt
        model, missing = load_model(hf.AutoModelForImageTextToText, source, trust_remote_code)
        check_weights(source, "the model", missing)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        products = [feed_forward(_TIMED_TOKENS, getattr(decoder, "hidden_size", 768))]
        self._precision = choose_precision(self._device, precision, products)
        self._model = model.eval().to(self._device)
        self._prompt, self._max_tokens = prompt, max_tokens
        try:
            self([Image.new("RGB", (32, 32), "grey")])
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
            raise EncoderError(
                f"'{source.name}' writes no caption of a picture alone ({' '.join(str(error).split())[:120]})",
                "a model that needs no more than the picture, or one with a chat template",
                "choose another model",
            ) from None

    def __call__(self, pictures: list["Image"]) -> list[str]:
        """Return a caption, which may be empty, for each image of a batch."""
        if self._chat is None:
            inputs = {"pixel_values": self._pixels(pictures, return_tensors="pt")["pixel_values"]}
        else:
            inputs = self._chat_inputs(pictures)
        prompt_length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        with quiet(), torch.inference_mode(), autocast(self._device, self._precision):
            tokens = self._model.generate(
                **{name: values.to(self._device) for name, values in inputs.items()},
                max_new_tokens=self._max_tokens,
                do_sample=False,
                num_beams=1,
            )
        captions = self._tokenizer.batch_decode(tokens[:, prompt_length:].cpu(), skip_special_tokens=True)
        return [" ".join(caption.split()) for caption in captions]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the captions depend on, as JSON."""
        processor = self._pixels if self._chat is None else self._chat
        template = None if self._chat is None else self._chat.chat_template
        return {
            "model": self._source.full_name,
            "revision": self._source.revision,
            "weight_digest": weight_digest(self._model),
            "config_digest": config_digest(self._model.config),
            "generation_digest": config_digest(self._model.generation_config),
            "processor_digest": sha256_json([processor.to_dict(), tokenizer_rules(self._tokenizer), template]),
            "prompt": None if self._chat is None else self._prompt,
            "max_tokens": self._max_tokens,
            "precision": self._precision,
        }

    def _chat_inputs(self, pictures: list["Image"]) -> dict[str, torch.Tensor]:
        text = {"type": "text", "text": self._prompt}
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, text]}] for picture in pictures
        ]
        tensors = {"padding": True, "return_tensors": "pt"}
        return self._chat.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=tensors
        )


def open_picture(content: bytes, kind: str) -> "Image":
    """Decode an image, or the middle frame of a video."""
    return open_image(content) if kind == IMAGE else sample_frames(content, 1)[0]
