"""Text encoders from Hugging Face.

Legend: n texts in a batch, S tokens.
"""

import inspect
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from iisan.encoders.encoder import Encoder
from iisan.encoders.hub import Source, find_model
from iisan.encoders.layers import Pool, masked_mean
from iisan.encoders.loading import PLAIN, Loading, load_tokenizer, load_weights
from iisan.encoders.sentences import own_length, own_pooling
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import TEXT

DEFAULT_MAX_TOKENS = 64
_TOKENIZED_AT_ONCE = 10_000


class TextEncoder(Encoder):
    """A text model and its tokenizer; contents are strings."""

    kind: ClassVar[str] = TEXT
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "last", "tokens")

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        pooling: str,
        tokenizer: Any,
        max_tokens: int | None,
        loading: Loading = PLAIN,
        default_max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        super().__init__(model, source, pooling, loading)
        self.tokenizer = tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        self._vocabulary_size = _vocabulary_size(model)
        self.max_tokens = self._resolve_max_tokens(max_tokens, default_max_tokens)
        parameters = inspect.signature(model.forward).parameters
        self._accepted = {"input_ids", "attention_mask", "token_type_ids"} & set(parameters)
        if pooling == "cls" and self._is_causal():
            raise EncoderError(
                f"pooling 'cls' for '{source.name}', whose first token attends to no other",
                "pooling 'mean' or 'last' for causal models (decoders, the text encoder of CLIP)",
                "use mean pooling",
            )

    @property
    def processor_digest(self) -> str:
        """SHA-256 of vocabulary, normalisation, special tokens and side of truncation."""
        return sha256_json(tokenizer_rules(self.tokenizer))

    def sample(self) -> str:
        """Return a word."""
        return "sample"

    def inputs_like(self, mask: Tensor) -> dict[str, Tensor]:
        """Return the mask, and token 0 everywhere."""
        return {"input_ids": torch.zeros_like(mask), "attention_mask": mask}

    def lengths(self, contents: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text after truncation, special tokens included.

        Raises:
            EncoderError: No text has a word of the vocabulary.
        """
        lengths: list[int] = []
        special, known = {*self.tokenizer.all_special_ids}, False
        for start in range(0, len(contents), _TOKENIZED_AT_ONCE):
            tokens = self._tokenize(contents[start : start + _TOKENIZED_AT_ONCE])["input_ids"]
            lengths.extend(len(ids) for ids in tokens)
            known = known or not all(special.issuperset(ids) for ids in tokens)
        if not known and len(contents) > 1:
            raise EncoderError(
                f"the tokenizer of '{self.source.name}' knows no word of {len(contents):,} texts, such as "
                f"{contents[0]!r}",
                "a vocabulary with words of these texts",
                "download all files of the model, or choose a model for this language",
            )
        return lengths

    def prepare(self, contents: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise n texts, padded to the longest: tensors [n, S].

        Raises:
            EncoderError: A text without tokens, or a token without an embedding.
        """
        # Padding is always on the right: positions then start at 0 for every text, and the tokens of a decoder do
        # not attend to padding, so no state depends on the other texts of a batch.
        encoded = self._tokenize(
            contents, padding=True, padding_side="right", return_tensors="pt", return_attention_mask=True
        )
        highest = int(encoded["input_ids"].max()) if encoded["input_ids"].numel() else 0
        if highest >= self._vocabulary_size:
            got = f"the tokenizer of '{self.source.name}' gives token {highest}"
            cure = "download the model again, tokenizer and weights together"
            raise EncoderError(got, f"tokens below the {self._vocabulary_size} that the model knows", cure)
        empty = (encoded["attention_mask"].sum(1) == 0).nonzero()
        if len(empty):
            got = f"the text {contents[int(empty[0])]!r} has no tokens"
            raise EncoderError(got, f"at least one for '{self.source.name}'", "leave the text of such items empty")
        return {name: encoded[name] for name in sorted(self._accepted & set(encoded))}

    def row_counts(self, inputs: dict[str, Tensor], rows: int) -> list[int]:
        """Return the number of real tokens of each text with pooling ``tokens``, else 1 for each."""
        if self.pooling == "tokens":
            return inputs["attention_mask"].sum(1).tolist()
        return super().row_counts(inputs, rows)

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """Return the pooling function: first real token, last real token, mean of real tokens, or all of them."""
        mask = inputs["attention_mask"]
        if self.pooling == "tokens":
            return lambda hidden: hidden[mask.bool().to(hidden.device)].float()
        if self.pooling == "mean":
            return lambda hidden: masked_mean(hidden, mask)
        chosen = mask.argmax(1) if self.pooling == "cls" else mask.shape[1] - 1 - mask.flip(1).argmax(1)
        texts = torch.arange(len(mask))
        return lambda hidden: hidden[texts.to(hidden.device), chosen.to(hidden.device)].float()

    def _tokenize(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, **options)

    def _resolve_max_tokens(self, requested: int | None, default: int) -> int:
        config: Any = self.tower.config
        limit = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 10**9)
        for module in self.tower.modules():
            positions = getattr(module, "position_embeddings", None)
            # RoBERTa and similar models number positions from padding_idx + 1 on.
            if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
                limit = min(limit, positions.num_embeddings - positions.padding_idx - 1)
        least = self.tokenizer.num_special_tokens_to_add() + 1
        if requested is None:
            requested = min(default, limit)
        if not least <= requested <= limit:
            got = f"max_tokens {requested} for '{self.source.name}'"
            expected = f"{least} to {limit}, special tokens included"
            raise EncoderError(got, expected, "choose a number in this range")
        return requested

    @torch.inference_mode()
    def _is_causal(self) -> bool:
        """Whether the first token's state after one layer is the same for two different second tokens."""
        device = next(self.tower.parameters()).device
        ids = torch.tensor([[1, 1], [1, 2]], device=device)
        states = self({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [1])
        return bool(torch.allclose(states[0], states[1], rtol=1e-6, atol=1e-9))


def _vocabulary_size(model: Any) -> int:
    """Number of tokens that a model has embeddings of; unbounded if unknown."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return 2**63


def tokenizer_rules(tokenizer: Any) -> dict[str, Any]:
    """Return all settings that the tokens of a text depend on, as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # These two are the state of the latest call, not settings.
        rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return {**rules, "truncation_side": tokenizer.truncation_side}


def load_text(
    name_or_folder: str,
    pooling: str | None = None,
    max_tokens: int | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
) -> TextEncoder:
    """Load a text encoder, see :func:`iisan.encoders.load.load_encoder`."""
    source = find_model(name_or_folder, trust_remote_code)
    tokenizer = load_tokenizer(source, trust_remote_code)
    pooling = pooling or own_pooling(source) or "mean"
    own = own_length(source) if max_tokens is None else None
    default = DEFAULT_MAX_TOKENS if own is None else own
    model = load_weights(source, TEXT, trust_remote_code, loading)
    return TextEncoder(model, source, pooling, tokenizer, max_tokens, loading, default)
