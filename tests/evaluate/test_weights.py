"""The search for weights, on data in which it is known what helps."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy import sparse

from iisan.data.sequences import Sequences
from iisan.data.splits import Queries, given_queries
from iisan.errors import DataError
from iisan.evaluate import weights as weights_module
from iisan.evaluate.metrics import METRICS, ranked_rows, summarise
from iisan.evaluate.ranks import rank_targets
from iisan.evaluate.scorer import EmbeddingScorer
from iisan.evaluate.terms import REPEAT, TermScorer, Transitions, Weights
from iisan.evaluate.weights import Choice, choose_weights

N, S, USERS, WIDTH = 300, 3, 60, 8
START = Weights(anchor={"text": 1.0, "image": 1.0}, decay=0.7, popularity=0.05, transitions=1.0)


def random_unit(rng):
    return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(N, WIDTH))).float(), dim=1)


def planted(helps="text", repeated=0, seed=0, length=4, place=1):
    """A scorer of which one term alone is about the targets, and queries; each n-th may repeat an item."""
    rng = np.random.default_rng(seed)
    histories = np.stack([rng.permutation(N)[:length] for _ in range(USERS)])
    targets = rng.integers(0, N if helps != "popularity" else 8, USERS)
    anchors = {name: random_unit(rng) for name in ("text", "image")}
    counts, shares = rng.integers(1, 50, N), sparse.random_array((N, N), density=0.02, rng=rng, dtype=np.float32)
    shares = shares.tolil()
    for user, history in enumerate(histories):
        if helps in anchors:
            # Among the ten items that are most similar to the last one.
            similar = (anchors[helps] @ anchors[helps][history[-1]]).topk(10).indices.numpy()
            targets[user] = rng.choice(np.setdiff1d(similar, history))
        elif helps == "transitions":
            targets[user] = rng.choice(np.setdiff1d(np.arange(N), history))
            shares[history[-1], targets[user]] = 1.0
        if repeated and user % repeated == 0:
            targets[user] = history[place]
    if helps == "popularity":
        counts = np.ones(N, np.int64)
        counts[targets] = 1000
    neighbours = sparse.eye_array(N, dtype=np.float32, format="csr")
    neighbours.resize(N + 1, N)
    scorer = TermScorer((), anchors, torch.from_numpy(counts), Transitions(shares.tocsr(), neighbours), START, S)
    rows = np.concatenate([histories, targets[:, None]], axis=1)
    offsets = np.arange(0, rows.size + 1, length + 1)
    return scorer, given_queries(Sequences(offsets, rows.ravel().astype(np.int32)), np.arange(USERS))


def exact(scorer, weights, queries: Queries, policy, metric="hr@10"):
    rows = ranked_rows(queries, policy)
    ranks = rank_targets(scorer.reweighted(weights), queries[rows], policy)
    return summarise(ranks.above, ranks.ties, pl.Series(queries.users[rows]), (10, 20, 100))[metric]


@pytest.mark.parametrize("helps", ["text", "image", "popularity", "transitions"])
def test_the_one_term_that_helps_gets_the_weight(helps):
    scorer, queries = planted(helps)
    weights = choose_weights(scorer, queries, "all", "hr@10").weights
    found = {**weights.anchor, "popularity": weights.popularity, "transitions": weights.transitions}
    assert found.pop(helps) > 0
    assert exact(scorer, weights, queries, "all") > max(0.7, exact(scorer, START, queries, "all"))
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("metric", ["hr@10", "ndcg@20", "ndcg@100"])
@pytest.mark.parametrize("policy", ["unseen", "all", "exclude-all"])
def test_the_reported_metric_is_that_of_a_full_ranking(policy, metric):
    scorer, queries = planted("image", repeated=6)
    weights, record = (found := choose_weights(scorer, queries, policy, metric)).weights, found.record
    assert record["validation"] == pytest.approx(exact(scorer, weights, queries, policy, metric))
    assert record["validation"] > exact(scorer, START, queries, policy, metric)
    assert record["without"]["anchor of image"] < record["validation"] / 2
    assert (record["metric"], record["policy"], record["queries"]) == (metric, policy, USERS)
    assert json.loads(json.dumps(found.record)) == found.record


def test_the_choice_is_deterministic():
    first, second = (choose_weights(*planted("text", repeated=5), "all", "hr@10") for _ in range(2))
    assert first == second
    assert isinstance(first, Choice)


def test_the_best_of_several_starts_is_chosen():
    """Beside popularity alone, anchors have no scale at which they could be tried: that start leads nowhere."""
    scorer, queries = planted("text")
    nothing = Weights(anchor={"text": 0.0, "image": 0.0}, popularity=1.0)
    assert choose_weights(scorer, queries, "all", "hr@10", [nothing]).record["validation"] < 0.9
    found = [choose_weights(scorer, queries, "all", "hr@10", starts) for starts in ([nothing, START], [START])]
    assert found[0].weights == found[1].weights


def test_repeats_keep_their_default_where_none_is_seen():
    scorer, queries = planted("text")
    weights = choose_weights(scorer, queries, "unseen", "hr@10").weights
    assert weights.repeats == REPEAT * sum(weights.anchor.values()) < 0


def test_of_equally_good_weights_of_repeats_the_default_is_chosen():
    """The repeated items are further back than the last S, so that no weight of these finds them."""
    scorer, queries = planted("text", repeated=5, place=0)
    weights = choose_weights(scorer, queries, "all", "hr@10").weights
    assert weights.repeats == REPEAT * sum(weights.anchor.values()) < 0
    lower = replace(weights, repeats=8 * weights.repeats)
    assert exact(scorer, lower, queries, "all") == exact(scorer, weights, queries, "all")


@pytest.mark.parametrize("policy", ["all", "unseen"])
def test_repeats_are_rewarded_where_people_buy_again(policy):
    """Also for a run whose own policy does not rank them: the weight is for lists with all items."""
    scorer, queries = planted("text", repeated=2)
    weights = choose_weights(scorer, queries, policy, "hr@10").weights
    assert weights.repeats > 0
    worse = replace(weights, repeats=REPEAT * sum(weights.anchor.values()))
    assert exact(scorer, weights, queries, "all") > exact(scorer, worse, queries, "all")


def test_a_member_that_knows_the_targets_leads():
    scorer, queries = planted("none")
    rng = np.random.default_rng(5)
    items = random_unit(rng)
    answers = {
        tuple(history): items[target]
        for history, target in zip(queries.histories(S), queries.targets, strict=True)
    }

    def encode(histories):
        return torch.stack([answers[tuple(history)] for history in histories])

    members = [EmbeddingScorer(random_unit(rng), lambda each: torch.ones(len(each), WIDTH), S)]
    members.insert(0, EmbeddingScorer(items, encode, S))
    weights = replace(START, learned=(1.0, 1.0))
    joined = TermScorer(members, scorer.anchors, scorer.counts, scorer.transitions, weights, S)
    found = choose_weights(joined, queries, "all", "hr@10")
    assert found.weights.learned[0] > 0 == found.weights.learned[1]
    assert exact(joined, found.weights, queries, "all") == found.record["validation"] == 1.0
    assert found.record["without"].keys() == {
        *("member 1", "member 2", "anchor of text", "anchor of image", "popularity", "transitions")
    }


def test_targets_without_interactions_decide_between_weights_that_are_as_good(monkeypatch):
    """Popularity helps those who bought the most popular items, and hides items that nobody bought yet."""
    scorer, queries = planted("text", seed=5)
    scorer.counts[queries.targets[::5]] = 500
    scorer.counts[queries.targets[1::5]] = 0
    cold = np.flatnonzero(scorer.counts.numpy()[queries.targets] == 0)
    scorer = TermScorer((), scorer.anchors, scorer.counts, scorer.transitions, START, S)
    found = choose_weights(scorer, queries, "all", "hr@10").weights
    search = weights_module._search

    def without_cold(candidates, *arguments):
        candidates.cold[:] = False
        return search(candidates, *arguments)

    monkeypatch.setattr(weights_module, "_search", without_cold)
    plain = choose_weights(scorer, queries, "all", "hr@10").weights
    assert exact(scorer, found, queries[cold], "all") > exact(scorer, plain, queries[cold], "all")
    ranks = [rank_targets(scorer.reweighted(weights), queries, "all") for weights in (plain, found)]
    for metric in (METRICS["hr"], METRICS["ndcg"]):
        before, after = (metric(each.above, each.ties, 10) for each in ranks)
        assert (before - after).mean() <= (before - after).std() / len(before) ** 0.5


def test_nothing_to_choose_on():
    scorer, queries = planted("text", repeated=1)
    with pytest.raises(DataError, match=r"no validation query with a target outside its history.*the policy all"):
        choose_weights(scorer, queries, "unseen", "hr@10")
