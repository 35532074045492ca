"""The names of all columns and kinds of content, in one place."""

import re
from typing import Final

from iisan.errors import DataError

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"

#: Kinds of content. A modality is a column of the items with a kind; the first of a kind has its name.
TEXT: Final = "text"
IMAGE: Final = "image"
AUDIO: Final = "audio"
VIDEO: Final = "video"
#: Kinds that an encoder reads.
KINDS = (IMAGE, TEXT, AUDIO, VIDEO)
#: The kind of a modality whose states were made elsewhere: one entry per item, no content to encode.
IMPORTED = "imported"

#: The tower across modalities.
INTER = "inter"

#: The pseudo-level of an encoder's own answer (``last_hidden_state``, after any final norm).
LAST: Final = "last"

#: Index that marks an empty position of a left-padded history.
PAD = -1


def check_modality(name: str, kind: str) -> None:
    """Make sure that a column of a kind can be called that: folders and parameters are named after it.

    Raises:
        DataError: other characters than letters, digits and ``_``, or a name that means something else.
    """
    # States that were made elsewhere may stand for any kind.
    others = [] if kind == IMPORTED else [other for other in (*KINDS, IMPORTED) if other != kind]
    taken = (*others, INTER)
    if not re.fullmatch(r"\w+", name) or name in taken:
        raise DataError(
            f"a column named '{name}'",
            f"letters, digits and _, and none of {', '.join(taken)}",
            "choose another name",
        )
