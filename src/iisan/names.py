"""The names of all columns and modalities, in one place."""

from typing import Final

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"

TEXT = "text"
IMAGE = "image"
MODALITIES = (TEXT, IMAGE)

#: The pseudo-level of a backbone's own answer (``last_hidden_state``, after any final norm).
LAST: Final = "last"

#: Index that marks an empty position of a left-padded history.
PAD = -1
