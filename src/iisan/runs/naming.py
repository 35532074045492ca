"""Short, distinct names for paths."""

from collections.abc import Sequence
from pathlib import Path


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """Return the last part of each path, preceded by as many parts as distinguish it from the others.

    >>> short_names(["google/x", "facebook/x", "org/y"])
    ['google/x', 'facebook/x', 'y']
    """
    parts = [Path(path).parts for path in paths]

    def name(own: tuple[str, ...]) -> str:
        others = [other for other in parts if other != own]
        for count in range(1, len(own)):
            if all(other[-count:] != own[-count:] for other in others):
                return str(Path(*own[-count:]))
        return str(Path(*own))

    return [name(own) for own in parts]
