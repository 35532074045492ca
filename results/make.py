"""Write results/README.md, two tables of the README and one of docs/method.md, from the records beside this file.

    python results/make.py

No number in them comes from anywhere else.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iisan.experiments.charts import decline_lines, svg
from iisan.experiments.records import markdown, read_records
from iisan.experiments.tables import EXPERIMENTS
from iisan.legacy import new_name, new_value

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
METHOD = HERE.parent / "docs" / "method.md"
#: Rows of the records of ``anchor.py`` and their titles, in the order of the tables.
ANCHORED = {
    "similarity": "`similarity`: no training",
    "ids, learned part alone": "`ids` (SASRec) without the anchor",
    "ids": "`ids` with the anchor",
    "frozen, learned part alone": "`frozen` (a projection) without the anchor",
    "frozen": "`frozen` with the anchor",
    "default, learned part alone": "`default` (IISAN) without the anchor",
    "default": "`default` with the anchor",
}
MARKS = {
    "real": (
        "<!-- real-data table, written by results/make.py from results/scientific/ -->",
        "<!-- end of the real-data table -->",
    ),
    "anchor": (
        "<!-- table of the anchor, written by results/make.py from results/scientific/anchor.json -->",
        "<!-- end of the table of the anchor -->",
    ),
    "demo": (
        "<!-- demo table, written by results/make.py from results/demo/ -->",
        "<!-- end of the demo table -->",
    ),
    "towers": (
        "<!-- table of towers, written by results/make.py from results/demo/towers.json -->",
        "<!-- end of the table of towers -->",
    ),
}
METRICS = ("hr@10", "ndcg@10", "cold_hr@10", "coverage@10")
SCIENTIFIC = """# Results

Written by `make.py` from the JSON records in the folders beside it.

## Amazon "Industrial & Scientific", titles only: with and without the anchor

12,076 users, 20,314 items, 81,711 interactions (last 13 of each user); text encoder all-MiniLM-L6-v2 (6 blocks,
384 wide), frozen. Leave-one-out, history excluded, the target too (exclude-all). Machine: {machine},
two cores, two runs at a time with one thread each. Commands: [`scientific.sh`](scientific.sh). Recorded when the
popularity of items without interactions was 0; today it is the mean of the others.

"""
NEAR_DUPLICATES = """
### Near-duplicates in lists

What `near_duplicates=C` leaves out of lists of ten: items whose anchor has a cosine above C with that of an item
higher in the list. Runs of the table above (seed 0) with their weights, scored by today's code, on the {queries:,}
validation queries under the policy unseen; in %. Commands: [`near_duplicates.py`](near_duplicates.py).

| | C | lists with such a pair | items that are as near to one of the history | targets that are | {names} |
|---|---|---|---|---|---|---|---|
"""
NEAR_DUPLICATES_FOOT = """
Below 0.99, lists hold more variants of what was bought than people buy next. Leaving out copies (0.99) costs next
to nothing; lower thresholds cost hits, of cold targets too, and the lists of all users cover fewer items.
"""
HEAD = """
## Amazon "Industrial & Scientific": earlier settings, without an anchor

The same data and encoder. Recorded before there was an anchor: `default` is what the first search below chose, and
`reference` ran on states of its own pooling.
Protocol of every row: {protocol};
the epoch is chosen by validation HR@10. In %, mean ± standard deviation over seeds.

| method | seeds | {names} | trained parameters | best epoch | s / epoch |
|---|---|---|---|---|---|---|---|---|
"""
FOOT = """
`default` is IISAN (the intra-modal tower, as text is the only modality); `reference` is the same method
with the settings of the authors' published code; `frozen` projects the encoder's last state and trains
like `default`; `ids` learns an embedding per item (SASRec) and trains like `default`. Cold targets are
items without a training interaction. Machine: {machine}, {cores} cores, no GPU. Threads used: {threads};
with one thread two runs shared the machine, so seconds (training alone) compare methods only roughly.

### How `default` was chosen

On validation alone, seed 0, stopping after 5 epochs without improvement; the trials in the order in which
they were run, each a change to {start}. The trial with the best validation HR@10 became
`default`. One more, 3,200 negatives, was stopped early because an epoch took three times as long. An earlier
and shorter search had looked at test figures too; it decided the starting point (masked mean of LayerDrop's
states, normalised levels, negatives from trained items), so that part of the choice is not clean.

