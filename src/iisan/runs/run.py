"""A finished run: item embeddings and a sequence encoder that score without states or encoders."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl
from safetensors.torch import load_file
from torch import Tensor, nn

from iisan.config import FOLDERS, Config, parse
from iisan.data.dataset import Dataset
from iisan.data.filters import Mask
from iisan.errors import DataError, RunError
from iisan.evaluate.scorer import EmbeddingScorer, Scorer
from iisan.evaluate.terms import DenseScorer, Weights
from iisan.files import read_manifest, relocated, sha256_file
from iisan.legacy import OLD_PARAMETERS, upgraded_config, upgraded_keys
from iisan.machine import choose_device, usable_device
from iisan.model import SequentialRecommender, encode_queries, sequence_encoder
from iisan.names import ITEM_ID
from iisan.nested import read_yaml
from iisan.remote.opening import addressed
from iisan.runs.additions import Additions, undamaged
from iisan.runs.anchoring import ANCHOR, SIMILARITY, TERMS, Anchoring
from iisan.states.sources import StateSource

CONFIG = "config.yaml"
RESULT = "result.json"
MODEL = "model.safetensors"
ITEMS = "items.parquet"
PER_USER = "per_user.parquet"
#: Key of the item embeddings in the file of the weights.
EMBEDDINGS = "item_embeddings"
#: Parameter of a network in whose training some item lacked a modality.
ABSENT = "items.fusion.absent"
#: Prefix of the tensors of all members of a joined run but the first.
MEMBERS = "members."
SCHEMA = 2


def _scorer(sequence: nn.Module, items: Tensor, length: int) -> EmbeddingScorer:
    return EmbeddingScorer(items, partial(encode_queries, sequence, items), length)


def network_scorer(network: SequentialRecommender) -> EmbeddingScorer:
    """Return a scorer with the current weights of a network."""
    return _scorer(network.sequence, network.item_embeddings(), network.length)


@dataclass(frozen=True)
class Run:
    """Finished run in a run folder of ``iisan train``.

    Attributes:
        folder: Run folder.
        config: Complete configuration; ``training.device`` is ``auto`` if the run's device is not available here.
        result: Content of ``result.json``.
        items: ``item_id`` and ``text`` of the catalogue, in row order.
        scorer: Scorer of the run: the learned part, the terms beside it, or both.
        members: Item embeddings and sequence encoder of the best epoch, of each member of a joined run; empty if
            nothing was trained.
        anchoring: Terms beside the learned part, with the weights chosen without it; None without an anchor.
        num_trained: Number of items that there were in training; those that were added since follow them.
        removed: Ids of items that are in no list.
        segments: Names of the segments of ``Additions`` with the items that were added or updated.
    """

    folder: Path
    config: Config
    result: dict[str, Any]
    items: pl.DataFrame
    scorer: DenseScorer
    members: tuple[EmbeddingScorer, ...]
    anchoring: Anchoring | None = None
    num_trained: int = 0
    removed: frozenset[str] = frozenset()
    segments: tuple[str, ...] = ()

    @cached_property
    def offered(self) -> Mask:
        """Mask ``[N]`` of the items that were not removed."""
        return ~self.items[ITEM_ID].is_in(list(self.removed)).to_numpy()

    @cached_property
    def num_offered(self) -> int:
        """Number of items that were not removed."""
        return int(self.offered.sum())

    @property
    def parts(self) -> dict[str, Scorer]:
        """The learned part and the terms of an anchored run, each alone; empty for other runs."""
        return self.anchoring.parts(self.members, self._weights) if self.members and self.anchoring else {}

    @property
    def _weights(self) -> Weights:
        return Weights.from_json(self.result["terms"]["weights"])

    @property
    def additions(self) -> Additions:
        """The changes of the items that the run was opened with."""
        return Additions(self.folder, self.segments, self.removed)

    @property
    def member_configs(self) -> list[Config]:
        """Configuration of each member, with the folders of the run's own; empty if nothing was trained."""
        folders = {name: getattr(self.config, name) for name in FOLDERS}
        every = _member_configs(self.config, self.result) if self.members else []
        return [each.model_copy(update=folders) for each in every]

    def only_member(self) -> EmbeddingScorer:
        """The learned part of a run with a single one.

        Raises:
            RunError: The run has none, or was joined of several.
        """
        if len(self.members) == 1:
            return self.members[0]
        got = f"the run in '{self.folder}' has {len(self.members) or 'no'} trained members"
        raise RunError(got, "one", "name a run of `iisan train`, with a recipe such as default")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the saved model."""
        return sha256_file(self.folder / MODEL)

    def weights(self) -> dict[str, Tensor]:
        """Name -> trained parameter of the best epoch, on the CPU; raises what ``only_member`` does."""
        self.only_member()
        return self.member_weights("")

    def member_weights(self, prefix: str) -> dict[str, Tensor]:
        """Name -> trained parameter of the member whose tensors have a prefix, see ``member_prefixes``."""
        others = (EMBEDDINGS, ANCHOR, TERMS) + (() if prefix else (MEMBERS,))
        return {
            name.removeprefix(prefix).replace(*OLD_PARAMETERS): value
            for name, value in load_file(self.folder / MODEL).items()
            if name.startswith(prefix) and not name.removeprefix(prefix).startswith(others)
        }

    def rescored(self, learned: EmbeddingScorer | None, source: StateSource | None) -> Scorer:
        """Return the run's scorer with other embeddings and other states: its own weights, corrupted contents."""
        if self.anchoring is None or source is None:
            assert learned is not None, "a run has a learned part or an anchor"
            return learned
        return self.anchoring.of_states(source).beside([] if learned is None else [learned], self._weights)

    def trained_on(self, dataset: Dataset) -> bool:
        """Whether the run was trained on exactly this content of a dataset."""
        return self.result["data"] in (dataset.content_hash, dataset.manifest.get("previous_hash"))

    def check_items(self, dataset: Dataset) -> None:
        """Check that a dataset has the items of the training in the same order, as rows identify them.

        Raises:
            DataError: It does not.
        """
        ours, theirs = self.items[ITEM_ID][: self.num_trained], dataset.items[ITEM_ID]
        if not ours.equals(theirs):
            added, gone = (len(set(one) - set(other)) for one, other in ((theirs, ours), (ours, theirs)))
            raise DataError(
                f"the dataset '{dataset.folder}' is not the one that the run in '{self.folder}' was trained on: "
                + (f"{added} items are new, {gone} are gone" if added or gone else "its items have another order"),
                "the same items in the same order",
                "train a run on it, or name the run's own dataset",
            )

    @classmethod
    @addressed("folder")
    def load(cls, folder: str | Path, with_additions: bool = False, in_memory: bool = False) -> "Run":
        """Open a run folder, as it was trained or with the items that were added since.

        Its vectors are memory-mapped. ``in_memory`` reads them: mapped ones change, or end the process, when
        somebody writes over the file.

        Raises:
            RunError: It is absent, unfinished, failed or damaged.
        """
        folder = Path(folder)
        cure = "run `iisan train` to its end with this folder as --out"
        result = read_manifest(folder / RESULT, "iisan-run", SCHEMA, RunError, cure)
        if result.get("status") != "finished":
            raise RunError(f"the run in '{folder}' failed ({result.get('error')})", "a finished run", cure)
        config = parse(upgraded_config(read_yaml(folder / CONFIG)))
        config = config.override([f"training.device={usable_device(config.training.device)}"])
        result = upgraded_keys(result)
        recorded = config.model_dump(include=set(FOLDERS), exclude_none=True)
        folders = {name: relocated(path, result.get("folder"), folder) for name, path in recorded.items()}
        config = config.model_copy(update=folders)
        with undamaged(folder, cure):
            weights = load_file(folder / MODEL)
            if in_memory:
                weights = {name: value.clone() for name, value in weights.items()}
            items = pl.read_parquet(folder / ITEMS, glob=False)
            num_trained, additions = len(items), Additions.read(folder) if with_additions else Additions(folder)
            weights, items = additions.applied(weights, items)
            configs = _member_configs(config, result)
            trained = [] if config.items.kind == "none" else list(zip(configs, member_prefixes(), strict=False))
            members = tuple(_learned(each, config.training.device, weights, prefix) for each, prefix in trained)
            anchoring = None
            if (terms := result.get("terms")) is not None:
                alone = Weights.from_json(terms[SIMILARITY]["weights"])
                anchoring = Anchoring.from_tensors(weights, alone, config.sequence.max_length)
                scorer: DenseScorer = anchoring.beside(members, Weights.from_json(terms["weights"]))
            else:
                (scorer,) = members
            if scorer.num_items != len(items):
                raise ValueError(f"{scorer.num_items:,} items in {MODEL}, {len(items):,} in {ITEMS}")
        changes = additions.removed, additions.segments
        return cls(folder, config, result, items, scorer, members, anchoring, num_trained, *changes)


def _member_configs(config: Config, result: Mapping[str, Any]) -> list[Config]:
    """Configuration of each member of a run, the first of which is the run's own."""
    return [config, *(parse(each["config"]) for each in result.get("members", [])[1:])]


def member_prefixes() -> Iterator[str]:
    """Prefixes of the tensors of each member of a joined run in the file of the weights; the first has none."""
    yield ""
    yield from (f"{MEMBERS}{number}." for number in itertools.count(2))


def _learned(config: Config, device_name: str, weights: Mapping[str, Tensor], prefix: str) -> EmbeddingScorer:
    sequence = sequence_encoder(config.sequence, config.items.embedding_dim)
    sequence.load_state_dict(under(f"{prefix}sequence.", weights))
    device = choose_device(device_name)
    return _scorer(sequence.to(device), weights[prefix + EMBEDDINGS].to(device), config.sequence.max_length)


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
