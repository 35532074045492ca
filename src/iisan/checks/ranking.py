"""Invariants of an evaluation: queries, ranks and lists, compared with what is known without the ranking.

Legend: Q queries, N items, S items of a history that the scorer reads.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import polars as pl
import torch

from iisan.checks.subject import NotCheckedError, Outcome, Subject, at_hand, histories_of
from iisan.config import Policy
from iisan.data.splits import Queries, Split, Subset
from iisan.evaluate.baselines import FixedScorer
from iisan.evaluate.metrics import Ranks, hit_rate, metrics_from_frame
from iisan.evaluate.probes import RandomScorer, RepeatScorer
from iisan.evaluate.ranks import rank_targets, top_k
from iisan.evaluate.scorer import Scorer
from iisan.evaluate.terms import TermQuery
from iisan.names import ITEM_ID, PAD, USER_ID
from iisan.runs.run import PER_USER
from iisan.serve.lists import ListMaker

#: Random ranks that are drawn, at least.
_DRAWS = 5000
#: Standard errors beyond which a mean is not chance.
_ERRORS = 5.0
#: Length of the lists in which the ranked targets are looked up.
_LENGTH = 100
#: Pairs of histories whose scores are compared: at most, and at least.
_PAIRS, _FEWEST = 64, 5
#: Differences of scores, relative to their range, that rounding may cause.
_ROUNDING = 1e-5
#: Items among which equal ones are searched, and how many pairs of them are scored for how many histories.
_SEARCHED, _EQUAL, _HISTORIES = 20_000, 200, 16
#: Largest change of a rank that other hardware may cause, as a share of the rank, and of how many targets.
_MOVED, _MANY = 0.01, 0.01
#: Numbers that one batch of a probe may hold.
_NUMBERS = 2**25


def follow_the_split(subject: Subject) -> Outcome:
    """Histories end right before their target, in the order of time, and no target was trained on."""
    split = subject.split
    faults: dict[str, int] = {}
    for name in get_args(Subset):
        queries = split.subset(name)
        sequences, ends = queries.sequences, queries.ends
        inside = ends < len(sequences.items)
        at_end = sequences.items[np.where(inside, ends, 0)]
        broken = {f"{name} histories do not end right before their target": ~inside | (at_end != queries.targets)}
        if sequences is split.sequences:
            first, last = sequences.offsets[queries.users], sequences.offsets[queries.users + 1]
            others = (queries.starts < first) | (ends >= last)
            broken[f"{name} histories hold interactions of other users"] = others
            broken[f"{name} targets are in the training part"] = ends < split.train_ends[queries.users]
        sample = queries.sample(len(subject.test))
        read = sample.histories(subject.run.scorer.history_length)
        expected = histories_of(sample)
        broken[f"sampled {name} histories reach a model with other items"] = np.array(
            [
                [item for item in ours if item != PAD] != theirs[-len(ours) :]
                for ours, theirs in zip(read.tolist(), expected, strict=True)
            ]
        )
        faults |= {text: int(mask.sum()) for text, mask in broken.items()}
    if split.validation.sequences is split.test.sequences is split.sequences:
        shared = np.intersect1d(split.validation.ends, split.test.ends)
        faults["targets are both of validation and of test"] = len(shared)
    if (times := split.sequences.timestamps) is not None:
        owners = np.repeat(np.arange(split.sequences.num_users), split.sequences.lengths)
        backwards = (np.diff(times) < 0) & (np.diff(owners) == 0)
        faults["interactions are earlier than the one before them"] = int(backwards.sum())
    total = f"{len(split.validation):,} validation and {len(split.test):,} test queries"
    found = [f"{count:,} {text}" for text, count in faults.items() if count]
    if found:
        return Outcome(f"of {total}: {'; '.join(found)}", False, faults)
    text = f"{total}; every history ends right before its target"
    if split.test.sequences is split.sequences:
        text += ", which is not in the training part"
    else:  # The dataset decides what is trained on, so this is no fault of the run.
        share = float(_trained_on(split, subject.test).mean())
        text += f"; {share:.1%} of the test targets are also training interactions of their user"
    return Outcome(text, True, faults)


def _trained_on(split: Split, queries: Queries) -> Any:
    """Whether a training interaction of each query's user is the target, which the history lacks, ``[Q]``."""
    items, starts, ends = split.sequences.items, split.train_starts, split.train_ends
    known = split.sequences.num_users  # Further users have no interactions.
    every = zip(queries.users, queries.targets, histories_of(queries), strict=True)
    return np.array(
        [
            user < known and target not in history and target in items[starts[user] : ends[user]]
            for user, target, history in every
        ]
    )


