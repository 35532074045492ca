"""Readers of ``iisan prepare``: one file a source, from its files to two raw tables."""

from iisan.data.readers.amazon import AMAZON_2018, AMAZON_2023
from iisan.data.readers.base import RawTables, Reader
from iisan.data.readers.hm import HM
from iisan.data.readers.huggingface import HUGGINGFACE
from iisan.data.readers.logs import KUAIRAND, OTTO
from iisan.data.readers.movielens import MOVIELENS
from iisan.data.readers.recbole import RECBOLE
from iisan.data.readers.recognise import AUTO, Recognised, recognise
from iisan.data.readers.reviews import GOODREADS, STEAM, YELP
from iisan.data.readers.table import REFERENCE, TABLE
from iisan.data.readers.westlake import MICROLENS, NINEREC, PIXELREC

__all__ = ["AUTO", "READERS", "RawTables", "Reader", "Recognised", "recognise"]

#: Readers by format.
READERS: dict[str, Reader] = {
    "table": TABLE,
    "reference": REFERENCE,
    "amazon-2018": AMAZON_2018,
    "amazon-2023": AMAZON_2023,
    "movielens": MOVIELENS,
    "recbole": RECBOLE,
    "microlens": MICROLENS,
    "pixelrec": PIXELREC,
    "ninerec": NINEREC,
    "hm": HM,
    "steam": STEAM,
    "goodreads": GOODREADS,
    "yelp": YELP,
    "kuairand": KUAIRAND,
    "otto": OTTO,
    "huggingface": HUGGINGFACE,
}