| changes | HR@10 | NDCG@10 | best epoch |
|---|---|---|---|
"""

LEARNED_PART = """
### How the learned part of today's `default` was chosen

On validation alone and without the anchor, in the order in which they were run; each a change to the `default`
that the search above chose. Trials marked as stopped were ended by hand. The last settings became `default`: one
layer, fewer negatives and larger batches halve the time of an epoch, centred levels make the cosine learn, and
averaged weights were better for each of three seeds. `frozen` got the same settings and fewer trials.

| changes | seed | HR@10 | NDCG@10 | best epoch |
|---|---|---|---|---|
"""
TWO_TEXTS = """
### Two texts of different depth and width

The same titles a second time, as vectors of another kind: hashed character n-grams reduced by an SVD to 256
numbers ([`ngrams.py`](ngrams.py)), imported as a modality with one level beside MiniLM's four levels of 384.
Recipe `default` except for what is named. Machine of the rows that are not in the table above: {machine}.

| modalities | seeds | {names} | trained parameters | validation HR@10 |
|---|---|---|---|---|---|---|---|
"""
#: Name of the records -> modalities that they were trained on.
TEXTS = {
    "default": "MiniLM",
    "ngrams": "n-grams",
    "both": "MiniLM and n-grams",
    "nonorm": "MiniLM, `items.level_norm=none`",
}

EXPERIMENTS_HEAD = """
## The paper's tables at demo scale

`iisan experiment NAME` on the built-in catalogue, **generated data**, four epochs, one seed. `table-3` to
`table-7` and `figure-4` together took 31 minutes, one after the other, on two cores of an AMD EPYC, with
other work now and then; the rest ran on one core of the same machine, beside other work. The tables show how to
run and read a comparison, and what methods cost; four epochs on generated data say little about which method is
better (a repetition whose losses agreed to three digits chose another epoch and moved a row by 1.6 points).
The page [experiments.html](experiments.html) has all records with charts.
"""
VERSA_HEAD = """
## IISAN-Versa at demo scale

The questions of IISAN-Versa on the same generated data; four epochs again, but at most 40 for `versa-microlens`,
whose row with both modalities was still improving: learning rates are low, and an epoch has ten steps. The scaling
has three seeds. Seconds are rough, as the machine had other work.
"""
COSTS = """
Seconds per epoch in IISAN, table 3 (A6000, batch 32, bert-base and vit-base): {paper}. Here: {here}. The
same comparison with encoders of that size is in [benchmarks](../benchmarks/README.md).
"""
#: Seconds per epoch on Scientific (IISAN, table 3).
PAPER_SECONDS = {
    "FFT": 443,
    "Adapter": 354,
    "LoRA": 378,
    "BitFit": 403,
    "IISAN (uncached)": 179,
    "IISAN (cached)": 22,
}
EXTENDED_HEAD = """
## More modalities, and missing titles

The extended catalogue (`iisan demo --extended`, **generated data**): every product also has a tone and a clip.
Users have tastes in the timbre of the tone and in the direction of motion of the clip, which title and picture
do not reveal. Both weigh as much as shape or brand, which was set before any result was seen and not changed.
Frozen encoders: a BERT, a ViT, an AST and a VideoMAE, all tiny. {count} seeds, each with its own catalogue, 12
epochs, one thread. Commands: [`extended.sh`](extended.sh). Protocol of every row: {protocol}. In %, mean ±
standard deviation over seeds.{remark}

| model | HR@10 | NDCG@10 | cold HR@10 | HR@10 over the row above, seed by seed |
|---|---|---|---|---|
"""
#: Added to a recorded protocol that is no longer offered.
KEEP_TARGET = (
    "\n`keep-target` is a policy of version 0.1; as no user interacts with an item twice here, `unseen` gives the "
    "same numbers."
)
EXTENDED_ROWS = {
    "IISAN, text only": "text",
    "IISAN, text and images": "text, image",
    "IISAN, no clips": "text, image, audio",
    "IISAN": "text, image, audio, video",
}
REFERENCES = ("most popular", "oracle (best achievable)")
ROBUST = {"iisan": "0", "iisan-modality-dropout": "0.3"}
NO_TEXT_HEAD = """
### Titles removed

