"""The dataset artefact: items, users and their interactions, in one folder of open formats."""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from iisan.data.assemble import Parts, assemble, interaction_roles, item_roles
from iisan.data.clean import clean_texts
from iisan.data.frames import read_frame
from iisan.data.media import inside, read_file
from iisan.data.options import parse_options
from iisan.data.problems import Problems, read_skipped, skipped_counts, write_skipped
from iisan.data.sequences import Index, Sequences
from iisan.errors import DataError
from iisan.files import aside, read_manifest, write_json
from iisan.names import IMAGE, ITEM_ID, TEXT, TIMESTAMP, USER_ID, check_modality

KIND = "iisan-dataset"
SCHEMA = 1
_MANIFEST = "dataset.json"
#: Stands in the folder while it is written, so that an interrupted one may be written again.
_UNFINISHED = "dataset.unfinished"
_CURE = "make it (again) with: iisan prepare FORMAT SOURCE… --out DATASET"
#: Below this size close matches of an unknown id are looked for; difflib compares with every id.
_SMALL = 50_000
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Dataset:
    """Items with their contents, and users' interactions.

    Attributes:
        folder: where it lies, or None if it was not saved.
        items: ``[N]`` rows: ``item_id`` (unique), ``text``, ``image`` (path or bytes); null = missing; further
            columns of the source, those in ``kinds`` with contents too.
        sequences: all interactions as index arrays, memory-mapped when loaded.
        user_ids: ``[users]`` strings; the row number is the user index.
        image_root: folder that paths of images, and of other files, are relative to.
        manifest: provenance, counts before and after every filter, content hash.
        skipped: bad rows that were left out: ``reason``, ``where``, ``value``.
    """

    folder: Path | None
    items: pl.DataFrame
    sequences: Sequences
    user_ids: pl.Series
    image_root: Path | None
    manifest: dict[str, Any]
    skipped: pl.DataFrame = field(default_factory=lambda: Problems("skip").skipped)

    @property
    def num_items(self) -> int:
        """Items in the catalogue, ``N``."""
        return len(self.items)

    @property
    def num_users(self) -> int:
        """Number of users."""
        return self.sequences.num_users

    @property
    def num_interactions(self) -> int:
        """Number of interactions."""
        return len(self.sequences.items)

    @property
    def content_hash(self) -> str | None:
        """See the function of that name; None in datasets that do not say it."""
        return self.manifest.get("content_hash")

    def text(self, index: int) -> str | None:
        """The text of an item, None where missing."""
        text: str | None = self.items[TEXT][index]
        return text

    @property
    def kinds(self) -> dict[str, str]:
        """The columns with contents for an encoder, and of which kind each is."""
        kinds: dict[str, str] = self.manifest.get("kinds", {TEXT: TEXT, IMAGE: IMAGE})
        return kinds

    def content_bytes(self, column: str, index: int) -> bytes:
        """The bytes of an item's file in a column of files, such as ``image``.

        Raises:
            DataError: the item has none, or its file is gone.
        """
        content = self.items[column][index]
        if content is None:
            raise DataError(
                f"item '{self.items[ITEM_ID][index]}' has no {column}", f"an item with {column}", "ask for others"
            )
        if isinstance(content, bytes):
            return content
        if self.image_root is None:
            raise DataError(
                f"the dataset has the {column} path '{content}' but no folder of files", "an image_root", _CURE
            )
        return read_file(inside(self.image_root, content))

    def item_index(self, ids: Sequence[str]) -> Index:
        """Row numbers of items by id, ``[len(ids)]``.

        Raises:
            DataError: names the ids that are unknown.
        """
        return index_of(self.items[ITEM_ID], ids, "item")

    def user_index(self, user_id: str) -> int:
        """Row number of a user.

        Raises:
            DataError: the user is unknown.
        """
        return int(index_of(self.user_ids, [user_id], "user")[0])

    @classmethod
    def from_frames(cls, items: Any, interactions: Any, **options: Any) -> "Dataset":
        """Make a dataset from DataFrames, with the cleaning and filters of ``iisan prepare table``.

        Args:
            items: polars or pandas DataFrame with a row per item.
            interactions: polars or pandas DataFrame with a row per interaction.
            options: fields of ``PrepareOptions``: columns (``text="title"``), filters, ``images``, ``on_bad``.

        Returns:
            A dataset in memory; ``save`` writes it.

        Raises:
            DataError: bad input; see ``prepare``.
        """
        chosen = parse_options(options)
        problems, filters = Problems(chosen.on_bad), chosen.filters("table")
        parts = assemble(
            read_frame(items, item_roles(chosen), "the items frame", problems, rest=True),
            read_frame(interactions, interaction_roles(chosen), "the interactions frame", problems, rest=False),
            chosen,
            filters,
            problems,
            None,
        )
        asked = chosen.model_dump(mode="json") | filters.model_dump()
        return cls.of_parts(parts, {"format": "frames", "sources": [], "options": asked})

    @classmethod
    def of_parts(cls, parts: Parts, provenance: Mapping[str, Any]) -> "Dataset":
        """Make a dataset in memory from what ``assemble`` returned."""
        manifest = {
            "kind": KIND,
            "schema": SCHEMA,
            "created": _now(),
            "provenance": dict(provenance),
            "counts": parts.counts,
            "skipped": skipped_counts(parts.skipped),
            "content_hash": content_hash(parts.items, parts.user_ids, parts.sequences),
            "image_root": None if parts.image_root is None else str(parts.image_root),
            "kinds": parts.kinds,
        }
        return cls(None, parts.items, parts.sequences, parts.user_ids, parts.image_root, manifest, parts.skipped)

    @property
    def captions(self) -> dict[str, str]:
        """Columns of captions that were written by a model -> the column that they describe."""
        return {name: origin["column"] for name, origin in self.manifest["provenance"].get("captions", {}).items()}

    def check_new_column(self, name: str) -> None:
        """Make sure that a column of texts may be added under that name.

        Raises:
            DataError: there is one already, or no column can be called that.
        """
        if name in self.items.columns:
            raise DataError(f"the items have a column '{name}' already", "a new name", "choose another name")
        check_modality(name, TEXT)

    def with_captions(self, name: str, texts: pl.Series, origin: Mapping[str, Any]) -> "Dataset":
        """Add a column of texts that describe another column.

        Args:
            name: of the new column, which a text encoder can read like any other of kind ``text``.
            texts: ``[N]`` strings, null where missing; cleaned like all texts.
            origin: ``column``, which they describe, and what else the manifest shall say about them.

        Returns:
            A dataset in memory; ``save`` writes it.

        Raises:
            DataError: an unusable name, or another number of texts than items.
        """
        self.check_new_column(name)
        if len(texts) != self.num_items:
            raise DataError(
                f"{len(texts):,} texts", f"{self.num_items:,}, one per item", "give null where missing"
            )
        texts = clean_texts(texts.alias(name))
        items = self.items.with_columns(texts)
        captions = {**self.manifest["provenance"].get("captions", {}), name: dict(origin)}
        counts = self.manifest["counts"]
        manifest = self.manifest | {
            "created": _now(),
            "provenance": self.manifest["provenance"] | {"captions": captions},
            "counts": counts | {"missing": counts["missing"] | {name: texts.null_count()}},
            "content_hash": content_hash(items, self.user_ids, self.sequences),
            "kinds": {**self.kinds, name: TEXT},
        }
        return replace(self, folder=None, items=items, manifest=manifest)

    def save(self, folder: Path | str) -> "Dataset":
        """Write the dataset; it is not there until its manifest is.

        Returns:
            The dataset, loaded from ``folder``.

        Raises:
            DataError: the folder holds something else.
        """
        folder = Path(folder)
        claim(folder)
        (folder / "sequences").mkdir(exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
        for leftover in folder.rglob(".*.part"):  # of a writing that was killed
            leftover.unlink()
        users = self.user_ids.alias(USER_ID).to_frame()
        frames = {"items": self.items, "users": users, "interactions": self.interactions()}
        tables = {folder / f"{name}.parquet": frame for name, frame in frames.items()}
        for path, frame in tables.items():
            _write_parquet(frame, path)
        arrays = self.sequences.save(folder / "sequences")
        write_skipped(self.skipped, folder / "skipped.jsonl")
        written = [*tables, *arrays, folder / "skipped.jsonl"]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(written)}
        write_json(folder / _MANIFEST, self.manifest | {"files": sizes})
        (folder / _UNFINISHED).unlink()
        return self.load(folder, self.image_root)

    @classmethod
    def load(cls, folder: Path | str, image_root: Path | str | None = None) -> "Dataset":
        """Open a dataset folder.

        Args:
            folder: what ``save`` or ``iisan prepare`` wrote.
            image_root: where the images lie now, if they moved.

        Raises:
            DataError: absent, unfinished, truncated, foreign, or written by a newer version.
        """
        folder = Path(folder)
        manifest = read_manifest(folder / _MANIFEST, KIND, SCHEMA, DataError, _CURE)
        try:
            _check_sizes(folder, manifest["files"])
            items = pl.read_parquet(folder / "items.parquet", glob=False)
            user_ids = pl.read_parquet(folder / "users.parquet", glob=False)[USER_ID]
            sequences = Sequences.load(folder / "sequences")
            skipped = read_skipped(folder / "skipped.jsonl")
            found = (len(items), len(user_ids), sequences.num_users, len(sequences.items))
            counts = manifest["counts"]
            stated = (counts["items"], counts["users"], counts["users"], counts["interactions"])
        except (pl.exceptions.PolarsError, KeyError, TypeError, AttributeError, ValueError) as error:
            first = str(error).split("\n")[0]
            raise DataError(f"'{folder}' is damaged ({first})", "the files that were written", _CURE) from None
        if found != stated:
            raise DataError(f"'{folder}' holds {found} items, users, sequences, interactions", f"{stated}", _CURE)
        root = image_root if image_root is not None else manifest.get("image_root")
        dataset = cls(folder, items, sequences, user_ids, None if root is None else Path(root), manifest, skipped)
        for name, kind in dataset.kinds.items():
            check_modality(name, kind)
        return dataset

    def interactions(self) -> pl.DataFrame:
        """All interactions: ``user_id``, ``item_id``, ``timestamp`` (null where the source had none)."""
        users = pl.Series(np.repeat(np.arange(self.num_users, dtype=np.uint32), self.sequences.lengths))
        timestamps = self.sequences.timestamps
        moments = pl.repeat(None, len(users), dtype=pl.Int64, eager=True)
        return pl.DataFrame(
            {
                USER_ID: self.user_ids.gather(users),
                ITEM_ID: self.items[ITEM_ID].gather(pl.Series(np.asarray(self.sequences.items))),
                TIMESTAMP: moments if timestamps is None else pl.Series(np.asarray(timestamps)),
            }
        )


