import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iisan.data.sequences import Sequences
from iisan.data.splits import Queries
from iisan.errors import ConfigError, RunError
from iisan.evaluate import ranks as ranks_module
from iisan.evaluate.baselines import FixedScorer
from iisan.evaluate.metrics import hit_rate, ranked_rows
from iisan.evaluate.ranks import rank_targets, top_k
from iisan.evaluate.scorer import EmbeddingScorer

POLICIES = ["unseen", "all", "exclude-all"]


def make_queries(histories, targets):
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    return Queries(
        Sequences(offsets, items), np.arange(len(histories)), offsets[:-1], offsets[1:], np.array(targets)
    )


class TableScorer:
    """Scores written down: row = the history's last item, or the last row for an empty history."""

    history_length = 1

    def __init__(self, table):
        self.table = torch.as_tensor(table, dtype=torch.float32)
        self.num_items = self.table.shape[1]

    def start(self, histories):
        return torch.from_numpy(histories[:, -1])

    def score(self, query, items):
        return self.table[query][:, items].clone()


def naive_scores(table, history, policy):
    row = table[history[-1] if history else -1]
    excluded = () if policy == "all" else history
    return [-np.inf if item in excluded else row[item] for item in range(len(row))]


@st.composite
def problems(draw):
    num_items = draw(st.integers(1, 12))
    items = st.integers(0, num_items - 1)
    histories = draw(st.lists(st.lists(items, max_size=5), min_size=1, max_size=7).filter(any))
    targets = [draw(items) for _ in histories]
    # Few distinct values, so that ties are the rule.
    table = draw(
        st.lists(
            st.lists(st.sampled_from([-1.5, -0.0, 0.0, 1.0, 2.0]), min_size=num_items, max_size=num_items),
            min_size=num_items + 1,
            max_size=num_items + 1,
        )
    )
    return table, histories, targets


sizes = {"batch": st.integers(1, 8), "block": st.integers(1, 14), "policy": st.sampled_from(POLICIES)}


@given(problem=problems(), **sizes)
def test_ranks_equal_a_naive_full_sort(problem, policy, batch, block):
    table, histories, targets = problem
    queries = make_queries(histories, targets)
    rows = ranked_rows(queries, policy)
    expected = [row for row, target in enumerate(targets) if policy != "unseen" or target not in histories[row]]
    assert rows.tolist() == expected
    ranks = rank_targets(TableScorer(table), queries[rows], policy, batch=batch, block=block)
    assert ranks.above.dtype == ranks.ties.dtype == np.int64
    for user, row in enumerate(rows):
        target = targets[row]
        scores = naive_scores(table, histories[row], policy)
        ordered = sorted(scores, reverse=True)
        assert ranks.above[user] == ordered.index(scores[target])
        assert ranks.ties[user] == ordered.count(scores[target])


@given(
    problem=problems(),
    k=st.integers(1, 15),
    barred=st.none() | st.sets(st.integers(0, 11)),
    chunk=st.integers(1, 3) | st.just(64),
    **sizes,
)
def test_top_k_equals_a_naive_full_sort(problem, k, barred, chunk, policy, batch, block):
    table, histories, targets = problem
    scorer, queries = TableScorer(table), make_queries(histories, targets)
    allowed = None if barred is None else ~np.isin(np.arange(scorer.num_items), list(barred))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks_module, "_CHUNK", chunk)
        items, values = top_k(scorer, queries, k, policy, allowed, batch=batch, block=block)
    assert items.shape == values.shape == (len(histories), k)
    for user, history in enumerate(histories):
        scores = naive_scores(table, history, policy)
        best = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
        best = [item for item in best if scores[item] > -np.inf and item not in (barred or ())][:k]
        missing = k - len(best)
        assert items[user].tolist() == best + [-1] * missing
        assert values[user].tolist() == [scores[item] for item in best] + [-np.inf] * missing


