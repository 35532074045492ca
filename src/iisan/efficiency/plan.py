"""What the methods will cost on a dataset with given models: what ``iisan estimate`` prints."""

from collections.abc import Iterable, Mapping

from iisan.data.dataset import Dataset
from iisan.efficiency.estimate import DataShape, EncoderShape, Estimate, Hardware, estimate
from iisan.encoders.precision import choose_training_precision
from iisan.names import TEXT
from iisan.recipes import recipe
from iisan.train.setup import choose_device


def plan(
    dataset: Dataset,
    models: Mapping[str, str],
    recipes: Iterable[str],
    overrides: Iterable[str] = (),
    tokens: int | None = None,
) -> dict[str, Estimate]:
    """Estimate recipes on this machine, whose speed is measured for a second or two.

    Args:
        dataset: what would be trained on.
        models: modality -> hub id or folder; only their configurations are read.
        recipes: names.
        overrides: settings of all recipes.
        tokens: of a text on average; the longest that the recipe allows if None.

    Raises:
        ConfigError: an unknown recipe or setting.
        EncoderError: a model whose configuration is not understood.
    """
    measured: dict[str, Hardware] = {}
    found = {}
    for name in recipes:
        config = recipe(name).override(overrides)
        shapes = {
            modality: EncoderShape.of_folder(
                model, modality, (tokens or config.text.max_tokens) if modality == TEXT else None
            )
            for modality, model in models.items()
        }
        widest = 0 if config.items.kind == "table" else max((shape.width for shape in shapes.values()), default=0)
        device = choose_device(config.training.device)
        precision = choose_training_precision(device, config.training.precision, widest)
        if precision not in measured:
            measured[precision] = Hardware.measure(config.training.device, precision)
        found[name] = estimate(config, shapes, DataShape.of_dataset(dataset, config), measured[precision])
    return found
