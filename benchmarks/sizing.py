"""The page that sizes a large catalogue: hours, money and bytes, from rates in the records of other benchmarks.

    python benchmarks/sizing.py --out docs/sizing.md

Rates are processor seconds, each on the machine of its record; the price of an hour of a processor is assumed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from iisan.encoders.levels import parse_levels
from iisan.files import aside

RECORDS = Path(__file__).parent / "results"
#: Encoders: a content of each, its depth and width.
ENCODERS = {
    "title, MiniLM": (6, 384),
    "title, bert-base": (12, 768),
    "picture, vit-base": (12, 768),
    "title, decoder of 8 billion weights": (32, 4096),
}
PAGE = """# How much for how many

Hours, money and bytes for {items:,} items and {users:,} users, from rates in `benchmarks/results`. `python
benchmarks/sizing.py --items N --users U --price P --out FILE` writes this page for other numbers.

A rate is the seconds of **one virtual processor** of a shared server: extraction on an Intel Xeon, the
other rates on an AMD EPYC. Divide hours by the processors that you have: extraction and lists share nothing
between workers. Money is at {price} dollars an hour of one processor, which is an assumption, as is that workers
are busy throughout. Nothing here was measured at this size: the largest measured catalogue has a million items.
No rate of a GPU is in it; `benchmarks/gpu.py` measures yours.

## Encode every item once

Hours are `items × seconds / 3600`, bytes of the store `items × levels × (width × bytes of a number + scale)`: 2
bytes in bf16, the default, and 1 in int8 with 4 for the scale of a level.

| one content | seconds | hours | dollars | levels × width | bf16, TB | int8, TB |
|---|---:|---:|---:|---:|---:|---:|
{encoding}

Titles have 30 tokens (those of MiniLM their own length), pictures 256² pixels. Fewer levels (`--levels`) take
less space. The network carries the contents once, and the states.

## Lists for every user

A list costs seconds that grow with what is scored. Full scoring reads all vectors: hours are `users × items ×
{full:.2e} s / 3600`. Cells of FAISS (`iisan index`) read a fixed share of them, here 32 of 4,000 cells, with a
recall of {recall:.1%}: `users × items × {cells:.2e} s / 3600`. How small a share still finds the best of a
larger catalogue was not measured.

| lists of ten | hours | dollars |
|---|---:|---:|
{lists}

Vectors of width {width} take {vectors:,.0f} GB in fp32 (`items × width × 4` bytes), which every process that
searches maps, and the cells as much again. That is beyond one ordinary machine: lists of a catalogue of this
size need its items divided among machines and the best of their lists merged, which iisan does not do. A file of
all lists takes {file:,.0f} GB ({row:.1f} bytes a row).

## Train

The cost of a step does not depend on the catalogue (a step at a million items took 1.24 times one at 20
thousand, most of it for reading), so training costs `epochs × windows / batch size × seconds a step`. A sample
of users suffices to train on: every window is a user's, and items are encoded from their states whether they
were trained on or not.

The anchor of `similarity` and `default` is fitted on all items: whitening and projection {whitening:.0f} s per
million items and modality, on two processors, and grow with the catalogue; similar items took {similar:.0f} s
for a million, and grow faster. Memory was {peak:.1f} GB beside the states at a million items, and grows with
them: at this size the anchor's part has to be fitted on a sample of the items, which iisan does not offer yet.

## What this says

Encoding is done once and divides among any number of workers ([cluster](cluster.md)). Scoring every item for
every user is what does not scale: an index is not an option but a need, and the next thing to divide.
"""


def record(name: str) -> dict[str, Any]:
    """What a benchmark recorded."""
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000_000)
    parser.add_argument("--users", type=int, default=1_000_000_000)
    parser.add_argument("--price", type=float, default=0.04, help="of an hour of one processor")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    items, users, price = arguments.items, arguments.users, arguments.price
    minilm, shapes = record("extraction")["minilm"], record("extraction")["utilisation"]
    per_content = dict(
        zip(
            ENCODERS,
            [
                minilm["seconds"]["iisan bf16"]["processor"]["median"] / minilm["titles"],
                *(shapes[kind]["seconds"]["bf16"]["processor"]["median"] / shapes[kind]["contents"]
                  for kind in ("text", "image")),
                record("large")["whole"]["seconds_an_item"] * record("large")["machine"]["cores"],
            ],
            strict=True,
        )
    )  # fmt: skip
    encoding = []
    for name, (depth, width) in ENCODERS.items():
        hours, levels = items * per_content[name] / 3600, len(parse_levels("layerdrop", depth))
        sizes = (items * levels * (width * number + scale) / 1e12 for number, scale in ((2, 0), (1, 4)))
        encoding.append(
            f"| {name} | {per_content[name]:.3g} | {hours:,.0f} | {price * hours:,.0f} | {levels} × {width:,} | "
            + " | ".join(f"{size:,.2f}" for size in sizes)
            + " |"
        )
    batch, index = record("batch"), record("index")
    full = batch["seconds"]["batch"]["processor"]["median"] / batch["users_of_a_turn"] / batch["items"]
    unfiltered = next(each for each in index["filters"] if each["kept"] == 1.0)
    cells = unfiltered["seconds"]["ivf"]["processor"]["median"] / index["items"] / index["queries"]
    lists = [
        f"| {name} | {hours:,.0f} | {price * hours:,.0f} |"
        for name, hours in (
            ("full scoring", users * items * full / 3600),
            ("cells, the same share of them read", users * items * cells / 3600),
            ("building the cells, once", items * index["seconds_of_building"] / index["items"] / 3600),
        )
    ]
    large = record("anchor")["catalogues"][-1]
    row = batch["long"]["bytes_of_the_file"] / batch["long"]["rows"]
    page = PAGE.format(
        items=items,
        users=users,
        price=price,
        encoding="\n".join(encoding),
        lists="\n".join(lists),
        full=full,
        cells=cells,
        recall=unfiltered["recall@10"],
        width=index["width"],
        vectors=items * index["width"] * 4 / 1e9,
        file=users * 10 * row / 1e9,
        row=row,
        whitening=large["stages"]["whitening"] + large["stages"]["projection"],
        similar=large["stages"]["similar items"],
        peak=large["bytes_above_inputs"] / 1e9,
    )
    with aside(arguments.out) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
