"""From a dataset and the name of a model to a dataset with captions: what ``iisan caption`` does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch

from iisan.data.dataset import Dataset, claim
from iisan.encoders.captions import MAX_TOKENS, PROMPT, Captioner, open_picture
from iisan.encoders.contents import Contents, kind_of
from iisan.errors import ConfigError, DataError
from iisan.files import aside
from iisan.names import IMAGE, VIDEO
from iisan.progress import track

#: The captions so far, a line each; lies in the new dataset's folder.
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
    """Write a caption of every item's image, or of the middle frame of its video, into a new dataset.

    Equal contents are described once. Captions are kept in the new folder as they are written, so that a command
    that was stopped goes on where it was, and one that is repeated with more items describes those alone. The
    dataset in that folder is replaced at the very end.

    Args:
        dataset: the items; stays as it is.
        out: folder of the new dataset. Files of contents are not copied.
        model: hub id or folder of an image-to-text model, see :class:`iisan.encoders.captions.Captioner`.
        column: what is described, a column of images or videos.
        name: of the new column of texts.
        prompt: what a model with a chat template is asked.
        max_tokens: longest caption.
        batch_size: pictures per forward pass, the most that a kill can lose.
        precision: see :func:`iisan.encoders.precision.choose_precision`; ``"auto"`` takes that of the captions in
            ``out``, where there are some.
        device: where the model runs; a GPU if there is one.
        trust_remote_code: run program code that comes with the model.
        say: told how much there is to do.

    Returns:
        The new dataset, loaded from ``out``. Items without a content, or with an empty caption, have no caption.

    Raises:
        ConfigError: unusable settings, a column that is neither of images nor of videos, or ``out`` is the folder
            of ``dataset``.
        EncoderError: a model that cannot be used.
        DataError: a name that cannot be used, a content that cannot be read or changed since the dataset was
            prepared, or ``out`` holds something else.
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
    texts = _captions(Contents.of(dataset, column, kind), captioner, origin, out / JOURNAL, batch_size, say)
    return dataset.with_captions(name, pl.Series(texts, dtype=pl.String), origin).save(out)


def _captions(
    contents: Contents,
    captioner: Captioner,
    origin: dict[str, Any],
    journal: Path,
    batch_size: int,
    say: Callable[[str], None],
) -> list[str | None]:
    """A caption per item, those of distinct contents that are in no journal yet written now."""
    keys = contents.keys().to_list()
    known = _resume(journal, origin)
    rows = [*{key: row for row, key in enumerate(keys) if key is not None and key not in known}.items()]
    distinct = len(set(keys) - {None})
    say(f"{contents.modality}: {distinct:,} distinct contents, {distinct - len(rows):,} with a caption already")

    with journal.open("a", encoding="utf-8") as lines:
        for start in track(range(0, len(rows), batch_size), "writing captions"):
            batch = rows[start : start + batch_size]
            texts = captioner([_picture(contents, row) for _, row in batch])
            for (key, _), text in zip(batch, texts, strict=True):
                known[key] = text
                lines.write(_line([key, text]))
            lines.flush()
    return [None if key is None else known[key] or None for key in keys]


def _picture(contents: Contents, row: int) -> Any:
    content = contents.get(row)
    try:
        return open_picture(content, contents.kind)
    except DataError as error:
        raise DataError(
            f"the {contents.modality} of {contents.label(row)}: {error.got}", error.expected, error.cure
        ) from None


def _precision_of(journal: Path) -> str:
    """What the captions in a journal were computed in; ``auto`` where there are none."""
    try:
        with journal.open(encoding="utf-8") as file:
            origin = json.loads(file.readline())
    except (OSError, ValueError):
        return "auto"
    return origin.get("precision", "auto") if isinstance(origin, dict) else "auto"


def _resume(journal: Path, origin: dict[str, Any]) -> dict[str, str]:
    """Captions by content key that were written with the same settings; other lines leave the journal."""
    known: dict[str, str] = {}
    if journal.exists():
        with journal.open(encoding="utf-8", errors="replace") as file:
            head, *lines = [*file] or [""]
        if head == _line(origin):
            # A last line without its end was cut short.
            known = dict(json.loads(line) for line in lines if line.endswith("\n"))
    with aside(journal) as temporary:
        temporary.write_text("".join(map(_line, [origin, *known.items()])), encoding="utf-8")
    return known


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