@pytest.mark.parametrize(
    ("users", "num_items", "width", "batch", "block"),
    [
        (1, 1000, 64, 512, 2000),
        (1, 1000, 64, 512, 333),
        (7, 1000, 65, 3, 999),
        (40, 777, 3, 16, 50),
        (33, 500, 768, 32, 17),
        (5, 100, 64, 5, 1),
        (3, 20314, 64, 2, 20314),
        (2, 999, 384, 2, 5),
        (130, 1200, 64, 128, 1199),
    ],
)
def test_duplicate_items_tie_exactly_wherever_they_stand(users, num_items, width, batch, block):
    generator = torch.Generator().manual_seed(users)
    distinct = torch.randn(-(-num_items // 4), width, generator=generator)
    shuffled = torch.randperm(num_items, generator=generator)
    embeddings = distinct.repeat(4, 1)[:num_items][shuffled]
    kind = (shuffled % len(distinct)).numpy()
    vectors = torch.randn(users, width, generator=generator)
    rng = np.random.default_rng(users)
    queries = make_queries([[user] for user in range(users)], rng.integers(0, num_items, users))
    scorer = EmbeddingScorer(embeddings, lambda histories: vectors[histories[:, -1]], 1)
    ranks = rank_targets(scorer, queries, "all", batch=batch, block=block)
    of_kind = np.bincount(kind)
    assert ranks.ties.tolist() == of_kind[kind[queries.targets]].tolist()
    exact = (vectors.double() @ distinct.double().T).numpy()
    own = exact[np.arange(users), kind[queries.targets]][:, None]
    naive = ((exact > own) * of_kind).sum(1)
    # The naive ranking is in float64, where near-equal scores of different items may change places.
    assert np.abs(ranks.above - naive).max() <= 4
    assert (ranks.above == naive).mean() > 0.9


def test_policies_when_the_target_is_in_the_history():
    # Item scores 5 4 3 2 1; the history is items 0, 2 and 2 again; the target is 2.
    scorer = FixedScorer(np.array([5, 4, 3, 2, 1]))
    queries = make_queries([[0, 2, 2]], [2])
    results = {policy: rank_targets(scorer, queries, policy) for policy in ("all", "exclude-all")}
    counts = {policy: (ranks.above[0], ranks.ties[0]) for policy, ranks in results.items()}
    # exclude-all: the three others are above, and the target ties with item 0 at the end.
    assert counts == {"exclude-all": (3, 2), "all": (2, 1)}
    assert ranked_rows(queries, "unseen").tolist() == []
    with pytest.raises(ConfigError, match="leave them out with ranked_rows"):
        rank_targets(scorer, queries, "unseen")
    lists = {policy: top_k(scorer, queries, 5, policy)[0].tolist() for policy in POLICIES}
    unseen = [[1, 3, 4, -1, -1]]
    assert lists == {"unseen": unseen, "all": [[0, 1, 2, 3, 4]], "exclude-all": unseen}


@pytest.mark.parametrize("block", [32768, 3001, 3000])
@pytest.mark.parametrize("values", [3, 10**6])
def test_top_k_of_a_large_catalogue(block, values):
    """Of few values nearly all scores tie, and of many hardly any."""
    rng = np.random.default_rng(values)
    table = rng.integers(0, values, (5, 9007))
    items, scores = top_k(TableScorer(table), make_queries([[0], [1], [2], [3]], [0] * 4), 10, "all", block=block)
    expected = np.argsort(-table[:4], axis=1, kind="stable")[:, :10]
    assert (items == expected).all()
    assert (scores == np.take_along_axis(table[:4], expected, 1)).all()


@pytest.mark.parametrize(("num_items", "block", "columns"), [(100, 32, [25] * 4), (97, 32, [25] * 4), (9, 9, [9])])
def test_blocks_are_even(num_items, block, columns):
    widths = []

    class Recorder(TableScorer):
        def score(self, query, items):
            widths.append(items.stop - items.start)
            return super().score(query, items)

    top_k(Recorder(np.zeros((2, num_items))), make_queries([[0]], [0]), 3, "all", block=block)
    assert widths == columns


def test_a_constant_scorer_scores_chance():
    rng = np.random.default_rng(0)
    num_items = 40
    histories = [rng.integers(0, num_items, 5).tolist() for _ in range(20)]
    queries = make_queries(histories, rng.integers(0, num_items, 20))
    ranks = rank_targets(FixedScorer(np.zeros(num_items)), queries, "all", block=7)
    assert hit_rate(ranks.above, ranks.ties, 10).tolist() == [10 / num_items] * 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rank", [rank_targets, lambda *arguments: top_k(*arguments[:2], 2, arguments[2])])
def test_scores_that_are_no_numbers_are_refused(rank, bad):
    table = torch.zeros(4, 3)
    table[1, 2] = bad
    with pytest.raises(RunError, match="diverged"):
        rank(TableScorer(table), make_queries([[0], [1]], [0, 0]), "all")


def test_sizes_out_of_range_are_refused():
    scorer, queries = FixedScorer(np.zeros(3)), make_queries([[0]], [1])
    with pytest.raises(ConfigError, match="blocks of 0"):
        rank_targets(scorer, queries, "all", block=0)
    with pytest.raises(ConfigError, match="batches of 0"):
        rank_targets(scorer, queries, "all", batch=0)
    with pytest.raises(ConfigError, match="lists of 0"):
        top_k(scorer, queries, 0)
    for k in ("3", 1.5, True, None):
        with pytest.raises(ConfigError, match=f"lists of {k!r} items"):
            top_k(scorer, queries, k)
