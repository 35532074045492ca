"""Content-aware next-item recommendation from frozen text and image models.

The main entry points are ``Dataset``, ``StateStore``, ``Recommender``, ``cache_states`` and ``load_config``. They
are imported on first use, so that ``import iisan`` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iisan.api import Recommender
    from iisan.data.dataset import Dataset
    from iisan.errors import IisanError
    from iisan.recipes import load_config
    from iisan.states.caching import cache as cache_states
    from iisan.states.store import StateStore

__version__ = "0.1.0"

_HOMES = {
    "Dataset": ("iisan.data.dataset", "Dataset"),
    "IisanError": ("iisan.errors", "IisanError"),
    "Recommender": ("iisan.api", "Recommender"),
    "StateStore": ("iisan.states.store", "StateStore"),
    "cache_states": ("iisan.states.caching", "cache"),
    "load_config": ("iisan.recipes", "load_config"),
}
__all__ = ["Dataset", "IisanError", "Recommender", "StateStore", "cache_states", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'iisan' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
