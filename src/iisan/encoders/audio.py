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
from iisan.encoders.hub import Source, find_model
from iisan.encoders.layers import Pool, check_class_token, masked_mean
from iisan.encoders.levels import Level
from iisan.encoders.loading import PLAIN, Loading, load_processor, load_weights
from iisan.errors import EncoderError
from iisan.files import sha256_json
from iisan.names import AUDIO

#: Default ``max_seconds`` of models without a fixed window.
DEFAULT_MAX_SECONDS = 10.0

#: How bytes become the feature extractor's input; part of the fingerprint.
_DECODING = {"decoder": "soundfile", "part": "middle", "resampler": "scipy.signal.resample_poly"}
_LENGTH = "length"

#: Disabled settings: in training mode, they skip layers whose states are requested and mask parts of the input.
_NOISE = {"layerdrop": 0.0, "apply_spec_augment": False}


class AudioEncoder(Encoder):
    """An audio model and its feature extractor; contents are the bytes of sound files.

    The middle ``max_seconds`` of a sound are encoded, independently of the other sounds of a batch:

    - Models of raw samples (Wav2Vec2, HuBERT, WavLM) read each sound at its own length, because padding would
      change the states of those trained without an attention mask. Sounds of equal length share a forward pass.
    - Whisper's encoder reads a window of 30 s, padded with silence; the mean is over the frames of the sound.
    - AST reads a window of 10 s, padded likewise; the mean is over all patches of the spectrogram.

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
        if pooling == "cls":
            check_class_token(model, source.name)
        if pooling == "tokens" and (self._whisper or not self._window):
            got = f"the token states of '{source.name}'"
            cure = "exclude audio from partial training, or use such a model"
            raise EncoderError(got, "an audio model with equally many tokens for all sounds (AST)", cure)
        for owner in (model, model.config):
            for name, off in _NOISE.items():
                if hasattr(owner, name):
                    setattr(owner, name, off)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the states depend on, as JSON."""
        return {**super().settings, "max_seconds": self.max_seconds}

    @property
    def processor_digest(self) -> str:
        """SHA-256 of the feature extractor's configuration and of how sounds are decoded."""
        # AST's feature extractor gives slightly different values if torchaudio is installed.
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
        features, lengths = inputs[self._input], inputs[_LENGTH]
        if self._window:
            return self.states({self._input: features}, levels, self.pool(inputs))
        order, parts = [], []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            order.append(rows)
            parts.append(self.states({self._input: features[rows, :length]}, levels, self.pool(inputs)))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def mean(self, inputs: dict[str, Tensor]) -> Pool:
        """Mean over all tokens; Whisper's exclude the silence after a sound."""
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
            got = f"max_seconds {requested} for '{self.source.name}'"
            expected = f"{MIN_SECONDS} to {window:g}" if window else f"at least {MIN_SECONDS}"
            raise EncoderError(got, expected, "choose a length in this range")
        return requested


def load_audio(
    name_or_folder: str,
    pooling: str | None = None,
    max_seconds: float | None = None,
    trust_remote_code: bool = False,
    loading: Loading = PLAIN,
) -> AudioEncoder:
    """Load an audio encoder, see :func:`iisan.encoders.load.load_encoder`."""
    from transformers import AutoFeatureExtractor

    source = find_model(name_or_folder, trust_remote_code)
    extractor = load_processor(AutoFeatureExtractor, source, "audio feature extractor", trust_remote_code)
    model = load_weights(source, AUDIO, trust_remote_code, loading)
    return AudioEncoder(model, source, pooling or "mean", extractor, max_seconds, loading)
