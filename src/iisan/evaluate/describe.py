"""What is in a dataset, and what of it makes an evaluation lie."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import polars as pl

from iisan.config import Policy
from iisan.data.sequences import Index, Sequences, ragged
from iisan.data.splits import Queries, Split
from iisan.evaluate.metrics import Ranks, hit_rate, ndcg, ranked_rows, target_seen
from iisan.names import IMAGE, TEXT

if TYPE_CHECKING:
    from iisan.data.dataset import Dataset

Unit = Literal["count", "number", "share"]
Rows = list[tuple[str, str, str]]


@dataclass(frozen=True)
class Fact:
    """One figure about a dataset.

    Attributes:
        label: its name for people.
        value: a count, a number or a share of 1; None where the dataset cannot tell.
        unit: which of these it is.
        of: for a count, the total that it is a part of.
        why: how it makes an evaluation lie; empty where it does not.
    """

    label: str
    value: float | None
    unit: Unit = "count"
    of: int | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return "unknown"
        if self.unit == "share":
            return f"{self.value:.3%}"
        if self.unit == "number":
            return f"{self.value:,.2f}"
        return f"{int(self.value):,}" + (f" ({self.value / self.of:.1%})" if self.of else "")


@dataclass(frozen=True)
class Description:
    """Facts by name, in the order in which they are printed."""

    facts: dict[str, Fact]

    def __getitem__(self, name: str) -> float | None:
        return self.facts[name].value

    def rows(self) -> Rows:
        """``(label, value, why it matters)`` of every fact; a count of 0 does not."""
        rows = []
        above = ""
        for fact in self.facts.values():
            why = "" if fact.unit == "count" and fact.value == 0 else fact.why
            rows.append((fact.label, str(fact), "as above" if why and why == above else why))
            above = why or above
        return rows

    def to_json(self) -> dict[str, Any]:
        """``{name: value}``, and ``{name}_share`` for a count that is part of a total."""
        values: dict[str, Any] = {}
        for name, fact in self.facts.items():
            values[name] = fact.value
            if fact.of and fact.value is not None:
                values[f"{name}_share"] = fact.value / fact.of
        return values


def describe(dataset: "Dataset", split: Split) -> Description:
    """Count what is in a dataset and what its split does to an evaluation.

    Args:
        dataset: items and sequences.
        split: of the same sequences.
    """
    return Description(
        _size(dataset)
        | _repeats(split)
        | _cold_start(split)
        | _content(dataset.items, [name for name in dataset.kinds if name not in (TEXT, IMAGE)])
        | _times(dataset.sequences)
        | _popularity(split)
    )


def _size(dataset: "Dataset") -> dict[str, Fact]:
    lengths = dataset.sequences.lengths
    return {
        "users": Fact("users", dataset.num_users),
        "items": Fact("items", dataset.num_items),
        "interactions": Fact("interactions", dataset.num_interactions),
        "mean_length": Fact("interactions per user, mean", float(lengths.mean()), "number"),
        "median_length": Fact("interactions per user, median", float(np.median(lengths)), "number"),
        "min_length": Fact("interactions per user, fewest", int(lengths.min())),
        "max_length": Fact("interactions per user, most", int(lengths.max())),
    }


def _repeats(split: Split) -> dict[str, Fact]:
    sequences = split.sequences
    rows, items = ragged(sequences.items, sequences.offsets[:-1], sequences.offsets[1:])
    distinct = np.bincount(_distinct_pairs(rows, items, split.num_items)[0], minlength=sequences.num_users)
    facts = {
        "repeat_users": Fact(
            "users with a repeated item",
            int((distinct < sequences.lengths).sum()),
            of=sequences.num_users,
            why="whoever takes an item again can be predicted from the history alone, without a model",
        )
    }
    for subset, queries in (("validation", split.validation), ("test", split.test)):
        facts[f"{subset}_targets_seen"] = Fact(
            f"{subset} targets already in the history",
            int(target_seen(queries).sum()),
            of=len(queries),
            why="left out under unseen, easy hits under all, misses under exclude-all: policies do not compare",
        )
    return facts


def _cold_start(split: Split) -> dict[str, Fact]:
    counts = split.train_counts()
    return {
        "cold_items": Fact(
            "items never seen in training",
            int((counts == 0).sum()),
            of=split.num_items,
            why="only their content can place them; leaving them out of the ranking flatters every model",
        ),
        "cold_test_targets": Fact(
            "test targets never seen in training",
            int((counts[split.test.targets] == 0).sum()),
            of=len(split.test),
            why="out of reach for a model of ids: one average hides two different tasks",
        ),
    }


def _content(items: pl.DataFrame, others: Iterable[str]) -> dict[str, Fact]:
    total = len(items)
    text = items[TEXT].str.strip_chars()
    no_text = text.is_null() | (text == "").fill_null(True)
    no_image = items[IMAGE].is_null()
    texts = text.filter(~no_text)
    characters = texts.str.len_chars()
    lengths = {
        "median_characters": ("characters of text, median", characters.median()),
        "max_characters": ("characters of text, most", characters.max()),
    }
    return {
        "redundant_texts": Fact(
            "items whose text another item has already",
            len(texts) - texts.n_unique(),
            of=total,
            why="the same content gives the same score: a tie, which sorting settles by accident",
        ),
        "missing_text": Fact("items without text", int(no_text.sum()), of=total),
        "missing_image": Fact("items without an image", int(no_image.sum()), of=total),
        **{
            f"missing_{name}": Fact(f"items without {name}", items[name].null_count(), of=total) for name in others
        },
        "missing_all": Fact(
            "items without any content",
            int(
                pl.select(pl.all_horizontal(no_text, no_image, *(items[name].is_null() for name in others)))
                .to_series()
                .sum()
            ),
            of=total,
            why="they are all the same to a content model, and tie with each other",
        ),
    } | {
        name: Fact(label, None if value is None else float(value), "number")  # type: ignore[arg-type]
        for name, (label, value) in lengths.items()
    }


def _times(sequences: Sequences) -> dict[str, Fact]:
    total, times = len(sequences.items), sequences.timestamps
    same = None
    if times is not None:
        rows = np.repeat(np.arange(sequences.num_users), sequences.lengths)
        same = int(((times[1:] == times[:-1]) & (rows[1:] == rows[:-1])).sum())
    return {
        "without_timestamp": Fact(
            "interactions without a timestamp",
            total if times is None else 0,
            of=total,
            why="a leave-one-out split trains on what happened after some of its test targets",
        ),
        "equal_timestamps": Fact(
            "interactions at the same time as the user's one before",
            same,
            of=total,
            why="their order, and with it the target, is the order of the file",
        ),
    }


def _popularity(split: Split) -> dict[str, Fact]:
    counts = np.sort(np.bincount(split.sequences.items, minlength=split.num_items))
    facts = {
        "gini": Fact(
            "Gini coefficient of item popularity (0 equal, 1 one item)",
            _gini(counts),
            "number",
            why="the more skewed, the better a list of the most popular items looks",
        )
    }
    for percent in (1, 10):
        head = -(-split.num_items * percent // 100)
        facts[f"top_{percent}_percent"] = Fact(
            f"interactions with the top {percent}% of items", int(counts[-head:].sum()), of=int(counts.sum())
        )
    train_counts = split.train_counts()
    for policy in get_args(Policy):
        queries = split.test[ranked_rows(split.test, policy)]
        ranks = popularity_ranks(train_counts, queries, policy)
        for name, metric in (("hr", hit_rate), ("ndcg", ndcg)):
            facts[f"most_popular_{name}@10_{policy}"] = Fact(
                f"most popular items, test {name.upper()}@10, {policy}",
                float(metric(ranks.above, ranks.ties, 10).mean()) if len(queries) else None,
                "share",
                why="a model that does not beat this has learned nothing about users",
            )
    return facts


def _gini(ascending: Index) -> float:
    """Gini coefficient of counts in ascending order."""
    size = len(ascending)
    weights = 2 * np.arange(1, size + 1) - size - 1
    return float((weights * ascending).sum() / (size * ascending.sum()))


def popularity_ranks(counts: Index, queries: Queries, policy: Policy) -> Ranks:
    """Rank the targets by one score per item, the same for all users.

    Gives what ``rank_targets`` gives for such a scorer, from sorted counts and the histories instead of
    ``N`` scores a user: a description stays cheap where a ranking is not.

    Args:
        counts: ``[N]`` the scores.
        queries: ``Q`` histories with their targets.
        policy: which items are excluded, see ``rank_targets``.
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
    """Pairs ``(row, item)`` without repetition."""
    pairs = np.unique(rows * num_items + items)
    return pairs // num_items, pairs % num_items
