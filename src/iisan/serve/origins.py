"""Which encoders the states of a run come from, and under which licence, as far as it is known here."""

from pathlib import Path
from typing import Any

from iisan.config import Config
from iisan.encoders.hub import hub_id
from iisan.errors import IisanError
from iisan.names import IMPORTED
from iisan.runs.run import Run
from iisan.states.configured import open_stores

_CARD = "README.md"


def origins(run: Run) -> dict[str, dict[str, Any]]:
    """Return what is known of the states of each modality, without any path.

    Returns:
        Modality -> ``encoder`` (a hub id, or in words), and ``id``, ``revision``, ``pooling``, ``weight_digest``
        and ``license``, None where unknown.
    """
    recorded, found = run.result.get("state_origins", {}), dict[str, dict[str, Any]]()
    read = dict.fromkeys(run.config.anchor.modalities or (), run.config)
    read |= {name: each for each in (*run.member_configs, run.config) for name in each.modalities or ()}
    for name, config in read.items():
        settings = {"encoder": config.states_of(name).encoder, **recorded.get(name, {}), **_stored(config, name)}
        imported = config.kind_of(name) == IMPORTED
        encoder = None if imported else settings["encoder"]
        public = hub_id(encoder) if encoder else None
        words = "an encoder in a local folder" if encoder else "an unknown encoder"
        if imported:
            words = "vectors that were computed elsewhere"
        found[name] = {
            "encoder": public or words,
            "id": public,
            "license": _license(encoder) if encoder else None,
            **{key: settings.get(key) for key in ("revision", "pooling", "weight_digest")},
        }
    return found


def _stored(config: Config, modality: str) -> dict[str, Any]:
    """Settings of the store of a modality, empty if it is not there."""
    for source in ("cached", config.source):
        try:
            stores = open_stores(config.model_copy(update={"source": source, "modalities": (modality,)}))
        except IisanError:
            continue
        for store in stores.values():
            return {key: value for key, value in store.settings.items() if value is not None}
    return {}


def _license(encoder: str) -> str | None:
    """Licence that the card of an encoder states, if the card is on this machine."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    public = hub_id(encoder)
    path: Any = Path(encoder) / _CARD
    if public:
        repository, _, revision = public.partition("@")
        path = try_to_load_from_cache(repository, _CARD, revision=revision or None)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    try:
        found: str | None = ModelCard.load(path, ignore_metadata_errors=True).data.license
    except (OSError, ValueError):
        return None
    return found