The text of a share of all items is removed after training, for the model of all four modalities, trained without
and with `training.modality_dropout=0.3`; {count} seeds. HR@10 in %, and in brackets relative to the same model
with all titles. Training stopped after 12 epochs for both, though modality dropout learns more slowly; whether
more epochs change the result was not tried.

| modality dropout | {rates} |
|---|{lines}
"""


def remark(protocol: str) -> str:
    """Remark on a protocol that was recorded on the generated catalogue, in a line of its own."""
    return KEEP_TARGET if "keep-target" in protocol else ""


def extended() -> str:
    """The tables of the extended catalogue; also draws the chart of missing titles."""
    folder = HERE / "extended"
    demos = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
    if not demos:
        return ""
    protocol = demos[0]["protocol"]
    text = EXTENDED_HEAD.format(count=len(demos), protocol=protocol, remark=remark(protocol))
    above: list[float] = []
    for name in (REFERENCES[0], *EXTENDED_ROWS, REFERENCES[1]):
        found = [demo["metrics"][name] for demo in demos]
        cells = [spread([each[key] for each in found]) for key in ("hr@10", "ndcg@10", "cold_hr@10")]
        values = [each["hr@10"] for each in found] if name in EXTENDED_ROWS else []
        gains = [f"{100 * (value - before):+.2f}" for value, before in zip(values, above, strict=False)]
        above = values
        text += f"| {' | '.join([EXTENDED_ROWS.get(name, name), *cells, ', '.join(gains) or '–'])} |\n"
    return text + no_text(folder)


def no_text(folder: Path) -> str:
    """The table of missing titles, and its chart."""
    seeds = [json.loads(path.read_text()) for path in sorted(folder.glob("no-text-seed*.json"))]
    runs = {name: [run["points"] for seed in seeds for run in seed if run["run"] == name] for name in ROBUST}
    rates = [point["rate"] for point in runs["iisan"][0]]
    text = NO_TEXT_HEAD.format(
        count=len(seeds), rates=" | ".join(f"{rate:.0%} removed" for rate in rates), lines="---|" * len(rates)
    )
    means = {}
    for name, label in ROBUST.items():
        columns = [list(column) for column in zip(*runs[name], strict=True)]
        values = [[point["hr@10"] for point in column] for column in columns]
        kept = [
            statistics.mean(v / whole for v, whole in zip(column, values[0], strict=True)) for column in values
        ]
        cells = [f"{spread(column)} ({share:.0%})" for column, share in zip(values, kept, strict=True)]
        text += f"| {label} | {' | '.join(cells)} |\n"
        means[f"modality dropout {label}"] = [statistics.mean(column) for column in values]
    chart = svg(decline_lines(means, rates, "no text", "HR@10"))
    (folder / "no-text.svg").write_text(chart, encoding="utf-8")
    return text + "\n![HR@10 over the share of items without text](extended/no-text.svg)\n"


def experiments() -> str:
    """The tables of the recorded experiments."""
    folder = HERE / "experiments"
    if not folder.exists():
        return ""
    records = read_records([folder])
    text = EXPERIMENTS_HEAD
    for name, rows in EXPERIMENTS.items():
        chosen = [record for record in records if record.experiment == name]
        if not chosen:
            continue
        if name.startswith("versa-") and VERSA_HEAD not in text:
            text += VERSA_HEAD
        title = (rows.__doc__ or "").splitlines()[0]
        text += f"\n### {name}: {title}\n\n{markdown(chosen, name)}"
        if name == "table-3":
            seconds = {record.row: record.efficiency.get("seconds_per_epoch") for record in chosen}
            text += COSTS.format(
                paper=", ".join(f"{row} {value}" for row, value in PAPER_SECONDS.items()),
                here=", ".join(f"{row} {seconds[row]:.1f}" for row in PAPER_SECONDS if seconds.get(row)),
            )
    return text


def two_texts(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """The table of text modalities on the real data."""
    if not runs["both"]:
        return ""
    text = TWO_TEXTS.format(machine=runs["both"][0]["machine"]["processor"], names=" | ".join(map(label, METRICS)))
    for name, title in ((name, title) for name, title in TEXTS.items() if name in runs):
        cells = [spread([record["test"][key] for record in runs[name]]) for key in METRICS]
        parameters = f"{runs[name][0]['trainable_parameters']:,}"
        validation = spread([record["validation"]["hr@10"] for record in runs[name]])
        text += f"| {' | '.join([title, str(len(runs[name])), *cells, parameters, validation])} |\n"
    return text


def label(metric: str) -> str:
    """``cold_hr@10`` -> ``cold HR@10``."""
    cold, _, name = metric.rpartition("_")
    return f"{cold} {name if 'coverage' in name else name.upper()}".strip()


def settings(values: Mapping[str, Any]) -> list[str]:
    """``KEY=VALUE`` of recorded settings, under today's names."""
    names = {key: new_name(key) or key for key in values}
    return [f"`{names[key]}={new_value(names[key], value)}`" for key, value in values.items()]


