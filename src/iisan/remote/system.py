"""File systems of object stores: credentials of the environment, bounded waiting, errors of one sentence."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from iisan.errors import MissingExtraError, RemoteError
from iisan.remote.address import Address

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

#: Seconds until a connection is given up, until an answer is, and attempts.
_CONNECT, _ANSWER, _ATTEMPTS = 5, 30, 3
#: Parts of the messages of pyarrow's file systems -> what went wrong at an address, what is expected, the cure.
_CAUSES = (
    (
        r"OAuth2 access token",
        "there are no credentials for '{}'",
        "Google's application default credentials",
        "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    ),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|EXPIRED_TOKEN|HTTP status 40[13]|"
        r"PERMISSION_DENIED|UNAUTHENTICATED",
        "access to '{}' is denied to the credentials of the environment, or there are none",
        "credentials that may list, read and, for outputs, write and delete",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (
        r"HTTP status 301|PERMANENT_?REDIRECT",
        "the bucket of '{}' is in another region",
        "its own region",
        "set AWS_REGION",
    ),
    (
        r"NETWORK_CONNECTION|curlCode|CURL error|UNAVAILABLE|timed? ?out|REQUEST_TIMEOUT",
        "'{}' cannot be reached",
        "an object store that answers",
        "check the network and AWS_ENDPOINT_URL",
    ),
)
#: Longest quoted part of a message of another kind.
_SHOWN = 200


def file_system(scheme: str) -> "FileSystem":
    """Return the file system of a scheme, which takes its credentials from the environment and gives up soon."""
    try:
        from pyarrow import fs

        if scheme == "gs":
            return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_CONNECT * _ATTEMPTS))
        environment = os.environ.get
        return fs.S3FileSystem(
            region=environment("AWS_REGION") or environment("AWS_DEFAULT_REGION"),
            endpoint_override=environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL"),
            connect_timeout=_CONNECT,
            request_timeout=_ANSWER,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        )
    except ImportError:
        raise MissingExtraError("pyarrow", "cloud", f"{scheme}://…") from None


def missing_bucket(address: Address) -> RemoteError:
    """Return the error of an address whose bucket does not exist."""
    return RemoteError(
        f"the bucket of '{address}' does not exist", "an existing bucket", "check its name, or make it"
    )


@contextlib.contextmanager
def explained(address: Address) -> Iterator[None]:
    """Turn errors of a file system into one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Those of this machine's disk have a number.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        text = " ".join(str(error).split())
        if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist", text, re.IGNORECASE):
            raise missing_bucket(address) from None
        for pattern, got, expected, cure in _CAUSES:
            if re.search(pattern, text, re.IGNORECASE):
                raise RemoteError(got.format(address), expected, cure) from None
        got = f"'{address}' cannot be used ({text[:_SHOWN]})"
        raise RemoteError(got, "an object store that answers", "check the address and try again") from None
