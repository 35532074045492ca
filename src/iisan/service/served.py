"""A run as it is served: opened once, with what requests look up; and how it follows its folder."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import polars as pl

from iisan.data.conditions import column_facts
from iisan.data.images import FORMATS
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import whole_histories
from iisan.errors import ConfigError, DataError, RunError
from iisan.evaluate.terms import TermScorer
from iisan.names import IMAGE, ITEM_ID, PAD, TEXT
from iisan.runs.additions import ADDITIONS
from iisan.runs.additions import MANIFEST as ADDITIONS_MANIFEST
from iisan.runs.explain import terms_of
from iisan.runs.run import CONFIG, ITEMS, RESULT, Run
from iisan.runs.run import MODEL as WEIGHTS
from iisan.runs.similar import ANCHOR, MODEL, comparable
from iisan.serve.index import INDEX
from iisan.serve.index import MANIFEST as INDEX_MANIFEST
from iisan.serve.lists import ListMaker, Selection

#: Values of a column that are shown, words of a search, selections that are kept.
_SHOWN, _WORDS, _SELECTIONS = 20, 16, 32
_ROW = "__row__"
_File = tuple[int, int, int] | None


class State(NamedTuple):
    """State of a run folder: inode, size and time of change of its files.

    Attributes:
        trained: Files of the training, which are written one after another where a folder is copied.
        changes: Manifests of additions and index, which are replaced last.
    """

    trained: tuple[_File, ...]
    changes: tuple[_File, ...]

    @classmethod
    def of(cls, folder: Path) -> "State":
        """Read the state of a folder, which may be a link that another run takes over."""
        trained = (RESULT, CONFIG, ITEMS, WEIGHTS)
        changes = (f"{ADDITIONS}/{ADDITIONS_MANIFEST}", f"{INDEX}/{INDEX_MANIFEST}")
        return cls(*(tuple(_facts(folder / path) for path in paths) for paths in (trained, changes)))


def _facts(path: Path) -> _File:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


@dataclass(frozen=True)
class Answer:
    """The list of one query: rows of items, best first, and their scores."""

    rows: list[int]
    scores: list[float]

    @classmethod
    def of(cls, rows: Index, scores: npt.NDArray[np.float32]) -> "Answer":
        """Return a list without its empty places."""
        found = rows != PAD
        return cls(rows[found].tolist(), scores[found].tolist())

    def first(self, k: int) -> "Answer":
        """Return the first ``k`` items of the list."""
        return Answer(self.rows[:k], self.scores[:k])


class ServedRun:
    """A run with its items by id, read completely when it is opened: it stays as it is, whatever its folder does.

    Args:
        name: Name in requests.
        folder: Run folder.
        moved: Folders of the configuration that have moved.

    Raises:
        RunError: The folder holds no finished run, a damaged one, or another one by now.
    """

    def __init__(self, name: str, folder: Path, moved: Mapping[str, Path | None]) -> None:
        self.name, self.folder, self.moved = name, folder, dict(moved)
        self.state = State.of(folder)
        # A link may lead elsewhere before everything is read.
        run = Run.load(folder.resolve(), with_additions=True, in_memory=True)
        self.run = replace(run, config=run.config.model_copy(update=self.moved))
        self._maker = maker = ListMaker(self.run)
        self.ids: list[str] = self.run.items[ITEM_ID].to_list()
        self.texts: list[str | None] = self.run.items[TEXT].to_list()
        self.rows = rows = {item: row for row, item in enumerate(self.ids)}
        self._lower = self.run.items[TEXT].fill_null("").str.to_lowercase()
        counts = run.scorer.counts.cpu().numpy() if isinstance(run.scorer, TermScorer) else np.zeros(len(rows))
        self._by_count: Index = np.argsort(-counts, kind="stable")
        # A method in place of the function would keep the vectors of a replaced run alive.
        self._select = lru_cache(_SELECTIONS)(lambda selection: _selected(maker, rows, selection))
        # The first list reads the index.
        self.lists([np.zeros(1, np.int64)], 1, json.dumps({}))
        self._read_dataset()
        self.facts = self._described()
        if State.of(folder).trained != self.state.trained:
            raise RunError(f"'{folder}' changed while it was opened", "a run that stays", "copy it whole")

    def row(self, item: str) -> int:
        """Return the row of an item.

        Raises:
            DataError: There is no such item, or it was removed.
        """
        row = self.rows.get(item)
        if row is None or not self.run.offered[row]:
            expected = f"one of the {self.run.num_offered:,} items of the run '{self.name}'"
            raise DataError(f"unknown item '{item}'", expected, "search for it by GET /items")
        return row

    def without_folders(self, sentence: str) -> str:
        """Name the run instead of its folders, which are nobody's business, and an encoder without its folder."""
        config = self.run.config
        folders = {self.folder, self.run.folder, config.dataset, config.states, config.images, self._media}
        for folder in folders - {None}:
            sentence = re.sub(rf"'{re.escape(str(folder))}(/[^']*)?'", f"'{self.name}'", sentence)
        return re.sub(r"'/[^']*/([^'/]+)'", r"'\1'", sentence)

    def history(self, items: Sequence[str] | None, user: str | None) -> tuple[Index, list[str]]:
        """Return the rows of a history, and the ids that are not among the run's items.

        Raises:
            DataError: An unknown user, or no item is known.
        """
        if items is None:
            row = self._users.index_of(user)
            ends = (0, 0) if row is None else self._offsets[row : row + 2]
            if ends[0] == ends[1]:
                # Ids of other users, which `ListMaker.histories_of` suggests, are nobody's business.
                got, expected = f"unknown user '{user}'", f"a user of the run '{self.name}' with interactions"
                raise DataError(got, expected, "pass a history")
            return self._maker.sequences.items[slice(*ends)].astype(np.int64), []
        rows = [self.rows.get(item, PAD) for item in items]
        unknown = list(dict.fromkeys(item for item, row in zip(items, rows, strict=True) if row == PAD))
        if len(unknown) == len(set(items)):
            got = f"a history of unknown items only, such as '{unknown[0]}'"
            raise DataError(got, f"one or more of the items of the run '{self.name}'", "search by GET /items")
        return np.array([row for row in rows if row != PAD]), unknown

    def lists(self, histories: Sequence[Index], k: int, selection: str) -> list[Answer]:
        """List the best items for each history, with the arguments of ``ListMaker.select`` as JSON."""
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in histories])])
        sequences = Sequences(offsets, np.concatenate(histories).astype(np.int32))
        queries = whole_histories(sequences, np.arange(len(histories)))
        return list(map(Answer.of, *self._maker.lists(queries, k, self._select(selection))))

    def explain(self, history: Index, item: int) -> dict[str, Any]:
        """Explain a score: the content of ``Reasons``, but the unknown items."""
        found = self._maker.explain(history, item).as_json()
        found["nearest"] = {
            by: [{**each, "rank": rank} for rank, each in enumerate(nearest, 1)]
            for by, nearest in found["nearest"].items()
        }
        for each in chain(found["history"], *found["nearest"].values()):
            each["image"] = self.image_path(self.rows[each["item_id"]])
        return {"run": self.name, **found}

    def terms(self, history: Index, rows: Sequence[int]) -> list[dict[str, float]]:
        """Return the terms of the scores of some items, as ``explain`` names them."""
        return terms_of(self.run.scorer, history, np.array(rows))

    def similar(self, item: int, k: int, by: str) -> list[dict[str, Any]]:
        """List the items most similar to an item.

        Raises:
            DataError: The run has no such vectors, or the item has none.
        """
        if by not in self.similar_by:
            expected = f"one of {', '.join(self.similar_by)}"
            raise DataError(f"similarity by '{by}'", expected, "see similar_by of GET /runs")
        (rows,), (scores,) = self._maker.similar(np.array([item]), k, by)
        return self.scored(Answer.of(rows, scores))

    @cached_property
    def similar_by(self) -> list[str]:
        """What items can be similar by."""
        return comparable(self.run)

    def item(self, row: int) -> dict[str, Any]:
        """Describe an item as in ``Item``."""
        return {"item_id": self.ids[row], "text": self.texts[row], "image": self.image_path(row)}

    def scored(self, answer: Answer) -> list[dict[str, Any]]:
        """Describe the items of a list."""
        found = zip(answer.rows, answer.scores, strict=True)
        return [{**self.item(row), "score": score, "rank": rank} for rank, (row, score) in enumerate(found, 1)]

    def details(self, row: int) -> dict[str, Any]:
        """Describe an item with its columns, as in ``ItemDetails``."""
        columns = {} if self.catalogue is None else self.catalogue.row(row, named=True)
        shown = {name: _as_json(value) for name, value in columns.items() if name not in (ITEM_ID, TEXT)}
        return {**self.item(row), "run": self.name, "columns": shown}

    def search(self, words: str, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Find items by the words of their text, or by an id; those with the most interactions come first.

        Returns:
            The first ``limit`` items, and the number of all.
        """
        asked = dict.fromkeys(words.lower().split())
        if len(asked) > _WORDS:
            raise DataError(f"a search for {len(asked)} words", f"at most {_WORDS}", "search for fewer")
        found = self.run.offered.copy()
        for word in asked:
            found &= self._lower.str.contains(word, literal=True).to_numpy()
        if (row := self.rows.get(words.strip())) is not None:
            found[row] = self.run.offered[row]
        best = self._by_count[found[self._by_count]]
        return [self.item(row) for row in best[:limit].tolist()], len(best)

    def _read_dataset(self) -> None:
        """Read the columns of items, where their images are, and users; nothing if the dataset has moved."""
        self.catalogue: pl.DataFrame | None = None
        self._users, self._image_rows = pl.Series(dtype=pl.String), np.full(len(self.ids), PAD)
        self._media: Path | None = None
        try:
            dataset, catalogue, sequences = self._maker.dataset, self._maker.catalogue, self._maker.sequences
        except (ConfigError, DataError):
            return
        self.catalogue = catalogue.drop(set(dataset.kinds) - {TEXT}, strict=False)
        self._users, self._offsets, self._media = dataset.user_ids, sequences.offsets, dataset.image_root
        if IMAGE in dataset.items.columns:
            # Items that were added since have no image there.
            pictured = dataset.items.select(ITEM_ID, IMAGE).with_row_index(_ROW).drop_nulls(IMAGE)
            found = self.run.items.join(pictured, on=ITEM_ID, how="left", maintain_order="left")[_ROW]
            self._image_rows = found.cast(pl.Int64).fill_null(PAD).to_numpy()

    def image_path(self, row: int) -> str | None:
        """Path of an item's image in the service, None without one."""
        return f"/items/{quote(self.ids[row], safe='')}/image" if self._image_rows[row] != PAD else None

    def image(self, row: int) -> tuple[bytes, str]:
        """Return the file of an item's image, and its media type.

        Raises:
            DataError: The item has none, or it changed since the dataset was prepared.
        """
        from PIL import Image

        got = f"item '{self.ids[row]}' has no image"
        if self._image_rows[row] == PAD:
            raise DataError(got, "an item with one", "see 'image' of the item")
        content = self._maker.dataset.content_bytes(IMAGE, int(self._image_rows[row]))
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return content, str(image.get_format_mimetype())
        except Exception:  # Decoders fail in many ways on bytes that were not checked by `iisan prepare`.
            raise DataError(f"{got} that can be read", "an image", "prepare the dataset again") from None

    def check_some(self, answer: Answer) -> None:
        """Raise a ``DataError`` if a list is empty."""
        self._maker.check_some(len(answer.rows))

    def _described(self) -> dict[str, Any]:
        """Describe the run as in ``RunFacts``."""
        test = self.run.result["test"]
        shown = pl.DataFrame() if self.catalogue is None else self.catalogue.drop(ITEM_ID, TEXT)
        return {
            "name": self.name,
            "recipe": self.run.config.recipe,
            "num_items": self.run.num_offered,
            "modalities": [each for each in self.similar_by if each not in (MODEL, ANCHOR)],
            "similar_by": self.similar_by,
            "columns": {
                name: {**each, "values": [value for value in _as_json(each["values"]) if value is not None]}
                for name, each in column_facts(shown, _SHOWN).items()
            },
            "images": bool((self._image_rows != PAD).any()),
            "metrics": {name: test[name] for name in ("hr@10", "ndcg@10", "cold_hr@10") if name in test},
            "protocol": self.run.result["protocol"],
            "trained": datetime.fromtimestamp((self.run.folder / RESULT).stat().st_mtime, UTC).isoformat(),
        }


def _selected(maker: ListMaker, rows: Mapping[str, int], selection: str) -> Selection:
    """Select items by arguments as JSON. Unknown ids are left out here, as a warning of each would be kept."""
    arguments = json.loads(selection)
    for name in {"items_to_recommend", "items_to_exclude"} & set(arguments):
        given = arguments[name]
        arguments[name] = [item for item in given if item in rows] or given[:1]
    return maker.select(**arguments)


def _as_json(value: Any) -> Any:
    """Return values of columns as JSON: None for numbers that are not finite, and for bytes; texts for dates."""
    match value:
        case dict():
            return {name: _as_json(each) for name, each in value.items()}
        case list():
            return [_as_json(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return None
        case None | bool() | int() | str():
            return value
    return str(value)
