"""Write results/README.md, two tables of the README and one of docs/method.md, from the records beside this file.

    python results/make.py

No number in them comes from anywhere else.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from iisan.experiments.charts import decline_lines, svg
from iisan.experiments.records import Record, markdown, read_records, table
from iisan.experiments.tables import EXPERIMENTS
from iisan.legacy import new_name, new_value
from iisan.runs.anchoring import LEARNED

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
    "two": "`default` and `ids` joined",
    "three": "`default`, `frozen` and `ids` joined",
    "paper": "IISAN with the settings of the paper",
    "reference": "IISAN with the settings of the published code",
}
BASELINES = ("most popular", "recently popular", "Markov", "last item, frozen states")
#: Rows that are in the results only.
DETAILS = ("recently popular", "last item, frozen states", "two", "reference")
#: Pairs of rows that are tested.
TESTED = (
    ("default", "similarity"),
    ("default", "default, learned part alone"),
    ("frozen", "frozen, learned part alone"),
    ("ids", "ids, learned part alone"),
    ("default", "frozen"),
    ("default, learned part alone", "frozen, learned part alone"),
    ("default, learned part alone", "similarity"),
    ("two", "default"),
    ("three", "default"),
)
#: Key of a metric -> its heading.
COLUMNS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "cold_hr@10": "HR@10, cold", "warm_hr@10": "HR@10, warm"}
#: Published for the test rows of the public benchmark: HR@10 and NDCG@10 in %.
PUBLISHED = {
    "MiniOneRec (a large language model, fine-tuned with reinforcement learning)": (15.86, 11.67),
    "S-DPO (a large language model)": (15.24, 10.82),
    "TIGER": (13.21, 9.08),
    "SASRec": (10.88, 8.06),
}
MARKS = {
    "anchor": (
        "<!-- table of the anchor, written by results/make.py from results/scientific/anchor.json -->",
        "<!-- end of the table of the anchor -->",
    ),
    "industrial": (
        "<!-- comparison with published models, written by results/make.py from results/industrial/ -->",
        "<!-- end of the comparison -->",
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

## Amazon "Industrial & Scientific" as published with the IISAN paper, titles only

12,076 users, 20,314 items, 81,711 interactions (last 13 of each user); text encoder all-MiniLM-L6-v2 (6 layers,
384 wide), frozen; `paper` and `reference` on states of their own pooling. {protocol}. Machine: {machine}, two
cores, two runs at a time with one thread each, beside other work. Commands: [`scientific.sh`](scientific.sh).

Epochs and weights of the terms were chosen on validation, settings as told below, and the test subset was read
once, after that. (Earlier versions of `default` were tested as well, and the test figures of two discarded trials
came into view; nothing was chosen by them.) Cold targets are items without a training interaction.

"""
NEAR_DUPLICATES = """
### Near-duplicates in lists

What `near_duplicates=C` leaves out of lists of ten: items whose anchor has a cosine above C with that of an item
higher in the list. Runs of the table above (seed 0), on the {queries:,} validation queries under the policy
unseen; in %. Commands: [`near_duplicates.py`](near_duplicates.py).

| | C | lists with such a pair | items that are as near to one of the history | targets that are | {names} |
|---|---|---|---|---|---|---|---|
"""
NEAR_DUPLICATES_FOOT = """
Below 0.99, lists hold more variants of what was bought than people buy next. Leaving out copies (0.99) costs next
to nothing; lower thresholds cost hits, of cold targets too, and the lists of all users cover fewer items.
"""
COLD_ITEMS = """
### Items that come after training

Of the {cold_items:,} items without a training interaction, a random half ({held_out:,}) was held out before
anything was fitted: neither the whitening nor any other term, nor the network, nor the choice of the epoch knew
them or a query for them. They were then added by `add-items`, and the terms got the weights of the run of the
table above. So the same test queries rank the same catalogue as there, and the hit rates of both can be compared
target by target. {seeds} Commands: [`cold_items.py`](cold_items.py).

| | targets | number | HR@10 | with all items there from the start | difference |
|---|---|---|---|---|---|
"""
COLD_ROWS = {
    "added": "held out and added",
    "stayed": "the other half of the cold items",
    "warm": "items with training interactions",
}
COLD_ITEMS_FOOT = """
HR@10 in %, with 95% intervals by bootstrap over users; differences in points, paired. The intervals are for other
users given these trained models; that two trainings of `default` differ comes on top. Between the halves, whose
targets are not the same: {halves}.
"""
SEARCHES = """
### How the first `default` was chosen

On validation alone, seed 0, without an anchor, stopping after 5 epochs without improvement; the trials in the
order in which they were run, each a change to {start}. The trial with the best validation HR@10 became
`default`. One more, 3,200 negatives, was stopped early because an epoch took three times as long. An earlier and
shorter search had looked at test figures too; it decided the starting point (masked mean of LayerDrop's states,
normalised levels, negatives from trained items), so that part of the choice is not clean.

| changes | HR@10 | NDCG@10 | best epoch |
|---|---|---|---|
"""
INDUSTRIAL = """
## Amazon "Industrial & Scientific", a public benchmark's test rows

The rows on which MiniOneRec compares a fine-tuned large language model with the field: 3,686 items, 5-core,
October 2016 to November 2018, chronological; 4,533 test rows of a history of at most 10 items and a target.
{protocol}. Commands: [`industrial.sh`](industrial.sh). What differs from the published rows: the training
interactions are those that the histories of the rows give, a third of all; the text encoder is all-MiniLM-L6-v2;
settings are those of `default` above, and epochs and weights were chosen on the validation rows. The test rows
were read once.

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
Recorded without an anchor, with what the first search made of `default`, except for what is named: the rows
compare with each other, not with the tables above. Machines: {machines}.

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

`iisan experiment NAME --seeds 0,1,2` on the built-in catalogue, **generated data**. Rows on stored states train
to early stopping, with three seeds; rows that run the encoders have four epochs and one seed, and are marked
(†), so no comparison with them is one of quality. No row has the anchor unless it is named so. One thread,
beside other work: seconds are rough. The page [experiments.html](experiments.html) has all records with charts.
"""
COSTS = """
Seconds per epoch in IISAN, table 3 (A6000, batch 32, bert-base and vit-base): {paper}. Here: {here}. The
same comparison with encoders of that size is in [benchmarks](../benchmarks/README.md).
"""
#: What the paper's tables say, as pairs of rows, the better one first.
CLAIMS = {
    "table-3": [("IISAN (cached)", "FFT"), ("IISAN (cached)", "Frozen states")],
    "table-4": [
        ("IISAN", "without LayerDrop"),
        ("IISAN", "without gates"),
        ("IISAN", "without inter-modal tower"),
        ("IISAN", "without intra-modal towers"),
        ("IISAN", "frozen encoders, no towers"),
    ],
    "table-5": [("3 blocks", "2 blocks"), ("3 blocks", "6 blocks")],
    "table-6": [("adapter (SANB)", "PHM"), ("PHM", "low-rank")],
    "table-7": [("image and text: IISAN", "text: IISAN"), ("text: IISAN", "image: IISAN")],
    "balance": [("intra and inter", "intra alone"), ("intra and inter", "inter alone")],
    "versa-ablation": [
        ("evenly spaced text blocks", "top text blocks"),
        ("evenly spaced text blocks", "bottom text blocks"),
        ("evenly spaced text blocks", "without intra-modal towers"),
        ("evenly spaced text blocks", "without inter-modal tower"),
    ],
    "versa-microlens": [("IISAN-Versa", "Ids (SASRec)")],
    "versa-scaling-text": [("text model", "small text model"), ("small text model", "tiny text model")],
    "versa-scaling-image": [("image model", "small image model"), ("small image model", "tiny image model")],
    "versa-scaling-joint": [
        ("image model + text model", "small image model + small text model"),
        ("small image model + small text model", "tiny image model + tiny text model"),
    ],
}
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
    records = read_records([HERE / "experiments"])
    text = EXPERIMENTS_HEAD
    for name in (name for name in EXPERIMENTS if any(record.experiment == name for record in records)):
        chosen = [record for record in records if record.experiment == name]
        title = (EXPERIMENTS[name].__doc__ or "").splitlines()[0]
        text += f"\n### {name}: {title}\n\n{markdown(chosen, name)}"
        if name in CLAIMS:
            text += f"\n{agreement(chosen, CLAIMS[name])}\n"
        if name == "table-3":
            text += costs(chosen)
    return text


