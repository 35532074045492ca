"""Recipes: named functions that return a complete configuration."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from iisan.config import (
    Config,
    EvaluationConfig,
    ItemEncoderConfig,
    LossConfig,
    OptimizerConfig,
    SequenceConfig,
    StatesConfig,
    TrainingConfig,
    TuningConfig,
    parse,
)
from iisan.errors import ConfigError
from iisan.names import LAST
from iisan.nested import flatten, merge, read_yaml

Method = Literal["full", "bias", "lora", "adapter"]


def default() -> Config:
    """Our own settings, selected on validation data only; see ``results/``."""
    return Config(
        recipe="default",
        items=ItemEncoderConfig(embedding_dim=128, bottleneck=128, level_norm="layer", fusion_scale=0.15),
        sequence=SequenceConfig(dropout=0.2),
        loss=LossConfig(negatives=1600, pool="trained"),
        optimizer=OptimizerConfig(learning_rate=1e-3, san_learning_rate=1e-3),
        training=TrainingConfig(batch_size=64, early_stopping_patience=5),
    )


def paper() -> Config:
    """The settings of the IISAN paper."""
    return Config(
        recipe="paper",
        text=StatesConfig(pooling="cls", max_tokens=30),
        image=StatesConfig(pooling="cls"),
        loss=LossConfig(exclude="training", reduction="sum"),
        optimizer=OptimizerConfig(learning_rate=2e-4, san_learning_rate=1e-4),
        training=TrainingConfig(batch_size=32),
        evaluation=EvaluationConfig(policy="all"),
    )


def reference() -> Config:
    """The settings of the published code, which differ from the paper; see ``docs/method.md``."""
    return Config(
        recipe="reference",
        text=StatesConfig(pooling="cls", max_tokens=30),
        image=StatesConfig(pooling="cls"),
        items=ItemEncoderConfig(
            gate_on="hidden", first_block="gated", projection="double", concatenation="inter-last"
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-4,
            san_learning_rate=1e-4,
            gate_learning_rates={"image": 1e-4},
            projection_learning_rates={"text": 5e-5, "image": 1e-4},
        ),
        loss=LossConfig(exclude="window"),
        training=TrainingConfig(batch_size=64, early_stopping_patience=11, windows="last"),
        evaluation=EvaluationConfig(policy="exclude-all"),
    )


def versa() -> Config:
    """IISAN-Versa with the settings published for MicroLens; encoders may differ in width and depth."""
    levels = StatesConfig(pooling="mean", levels="group-6")
    return paper().model_copy(
        update={
            "recipe": "versa",
            "text": levels,
            "image": StatesConfig(pooling="cls", levels="group-6"),
            "items": ItemEncoderConfig(
                gate_on="hidden",
                first_block="gated",
                projection="narrow",
                concatenation="inter-last",
                bottlenecks={"image": 512},
            ),
            "loss": LossConfig(exclude="window"),
            "training": TrainingConfig(batch_size=512, epochs=200, windows="last"),
            "evaluation": EvaluationConfig(policy="exclude-all"),
        }
    )


def frozen() -> Config:
    """``default`` with a projection of the frozen last states in place of the side network."""
    return default().model_copy(
        update={
            "recipe": "frozen",
            "text": StatesConfig(levels=(LAST,)),
            "image": StatesConfig(levels=(LAST,)),
            "items": ItemEncoderConfig(kind="projection", embedding_dim=128, fusion_scale=0.15),
        }
    )


def ids() -> Config:
    """``default`` with item ids only (SASRec)."""
    return default().model_copy(
        update={"recipe": "ids", "modalities": (), "items": ItemEncoderConfig(kind="table", embedding_dim=128)}
    )


def _tuned(name: str, method: Method, **tuning: Any) -> Config:
    """``frozen`` with live encoders, trained by a tuning method."""
    changes = {"recipe": name, "source": "live", "tuning": TuningConfig(method=method, **tuning)}
    return frozen().model_copy(update=changes)


def fft() -> Config:
    """Full fine-tuning of the encoders."""
    return _tuned("fft", "full")


def adapter() -> Config:
    """Houlsby's adapters after attention and feed-forward of every layer."""
    return _tuned("adapter", "adapter", learning_rate=1e-3)


def lora() -> Config:
    """LoRA on the query and value projections of every layer."""
    return _tuned("lora", "lora", learning_rate=1e-3)


def bitfit() -> Config:
    """BitFit: only the biases of the encoders."""
    return _tuned("bitfit", "bias", learning_rate=1e-3)


def partial() -> Config:
    """Fine-tuning of the last two layers of the encoders, from stored token states below them."""
    config = _tuned("partial", "full", last_n_layers=2)
    return config.model_copy(update={"source": "partial"})


def uncached() -> Config:
    """``default`` with frozen encoders that run in every step: the same training at a higher cost."""
    return default().model_copy(update={"recipe": "uncached", "source": "live"})


RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        *(default, paper, reference, versa),
        *(frozen, ids, uncached),
        *(fft, adapter, lora, bitfit, partial),
    )
}


#: Recipes that differ in method, by ascending training cost.
METHODS = ("ids", "frozen", "default", "uncached", "partial", "bitfit", "lora", "adapter", "fft")


def recipe(name: str) -> Config:
    """Return the configuration of a recipe.

    Raises:
        ConfigError: An unknown recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe '{name}'", f"one of {', '.join(RECIPES)}", "choose one of them")
    return RECIPES[name]()


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Load a recipe or a YAML file and apply ``key.key=value`` overrides.

    A YAML file states only what differs from the recipe named by its key ``recipe`` (``default`` if absent). A
    file with all sections, such as the ``config.yaml`` of a run, is complete.

    Raises:
        ConfigError: An unknown recipe, file or key, or an invalid value.
    """
    if str(source) in RECIPES:
        return recipe(str(source)).override(overrides)
    path = Path(source)
    if not path.exists() and path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(
            f"'{source}' is neither a recipe nor a file",
            f"one of {', '.join(RECIPES)}, or the path of a YAML file",
            "check the name",
        )
    values = read_yaml(path)
    if values.keys() >= Config.model_fields.keys():
        return parse(values).override(overrides)
    base = recipe(str(values.get("recipe", "default"))).model_dump(mode="json")
    return parse(merge(base, flatten(values))).override(overrides)
