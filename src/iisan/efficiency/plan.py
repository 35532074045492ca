"""What the methods will cost on a dataset with given models: what ``iisan estimate`` prints."""

from collections.abc import Iterable, Mapping

from iisan.data.dataset import Dataset
from iisan.efficiency.estimate import Estimate, estimate
from iisan.efficiency.hardware import Hardware
from iisan.efficiency.models import Blueprint
from iisan.efficiency.workload import DataShape
from iisan.encoders.precision import choose_training_precision
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
        blueprints = {
            modality: Blueprint.of_folder(model, modality, tokens or config.text.max_tokens)
            for modality, model in models.items()
        }
        widths = [] if config.items.kind == "table" else [each.width for each in blueprints.values()]
        device = choose_device(config.training.device)
        precision = choose_training_precision(device, config.training.precision, max(widths, default=0))
        if precision not in measured:
            measured[precision] = Hardware.measure(config.training.device, precision)
        found[name] = estimate(config, blueprints, DataShape.of_dataset(dataset, config), measured[precision])
    return found