def spread(values: list[float], scale: float = 100, digits: int = 2) -> str:
    """Mean, and deviation where there are several values."""
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Read the records, write both files."""
    folder = HERE / "scientific"
    runs = defaultdict(list)
    for path in sorted(folder.glob("*-seed*.json")):
        runs[path.stem.rpartition("-seed")[0]].append(json.loads(path.read_text()))
    rows = []
    baselines = json.loads((folder / "baselines.json").read_text())
    for name, metrics in list(baselines.items())[:-1]:
        cells = [f"{100 * metrics[key]:.2f}" for key in METRICS]
        rows.append([name, "–", *cells, "–", "–", "–"])
    protocols = {metrics["protocol"] for metrics in baselines.values()}
    recipes = [name for name in ("ids", "frozen", "reference", "default") if name in runs]
    for name in recipes:
        records = runs[name]
        cells = [spread([record["test"][key] for record in records]) for key in METRICS]
        seconds = [record["train_seconds"] / record["epochs"] for record in records]
        rows.append(
            [
                name,
                str(len(records)),
                *cells,
                f"{records[0]['trainable_parameters']:,}",
                ", ".join(str(record["best_epoch"]) for record in records),
                f"{statistics.median(seconds):.1f}",
            ]
        )
    protocols |= {record["protocol"] for records in runs.values() for record in records}
    (protocol,) = protocols
    record = runs["default"][0]
    anchored = json.loads((folder / "anchor.json").read_text())
    text = SCIENTIFIC.format(machine=anchored["machine"]["processor"]) + anchor_table(anchored) + "\n"
    text += near_duplicates()
    text += HEAD.format(protocol=protocol, names=" | ".join(map(label, METRICS)))
    text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    machine = record["machine"]
    search = json.loads((folder / "search.json").read_text())
    text += FOOT.format(
        machine=machine["processor"],
        cores=machine["cores"],
        threads=", ".join(
            f"{name} {'/'.join(str(record['threads']) for record in runs[name])}" for name in recipes
        ),
        start=", ".join(settings(search["start"])),
    )
    for trial in search["trials"]:
        changes = settings(trial["changes"])
        name = [] if trial["recipe"] == "default" else [f"recipe `{trial['recipe']}`"]
        cells = [", ".join([*name, *changes]) or "none", *(f"{100 * v:.2f}" for v in trial["validation"].values())]
        text += f"| {' | '.join([*cells, str(trial['best_epoch'])])} |\n"
    text += LEARNED_PART
    for trial in search["learned_part"]["trials"]:
        name = [] if trial["recipe"] == "default" else [f"recipe `{trial['recipe']}`"]
        values = [f"{100 * value:.2f}" for value in trial["validation"].values()]
        epochs = f"{trial['best_epoch']} of {trial['epochs']}{', stopped' if trial.get('stopped') else ''}"
        row = [", ".join([*name, *settings(trial["changes"])]), str(trial["seed"]), *values, epochs]
        text += f"| {' | '.join(row)} |\n"
    text += two_texts(runs)
    text += experiments() + extended()
    (HERE / "README.md").write_text(text, encoding="utf-8")
    METHOD.write_text(between(METHOD.read_text(encoding="utf-8"), "towers", towers_table()), encoding="utf-8")
    readme = between(README.read_text(encoding="utf-8"), "real", real_table(baselines, runs, protocol))
    readme = between(readme, "anchor", anchor_table(anchored))
    README.write_text(between(readme, "demo", demo_table()), encoding="utf-8")


def between(page: str, name: str, text: str) -> str:
    """The page with a text between the marks of that name."""
    first, last = MARKS[name]
    before, rest = page.split(first)
    return f"{before}{first}\n\n{text}\n\n{last}{rest.split(last)[1]}"


def anchor_table(record: Mapping[str, Any]) -> str:
    """The table of the real data with and without the anchor, on validation."""
    keys = METRICS[:2]
    lines = [f"| | {' | '.join(f'validation {label(key)}' for key in keys)} |", "|---|---|---|"]
    for name, title in ANCHORED.items():
        runs = record["rows"][name]["runs"]
        cells = [spread([run["validation"][key] for run in runs]) for key in keys]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    count = len(record["rows"]["default"]["runs"])
    return "\n".join(lines) + (
        f"\n\nIn %, trained rows mean ± deviation over {count} seeds. Epochs and weights were chosen on the same "
        "validation subset, and\nthe test subset has not been read with these settings yet."
    )


def near_duplicates() -> str:
    """The table of lists with and without near-duplicates."""
    runs = json.loads((HERE / "scientific" / "near-duplicates.json").read_text())
    keys = ("hr@10", "cold_hr@10", "coverage@10")
    shares = ("lists_with_a_pair", "items_near_the_history", "targets_near_the_history")
    text = NEAR_DUPLICATES.format(queries=runs[0]["queries"], names=" | ".join(map(label, keys)))
    for run in runs:
        for threshold, row in {"–": run["metrics"], **run["thresholds"]}.items():
            cells = [f"{100 * row[key]:.2f}" if key in row else "–" for key in (*shares, *keys)]
            text += f"| {' | '.join(['`' + run['recipe'] + '`', threshold, *cells])} |\n"
    return text + NEAR_DUPLICATES_FOOT


def real_table(baselines: Mapping[str, Any], runs: Mapping[str, list[dict[str, Any]]], protocol: str) -> str:
    """The README's table of the real data."""
    keys = METRICS[:3]
    lines = [f"| | {' | '.join(map(label, keys))} |", "|---|---|---|---|"]
    for name in ("most popular", "Markov", "last item, frozen states"):
        lines.append(f"| {name} | {' | '.join(f'{100 * baselines[name][key]:.2f}' for key in keys)} |")
    names = {
        "ids": "`ids` (SASRec)",
        "frozen": "`frozen`: a projection of frozen states",
        "default": "`default`: IISAN",
    }
    for name, title in names.items():
        cells = [spread([record["test"][key] for record in runs[name]]) for key in keys]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    count = len(runs["default"])
    return "\n".join(lines) + f"\n\nIn %, trained rows mean ± deviation over {count} seeds; {protocol}."


