"""State sources, a model's interface to hidden states: stored, live, partly both, or none.

Legend: N items, U distinct items of a batch, U_m those with modality m, K levels, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iisan.encoders.contents import Contents, prepare_items
from iisan.encoders.encoder import Encoder
from iisan.encoders.levels import Level, parse_levels
from iisan.names import LAST
from iisan.nn.hidden import Hidden, precision, sent, without_autocast
from iisan.states.store import StateStore

#: Settings of an encoder without which a state means something else.
_ORIGIN = ("weight_digest", "pooling")


@dataclass
class ItemBatch:
    """The distinct items of a batch and their states.

    Attributes:
        rows: Item indices, int64 [U].
        modalities: Hidden states of the items that have a modality, by modality.
    """

    rows: Tensor
    modalities: dict[str, Hidden]

    def to(self, device: torch.device) -> "ItemBatch":
        """Return the batch on a device."""
        moved = {name: hidden.to(device) for name, hidden in self.modalities.items()}
        return ItemBatch(sent(self.rows, device), moved)


class StateSource(nn.Module):
    """Base class of state sources; a submodule of the model, which thereby owns the weights of live encoders.

    Attributes:
        widths: Width D, by modality.
        levels: The K levels, by modality.
        present: Mask [N] of the items that have a modality, by modality.
        origins: Weights and pooling that the states come from, by modality, where known.
        encoder_parameters: Number of parameters of each encoder, by modality, where known.
        digests: SHA-256 of the weights of live encoders as loaded, by modality.
        stored: Whether states are only read: cheaply, from any thread, and without gradients.
    """

    stored = False

    def __init__(
        self, widths: Mapping[str, int], levels: Mapping[str, tuple[Level, ...]], present: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.widths, self.levels, self.present = dict(widths), dict(levels), dict(present)
        self.origins: dict[str, dict[str, Any]] = {}
        self.encoder_parameters: dict[str, int] = {}
        self.digests: dict[str, str] = {}

    @property
    def missing(self) -> bool:
        """Whether some item lacks one of the modalities."""
        return not all(bool(mask.all()) for mask in self.present.values())

    @property
    def empty(self) -> Tensor:
        """Indices of the items without any modality, int64; empty if the source has no modalities."""
        if not self.present:
            return torch.empty(0, dtype=torch.long)
        return (~torch.stack(list(self.present.values())).any(0)).nonzero().squeeze(1)

    def hold(self, held: bool) -> None:
        """Declare whether live weights stay constant from now on, so that their states may be cached."""

    def forward(self, rows: Tensor) -> ItemBatch:
        """Return the states of the items ``rows``, int64 [U]."""
        raise NotImplementedError


class NoStates(StateSource):
    """The source of models that use item ids only."""

    def __init__(self) -> None:
        super().__init__({}, {}, {})

    def forward(self, rows: Tensor) -> ItemBatch:
        """Return a batch without modalities."""
        return ItemBatch(rows, {})


class CachedStates(StateSource):
    """States from memory-mapped stores.

    Args:
        stores: For each modality its store, the row of each item in it (int64 [N], -1 for none, see
            ``StateStore.rows_for``) and the requested levels.
    """

    stored = True

    def __init__(self, stores: Mapping[str, tuple[StateStore, np.ndarray, tuple[Level, ...]]]) -> None:
        rows = {modality: torch.as_tensor(rows) for modality, (_, rows, _) in stores.items()}
        super().__init__(
            {modality: store.width for modality, (store, _, _) in stores.items()},
            {modality: levels for modality, (_, _, levels) in stores.items()},
            {modality: of_items >= 0 for modality, of_items in rows.items()},
        )
        # Plain attributes, because neither stores nor rows belong in a checkpoint.
        self._stores = {modality: store for modality, (store, _, _) in stores.items()}
        self._rows = rows
        #: Modality -> mean [K, D], on the device of its states.
        self._means = {
            name: store.mean[store.check_levels(self.levels[name])] for name, store in self._stores.items()
        }
        #: Modality -> differences [n, K, D] of all its rows, if resident on a device.
        self._resident: dict[str, Tensor] = {}
        for name, store in self._stores.items():
            self.origins[name] = {key: store.settings[key] for key in _ORIGIN if key in store.settings}
            if store.manifest.parameters is not None:
                self.encoder_parameters[name] = store.manifest.parameters

    def forward(self, rows: Tensor) -> ItemBatch:
        """Read the states of ``rows`` on their device, or on that of resident states."""
        dtype = precision(rows.device)
        # Autocast does not support every precision of a store, and nothing is multiplied here.
        with without_autocast(rows.device):
            return ItemBatch(rows, {name: self._read(name, rows, dtype) for name in self._stores})

    def _read(self, modality: str, rows: Tensor, dtype: torch.dtype) -> Hidden:
        """Read a modality; if both products and store have low precision, its differences stay as stored."""
        store, levels = self._stores[modality], self.levels[modality]
        low = dtype != torch.float32 and store.manifest.dtype != "fp32"
        mean = self._means[modality]
        # Selected on the CPU: the number of items with the modality would otherwise have to come from the GPU.
        stored = self._rows[modality][rows.cpu()]
        positions = (stored >= 0).nonzero().squeeze(1)
        stored = stored[positions]
        if modality in self._resident:
            values = self._resident[modality].index_select(0, sent(stored, mean.device))
            positions = sent(positions, mean.device)
            return Hidden(values.to(dtype), positions, mean) if low else Hidden(values + mean, positions)
        if low:
            return Hidden(store.read_differences(stored, levels, dtype), positions, mean).to(rows.device)
        return Hidden(store.read(stored, levels), positions).to(rows.device)

    def reside(self, device: torch.device, budget: float) -> bool:
        """Move all states to a device if they fit into a budget; batches are then gathered there.

        Args:
            device: Target device.
            budget: Maximum size of the states in bytes.

        Returns:
            Whether they fit.
        """
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtypes = {name: low.get(store.manifest.dtype, torch.float32) for name, store in self._stores.items()}
        needed = sum(
            len(store) * len(self.levels[name]) * store.width * dtypes[name].itemsize
            for name, store in self._stores.items()
        )
        if needed > budget:
            return False
        for name, store in self._stores.items():
            differences = store.read_differences(torch.arange(len(store)), self.levels[name], dtypes[name])
            self._resident[name], self._means[name] = differences.to(device), self._means[name].to(device)
        return True


class ComputedStates(StateSource):
    """States computed by encoders on request, in chunks of ``batch_size`` contents.

    Gradients reach the weights that ``iisan.encoders.tuning.tune`` has made trainable; frozen encoders give the
    values of a store. While the weights are held (see :meth:`hold`), the states of the whole catalogue are
    computed once, in evaluation mode and fp32, and cached in main memory (4·K·D bytes per item): a training step
    then costs as much as with a store, and no gradient reaches the encoders.

    Raises:
        EncoderError: A level beyond the encoder's depth.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        levels: Mapping[str, tuple[Level, ...]],
        present: Mapping[str, np.ndarray],
        batch_size: int,
    ) -> None:
        super().__init__(
            {modality: encoder.width for modality, encoder in encoders.items()},
            levels,
            {modality: torch.from_numpy(mask) for modality, mask in present.items()},
        )
        for modality, encoder in encoders.items():
            parse_levels(levels[modality], encoder.depth)
            self.origins[modality] = {key: getattr(encoder, key) for key in _ORIGIN}
            self.digests[modality] = encoder.weight_digest
            self.encoder_parameters[modality] = encoder.parameter_count
        self.encoders = nn.ModuleDict(encoders)
        self._batch_size = batch_size
        self._held = False
        #: Modality -> states of the whole catalogue, [N, K, D]; a plain attribute, so not in checkpoints.
        self._cache: dict[str, Tensor] = {}

    def hold(self, held: bool) -> None:
        """Cache the states from the next call on, or discard the cached ones."""
        self._held = held
        if not held:
            self._cache.clear()

    def forward(self, rows: Tensor) -> ItemBatch:
        """Compute the states of ``rows`` on their device."""
        states = self._cached if self._held else self._live
        modalities = {}
        for modality, present in self.present.items():
            positions = present[rows.cpu()].nonzero().squeeze(1)
            items = rows.cpu()[positions]
            modalities[modality] = Hidden(states(modality, items, rows.device), positions.to(rows.device))
        return ItemBatch(rows, modalities)

    def _live(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        """Compute the states [n, K, D] of n items that have the modality, in chunks."""
        if not len(items):
            return torch.empty(0, len(self.levels[modality]), self.widths[modality], device=device)
        return torch.cat([self._compute(modality, chunk, device) for chunk in items.split(self._batch_size)])

    def _cached(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        """Return the same states from the cache, which the first call fills."""
        if modality not in self._cache:
            self._cache[modality] = self._whole_catalogue(modality, device)
        return self._cache[modality][items].to(device)

    @torch.no_grad()
    def _whole_catalogue(self, modality: str, device: torch.device) -> Tensor:
        """Compute the states of all items, fp32 [N, K, D] on the CPU; zeros where an item lacks the modality."""
        present = self.present[modality]
        states = torch.zeros(len(present), len(self.levels[modality]), self.widths[modality])
        training = self.training
        self.eval()
        # Fixed chunks, mode and precision make the values independent of whether training or validation comes
        # first, which differs between resumed and uninterrupted runs.
        with torch.autocast(device.type, enabled=False):
            items = present.nonzero().squeeze(1)
            for chunk in items.split(self._batch_size) if len(items) else ():
                states[chunk] = self._compute(modality, chunk, device).cpu()
        self.train(training)
        return states

    def _compute(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        """Compute the states [n, K, D] of n items that have the modality."""
        raise NotImplementedError


class LiveStates(ComputedStates):
    """States computed by whole encoders.

    Args:
        encoders: For each modality its encoder, the contents of the items and the requested levels.
    """

    def __init__(
        self, encoders: Mapping[str, tuple[Encoder, Contents, tuple[Level, ...]]], batch_size: int = 64
    ) -> None:
        super().__init__(
            {modality: encoder for modality, (encoder, _, _) in encoders.items()},
            {modality: levels for modality, (_, _, levels) in encoders.items()},
            {modality: contents.present for modality, (_, contents, _) in encoders.items()},
            batch_size,
        )
        self._contents = {modality: contents for modality, (_, contents, _) in encoders.items()}

    def _compute(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        encoder: Any = self.encoders[modality]
        inputs = prepare_items(encoder, self._contents[modality], items.tolist())
        return encoder({name: tensor.to(device) for name, tensor in inputs.items()}, self.levels[modality])


class PartialStates(ComputedStates):
    """Last states computed by the last layers of the encoders from stored token states (partial training).

    Args:
        parts: For each modality its encoder, whose lower layers are dropped; a store of the token states h_t that
            enter layer t (0-based); and the first row and number of rows of every item in it, int64 [N].
    """

    def __init__(
        self, parts: Mapping[str, tuple[Encoder, StateStore, np.ndarray, np.ndarray]], batch_size: int = 64
    ) -> None:
        super().__init__(
            {modality: encoder for modality, (encoder, *_) in parts.items()},
            dict.fromkeys(parts, (LAST,)),
            {modality: counts > 0 for modality, (_, _, _, counts) in parts.items()},
            batch_size,
        )
        self._stored = {
            modality: (store, torch.as_tensor(rows), torch.as_tensor(counts))
            for modality, (_, store, rows, counts) in parts.items()
        }
        for encoder, store, _, _ in parts.values():
            encoder.drop_below(_entered_layer(store))

    def _compute(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        encoder: Any = self.encoders[modality]
        store, rows, counts = self._stored[modality]
        first, counts = rows[items], counts[items]
        mask = torch.arange(int(counts.max())) < counts[:, None]
        spans = [torch.arange(start, start + count) for start, count in zip(first, counts, strict=True)]
        hidden = torch.zeros(*mask.shape, store.width)
        hidden[mask] = store.read(torch.cat(spans))[:, 0]
        return encoder.resume(_entered_layer(store), hidden.to(device), mask.long().to(device))


def _entered_layer(store: StateStore) -> int:
    """Index of the layer whose input is the one stored level."""
    (level,) = store.levels
    return int(level)
