"""From raw files to a dataset folder: ``iisan prepare``."""

from collections.abc import Sequence
from pathlib import Path

from iisan.data.assemble import assemble
from iisan.data.dataset import Dataset, check_writable
from iisan.data.options import Format, PrepareOptions, parse_options
from iisan.data.problems import Problems
from iisan.data.queries import both, read_queries
from iisan.data.readers import READERS
from iisan.errors import DataError
from iisan.files import sha256_file

__all__ = ["Format", "PrepareOptions", "parse_options", "prepare"]


def prepare(
    form: Format,
    sources: Sequence[Path],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    validation: Path | None = None,
    test: Path | None = None,
) -> Dataset:
    """Read raw files, clean, check and filter them, and write a dataset folder.

    Args:
        form: ``reference`` or ``table``.
        sources: The two files of the format, or their folder.
        out: Folder to write; absent, empty, or an earlier dataset, which is replaced.
        options: Columns, filters and the policy for bad rows.
        validation: File of validation queries: ``user_id``, ``history``, ``target``; in the format ``reference``
            without a header line.
        test: File of test queries; both or neither.

    Returns:
        The dataset, loaded from ``out``; see its ``manifest["counts"]`` and ``skipped``.

    Raises:
        DataError: Bad input, or ``out`` holds something else.
    """
    options = options or PrepareOptions()
    if form not in READERS:
        raise DataError(f"unknown format '{form}'", f"one of {', '.join(READERS)}", "choose one of them")
    check_writable(out)
    given = both(validation, test)
    problems, header = Problems(options.on_bad), form == "table"
    raw = READERS[form](sources, options, problems)
    queries = {
        subset: read_queries(path, options.user_id, problems, header=header, quotes=options.quotes)
        for subset, path in given.items()
    }
    filters = options.filters(form, bool(given))
    parts = assemble(raw.items, raw.interactions, options, filters, problems, raw.image_root, queries)
    provenance = {
        "format": form,
        "sources": [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in (*raw.files, *given.values())
        ],
        "options": options.model_dump(mode="json") | filters.model_dump(),
    }
    return Dataset.of_parts(parts, provenance).save(out)
