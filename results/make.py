"""Write results/README.md, and the demo's table into the project's README, from the records beside this file.

No figure in either comes from anywhere else.

python results/make.py
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from iisan.experiments.records import markdown, read_records
from iisan.experiments.tables import EXPERIMENTS

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKS = (
    "<!-- demo table, written by results/make.py from results/demo/ -->",
    "<!-- end of the demo table -->",
)
METRICS = ("hr@10", "ndcg@10", "cold_hr@10", "coverage@10")
HEAD = """# Results

Written by `make.py` from the JSON records in the folders beside it.

## Amazon "Industrial & Scientific", titles only

12,076 users, 20,314 items, 81,711 interactions (last 13 of each user); text encoder
all-MiniLM-L6-v2 (6 blocks, 384 wide), frozen. Commands: [`scientific.sh`](scientific.sh).
Protocol of every row: {protocol}; the epoch is chosen by validation HR@10. In %, mean ± standard
deviation over seeds.

| method | seeds | {names} | trained parameters | best epoch | s / epoch |
|---|---|---|---|---|---|---|---|---|
"""
FOOT = """
`default` is IISAN (the intra-modal tower, as text is the only modality); `reference` is the same method
with the settings of the authors' published code; `frozen` projects the encoder's last state and trains
like `default`; `ids` learns an embedding per item (SASRec) and trains like `default`. Cold targets are
those that no user took in training. Machine: {machine}, {cores} cores, no GPU. Threads used: {threads};
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


EXPERIMENTS_HEAD = """
## The paper's tables at demo scale

`iisan experiment NAME` on the built-in catalogue, **generated data**, four epochs, one seed, one thread; two
experiments ran side by side on the machine's two cores. It shows how to run and read a comparison and what
costs what; four epochs on generated data say little about which method is better. All records with charts as a
page: [experiments.html](experiments.html).
"""
COSTS = """
Seconds an epoch in the paper's table 3 (A6000, batch 32, bert-base and vit-base): {paper}. Here: {here}. The
same comparison with backbones of that size is in [benchmarks](../benchmarks/README.md).
"""
#: Seconds an epoch, P1 table 3, Scientific.
PAPER_SECONDS = {
    "FFT": 443,
    "Adapter": 354,
    "LoRA": 378,
    "BitFit": 403,
    "IISAN (uncached)": 179,
    "IISAN (cached)": 22,
}


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
        title = (rows.__doc__ or "").splitlines()[0]
        text += f"\n### {name}: {title}\n\n{markdown(chosen, name)}"
        if name == "table-3":
            seconds = {record.row: record.efficiency.get("seconds_per_epoch") for record in chosen}
            text += COSTS.format(
                paper=", ".join(f"{row} {value}" for row, value in PAPER_SECONDS.items()),
                here=", ".join(f"{row} {seconds[row]:.1f}" for row in PAPER_SECONDS if seconds.get(row)),
            )
    return text


def label(metric: str) -> str:
    """``cold_hr@10`` -> ``cold HR@10``."""
    cold, _, name = metric.rpartition("_")
    return f"{cold} {name if 'coverage' in name else name.upper()}".strip()


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
    for name in (name for name in ("ids", "frozen", "reference", "default") if name in runs):
        records = runs[name]
        protocols |= {record["protocol"] for record in records}
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
    (protocol,) = protocols
    record = runs["default"][0]
    text = HEAD.format(protocol=protocol, names=" | ".join(map(label, METRICS)))
    text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    machine = record["machine"]
    search = json.loads((folder / "search.json").read_text())
    text += FOOT.format(
        machine=machine["processor"],
        cores=machine["cores"],
        threads=", ".join(
            f"{name} {'/'.join(str(record['threads']) for record in records)}" for name, records in runs.items()
        ),
        start=", ".join(f"`{key}={value}`" for key, value in search["start"].items()),
    )
    for trial in search["trials"]:
        changes = [f"`{key}={value}`" for key, value in trial["changes"].items()]
        name = [] if trial["recipe"] == "default" else [f"recipe `{trial['recipe']}`"]
        cells = [", ".join([*name, *changes]) or "none", *(f"{100 * v:.2f}" for v in trial["validation"].values())]
        text += f"| {' | '.join([*cells, str(trial['best_epoch'])])} |\n"
    text += experiments()
    (HERE / "README.md").write_text(text, encoding="utf-8")
    README.write_text(with_demo_table(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_demo_table(readme: str) -> str:
    """The README with the table of the recorded demos between its marks."""
    demos = [json.loads(path.read_text()) for path in sorted((HERE / "demo").glob("seed*.json"))]
    lines = ["| | HR@10 | NDCG@10 | HR@10, cold targets |", "|---|---|---|---|"]
    for name in demos[0]["metrics"]:
        cells = [
            spread([demo["metrics"][name][key] for demo in demos]) for key in ("hr@10", "ndcg@10", "cold_hr@10")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    best = "oracle (best achievable)"
    share = statistics.mean(demo["metrics"]["IISAN"]["hr@10"] / demo["metrics"][best]["hr@10"] for demo in demos)
    lines.append(
        f"\nIn %, mean ± deviation over the seeds 0 to {len(demos) - 1} (`iisan demo --seed N`; a seed is another "
        f"catalogue, too);\n{demos[0]['protocol']}.\nIISAN reaches {share:.0%} of the oracle's HR@10."
    )
    before, rest = readme.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n\n" + "\n".join(lines) + f"\n\n{MARKS[1]}{after}"


if __name__ == "__main__":
    main()
