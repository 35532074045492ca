"""Extraction: frozen encoders run once over all contents, into state stores.

Legend: n contents, K levels, D width.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from iisan.ahead import ahead
from iisan.encoders.contents import Contents, prepare_items
from iisan.encoders.encoder import Encoder
from iisan.encoders.levels import Level, parse_levels
from iisan.encoders.precision import Precision, autocast, choose_precision, feed_forward
from iisan.errors import ConfigError, StoreError
from iisan.names import TEXT
from iisan.progress import track
from iisan.states.codec import check_distinct, check_dtype, check_finite, level_means, storage_errors
from iisan.states.manifest import MANIFEST, Manifest, fingerprint_of
from iisan.states.store import StateStore, store_folder
from iisan.states.writer import EncodedShard, StateWriter, library_versions

#: Number of contents that give the means and on which the storage error is measured.
SAMPLE = 512

#: Tokens of an image (as in a ViT), a sound or a video when the precisions are timed.
_TOKENS = 197

#: Largest accepted storage error relative to the spread between items.
MAX_ERROR = 0.02

Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """What all shards of a new store have in common, measured on a sample of its contents.

    Attributes:
        precision: Number format of the computation.
        mean: Mean per level [K, D] that is subtracted from the states.
        error: Storage error per level, see :func:`iisan.states.codec.relative_errors`.
        messages: What was decided automatically.
    """

    precision: Precision
    mean: Tensor
    error: list[float | None]
    messages: list[str]


class Extractor(Protocol):
    """Computes the states of contents, which are named by their indices: on this machine, or on a cluster."""

    def measure(self, sample: Sequence[int], requested: str) -> Start:
        """Choose the precision and compute the means of a new store, or raise a ``StoreError``."""

    def encode(
        self, shards: Sequence[Sequence[int]], precision: Precision, mean: Tensor
    ) -> Iterable[tuple[int, EncodedShard]]:
        """Encode shards: yield them, in any order, with their positions."""


@dataclass(frozen=True)
class Job:
    """An encoder and the contents of one modality to encode on this machine.

    Attributes:
        encoder: Encoder on its device, in evaluation mode.
        contents: Contents of N items.
        levels: The K levels.
        dtype: Storage format.
        batch_size: Number of contents per forward pass.
        device: Device of the encoder.
        threads: Number of threads that prepare contents other than texts.
    """

    encoder: Encoder
    contents: Contents
    levels: tuple[Level, ...]
    dtype: str
    batch_size: int
    device: torch.device
    threads: int = os.cpu_count() or 1

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the states' values, and their modality."""
        return {"modality": self.contents.modality, **self.encoder.settings}

    def folder(self, out: Path, precision: Precision) -> Path:
        """Folder of the store in a folder of stores."""
        fingerprint = fingerprint_of(self.settings, self.levels, self.dtype, precision)
        return store_folder(out, self.contents.modality, fingerprint, self.encoder.pooling == "tokens")

    def measure(self, sample: Sequence[int], requested: str) -> Start:
        """See :class:`Extractor`."""
        tokens = self.batch_size * (self.encoder.max_tokens or _TOKENS)
        fastest = choose_precision(self.device, requested, [feed_forward(tokens, self.encoder.width)])
        candidates: list[Precision] = ["bf16", "fp32"] if (requested, fastest) == ("auto", "bf16") else [fastest]
        reference, owners = self._states(sample, "fp32")
        label = self._label(owners)
        check_finite(reference, self.levels, label, "fp32")
        check_distinct(reference, self.contents.modality)
        mean = level_means(reference, self.dtype)
        cure = "choose another dtype (fp32 is exact), --precision fp32, or leave this level out"
        messages: list[str] = []
        for precision in candidates:
            states = reference if precision == "fp32" else self._states(sample, precision)[0]
            error = storage_errors(states, reference, mean, self.dtype, self.levels, label)
            try:
                check_errors(error, self.levels, f"{self.dtype} storage with {precision} computation", cure)
            except StoreError as refusal:
                if precision == candidates[-1]:
                    raise
                messages.append(f"{refusal.got}, so fp32 is used")
            else:
                break
        return Start(precision, mean, error, messages)

    def encode(
        self, shards: Sequence[Sequence[int]], precision: Precision, mean: Tensor
    ) -> Iterator[tuple[int, EncodedShard]]:
        """See :class:`Extractor`; the contents of the next batches are prepared across the ends of shards."""
        batches = [chunks(shard, self.batch_size) for shard in shards]
        flat = [batch for shard in batches for batch in shard]
        states = track(self._run(flat, precision), f"caching {self.contents.modality} states", len(flat))
        for number, (shard, of_shard) in enumerate(zip(shards, batches, strict=True)):
            parts = [next(states) for _ in of_shard]
            shard_states, owners = _joined(shard, parts)
            counts = [count for _, part in parts for count in part]
            label = self._label(owners)
            yield number, EncodedShard.of(shard_states, counts, mean, self.dtype, self.levels, label)

    def _label(self, owners: Sequence[int]) -> Callable[[int], str]:
        """Function from a row of states to the name of its item, given the item of every row."""
        return lambda row: self.contents.label(owners[row])

    def _run(
        self, batches: Iterable[Sequence[int]], precision: Precision
    ) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Yield the states [rows, K, D] of every batch and the number of rows of each content."""
        # A tokenizer must not be used by two threads at once; decoding images gains from many.
        prepare = functools.partial(prepare_items, self.encoder, self.contents)
        workers = 1 if self.contents.kind == TEXT else self.threads
        with contextlib.closing(ahead(prepare, batches, workers)) as prepared:
            for inputs in prepared:
                with torch.inference_mode(), autocast(self.device, precision):
                    on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
                    states = self.encoder(on_device, self.levels).cpu()
                yield states, self.encoder.row_counts(inputs, len(states))

    def _states(self, indices: Sequence[int], precision: Precision) -> tuple[Tensor, list[int]]:
        """States [rows, K, D] of some contents, and the content that each row belongs to."""
        return _joined(indices, list(self._run(chunks(indices, self.batch_size), precision)))


def extract(
    encoder: Encoder,
    contents: Contents,
    out: Path,
    *,
    levels: str | Sequence[Level] = "layerdrop",
    dtype: str = "bf16",
    precision: str = "auto",
    batch_size: int = 64,
    shard_rows: int = 4096,
    device: torch.device | str = "cpu",
    say: Say = lambda _: None,
    extractor: Callable[[Job], Extractor] = lambda job: job,
) -> StateStore:
    """Bring an encoder's state store up to date: each distinct content is encoded once, ever.

    Stored contents are skipped, and an interrupted extraction continues where it stopped; its shards are
    bit-identical to those of an uninterrupted one.

    Args:
        encoder: Encoder; moved to ``device`` and set to eval mode.
        contents: Contents of N items.
        out: Folder of stores; the store is ``<out>/<modality>-<fingerprint>``
            (``<out>/tokens-<modality>-<fingerprint>`` with pooling ``tokens``).
        levels: See :func:`iisan.encoders.levels.parse_levels`.
        dtype: Storage format, ``"bf16"``, ``"fp16"``, ``"int8"`` or ``"fp32"``.
        precision: See :func:`iisan.encoders.precision.choose_precision`; ``"auto"`` continues a store of either
            precision, and starts one in bf16 only where that is also accurate enough.
        batch_size: Number of contents per forward pass.
        shard_rows: Contents per shard, the most that a kill can lose. The manifest lists all shards and is
            replaced after each, so raise this for millions of items.
        device: Device of the encoder.
        say: Receives messages about automatic decisions.
        extractor: Returns what computes the states, from the job on this machine.

    Raises:
        StoreError: No content, states that cannot be stored within 2% of the spread between items, that are
            not finite, or that are the same for all contents.
        DataError: A file that cannot be read, or changed since the dataset was prepared.
        EncoderError: A level that the encoder does not have.
    """
    check_dtype(dtype)
    if batch_size < 1 or shard_rows < 1:
        raise ConfigError(f"batch size {batch_size}, shard rows {shard_rows}", "at least 1", "raise them")
    device = torch.device(device)
    if not contents.present.any():
        raise StoreError(
            f"no item has {contents.modality}", f"items with {contents.modality}", "leave this encoder out"
        )
    encoder.eval().to(device)
    job = Job(encoder, contents, parse_levels(levels, encoder.depth), dtype, batch_size, device)
    keys = contents.keys().to_list()
    order = _order(encoder, contents, keys)
    states = extractor(job)
    folder, initial = _place(job, states, order, Path(out), precision, say)
    with StateWriter(folder, initial, say) as writer:
        # The path of the model is not part of the fingerprint.
        todo = writer.start(keys, order, settings=job.settings)
        missing, first = [], writer.next_number
        for number, shard in enumerate(chunks(todo, shard_rows), first):
            shard_keys = [key for key in (keys[index] for index in shard) if key is not None]
            if not writer.adopt(number, shard_keys):
                missing.append((number, shard_keys, shard))
        if missing:
            numbers, keys_of, shards = zip(*missing, strict=True)
            for position, encoded in states.encode(shards, writer.manifest.precision, writer.mean):
                writer.add(numbers[position], keys_of[position], encoded)
        writer.finish()
    return StateStore.open(folder)


def encode_again(
    encoder: Encoder, contents: Contents, indices: Sequence[int], store: StateStore, device: torch.device
) -> Tensor:
    """Compute the states of some contents as those of a store were computed, fp32 ``[rows, K, D]``."""
    encoder.eval().to(device)
    job = Job(encoder, contents, store.levels, store.manifest.dtype, 1, device)
    return job._states(indices, store.manifest.precision)[0].float()


def sampled(positions: Sequence[int]) -> list[int]:
    """At most ``SAMPLE`` evenly spaced positions."""
    size = min(SAMPLE, len(positions))
    return [positions[number * len(positions) // size] for number in range(size)]


def _joined(indices: Sequence[int], parts: Sequence[tuple[Tensor, Sequence[int]]]) -> tuple[Tensor, list[int]]:
    counts = [count for _, part in parts for count in part]
    owners = [index for index, count in zip(indices, counts, strict=True) for _ in range(count)]
    return torch.cat([states for states, _ in parts]), owners


def _order(encoder: Encoder, contents: Contents, keys: list[str | None]) -> list[int]:
    """One item per distinct content, in an order that depends on the contents only.

    Texts are sorted by length, so that batches have little padding.
    """
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key is not None:
            first.setdefault(key, index)
    indices = [first[key] for key in sorted(first)]
    if contents.kind == TEXT:
        lengths = dict(zip(indices, encoder.lengths([contents.get(i) for i in indices]), strict=True))
        indices.sort(key=lengths.__getitem__)
    return indices


def _place(
    job: Job, states: Extractor, order: list[int], out: Path, requested: str, say: Say
) -> tuple[Path, tuple[Manifest, Tensor] | None]:
    """Find the store's folder and, if it is new, its initial manifest and means."""
    existing: list[Precision] = ["bf16", "fp32"]
    for precision in existing if requested == "auto" else [choose_precision(job.device, requested, [])]:
        folder = job.folder(out, precision)
        if (folder / MANIFEST).is_file():
            return folder, None
    start = states.measure(sampled(order), requested)
    for message in start.messages:
        say(message)
    manifest = Manifest(
        settings=job.settings,
        levels=job.levels,
        dtype=job.dtype,
        precision=start.precision,
        width=job.encoder.width,
        depth=job.encoder.depth,
        parameters=job.encoder.parameter_count,
        error=start.error,
        shards=[],
        made_with=library_versions(),
    )
    return job.folder(out, start.precision), (manifest, start.mean)


def check_errors(errors: Sequence[float | None], levels: Sequence[Level], how: str, cure: str) -> None:
    """Check the storage errors of levels, see :func:`iisan.states.codec.relative_errors`.

    Raises:
        StoreError: An error above ``MAX_ERROR``.
    """
    worst, level = max((error or 0.0, str(level)) for error, level in zip(errors, levels, strict=True))
    if worst > MAX_ERROR:
        got = f"{how} changes level {level} by {worst:.1%} of the spread between items"
        raise StoreError(got, f"at most {MAX_ERROR:.0%}", cure)


def chunks(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split indices into consecutive parts of at most ``size``."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