def agreement(records: Sequence[Record], claims: Sequence[tuple[str, str]]) -> str:
    """One line: does a table agree with the paper's, and with what certainty."""
    rows = {row.name: row for row in table(records)}
    said = []
    for better, worse in claims:
        if rows[better].limited or rows[worse].limited:
            said.append(f"{better} above {worse}: open, not trained to convergence")
            continue
        ours, theirs = ({run.seed: 100 * run.test["hr@10"] for run in rows[name].runs} for name in (better, worse))
        gains = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        mean = statistics.mean(gains)
        if len(gains) < 2:
            said.append(f"{better} above {worse}: open, one seed")
            continue
        low, high = stats.t.interval(0.95, len(gains) - 1, mean, statistics.stdev(gains) / len(gains) ** 0.5)
        verdict = "yes" if low > 0 else "no, the opposite" if high < 0 else "open"
        said.append(f"{better} above {worse}: {verdict} ({mean:+.2f}, 95% interval {low:+.2f} to {high:+.2f})")
    return f"Agreement with the paper, HR@10 in points over the seeds: {'; '.join(said)}."


def costs(records: Sequence[Record]) -> str:
    """The paper's seconds per epoch beside ours."""
    seconds = {record.row: record.efficiency.get("seconds_per_epoch") for record in records if record.seed == 0}
    return COSTS.format(
        paper=", ".join(f"{row} {value}" for row, value in PAPER_SECONDS.items()),
        here=", ".join(f"{row} {seconds[row]:.1f}" for row in PAPER_SECONDS if seconds.get(row)),
    )


