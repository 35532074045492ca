"""Logs of what users were shown and did: KuaiRand, with one column per kind of feedback, and OTTO, by session."""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from iisan.data.assemble import interaction_roles
from iisan.data.frames import read_frame
from iisan.data.json_lines import MALFORMED, Bad, blocks
from iisan.data.options import ALL, PrepareOptions
from iisan.data.problems import Problems
from iisan.data.readers.base import (
    CSV,
    UNKNOWN_ITEM,
    Files,
    Layout,
    Part,
    RawTables,
    Reader,
    items_of,
    joined,
    read_interactions,
    read_items,
)
from iisan.data.tables import JSON_LINES, reading, report_values

_EVENTS = pl.List(pl.Struct({"aid": pl.Int64, "ts": pl.Int64, "type": pl.String}))


def _read_kuairand(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    keep = ("author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type", "tag")
    items = [
        read_items(path, options, problems, keep=keep, numbers=("video_duration",), form=CSV)
        for path in files["videos"]
    ]
    logs = [read_interactions(path, options, problems, form=CSV) for path in files["logs"]]
    return RawTables(joined(items), joined(logs))


def _read_otto(files: Files, options: PrepareOptions, problems: Problems) -> RawTables:
    path = files["sessions"][0]
    with reading(path):
        frame = pl.concat([_events(path, first, block, problems) for first, block in blocks(path)])
    interactions = read_frame(frame, interaction_roles(options), path.name, problems, rest=False)
    return RawTables(items_of(interactions, problems), interactions)


def _events(path: Path, first: int, block: bytes, problems: Problems) -> pl.DataFrame:
    """The events of a block of sessions, one per row."""
    schema: dict[str, Any] = {"session": pl.String, "events": _EVENTS}
    try:
        sessions = pl.read_ndjson(io.BytesIO(block), schema=schema)
    except pl.exceptions.PolarsError:
        bad: Bad = []
        good = [line for n, line in enumerate(block.split(b"\n"), first) if _is_session(n, line, bad)]
        report_values(bad, f"{path.name}, line", MALFORMED, "a session per line", problems)
        sessions = pl.read_ndjson(io.BytesIO(b"\n".join(good)), schema=schema)
    return sessions.explode("events").drop_nulls("events").unnest("events")


def _is_session(number: int, line: bytes, bad: Bad) -> bool:
    if not line.strip():
        return False
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        bad.append((number, line.decode("utf-8", "backslashreplace")))
    return isinstance(found, dict)


KUAIRAND = Reader(
    (
        Layout(
            "KuaiRand",
            (
                Part("videos", ("video_features_basic_*.csv",), ("video_id", "author_id"), several=True),
                Part(
                    "logs", ("log_standard_*.csv",), ("user_id", "video_id", "time_ms", "is_click"), several=True
                ),
            ),
            _read_kuairand,
            {"item_id": "video_id", "user_id": "user_id", "timestamp": "time_ms", "event": "is_click"},
        ),
    ),
    {"events": ("1",)},
    known=(UNKNOWN_ITEM,),
)
OTTO = Reader(
    (
        Layout(
            "OTTO sessions",
            (Part("sessions", ("*.jsonl", "*.jsonl.gz"), ("session", "events"), form=JSON_LINES),),
            _read_otto,
            {"item_id": "aid", "user_id": "session", "timestamp": "ts", "event": "type"},
        ),
    ),
    {"events": ALL},
)
