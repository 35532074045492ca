"""The two scales of the experiments: the demo's data, and any data with any models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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

#: Changes to the demo's settings: negatives that methods which run the encoders can afford, as they encode every
#: item of a batch, and epochs until early stopping.
COMPARABLE = ("loss.negatives=0", "training.epochs=100")
#: Changes to rows that run the encoders: their epochs take twenty times as long, so they do not converge.
SHORT = ("training.epochs=4",)
#: Settings published for MicroLens allow 200 epochs of few, large batches; smaller data needs more of them.
VERSA_EPOCHS = ("training.epochs=400",)

Say = Callable[[str], None]


def demo_scale(out: Path, say: Say = lambda line: None) -> Scale:
    """Return the scale of the built-in catalogue and its small encoders; prepared and cached below ``out``."""
    say("the built-in catalogue (generated data) and its small encoders")
    folder = out / "demo-data"
    dataset = demo_dataset(generate(), folder)
    encoders = {
        modality: {
            f"{size} {modality} model".strip(): str(ENCODERS / f"{modality}-{size}".strip("-"))
            for size in ("", "small", "tiny")
        }
        for modality in (IMAGE, TEXT)
    }
    captioned = folder / "captioned"
    if (captioned / "dataset.json").exists():
        described = Dataset.load(captioned)
    else:
        described = caption(dataset, captioned, str(ENCODERS / CAPTIONER), say=say)
    scale = _scale("demo", _demo_settings, dataset, folder / "states", encoders, say, described)
    return replace(scale, live=SHORT)


def full_scale(
    dataset: Path,
    states: Path,
    text: Sequence[str],
    image: Sequence[str],
    say: Say = lambda line: None,
    images: Path | None = None,
) -> Scale:
    """Return the scale of any data and models, with the settings of IISAN; missing states are cached.

    Experiments that do not compare encoders use the first text and image encoder. ``images`` is the folder of the
    dataset's media, if it moved.

    Raises:
        ConfigError: No text or no image encoder.
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


def _demo_settings(method: str) -> Config:
    return recipe(method).override(VERSA_EPOCHS if method == "versa" else (*SETTINGS, *COMPARABLE))


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
            # Only the first encoders are used for partial training and for the settings published for MicroLens.
            top = None if position else method("partial").tuning.last_n_layers
            stores = encode(dataset, method("default"), {modality: encoder}, top)
            depths[modality][short] = stores[modality].depth
            if not position:
                encode(dataset, method("versa"), {modality: encoder})
    if captions:
        encode(captioned, method("default"), dict.fromkeys(captions, next(iter(encoders[TEXT].values()))))
    assert dataset.folder is not None
    return Scale(name, method, dataset.folder, states, encoders, depths, captioned.folder, captions, images)
