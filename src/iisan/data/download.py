"""Pictures by their web addresses: ``iisan download-images``, which goes on where it was interrupted."""

import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, TextIO

import polars as pl
from pydantic import BaseModel, ValidationError

from iisan.data.dataset import manifest_of
from iisan.data.fetch import FetchError, Permitted, Stopped, Target, fetch, is_public
from iisan.data.images import ADDRESS, extension_of, file_stem, image_files, open_image
from iisan.data.problems import Problems
from iisan.data.tables import Role, read_table
from iisan.errors import DataError
from iisan.files import aside, locked
from iisan.names import IMAGE, ITEM_ID
from iisan.progress import track

#: File of the pictures that were not downloaded, an object per line.
FAILURES = "failures.jsonl"
#: Columns of addresses, in order of preference: of the readers, renamed by ``iisan prepare``, and of own tables.
_COLUMNS = ("image_url", f"{IMAGE}_original", IMAGE)
_BETWEEN = re.compile(r"\s+(?=https?://)", re.IGNORECASE)
_ATTEMPTS = 3
#: Items in a row that a host may fail to give before it is not asked again.
_FAILED_ITEMS = 20
#: Longest wait that a host may ask for before it is left to a later call.
_LONGEST_WAIT = 300.0
#: Hosts whose past requests are forgotten beyond this number.
_HOSTS = 10_000
#: Longest name of a file without its extension, in bytes; file systems allow 255 with all that is added.
_LONGEST_STEM = 200


@dataclass(frozen=True)
class DownloadLimits:
    """Limits of a download.

    Attributes:
        rate: Maximum requests per second to one host.
        workers: Maximum simultaneous requests.
        max_bytes: Maximum size of a file.
        max_pixels: Maximum number of pixels of a picture.
        timeout: Maximum seconds from the request for a picture to its last byte.
        backoff: Seconds before the second attempt; doubled before each further one.
    """

    rate: float = 10.0
    workers: int = 8
    max_bytes: int = 2**25
    max_pixels: int = 25_000_000
    timeout: float = 60.0
    backoff: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rate", "workers", "max_bytes", "max_pixels", "timeout"):
            if not getattr(self, name) > 0:
                got = f"{name} = {getattr(self, name)}"
                raise DataError(got, "a number above 0", f"change --{name.replace('_', '-')}")


@dataclass
class Download:
    """The outcome of a download.

    Attributes:
        folder: Folder of the pictures.
        present: Number of items whose picture was there before.
        downloaded: Number of items whose picture was downloaded.
        without_address: Number of items without an address.
        failed: Number of items without a picture, by reason.
        retried: How many of these the same call tries again.
    """

    folder: Path
    present: int = 0
    downloaded: int = 0
    without_address: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    retried: int = 0

    def to_json(self) -> dict[str, Any]:
        """The outcome for machines."""
        return vars(self) | {"folder": str(self.folder), "report": str(self.report)}

    @property
    def report(self) -> Path:
        """File that lists the failures."""
        return self.folder / FAILURES


class LeftAloneError(FetchError):
    """A host that is not asked again in this call."""


class _Failure(BaseModel):
    """A line of ``FAILURES``: of all addresses of an item, ``reason`` and ``detail`` are those of the last."""

    item_id: str
    addresses: list[str]
    reason: str
    detail: str
    final: bool


class _Hosts:
    """When each host may be asked again."""

    def __init__(self, rate: float, stop: Event) -> None:
        self._spacing, self._stop, self._lock = 1 / rate, stop, Lock()
        self._next: dict[str, float] = {}
        self._failures = Counter[str]()

    def turn(self, host: str) -> None:
        """Wait until a request may be sent.

        Raises:
            FetchError: The host gave nothing so often, or asked for such a pause, that it is left alone.
        """
        while True:
            with self._lock:
                now = time.monotonic()
                delay = self._next.get(host, now) - now
                if self._failures[host] >= _FAILED_ITEMS:
                    raise LeftAloneError(
                        "host left alone", f"'{host}' gave none of {_FAILED_ITEMS} pictures in a row"
                    )
                if delay > _LONGEST_WAIT:
                    raise LeftAloneError("host left alone", f"'{host}' asks to wait for {delay:.0f} s")
                if delay <= 0:
                    if len(self._next) > _HOSTS:
                        self._next = {name: at for name, at in self._next.items() if at > now}
                    self._next[host] = now + self._spacing
                    return
            if self._stop.wait(delay):
                raise Stopped

    def answered(self, host: str, whether: bool) -> None:
        """Count the items that a host fails to give in a row; any final answer ends the row."""
        with self._lock:
            if whether:
                self._failures.pop(host, None)
            else:
                self._failures[host] += 1

    def pause(self, host: str, seconds: float) -> None:
        """Ask a host nothing for some time."""
        with self._lock:
            self._next[host] = max(self._next.get(host, 0.0), time.monotonic() + seconds)


