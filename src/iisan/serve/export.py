"""Exports of a finished run: item vectors and ONNX graphs, in folders that need nothing of iisan.

No export holds users, histories or paths. Legend: N exported items, V numbers of an item's dense vector.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from iisan.errors import ConfigError, IisanError, RunError
from iisan.evaluate.terms import TermScorer
from iisan.files import read_manifest, settle, write_json
from iisan.names import ITEM_ID
from iisan.runs.run import Run

Format = Literal["vectors", "onnx", "hub"]
KIND, SCHEMA = "iisan-export", 1
#: Manifest of an export; the hub's own tools expect this name.
MANIFEST = "config.json"
VECTORS, TABLE, README = "vectors.safetensors", "vectors.parquet", "README.md"

_README = """\
# {title}

Made by `iisan export --format {format}` from a run of the recipe `{recipe}`, without users, histories or paths.

| file | holds |
|---|---|
| `vectors.parquet` | `item_id` and `vector`, {width} numbers in fp32, of {items:,} items |
| `vectors.safetensors` | the same numbers, part by part, in the same order of items |
| `config.json` | what follows here, and the test metrics of the run |
{files}
## Score

The score of an item is the dot product of a query vector, which stands for a history, and the item's vector{plus}.

| part | columns | in a query vector |
|---|---|---|
{parts}
{anchor}
## What the dot product lacks

{lacks}
It does not leave out the items of the history either. Measured with all terms and with the history left out as the
protocol says, {metrics} ({protocol}).
"""
_SUM = """
The anchor's part of a query sums the anchors of the last {length} items of a history, each step back weighing
{decay}:

```python
import numpy as np
import polars as pl

table = pl.read_parquet("vectors.parquet")
vectors = dict(zip(table["item_id"], table["vector"].to_numpy(), strict=True))
history = list(vectors)[:3]  # item ids, oldest first
steps = {decay} ** np.arange(min(len(history), {length}))[::-1]
query = np.zeros({width}, np.float32)
for first, last, weight in {anchors}:
    past = np.stack([vectors[item][first:last] for item in history[-{length}:]])
    query[first:last] = weight * (steps @ past)
query[-1] = {popularity}
```
"""


@dataclass(frozen=True)
class Part:
    """One part of the dense vectors of all items.

    Attributes:
        name: ``learned`` (``learned.1``, ``learned.2``, … for several members), ``anchor.`` and a modality, or
            ``popularity``.
        values: Its numbers, ``[N, width]``.
        weight: Factor that a query vector has on them.
    """

    name: str
    values: Tensor
    weight: float


def dense_parts(run: Run) -> list[Part]:
    """Return the parts of which the dense vectors of a run's items consist, in order."""
    several = len(run.members) > 1
    names = [f"learned.{number}" if several else "learned" for number in range(1, len(run.members) + 1)]
    scorer = run.scorer
    if not isinstance(scorer, TermScorer):
        return [Part(name, each.items, 1.0) for name, each in zip(names, run.members, strict=True)]
    weights = scorer.weights
    learned = zip(names, run.members, weights.learned, strict=True)
    parts = [Part(name, each.items, weight) for name, each, weight in learned]
    parts += [Part(f"anchor.{name}", each, weights.anchor[name]) for name, each in scorer.anchors.items()]
    return [*parts, Part("popularity", scorer.popularity[:, None], weights.popularity)]


def check_format(name: str) -> None:
    """Raise a ``ConfigError`` if there is no export format of that name."""
    if name not in get_args(Format):
        raise ConfigError(f"the export format {name!r}", f"one of {', '.join(get_args(Format))}", "choose one")