def demo_table() -> str:
    """The README's table of the recorded demos."""
    demos = [json.loads(path.read_text()) for path in sorted((HERE / "demo").glob("seed*.json"))]
    lines = ["| | HR@10 | NDCG@10 | HR@10, cold targets |", "|---|---|---|---|"]
    for name in demos[0]["metrics"]:
        cells = [
            spread([demo["metrics"][name][key] for demo in demos]) for key in ("hr@10", "ndcg@10", "cold_hr@10")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    best, protocol = "oracle (best achievable)", demos[0]["protocol"]
    share = statistics.mean(demo["metrics"]["IISAN"]["hr@10"] / demo["metrics"][best]["hr@10"] for demo in demos)
    lines.append(
        f"\nIn %, mean ± deviation over the seeds 0 to {len(demos) - 1} (`iisan demo --seed N`, each with its own "
        f"catalogue);\n{protocol}.{remark(protocol)}\nIISAN reaches {share:.0%} of the oracle's HR@10."
    )
    return "\n".join(lines)


def towers_table() -> str:
    """The table of docs/method.md: which towers, after four epochs and at the best one."""
    runs = defaultdict(list)
    for record in json.loads((HERE / "demo" / "towers.json").read_text()):
        runs[record["settings"], record["towers"]].append(record)
    lines = ["| settings | towers | HR@10, epoch 4 | HR@10, best epoch | NDCG@10 | best epochs |"]
    lines.append("|---|---|---|---|---|---|")
    for names, records in runs.items():
        early = spread([record["curve"][3] for record in records])
        best = [spread([record["validation"][key] for record in records]) for key in METRICS[:2]]
        epochs = ", ".join(str(record["best_epoch"]) for record in records)
        lines.append(f"| {' | '.join([*names, early, *best, epochs])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
