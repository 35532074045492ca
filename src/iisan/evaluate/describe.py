"""Statistics of a dataset, and how they distort an evaluation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import polars as pl

from iisan.config import Policy
from iisan.data.sequences import Index, Sequences, ragged
from iisan.data.splits import Queries, Split
from iisan.evaluate.metrics import Ranks, gini, hit_rate, ndcg, ranked_rows, target_seen
from iisan.names import IMAGE, TEXT

if TYPE_CHECKING:
    from iisan.data.dataset import Dataset

#: Quantiles of the normal distribution: of a two-sided 95% interval, and of a power of 80%.
NORMAL_95, NORMAL_80 = 1.95996, 0.84162
#: Assumed share of targets that one of two methods hits and the other does not.
DISAGREEMENT = 0.05


@dataclass(frozen=True)
class Fact:
    """One statistic of a dataset.

    Attributes:
        label: Label for display.
        value: A count, a number or a share of 1; None if the dataset doesn't tell.
        of: Total that a count is a part of.
        why: How it distorts an evaluation; empty if it doesn't.
        unit: Unit of the value; points are hundredths, as of a share in percent.
    """

    label: str
    value: float | None
    of: int | None = None
    why: str = ""
    unit: Literal["count", "number", "share", "points"] = "count"

    def __str__(self) -> str:
        if self.value is None:
            return "unknown"
        if self.unit == "share":
            return f"{self.value:.3%}"
        if self.unit == "number":
            return f"{self.value:,.2f}"
        if self.unit == "points":
            return f"{100 * self.value:.2f} points"
        return f"{int(self.value):,}" + (f" ({self.value / self.of:.1%})" if self.of else "")


@dataclass(frozen=True)
class Description:
    """Facts by name, in display order."""

    facts: dict[str, Fact]

    def __getitem__(self, name: str) -> float | None:
        return self.facts[name].value

    def rows(self) -> list[tuple[str, str, str]]:
        """Return ``(label, value, why it matters)`` of every fact; a count of 0 does not matter."""
        rows = []
        above = ""
        for fact in self.facts.values():
            why = "" if fact.unit == "count" and fact.value == 0 else fact.why
            rows.append((fact.label, str(fact), "as above" if why and why == above else why))
            above = why or above
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return ``{name: value}``, and ``{name}_share`` for a count that is part of a total."""
        values: dict[str, Any] = {}
        for name, fact in self.facts.items():
            values[name] = fact.value
            if fact.of and fact.value is not None:
                values[f"{name}_share"] = fact.value / fact.of
        return values


def describe(dataset: "Dataset", split: Split) -> Description:
    """Compute statistics of a dataset and of a split of its sequences."""
    others = [name for name in dataset.kinds if name not in (TEXT, IMAGE)]
    content = _content(dataset.items, others) | _times(dataset.sequences)
    facts = _size(dataset, split) | _targets(split) | content | _future(split) | _popularity(split)
    return Description(facts | _resolution(split))


def _size(dataset: "Dataset", split: Split) -> dict[str, Fact]:
    lengths = dataset.sequences.lengths
    lengths = lengths[lengths > 0]
    facts = {"users": Fact("users", dataset.num_users)}
    if split.name == "given":
        absent = dataset.num_users - len(lengths)
        facts["users_without_interactions"] = Fact("users with given queries only", absent, dataset.num_users)
        for subset, queries in (("validation", split.validation), ("test", split.test)):
            facts[f"{subset}_queries"] = Fact(f"{subset} queries", len(queries))
            facts[f"{subset}_users"] = Fact(f"{subset} users", queries.num_users)
    return facts | {
        "items": Fact("items", dataset.num_items),
        "interactions": Fact("interactions", dataset.num_interactions),
        "mean_length": Fact("interactions per user, mean", float(lengths.mean()), unit="number"),
        "median_length": Fact("interactions per user, median", float(np.median(lengths)), unit="number"),
        "min_length": Fact("interactions per user, minimum", int(lengths.min())),
        "max_length": Fact("interactions per user, maximum", int(lengths.max())),
    }


