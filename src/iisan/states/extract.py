"""Running frozen encoders once over all contents, into state stores.

Legend: n contents, K levels, D width.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from iisan.states.writer import StateWriter, library_versions

#: Contents from which the means are taken and on which the storage error is measured.
SAMPLE = 512

#: Tokens of an image, a sound or a video, for measuring; those of a ViT.
_TOKENS = 197

#: Largest storage error next to the spread between items that is accepted.
MAX_ERROR = 0.02

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Job:
    """An encoder at work on the contents of one modality."""

    encoder: Encoder
    contents: Contents
    levels: tuple[Level, ...]
    dtype: str
    batch_size: int
    device: torch.device

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the states' values, and whose they are."""
        return {"modality": self.contents.modality, **self.encoder.settings}

    def batches(self, indices: Sequence[int]) -> list[Sequence[int]]:
        return _chunks(indices, self.batch_size)

    def run(
        self, batches: Iterable[Sequence[int]], precision: Precision
    ) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """States [rows, K, D] of every batch and the rows of each content; the next are prepared meanwhile."""
        # A tokenizer must not be used by two threads at once; decoding images gains from many.
        prepare = functools.partial(prepare_items, self.encoder, self.contents)
        workers = 1 if self.contents.kind == TEXT else os.cpu_count() or 1
        with contextlib.closing(ahead(prepare, batches, workers)) as prepared:
            for inputs in prepared:
                with torch.inference_mode(), autocast(self.device, precision):
                    on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
                    states = self.encoder(on_device, self.levels).cpu()
                yield states, self.encoder.row_counts(inputs, len(states))

    def states(self, indices: Sequence[int], precision: Precision) -> tuple[Tensor, list[int]]:
        """States [rows, K, D] of some contents, and the content that each row belongs to."""
        return _joined(indices, list(self.run(self.batches(indices), precision)))


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
) -> StateStore:
    """Bring an encoder's state store up to date: each distinct content is encoded once, ever.

    Contents that are stored already are left alone, and an interrupted extraction goes on where it stopped;
    its shards are the same to the last bit as those of an uninterrupted one.

    Args:
        encoder: moved to ``device`` and run in eval mode.
        contents: of N items.
        out: folder of stores; the store is ``<out>/<modality>-<fingerprint>``
            (``<out>/tokens-<modality>-<fingerprint>`` with pooling ``tokens``).
        levels: see :func:`iisan.encoders.levels.parse_levels`.
        dtype: storage format, ``"bf16"``, ``"fp16"``, ``"int8"`` or ``"fp32"``.
        precision: see :func:`iisan.encoders.precision.choose_precision`; ``"auto"`` continues a store of either
            precision, and a new one is bf16 only where that is fine enough, too.
        batch_size: contents per forward pass.
        shard_rows: contents per shard, the most that a kill can lose. The manifest lists all shards and is
            replaced after each, so raise this for millions of items.
        device: where the encoder runs.
        say: told about what was decided on the user's behalf.

    Returns:
        The store.

    Raises:
        StoreError: no content at all, states that cannot be stored within 2% of the spread between items, or
            that are not finite, or that are the same for all contents.
        DataError: a file that cannot be read, or changed since the dataset was prepared.
        EncoderError: levels that the encoder does not have.
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
    job = _Job(encoder, contents, parse_levels(levels, encoder.depth), dtype, batch_size, device)
    keys = contents.keys().to_list()
    order = _order(encoder, contents, keys)
    folder, initial = _place(job, order, Path(out), precision, say)
    with StateWriter(folder, initial, say) as writer:
        stored = StateStore(folder, writer.manifest).rows_of([keys[index] for index in order])
        todo = [index for index, row in zip(order, stored.tolist(), strict=True) if row < 0]
        # Where the model lies now has no part in the fingerprint.
        writer.record(settings=job.settings, finished=not todo)
        _append_all(job, writer, todo, keys, shard_rows)
        writer.record(finished=True)
    return StateStore.open(folder)


def sampled(positions: Sequence[int]) -> list[int]:
    """At most ``SAMPLE`` of them, evenly spaced."""
    size = min(SAMPLE, len(positions))
    return [positions[number * len(positions) // size] for number in range(size)]


def _append_all(job: _Job, writer: StateWriter, todo: list[int], keys: list[str | None], shard_rows: int) -> None:
    shards = _chunks(todo, shard_rows)
    batches = [job.batches(shard) for shard in shards]
    flat = [batch for shard in batches for batch in shard]
    precision: Precision = writer.manifest.precision
    states = track(job.run(flat, precision), f"caching {job.contents.modality} states", len(flat))
    for shard, of_shard in zip(shards, batches, strict=True):
        parts = [next(states) for _ in of_shard]
        shard_states, owners = _joined(shard, parts)
        shard_keys = [key for key in (keys[index] for index in shard) if key is not None]
        counts = [count for _, part in parts for count in part]
        writer.append(shard_keys, shard_states, counts, functools.partial(_label, job.contents, owners))


def _joined(indices: Sequence[int], parts: Sequence[tuple[Tensor, Sequence[int]]]) -> tuple[Tensor, list[int]]:
    counts = [count for _, part in parts for count in part]
    owners = [index for index, count in zip(indices, counts, strict=True) for _ in range(count)]
    return torch.cat([states for states, _ in parts]), owners


def _order(encoder: Encoder, contents: Contents, keys: list[str | None]) -> list[int]:
    """One item per distinct content, in an order that depends on nothing but the contents.

    Texts of similar length stand together, so that little of a batch is padding.
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
    job: _Job, order: list[int], out: Path, requested: str, say: Say
) -> tuple[Path, tuple[Manifest, Tensor] | None]:
    """Find the store's folder and, where it does not exist yet, what it starts with."""
    auto = requested == "auto"
    candidates: list[Precision] = ["bf16", "fp32"] if auto else [choose_precision(job.device, requested, [])]
    for precision in candidates:
        folder = _folder(job, out, precision)
        if (folder / MANIFEST).is_file():
            return folder, None
    tokens = job.batch_size * (job.encoder.max_tokens or _TOKENS)
    if auto and choose_precision(job.device, requested, [feed_forward(tokens, job.encoder.width)]) == "fp32":
        candidates = ["fp32"]
    sample = sampled(order)
    reference, owners = job.states(sample, "fp32")
    check_finite(reference, job.levels, functools.partial(_label, job.contents, owners), "fp32")
    check_distinct(reference, job.contents.modality)
    mean = level_means(reference, job.dtype)
    for precision in candidates:
        errors = _measure(job, sample, owners, reference, mean, precision)
        worst, level = max((error or 0.0, str(level)) for error, level in zip(errors, job.levels, strict=True))
        if worst <= MAX_ERROR:
            return _folder(job, out, precision), (_manifest(job, precision, errors), mean)
        if precision != candidates[-1]:
            say(
                f"{precision} computation changes level {level} by {worst:.1%} of the spread between items, "
                f"so fp32 is used"
            )
    raise StoreError(
        f"{job.dtype} storage with {precision} computation changes level {level} by {worst:.1%} of the "
        f"spread between items",
        f"at most {MAX_ERROR:.0%}",
        "choose another dtype (fp32 is exact), --precision fp32, or leave this level out",
    )


def _measure(
    job: _Job, sample: list[int], owners: list[int], reference: Tensor, mean: Tensor, precision: Precision
) -> list[float | None]:
    states = reference if precision == "fp32" else job.states(sample, precision)[0]
    label = functools.partial(_label, job.contents, owners)
    return storage_errors(states, reference, mean, job.dtype, job.levels, label)


def _manifest(job: _Job, precision: Precision, errors: list[float | None]) -> Manifest:
    return Manifest(
        settings=job.settings,
        levels=job.levels,
        dtype=job.dtype,
        precision=precision,
        width=job.encoder.width,
        depth=job.encoder.depth,
        parameters=job.encoder.parameter_count,
        error=errors,
        shards=[],
        made_with=library_versions(),
    )


def _folder(job: _Job, out: Path, precision: Precision) -> Path:
    fingerprint = fingerprint_of(job.settings, job.levels, job.dtype, precision)
    return store_folder(out, job.contents.modality, fingerprint, job.encoder.pooling == "tokens")


def _label(contents: Contents, indices: Sequence[int], row: int) -> str:
    return contents.label(indices[row])


def _chunks(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
