"""Audio encoders from Hugging Face.

Legend: n sounds in a batch, L samples or spectrogram frames, S tokens, K requested levels, D width.
"""

import io
import wave
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from iisan.data.sounds import MIN_SECONDS, open_sound
from iisan.encoders.encoder import Encoder
from iisan.encoders.hub import Source, check_folder, locate
from iisan.encoders.layers import Pool, has_class_token, masked_mean, pooled_states
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, load_processor, load_tower
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import AUDIO

#: Default ``max_seconds`` of models without a window of their own.
DEFAULT_MAX_SECONDS = 10.0

#: How bytes are decoded for the feature extractor; part of the fingerprint.
_DECODING = {"decoder": "soundfile", "part": "middle", "resampler": "scipy.signal.resample_poly"}
_LENGTH = "length"

#: Switched off: in training mode these skip layers whose states are requested, and mask parts of the input.
_NOISE = {"layerdrop": 0.0, "apply_spec_augment": False}


class AudioEncoder(Encoder):
    """An audio model and its feature extractor; contents are the bytes of sound files.

    The middle ``max_seconds`` of a sound are encoded, independently of the other sounds of a batch:

    - Models of raw samples (Wav2Vec2, HuBERT, WavLM) get each sound at its own length: some normalise over all
      samples of a sound and were trained without an attention mask, so padding would change their states. Only
      sounds of equal length share a forward pass.
    - Whisper's encoder reads a window of 30 s, padded with silence; the mean is over the frames of the sound
      itself.
    - AST reads a window of 10 s, padded likewise; its tokens are patches of the spectrogram, all of which are
      averaged.

    Attributes:
        max_seconds: Maximum duration of the encoded part of a sound, in seconds.
    """

    kind: ClassVar[str] = AUDIO
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean", "tokens")

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        pooling: str,
        extractor: Any,
        max_seconds: float | None,
        loading: Loading = PLAIN,
    ) -> None:
        super().__init__(model, source, pooling, loading)
        self.extractor = extractor
        self._input: str = extractor.model_input_names[0]
        # Window of Whisper and AST in samples; AST counts it in hops of 160.
        self._whisper: int | None = getattr(extractor, "n_samples", None)
        self._window = self._whisper or 160 * getattr(extractor, "max_length", 0)
        self.max_seconds = self._resolve_max_seconds(max_seconds)
        if pooling == "cls" and not has_class_token(model):
            raise EncoderError(
                f"pooling 'cls' for '{source.name}', which has no class token",
                "pooling 'mean' for audio models other than AST",
                "use mean pooling",
            )
        if pooling == "tokens" and (self._whisper or not self._window):
            raise EncoderError(
                f"the token states of '{source.name}'",
                "an audio model with equally many tokens for all sounds (AST)",
                "exclude audio from partial training, or use such a model",
            )
        for owner in (model, model.config):
            for name, off in _NOISE.items():
                if hasattr(owner, name):
                    setattr(owner, name, off)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that the states' values depend on, as JSON."""
        return {**super().settings, "max_seconds": self.max_seconds}

    @property
    def processor_digest(self) -> str:
        """SHA-256 of the feature extractor's configuration and of how sounds are decoded."""
        # With torchaudio installed, the feature extractor of AST gives slightly different values.
        kaldi = bool(self._window) and not hasattr(self.extractor, "mel_filters")
        return sha256_json({**self.extractor.to_dict(), **_DECODING, "torchaudio": kaldi})

    def prepare(self, contents: Sequence[bytes]) -> dict[str, Tensor]:
        """Decode n sounds and extract their features: padded [n, L] or [n, L, …], and lengths [n].

        Raises:
            DataError: Bytes that are not a sound.
        """
        rate = self.extractor.sampling_rate
        sounds = [open_sound(content, rate, self.max_seconds) for content in contents]
        # One by one, so that no sound is padded or normalised with another.
        features = [
            self.extractor(sound, sampling_rate=rate, return_tensors="pt")[self._input][0] for sound in sounds
        ]
        lengths = [len(part) for part in (sounds if self._window else features)]
        return {self._input: pad_sequence(features, batch_first=True), _LENGTH: torch.tensor(lengths)}

    def sample(self) -> bytes:
        """Return a second of silence."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(bytes(2 * 16_000))
        return buffer.getvalue()

    def forward(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        """Compute the pooled states [n, K, D] of some levels; layers above the highest are not run."""
        lengths = inputs[_LENGTH]
        if self._window:
            return self._run(inputs, levels)
        order, parts = [], []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            order.append(rows)
            same_length = {self._input: inputs[self._input][rows, :length], _LENGTH: lengths[rows]}
            parts.append(self._run(same_length, levels))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _run(self, inputs: dict[str, Tensor], levels: Sequence[Level]) -> Tensor:
        features = {self._input: inputs[self._input]}
        return pooled_states(self.tower, self.layers, features, levels, self.pool(inputs), self.width)

    def pool(self, inputs: dict[str, Tensor]) -> Pool:
        """Return the pooling function: mean over the sound's tokens, class token, or all tokens."""
        if self.pooling == "tokens":
            return lambda hidden: hidden.float().flatten(0, 1)
        if self.pooling == "cls":
            return lambda hidden: hidden[:, 0].float()
        if self._whisper is None:
            return lambda hidden: hidden.float().mean(1)
        samples, window = inputs[_LENGTH], self._whisper

        def mean_without_silence(hidden: Tensor) -> Tensor:
            frames = (samples * hidden.shape[1] + window - 1) // window
            real = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
            return masked_mean(hidden, real)

        return mean_without_silence

    def _resolve_max_seconds(self, requested: float | None) -> float:
        window = self._window / self.extractor.sampling_rate
        if requested is None:
            return window or DEFAULT_MAX_SECONDS
        if not MIN_SECONDS <= requested <= (window or float("inf")):
            raise EncoderError(
                f"max_seconds {requested} for '{self.source.name}'",
                f"{MIN_SECONDS} to {window:g}" if window else f"at least {MIN_SECONDS}",
                "choose a length in this range",
            )
        return requested


def load_audio(
    name_or_folder: str,
    pooling: str | None = None,
    max_seconds: float | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
) -> AudioEncoder:
    """Load an audio encoder.

    Args:
        name_or_folder: Hub id or local folder of AST, Wav2Vec2, HuBERT, WavLM, Whisper (its encoder) or another
            audio transformer of constant width.
        pooling: ``"mean"`` over the sound's tokens (the default), or ``"cls"``, the class token (AST only).
        max_seconds: Maximum duration of the encoded part, the middle of the sound. Defaults to the model's own
            window (AST 10.24, Whisper 30), else to 10.
        trust_remote_code: Whether to run code that comes with the model.
        loading: How to place and quantise the weights of a large model.

    Raises:
        EncoderError: The model is not found, incomplete, of another kind, or does not support these settings.
        MissingExtraError: ``loading`` needs a library that is not installed.
    """
    from transformers import AutoFeatureExtractor

    source = locate(name_or_folder)
    check_folder(source, trust_remote_code)
    extractor = load_processor(AutoFeatureExtractor, source, "audio feature extractor", trust_remote_code)
    model = load_tower(source, AUDIO, trust_remote_code, loading)
    return AudioEncoder(model, source, pooling or "mean", extractor, max_seconds, loading)