def _targets(split: Split) -> dict[str, Fact]:
    """Repeated interactions, and items and targets never seen in training."""
    sequences = split.sequences
    rows, items = ragged(sequences.items, sequences.offsets[:-1], sequences.offsets[1:])
    distinct = np.bincount(_distinct_pairs(rows, items, split.num_items)[0], minlength=sequences.num_users)
    repeats = int((distinct < sequences.lengths).sum())
    why = "repeated interactions can be predicted from the history alone, without a model"
    facts = {"repeat_users": Fact("users with a repeated item", repeats, sequences.num_users, why)}
    why = "left out under unseen, easy hits under all, misses under exclude-all: policies do not compare"
    for subset, queries in (("validation", split.validation), ("test", split.test)):
        label = f"{subset} targets already in the history"
        facts[f"{subset}_targets_seen"] = Fact(label, int(target_seen(queries).sum()), len(queries), why)
    cold = split.train_counts() == 0
    why = "only their content can place them; leaving them out of the ranking flatters every model"
    facts["cold_items"] = Fact("items never seen in training", int(cold.sum()), split.num_items, why)
    why, found = "out of reach for a model of ids: one average hides two different tasks", cold[split.test.targets]
    facts["cold_test_targets"] = Fact("test targets never seen in training", int(found.sum()), len(found), why)
    return facts


def _content(items: pl.DataFrame, others: Iterable[str]) -> dict[str, Fact]:
    total = len(items)
    text = items[TEXT].str.strip_chars()
    missing = {TEXT: text.is_null() | (text == "").fill_null(True)}
    missing |= {name: items[name].is_null() for name in (IMAGE, *others)}
    texts = text.filter(~missing[TEXT])
    why = "the same content gets the same score: a tie, which sorting breaks arbitrarily"
    same = len(texts) - texts.n_unique()
    facts = {"redundant_texts": Fact("items with the same text as an earlier item", same, total, why)}
    for name, absent in missing.items():
        label = f"items without {'an image' if name == IMAGE else name}"
        facts[f"missing_{name}"] = Fact(label, int(absent.sum()), total)
    empty = int(pl.select(pl.all_horizontal(*missing.values())).to_series().sum())
    why = "they are all the same to a content model, and tie with each other"
    facts["missing_all"] = Fact("items without any content", empty, total, why)
    characters = texts.str.len_chars().to_numpy()
    for name, label, function in (("median", "median", np.median), ("max", "maximum", np.max)):
        value = float(function(characters)) if len(characters) else None
        facts[f"{name}_characters"] = Fact(f"characters of text, {label}", value, unit="number")
    return facts


def _times(sequences: Sequences) -> dict[str, Fact]:
    total, times = len(sequences.items), sequences.timestamps
    same = None
    if times is not None:
        rows = np.repeat(np.arange(sequences.num_users), sequences.lengths)
        same = int(((times[1:] == times[:-1]) & (rows[1:] == rows[:-1])).sum())
    unknown = total if times is None else 0
    why = "nothing tells whether a model was trained on what came after a target"
    facts = {"without_timestamp": Fact("interactions without a timestamp", unknown, total, why)}
    label = "interactions at the same time as the user's previous one"
    why = "their order, and with it the target, is the order of the file"
    return facts | {"equal_timestamps": Fact(label, same, total, why)}


def _future(split: Split) -> dict[str, Fact]:
    later, total = split.trained_later(split.test), len(split.test)
    early, share = (None, None) if later is None else (int((later > 0).sum()), float(later.mean()))
    why = "training knows what came after them, such as what became popular; under temporal it never does"
    label = "test targets earlier than a training interaction"
    facts = {"future_test_targets": Fact(label, early, total, why)}
    label = "training interactions later than a test target, mean"
    return facts | {"trained_later": Fact(label, share, why=why, unit="share")}


