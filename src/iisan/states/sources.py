"""The doors of a model to its items' hidden states: stored, live, partly both, or none.

Legend: N items, U distinct items of a batch, U_m those with modality m, K levels, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iisan.encoders.encoder import Encoder
from iisan.encoders.levels import Level, parse_levels
from iisan.names import LAST
from iisan.nn.hidden import Hidden, precision, sent, without_autocast
from iisan.states.contents import Contents, prepare_items
from iisan.states.store import StateStore

#: Settings of an encoder without which a state means something else.
_ORIGIN = ("weight_digest", "pooling")


@dataclass
class ItemBatch:
    """The distinct items of a batch and their states.

    Attributes:
        rows: item indices, int64 [U].
        modalities: per modality the hidden states of the items that have it.
    """

    rows: Tensor
    modalities: dict[str, Hidden]

    def to(self, device: torch.device) -> "ItemBatch":
        """The same on a device."""
        moved = {name: hidden.to(device) for name, hidden in self.modalities.items()}
        return ItemBatch(sent(self.rows, device), moved)


class StateSource(nn.Module):
    """Gives the states of items; a module of the model, so that live weights have an owner.

    Attributes:
        widths: D per modality.
        levels: the K levels per modality.
        present: bool [N] per modality, which items have it.
        stored: whether states are only read: at no cost to speak of, by any thread, and without gradients.
    """

    stored = False
    widths: dict[str, int]
    levels: dict[str, tuple[Level, ...]]
    present: dict[str, Tensor]

    @property
    def missing(self) -> bool:
        """Whether some item lacks one of the modalities."""
        return not all(bool(mask.all()) for mask in self.present.values())

    @property
    def empty(self) -> Tensor:
        """Items that have nothing at all, int64; none where there is no modality to have."""
        if not self.present:
            return torch.empty(0, dtype=torch.long)
        return (~torch.stack(list(self.present.values())).any(0)).nonzero().squeeze(1)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights that live encoders had when they were loaded, per modality."""
        return {}

    @property
    def origins(self) -> dict[str, dict[str, Any]]:
        """Weights and pooling that the states come from, per modality, where that is known."""
        return {}

    @property
    def encoder_parameters(self) -> dict[str, int]:
        """Parameters of the whole encoder that the states come from, per modality, where that is known."""
        return {}

    def hold(self, held: bool) -> None:
        """Promise that live weights stay as they are, until it is taken back; states may be kept meanwhile."""

    def forward(self, rows: Tensor) -> ItemBatch:
        """States of the items ``rows``, int64 [U]."""
        raise NotImplementedError


