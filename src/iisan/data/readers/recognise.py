"""Which files of a folder are which, and which layout a folder has."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import polars as pl

from iisan.data.images import SUFFIXES
from iisan.data.json_lines import text_lines
from iisan.data.problems import printable
from iisan.data.readers.base import Files, Layout, Part, Reader
from iisan.data.tables import Damaged, Form, reading
from iisan.errors import DataError

#: The format that stands for the one whose layout the sources have.
AUTO = "auto"
#: File names that a message lists.
_SHOWN = 5


@dataclass(frozen=True)
class Recognised:
    """Sources and what they were taken for: a format, its layout, and the files of each part."""

    form: str
    reader: Reader
    layout: Layout
    files: Files
    images: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, in the order of the parts."""
        return tuple(path for paths in self.files.values() for path in paths)


def recognise(form: str, sources: Sequence[Path], readers: Mapping[str, Reader]) -> Recognised:
    """Find the files of a format, or of the one format that fits (``auto``).

    Raises:
        DataError: An unknown format; missing, superfluous or wrong files; with ``auto``, no or several layouts.
    """
    if form != AUTO and form not in readers:
        raise DataError(f"unknown format '{form}'", f"one of {', '.join([AUTO, *readers])}", "choose one of them")
    if not sources:
        raise DataError("no source", "a folder, or files", "name the folder of the files")
    if form != AUTO and (fetch := readers[form].fetch):
        sources = [fetch(source) for source in sources]
    for source in sources:
        if not source.exists():
            raise DataError(f"no file or folder '{source}'", "files, or their folder", "check the path")
    fitting, faults = list[Recognised](), list[DataError]()
    for name in readers if form == AUTO else [form]:
        for layout in readers[name].layouts:
            try:
                files = _files(layout, sources, form == AUTO or len(readers[name].layouts) > 1)
            except DataError as error:
                faults.append(error)
            else:
                fitting.append(Recognised(name, readers[name], layout, files, _images(layout, sources)))
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        # A damaged file hides what it is.
        faults.sort(key=lambda fault: not isinstance(fault, Damaged))
        if len(faults) == 1 or isinstance(faults[0], Damaged):
            raise faults[0]
    has = f"'{sources[0]}' has" if len(sources) == 1 else f"{len(sources)} files have"
    layouts = [layout for name in (readers if form == AUTO else [form]) for layout in readers[name].layouts]
    if not fitting:
        got = f"{has} none of the layouts" + ("" if form == AUTO else f" of '{form}'")
        cure = "name a format and its files, or write two tables for the format 'table'"
        raise DataError(got, "; ".join(map(_described, layouts)), cure)
    names = " and of ".join(f"{each.form} ({each.layout.title}: {_listed(each.paths)})" for each in fitting)
    same = len({each.form for each in fitting}) == 1
    cure = "name the files, or a folder with those of one" + ("" if same else ", or name the format")
    raise DataError(f"{has} the layouts of {names}", "one layout", cure)


def fields(path: Path, form: Form | None = None) -> Collection[str]:
    """Names of the fields of a table's first row.

    Raises:
        DataError: The file cannot be read.
    """
    name = path.name.lower().removesuffix(".gz")
    with reading(path):
        if name.endswith(".parquet"):
            return list(pl.read_parquet_schema(path))
        lines = text_lines(path, [], "latin-1", at_once=4096)
        line = next((text for _, text in lines if text.strip()), "")
    if form is None and name.endswith((".csv", ".tsv")):
        form = Form("," if name.endswith(".csv") else "\t")
    if form is not None and form.separator is not None:
        return [each.strip().strip('"') for each in line.split(form.separator)]
    try:
        found = (json.loads if form is None else form.parse)(line)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    return found.keys() if isinstance(found, dict) else ()


def _files(layout: Layout, sources: Sequence[Path], by_name: bool) -> Files:
    """Find the files of each part; ``by_name`` says whether files without a header need the right names.

    Raises:
        DataError: A part is missing or ambiguous, or its file has other fields or another name.
    """
    if len(sources) == 1 and sources[0].is_dir():
        there = _walk(sources[0], layout.depth)
        return {part.name: _found(part, there, sources[0]) for part in layout.parts}
    parts = [part for part in layout.parts if part.required or len(sources) >= len(layout.parts)]
    *before, last = parts
    wanted = _described(layout)
    if len(sources) < len(parts) or (len(sources) > len(parts) and not last.several):
        got = f"a single file '{sources[0]}'" if len(sources) == 1 else f"{len(sources)} sources"
        raise DataError(got, f"{wanted}, or their folder", "name all of these files, in this order")
    folder = next((source for source in sources if source.is_dir()), None)
    if folder:
        raise DataError(f"the folder '{folder}' in the place of a file", wanted, "name the files, or one folder")
    named: dict[str, tuple[Path, ...]] = {part.name: () for part in layout.parts}
    named |= {part.name: (path,) for part, path in zip(before, sources, strict=False)}
    named[last.name] = tuple(sources[len(before) :])
    for part in parts:
        for path in named[part.name]:
            if by_name and not part.fields and not _matches(path, part.patterns):
                raise DataError(
                    f"a file '{path.name}'", " or ".join(part.patterns), f"name {wanted}, in this order"
                )
            missing = [name for name in part.fields if name not in fields(path, part.form)]
            if missing:
                got = f"'{path}' lacks the field{'s' * (len(missing) > 1)} {', '.join(missing)}"
                raise DataError(got, f"{part.name} of {layout.title}", f"name {wanted}, in this order")
    return named


def _found(part: Part, there: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    named = [path for path in there if _matches(path, part.patterns)]
    fitting = [path for path in named if {*part.fields} <= {*(fields(path, part.form) if part.fields else ())}]
    if len(fitting) == 1 or (fitting and part.several) or not (named or part.required):
        return tuple(fitting)
    some = fitting or named
    got = f"'{folder}' holds {_listed(some) if some else 'no such file'}"
    if named and not fitting:
        got += f" without the fields {', '.join(part.fields)}"
    expected = f"exactly one file {part.name} ({', '.join(part.patterns)})"
    raise DataError(got, expected, "name the files instead of the folder")


def _walk(folder: Path, depth: int) -> list[Path]:
    """Files of a folder and of ``depth`` levels of subfolders, without hidden ones and images."""
    found = []
    for parent, folders, names in os.walk(folder):
        level = len(Path(parent).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if level < depth else []
        names = [name for name in sorted(names) if not (name.startswith(".") or name.lower().endswith(SUFFIXES))]
        found += [Path(parent, name) for name in names]
    return found


def _images(layout: Layout, sources: Sequence[Path]) -> Path | None:
    """Folder of images beside the files, if there is exactly one."""
    if len(sources) > 1 or not layout.images:
        return None
    found = [
        path
        for pattern in ("*", "*/*")
        for path in sorted(sources[0].glob(pattern))
        if _matches(path, layout.images) and path.is_dir()
    ]
    return found[0] if len(found) == 1 else None


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    """Whether a file has one of the names, which may be those of its folder and of the file."""
    names = [path.name.lower(), f"{path.parent.name}/{path.name}".lower()]
    return any(fnmatch(names["/" in pattern], pattern.lower()) for pattern in patterns)


def _described(layout: Layout) -> str:
    return f"{layout.title} ({', '.join(part.patterns[0] for part in layout.parts)})"


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return printable(", ".join(path.name for path in paths[:_SHOWN])) + more