def _popularity(split: Split) -> dict[str, Fact]:
    counts = np.sort(np.bincount(split.sequences.items, minlength=split.num_items))
    label = "Gini coefficient of item popularity (0 equal, 1 one item)"
    why = "the more skewed, the better a list of the most popular items looks"
    facts = {"gini": Fact(label, gini(counts), unit="number", why=why)}
    for percent in (1, 10):
        head = -(-split.num_items * percent // 100)
        label = f"interactions with the top {percent}% of items"
        facts[f"top_{percent}_percent"] = Fact(label, int(counts[-head:].sum()), int(counts.sum()))
    train_counts = split.train_counts()
    why = "a model that does not beat this has learned nothing about users"
    for policy in get_args(Policy):
        queries = split.test[ranked_rows(split.test, policy)]
        ranks = popularity_ranks(train_counts, queries, policy)
        for name, metric in (("hr", hit_rate), ("ndcg", ndcg)):
            value = float(metric(ranks.above, ranks.ties, 10).mean()) if len(queries) else None
            label = f"most popular items, test {name.upper()}@10, {policy}"
            facts[f"most_popular_{name}@10_{policy}"] = Fact(label, value, why=why, unit="share")
    return facts


def _resolution(split: Split) -> dict[str, Fact]:
    """Half width of the interval of HR@10, and the difference that is found, see ``smallest_difference``."""
    queries = split.test[ranked_rows(split.test, "unseen")]
    if not len(queries):
        interval = difference = None
    else:
        number = independent_queries(queries)
        ranks = popularity_ranks(split.train_counts(), queries, "unseen")
        level = float(hit_rate(ranks.above, ranks.ties, 10).mean())
        interval, difference = half_interval(level, number), smallest_difference(number)
    label = "most popular items, half of the 95% interval of test HR@10, unseen"
    facts = {"most_popular_hr@10_interval": Fact(label, interval, unit="points")}
    why = f"smaller ones are often missed (if one of two methods alone hits {DISAGREEMENT:.0%} of the targets)"
    label = "difference of test HR@10 that a paired test finds 4 times in 5"
    return facts | {"smallest_difference_hr@10": Fact(label, difference, why=why, unit="points")}


def independent_queries(queries: Queries) -> float:
    """Number of independent queries that these count as: ``(Σ n_u)² / Σ n_u²`` for ``n_u`` queries of user ``u``.

    That is their number if each user has one. Several of one user count as if all had the same outcome.
    """
    counts = np.bincount(queries.users)
    return float(len(queries) ** 2 / (counts**2).sum())


def half_interval(level: float, number: float) -> float:
    """Half width of the 95% interval of a hit rate that is ``level`` on ``number`` independent queries."""
    return NORMAL_95 * float(np.sqrt(level * (1 - level) / number))


def smallest_difference(number: float, disagreement: float = DISAGREEMENT) -> float:
    """Smallest difference of a hit rate that a paired test at the level 5% finds in 80% of samples.

    Outcomes of two methods differ by 1 on the share ``disagreement`` of ``number`` independent queries, so the
    standard error of the mean difference is at most ``√(disagreement / number)``.
    """
    return (NORMAL_95 + NORMAL_80) * float(np.sqrt(disagreement / number))


def popularity_ranks(counts: Index, queries: Queries, policy: Policy) -> Ranks:
    """Rank the targets by scores ``counts`` ``[N]`` that are the same for all users.

    Equals ``rank_targets`` for such a scorer, but reads sorted counts and the histories instead of ``N`` scores
    per user, which is much cheaper.
    """
    ascending = np.sort(counts)
    own = counts[queries.targets]
    not_above = np.searchsorted(ascending, own, side="right")
    above, ties = len(counts) - not_above, not_above - np.searchsorted(ascending, own, side="left")
    if policy == "all":
        return Ranks(above, ties)

    def per_query(rows: Index) -> Index:
        return np.bincount(rows, minlength=len(queries))

    rows, items = _distinct_pairs(*queries.seen(), len(counts))
    others = items != queries.targets[rows]
    seen = per_query(rows[~others]) > 0
    excluded = per_query(rows)
    rows, items = rows[others], items[others]
    above = above - per_query(rows[counts[items] > own[rows]])
    ties = ties - per_query(rows[counts[items] == own[rows]])
    return Ranks(np.where(seen, len(counts) - excluded, above), np.where(seen, excluded, ties))


def _distinct_pairs(rows: Index, items: Index, num_items: int) -> tuple[Index, Index]:
    """Distinct pairs ``(row, item)``."""
    pairs = np.unique(rows * num_items + items)
    return pairs // num_items, pairs % num_items
