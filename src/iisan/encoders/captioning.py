"""Captions of a dataset's images or videos as a new text column."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch

from iisan.data.dataset import Dataset, claim
from iisan.encoders.captions import MAX_TOKENS, PROMPT, Captioner, open_picture
from iisan.encoders.contents import Contents, kind_of
from iisan.errors import ConfigError
from iisan.files import aside
from iisan.names import IMAGE, VIDEO
from iisan.progress import track

#: File in the new dataset's folder: the settings, then one line per finished caption.
JOURNAL = "captions.jsonl"


def caption(
    dataset: Dataset,
    out: Path | str,
    model: str,
    *,
    column: str = IMAGE,
    name: str = "caption",
    prompt: str = PROMPT,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = 16,
    precision: str = "auto",
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Write a dataset with an additional text column: captions of images, or of the middle frames of videos.

    Equal contents are captioned once. Captions are appended to a journal in ``out``, so a repeated call continues
    after an interruption, and after new items it captions only these. The dataset in ``out`` is replaced last.

    Args:
        dataset: The dataset.
        out: Folder of the new dataset; media files are not copied.
        model: Image-to-text model; see :class:`iisan.encoders.captions.Captioner` for this, ``prompt``,
            ``max_tokens``, ``device`` and ``trust_remote_code``.
        column: Column of images or videos.
        name: Name of the new column.
        prompt: See ``model``.
        max_tokens: See ``model``.
        batch_size: Number of images per forward pass; an interruption loses at most one batch.
        precision: See ``model``. ``"auto"`` uses the precision of the captions in ``out``, if any.
        device: See ``model``.
        trust_remote_code: See ``model``.
        say: Callback for progress messages.

    Returns:
        The new dataset, loaded from ``out``. Items without content or with an empty caption have null.

    Raises:
        ConfigError: Invalid settings, a column of another kind, or ``out`` is the folder of ``dataset``.
        EncoderError: The model cannot be used.
        DataError: An invalid name, a content that is unreadable or changed since the dataset was prepared, or
            ``out`` contains something else.
    """
    out = Path(out)
    kind = kind_of(dataset, column)
    if kind not in (IMAGE, VIDEO):
        pictured = [each for each, its in dataset.kinds.items() if its in (IMAGE, VIDEO)]
        raise ConfigError(
            f"captions of the column '{column}', which is of kind {kind}",
            f"a column of kind {IMAGE} or {VIDEO}",
            f"choose one of {', '.join(pictured)}" if pictured else "prepare the dataset with one",
        )
    if dataset.folder is not None and out.resolve() == dataset.folder.resolve():
        raise ConfigError(f"--out '{out}' is the dataset itself", "a folder of its own", "choose another --out")
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size}", "at least 1", "raise it")
    dataset.check_new_column(name)
    captioner = Captioner(
        model,
        prompt=prompt,
        max_tokens=max_tokens,
        precision=_precision_of(out / JOURNAL) if precision == "auto" else precision,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    claim(out)
    origin = {"column": column, "kind": kind, **captioner.settings}
    known = _resume(out / JOURNAL, origin)
    contents = Contents.of(dataset, column, kind)
    keys = contents.keys().to_list()
    rows = [*{key: row for row, key in enumerate(keys) if key is not None and key not in known}.items()]
    distinct = len(set(keys) - {None})
    say(f"{column}: {distinct:,} distinct contents, {distinct - len(rows):,} with a caption already")

    with (out / JOURNAL).open("a", encoding="utf-8") as lines:
        for start in track(range(0, len(rows), batch_size), "writing captions"):
            batch = rows[start : start + batch_size]
            texts = captioner([_picture(contents, row) for _, row in batch])
            for (key, _), text in zip(batch, texts, strict=True):
                known[key] = text
                lines.write(_line([key, text]))
            lines.flush()
    captions = [None if key is None else known[key] or None for key in keys]
    return dataset.with_captions(name, pl.Series(captions, dtype=pl.String), origin).save(out)


def _picture(contents: Contents, row: int) -> Any:
    content = contents.get(row)
    with contents.naming(row):
        return open_picture(content, contents.kind)


def _precision_of(journal: Path) -> str:
    """Precision of the captions in a journal; ``auto`` if there are none."""
    try:
        with journal.open(encoding="utf-8") as file:
            origin = json.loads(file.readline())
    except (OSError, ValueError):
        return "auto"
    return origin.get("precision", "auto") if isinstance(origin, dict) else "auto"


def _resume(journal: Path, origin: dict[str, Any]) -> dict[str, str]:
    """Return captions with the same settings by content key, and remove all others from the journal."""
    known: dict[str, str] = {}
    if journal.exists():
        with journal.open(encoding="utf-8", errors="replace") as file:
            head, *lines = [*file] or [""]
        if head == _line(origin):
            # An interruption may have truncated the last line.
            known = dict(json.loads(line) for line in lines if line.endswith("\n"))
    with aside(journal) as temporary:
        temporary.write_text("".join(map(_line, [origin, *known.items()])), encoding="utf-8")
    return known


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