def index_of(ids: pl.Series, wanted: Sequence[str], kind: str) -> Index:
    """Row numbers of ``wanted`` in ``ids``, ``[len(wanted)]``.

    Args:
        ids: unique ids.
        wanted: ids to find.
        kind: what they are ids of, for the message.

    Raises:
        DataError: names the ids that are unknown and what resembles them.
    """
    asked = pl.DataFrame({"id": pl.Series([str(one) for one in wanted], dtype=pl.String)})
    numbers = pl.DataFrame({"id": ids}).with_row_index("number")
    rows = asked.join(numbers, on="id", how="left", maintain_order="left")
    unknown = rows.filter(pl.col("number").is_null())["id"].unique(maintain_order=True)
    if len(unknown):
        names = ", ".join(f"'{one}'" for one in unknown.head(_SHOWN))
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        close = difflib.get_close_matches(unknown[0], ids.to_list(), n=3) if len(ids) <= _SMALL else []
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "check the spelling"
        raise DataError(f"unknown {kind} {names}{more}", f"one of the {len(ids):,} {kind}s of the dataset", hint)
    return rows["number"].cast(pl.Int64).to_numpy()


def check_writable(folder: Path) -> None:
    """Make sure that a dataset may be written into a folder.

    Raises:
        DataError: it holds something else than a dataset.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"'{folder}' is a file", "a folder to write", "choose another --out")
    if (folder / _UNFINISHED).exists() or not any(folder.iterdir()):
        return
    elsewhere = "choose another --out, or empty that folder"
    read_manifest(folder / _MANIFEST, KIND, SCHEMA, DataError, elsewhere)


def claim(folder: Path) -> None:
    """Mark a folder as one that a dataset is going to be written into; what it holds stays until then.

    Raises:
        DataError: it holds something else than a dataset.
    """
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _UNFINISHED).touch()


def content_hash(items: pl.DataFrame, user_ids: pl.Series, sequences: Sequences) -> str:
    """Hexadecimal SHA-256 over items and interactions, the same on every machine.

    Image paths count as they stand, relative to their folder; the files' contents do not.
    """
    digest = hashlib.sha256()
    for name, dtype in items.schema.items():
        if dtype == pl.Binary:
            sizes = items[name].bin.size().fill_null(-1).cast(pl.Int64, wrap_numerical=True)
            digest.update(f"{name}:{sizes.to_list()}".encode())
            for content in items[name].drop_nulls():
                digest.update(content)
    for frame in (items.select(pl.exclude(pl.Binary)), user_ids.alias(USER_ID).to_frame()):
        for part in frame.iter_slices(100_000):
            digest.update(part.write_ndjson().encode())
    for array in (sequences.offsets, sequences.items, sequences.timestamps):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        path = inside(folder, name)
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise DataError(f"'{path}' {state}", f"{size:,} bytes, as its manifest says", _CURE)


def _write_parquet(frame: pl.DataFrame, path: Path) -> None:
    with aside(path) as temporary:
        frame.write_parquet(temporary)
