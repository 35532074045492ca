"""Invariants of what a run keeps: counts of the interactions, states of the contents, vectors of the items."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from iisan.checks.subject import NotCheckedError, Outcome, Subject, at_hand
from iisan.data.dataset import Dataset
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import whole_histories
from iisan.encoders.contents import Contents
from iisan.encoders.hub import is_here
from iisan.encoders.load import load_encoder
from iisan.evaluate.baselines import most_popular
from iisan.evaluate.ranks import top_k
from iisan.evaluate.terms import transition_shares
from iisan.machine import choose_device
from iisan.names import IMPORTED, ITEM_ID, TEXT
from iisan.runs.additions import ADDITIONS, Additions, write_segment
from iisan.runs.anchoring import ANCHOR
from iisan.runs.run import CONFIG, EMBEDDINGS, ITEMS, MODEL, PER_USER, RESULT, Run, member_prefixes
from iisan.serve.index import share_found
from iisan.serve.items import modalities_of, placed
from iisan.states.codec import relative_errors
from iisan.states.configured import anchor_config, open_stores
from iisan.states.extract import encode_again
from iisan.states.store import StateStore

#: Contents of each modality that are encoded again.
_ENCODED = 32
#: Error of the stored states: how many times the recorded one, and how much more.
_TIMES, _MORE = 2.0, 0.002
#: Items that are added again, length of their lists, least share of these that is the same.
_ADDED, _LENGTH, _SAME = 64, 10, 0.99
#: Largest difference of a vector, relative to the spread between items.
_DIFFERENCE = 0.01


def counts_agree(subject: Subject) -> Outcome:
    """Popularity, transitions and cold targets are those of the training interactions."""
    split, run = subject.split, subject.run
    items, offsets = np.asarray(split.sequences.items), split.sequences.offsets
    # The interactions of each user, read one by one.
    counts = np.zeros(subject.num_items, np.int64)
    for start, end in zip(offsets[:-1].tolist(), split.train_ends.tolist(), strict=True):
        for item in items[start:end].tolist():
            counts[item] += 1
    popular = most_popular(split).score(1, slice(0, subject.num_items))[0].numpy()
    order = np.lexsort((popular, counts))
    faults = {
        "counts of the split": int((split.train_counts() != counts).sum()),
        # Sorted by their counts, equal counts have equal scores and others higher ones.
        "scores of the most popular": int(((np.diff(popular[order]) > 0) != (np.diff(counts[order]) > 0)).sum()),
    }
    text = f"{counts.sum():,} training interactions"
    if run.trained_on(subject.dataset):
        if (run.folder / PER_USER).exists():  # An exported run is without users.
            cold = pl.read_parquet(run.folder / PER_USER, columns=["cold"], glob=False)["cold"].to_numpy()
            expected = counts[split.test.targets] == 0
            faults["cold targets"] = int((cold != expected).sum()) if len(cold) == len(expected) else len(cold)
        if run.anchoring is not None:
            scorer = run.anchoring.scorer
            faults["counts of the run"] = int((scorer.counts.numpy() != counts).sum())
            moved = abs(scorer.transitions.shares - transition_shares(split)) > 1e-6
            faults["transitions of the run"] = int(moved.sum())
            text += ", with the counts and transitions of the run"
    else:
        text += "; those of the run are not compared, as the dataset has changed since it was trained"
    wrong = [f"{count:,} wrong {name}" for name, count in faults.items() if count]
    return Outcome(f"{text}: {', '.join(wrong) or 'all as counted one by one'}", not wrong, faults)


def cached_equals_live(subject: Subject) -> Outcome:
    """Stored states are those that the encoder computes, within the error that the store records."""
    with at_hand():
        stores = _stores(subject)
    if not stores:
        raise NotCheckedError("no states are stored: the run reads ids or computes them")
    seen, reasons, sound = [], [], True
    values: dict[str, Any] = {}
    for name, store in stores.items():
        try:
            error, allowed, count = _error(subject, store)
        except NotCheckedError as reason:
            reasons.append(f"{name} not checked: {reason}")
            continue
        sound &= error <= allowed
        values[name] = {"error": error, "allowed": allowed, "contents": count}
        allowance = f"by {error:.2%} of the spread between items (at most {allowed:.2%})"
        seen.append(f"{name}: {count:,} contents encoded again differ {allowance}")
    if not seen:
        raise NotCheckedError("\n".join(reasons))
    return Outcome("\n".join([*seen, *reasons]), sound, values)


def _error(subject: Subject, store: StateStore) -> tuple[float, float, int]:
    """Largest error of a level of some stored states, the error that is allowed, and the number of contents."""
    if store.kind == IMPORTED:
        raise NotCheckedError("imported states have no encoder here")
    settings = store.settings
    name = str(subject.config.states_of(store.modality).encoder or settings["encoder"])
    if settings.get("quantise"):
        raise NotCheckedError("the encoder is quantised")
    with at_hand():
        _require_encoder(name)
        contents = Contents.of(subject.dataset, store.modality, store.kind)
        rows, counts = store.spans_for(subject.dataset)
        known = np.flatnonzero(rows >= 0)
        some = np.sort(np.random.default_rng(0).permutation(known)[:_ENCODED])
        limits: dict[str, Any] = {limit: settings.get(limit) for limit in ("max_tokens", "max_seconds", "frames")}
        encoder = load_encoder(store.kind, name, pooling=settings["pooling"], **limits)
        if encoder.weight_digest != settings["weight_digest"]:
            raise NotCheckedError(f"the encoder '{name}' has other weights than the states were made with")
        live = encode_again(encoder, contents, some.tolist(), store, choose_device(subject.config.training.device))
        spans = [torch.arange(rows[item], rows[item] + counts[item]) for item in some]
        stored = store.read(torch.cat(spans))
    if len(some) < 2 or len(stored) != len(live):
        states = f"{len(stored):,} stored states and {len(live):,} computed ones"
        raise NotCheckedError(f"{len(some)} contents, with {states}")
    # Of each level, as each has an error of its own.
    errors = [error or 0.0 for error in relative_errors(stored, live)]
    limit = [_TIMES * (recorded or 0.0) + _MORE for recorded in store.manifest.error]
    error, allowed = max(zip(errors, limit, strict=True), key=lambda pair: pair[0] / pair[1])
    return error, allowed, len(some)


def _stores(subject: Subject) -> dict[str, StateStore]:
    """The stores of a run, for its learned part and its anchor."""
    config = subject.config
    mark = " tokens" if config.source == "partial" else ""
    found = {name + mark: store for name, store in open_stores(config).items()}
    if config.anchor.enabled and config.states is not None:
        found |= open_stores(anchor_config(config))
    return found


def added_equals_itself(subject: Subject) -> Outcome:
    """Items of the catalogue that are placed as if they were added get the vectors and lists that they have."""
    subject.require_same_data()
    run, dataset = replace(subject.run, config=subject.config), subject.dataset
    chosen = np.sort(np.random.default_rng(0).permutation(dataset.num_items)[:_ADDED])
    rows = torch.from_numpy(chosen)
    with at_hand():
        modalities = modalities_of(run)
        config = subject.config.model_copy(update={"source": "cached", "modalities": tuple(modalities)})
        stores = open_stores(config) if config.states is not None else {}
        if subject.config.source != "cached":
            for name in modalities:
                _require_encoder(str(config.states_of(name).encoder or stores[name].settings.get("encoder")))
        again = _only(dataset, chosen)
        tensors, _ = placed(run, again, stores, rows)
    # The vector of an id is trained: an item that is added has none.
    tensors |= {
        prefix + EMBEDDINGS: member.items[rows].cpu().contiguous()
        for prefix, each, member in zip(member_prefixes(), run.member_configs, run.members, strict=False)
        if each.items.kind == "table"
    }
    alone = Sequences(np.arange(len(chosen) + 1), chosen.astype(np.int32))
    queries = whole_histories(alone, np.arange(len(chosen)))
    with tempfile.TemporaryDirectory() as temporary:
        changed = _with_items(run, Path(temporary), again.items, rows, tensors)
        before, after = (top_k(each.scorer, queries, _LENGTH)[0] for each in (run, changed))
    differences = _differences(run, rows, tensors)
    same = share_found(after, before)
    worst = max(differences.values(), default=0.0)
    text = (
        f"{len(chosen):,} items placed again: vectors differ by {worst:.2%} of the spread between items "
        f"(at most {_DIFFERENCE:.0%}), {same:.1%} of the items of their lists are the same"
    )
    return Outcome(text, worst <= _DIFFERENCE and same >= _SAME, {"difference": differences, "lists": same})


def _only(dataset: Dataset, rows: Index) -> Dataset:
    """Some items of a dataset, without users."""
    return replace(
        dataset,
        folder=None,
        items=dataset.items[rows],
        stored_keys=dataset.keys.select(pl.all().gather(rows)),
        sequences=Sequences(np.zeros(1, np.int64), np.empty(0, np.int32)),
        user_ids=dataset.user_ids.clear(),
        queries={},
    )


def _require_encoder(name: str) -> None:
    if not is_here(name):
        raise NotCheckedError(f"the encoder '{name}' is not on this machine")


def _differences(run: Run, rows: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Differences of vectors from those of a run, relative to the spread between its items, by name."""
    pairs = {
        f"learned {prefix}".strip(" ."): (tensors[prefix + EMBEDDINGS], member.items)
        for prefix, member in zip(member_prefixes(), run.members, strict=False)
    }
    for name, anchors in (run.anchoring.scorer.anchors if run.anchoring else {}).items():
        pairs[f"anchor of {name}"] = tensors[f"{ANCHOR}{name}.vectors"], anchors
    found = {}
    for name, (ours, every) in pairs.items():
        spread = every.std(0, correction=0).square().mean().sqrt()
        found[name] = float((ours - every[rows].cpu()).square().mean().sqrt() / spread.clamp_min(1e-12).cpu())
    return found


def _with_items(run: Run, folder: Path, items: pl.DataFrame, rows: Tensor, tensors: Mapping[str, Tensor]) -> Run:
    """Open a run with other tensors of some items: its files, and a segment in a folder of its own."""
    for name in (CONFIG, RESULT, MODEL, ITEMS):
        (folder / name).symlink_to((run.folder / name).resolve())
    (folder / ADDITIONS).mkdir()
    segment = write_segment(folder, items.select(ITEM_ID, TEXT), rows, tensors)
    Additions(folder, (segment,)).write()
    return Run.load(folder, with_additions=True)
