"""The dataset artefact: items, users and their interactions, in one folder of open formats."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from iisan.config import EvaluationConfig, SplitName
from iisan.data.assemble import Parts, assemble, interaction_roles, item_roles
from iisan.data.clean import clean_texts
from iisan.data.frames import read_frame
from iisan.data.held_out import read_held_out_frame, users_by_subset, users_frame
from iisan.data.ids import index_of
from iisan.data.media import checked_files, inside, read_file
from iisan.data.options import parse_options
from iisan.data.problems import Problems, read_skipped, skipped_counts, write_skipped
from iisan.data.queries import both, load_queries, query_roles, save_queries
from iisan.data.sequences import Index, Sequences
from iisan.data.splits import Queries, Split, Subset, split
from iisan.errors import DataError
from iisan.files import aside, content_key, read_manifest, relocated, write_json
from iisan.names import IMAGE, ITEM_ID, SUBSET, TEXT, TIMESTAMP, USER_ID, check_modality
from iisan.remote.opening import addressed

KIND = "iisan-dataset"
#: Newest schema, that of datasets with given queries, which earlier versions would ignore.
SCHEMA = 3
_WITHOUT_QUERIES = 2
_MANIFEST, _KEYS = "dataset.json", "keys.parquet"
#: Folder of the given queries, one folder per subset.
_QUERIES = "queries"
#: File in a folder that is being written, so that an interrupted one may be overwritten.
_UNFINISHED = "dataset.unfinished"
_CURE = "make it (again) with: iisan prepare FORMAT SOURCE… --out DATASET"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Items with their contents, and users' interactions.

    Attributes:
        folder: Folder of the dataset, or None if it was not saved.
        items: ``[N]`` rows: ``item_id`` (unique), ``text``, ``image`` (path or bytes), null where missing, and the
            further columns of the source.
        sequences: All interactions as index arrays, memory-mapped when loaded.
        user_ids: Ids of the users, in the order of their indices.
        image_root: Folder that paths of images and other files are relative to.
        stored_keys: See ``keys``; None in folders of version 0.1.
        manifest: Provenance, counts before and after every filter, content hash.
        skipped: Bad rows that were left out: ``reason``, ``where``, ``value``.
        queries: Given queries by subset, memory-mapped when loaded; empty, or those of validation and test.
        held_out: Subset of each user who is held out of training under the split ``users``, null for the others;
            None if the dataset names none.
    """

    folder: Path | None
    items: pl.DataFrame
    sequences: Sequences
    user_ids: pl.Series
    image_root: Path | None
    stored_keys: pl.DataFrame | None
    manifest: dict[str, Any]
    skipped: pl.DataFrame = field(default_factory=lambda: Problems("skip").skipped)
    queries: Mapping[Subset, Queries] = field(default_factory=dict)
    held_out: pl.Series | None = None

    @property
    def num_items(self) -> int:
        """Number of items N in the catalogue."""
        return len(self.items)

    @property
    def num_users(self) -> int:
        """Number of users, with those who only have given queries."""
        return self.sequences.num_users

    @property
    def num_interactions(self) -> int:
        """Number of interactions."""
        return len(self.sequences.items)

    @property
    def content_hash(self) -> str | None:
        """See the function of that name; None in datasets that do not record it."""
        return self.manifest.get("content_hash")

    def split(self, rule: SplitName | Literal["auto"] | EvaluationConfig = "auto") -> Split:
        """Split the interactions by a rule, or by that of an evaluation protocol with its settings.

        Raises:
            DataError: The data does not allow this split, see :mod:`iisan.data.splits`.
        """
        settings = EvaluationConfig(split=rule) if isinstance(rule, str) else rule
        name = default_split(self.manifest) if settings.split == "auto" else settings.split
        held_out = None if self.held_out is None else users_by_subset(self.held_out)
        shares, seed = settings.shares, settings.held_out_seed
        return split(self.sequences, self.num_items, name, shares, seed, self.queries, held_out)

    @property
    def users(self) -> pl.DataFrame:
        """One row per user: ``user_id`` and, if users are held out, their ``subset``."""
        return users_frame(self.user_ids, self.held_out)

    def text(self, index: int) -> str | None:
        """The text of an item, None where missing."""
        text: str | None = self.items[TEXT][index]
        return text

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each column with contents for an encoder."""
        kinds: dict[str, str] = self.manifest.get("kinds", {TEXT: TEXT, IMAGE: IMAGE})
        return kinds

    def content_bytes(self, column: str, index: int) -> bytes:
        """The bytes of an item's file in a column of files, such as ``image``.

        Raises:
            DataError: The item has none, or its file is gone or has changed since ``iisan prepare``.
        """
        content, item = self.items[column][index], self.items[ITEM_ID][index]
        if content is None:
            raise DataError(f"item '{item}' has no {column}", f"an item with {column}", "ask for others")
        if isinstance(content, str):
            if self.image_root is None:
                raise DataError(
                    f"the dataset has the {column} path '{content}' but no folder of files", "an image_root", _CURE
                )
            content = read_file(inside(self.image_root, content))
        if content_key(content) != self.keys[column][index]:
            raise DataError(
                f"the {column} of item '{item}' changed since `iisan prepare`",
                "the file that the dataset was prepared with",
                "prepare the dataset again, or bring that file back",
            )
        return content

    @cached_property
    def keys(self) -> pl.DataFrame:
        """Content keys (:func:`iisan.files.content_key`) of the items' files, ``[N]`` rows; null where missing.

        One column per column of files; texts are hashed on demand. For a dataset of version 0.1, the keys are
        computed from its media when they are first needed, and written to its folder.

        Raises:
            DataError: Media of such a dataset cannot be read.
        """
        if self.stored_keys is not None:
            return self.stored_keys
        problems, keys = Problems("skip"), {}
        for name, kind in self.kinds.items():
            if kind != TEXT:
                keys[name] = checked_files(self.items, name, kind, self.image_root, False, problems)[1]
        if len(problems.skipped):
            _, where, fault = problems.skipped.row(0)
            raise DataError(
                f"the dataset '{self.folder}' of version 0.1 has no content keys yet, and of {where} {fault}",
                "all of its media, once, to compute the keys from",
                "pass --images FOLDER if they moved, or prepare the dataset again",
            )
        self._keep(frame := pl.DataFrame(keys))
        return frame

    def _keep(self, keys: pl.DataFrame) -> None:
        """Add the keys to the folder of a dataset of schema 1, which thereby becomes one of schema 2."""
        assert self.folder is not None
        path = self.folder / _KEYS
        manifest = self.manifest | {
            "schema": _WITHOUT_QUERIES,
            "content_hash": content_hash(self.items, keys, self.users, self.sequences, self.queries),
            "previous_hash": self.content_hash,
        }
        try:
            _write_parquet(keys, path)
            manifest["files"] = self.manifest["files"] | {_KEYS: path.stat().st_size}
            write_json(self.folder / _MANIFEST, manifest)
        except OSError as error:
            warnings.warn(
                f"'{self.folder}' was prepared by version 0.1, and its content keys cannot be written there "
                f"({error.strerror}): every command reads all of its media again",
                stacklevel=2,
            )
        else:
            self.manifest.update(manifest)

    def item_index(self, ids: Sequence[str]) -> Index:
        """Indices of items by id; see :func:`index_of`."""
        return index_of(self.items[ITEM_ID], ids, "item")

    def user_index(self, user_id: str) -> int:
        """Index of a user by id; see :func:`index_of`."""
        return int(index_of(self.user_ids, [user_id], "user")[0])

    @classmethod
    def from_frames(
        cls,
        items: Any,
        interactions: Any,
        validation: Any = None,
        test: Any = None,
        held_out: Any = None,
        **options: Any,
    ) -> "Dataset":
        """Make a dataset in memory from DataFrames, with the cleaning and filters of ``iisan prepare table``.

        Args:
            items: polars or pandas DataFrame with one row per item.
            interactions: polars or pandas DataFrame with one row per interaction.
            validation: Given validation queries, one per row: ``user_id``, ``history`` (a list of item ids, or a
                text of ids separated by white space) and ``target``. Without them, a split rule makes the queries.
            test: Given test queries; both or neither.
            held_out: Users to hold out of training: ``user_id``, ``subset`` (``validation`` or ``test``).
            options: Fields of ``PrepareOptions``: columns (``text="title"``), filters, ``images``, ``on_bad``.

        Raises:
            DataError: Bad input; see ``prepare``.
        """
        chosen = parse_options(options)
        given = both(validation, test)
        problems, filters = Problems(chosen.on_bad), chosen.filters(bool(given))
        parts = assemble(
            read_frame(items, item_roles(chosen), "the items frame", problems, rest=True),
            read_frame(interactions, interaction_roles(chosen), "the interactions frame", problems, rest=False),
            chosen,
            filters,
            problems,
            None,
            {
                subset: read_frame(frame, query_roles(chosen.user_id), f"the {subset} frame", problems, rest=False)
                for subset, frame in given.items()
            },
            None if held_out is None else read_held_out_frame(held_out, chosen.user_id, problems),
        )
        asked = chosen.model_dump(mode="json") | filters.model_dump()
        return cls.of_parts(parts, {"format": "frames", "sources": [], "options": asked})

    @classmethod
    def of_parts(cls, parts: Parts, provenance: Mapping[str, Any]) -> "Dataset":
        """Make a dataset in memory from the result of ``assemble``."""
        users = users_frame(parts.user_ids, parts.held_out)
        manifest = {
            "kind": KIND,
            "schema": SCHEMA if parts.queries else _WITHOUT_QUERIES,
            "created": _now(),
            "provenance": dict(provenance),
            "counts": parts.counts,
            "skipped": skipped_counts(parts.skipped),
            "content_hash": content_hash(parts.items, parts.keys, users, parts.sequences, parts.queries),
            "kinds": parts.kinds,
        }
        return cls(
            None,
            parts.items,
            parts.sequences,
            parts.user_ids,
            parts.image_root,
            parts.keys,
            manifest,
            parts.skipped,
            parts.queries,
            parts.held_out,
        )

    @property
    def captions(self) -> dict[str, str]:
        """The column that each column of generated captions describes."""
        return {name: origin["column"] for name, origin in self.manifest["provenance"].get("captions", {}).items()}

    def check_new_column(self, name: str) -> None:
        """Raise DataError if the name of a new column of texts is taken or invalid."""
        if name in self.items.columns:
            raise DataError(f"the items have a column '{name}' already", "a new name", "choose another name")
        check_modality(name, TEXT)

    def with_captions(self, name: str, texts: pl.Series, origin: Mapping[str, Any]) -> "Dataset":
        """Return a dataset in memory with an additional column of kind ``text`` that describes another column.

        Args:
            name: Name of the new column.
            texts: ``[N]`` strings, null where missing; cleaned like all texts.
            origin: The described ``column``, and further entries for the manifest.

        Raises:
            DataError: An invalid name, or a number of texts other than N.
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
            "content_hash": content_hash(items, self.keys, self.users, self.sequences, self.queries),
            "kinds": {**self.kinds, name: TEXT},
        }
        manifest.pop("previous_hash", None)
        return replace(self, folder=None, items=items, stored_keys=self.keys, manifest=manifest)

    @addressed(out="folder")
    def save(self, folder: Path | str) -> "Dataset":
        """Write the dataset, its manifest last, and return it loaded from ``folder``.

        Raises:
            DataError: The folder holds something else.
        """
        folder = Path(folder)
        frames = {
            "items": self.items,
            "keys": self.keys,
            "users": self.users,
            "interactions": self.interactions(),
        }
        claim(folder)
        (folder / "sequences").mkdir(exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
        for leftover in folder.rglob(".*.part"):  # of a killed process
            leftover.unlink()
        tables = {folder / f"{name}.parquet": frame for name, frame in frames.items()}
        for path, frame in tables.items():
            _write_parquet(frame, path)
        arrays = self.sequences.save(folder / "sequences")
        for subset in get_args(Subset):
            arrays += save_queries(self.queries.get(subset), folder / _QUERIES / subset)
        write_skipped(self.skipped, folder / "skipped.jsonl")
        written = [*tables, *arrays, folder / "skipped.jsonl"]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(written)}
        places = {
            "folder": str(folder.resolve()),
            "image_root": self.image_root and str(self.image_root.resolve()),
        }
        schema = SCHEMA if self.queries else _WITHOUT_QUERIES
        write_json(folder / _MANIFEST, {**self.manifest, "schema": schema, **places, "files": sizes})
        (folder / _UNFINISHED).unlink()
        return self.load(folder, self.image_root)

    @classmethod
    @addressed("folder", "image_root")
    def load(cls, folder: Path | str, image_root: Path | str | None = None) -> "Dataset":
        """Open a dataset folder.

        Args:
            folder: Folder written by ``save`` or ``iisan prepare``.
            image_root: Folder of the images, if they were moved.

        Raises:
            DataError: The folder is absent, unfinished, damaged, foreign, or of a newer schema.
        """
        folder = Path(folder)
        manifest = manifest_of(folder)
        try:
            _check_sizes(folder, manifest["files"])
            items = pl.read_parquet(folder / "items.parquet", glob=False)
            keys = pl.read_parquet(folder / _KEYS, glob=False) if manifest["schema"] > 1 else None
            users = pl.read_parquet(folder / "users.parquet", glob=False)
            sequences = Sequences.load(folder / "sequences")
            skipped = read_skipped(folder / "skipped.jsonl")
            counts = manifest["counts"]
            rows: dict[Subset, int] = counts.get("queries", {})
            queries = {each: load_queries(folder / _QUERIES / each) for each in get_args(Subset) if rows}
            found = [len(items), len(users), sequences.num_users, len(sequences.items)]
            found += map(len, queries.values())
            stated = [counts["items"], counts["users"], counts["users"], counts["interactions"], *rows.values()]
        except (pl.exceptions.PolarsError, KeyError, TypeError, AttributeError, ValueError) as error:
            first = str(error).split("\n")[0]
            raise DataError(f"'{folder}' is damaged ({first})", "the files that were written", _CURE) from None
        if found != stated:
            names = "items, users, sequences, interactions" + (", queries" if rows else "")
            raise DataError(f"'{folder}' holds {found} {names}", f"{stated}", _CURE)
        root = None if image_root is None else Path(image_root)
        if root is None and manifest.get("image_root") is not None:
            root = relocated(Path(manifest["image_root"]), manifest.get("folder"), folder)
        held_out = users[SUBSET] if SUBSET in users.columns else None
        dataset = cls(folder, items, sequences, users[USER_ID], root, keys, manifest, skipped, queries, held_out)
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


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read the manifest of a dataset folder; see ``Dataset.load``."""
    return read_manifest(folder / _MANIFEST, KIND, SCHEMA, DataError, _CURE)


def default_split(manifest: Mapping[str, Any]) -> SplitName:
    """Split rule that ``auto`` stands for.

    ``given`` if the dataset has given queries, ``users`` if it names users to hold out, else ``leave-one-out``.
    """
    counts = manifest.get("counts", {})
    return "given" if "queries" in counts else "users" if "held_out" in counts else "leave-one-out"


def check_writable(folder: Path) -> None:
    """Check that a dataset may be written into a folder.

    Raises:
        DataError: The folder holds something other than a dataset.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is a file", "a folder to write", "choose another --out")
    if not folder.exists() or (folder / _UNFINISHED).exists() or not any(folder.iterdir()):
        return
    elsewhere = "choose another --out, or empty that folder"
    read_manifest(folder / _MANIFEST, KIND, SCHEMA, DataError, elsewhere)


def claim(folder: Path) -> None:
    """Reserve a folder for a dataset, see :func:`check_writable`; what it holds stays until ``save``."""
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _UNFINISHED).touch()


def content_hash(
    items: pl.DataFrame,
    keys: pl.DataFrame,
    users: pl.DataFrame,
    sequences: Sequences,
    queries: Mapping[Subset, Queries],
) -> str:
    """Hexadecimal SHA-256 of items, content keys, users, interactions and queries, the same on every machine."""
    digest = hashlib.sha256()
    for frame in (items.drop(keys.columns), keys, users):
        for part in frame.iter_slices(100_000):
            digest.update(part.with_columns(pl.col(pl.Binary).bin.encode("hex")).write_ndjson().encode())
    arrays = [sequences.offsets, sequences.items, sequences.timestamps]
    for each in queries.values():
        arrays += [each.users, each.sequences.offsets, each.sequences.items]
    for array in arrays:
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
