"""Items that are added to a finished run, updated or removed, without training: ``iisan add-items``.

The encoders read what is new, once; the run's trained item encoder and whitening place it beside the other items.
Legend: N items of the run, n given items, E embedding width, A anchor width.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from iisan.config import Config
from iisan.data.assemble import assemble_items, item_roles
from iisan.data.dataset import Dataset
from iisan.data.frames import read_frame
from iisan.data.ids import index_of
from iisan.data.options import NO_COLUMN, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.tables import Table, read_table
from iisan.encoders.contents import Contents
from iisan.encoders.levels import Level
from iisan.errors import DataError, RunError
from iisan.evaluate.terms import Changed, similar_items
from iisan.machine import choose_device
from iisan.model import SequentialRecommender, load_trainable
from iisan.names import IMAGE, IMPORTED, ITEM_ID, TEXT
from iisan.runs.additions import Additions, Changes, tensors_of, write_segment, writing
from iisan.runs.anchoring import ANCHOR, Anchoring, frozen_states, item_anchors
from iisan.runs.run import ABSENT, EMBEDDINGS, Run, member_prefixes
from iisan.states.caching import cache
from iisan.states.configured import open_stores, state_source
from iisan.states.importing import column_source, import_states
from iisan.states.store import StateStore


@dataclass(frozen=True)
class Change:
    """What a call changed.

    Attributes:
        added: Number of new items.
        updated: Number of items that were there before and have new contents.
        removed: Number of items that are in no list any more.
        outside: Share of the variance of the new items' states in directions that the whitening did not see, by
            modality.
        seconds: Duration.
    """

    added: int = 0
    updated: int = 0
    removed: int = 0
    outside: Mapping[str, float] | None = None
    seconds: float = 0.0


def add_items(
    folder: Path | str,
    items: Path | Any,
    *,
    images: Path | None = None,
    moved: Mapping[str, Path | None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Change:
    """Add items to a run, or update those that it has, by id.

    They are in histories and lists as soon as the run is opened again. Their states are added to the stores.

    Args:
        folder: Run folder.
        items: Table of the items, as for ``iisan prepare``: a file, or a polars or pandas DataFrame; with a column
            of vectors for each modality of imported states.
        images: Folder of the images and other media; by default that of the file.
        moved: ``states`` -> its folder, if that moved.
        say: Callback for messages.

    Raises:
        RunError: The run knows items by id only, another process is adding items, or an item lacks a modality that
            no item of the training lacked.
        DataError: A bad table; see :func:`iisan.data.prepare.prepare`.
        StoreError: The stores of the run are absent, or states are not finite.
    """
    began = time.perf_counter()
    folder = Path(folder)
    with writing(folder):
        run, state = Run.load(folder), Additions.read(folder)
        earlier = state.changes(run.items)
        run = replace(run, config=run.config.model_copy(update={"dataset": None, **(moved or {})}))
        config, modalities = run.config, modalities_of(run)
        dataset = _dataset(items, config, modalities, images)
        known = (run.items if earlier is None else earlier.put_into(run.items))[ITEM_ID]
        numbers = pl.DataFrame({ITEM_ID: known}).with_row_index("row")
        found = dataset.items.select(ITEM_ID).join(numbers, on=ITEM_ID, how="left", maintain_order="left")["row"]
        new = found.is_null()
        fresh = pl.arange(len(known), len(known) + int(new.sum()), eager=True)
        rows = torch.from_numpy(found.cast(pl.Int64).scatter(new.arg_true(), fresh).to_numpy().copy())
        with tempfile.TemporaryDirectory() as temporary:
            stores = _stored(config, dataset, modalities, Path(temporary), say)
            tensors, outside = placed(run, dataset, stores, rows, earlier)
        facts = dataset.items.drop(set(dataset.kinds) - {TEXT}, strict=False)
        name = write_segment(folder, facts, rows, tensors)
        removed = state.removed - set(dataset.items[ITEM_ID])
        Additions(folder, (*state.segments, name), removed).write()
    count = int(new.sum())
    return Change(count, len(new) - count, 0, outside, time.perf_counter() - began)


def remove_items(folder: Path | str, ids: Sequence[str]) -> Change:
    """Remove items from all lists of a run; in histories they still count.

    Raises:
        DataError: An unknown item.
        RunError: Another process is adding or removing items, or no item would be left.
    """
    folder = Path(folder)
    with writing(folder):
        run = Run.load(folder, with_additions=True)
        index_of(run.items[ITEM_ID], ids, "item")
        state = Additions.read(folder)
        removed = state.removed | set(ids)
        if len(removed) == len(run.items):
            raise RunError("the removal of all items", "one that stays", "name fewer")
        Additions(folder, state.segments, removed).write()
    return Change(removed=len(removed) - len(state.removed))


def modalities_of(run: Run) -> dict[str, None]:
    """Names of the modalities that place the items of a run.

    Raises:
        RunError: The run knows items by id only.
    """
    found = dict.fromkeys(name for each in run.member_configs for name in each.modalities or ())
    found |= dict.fromkeys((run.config.anchor.modalities or ()) if run.anchoring else ())
    if not found:
        got = f"the run in '{run.folder}' knows items by their ids only"
        raise RunError(got, "a run with contents", "train a recipe such as similarity, or ids with an anchor")
    return found


def placed(
    run: Run, dataset: Dataset, stores: Mapping[str, StateStore], rows: Tensor, earlier: Changes | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Place the items of a dataset in a run: the tensors of a segment, see ``write_segment``.

    Args:
        run: The run without its additions.
        dataset: The n items.
        stores: Their states by modality; not needed for live ones.
        rows: Their rows in the run, ``[n]``.
        earlier: What was added to the run before.

    Returns:
        Name -> tensor ``[n, …]``, and ``Change.outside``.

    Raises:
        RunError: An item lacks a modality that no item of the training lacked.
        StoreError: Its states are not stored.
    """
    tensors = {}
    for (each, weights), prefix in zip(members_of(run), member_prefixes(), strict=False):
        tensors[prefix + EMBEDDINGS] = _embeddings(each, dataset, stores, weights)
    if run.anchoring is None:
        return tensors, {}
    added, outside = _terms(run.anchoring, run.config, dataset, stores, rows, earlier)
    return tensors | added, outside


