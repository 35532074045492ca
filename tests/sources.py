"""Tiny files in the true layouts of public datasets, with their odd cases."""

from pathlib import Path

import polars as pl

from source_files import LOG, NOON, TITLES, picture, rows, text


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
    items[5]["imageURL"] = ["https://images.example/5-small.jpg", "https://images.example/5-back.jpg"]
    items[6]["imageURLHighRes"] = "https://images.example/6.jpg"
    items[7]["imageURLHighRes"] = []
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
    thumb = {"thumb": "https://i.example/t.jpg"}
    sizes = [{**thumb, "large": "https://i.example/l.jpg", "variant": "PT01"}]
    items = [
        {
            "main_category": "Tools",
            "title": title,
            "average_rating": 4.5,
            "rating_number": 12,
            "features": ["Strong"],
            "description": [],
            "price": None if item == "1" else "from 3.99" if item == "2" else 3.99,
            "images": [
                *sizes,
                {
                    "hi_res": None,
                    "large": f"https://i.example/{item}.jpg",
                    "thumb": "https://i.example/t.jpg",
                    "variant": "MAIN",
                },
            ],
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


def microlens(folder: Path) -> None:
    """Titles without a header line, one of them quoted, and covers by id."""
    log = "".join(f"{user},{item},{1000 * (NOON + hour)}\n" for user, item, hour in LOG)
    text(folder / "MicroLens-100k_pairs.csv", "user,item,timestamp\n" + log)
    titles = "".join(f'{item},"{title}, #tag"\n' for item, title in TITLES.items())
    text(folder / "MicroLens-100k_title_en.csv", titles)
    for item in TITLES:
        picture(folder / "MicroLens-100k_covers" / f"{item}.jpg")


def pixelrec(folder: Path) -> None:
    """Two files of one name in two folders."""
    log = "".join(f"{item},{user},{NOON + hour}\n" for user, item, hour in LOG)
    text(folder / "dataset" / "Pixel200K.csv", "item_id,user_id,timestamp\n" + log)
    names = "view_number,comment_number,thumbup_number,share_number,coin_number,favorite_number,barrage_number"
    items = "".join(f"{item},9,0,,1,1,1,1,{title},{title},,tag\n" for item, title in TITLES.items())
    text(folder / "information" / "Pixel200K.csv", f"item_id,{names},title_en,title,description,tag\n" + items)


def ninerec(folder: Path) -> None:
    """No header lines, two languages."""
    text(folder / "Bili_Food_pair.csv", "".join(f"{item},{user},{NOON + hour}\n" for user, item, hour in LOG))
    items = "".join(f'{item},美食 {item},"{title}, fried"\n' for item, title in TITLES.items())
    text(folder / "Bili_Food_item.csv", items)


def hm(folder: Path) -> None:
    """Ids with leading zeros, a folder of pictures per first three digits, an article bought twice on a day."""
    log = [f"2020-09-{10 + hour},{user},010877501{item},0.0508,2\n" for user, item, hour in LOG]
    text(folder / "transactions_train.csv", "t_dat,customer_id,article_id,price,sales_channel_id\n" + "".join(log))
    head = "article_id,product_code,prod_name,product_type_name,colour_group_name,detail_desc\n"
    items = [f'010877501{item},108775,{title},Vest top,Black,"Jersey, soft"\n' for item, title in TITLES.items()]
    text(folder / "articles.csv", head + "".join(items))
    for item in TITLES:
        picture(folder / "images" / "010" / f"010877501{item}.jpg")


def steam(folder: Path) -> None:
    """Literals of Python, two names of the item id, games without an id or a title, a price in words."""
    reviews = [
        {
            "username": user,
            "hours": 0.1,
            "product_id": item,
            "date": f"2017-12-1{hour}",
            "text": "It's ok",
            "page": 1,
        }
        for user, item, hour in LOG
    ]
    del reviews[3]["hours"]
    text(folder / "steam_reviews.json.gz", "".join(f"{review!r}\n".replace("{'", "{u'") for review in reviews))
    games = [
        {"publisher": "P", "genres": ["Action"], "app_name": title, "title": title, "price": 4.99, "id": item}
        for item, title in TITLES.items()
    ]
    del games[1]["title"]
    games[2]["price"] = "Free To Play"
    games.append({"app_name": "no id", "price": 1.0})
    text(folder / "steam_games.json.gz", "".join(f"{game!r}\n" for game in games))


def goodreads(folder: Path) -> None:
    """Dates of Unix, books that were put on a shelf but not rated."""
    log = [
        {
            "user_id": user,
            "book_id": item,
            "review_id": f"{user}{item}",
            "is_read": bool(hour % 2),
            "rating": hour,
            "date_added": f"Fri Aug 25 1{hour}:55:02 -0700 2017",
            "read_at": "",
        }
        for user, item, hour in LOG
    ]
    rows(folder / "goodreads_interactions_comics.json.gz", log)
    books = [
        {
            "book_id": item,
            "title": title,
            "description": "<i>x</i>",
            "num_pages": "",
            "authors": [{"author_id": "1"}],
        }
        for item, title in TITLES.items()
    ]
    rows(folder / "goodreads_books_comics.json.gz", books)


def yelp(folder: Path) -> None:
    """Stars of reviews and of places, a place without categories."""
    reviews = [
        {"review_id": "r", "user_id": user, "business_id": item, "stars": 5.0, "date": f"2018-07-07 1{hour}:09:11"}
        for user, item, hour in LOG
    ]
    rows(folder / "yelp_academic_dataset_review.json", reviews)
    places = [
        {
            "business_id": item,
            "name": title,
            "city": "Reno",
            "state": "NV",
            "stars": 3.5,
            "review_count": 7,
            "is_open": 1,
            "attributes": {"WiFi": "u'free'"},
            "categories": None if item == "1" else "Food, Bars",
        }
        for item, title in TITLES.items()
    ]
    rows(folder / "yelp_academic_dataset_business.json", places)


def kuairand(folder: Path) -> None:
    """Two logs, videos that were shown but not clicked, a log of random exposure, which is not read."""
    head = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,long_view,tab\n"
    log = [f"{user},{item},20220408,1600,{1000 * (NOON + hour)},1,0,{hour % 2},1\n" for user, item, hour in LOG]
    shown = [f"{user},{(int(item) + 1) % 8},20220408,1600,5,0,0,0,1\n" for user, item, _ in LOG]
    for name, lines in (("4_08_to_4_21", log[:9] + shown), ("4_22_to_5_08", log[9:])):
        text(folder / "data" / f"log_standard_{name}_pure.csv", head + "".join(lines))
    text(folder / "data" / "log_random_4_22_to_5_08_pure.csv", head + shown[0])
    names = "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,music_id,tag\n"
    videos = [f'{item},7,NORMAL,2022-04-10,Web,0.0,9000.0,1,"{title}"\n' for item, title in TITLES.items()]
    text(folder / "data" / "video_features_basic_pure.csv", names + "".join(videos))


def otto(folder: Path) -> None:
    """Sessions with their events; no item has any content."""
    users = sorted({user for user, _, _ in LOG})
    sessions = [
        {
            "session": int(one[1:]),
            "events": [
                {"aid": int(item), "ts": NOON + hour, "type": "clicks" if hour else "orders"}
                for user, item, hour in LOG
                if user == one
            ],
        }
        for one in users
    ]
    rows(folder / "otto-recsys-train.jsonl", sessions)


def huggingface(folder: Path) -> None:
    """Shards in the folders of two configurations, pictures as bytes and paths."""
    picture(folder / "1.jpg")
    image = {"bytes": (folder / "1.jpg").read_bytes(), "path": "1.jpg"}
    items = pl.DataFrame([{"item_id": item, "title": title, "image": image} for item, title in TITLES.items()])
    log = pl.DataFrame([{"user_id": user, "item_id": item, "timestamp": hour} for user, item, hour in LOG])
    for name, frame in (("items", items), ("interactions", log)):
        (folder / name).mkdir()
        frame[:5].write_parquet(folder / name / "train-00000-of-00002.parquet")
        frame[5:].write_parquet(folder / name / "train-00001-of-00002.parquet")


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
    microlens: ("microlens", {}),
    pixelrec: ("pixelrec", {}),
    ninerec: ("ninerec", {}),
    hm: ("hm", {}),
    steam: ("steam", {"zero-length item_id": 1}),
    goodreads: ("goodreads", {}),
    yelp: ("yelp", {}),
    kuairand: ("kuairand", {}),
    otto: ("otto", {}),
    huggingface: ("huggingface", {}),
}
