"""Addresses in object stores, and where their copies are."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from iisan.errors import RemoteError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_SCHEMES = {"s3", "gs"}
_FORM = "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"


@dataclass(frozen=True)
class Address:
    """Place in an object store.

    Attributes:
        scheme: ``s3`` or ``gs``.
        bucket: Bucket.
        key: Key of an object, or a prefix of keys without the slash at its end; empty for the whole bucket.
    """

    scheme: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse an address.

        Raises:
            RemoteError: Another scheme, no bucket, credentials, or a key that is no relative path; the message
                repeats nothing that may be secret.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or match[1] not in _SCHEMES:
            got = f"files at '{text.partition('://')[0]}://…' are not read or written"
            raise RemoteError(got, f"a path, {_FORM}", "copy them to one of these")
        bucket, _, key = match[2].rstrip("/").partition("/")
        if "@" in bucket or ":" in bucket or "?" in text:
            got = f"an address {match[1]}://… with credentials or options in it"
            raise RemoteError(got, _FORM, "leave them out and set AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …")
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", bucket) or (key and not is_relative(key)):
            raise RemoteError(f"the address '{text}'", _FORM, "check the bucket, and leave out '..' and '//'")
        return cls(match[1], bucket, key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def path(self) -> str:
        """The address without its scheme, as pyarrow's file systems take it."""
        return f"{self.bucket}/{self.key}".rstrip("/")

    @property
    def copy(self) -> Path:
        """The copy on this machine, which need not exist."""
        return cache_folder() / self.scheme / self.bucket / self.key


def cache_folder() -> Path:
    """Folder of all copies: ``IISAN_CACHE``, by default ``~/.cache/iisan``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iisan"
    return Path(os.environ.get("IISAN_CACHE") or default).absolute()


def is_address(place: object) -> bool:
    """Whether this is a string with a scheme, such as ``s3://``; a ``Path`` never is an address."""
    return isinstance(place, str) and _ADDRESS.match(place) is not None


def is_relative(key: str) -> bool:
    """Whether a key names a file below a folder on any system."""
    return not set(key.split("/")) & {"", ".", ".."} and not set(key) & set("\\:\0")
