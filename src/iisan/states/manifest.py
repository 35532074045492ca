"""What a state store says about itself."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from iisan.encoders.levels import Level
from iisan.encoders.precision import Precision
from iisan.errors import StoreError
from iisan.files import read_manifest, sha256_json, write_json
from iisan.legacy import upgraded_keys

KIND = "iisan-states"
SCHEMA = 2
MANIFEST = "manifest.json"
MEAN = "mean.safetensors"
RECACHE = "run `iisan cache` again"
#: Setting of states that earlier versions made from JPEGs decoded at a fraction of their size.
DRAFT = "jpeg_draft"

#: Where a model came from does not change its states; the digests of its weights and processor stay in.
_PROVENANCE = ("encoder", "revision")


class File(BaseModel):
    """Size and checksum of one file."""

    model_config = ConfigDict(extra="forbid")

    name: str
    bytes: int
    sha256: str


class Shard(BaseModel):
    """Some rows of a store: their states and their keys."""

    model_config = ConfigDict(extra="forbid")

    rows: int
    states: File
    keys: File


class Manifest(BaseModel):
    """The manifest of one store; replaced after every shard, it is the journal of the writing.

    Attributes:
        settings: what decides the states' values (see ``Encoder.settings``).
        levels: the K stored levels.
        dtype: storage format.
        precision: number format of the computation.
        width: D.
        depth: T.
        parameters: of the encoder; None for states made elsewhere, and in stores that do not say it yet.
        error: per level the storage error next to the spread between items, ``None`` for constant levels.
        mean: the file of per-level means [K, D].
        shards: finished shards, in row order.
        finished: whether all contents that the store was made for are in it.
        made_with: versions of the libraries at creation, for the record.
    """

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    levels: tuple[Level, ...]
    dtype: str
    precision: Precision
    width: int
    depth: int
    parameters: int | None = None
    error: list[float | None]
    mean: File | None = None
    shards: list[Shard]
    finished: bool = True  # as in stores of schema 1, which do not say it
    made_with: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows of all shards together."""
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decided what the store holds."""
        return fingerprint_of(self.settings, self.levels, self.dtype, self.precision)

    def files(self) -> list[File]:
        """Every file besides the manifest."""
        shards = [file for shard in self.shards for file in (shard.states, shard.keys)]
        return shards if self.mean is None else [self.mean, *shards]

    def write(self, folder: Path) -> None:
        """Write to a store's folder, atomically."""
        header = {"kind": KIND, "schema": SCHEMA, "fingerprint": self.fingerprint}
        write_json(folder / MANIFEST, header | self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read from a store's folder.

        Raises:
            StoreError: absent, foreign, damaged, or written by a newer iisan.
        """
        path = folder / MANIFEST
        fields = read_manifest(path, KIND, SCHEMA, StoreError, RECACHE)
        header = [fields.pop(name, None) for name in ("kind", "schema", "fingerprint")]
        if isinstance(fields.get("settings"), dict):
            fields["settings"] = upgraded_keys(fields["settings"])
        try:
            manifest = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise StoreError(
                f"'{path}' is damaged at '{where}' ({first['msg']})",
                "a manifest as iisan wrote it",
                f"delete the folder and {RECACHE}",
            ) from None
        safe = all(Path(file.name).name == file.name for file in manifest.files())
        if not safe or header[-1] != manifest.fingerprint:
            raise StoreError(
                f"'{path}' was changed after it was written",
                "a manifest as iisan wrote it",
                f"delete the folder and {RECACHE}",
            )
        return manifest


def fingerprint_of(settings: dict[str, Any], levels: tuple[Level, ...], dtype: str, precision: str) -> str:
    """SHA-256 of all that decides what a store holds for a content."""
    decisive = {name: value for name, value in settings.items() if name not in _PROVENANCE}
    return sha256_json({"settings": decisive, "levels": levels, "dtype": dtype, "precision": precision})
