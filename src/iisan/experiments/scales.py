"""The two scales of the experiments."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.demo.catalogue import generate
from iisan.demo.run import BACKBONES, SETTINGS, demo_dataset
from iisan.errors import ConfigError
from iisan.experiments.tables import Scale, full_settings
from iisan.names import IMAGE, TEXT
from iisan.recipes import recipe
from iisan.states.caching import cache

#: What the demo scale changes in the demo's settings. Methods that train their backbones encode every item of a
#: batch with them: without extra negatives and with few epochs all tables together take half an hour.
QUICKER = ("loss.negatives=0", "training.epochs=4")

Say = Callable[[str], None]


def demo_scale(out: Path, say: Say = lambda line: None) -> Scale:
    """The built-in catalogue and its small backbones; prepared and cached below ``out``."""
    say("the built-in catalogue (generated data) and its small backbones")
    folder = out / "demo-data"
    dataset = demo_dataset(generate(), folder)
    names = {modality: (modality, f"{modality}-small") for modality in (IMAGE, TEXT)}
    backbones = {
        modality: {_label(short): str(BACKBONES / short) for short in shorts} for modality, shorts in names.items()
    }
    return _scale("demo", _demo_settings, dataset, folder / "states", backbones, say)


def full_scale(
    dataset: Path, states: Path, text: Sequence[str], image: Sequence[str], say: Say = lambda line: None
) -> Scale:
    """Anyone's data and models, with the settings of the IISAN paper; states are cached where they are missing.

    Args:
        dataset: what ``iisan prepare`` wrote.
        states: folder of state stores.
        text: text backbones, the first for all tables.
        image: the same for images.
        say: called with lines for a person.

    Raises:
        ConfigError: no text or no image backbone.
    """
    if not text or not image:
        raise ConfigError(
            "the scale 'full' lacks backbones",
            "at least one for text and one for images, as in the paper",
            "pass --text bert-base-uncased --image google/vit-base-patch16-224",
        )
    backbones = {IMAGE: {Path(name).name: name for name in image}, TEXT: {Path(name).name: name for name in text}}
    return _scale("full", full_settings, Dataset.load(dataset), states, backbones, say)


def _label(short: str) -> str:
    """``text-small`` -> ``small text model``."""
    modality, _, size = short.partition("-")
    return f"{size} {modality} model".strip()


def _demo_settings(method: str) -> Config:
    return recipe(method).override((*SETTINGS, *QUICKER))


def _scale(
    name: str,
    method: Callable[[str], Config],
    dataset: Dataset,
    states: Path,
    backbones: dict[str, dict[str, str]],
    say: Say,
) -> Scale:
    wanted = method("default")
    encode = functools.partial(
        cache,
        dataset,
        states,
        levels="all",
        text_pooling=wanted.text.pooling or "mean",
        image_pooling=wanted.image.pooling or "cls",
        max_tokens=wanted.text.max_tokens,
        say=say,
    )
    depths = []
    for modality, named in backbones.items():
        for position, backbone in enumerate(named.values()):
            # Partial training is an experiment with the first backbones alone.
            top = None if position else method("partial").tuning.top
            text, image = (backbone if modality == each else None for each in (TEXT, IMAGE))
            stores = encode(text=text, image=image, top_blocks=top)
            if not position:
                depths.append(stores[modality].depth)
    return Scale(name, method, dataset.folder, states, backbones, min(depths))  # type: ignore[arg-type]
