"""Predicted costs of methods on a dataset with given models: the table of ``iisan estimate``."""

from collections.abc import Iterable, Mapping

from iisan.data.dataset import Dataset
from iisan.efficiency.estimate import Estimate, estimate
from iisan.efficiency.hardware import Hardware
from iisan.efficiency.models import Blueprint
from iisan.efficiency.workload import DataShape
from iisan.encoders.precision import choose_precision
from iisan.machine import choose_device
from iisan.recipes import recipe
from iisan.train.setup import main_products


def plan(
    dataset: Dataset,
    models: Mapping[str, str],
    recipes: Iterable[str],
    overrides: Iterable[str] = (),
    tokens: int | None = None,
) -> dict[str, Estimate]:
    """Estimate recipes on this machine, whose speed is measured for a second or two.

    Args:
        dataset: Dataset to train on.
        models: Modality -> hub id or folder; only their configurations are read.
        recipes: Names of recipes.
        overrides: Settings for all recipes.
        tokens: Mean tokens per text; defaults to the recipe's maximum.

    Raises:
        ConfigError: An unknown recipe or setting.
        EncoderError: A model that is not found or not supported.
    """
    measured: dict[str, Hardware] = {}
    found = {}
    for name in recipes:
        config = recipe(name).override(overrides)
        blueprints = {
            modality: Blueprint.of_folder(model, modality, tokens or config.text.max_tokens)
            for modality, model in models.items()
        }
        widths = {} if config.items.kind == "table" else {name: each.width for name, each in blueprints.items()}
        device, products = choose_device(config.training.device), main_products(config, widths, dataset.num_items)
        precision = choose_precision(device, config.training.precision, products, training=True)
        if precision not in measured:
            measured[precision] = Hardware.measure(config.training.device, precision)
        found[name] = estimate(config, blueprints, DataShape.of_dataset(dataset, config), measured[precision])
    return found
