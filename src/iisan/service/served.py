"""A run as it is served: opened once, with what requests look up; and how it follows its folder."""

import io
import json
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
from iisan.errors import ConfigError, DataError
from iisan.evaluate.terms import TermScorer
from iisan.names import IMAGE, ITEM_ID, PAD, TEXT, USER_ID
from iisan.runs.additions import ADDITIONS
from iisan.runs.additions import MANIFEST as ADDITIONS_MANIFEST
from iisan.runs.explain import terms_of
from iisan.runs.run import RESULT, Run
from iisan.runs.similar import ANCHOR, MODEL, comparable
from iisan.serve.index import INDEX
from iisan.serve.index import MANIFEST as INDEX_MANIFEST
from iisan.serve.lists import ListMaker, Selection

#: Values of a column that are shown, selections that are kept.
_SHOWN, _SELECTIONS = 20, 32


class State(NamedTuple):
    """Which state of a run folder was opened: each file's inode, size and time of change."""

    files: tuple[tuple[int, int, int] | None, ...]

    @classmethod
    def of(cls, folder: Path) -> "State":
        """Read the state of a folder, which may be a link that another run takes over."""
        paths = (RESULT, f"{ADDITIONS}/{ADDITIONS_MANIFEST}", f"{INDEX}/{INDEX_MANIFEST}")
        return cls(tuple(_facts(folder / path) for path in paths))


def _facts(path: Path) -> tuple[int, int, int] | None:
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
    """A run with its items by id.

    Args:
        name: Name in requests.
        folder: Run folder.
        moved: Folders of the configuration that have moved.

    Raises:
        RunError: The folder holds no finished run, or a damaged one.
    """

    def __init__(self, name: str, folder: Path, moved: Mapping[str, Path | None]) -> None:
        self.name, self.folder, self.moved = name, folder, dict(moved)
        self.state = State.of(folder)
        run = Run.load(folder, with_additions=True)
        self.run = replace(run, config=run.config.model_copy(update=self.moved))
        self._maker = ListMaker(self.run)
        self.ids: list[str] = self.run.items[ITEM_ID].to_list()
        self.texts: list[str | None] = self.run.items[TEXT].to_list()
        self.rows = {item: row for row, item in enumerate(self.ids)}
        self._lower = self.run.items[TEXT].fill_null("").str.to_lowercase()
        self._select = lru_cache(_SELECTIONS)(self._selected)
        # The first list reads the index and whatever else a run reads late.
        self.lists([np.zeros(1, np.int64)], 1, json.dumps({}))

    @property
    def num_offered(self) -> int:
        """Number of items that were not removed."""
        return int(self.run.offered.sum())

    def row(self, item: str) -> int:
        """Return the row of an item.

        Raises:
            DataError: There is no such item, or it was removed.
        """
        row = self.rows.get(item)
        if row is None or not self.run.offered[row]:
            expected = f"one of the {self.num_offered:,} items of the run '{self.name}'"
            raise DataError(f"unknown item '{item}'", expected, "search for it by GET /items")
        return row

    def history(self, items: Sequence[str] | None, user: str | None) -> tuple[Index, list[str]]:
        """Return the rows of a history, and the ids that are not among the run's items.

        Raises:
            DataError: An unknown user, or no item is known.
        """
        if items is None:
            queries = self._maker.histories_of(pl.Series(USER_ID, [user], dtype=pl.String))
            past = queries.sequences.items[queries.starts[0] : queries.ends[0]]
            return past.astype(np.int64), []
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

    def _selected(self, selection: str) -> Selection:
        return self._maker.select(**json.loads(selection))

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
        hidden = {ITEM_ID, TEXT, *self._files}
        columns = {} if self.catalogue is None else self.catalogue.row(row, named=True)
        shown = {name: value for name, value in columns.items() if name not in hidden}
        return {**self.item(row), "run": self.name, "columns": json.loads(json.dumps(shown, default=str))}

    def search(self, words: str, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Find items by the words of their text, or by an id; those with the most interactions come first.

        Returns:
            The first ``limit`` items, and the number of all.
        """
        found = self.run.offered.copy()
        for word in words.lower().split():
            found &= self._lower.str.contains(word, literal=True).to_numpy()
        if (row := self.rows.get(words.strip())) is not None:
            found[row] = self.run.offered[row]
        rows = np.flatnonzero(found)
        best = rows[np.argsort(-self._counts[rows], kind="stable")[:limit]]
        return [self.item(row) for row in best.tolist()], len(rows)

    @cached_property
    def _counts(self) -> npt.NDArray[np.float64]:
        scorer = self.run.scorer
        if isinstance(scorer, TermScorer):
            return scorer.counts.double().cpu().numpy()
        return np.zeros(len(self.ids))

    @cached_property
    def catalogue(self) -> pl.DataFrame | None:
        """Columns of the items; None if the dataset has moved."""
        try:
            return self._maker.catalogue
        except (ConfigError, DataError):
            return None

    @cached_property
    def _files(self) -> dict[str, str]:
        return {} if self.catalogue is None else self._maker.dataset.kinds

    @cached_property
    def _with_image(self) -> npt.NDArray[np.bool_]:
        """Which rows have an image in the dataset, ``[N]``; items that were added since have none there."""
        if self.catalogue is None or IMAGE not in self._maker.dataset.items.columns:
            return np.zeros(len(self.ids), bool)
        dataset = self._maker.dataset
        known = dataset.items.filter(pl.col(IMAGE).is_not_null())[ITEM_ID]
        return self.run.items[ITEM_ID].is_in(known.implode()).to_numpy()

    def image_path(self, row: int) -> str | None:
        """Path of an item's image in the service, None without one."""
        return f"/items/{quote(self.ids[row], safe='')}/image" if self._with_image[row] else None

    def image(self, row: int) -> tuple[bytes, str]:
        """Return the file of an item's image, and its media type.

        Raises:
            DataError: The item has none, or it changed since the dataset was prepared.
        """
        from PIL import Image

        if not self._with_image[row]:
            raise DataError(f"item '{self.ids[row]}' has no image", "an item with one", "see 'image' of the item")
        dataset = self._maker.dataset
        content = dataset.content_bytes(IMAGE, int(dataset.item_index([self.ids[row]])[0]))
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return content, str(image.get_format_mimetype())

    def facts(self) -> dict[str, Any]:
        """Describe the run as in ``RunFacts``."""
        test = self.run.result["test"]
        columns = (
            {} if self.catalogue is None else column_facts(self.catalogue.drop(ITEM_ID, *self._files), _SHOWN)
        )
        return {
            "name": self.name,
            "recipe": self.run.config.recipe,
            "num_items": self.num_offered,
            "modalities": [each for each in self.similar_by if each not in (MODEL, ANCHOR)],
            "similar_by": self.similar_by,
            "columns": columns,
            "images": bool(self._with_image.any()),
            "metrics": {name: test[name] for name in ("hr@10", "ndcg@10", "cold_hr@10") if name in test},
            "protocol": self.run.result["protocol"],
            "trained": datetime.fromtimestamp((self.folder / RESULT).stat().st_mtime, UTC).isoformat(),
        }
