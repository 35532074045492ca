"""Every source from its files to a recommender, on files in its true layout."""

import json

import pytest

from iisan.api import Recommender
from iisan.cli.prepare import FORMATS
from iisan.data.options import PrepareOptions
from iisan.data.prepare import prepare
from iisan.data.readers import READERS
from iisan.errors import DataError
from iisan.evaluate.describe import describe
from iisan.states.caching import cache
from source_files import LOG, NOON, TITLES, picture
from sources import (
    FIXTURES,
    amazon_2018,
    amazon_2023,
    goodreads,
    hm,
    kuairand,
    microlens,
    movielens_1m,
    movielens_100k,
    movielens_csv,
    ninerec,
    otto,
    pixelrec,
    recbole,
    steam,
    yelp,
)


def histories(dataset):
    frame = dataset.interactions().group_by("user_id", maintain_order=True).agg("item_id")
    return dict(frame.iter_rows())


@pytest.mark.parametrize("write", FIXTURES, ids=lambda write: write.__name__)
def test_every_source_is_recognised_and_becomes_a_recommender(write, tmp_path, model_folders):
    form, dropped = FIXTURES[write]
    write(tmp_path / "raw")
    # Videos of KuaiRand have no title; in the fixture, tags are words. The tiny encoder knows no Chinese.
    options = PrepareOptions(
        columns={"tag": "text"} if form == "kuairand" else {}, text="title_en" if form == "ninerec" else None
    )
    dataset = prepare("auto", [tmp_path / "raw"], tmp_path / "data", options)
    assert dataset.manifest["provenance"]["format"] == form
    assert dataset.manifest["counts"].get("dropped", {}) == dropped
    assert dataset.manifest["skipped"] == {}
    prefix = "010877501" if form == "hm" else ""
    by_time = sorted(LOG, key=lambda row: row[2])
    expected = {f"u{user}": [prefix + item for one, item, _ in by_time if one == f"u{user}"] for user in range(6)}
    found = histories(dataset)
    assert ({f"u{user}": items for user, items in found.items()} if form == "otto" else found) == expected
    assert {prefix + item for item in TITLES} == {*dataset.items["item_id"]}
    assert describe(dataset, dataset.split())["users"] == 6
    settings = ["training.device=cpu"]
    if form == "otto":  # no content: nothing to be similar
        recipe, states = "ids", None
        settings += ["anchor=false", "training.epochs=1", "training.batch_size=6"]
    else:
        recipe, states, text = "similarity", tmp_path / "states", "tag" if form == "kuairand" else "text"
        cache(dataset, states, {text: str(model_folders["bert"])}, dtype="fp32", precision="fp32")
    recommender = Recommender.fit(dataset, states, config=recipe, out=tmp_path / "run", overrides=settings)
    assert len(recommender.recommend(users=dataset.user_ids[:1].to_list(), k=3)) == 3


def test_the_help_lists_all_formats():
    assert FORMATS.split(" | ") == ["auto", *READERS]
    assert {form for form, _ in FIXTURES.values()} | {"table", "reference"} == {*READERS}


def prepared(write, folder, **options):
    write(folder / "raw")
    form, _ = FIXTURES[write]
    return prepare(form, [folder / "raw"], folder / "data", PrepareOptions(**options))


def test_amazon_2018(tmp_path):
    dataset = prepared(amazon_2018, tmp_path)
    items = dataset.items.sort("item_id")
    assert items["text"].to_list()[:4] == ["red blue green", "blue green", "green small A & B", None]
    assert items["price"].to_list()[3:5] == ["$2.50", None]
    assert items["description"][0] == "Strong. <b>Holds</b>"
    # The first picture in its sizes, not further pictures.
    large = [f"https://images.example/{n}.jpg" for n in range(8)]
    assert items["image_url"].to_list()[4:] == [large[4], f"{large[5]} {large[5][:-4]}-small.jpg", large[6], None]
    assert dataset.sequences.timestamps.min() == NOON


def test_ratings_count_by_rule(tmp_path):
    dataset = prepared(amazon_2018, tmp_path, min_weight=4.0, min_length=1)
    # Items whose number leaves 2 when divided by 3 have 3 stars; so has the repetition of none of them.
    expected = sum(int(item) % 3 < 2 for _, item, _ in LOG)
    assert dataset.num_interactions == expected
    assert dataset.manifest["provenance"]["options"]["weight"] == "overall"