def download_images(
    source: Path,
    out: Path,
    *,
    image: str | None = None,
    item_id: str | None = None,
    limits: DownloadLimits | None = None,
    permitted: Permitted = is_public,
) -> Download:
    """Download the pictures of items to a folder, under names that ``iisan prepare --images`` finds.

    Pictures that are there, and failures that no further attempt would change, are skipped; so an interrupted
    download goes on. What failed is listed in ``FAILURES``.

    Args:
        source: Dataset folder, or table of items.
        out: Folder of the pictures; made if absent.
        image: Column of web addresses; an item may have several, separated by spaces or in a list, of which the
            first that gives a picture is taken.
        item_id: Column of item ids; default ``item_id``.
        limits: Limits of the download.
        permitted: Whether an IP address and a port may be connected to; see :func:`iisan.data.fetch.is_public`.

    Raises:
        DataError: The table cannot be read or has no addresses, another process writes the folder, or there is
            not a single picture in the end.
    """
    addresses = _addresses(source, image, item_id)
    with locked(out, DataError):
        for remains in out.glob(".*.part"):
            remains.unlink()
        work = _Work(Download(out), limits or DownloadLimits(), permitted)
        outcome = work.run(addresses)
    if not (outcome.downloaded or outcome.present):
        [(reason, count)] = outcome.failed.most_common(1) or [("no address", outcome.without_address)]
        got = f"none of {len(addresses):,} pictures was downloaded ({count:,} × {reason})"
        raise DataError(got, "at least one picture", f"see '{outcome.report}', and give the command again")
    return outcome


def _addresses(source: Path, image: str | None, item_id: str | None) -> pl.DataFrame:
    """Ids of items, and the addresses of their pictures: strings [N, 2], null where there is none."""
    if source.is_dir():
        manifest_of(source)
        source = source / "items.parquet"
    problems = Problems("stop", "correct it")
    roles = [Role.of(ITEM_ID, item_id, ITEM_ID), Role.of(IMAGE, image, *_COLUMNS, lists="join")]
    table = read_table(source, roles, problems).with_ids((ITEM_ID,), problems)
    values = table.frame[IMAGE]
    if values.dtype == pl.List(pl.String):
        values = values.list.join(" ", ignore_nulls=True)
    if values.dtype != pl.String or not values.str.strip_chars().str.contains(ADDRESS).any():
        raise DataError(
            f"'{source}' has no web address in the column of pictures",
            "addresses that begin with http:// or https://",
            "name the column with --image",
        )
    values = values.str.strip_chars()
    frame = pl.DataFrame([table.frame[ITEM_ID], values.set(values == "", None)])
    return frame.unique(ITEM_ID, keep="first", maintain_order=True)


