"""The manifest of a state store."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from iisan.encoders.levels import Level
from iisan.encoders.precision import Precision
from iisan.errors import StoreError
from iisan.files import read_manifest, sha256_file, sha256_json, write_json
from iisan.legacy import upgraded_keys

KIND = "iisan-states"
SCHEMA = 2
MANIFEST = "manifest.json"
MEAN = "mean.safetensors"
RECACHE = "run `iisan cache` again"
#: Setting of states that earlier versions computed from JPEGs decoded at reduced size.
DRAFT = "jpeg_draft"

#: Settings outside the fingerprint, which contains the digests of weights and processor instead.
_PROVENANCE = ("encoder", "revision")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")


class File(_Entry):
    """Size and checksum of one file."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> "File":
        """Describe a file, by another name if it is to be renamed."""
        return cls(name=name or path.name, bytes=path.stat().st_size, sha256=sha256_file(path))

    def is_whole(self, folder: Path) -> bool:
        """Whether the file exists with the recorded size."""
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.bytes

    def verify(self, folder: Path) -> None:
        """Raise StoreError if the file is absent or differs from its checksum."""
        if not self.is_whole(folder) or sha256_file(folder / self.name) != self.sha256:
            raise damaged(folder / self.name)


class Shard(_Entry):
    """Some rows of a store: their states and their keys."""

    rows: int
    states: File
    keys: File


class Manifest(_Entry):
    """The manifest of one store, replaced after every shard.

    Attributes:
        settings: Settings that determine the states' values (see ``Encoder.settings``).
        levels: The K stored levels.
        dtype: Storage format.
        precision: Number format of the computation.
        width: Width D.
        depth: Depth T of the encoder.
        parameters: Number of parameters of the encoder; None for imported states and in older stores.
        error: Storage error per level relative to the spread between items, ``None`` for constant levels.
        mean: File of the per-level means [K, D].
        shards: Finished shards, in row order.
        finished: Whether all contents that the store was made for are in it.
        made_with: Versions of the libraries at creation.
    """

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
    finished: bool = True  # the default is for stores of schema 1
    made_with: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows of all shards together."""
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """See :func:`fingerprint_of`."""
        return fingerprint_of(self.settings, self.levels, self.dtype, self.precision)

    def files(self) -> list[File]:
        """Every file besides the manifest."""
        shards = [file for shard in self.shards for file in (shard.states, shard.keys)]
        return shards if self.mean is None else [self.mean, *shards]

    def write(self, folder: Path) -> None:
        """Write to a store's folder."""
        header = {"kind": KIND, "schema": SCHEMA, "fingerprint": self.fingerprint}
        write_json(folder / MANIFEST, header | self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read from a store's folder.

        Raises:
            StoreError: The manifest is absent, foreign, damaged, or of a newer schema.
        """
        path = folder / MANIFEST
        fields = read_manifest(path, KIND, SCHEMA, StoreError, RECACHE)
        header = [fields.pop(name, None) for name in ("kind", "schema", "fingerprint")]
        if isinstance(fields.get("settings"), dict):
            fields["settings"] = upgraded_keys(fields["settings"])
        fault = "was changed after it was written"
        try:
            manifest = cls.model_validate(fields)
            safe = all(Path(file.name).name == file.name for file in manifest.files())
            if safe and header[-1] == manifest.fingerprint:
                return manifest
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"is damaged at '{'.'.join(map(str, first['loc']))}' ({first['msg']})"
        raise StoreError(f"'{path}' {fault}", "a manifest as iisan wrote it", f"delete the folder and {RECACHE}")


def damaged(path: Path) -> StoreError:
    """Error about a file that differs from its checksum."""
    cure = "delete its folder" if path.name == MEAN else "delete it"
    return StoreError(f"'{path}' is not what was written", "its recorded checksum", f"{cure} and {RECACHE}")


def fingerprint_of(settings: dict[str, Any], levels: tuple[Level, ...], dtype: str, precision: str) -> str:
    """SHA-256 of everything that determines what a store holds for a content."""
    decisive = {name: value for name, value in settings.items() if name not in _PROVENANCE}
    return sha256_json({"settings": decisive, "levels": levels, "dtype": dtype, "precision": precision})