def test_the_preset_of_the_paper_needs_both_modalities(tmp_path):
    amazon_2018(tmp_path / "raw")
    sources, options = [tmp_path / "raw"], PrepareOptions()
    with pytest.raises(DataError, match=r"no user is left .*complete items: 0 users"):
        prepare("amazon-2018", sources, tmp_path / "data", options, preset="paper")
    for item in "0124567":
        picture(tmp_path / "images" / f"{item}.jpg")
    chosen = options.model_copy(update={"images": tmp_path / "images", "sample_users": 2, "min_length": 4})
    dataset = prepare("amazon-2018", sources, tmp_path / "data", chosen, preset="paper")
    steps = [step["step"] for step in dataset.manifest["counts"]["steps"]]
    assert steps == ["read", "complete items", "min_length=4", "sample_users=2"]
    assert dataset.num_users == 2
    assert "3" not in dataset.items["item_id"]
    assert dataset.manifest["counts"]["missing"] == {"text": 0, "image": 0}
    again = prepare("amazon-2018", sources, tmp_path / "again", chosen, preset="paper")
    assert again.manifest["content_hash"] == dataset.manifest["content_hash"]
    other = prepare(
        "amazon-2018", sources, tmp_path / "other", chosen.model_copy(update={"seed": 3}), preset="paper"
    )
    assert other.user_ids.to_list() != dataset.user_ids.to_list()
    with pytest.raises(DataError, match="preset 'paper', which this format does not have"):
        prepare("movielens", [_written(movielens_csv, tmp_path)], tmp_path / "x", options, preset="paper")


def _written(write, folder):
    write(folder / write.__name__)
    return folder / write.__name__


def test_complete_items_without_images(tmp_path):
    dataset = prepared(amazon_2018, tmp_path, complete=True, image="none")
    # One item has page code for a title.
    assert dataset.items["item_id"].to_list() == [item for item in TITLES if item != "3"]
    by_time = [item for user, item, _ in sorted(LOG, key=lambda row: row[2]) if user == "u1" and item != "3"]
    assert histories(dataset)["u1"] == by_time


def test_amazon_2023(tmp_path):
    dataset = prepared(amazon_2023, tmp_path)
    items = dataset.items.sort("item_id")
    assert items["price"].to_list()[:4] == [3.99, None, None, 3.99]
    assert items["image_url"][2] == "https://i.example/2.jpg https://i.example/t.jpg"
    assert items["categories"][0] == "Tools Tapes"
    assert dataset.sequences.timestamps.min() == 1000 * NOON


def test_movielens(tmp_path):
    dataset = prepared(movielens_1m, tmp_path)
    assert dataset.items["text"][1] == "Léon: The Professional (1994)"
    assert dataset.items["year"][1] == 1994
    assert dataset.manifest["counts"]["missing"]["image"] == 0
    oldest = prepare(
        "movielens",
        [_written(movielens_100k, tmp_path)],
        tmp_path / "100k",
        PrepareOptions(min_weight=4, min_length=1),
    )
    assert oldest.items["text"][1] == "Misérables, Les (1995)"
    assert oldest.items["release_date"][1] == "01-Jan-1995"
    assert oldest.manifest["counts"]["left_out"] == {"weight": sum(1 + hour % 5 < 4 for _, _, hour in LOG)}
    from_csv = prepare("movielens", [_written(movielens_csv, tmp_path)], tmp_path / "csv")
    assert from_csv.items["text"][0] == "red blue green, The (2001)"
    assert from_csv.items["year"].to_list()[:2] == [2001, None]


def test_recbole(tmp_path):
    dataset = prepared(recbole, tmp_path)
    assert dataset.items["price"].to_list()[:3] == [0.5, None, 2.5]
    assert dataset.items["class"][0].to_list() == ["A", "B"]
    (tmp_path / "raw" / "toy.item").unlink()
    alone = prepare("auto", [tmp_path / "raw"], tmp_path / "alone")
    assert alone.items["item_id"].len() == 9
    assert alone.manifest["counts"]["missing"]["text"] == 9


def test_microlens_and_its_relatives(tmp_path):
    dataset = prepared(microlens, tmp_path / "m")
    assert dataset.items["text"][0] == "red blue green, #tag"
    assert dataset.manifest["counts"]["missing"]["image"] == 0
    head = (tmp_path / "m" / "raw" / "MicroLens-100k_title_en.csv").read_text()
    (tmp_path / "m" / "raw" / "MicroLens-100k_title_en.csv").write_text("item,title\n" + head)
    assert prepare("microlens", [tmp_path / "m" / "raw"], tmp_path / "again").num_items == 8
    dataset = prepared(pixelrec, tmp_path / "p")
    assert dataset.items["thumbup_number"].to_list() == [None] * 8
    assert dataset.items["view_number"][0] == 9.0
    dataset = prepared(ninerec, tmp_path / "n")
    assert dataset.items["text"][0] == "美食 0"
    assert dataset.items["title_en"][0] == "red blue green, fried"


