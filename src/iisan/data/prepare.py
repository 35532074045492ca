"""From raw files to a dataset folder: ``iisan prepare``."""

from collections.abc import Sequence
from pathlib import Path

from iisan.data.assemble import assemble
from iisan.data.dataset import Dataset, check_writable
from iisan.data.held_out import read_held_out
from iisan.data.options import PrepareOptions, parse_options
from iisan.data.problems import Problems
from iisan.data.queries import both, read_queries
from iisan.data.readers import READERS, recognise
from iisan.files import sha256_file

__all__ = ["PrepareOptions", "parse_options", "prepare"]


def prepare(
    form: str,
    sources: Sequence[Path],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    validation: Path | None = None,
    test: Path | None = None,
    held_out: Path | None = None,
    preset: str | None = None,
) -> Dataset:
    """Read raw files, clean, check and filter them, and write a dataset folder.

    Args:
        form: A key of ``READERS``, such as ``table``, or ``auto`` for the one whose layout the sources have.
        sources: The files of the format, items before interactions, or their folder.
        out: Folder to write; absent, empty, or an earlier dataset, which is replaced.
        options: Columns, filters and the policy for bad rows.
        validation: File of validation queries: ``user_id``, ``history``, ``target``; in the format ``reference``
            without a header line.
        test: File of test queries; both or neither.
        held_out: File of users to hold out of training: ``user_id``, ``subset`` (``validation`` or ``test``).
        preset: Name of a publication's filters, see the format's documentation; options go before them.

    Returns:
        The dataset, loaded from ``out``; see its ``manifest["counts"]`` and ``skipped``.

    Raises:
        DataError: Bad input, or ``out`` holds something else.
    """
    check_writable(out)
    found = recognise(form, sources, READERS)
    queried = both(validation, test)
    given = options or PrepareOptions()
    if found.images and given.image is None:
        given = given.with_defaults({"images": found.images})
    chosen = found.reader.options(given, found.layout, not queried, preset)
    problems, filters = Problems(chosen.on_bad, known=found.reader.known), chosen.filters(bool(queried))
    raw = found.layout.read(found.files, chosen, problems)
    queries = {
        subset: read_queries(path, given.user_id, problems, header=found.reader.header, quotes=given.quotes)
        for subset, path in queried.items()
    }
    users = None if held_out is None else read_held_out(held_out, given.user_id, problems, given.quotes)
    parts = assemble(raw.items, raw.interactions, chosen, filters, problems, raw.image_root, queries, users)
    provenance = {
        "format": found.form,
        "layout": found.layout.title,
        "sources": [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in (*found.paths, *queried.values(), *([held_out] if held_out else []))
        ],
        "options": chosen.model_dump(mode="json") | filters.model_dump(),
    }
    return Dataset.of_parts(parts, provenance).save(out)