def two_texts(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """The table of text modalities on the real data."""
    if not runs["both"]:
        return ""
    machines = sorted({record["machine"]["processor"] for name in TEXTS for record in runs.get(name, [])})
    text = TWO_TEXTS.format(machines=" and ".join(machines), names=" | ".join(map(label, METRICS)))
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


def search_rows(trials: list[dict[str, Any]]) -> str:
    """The lines of a table of trials."""
    text = ""
    for trial in trials:
        name = [] if trial["recipe"] == "default" else [f"recipe `{trial['recipe']}`"]
        seed = [str(trial["seed"])] if "seed" in trial else []
        values = [f"{100 * value:.2f}" for value in trial["validation"].values()]
        epochs = str(trial["best_epoch"])
        if "epochs" in trial:
            epochs += f" of {trial['epochs']}{', stopped' if trial.get('stopped') else ''}"
        row = [", ".join([*name, *settings(trial["changes"])]) or "none", *seed, *values, epochs]
        text += f"| {' | '.join(row)} |\n"
    return text


def main() -> None:
    """Read the records, write all files."""
    folder = HERE / "scientific"
    runs = defaultdict(list)
    for path in sorted(folder.glob("*-seed*.json")):
        runs[path.stem.rpartition("-seed")[0]].append(json.loads(path.read_text()))
    record = json.loads((folder / "anchor.json").read_text())
    industrial = json.loads((HERE / "industrial" / "anchor.json").read_text())
    found = json.loads((folder / "baselines.json").read_text())
    baselines = {name: found[name] for name in BASELINES}
    search = json.loads((folder / "search.json").read_text())
    protocol = record["protocol"]
    text = SCIENTIFIC.format(machine=record["machine"]["processor"], protocol=capitalised(protocol))
    text += anchor_table(record, baselines, tuple(COLUMNS)) + "\n\n" + tests(record)
    text += unseen(record) + seconds(record) + near_duplicates() + cold_items()
    text += SEARCHES.format(start=", ".join(settings(search["start"]))) + search_rows(search["trials"])
    text += LEARNED_PART + search_rows(search["learned_part"]["trials"])
    text += two_texts(runs)
    text += INDUSTRIAL.format(protocol=capitalised(industrial["protocol"])) + published_table(industrial)
    text += "\n\n" + tests(industrial)
    text += experiments() + extended()
    (HERE / "README.md").write_text(text, encoding="utf-8")
    page = anchor_table(record, baselines, ("hr@10", "ndcg@10", "cold_hr@10"), DETAILS)
    page += f"\n{capitalised(protocol)}."
    method = between(METHOD.read_text(encoding="utf-8"), "towers", towers_table())
    METHOD.write_text(between(method, "anchor", page), encoding="utf-8")
    readme = between(README.read_text(encoding="utf-8"), "anchor", page)
    readme = between(readme, "industrial", comparison(industrial))
    README.write_text(between(readme, "demo", demo_table()), encoding="utf-8")


def capitalised(text: str) -> str:
    """Return a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def between(page: str, name: str, text: str) -> str:
    """The page with a text between the marks of that name."""
    first, last = MARKS[name]
    before, rest = page.split(first)
    return f"{before}{first}\n\n{text}\n\n{last}{rest.split(last)[1]}"


def anchor_table(
    record: Mapping[str, Any], baselines: Mapping[str, Any], keys: Sequence[str], left_out: Sequence[str] = ()
) -> str:
    """The table of the real data: baselines, and runs with and without the anchor."""
    lines = [
        f"| | {' | '.join(COLUMNS[key] for key in keys)} | validation HR@10 |",
        f"|---|{'---|' * (len(keys) + 1)}",
    ]
    for name, found in baselines.items():
        if name in left_out:
            continue
        cells = [f"{100 * found[key]:.2f}" if key in found else "–" for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} | – |")
    counts = {}
    for name, title in ANCHORED.items():
        if name not in record["rows"] or name in left_out:
            continue
        runs = record["rows"][name]["runs"]
        counts[name] = len(runs)
        cells = [spread([run["test"][key] for run in runs]) for key in keys]
        lines.append(f"| {title} | {' | '.join([*cells, spread([run['validation']['hr@10'] for run in runs])])} |")
    few = [name for name, count in counts.items() if 1 < count < counts["default"]]
    but = f", those of the last {len(few)} rows over {counts[few[0]]}" if few else ""
    return "\n".join(lines) + f"\n\nIn %, trained rows mean ± deviation over {counts['default']} seeds{but}."


def comparison(record: Mapping[str, Any]) -> str:
    """The README's sentence on the public benchmark."""
    (run,) = record["rows"]["similarity"]["runs"]
    ours = " / ".join(f"{100 * run['test'][key]:.2f}" for key in ("hr@10", "ndcg@10"))
    (name, theirs), *_ = PUBLISHED.items()
    best = " / ".join(f"{value:.2f}" for value in theirs)
    return (
        f"On the test rows of a public benchmark, `similarity` reaches {ours} (HR@10 / NDCG@10), fitted in "
        f"{run['seconds']:.0f} seconds on one core.\nThe best published figures there are {best}, of {name}."
    )


def published_table(record: Mapping[str, Any]) -> str:
    """The table of the public benchmark: published rows and ours, with costs."""
    lines = ["| | HR@10 | NDCG@10 | minutes of two cores | peak memory, GB |", "|---|---|---|---|---|"]
    lines += [f"| {name}, published | {hr:.2f} | {ndcg:.2f} | | |" for name, (hr, ndcg) in PUBLISHED.items()]
    for name in ("similarity", "default, learned part alone", "default"):
        runs = record["rows"][name]["runs"]
        cells = [spread([run["test"][key] for run in runs]) for key in ("hr@10", "ndcg@10")]
        seconds = [run["train_seconds"] + run["validation_seconds"] + (run.get("seconds") or 0) for run in runs]
        memory = statistics.mean(run["peak_memory_bytes"] for run in runs) / 1e9
        cells += [f"{statistics.mean(seconds) * runs[0]['threads'] / 120:.1f}", f"{memory:.1f}"]
        lines.append(f"| {ANCHORED[name]} | {' | '.join(cells)} |")
    count = len(record["rows"]["default"]["runs"])
    return "\n".join(lines) + f"\n\nIn %, `default` mean ± deviation over {count} seeds."


def tests(record: Mapping[str, Any]) -> str:
    """The paired tests of a record as a list."""
    found = {(test["a"], test["b"], test["metric"]): test for test in record["tests"]}
    lines = []
    for ours, theirs in TESTED:
        said = []
        for metric in ("hr@10", "ndcg@10"):
            sign = 1 if (ours, theirs, metric) in found else -1
            test = found.get((ours, theirs, metric)) or found.get((theirs, ours, metric))
            if test is None:
                break
            low, high = sorted((sign * test["low"], sign * test["high"]))
            difference = 100 * sign * test["difference"]
            p = "< 0.001" if test["p_t"] < 0.001 else f"= {test['p_t']:.3f}"
            said.append(
                f"{metric.upper()} {difference:+.2f} (95% interval {100 * low:+.2f} to {100 * high:+.2f}, p {p})"
            )
        else:
            lines.append(f"- {ANCHORED[ours]} − {ANCHORED[theirs]}: {'; '.join(said)}")
    return (
        "Paired differences over the same targets, means over the seeds, in points; intervals by bootstrap over "
        "users,\npaired t-test, not corrected for the number of comparisons:\n\n" + "\n".join(lines) + "\n"
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


def cold_items() -> str:
    """The table of cold items that were held out and added."""
    record = json.loads((HERE / "scientific" / "cold-items.json").read_text())
    counts = [f"`{recipe}` {found['seeds']}" for recipe, found in record["runs"].items()]
    facts = {name: record[name] for name in ("cold_items", "held_out")}
    text = COLD_ITEMS.format(**facts, seeds=f"Seeds: {', '.join(counts)}.")
    halves = []
    for recipe, found in record["runs"].items():
        for kind, title in COLD_ROWS.items():
            row = found[kind]
            own = f"{100 * row['mean_a']:.2f} ({bounds(row['interval'], '.2f')})"
            difference = f"{100 * row['difference']:+.2f} ({bounds((row['low'], row['high']))})"
            cells = [f"`{recipe}`", title, f"{row['targets']:,}", own, f"{100 * row['mean_b']:.2f}", difference]
            text += f"| {' | '.join(cells)} |\n"
        between = found["halves"]
        halves.append(f"`{recipe}` {100 * between['difference']:+.2f} ({bounds(between['interval'])})")
    return text + COLD_ITEMS_FOOT.format(halves=", ".join(halves))


def bounds(interval: Sequence[float], form: str = "+.2f") -> str:
    """Both ends of an interval in %."""
    return " to ".join(f"{100 * end:{form}}" for end in interval)


def seconds(record: Mapping[str, Any]) -> str:
    """What the runs of the table cost."""
    rows = {name: found["runs"] for name, found in record["rows"].items() if LEARNED not in name}
    trained = {
        name: [run["train_seconds"] + run["validation_seconds"] for run in runs] for name, runs in rows.items()
    }
    terms = {name: [run.get("seconds") or 0 for run in runs] for name, runs in rows.items()}
    own = [name for name in rows if name not in ("two", "three")]
    every = sum(sum(trained[name]) + sum(terms[name]) for name in own)
    said = [
        f"`{name}` {statistics.median(trained[name]):.0f} + {statistics.median(terms[name]):.0f}"
        for name in ("similarity", "ids", "frozen", "default")
    ]
    return (
        "\nSeconds of one thread (medians of training with validation + fitting and weighing the terms): "
        f"{', '.join(said)}.\nAll runs of the table but the joined ones: {every / 3600:.1f} hours of one thread.\n"
    )


def unseen(record: Mapping[str, Any]) -> str:
    """The same runs under the policy ``unseen``."""
    said = []
    for name in ("similarity", "ids", "frozen", "default", "two", "three"):
        if runs := record["rows"].get(name, {}).get("runs"):
            values = [spread([run["unseen"][key] for run in runs]) for key in ("hr@10", "ndcg@10")]
            said.append(f"{ANCHORED[name]} {' / '.join(values)}")
    return (
        "\nUnder the policy `unseen`, which leaves out targets that are in their own history (HR@10 / NDCG@10):\n"
        + ";\n".join(said)
        + ".\n"
    )


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