def members_of(run: Run) -> list[tuple[Config, dict[str, Tensor]]]:
    """Configuration and trained weights of each member of a run."""
    configs = zip(run.member_configs, member_prefixes(), strict=False)
    return [(each, run.member_weights(prefix)) for each, prefix in configs]


def _dataset(items: Path | Any, config: Config, modalities: Mapping[str, None], images: Path | None) -> Dataset:
    """A dataset of the given items, without users."""
    kinds = {
        name: str(config.kind_of(name))
        for name in modalities
        if name not in (TEXT, IMAGE) and config.kind_of(name) != IMPORTED
    }
    options = PrepareOptions.model_validate(
        {"columns": kinds, "images": images, "image": None if IMAGE in modalities else NO_COLUMN}
    )
    problems = Problems("stop")
    roles = item_roles(options)
    table: Table
    if isinstance(items, str | Path):
        path = Path(items)
        table, root = read_table(path, roles, problems, rest=True), path.parent
    else:
        table, root = read_frame(items, roles, "the items frame", problems, rest=True), None
    parts = assemble_items(table, options, problems, root)
    return Dataset.of_parts(parts, {"format": "items", "sources": [], "options": {}})


def _stored(
    config: Config,
    dataset: Dataset,
    modalities: Mapping[str, None],
    temporary: Path,
    say: Callable[[str], None],
) -> dict[str, StateStore]:
    """Encode the contents of a dataset into the stores of a run; imported vectors go into a store of their own."""
    if config.states is None and config.source == "live":
        return {}
    opened = open_stores(config.model_copy(update={"source": "cached", "modalities": tuple(modalities)}))
    assert config.states is not None, "their folder was opened"
    for name, store in opened.items():
        if store.kind == IMPORTED:
            source = column_source(dataset.items, name, "the items")
            opened[name] = import_states(dataset, source, name, temporary, dtype="fp32")
            if opened[name].levels != store.levels or opened[name].width != store.width:
                got = f"vectors of {name} of {len(opened[name].levels)} levels of {opened[name].width}"
                raise DataError(got, f"{len(store.levels)} of {store.width}, as in training", "mend that column")
            continue
        if not Contents.of(dataset, name, store.kind).present.any():
            continue
        settings = store.settings
        levels: Sequence[Level] = store.levels
        opened |= cache(
            dataset,
            config.states,
            {name: str(config.states_of(name).encoder or settings["encoder"])},
            levels=levels,
            poolings={name: settings["pooling"]},
            last_n_layers=config.tuning.last_n_layers if config.source == "partial" else None,
            max_tokens=settings.get("max_tokens"),
            max_seconds=settings.get("max_seconds"),
            frames=settings.get("frames"),
            dtype=store.manifest.dtype,
            precision=store.manifest.precision,
            say=say,
        )
    return opened


