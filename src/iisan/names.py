"""The names of all columns and kinds of content, in one place."""

from typing import Final

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"

#: Kinds of content. A modality is a column of the items with a kind; the first of a kind has its name.
TEXT: Final = "text"
IMAGE: Final = "image"
AUDIO: Final = "audio"
VIDEO: Final = "video"
#: Kinds that a backbone reads.
KINDS = (IMAGE, TEXT, AUDIO, VIDEO)
#: The kind of a modality whose states were made elsewhere: one entry per item, no content to encode.
IMPORTED = "imported"

#: The tower across modalities.
INTER = "inter"

#: The pseudo-level of a backbone's own answer (``last_hidden_state``, after any final norm).
LAST: Final = "last"

#: Index that marks an empty position of a left-padded history.
PAD = -1
