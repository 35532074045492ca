"""The encoders of a finished run as ONNX graphs, beside the vectors of its items."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from iisan.errors import IisanError
from iisan.evaluate.terms import TermScorer, popularity
from iisan.files import write_json
from iisan.runs.run import Run
from iisan.serve.export import MANIFEST, README, manifest_of, readme, replacing, write_vectors
from iisan.serve.graphs import (
    AnchorGraph,
    ItemGraph,
    QueryGraph,
    check_extra,
    save_graph,
    trained_items,
    trained_sequence,
)
from iisan.serve.items import members_of
from iisan.serve.origins import origins
from iisan.states.configured import anchor_config, state_shapes

QUERY, ITEMS, ANCHOR = "query.onnx", "items.onnx", "anchor.onnx"
_GRAPHS = """
## Graphs

Inputs and outputs are in fp32, masks are booleans, and the first dimension is that of a batch.

{graphs}

```python
import numpy as np
import onnxruntime
import polars as pl

table = pl.read_parquet("vectors.parquet")
items = dict(zip(table["item_id"], table["vector"].to_numpy(), strict=True))
history = list(items)[:3]  # item ids, oldest first
vectors, mask = np.zeros((1, {length}, {width}), np.float32), np.zeros((1, {length}), bool)
past = history[-{length}:]
vectors[0, -len(past) :], mask[0, -len(past) :] = [items[item] for item in past], True
session = onnxruntime.InferenceSession("query.onnx", providers=["CPUExecutionProvider"])
(query,) = session.run(None, {{"vectors": vectors, "mask": mask}})
scores = table["vector"].to_numpy() @ query[0]
```

The vector of a new item consists of the outputs of these graphs, in the order of the parts above{popular}.
"""


def export_onnx(run: Run, out: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Write the vectors of ``export_vectors`` and the encoders of a run as ONNX graphs, and return the manifest.

    The item encoder of a member whose states are not at hand is left out, with a message.

    Args:
        run: A finished run, whose configuration says where its stores are now.
        out: Folder of the export.
        say: Callback for messages.

    Raises:
        RunError: ``out`` holds something else.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    check_extra()
    with replacing(out, "onnx") as folder:
        facts = write_vectors(run, folder)
        graphs = [_write_query(run, folder), *_write_items(run, folder, say)]
        if run.anchoring is not None:
            graphs.append(_write_anchor(run, folder))
        manifest = manifest_of(run, "onnx", **facts, graphs=graphs, states=origins(run))
        text = readme(manifest, "Item vectors and encoders", "".join(map(_row, graphs)))
        (folder / README).write_text(text + _described(manifest, run), encoding="utf-8")
        write_json(folder / MANIFEST, manifest)
    return manifest


def _write_query(run: Run, folder: Path) -> dict[str, Any]:
    members, scorer, length = members_of(run), run.scorer, run.scorer.history_length
    weights, anchors = None, dict[str, int]()
    if isinstance(scorer, TermScorer):
        weights, anchors = scorer.weights, {name: each.shape[1] for name, each in scorer.anchors.items()}
    widths = [config.items.embedding_dim for config, _ in members]
    graph = QueryGraph([trained_sequence(*member) for member in members], widths, weights, anchors, length)
    width = len(graph.factors)
    inputs = {"vectors": torch.zeros(3, length, width), "mask": torch.ones(3, length, dtype=torch.bool)}
    save_graph(graph, inputs, "query", folder / QUERY)
    return {
        "file": QUERY,
        "inputs": {"vectors": ["batch", length, width], "mask": ["batch", length]},
        "output": "query",
    }


def _write_items(run: Run, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Write the item encoder of each member that reads contents."""
    graphs, members = [], members_of(run)
    for number, (config, weights) in enumerate(members, start=1):
        name, file = ("learned", ITEMS) if len(members) == 1 else (f"learned.{number}", f"items.{number}.onnx")
        if not config.modalities:
            say(f"'{name}' knows items by their ids only: it has no item encoder")
            continue
        try:
            shapes = state_shapes(config)
        except IisanError as error:
            say(f"the item encoder of '{name}' is left out: {error}")
            continue
        graph = ItemGraph(
            trained_items(config, weights, shapes), list(shapes), config.sequence.similarity == "cosine"
        )
        sizes = {each: (len(levels), width) for each, (levels, width) in shapes.items()}
        levels = {each: list(levels) for each, (levels, _) in shapes.items()}
        graphs.append({**_write(graph, sizes, name, folder / file), "levels": levels, "source": config.source})
    return graphs


def _write_anchor(run: Run, folder: Path) -> dict[str, Any]:
    assert run.anchoring is not None, "the caller checks"
    whitenings = run.anchoring.whitenings
    sizes = {name: (each.mean.shape[0], each.mean.shape[1]) for name, each in whitenings.items()}
    described = _write(AnchorGraph(whitenings), sizes, "anchors", folder / ANCHOR)
    try:
        shapes = state_shapes(anchor_config(run.config))
    except IisanError:
        return described
    return {**described, "levels": {name: list(levels) for name, (levels, _) in shapes.items()}}


def _write(
    graph: ItemGraph | AnchorGraph, sizes: Mapping[str, tuple[int, int]], output: str, path: Path
) -> dict[str, Any]:
    states = {name: torch.zeros(3, *size) for name, size in sizes.items()}
    masks = {f"has_{name}": torch.ones(3, dtype=torch.bool) for name in sizes}
    save_graph(graph, states | masks, output, path)
    inputs = {name: ["batch", *size] for name, size in sizes.items()} | {name: ["batch"] for name in masks}
    return {"file": path.name, "inputs": inputs, "output": output}


def _row(graph: Mapping[str, Any]) -> str:
    what = "encoder of queries" if graph["file"] == QUERY else f"hidden states → `{graph['output']}` of new items"
    return f"| `{graph['file']}` | {what} |\n"


def _described(manifest: Mapping[str, Any], run: Run) -> str:
    lines = []
    for graph in manifest["graphs"]:
        inputs = ", ".join(f"`{name}` {size}".replace("'", "") for name, size in graph["inputs"].items())
        lines.append(f"- `{graph['file']}`: {inputs} → `{graph['output']}`")
        for name, levels in graph.get("levels", {}).items():
            lines.append(f"    - `{name}`: levels {levels} of {_encoder(manifest['states'][name], graph)}")
    popular = ""
    if isinstance(run.scorer, TermScorer):
        # That of one more item, which has no interactions.
        of_new = float(popularity(pad(run.scorer.counts, (0, 1)))[-1])
        popular = f", and of the popularity {of_new:g}, which all items without interactions have"
    sizes = {"length": manifest["history_length"], "width": manifest["width"]}
    return _GRAPHS.format(graphs="\n".join(lines), popular=popular, **sizes)


def _encoder(origin: Mapping[str, Any], graph: Mapping[str, Any]) -> str:
    tuned = ", as this run tuned it (not part of this folder)" if graph.get("source", "cached") != "cached" else ""
    pooling = f", pooling {origin['pooling']}" if origin.get("pooling") else ""
    return f"{origin['encoder']}{tuned}{pooling}"
