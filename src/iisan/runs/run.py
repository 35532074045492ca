"""A finished run: item embeddings and a sequence encoder that score without states or encoders."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from iisan.config import FOLDERS, Config, parse
from iisan.data.dataset import Dataset
from iisan.errors import DataError, RunError
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.files import read_manifest, relocated, sha256_file
from iisan.legacy import OLD_PARAMETERS, upgraded_config, upgraded_keys
from iisan.machine import choose_device, usable_device
from iisan.model import SequentialRecommender, encode_queries, sequence_encoder
from iisan.names import ITEM_ID
from iisan.nested import read_yaml

CONFIG = "config.yaml"
RESULT = "result.json"
MODEL = "model.safetensors"
ITEMS = "items.parquet"
PER_USER = "per_user.parquet"
#: Key of the item embeddings in the file of the weights.
EMBEDDINGS = "item_embeddings"
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
        scorer: Item embeddings and sequence encoder of the best epoch.
    """

    folder: Path
    config: Config
    result: dict[str, Any]
    items: pl.DataFrame
    scorer: EmbeddingScorer

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the saved model."""
        return sha256_file(self.folder / MODEL)

    def weights(self) -> dict[str, Tensor]:
        """Name -> trained parameter of the best epoch, on the CPU."""
        weights = load_file(self.folder / MODEL)
        del weights[EMBEDDINGS]
        return {name.replace(*OLD_PARAMETERS): value for name, value in weights.items()}

    def check_items(self, dataset: Dataset) -> None:
        """Check that a dataset has the run's items in the same order, as rows identify them.

        Raises:
            DataError: It does not.
        """
        ours, theirs = self.items[ITEM_ID], dataset.items[ITEM_ID]
        if not ours.equals(theirs):
            added, gone = (len(set(one) - set(other)) for one, other in ((theirs, ours), (ours, theirs)))
            raise DataError(
                f"the dataset '{dataset.folder}' is not the one that the run in '{self.folder}' was trained on: "
                + (f"{added} items are new, {gone} are gone" if added or gone else "its items have another order"),
                "the same items in the same order",
                "train a run on it, or name the run's own dataset",
            )

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Open a run folder.

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
        try:
            weights = load_file(folder / MODEL)
            items = pl.read_parquet(folder / ITEMS)
            embeddings = weights[EMBEDDINGS]
            sequence = sequence_encoder(config.sequence, config.items.embedding_dim)
            prefix = "sequence."
            sequence.load_state_dict(
                {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            )
        except (OSError, SafetensorError, KeyError, RuntimeError, pl.exceptions.PolarsError) as error:
            raise RunError(f"the run in '{folder}' is damaged ({error})", "a whole run folder", cure) from None
        device = choose_device(config.training.device)
        scorer = _scorer(sequence.to(device), embeddings.to(device), config.sequence.max_length)
        return cls(folder, config, result, items, scorer)