def _embeddings(
    config: Config, dataset: Dataset, stores: Mapping[str, StateStore], weights: dict[str, Tensor]
) -> Tensor:
    """Learned embeddings ``[n, E]`` of a dataset's items, with the weights of a run; zero without contents."""
    if config.items.kind == "table":
        return torch.zeros(dataset.num_items, config.items.embedding_dim)
    cached = config.source == "cached"
    given = {name: stores[name] for name in config.modalities or ()} if cached else open_stores(config)
    source = state_source(config, dataset, given)
    if ABSENT in weights:
        # The network has a place for absent modalities, whether one of these items lacks any or not.
        training = config.training.model_copy(update={"modality_dropout": 0.5})
        config = config.model_copy(update={"training": training})
    elif source.missing:
        name, present = next((name, mask) for name, mask in source.present.items() if not mask.all())
        item = dataset.items[ITEM_ID][int((~present).nonzero()[0])]
        cure = "complete the item, or train with items that lack it or with training.modality_dropout"
        raise RunError(f"item '{item}' has no {name}, which every item of the training had", f"its {name}", cure)
    network = SequentialRecommender.build(config, dataset.num_items, source).to(
        choose_device(config.training.device)
    )
    load_trainable(network, weights)
    return network.item_embeddings().cpu()


@torch.inference_mode()
def _terms(
    anchoring: Anchoring,
    config: Config,
    dataset: Dataset,
    stores: Mapping[str, StateStore],
    rows: Tensor,
    earlier: Changes | None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors of the anchors and similar items of a dataset, and the share of variance that no fit saw.

    ``anchoring`` is that of the trained run, ``earlier`` what was added to it before.
    """
    stores = {name: stores[name] for name in anchoring.whitenings if name in stores}
    source = frozen_states(config, dataset, stores)
    found = item_anchors(source, anchoring.whitenings, dataset.num_items)
    states = source(torch.arange(dataset.num_items)).modalities
    outside = {
        name: anchoring.whitenings[name].outside(hidden.whole())
        for name, hidden in states.items()
        if len(hidden.positions)
    }
    changes: list[Changed] = [(rows, found)]
    if earlier is not None:
        changes.insert(0, (earlier.rows, {name: earlier.tensors[_vectors(name)] for name in found}))
    tensors = {_vectors(name): anchors for name, anchors in found.items()}
    return tensors | tensors_of(similar_items(anchoring.scorer.anchors, rows, changes)), outside


def _vectors(modality: str) -> str:
    """Name of the tensor of the anchors of a modality."""
    return f"{ANCHOR}{modality}.vectors"