class _Work:
    """A download that is running."""

    def __init__(self, outcome: Download, limits: DownloadLimits, permitted: Permitted) -> None:
        self.outcome, self.limits, self.permitted = outcome, limits, permitted
        self._stop = Event()
        self._hosts = _Hosts(limits.rate, self._stop)
        self._there = {stem for stem, _ in image_files(outcome.folder)}
        #: Reasons of failures for good, by item and the hash of its addresses, which takes less memory.
        self._final: dict[tuple[str, int], str] = {}

    def run(self, addresses: pl.DataFrame) -> Download:
        """Download what is missing."""
        self._keep_failures()
        running = set[Future[_Failure | None]]()
        with (
            self.outcome.report.open("a", encoding="utf-8") as report,
            warnings.catch_warnings(),
            ThreadPoolExecutor(self.limits.workers) as pool,
        ):
            # Warnings of decoders that matter are errors in `open_image`.
            warnings.simplefilter("ignore")
            try:
                for item in self._missing(addresses):
                    running.add(pool.submit(self._item, *item))
                    while len(running) >= 2 * self.limits.workers:
                        running = self._record(running, report)
                while running:
                    running = self._record(running, report)
            finally:
                self._stop.set()
        return self.outcome

    def _missing(self, addresses: pl.DataFrame) -> Iterator[tuple[str, list[str]]]:
        """Items to download, and their addresses; the others are counted."""
        rows = track(addresses.iter_rows(), "downloading pictures", total=len(addresses))
        for item_id, text in rows:
            if self._has(item_id):
                self.outcome.present += 1
            elif text is None:
                self.outcome.without_address += 1
            else:
                several = _BETWEEN.split(text)
                if reason := self._final.get((item_id, _hash(several))):
                    self.outcome.failed[reason] += 1
                else:
                    yield item_id, several

    def _keep_failures(self) -> None:
        """Begin the report with earlier failures for good of items that still have no picture."""
        report = self.outcome.report
        with aside(report) as temporary, temporary.open("w", encoding="utf-8") as kept:
            for each in _read_failures(report):
                if each.final and not self._has(each.item_id):
                    self._final[each.item_id, _hash(each.addresses)] = sys.intern(each.reason)
                    kept.write(f"{each.model_dump_json()}\n")

    def _has(self, item_id: str) -> bool:
        return item_id in self._there or file_stem(item_id) in self._there

    def _record(self, running: set[Future[_Failure | None]], report: TextIO) -> set[Future[_Failure | None]]:
        """Wait for an item or a second, count and report what is done, and return the others."""
        # Without the second, an interruption would wait too: polars lets system calls go on after signals.
        done, others = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        for each in done:
            failure = each.result()
            if failure is None:
                self.outcome.downloaded += 1
                continue
            self.outcome.failed[failure.reason] += 1
            self.outcome.retried += not failure.final
            report.write(f"{failure.model_dump_json()}\n")
            # So that a kill loses no failure.
            report.flush()
        return others

    def _item(self, item_id: str, addresses: list[str]) -> _Failure | None:
        """Download the picture of an item from the first of its addresses that gives one."""
        stem, errors = file_stem(item_id), list[FetchError]()
        failure = partial(_Failure, item_id=item_id, addresses=addresses)
        if len(stem.encode()) > _LONGEST_STEM:
            return failure(reason="long item id", detail="too long for the name of a file", final=True)
        for address in addresses:
            try:
                content = self._picture(address)
            except FetchError as error:
                errors.append(error)
                continue
            with aside(self.outcome.folder / f"{stem}{extension_of(content)}") as temporary:
                temporary.write_bytes(content)
            return None
        last, final = errors[-1], all(error.final for error in errors)
        return failure(reason=last.reason, detail=last.detail, final=final)

    def _picture(self, address: str) -> bytes:
        """Fetch and check a picture, in several attempts if another may succeed.

        Raises:
            FetchError: There is no picture.
            Stopped: The program stops.
        """
        host = Target.of(address).host
        for attempt in range(_ATTEMPTS):
            try:
                content, kind = fetch(
                    address,
                    self.limits.max_bytes,
                    self.limits.timeout,
                    permitted=self.permitted,
                    turn=self._hosts.turn,
                    stop=self._stop,
                )
            except FetchError as error:
                if error.final or isinstance(error, LeftAloneError):
                    self._hosts.answered(host, error.final)
                    raise
                if error.wait is not None:
                    self._hosts.pause(host, error.wait)
                failed = error
            else:
                self._hosts.answered(host, True)
                self._check(content, kind)
                return content
            if attempt < _ATTEMPTS - 1 and self._stop.wait(self.limits.backoff * 2**attempt):
                raise Stopped
        self._hosts.answered(host, False)
        raise failed

    def _check(self, content: bytes, kind: str) -> None:
        try:
            picture = open_image(content, self.limits.max_pixels)
        except DataError as error:
            reason = error.got.partition(" (")[0]
            raise FetchError(reason, f"{error.got}, sent as {kind}", final=True) from None
        if picture.size == (1, 1):
            raise FetchError("a single pixel", "a placeholder for a picture that is gone", final=True)


def _hash(addresses: list[str]) -> int:
    return hash(tuple(addresses))


def _read_failures(report: Path) -> Iterator[_Failure]:
    """Read ``FAILURES``; a line that a kill cut short is left out."""
    if report.exists():
        with report.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValidationError):
                    yield _Failure.model_validate_json(line)