class NoStates(StateSource):
    """For models that know items by their ids alone."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.levels, self.present = {}, {}, {}

    def forward(self, rows: Tensor) -> ItemBatch:
        """No modality at all."""
        return ItemBatch(rows, {})


class CachedStates(StateSource):
    """States from memory-mapped stores.

    Args:
        stores: per modality the store, each item's row in it (int64 [N], -1 where it has none, see
            ``StateStore.rows_for``) and the wanted levels.
    """

    stored = True

    def __init__(self, stores: Mapping[str, tuple[StateStore, np.ndarray, tuple[Level, ...]]]) -> None:
        super().__init__()
        # Plain attributes: neither the store nor the table of rows belongs into a checkpoint.
        self._stores = {modality: store for modality, (store, _, _) in stores.items()}
        self._rows = {modality: torch.as_tensor(rows) for modality, (_, rows, _) in stores.items()}
        self.levels = {modality: tuple(levels) for modality, (_, _, levels) in stores.items()}
        self.widths = {modality: store.width for modality, store in self._stores.items()}
        self.present = {modality: rows >= 0 for modality, rows in self._rows.items()}
        #: Modality -> [K, D], where its states are.
        self._means = {
            name: store.mean[store.check_levels(self.levels[name])] for name, store in self._stores.items()
        }
        #: Modality -> differences [n, K, D] of all its rows, where they are resident.
        self._resident: dict[str, Tensor] = {}

    @property
    def origins(self) -> dict[str, dict[str, Any]]:
        """As the stores say."""
        known = {name: store.settings for name, store in self._stores.items()}
        return {name: {key: found[key] for key in _ORIGIN if key in found} for name, found in known.items()}

    @property
    def encoder_parameters(self) -> dict[str, int]:
        """As the stores say."""
        found = {modality: store.manifest.parameters for modality, store in self._stores.items()}
        return {modality: count for modality, count in found.items() if count is not None}

    def forward(self, rows: Tensor) -> ItemBatch:
        """States read from the stores, on the device of ``rows``; where they are resident, there."""
        dtype = precision(rows.device)
        # Nothing is multiplied here, and autocast does not know every precision that a store may have.
        with without_autocast(rows.device):
            return ItemBatch(rows, {name: self._read(name, rows, dtype) for name in self._stores})

    def _read(self, modality: str, rows: Tensor, dtype: torch.dtype) -> Hidden:
        """Where products are of a low precision and the store is, too, its differences as they are."""
        store, levels = self._stores[modality], self.levels[modality]
        low = dtype != torch.float32 and store.manifest.dtype != "fp32"
        mean = self._means[modality]
        # Which items have the modality is found out here, so that a GPU need not be asked how many they are.
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
        """Keep all states on a device from now on, where they take at most so many bytes there.

        Batches are then gathered on the device, which nothing has to be sent to but the items' indices.

        Returns:
            Whether they do.
        """
        kept = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtypes = {name: kept.get(store.manifest.dtype, torch.float32) for name, store in self._stores.items()}
        needed = sum(
            len(store) * len(self.levels[name]) * store.width * dtypes[name].itemsize
            for name, store in self._stores.items()
        )
        if needed > budget:
            return False
        for name, store in self._stores.items():
            everything = store.read_differences(torch.arange(len(store)), self.levels[name], dtypes[name])
            self._resident[name], self._means[name] = everything.to(device), self._means[name].to(device)
        return True


class ComputedStates(StateSource):
    """States that encoders compute when they are asked for, in pieces of ``batch_size`` contents.

    Gradients reach whatever of the encoders ``iisan.encoders.tuning.tune`` has set to be trained; with frozen
    encoders the numbers are those of a store. While the weights are held, the states of the whole catalogue are
    computed once, in evaluation mode and fp32, and served from main memory (4·K·D bytes an item): a training step
    then costs what it costs with a store, and no gradient reaches the encoders.

    Args:
        encoders: per modality.
        levels: per modality the K wanted levels.
        present: per modality bool [N], which items have it.
        batch_size: contents per forward pass.

    Raises:
        EncoderError: a level beyond the encoder's depth.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        levels: Mapping[str, tuple[Level, ...]],
        present: Mapping[str, np.ndarray],
        batch_size: int,
    ) -> None:
        super().__init__()
        for modality, encoder in encoders.items():
            parse_levels(levels[modality], encoder.depth)
        self.encoders = nn.ModuleDict(encoders)
        self.levels = dict(levels)
        self.widths = {modality: encoder.width for modality, encoder in encoders.items()}
        self.present = {modality: torch.from_numpy(mask) for modality, mask in present.items()}
        self._batch_size = batch_size
        self._held = False
        #: Modality -> states of the whole catalogue, [N, K, D]; a plain attribute, so in no checkpoint.
        self._kept: dict[str, Tensor] = {}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights that the encoders had when they were loaded, per modality."""
        return {modality: encoder.weight_digest for modality, encoder in self._named()}

    @property
    def origins(self) -> dict[str, dict[str, Any]]:
        """As the encoders say."""
        return {name: {key: getattr(encoder, key) for key in _ORIGIN} for name, encoder in self._named()}

    @property
    def encoder_parameters(self) -> dict[str, int]:
        """Parameters that the encoders had when they were loaded, per modality."""
        return {modality: encoder.parameter_count for modality, encoder in self._named()}

    def _named(self) -> list[tuple[str, Any]]:
        return list(self.encoders.items())

    def hold(self, held: bool) -> None:
        """Keep the states from the next call on, or forget those that are kept."""
        self._held = held
        if not held:
            self._kept.clear()

    def forward(self, rows: Tensor) -> ItemBatch:
        """States on the device of ``rows``, which they are computed on."""
        states = self._serve if self._held else self._run
        modalities = {}
        for modality, present in self.present.items():
            positions = present[rows.cpu()].nonzero().squeeze(1)
            items = rows.cpu()[positions]
            modalities[modality] = Hidden(states(modality, items, rows.device), positions.to(rows.device))
        return ItemBatch(rows, modalities)

    def _run(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        """States [n, K, D] of n items that have the modality, computed in pieces."""
        parts = [torch.empty(0, len(self.levels[modality]), self.widths[modality], device=device)]
        parts += [self._compute(modality, piece, device) for piece in self._pieces(items)]
        return torch.cat(parts)

    def _pieces(self, items: Tensor) -> Sequence[Tensor]:
        return items.split(self._batch_size) if len(items) else ()

    def _serve(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        """The same from those that are kept, which the first call computes."""
        if modality not in self._kept:
            self._kept[modality] = self._keep(modality, device)
        return self._kept[modality][items].to(device)

    @torch.no_grad()
    def _keep(self, modality: str, device: torch.device) -> Tensor:
        """States of the whole catalogue, fp32 [N, K, D] on the CPU; zeros where an item lacks the modality."""
        present = self.present[modality]
        kept = torch.zeros(len(present), len(self.levels[modality]), self.widths[modality])
        training = self.training
        self.eval()
        # Pieces, mode and precision are fixed, so that a resumed run, where a training step asks first, serves the
        # same bits as one that went on, where validation did.
        with torch.autocast(device.type, enabled=False):
            for piece in self._pieces(present.nonzero().squeeze(1)):
                kept[piece] = self._compute(modality, piece, device).cpu()
        self.train(training)
        return kept

    def _compute(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        """States [n, K, D] of n items that have the modality."""
        raise NotImplementedError


class LiveStates(ComputedStates):
    """States computed by whole encoders.

    Args:
        encoders: per modality the encoder, the items' contents and the wanted levels.
        batch_size: contents per forward pass.
    """

    def __init__(
        self, encoders: Mapping[str, tuple[Encoder, Contents, tuple[Level, ...]]], batch_size: int = 64
    ) -> None:
        self._contents = {modality: contents for modality, (_, contents, _) in encoders.items()}
        super().__init__(
            {modality: encoder for modality, (encoder, _, _) in encoders.items()},
            {modality: tuple(levels) for modality, (_, _, levels) in encoders.items()},
            {modality: contents.present for modality, contents in self._contents.items()},
            batch_size,
        )

    def _compute(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        encoder: Any = self.encoders[modality]
        inputs = prepare_items(encoder, self._contents[modality], items.tolist())
        return encoder({name: tensor.to(device) for name, tensor in inputs.items()}, self.levels[modality])


class PartialStates(ComputedStates):
    """Last states from stored token states, which the last blocks of the encoders carry on: partial training.

    Args:
        parts: per modality the encoder, whose lower blocks are dropped; a store of the tokens h_t that enter its
            block t (0-based); and every item's first row and number of rows there (int64 [N]; 0 rows where it
            has none).
        batch_size: contents per forward pass.
    """

    def __init__(
        self, parts: Mapping[str, tuple[Encoder, StateStore, np.ndarray, np.ndarray]], batch_size: int = 64
    ) -> None:
        self._stores = {modality: store for modality, (_, store, _, _) in parts.items()}
        self._spans = {
            modality: (torch.as_tensor(rows), torch.as_tensor(counts))
            for modality, (_, _, rows, counts) in parts.items()
        }
        super().__init__(
            {modality: encoder for modality, (encoder, *_) in parts.items()},
            dict.fromkeys(parts, (LAST,)),
            {modality: counts > 0 for modality, (_, _, _, counts) in parts.items()},
            batch_size,
        )
        for encoder, store, _, _ in parts.values():
            encoder.drop_below(_entered_block(store))

    def _compute(self, modality: str, items: Tensor, device: torch.device) -> Tensor:
        encoder: Any = self.encoders[modality]
        store = self._stores[modality]
        first, counts = (values[items] for values in self._spans[modality])
        mask = torch.arange(int(counts.max())) < counts[:, None]
        spans = [torch.arange(start, start + count) for start, count in zip(first, counts, strict=True)]
        hidden = torch.zeros(*mask.shape, store.width)
        hidden[mask] = store.read(torch.cat(spans))[:, 0]
        return encoder.resume(_entered_block(store), hidden.to(device), mask.long().to(device))


def _entered_block(store: StateStore) -> int:
    """Which block the one stored level is the input of."""
    (level,) = store.levels
    return int(level)