def seen_targets(subject: Subject) -> Outcome:
    """No target is in its own history, where the policy says so."""
    policy, queries = subject.policy, subject.test
    seen = np.array(
        [target in items for target, items in zip(queries.targets, histories_of(queries), strict=True)]
    )
    share = f"{seen.mean():.1%} of {len(seen):,} sampled targets are in their own history"
    if policy == "all":
        raise NotCheckedError(f"the policy all ranks them like others; {share}")
    if policy == "exclude-all":
        repeated = queries[np.flatnonzero(seen)]
        ranks, excluded = _rank(RandomScorer(subject.num_items, 0), repeated, policy), _excluded(repeated)
        wrong = int(((ranks.above + ranks.ties != subject.num_items) | (ranks.ties != excluded)).sum())
        return Outcome(f"{share}; {wrong:,} of these are not ranked as misses", not wrong, {"wrong": wrong})
    # Those that the policy ranks, looked up among all of them.
    ranked = subject.ranked
    wrong = sum(target in items for target, items in zip(ranked.targets, histories_of(ranked), strict=True))
    text = f"{wrong:,} of {len(ranked):,} ranked targets are in their own history; {share}, and left out"
    return Outcome(text, not wrong, {"wrong": int(wrong), "seen": float(seen.mean())})


def random_gives_chance(subject: Subject) -> Outcome:
    """Random scores rank a target anywhere among its candidates, evenly."""
    queries = _competing(subject)
    candidates = subject.num_items - (np.zeros(len(queries)) if subject.policy == "all" else _excluded(queries))
    if (candidates < 2).any():
        raise NotCheckedError("some targets compete with no other item")
    k = max(1, int(candidates.min()) // 10)
    places, hits = [], []
    draws = math.ceil(_DRAWS / len(queries))
    for seed in range(draws):
        ranks = _rank(RandomScorer(subject.num_items, seed), queries, subject.policy)
        places.append((ranks.above + (ranks.ties - 1) / 2) / (candidates - 1))
        hits.append(hit_rate(ranks.above, ranks.ties, k))
    total = draws * len(queries)
    chance = k / candidates
    expected = {"place": 0.5, "hits": float(chance.mean())}
    variances = {"place": (candidates + 1) / (12 * (candidates - 1)), "hits": chance * (1 - chance)}
    measured = {"place": float(np.mean(places)), "hits": float(np.mean(hits))}
    errors = {name: math.sqrt(each.mean() / total) for name, each in variances.items()}
    off = {name: (measured[name] - expected[name]) / errors[name] for name in measured}
    text = (
        f"HR@{k} {measured['hits']:.2%}, by chance {expected['hits']:.2%} ± {errors['hits']:.2%}; mean place "
        f"{measured['place']:.3f} of 0 to 1, by chance 0.5 ± {errors['place']:.3f} ({total:,} ranks)"
    )
    values = {"measured": measured, "expected": expected, "standard_errors": errors}
    if (worst := max(map(abs, off.values()))) <= _ERRORS:
        return Outcome(text, True, values)
    return Outcome(f"{text}: {worst:.0f} standard errors off", False, values)


def repeats_are_known(subject: Subject) -> Outcome:
    """A scorer of the items of the history ranks targets as counting these items says, if nothing is excluded."""
    queries, length, total = subject.test, subject.run.scorer.history_length, subject.num_items
    known = []
    for target, items in zip(queries.targets.tolist(), histories_of(queries), strict=True):
        recent = list(dict.fromkeys(reversed(items[-length:])))
        known.append((recent.index(target), 1) if target in recent else (len(recent), total - len(recent)))
    return _compared(RepeatScorer(total, length), queries, "all", known)


@torch.inference_mode()
def equal_scores_tie(subject: Subject) -> Outcome:
    """Items with the same scores share their ranks, whatever their order in the catalogue."""
    queries, total = _ranked(subject), subject.num_items
    known = []
    for target, items in zip(queries.targets.tolist(), histories_of(queries), strict=True):
        count = 0 if subject.policy == "all" else len(set(items))
        known.append((total - count, count) if count and target in items else (0, total - count))
    constant = _compared(FixedScorer(np.zeros(total)), queries, subject.policy, known)
    pairs = _equal_items(subject)
    if not constant.sound:
        return constant
    if not len(pairs):
        return replace(constant, seen=f"{constant.seen}; no two items of the run have equal vectors")
    scorer: Any = subject.run.scorer
    query = scorer.start(queries[:_HISTORIES].histories(scorer.history_length))
    scores = scorer.score(query, slice(0, total))[:, torch.from_numpy(pairs)].cpu()
    # Interactions tell items of equal content apart: the sparse terms of these.
    alike = np.ones(scores.shape[:2], bool)
    if isinstance(query, TermQuery):
        alike = (query.sparse[:, pairs.ravel()].toarray() == 0).reshape(scores.shape).all(-1)
    different = int(((scores[..., 0] != scores[..., 1]).numpy() & alike).sum())
    text = f"{different:,} of {alike.sum():,} scores of items with equal vectors differ"
    if different:
        text += f", by up to {float((scores[..., 0] - scores[..., 1]).abs().numpy()[alike].max()):.2g}"
    return Outcome(f"{constant.seen}; {text}", not different, {"different": different})


@torch.inference_mode()
def scores_depend_on_histories(subject: Subject) -> Outcome:
    """The items that may be listed after two histories do not have the same order for all histories."""
    scorer: Any = subject.run.scorer
    queries = subject.test[: _PAIRS + 1]
    read = queries.histories(scorer.history_length)
    histories, compared, equal = histories_of(queries), 0, 0
    for first, second in pairwise(range(len(queries))):
        excluded = [] if subject.policy == "all" else histories[first] + histories[second]
        others = np.setdiff1d(np.arange(subject.num_items), excluded)
        if (read[first] == read[second]).all() or len(others) < 2:
            continue
        scores = scorer.score(scorer.start(read[[first, second]]), slice(0, subject.num_items)).cpu()[:, others]
        ours = scores[1][scores[0].argsort(descending=True)]
        rises = (ours[1:] - ours[:-1]).max()
        compared, equal = compared + 1, equal + int(rises <= _ROUNDING * (ours.max() - ours.min()))
    if compared < _FEWEST:
        raise NotCheckedError(f"{compared} pairs of different histories, fewer than {_FEWEST}")
    text = f"{equal:,} of {compared:,} pairs of histories have the same order of all items"
    return Outcome(text, equal < compared, {"pairs": compared, "equal": equal})


def lists_agree(subject: Subject) -> Outcome:
    """A target stands in the list of its history where the evaluation ranked it."""
    run, queries = subject.run, _ranked(subject)
    k = min(_LENGTH, subject.num_items)
    ranks = _rank(run.scorer, queries, subject.policy)
    maker = ListMaker(run)
    if maker.index is None:
        lists, _ = maker.lists(queries, k, maker.select(filter_viewed=subject.policy != "all"))
    else:  # An index may miss items; what it was measured to find is in its manifest.
        lists, _ = top_k(run.scorer, queries, k, subject.policy)
    listed = lists == queries.targets[:, None]
    place = np.where(listed.any(1), listed.argmax(1), k)
    # A target that is in no list is excluded, or its ties may stand before it.
    excluded = ranks.above + ranks.ties == subject.num_items if subject.policy == "exclude-all" else False
    last = ranks.above + ranks.ties
    agree = np.where(place < k, (ranks.above <= place) & (place < last), (last > k) | excluded)
    wrong, found = int((~agree).sum()), int(listed.any(1).sum())
    text = f"{wrong:,} of {len(queries):,} targets stand elsewhere in the lists of {k} than they are ranked"
    values = {"wrong": wrong, "listed": found, "queries": len(queries)}
    return Outcome(f"{text} ({found:,} are listed)", not wrong, values)


def recorded_ranks_are_repeated(subject: Subject) -> Outcome:
    """The recorded metrics follow from the recorded ranks, and these are found again."""
    subject.require_same_data()
    run, split = subject.run, subject.split
    with at_hand():
        frame = pl.read_parquet(run.folder / PER_USER, glob=False)
    queries, ids = split.test, subject.dataset.items[ITEM_ID]
    same = len(frame) == len(queries) and frame[ITEM_ID].equals(ids.gather(queries.targets))
    if not (same and frame[USER_ID].equals(subject.dataset.user_ids.gather(queries.users))):
        return Outcome(f"'{PER_USER}' has other users or targets than the test subset", False)
    recorded = run.result["test"]
    again = metrics_from_frame(frame, subject.config.evaluation.cutoffs)
    off = {name: value for name, value in again.items() if abs(recorded.get(name, value) - value) > 1e-9}
    if off:
        name, value = next(iter(off.items()))
        text = f"{name} is recorded as {recorded[name]:.4%}, the recorded ranks give {value:.4%}"
        return Outcome(text, False, off)
    rows = np.flatnonzero(frame["ties"].is_not_null().to_numpy())
    rows = np.sort(np.random.default_rng(0).permutation(rows)[: len(subject.ranked)])
    ranks = _rank(run.scorer, queries[rows], subject.policy)
    before = frame[rows]["above"].to_numpy() + (frame[rows]["ties"].to_numpy() - 1) / 2
    now = ranks.above + (ranks.ties - 1) / 2
    moved = int((np.abs(now - before) > 1 + _MOVED * before).sum())
    text = (
        f"{len(again):,} recorded metrics follow from the ranks; {moved:,} of {len(rows):,} sampled targets have "
        f"another rank now (mean {now.mean() + 1:,.1f}, recorded {before.mean() + 1:,.1f})"
    )
    return Outcome(text, moved <= _MANY * len(rows), {"moved": moved, "queries": len(rows)})


def _ranked(subject: Subject) -> Queries:
    """Sample of the queries that have a rank, independently of the code that chooses them."""
    if subject.policy != "unseen":
        return subject.test
    return _without_seen(subject.test)


def _competing(subject: Subject) -> Queries:
    """Sample of the queries whose targets compete with others."""
    return subject.test if subject.policy == "all" else _without_seen(subject.test)


def _without_seen(queries: Queries) -> Queries:
    pairs = zip(queries.targets.tolist(), histories_of(queries), strict=True)
    rows = np.flatnonzero([target not in items for target, items in pairs])
    if not len(rows):
        raise NotCheckedError(f"all {len(queries):,} sampled targets are in their own histories")
    return queries[rows]


def _excluded(queries: Queries) -> Any:
    """Number of distinct items of each history, ``[Q]``."""
    return np.array([len(set(items)) for items in histories_of(queries)])


def _rank(scorer: Scorer, queries: Queries, policy: Policy) -> Ranks:
    return rank_targets(scorer, queries, policy, batch=max(1, min(128, _NUMBERS // scorer.num_items)))


def _compared(scorer: Scorer, queries: Queries, policy: Policy, known: list[tuple[int, int]]) -> Outcome:
    """Compare ranks with known numbers of items above a target and tied with it."""
    ranks = _rank(scorer, queries, policy)
    above, ties = np.array(known).T
    wrong = int(((ranks.above != above) | (ranks.ties != ties)).sum())
    measured = float(hit_rate(ranks.above, ranks.ties, 10).mean())
    expected = float(hit_rate(above, ties, 10).mean())
    text = f"HR@10 {measured:.2%}, by counting {expected:.2%}"
    if wrong:
        text += f"; {wrong:,} of {len(queries):,} targets have another rank"
    return Outcome(text, not wrong, {"measured": measured, "expected": expected, "wrong": wrong})


def _equal_items(subject: Subject) -> Any:
    """Pairs of items with equal vectors, ``[P, 2]``."""
    count = min(subject.num_items, _SEARCHED)
    first: dict[int, int] = {}
    pairs = []
    for item, row in enumerate(subject.run.scorer.vectors(slice(0, count)).cpu().numpy()):
        if (other := first.setdefault(hash(row.tobytes()), item)) != item:
            pairs.append((other, item))
    return np.array(pairs[:_EQUAL], dtype=np.int64).reshape(-1, 2)
