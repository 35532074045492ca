"""H&M Personalized Fashion Recommendations."""

from iisan.data.options import PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import (
    CSV,
    UNKNOWN_ITEM,
    Files,
    Layout,
    Part,
    RawTables,
    Reader,
    read_interactions,
    read_items,
)

_KEEP = (
    *("product_code", "product_type_name", "product_group_name", "graphical_appearance_name"),
    *("colour_group_name", "department_name", "index_group_name", "section_name", "garment_group_name"),
    "detail_desc",
)


def _read(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    items = read_items(files["articles"][0], options, problems, keep=_KEEP, form=CSV)
    return RawTables(items, read_interactions(files["transactions"][0], options, problems, form=CSV))


HM = Reader(
    (
        Layout(
            "H&M",
            (
                Part("articles", ("articles.csv", "articles.csv.gz"), ("article_id", "prod_name")),
                Part(
                    "transactions",
                    ("transactions_train.csv", "transactions_train.csv.gz"),
                    ("t_dat", "customer_id", "article_id"),
                ),
            ),
            _read,
            {"item_id": "article_id", "user_id": "customer_id", "timestamp": "t_dat", "text": "prod_name"},
            ("images",),
        ),
    ),
    known=(UNKNOWN_ITEM,),
)
