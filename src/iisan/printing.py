"""Output of the command line: tables, or JSON."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from iisan.checks.check import Checked
    from iisan.efficiency.estimate import Estimate
    from iisan.evaluate.evaluation import Evaluation
    from iisan.experiments.robustness import Decline
    from iisan.runs.compare import Comparisons, Measured
    from iisan.runs.explain import Explanation
    from iisan.states.store import StateStore


def print_json(value: Any) -> None:
    """Print as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; a column whose name ends in "#" holds numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.show_header = any(columns)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.endswith("#") else "left"
        table.add_column(column.removesuffix("#"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console = Console()
    # Not as the table's own title, which a narrow table would break into many lines.
    console.print(Text(title, style="bold"))
    console.print(table)


def shown_metrics(cutoffs: Sequence[int]) -> list[str]:
    """Metrics that are printed unless others are named."""
    k = 10 if 10 in cutoffs else cutoffs[0]
    return [f"hr@{k}", f"ndcg@{k}", f"mrr@{k}", f"cold_hr@{k}"]


def _label(metric: str) -> str:
    """Name of a metric for people: ``cold HR@10`` for ``cold_hr@10``."""
    prefix, _, name = metric.rpartition("_")
    return f"{prefix} {name.upper()}".strip()


#: Metrics of lists -> their names in the table, and the factor that they are printed with.
_LIST_METRICS = {
    "coverage@10": ("coverage %", 100),
    "gini@10": ("Gini", 1),
    "novelty@10": ("novelty (bits)", 1),
    "popularity_lift@10": ("pop. lift", 1),
    "diversity@10": ("diversity", 1),
}


def print_evaluations(
    whose: str,
    evaluation: "Evaluation",
    metrics: Mapping[str, Mapping[str, float]],
    cutoffs: Sequence[int],
    shown: Sequence[str],
    intervals: Mapping[str, tuple[float, float]],
) -> None:
    """Print ``metrics`` of scorers side by side, and the protocol and ``intervals`` of one, the run ``whose``."""

    def print_metrics(title: str, columns: Mapping[str, tuple[str, float]]) -> None:
        rows = [
            [
                scorer,
                *(f"{factor * own[name]:.2f}" if name in own else "–" for name, (_, factor) in columns.items()),
            ]
            for scorer, own in metrics.items()
        ]
        print_table(title, ["", *(f"{label}#" for label, _ in columns.values())], rows)

    own = metrics[whose]
    print_metrics(f"{evaluation.protocol}; in %", {name: (_label(name), 100) for name in shown})
    if evaluation.future:
        print(f"future: {evaluation.future}")
    if own.get("cold_users") and any(name.startswith("cold_") for name in shown):
        unit = "queries" if "cold_queries" in own else "users"
        print(f"cold: the {int(own[f'cold_{unit}']):,} {unit} whose target was never trained on")
    if intervals:
        ends = (f"{_label(name)} {100 * low:.2f} to {100 * high:.2f}" for name, (low, high) in intervals.items())
        print(f"{whose}, 95% intervals (bootstrap over users): {', '.join(ends)}")
    print()
    print_metrics("Lists of 10", {name: column for name, column in _LIST_METRICS.items() if name in own})
    if sampled := [name for name in (f"sampled_{each}" for each in shown_metrics(cutoffs)) if name in own]:
        among = f"{int(own['sampled_negatives']):,} drawn items"
        title = (
            f"Targets ranked among {among}, in %: not comparable with the full ranking, and may misorder models"
        )
        print_metrics(title, {name: (_label(name), 100) for name in sampled})


def print_groups(by: str, whose: str, groups: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> None:
    """Print the metrics of each group of users or targets, with their intervals."""
    rows, measured = [], [name for name in shown if any(name in each for each in groups)]
    for each in groups:
        cells = [each["group"], f"{each['queries']:,}"]
        for name in measured:
            low, high = each["intervals"].get(name, (None, None))
            ends = "" if low is None else f" ({100 * low:.1f}–{100 * high:.1f})"
            cells.append(f"{100 * each[name]:.2f}{ends}" if name in each else "–")
        rows.append(cells)
    heads = [by, "queries#", *(f"{_label(name)}#" for name in measured)]
    print_table(f"{whose} by {by}, in % (95% interval)", heads, rows)


def print_checks(found: "Checked") -> None:
    """Print what the checks of a run saw, and how many of them failed."""
    rows = [[check.status, f"{check.name}\n{check.seen}"] for check in found.checks]
    print_table(f"{found.run}: {found.protocol}", ["", ""], rows)
    print("in brackets: 95% intervals (bootstrap over users)")
    counts = Counter(check.status for check in found.checks)
    print(", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "not checked")))


def print_recommendations(title: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Print a list of recommended items."""
    cells = [[row["rank"], row["item_id"], f"{row['score']:.3f}", (row["text"] or "")[:80]] for row in rows]
    print_table(title, ["rank#", "item", "score#", "title"], cells)


def print_index(manifest: Mapping[str, Any]) -> None:
    """Print what was measured of the kinds of search, and which was chosen."""
    rows = [
        [
            name + (" (chosen)" if name == manifest["search"] else ""),
            f"{100 * each['recall@10']:.1f}",
            f"{each['milliseconds']:.2f}",
            f"{each['bytes'] / 1e6:.1f}",
        ]
        for name, each in manifest["measured"].items()
    ]
    title = f"{manifest['queries']:,} {manifest['queries_of']}, {manifest['threads']} threads"
    print_table(title, ["search", "recall@10 in %#", "ms per list#", "MB#"], rows)
    if "cells" in manifest:
        print(f"a search reads {manifest['probes']:,} of {manifest['cells']:,} cells")


def print_explanation(whose: str, found: "Explanation") -> None:
    """Print where the score of an item comes from: its terms, and the items of the history."""
    from iisan.evaluate.evaluation import POLICIES

    print(f"{found.item_id} {whose}: {(found.text or '')[:80]}".rstrip(": "))
    if found.rank is None:
        print(f"not ranked: it is in the history, which the policy {found.policy} excludes")
    else:
        tied = f", tied with {found.tied:,} more" if found.tied else ""
        print(f"rank {found.rank:,}{tied}; full ranking of {found.num_items:,} items, {POLICIES[found.policy]}")
    print()
    total = sum(map(abs, found.terms.values())) or 1.0
    names = {} if "member 2" in found.terms else {"member 1": "learned part"}
    rows = [[names.get(name, name), f"{part:z.3f}", f"{part / total:z.0%}"] for name, part in found.terms.items()]
    print_table("Terms of the score", ["", "score#", "share#"], [*rows, ["sum", f"{found.score:z.3f}", ""]])
    print("share: of the sum of the terms without their signs")
    print()
    learned, modalities = "member 1" in found.terms, list(found.history[0].anchor)
    effects, cosines = [], []
    for each in found.history:
        title = (each.text or "")[:40]
        change = "–" if each.change is None else f"{each.change:+z.3f}"
        effects.append([each.item_id, *(f"{part:z.3f}" for part in each.anchor.values()), change, title])
        similar = [*each.similarity.values(), *([each.model_similarity] if learned else [])]
        cosines.append([each.item_id, *("–" if one is None else f"{one:z.2f}" for one in similar), title])
    count = len(found.history)
    past = "history" if count == found.interactions else f"last {count} of {found.interactions:,} items"
    heads = ["item", *(f"via {name}#" for name in modalities), "without it#", "title"]
    print_table(f"Effect of the {past}, oldest first", heads, effects)
    if modalities:
        print("via: its part of the anchor's term, to which these add up")
    print("without it: change of the score if it is taken out; these do not add up")
    print()
    heads = ["item", *(f"{name}#" for name in modalities), *(["model#"] if learned else []), "title"]
    print_table(f"Similarity to {found.item_id} (cosine)", heads, cosines)
    print()
    rows = [
        [by, each.item_id, f"{each.score:z.2f}", (each.text or "")[:40]]
        for by, nearest in found.nearest.items()
        for each in nearest
    ]
    print_table(f"Nearest to {found.item_id} in the catalogue", ["by", "item", "cosine#", "title"], rows)


def print_stores(title: object, stores: Mapping[str, "StateStore"]) -> None:
    """Print the state store of each modality."""
    rows = [
        [
            modality,
            f"{len(store):,}",
            ", ".join(map(str, store.levels)),
            store.width,
            store.manifest.dtype,
            f"{max(error or 0.0 for error in store.manifest.error):.2%}",
            store.folder.name,
        ]
        for modality, store in stores.items()
    ]
    heads = ["", "contents#", "levels", "width#", "stored as", "largest error#", "folder"]
    print_table(str(title), heads, rows)
    print("largest error: of a stored level against fp32, relative to the spread between items")


def print_estimates(found: Mapping[str, "Estimate"]) -> None:
    """Print predicted costs of methods, and the measured speed of the machine."""
    hardware = next(iter(found.values())).hardware
    rows = [
        [
            name,
            f"{each.seconds_per_step:.3g}",
            f"{each.seconds_per_epoch:,.1f}",
            f"{each.trainable_parameters / 1e6:,.2f}",
            f"{each.peak_memory_bytes / 1e9:.2f}",
            f"{each.caching_seconds:,.0f}" if each.caching_seconds else "–",
            f"{each.disk_bytes / 1e9:.2f}" if each.disk_bytes else "–",
        ]
        for name, each in found.items()
    ]
    print_table(
        f"predicted for {hardware.name}: {hardware.flops / 1e9:,.0f} GFLOP/s in {hardware.precision}, "
        f"{hardware.bandwidth / 1e9:,.0f} GB/s",
        ["", "s / step#", "s / epoch#", "trained M#", "memory GB#", "caching s#", "disk GB#"],
        rows,
    )
    print("not included: tokenising and decoding images, the process itself (0.3 to 0.5 GB), and on a CPU")
    print("frozen weights, which stay in memory-mapped files; parameters are exact")


def print_measurements(measured: "Measured") -> None:
    """Print TPME of measurements."""
    weights = measured.weights
    print_table(
        f"TPME of {len(measured.rows)} methods, weights {weights.time:g} time, {weights.parameters:g} parameters, "
        f"{weights.memory:g} memory; lower is better",
        ["", "seconds#", "parameters#", "memory#", "TPME %#", "wins % of weights#"],
        [
            [
                row.name,
                *(f"{value:,.10g}" for value in (row.seconds, row.parameters, row.memory)),
                f"{100 * measured.tpme[row.name]:.2f}",
                f"{100 * measured.won[row.name]:.1f}",
            ]
            for row in measured.rows
        ],
    )


def print_declines(found: Sequence["Decline"], title: str) -> None:
    """Print the quality of runs at every rate, and relative to the first rate."""
    rows = []
    for each in found:
        values = zip(each.values("hr@10"), each.kept("hr@10"), strict=True)
        rows.append([each.name, *(f"{100 * value:.2f} ({kept:.0%})" for value, kept in values)])
    heads = ["", *(f"{rate:.0%} of items#" for rate in found[0].rates)]
    print_table(f"{title}: HR@10 in % (relative to the first)", heads, rows)
    print(found[0].evaluations[0].protocol)


def print_comparison(report: "Comparisons") -> None:
    """Print runs side by side, and the tests of the first method against the others."""
    from iisan.experiments.records import percent
    from iisan.runs.conditions import listed, why_not_compared

    heads = ["", "HR@10#", "NDCG@10#", "parameters#"]
    rows = [
        [group.name, percent(group.metric("hr@10")), percent(group.metric("ndcg@10")), f"{group.parameters:,}"]
        for group in report.groups
    ]
    if report.costs:
        heads += ["s / epoch#", "memory MB#", "TPME %#"]
        for row in rows:
            cost = report.costs[row[0]]
            score = f"{100 * report.tpme[row[0]]:.1f}" if report.tpme else "–"
            row += [f"{cost.seconds:.2f}", f"{cost.memory / 1e6:,.0f}", score]
    print_table(f"{report.protocol}; in %, mean ± deviation (seeds)", heads, rows)
    print(why_not_compared(report.conditions) or f"trained on {listed(report.conditions)}")
    if not report.tests:
        print("one method: nothing to test it against")
        return
    print_table(
        f"{report.groups[0].name} against the others, {report.tests[0][1].users:,} users; in percentage points",
        ["against", "metric", "difference#", "95% interval#", "p (t-test, Holm)#", "p (McNemar)#"],
        [
            [
                other,
                found.metric.upper(),
                f"{100 * found.difference:+.2f}",
                f"{100 * found.low:+.2f} to {100 * found.high:+.2f}",
                f"{adjusted:.2g}",
                "–" if found.p_mcnemar is None else f"{found.p_mcnemar:.2g}",
            ]
            for other, found, adjusted in report.tests
        ],
    )
    print("intervals and p-values generalise to other users, given these runs; ± is the deviation over seeds")


def print_study(result: Mapping[str, Any], out: "Path") -> None:
    """Print the best settings of a study, what mattered, and the test metrics of the runs with them."""
    from iisan.tune.results import BEST, counted, shown, tested

    best, shares = result["best"], result["importance"]
    rows = [
        [key, shown(value), f"{shares[key]:.0%}" if key in shares else "–"]
        for key, value in best["settings"].items()
    ]
    print_table("Best settings", ["setting", "value#", "mattered#"], rows)
    metric = result["objective"].upper()
    print(
        f"validation: trial {best['trial']}, {metric} {100 * best['value']:.2f} %, the best of {counted(result)}"
    )
    print(f"test: {tested(result)}")
    print(f"protocol: {result['protocol']}")
    print(f"next: iisan train {out / BEST} --dataset D --states S --out RUN")
    print(f"      iisan evaluate {out / result['runs'][0]}   |   iisan report {out}")


def print_diagnosis(found: Mapping[str, Any]) -> None:
    """Print what this machine can do and what is missing, with the commands that install it."""
    memory, free, disk = (found[f"{name}_bytes"] / 1e9 for name in ("memory", "free_memory", "free_disk"))
    gpus = [f"{gpu['name']} ({gpu['bytes'] / 1e9:.0f} GB)" for gpu in found["gpus"]]
    hub = " only, as HF_HUB_OFFLINE is set" if found["offline"] else ", or the hub"
    facts = {
        "versions": f"iisan {found['iisan']}, Python {found['python']}",
        "system": f"{found['system']}, {found['cores']} cores, {found['threads']} threads",
        "device": ", ".join(gpus) or found["device"],
        "memory": f"{free:.1f} of {memory:.1f} GB free",
        "disk": f"{disk:,.0f} GB free in the working folder",
        "models": found["model_cache"] + hub,
    }
    for name, fact in facts.items():
        print(f"{name:10}{fact}")
    print()
    speeds = [
        [name, f"{each['fp32'] / 1e9:,.0f}", f"{each['bf16'] / 1e9:,.0f}", each["auto"]]
        for name, each in found["speed"].items()
    ]
    heads = ["", "fp32 GFLOP/s#", "bf16 GFLOP/s#", "precision 'auto'"]
    print_table("Matrix products of width 768", heads, speeds)
    extras = [
        [name, f"{', '.join(missing)} missing", f'pip install "iisan[{name}]"']
        if missing
        else [name, "installed", ""]
        for name, missing in found["extras"].items()
    ]
    print_table("Extras", ["", "", "install"], extras)
    unusable = [each for each in found["libraries"] if not each["usable"]]
    for each in unusable:
        got = f"{each['installed']} is too old" if each["installed"] else "is not installed"
        print(f'{each["name"]} {got}: pip install "{each["name"]}{each["required"]}"')
    if not unusable:
        print("every library that iisan needs is installed in a suitable version")
