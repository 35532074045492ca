"""Names of columns and kinds of content."""

import re
from typing import Final

from iisan.errors import DataError

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
#: Columns of interactions by which some may not count.
EVENT = "event"
WEIGHT = "weight"
#: Columns of given queries, beside the user.
HISTORY = "history"
TARGET = "target"
#: Column of the subset of held-out users.
SUBSET = "subset"

#: Kinds of content. A modality is a column of the items with a kind; the default column of a kind has its name.
TEXT: Final = "text"
IMAGE: Final = "image"
AUDIO: Final = "audio"
VIDEO: Final = "video"
#: Kinds with encoders.
KINDS = (IMAGE, TEXT, AUDIO, VIDEO)
#: Kind of modalities with imported states: one entry per item, no content to encode.
IMPORTED = "imported"

#: Name of the inter-modal tower.
INTER = "inter"

#: Level of an encoder's final output (``last_hidden_state``, after any final norm).
LAST: Final = "last"

#: Index of an empty position in a left-padded history.
PAD = -1


def check_modality(name: str, kind: str) -> None:
    """Raise a ``DataError`` if a modality's name is reserved or unsuitable for folder and parameter names."""
    # Imported states may have the name of any kind.
    others = [] if kind == IMPORTED else [other for other in (*KINDS, IMPORTED) if other != kind]
    reserved = (*others, INTER)
    if not re.fullmatch(r"\w+", name) or name in reserved:
        got = f"a column named '{name}'"
        raise DataError(got, f"letters, digits and _, and none of {', '.join(reserved)}", "choose another name")