@contextmanager
def replacing(out: Path, kind: Format) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``out`` at the end, unless an error occurs.

    Raises:
        RunError: ``out`` is neither absent, nor empty, nor an export of the same format.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_export(out, kind))):
        got = f"'{out}' is neither empty nor an earlier export to {kind}"
        raise RunError(got, "a new or empty folder", "choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".part") as aside:
        new = Path(aside) / "new"
        new.mkdir()
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                settle(path)
        if out.exists():
            out.rename(Path(aside) / "old")
        new.rename(out)


def _is_export(folder: Path, kind: Format) -> bool:
    try:
        manifest = read_manifest(folder / MANIFEST, KIND, SCHEMA, RunError, "")
    except IisanError:
        return False
    return manifest.get("format") == kind


def manifest_of(run: Run, kind: Format, **facts: Any) -> dict[str, Any]:
    """Return the manifest of an export, with further facts."""
    header = {"kind": KIND, "schema": SCHEMA, "format": kind, "recipe": run.config.recipe}
    return {**header, "protocol": run.result["protocol"], "test": run.result["test"], **facts}


def headlines(test: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics at the cutoff 10, or at the largest if there is no 10."""
    cutoffs = {int(name.partition("@")[2]) for name in test if "@" in name}
    cutoff = 10 if 10 in cutoffs else max(cutoffs)
    return [name for name, value in test.items() if name.endswith(f"@{cutoff}") and value is not None]


def export_vectors(run: Run, out: Path) -> dict[str, Any]:
    """Write ids and dense vectors of all items that may be recommended, and return the manifest.

    Raises:
        RunError: ``out`` holds something else.
    """
    with replacing(out, "vectors") as folder:
        manifest = manifest_of(run, "vectors", **write_vectors(run, folder))
        (folder / README).write_text(readme(manifest, "Item vectors"), encoding="utf-8")
        write_json(folder / MANIFEST, manifest)
    return manifest


def write_vectors(run: Run, folder: Path) -> dict[str, Any]:
    """Write ids and vectors, and return the facts that a query needs."""
    ids, parts, scorer = run.items[ITEM_ID], dense_parts(run), run.scorer
    offered = torch.from_numpy(run.offered)
    tensors = {part.name: part.values.cpu()[offered].contiguous() for part in parts}
    save_file(tensors, folder / VECTORS)
    vectors = torch.cat(list(tensors.values()), dim=1)
    kept = ids.filter(pl.Series(run.offered))
    pl.DataFrame({ITEM_ID: kept, "vector": vectors.numpy()}).write_parquet(folder / TABLE)
    ends = list(accumulate(part.values.shape[1] for part in parts))
    facts: dict[str, Any] = {
        "items": len(kept),
        "width": ends[-1],
        "parts": [
            {"name": part.name, "columns": [end - part.values.shape[1], end], "weight": part.weight}
            for part, end in zip(parts, ends, strict=True)
        ],
        "history_length": scorer.history_length,
    }
    if isinstance(scorer, TermScorer):
        weights = scorer.weights
        facts["decay"] = weights.decay
        facts["not_in_vectors"] = {"transitions": weights.transitions, "repeats": weights.repeats}
    return facts


def readme(manifest: Mapping[str, Any], title: str, files: str = "") -> str:
    """Return the README of a folder of vectors, given its manifest, title and table rows of further files."""
    lacking = {name: weight for name, weight in manifest.get("not_in_vectors", {}).items() if weight}
    anchors = [part for part in manifest["parts"] if part["name"].startswith("anchor.")]
    length, test = manifest["history_length"], manifest["test"]
    return _README.format(
        title=title,
        files=files,
        plus=", plus the terms below" if lacking else "",
        parts="\n".join(_row(part) for part in manifest["parts"]),
        anchor=""
        if not anchors
        else _SUM.format(
            length=length,
            decay=manifest["decay"],
            width=manifest["width"],
            anchors=[(*part["columns"], part["weight"]) for part in anchors],
            popularity=manifest["parts"][-1]["weight"],
        ),
        lacks=_lacks(lacking),
        metrics=", ".join(f"{name.upper()} is {100 * test[name]:.2f}%" for name in headlines(test)),
        **{name: manifest[name] for name in ("format", "recipe", "width", "items", "protocol")},
    )


def _row(part: Mapping[str, Any]) -> str:
    name, (first, last), weight = part["name"], part["columns"], part["weight"]
    kind = name.partition(".")[0]
    what = {
        "learned": f"{weight:g} × the output of the sequence encoder, see `iisan export --format onnx`",
        "anchor": f"{weight:g} × the sum over the history, see below",
        "popularity": f"{weight:g}",
    }[kind]
    return f"| `{name}` | {first} to {last - 1} | {what} |"


def _lacks(lacking: Mapping[str, float]) -> str:
    what = {
        "transitions": "the smoothed share of this item among the next items after the history's last one",
        "repeats": "1 for an item that is among those that the model reads of the history",
    }
    if not lacking:
        return "Nothing: all other terms of this run have the weight 0."
    lines = [f"- {name}, {weight:+g} × {what[name]}" for name, weight in lacking.items()]
    return "\n".join(["These terms are sparse, and no part of a vector:", "", *lines, ""])
