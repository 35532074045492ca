"""Datasets of the Hugging Face Hub, or a local copy: shards of Parquet, items and interactions apart."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from iisan.data.assemble import interaction_roles, item_roles
from iisan.data.options import PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import Files, Layout, Part, RawTables, Reader, joined
from iisan.data.tables import read_table
from iisan.errors import DataError

_NAME = r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"


def _read(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    items = [read_table(path, item_roles(options), problems, rest=True) for path in files["items"]]
    logs = [read_table(path, interaction_roles(options), problems) for path in files["interactions"]]
    return RawTables(joined(items), joined(logs), files["items"][0].parent)


def fetch(source: Path) -> Path:
    """Download the Parquet files of a dataset ``owner/name[@revision]``; return a folder that exists as it is.

    Raises:
        DataError: There is no such folder, and no such dataset either, or no network.
    """
    if source.exists():
        return source
    named = re.fullmatch(_NAME, source.as_posix())
    if not named:
        raise DataError(f"no folder '{source}'", "a folder, or a dataset OWNER/NAME of the Hub", "check the path")
    try:
        folder = snapshot_download(
            named["name"], repo_type="dataset", revision=named["revision"], allow_patterns="*.parquet"
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        got = f"neither a folder '{source}' nor a dataset of the Hub that can be read ({first})"
        raise DataError(got, "a folder, or a dataset OWNER/NAME", "check the name and the network") from None
    return Path(folder)


def _part(name: str) -> Part:
    return Part(name, (f"{name}-*.parquet", f"{name}/*.parquet"), several=True)


HUGGINGFACE = Reader(
    (Layout("Parquet files of the Hugging Face Hub", (_part("items"), _part("interactions")), _read),),
    fetch=fetch,
)