def test_hm_keeps_leading_zeros_and_repeated_purchases(tmp_path):
    hm(tmp_path / "raw")
    path = tmp_path / "raw" / "transactions_train.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    dataset = prepare("auto", [tmp_path / "raw"], tmp_path / "data")
    assert dataset.num_interactions == len(LOG) + 1
    assert dataset.items["image"][3] == "010/0108775013.jpg"
    assert dataset.items["detail_desc"][0] == "Jersey, soft"
    path = tmp_path / "raw" / "articles.csv"
    path.write_text(path.read_text().replace('"Jersey, soft"', '"5" heel'))
    with pytest.raises(DataError, match="or pass --no-quotes"):
        prepare("hm", [tmp_path / "raw"], tmp_path / "data")
    dataset = prepare("hm", [tmp_path / "raw"], tmp_path / "data", PrepareOptions(quotes=False))
    assert dataset.items["detail_desc"][0] == '"5" heel'


def test_reviews_of_games_books_and_places(tmp_path):
    dataset = prepared(steam, tmp_path / "s")
    assert dataset.items["text"][1] == "blue green small"
    assert dataset.items["price"].to_list()[:3] == [4.99, 4.99, None]
    with pytest.raises(DataError, match=r"steam_reviews\.json\.gz, line 4: unparsable weight"):
        prepare("steam", [tmp_path / "s" / "raw"], tmp_path / "s" / "x", PrepareOptions(min_weight=0))
    dataset = prepared(goodreads, tmp_path / "g", event="is_read", events=("true",), min_length=2)
    assert dataset.num_interactions == sum(hour % 2 for _, _, hour in LOG)
    # 11:55:02 at seven hours behind UTC.
    assert dataset.sequences.timestamps.min() == 1_503_687_302_000_000
    dataset = prepared(yelp, tmp_path / "y", min_weight=4)
    assert dataset.items["text"][0] == "red blue green"
    assert dataset.items["stars"][0] == 3.5
    assert dataset.num_interactions == len(LOG)


def test_goodreads_dates(tmp_path):
    goodreads(tmp_path / "raw")
    extra = {"user_id": "u0", "book_id": "1", "rating": 1, "date_added": "2017-08-25"}
    with (tmp_path / "raw" / "more.json").open("w") as file:
        file.write(json.dumps(extra) + "\n")
    sources = [tmp_path / "raw" / "goodreads_books_comics.json.gz", tmp_path / "raw" / "more.json"]
    with pytest.raises(DataError, match=r"more\.json, line 1: unparsable timestamp '2017-08-25'"):
        prepare("goodreads", sources, tmp_path / "data")


def test_feedback_of_kuairand(tmp_path):
    dataset = prepared(kuairand, tmp_path)
    assert dataset.manifest["counts"]["left_out"] == {"event": len(LOG)}
    assert dataset.items["video_duration"][0] == 9000.0
    assert [source["name"] for source in dataset.manifest["provenance"]["sources"]] == [
        "video_features_basic_pure.csv",
        "log_standard_4_08_to_4_21_pure.csv",
        "log_standard_4_22_to_5_08_pure.csv",
    ]
    options = PrepareOptions(event="long_view", min_length=2)
    dataset = prepare("kuairand", [tmp_path / "raw"], tmp_path / "long", options)
    assert dataset.num_interactions == sum(hour % 2 for _, _, hour in LOG)


def test_sessions_of_otto(tmp_path):
    assert prepared(otto, tmp_path, events=("clicks",)).num_interactions == sum(hour > 0 for _, _, hour in LOG)
    path = tmp_path / "raw" / "otto-recsys-train.jsonl"
    path.write_text(path.read_text() + '{"session": 7, "events": [{"aid"\n')
    with pytest.raises(DataError, match=r"otto-recsys-train\.jsonl, line 7: malformed row"):
        prepare("auto", [tmp_path / "raw"], tmp_path / "data2")
    dataset = prepare("auto", [tmp_path / "raw"], tmp_path / "data2", PrepareOptions(on_bad="skip"))
    assert dataset.manifest["skipped"] == {"malformed row": 1}
    assert dataset.num_interactions == len(LOG)
