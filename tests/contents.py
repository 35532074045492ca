"""Contents of items without a dataset."""

from collections.abc import Sequence

import numpy as np

from iisan.encoders.contents import Contents


def contents_of(texts: Sequence[str | None]) -> Contents:
    """The texts as contents of items; None where an item has none."""
    present = np.array([text is not None for text in texts], dtype=bool)
    return Contents("text", "text", present, texts.__getitem__, lambda index: f"text {index}")
