"""Tiny files in the true layouts of public datasets, with their odd cases."""

import gzip
import io
import json
from pathlib import Path

from conftest import WORDS

TITLES = {f"{n}": f"{WORDS[n]} {WORDS[n + 1]} {WORDS[n + 2]}" for n in range(8)}
#: User, item and hour, newest first: in no file of a fixture are users in order of time.
LOG = [(f"u{user}", f"{(user + 3 * step) % 8}", step) for step in (4, 3, 2, 1, 0) for user in range(6)]
NOON = 1_500_000_000


def text(path: Path, content: str | bytes) -> None:
    """Write a file, its folders too; compressed where its name ends in .gz."""
    data = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def rows(path: Path, records: list[dict]) -> None:
    text(path, "".join(json.dumps(record) + "\n" for record in records))


def picture(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    shade = int(path.stem) * 9 % 255
    Image.new("RGB", (16, 16), (shade, 40, 90)).save(buffer := io.BytesIO(), "JPEG")
    path.write_bytes(buffer.getvalue())


def amazon_2018(folder: Path) -> None:
    """Duplicate metadata, a list as a title, HTML, page code, a review of an unknown item, one written twice."""
    reviews = [
        {
            "overall": 5.0 - int(item) % 3,
            "verified": True,
            "reviewTime": "09 1, 2016",
            "reviewerID": user,
            "asin": item,
            "style": {"Size:": " 7.0 oz"},
            "reviewText": "As advertised.",
            "summary": "Five Stars",
            "unixReviewTime": NOON + 86400 * hour,
        }
        for user, item, hour in LOG
    ]
    rows(folder / "Industrial.json.gz", [*reviews, reviews[0], {**reviews[1], "asin": "B00UNKNOWN"}])
    items = [
        {
            "category": ["Industrial & Scientific", "Tapes"],
            "tech1": "",
            "description": ["Strong.", "<b>Holds</b>"],
            "title": title,
            "also_buy": ["B1"],
            "image": [],
            "feature": [],
            "rank": [">#3 in Industrial"],
            "price": "$2.50",
            "asin": item,
            "imageURLHighRes": [f"https://images.example/{item}.jpg"],
        }
        for item, title in TITLES.items()
    ]
    items[1]["title"] = ["blue", "green"]
    items[2]["title"] = "green <span class='x'>small</span> A &amp; B"
    items[3]["title"] = "var aPageStart = (new Date()).getTime();"
    del items[4]["price"]
    rows(folder / "meta_Industrial.json.gz", [*items, items[0]])


def amazon_2023(folder: Path) -> None:
    """Prices that are missing or no number, several sizes of images, reviews of two variants of one parent."""
    reviews = [
        {
            "rating": 4.0,
            "title": "Good",
            "text": "It holds.<br />",
            "images": [],
            "asin": f"variant-{item}-{hour}",
            "parent_asin": item,
            "user_id": user,
            "timestamp": 1000 * (NOON + hour),
            "helpful_vote": 0,
            "verified_purchase": True,
        }
        for user, item, hour in LOG
    ]
    rows(folder / "Tools.jsonl.gz", [*reviews, reviews[0]])
    sizes = [{"thumb": "https://i.example/t.jpg", "large": "https://i.example/l.jpg", "variant": "PT01"}]
    items = [
        {
            "main_category": "Tools",
            "title": title,
            "average_rating": 4.5,
            "rating_number": 12,
            "features": ["Strong"],
            "description": [],
            "price": None if item == "1" else "from 3.99" if item == "2" else 3.99,
            "images": [*sizes, {"hi_res": None, "large": f"https://i.example/{item}.jpg", "variant": "MAIN"}],
            "videos": [],
            "store": None,
            "categories": ["Tools", "Tapes"],
            "details": {"Brand": "x"},
            "parent_asin": item,
            "bought_together": None,
        }
        for item, title in TITLES.items()
    ]
    rows(folder / "meta_Tools.jsonl.gz", items)


def movielens_100k(folder: Path) -> None:
    """Latin-1, empty fields, a title with a comma."""
    ratings = "".join(f"{user}\t{item}\t{1 + hour % 5}\t{NOON + hour}\n" for user, item, hour in LOG)
    text(folder / "ml-100k" / "u.data", ratings)
    names = {item: f"{title.title()} ({1990 + int(item)})" for item, title in TITLES.items()}
    names["1"] = "Misérables, Les (1995)"
    flags = "|".join(["0"] * 18 + ["1"])
    lines = [f"{item}|{name}|01-Jan-1995||http://us.imdb.com/M|{flags}\n" for item, name in names.items()]
    text(folder / "ml-100k" / "u.item", "".join(lines).encode("latin-1"))
    text(folder / "ml-100k" / "u.user", "1|24|M|technician|85711\n")


def movielens_1m(folder: Path) -> None:
    """Double colons, Latin-1, and posters by id."""
    text(folder / "ratings.dat", "".join(f"{user}::{item}::5::{NOON + hour}\n" for user, item, hour in LOG))
    names = {item: f"{title} (1999)" for item, title in TITLES.items()} | {"1": "Léon: The Professional (1994)"}
    lines = "".join(f"{item}::{name}::Drama|Sci-Fi\n" for item, name in names.items())
    text(folder / "movies.dat", lines.encode("latin-1"))
    text(folder / "users.dat", "1::F::1::10::48067\n")
    for item in TITLES:
        picture(folder / "posters" / f"{item}.jpg")


def movielens_csv(folder: Path) -> None:
    """A quoted title, a film without a year, half stars."""
    ratings = "".join(f"{user},{item},3.5,{NOON + hour}\n" for user, item, hour in LOG)
    text(folder / "ratings.csv", "userId,movieId,rating,timestamp\n" + ratings)
    names = {item: f'"{title}, The (2001)"' for item, title in TITLES.items()} | {"1": "Untitled"}
    movies = "".join(f"{item},{name},Drama|War\n" for item, name in names.items())
    text(folder / "movies.csv", "movieId,title,genres\n" + movies)
    text(folder / "tags.csv", "userId,movieId,tag,timestamp\nu1,1,funny,1445714994\n")


def recbole(folder: Path) -> None:
    """Typed headers, sequences, an empty field, an interaction with an unknown item."""
    log = "".join(f"{user}\t{item}\t4.0\t{NOON + hour}.0\n" for user, item, hour in [*LOG, ("u0", "99", 7)])
    text(folder / "toy.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + log)
    lines = "".join(f"{item}\t{title}\t{item}.5\tA B\n" for item, title in TITLES.items()).replace(
        "\t1.5\t", "\t\t"
    )
    text(folder / "toy.item", "item_id:token\tmovie_title:token_seq\tprice:float\tclass:token_seq\n" + lines)


#: Format and number of dropped rows by fault, by writer.
FIXTURES = {
    amazon_2018: (
        "amazon-2018",
        {
            "unknown item": 1,
            "duplicate item id": 1,
            "repeated interaction": 1,
            "page code in the place of a title": 1,
        },
    ),
    amazon_2023: ("amazon-2023", {"repeated interaction": 1}),
    movielens_100k: ("movielens", {}),
    movielens_1m: ("movielens", {}),
    movielens_csv: ("movielens", {}),
    recbole: ("recbole", {"unknown item": 1}),
}
