"""The two scales of the experiments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.demo.catalogue import generate
from iisan.demo.run import CAPTIONER, ENCODERS, SETTINGS, demo_dataset
from iisan.encoders.captioning import caption
from iisan.errors import ConfigError
from iisan.experiments.tables import Scale, full_settings
from iisan.names import IMAGE, TEXT
from iisan.recipes import recipe
from iisan.runs.naming import short_names
from iisan.states.caching import cache
from iisan.states.store import StateStore

#: What the demo scale changes in the demo's settings. Methods that train their encoders encode every item of a
#: batch with them: without extra negatives and with few epochs all tables of the first paper together take half an
#: hour on two quick cores, and an hour or more on slow ones.
QUICKER = ("loss.negatives=0", "training.epochs=4")

#: The same of the settings that were published for MicroLens: up to 200 epochs of few, large batches.
QUICKER_VERSA = ("training.epochs=40",)

Say = Callable[[str], None]


def demo_scale(out: Path, say: Say = lambda line: None) -> Scale:
    """The built-in catalogue and its small encoders; prepared and cached below ``out``."""
    say("the built-in catalogue (generated data) and its small encoders")
    folder = out / "demo-data"
    dataset = demo_dataset(generate(), folder)
    encoders = {
        modality: {_label(modality, size): str(ENCODERS / f"{modality}{size}") for size in ("", "-small", "-tiny")}
        for modality in (IMAGE, TEXT)
    }
    return _scale(
        "demo", _demo_settings, dataset, folder / "states", encoders, say, _captioned(dataset, folder, say)
    )


def full_scale(
    dataset: Path,
    states: Path,
    text: Sequence[str],
    image: Sequence[str],
    say: Say = lambda line: None,
    images: Path | None = None,
) -> Scale:
    """Anyone's data and models, with the settings of the IISAN paper; states are cached where they are missing.

    Args:
        dataset: what ``iisan prepare`` wrote, or ``iisan caption``.
        states: folder of state stores.
        text: text encoders, the first for all tables.
        image: the same for images.
        say: called with lines for a person.
        images: folder of the dataset's media, where they moved.

    Raises:
        ConfigError: no text or no image encoder.
    """
    if not text or not image:
        raise ConfigError(
            "the scale 'full' lacks encoders",
            "at least one for text and one for images, as in the paper",
            "pass --text bert-base-uncased --image google/vit-base-patch16-224",
        )
    named = {IMAGE: image, TEXT: text}
    encoders = {kind: dict(zip(short_names(models), models, strict=True)) for kind, models in named.items()}
    loaded = Dataset.load(dataset, images)
    return _scale("full", full_settings, loaded, states, encoders, say, loaded, images)


def _captioned(dataset: Dataset, folder: Path, say: Say) -> Dataset:
    """The catalogue with captions of its pictures, or what an earlier call wrote."""
    out = folder / "captioned"
    if (out / "dataset.json").exists():
        return Dataset.load(out)
    return caption(dataset, out, str(ENCODERS / CAPTIONER), say=say)


def _label(modality: str, size: str) -> str:
    """``text``, ``-small`` -> ``small text model``."""
    return f"{size.removeprefix('-')} {modality} model".strip()


def _demo_settings(method: str) -> Config:
    return recipe(method).override(QUICKER_VERSA if method == "versa" else (*SETTINGS, *QUICKER))


def _scale(
    name: str,
    method: Callable[[str], Config],
    dataset: Dataset,
    states: Path,
    encoders: dict[str, dict[str, str]],
    say: Say,
    captioned: Dataset,
    images: Path | None = None,
) -> Scale:
    def encode(
        dataset: Dataset, settings: Config, models: Mapping[str, str], last_n_layers: int | None = None
    ) -> dict[str, StateStore]:
        return cache(
            dataset,
            states,
            models,
            levels="all",
            poolings={modality: settings.section_of(dataset.kinds[modality]).pooling for modality in models},
            max_tokens=settings.text.max_tokens,
            last_n_layers=last_n_layers,
            say=say,
        )

    captions = tuple(captioned.captions)
    depths: dict[str, dict[str, int]] = {modality: {} for modality in encoders}
    for modality, named in encoders.items():
        for position, (short, encoder) in enumerate(named.items()):
            # Partial training, and settings published with another pooling, are for the first encoders alone.
            top = None if position else method("partial").tuning.last_n_layers
            stores = encode(dataset, method("default"), {modality: encoder}, top)
            depths[modality][short] = stores[modality].depth
            if not position:
                encode(dataset, method("versa"), {modality: encoder})
    if captions:
        encode(captioned, method("default"), dict.fromkeys(captions, next(iter(encoders[TEXT].values()))))
    assert dataset.folder is not None
    return Scale(name, method, dataset.folder, states, encoders, depths, captioned.folder, captions, images)
