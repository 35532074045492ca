"""Explanations of scores, against scores and vectors computed one at a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from iisan.api import Recommender
from iisan.errors import DataError
from iisan.evaluate.terms import TermScorer, Weights
from iisan.names import PAD

QUICK = ("training.epochs=1", "training.batch_size=16", "loss.negatives=5", "training.precision=fp32")
WEIGHTS = {"anchor": {"image": 1.5, "text": -0.7}, "popularity": 0.2, "transitions": 3.0, "repeats": -0.6}
#: Longer than the run reads, with i3 (no text), i4 (no image), i5 (neither), and i7 twice.
LONG = [f"i{number}" for number in (20, 1, 8, 7, 3, 9, 11, 4, 5, 13, 7, 2)]
SHORT, SINGLE = ["i6", "i9", "i5"], ["i2"]


@pytest.fixture(scope="module")
def recommenders(prepared, tmp_path_factory):
    """Runs of every kind, with weights that are not zero."""
    out = tmp_path_factory.mktemp("explained")

    def fit(name, recipe, *overrides):
        folders = (prepared.dataset, prepared.states)
        return Recommender.fit(*folders, config=recipe, out=out / name, overrides=[*QUICK, *overrides]).run

    anchored, ids, similarity = (
        fit("anchored", "default"),
        fit("ids", "ids", "sequence.similarity=dot"),
        fit("similarity", "similarity"),
    )
    assert anchored.scorer.history_length == ids.scorer.history_length == 10
    members = (*anchored.members, *ids.members)
    runs = {
        "anchored": replace(anchored, scorer=anchored.scorer.reweighted(Weights((0.8,), decay=0.6, **WEIGHTS))),
        "joined": replace(
            anchored,
            members=members,
            scorer=anchored.anchoring.beside(members, Weights((0.8, -0.3), decay=0.9, **WEIGHTS)),
        ),
        "similarity": replace(similarity, scorer=similarity.scorer.reweighted(Weights(decay=0.6, **WEIGHTS))),
        "ids": ids,
    }
    return {name: Recommender(run) for name, run in runs.items()}


NAMES = ["anchored", "joined", "similarity", "ids"]


def score_of(run, history, item):
    rows = [int(each[1:]) for each in history][-10:]
    scorer = run.scorer
    query = scorer.start(np.array([[PAD] * (10 - len(rows)) + rows]))
    return float(scorer.score(query, torch.tensor([int(item[1:])])))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("history", [LONG, SHORT, SINGLE], ids=len)
@pytest.mark.parametrize("item", ["i0", "i4", "i7"])
def test_the_terms_and_the_parts_of_the_history_add_up(name, history, item, recommenders):
    run, found = recommenders[name].run, recommenders[name].explain(item, history=history)
    assert found.score == pytest.approx(score_of(run, history, item), rel=1e-5)
    assert sum(found.terms.values()) == pytest.approx(found.score, rel=1e-5, abs=1e-6)
    assert (found.item_id, found.interactions) == (item, len(history))
    assert [each.item_id for each in found.history] == history[-10:]
    learned = [f"member {number}" for number in range(1, len(run.members) + 1)]
    if not isinstance(run.scorer, TermScorer):
        assert list(found.terms) == learned == ["member 1"]
        assert all(each.anchor == each.similarity == {} for each in found.history)
        return
    others = ["anchor of image", "anchor of text", "popularity", "transitions", "repeats"]
    assert list(found.terms) == [*learned, *others]
    weights = run.scorer.weights
    for modality, anchors in run.scorer.anchors.items():
        parts = [each.anchor[modality] for each in found.history]
        one = anchors[int(item[1:])].double()
        for back, (part, past) in enumerate(zip(reversed(parts), reversed(found.history), strict=True)):
            cosine = float(anchors[int(past.item_id[1:])].double() @ one)
            expected = weights.anchor[modality] * weights.decay**back * cosine
            assert part == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert sum(parts) == pytest.approx(found.terms[f"anchor of {modality}"], rel=1e-5, abs=1e-6)
    assert "-0.0" not in map(str, found.terms.values())
    assert found.terms["repeats"] == (pytest.approx(-0.6) if item in history[-10:] else 0)
    if name == "joined":
        rows = np.array([[PAD] * (10 - len(history[-10:])) + [int(each[1:]) for each in history[-10:]]])
        for term, weight, member in zip(learned, weights.learned, run.members, strict=True):
            part = weight * float(member.start(rows)[0] @ member.items[int(item[1:])])
            assert found.terms[term] == pytest.approx(part, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("history", [LONG, LONG[-10:], SHORT], ids=len)
def test_an_item_is_taken_out_of_the_whole_history(name, history, recommenders):
    found = recommenders[name].explain("i7", history=history)
    kept = max(0, len(history) - 10)
    changes = [
        score_of(recommenders[name].run, history[:place] + history[place + 1 :], "i7") - found.score
        for place in range(kept, len(history))
    ]
    assert max(map(abs, changes)) > 0.01
    assert [each.change for each in found.history] == pytest.approx(changes, rel=1e-4, abs=1e-5)


def test_nothing_is_taken_out_of_a_history_of_one_item(recommenders):
    (only,) = recommenders["anchored"].explain("i7", history=SINGLE).history
    assert only.change is None


@pytest.mark.parametrize("name", NAMES)
def test_similarities_are_cosines_where_both_items_have_vectors(name, recommenders):
    run = recommenders[name].run
    lacking = {"text": ("i3", "i5"), "image": ("i4", "i5")}

    def cosine(vectors, one, other):
        one, other = (vectors[int(each[1:])].double() for each in (one, other))
        return float(one @ other / one.norm() / other.norm())

    for item in ("i0", "i4"):
        for past in recommenders[name].explain(item, history=LONG).history:
            for modality, found in past.similarity.items():
                absent = {item, past.item_id} & set(lacking[modality])
                anchors = run.scorer.anchors[modality]
                expected = None if absent else pytest.approx(cosine(anchors, item, past.item_id), abs=1e-5)
                assert found == expected
            cosines = [cosine(member.items, item, past.item_id) for member in run.members]
            expected = pytest.approx(np.mean(cosines), abs=1e-5) if cosines else None
            assert past.model_similarity == expected


@pytest.mark.parametrize("policy", ["unseen", "all", "exclude-all"])
def test_the_rank_is_that_of_the_runs_policy(policy, recommenders):
    run = recommenders["anchored"].run
    config = run.config.override([f"evaluation.policy={policy}"])
    recommender = Recommender(replace(run, config=config))
    scores = {f"i{number}": score_of(run, SHORT, f"i{number}") for number in range(30)}
    competing = [item for item in scores if policy == "all" or item not in SHORT]
    competing.sort(key=scores.__getitem__, reverse=True)
    for item in scores:
        found = recommender.explain(item, history=SHORT)
        assert (found.policy, found.num_items) == (policy, 30)
        if item in competing:
            assert (found.rank, found.tied) == (competing.index(item) + 1, 0)
        else:
            assert (found.rank, found.tied) == ((None, 0) if policy == "unseen" else (28, 2))


def test_a_user_is_explained_by_all_of_their_interactions(recommenders):
    dataset = recommenders["anchored"].dataset
    start, end = dataset.sequences.offsets[dataset.user_index("u7") :][:2]
    history = dataset.items["item_id"].gather(dataset.sequences.items[start:end]).to_list()
    found = recommenders["anchored"].explain("i0", user="u7")
    assert found == recommenders["anchored"].explain("i0", history=history)
    as_json = found.as_json()
    assert json.loads(json.dumps(as_json))["history"][0] == as_json["history"][0]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"item": "i77", "history": ["i1"]}, "unknown item 'i77'"),
        ({"item": "i1", "history": "i1"}, "is of type str; expected a sequence of item ids"),
        ({"item": "i1", "history": []}, "history is empty"),
        ({"item": "i1", "user": "nobody"}, "unknown user 'nobody'"),
        ({"item": "i1"}, "neither or both"),
    ],
)
def test_questions_that_cannot_be_answered(question, sentence, recommenders):
    with pytest.raises(DataError, match=sentence):
        recommenders["anchored"].explain(**question)


def test_the_command_line_explains_for_people_and_machines(recommenders, iisan):
    for name, shown in (("anchored", True), ("ids", False)):
        folder = recommenders[name].run.folder
        code, out, error = iisan("explain", folder, "--item", "i0", "--history", ",".join(LONG))
        assert (code, error) == (0, "")
        assert out.startswith("i0 after i20,i1,i8")
        assert "full ranking of 30 items, history excluded (unseen)" in out
        assert "last 10 of 12 items" in out
        assert "learned part" in out
        assert ("via image" in out) == ("anchor of text" in out) == shown
        code, out, _ = iisan("explain", folder, "--item", "i0", "--user", "u7", "--json")
        assert (code, json.loads(out)) == (0, Recommender.load(folder).explain("i0", user="u7").as_json())
    similarity = recommenders["similarity"].run.folder
    code, out, _ = iisan("explain", similarity, "--item", "i2", "--history", "i2")
    assert (code, "learned part" in out, "model" in out) == (0, False, False)
    assert "not ranked: it is in the history, which the policy unseen excludes" in out
    for arguments, sentence in (
        (("--item", "i77", "--history", "i1"), "unknown item 'i77'"),
        (("--item", "i0", "--history", " , "), "history is empty"),
        (("--item", "i0"), "neither or both of --user and --history"),
        (("--item", "i0", "--user", "u1", "--history", "i1"), "neither or both of --user and --history"),
    ):
        code, out, error = iisan("explain", similarity, *arguments)
        assert (code, out, len(error.splitlines())) == (2, "", 1)
        assert sentence in error


@pytest.mark.parametrize("name", NAMES)
def test_the_nearest_items_are_those_of_similar_items(recommenders, name):
    recommender = recommenders[name]
    found = recommender.explain("i8", history=SHORT).nearest
    kinds = {"similarity": ["text", "image"], "ids": ["model"]}.get(name, ["model", "text", "image"])
    assert list(found) == kinds
    for by, nearest in found.items():
        expected = recommender.similar_items(["i8"], k=3, by=by)
        assert [each.item_id for each in nearest] == expected["similar_id"].to_list()
        assert [each.score for each in nearest] == expected["score"].to_list()
    without = recommender.explain("i3", history=SHORT).nearest
    assert without.get("text", ()) == ()
