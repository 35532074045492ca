"""Named configurations: functions that return a complete configuration."""

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
    """Our own settings, chosen on validation data alone; see ``results/``."""
    return Config(
        recipe="default",
        items=ItemEncoderConfig(embedding_dim=128, bottleneck=128, level_norm="layer", fusion_scale=0.15),
        sequence=SequenceConfig(dropout=0.2),
        loss=LossConfig(negatives=1600, pool="trained"),
        optimizer=OptimizerConfig(learning_rate=1e-3, san_learning_rate=1e-3),
        training=TrainingConfig(batch_size=64, early_stopping_patience=5),
    )


def paper() -> Config:
    """To the letter of "IISAN" (P1)."""
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
    """What the authors' published code does where it differs from the paper (METHOD §9)."""
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
    """IISAN-Versa (P2) with the settings that its authors published for MicroLens: encoders may differ."""
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
    """The ``default`` training on frozen last states: a projection, no side network."""
    return default().model_copy(
        update={
            "recipe": "frozen",
            "text": StatesConfig(levels=(LAST,)),
            "image": StatesConfig(levels=(LAST,)),
            "items": ItemEncoderConfig(kind="projection", embedding_dim=128, fusion_scale=0.15),
        }
    )


def ids() -> Config:
    """The ``default`` training on item ids alone (SASRec)."""
    return default().model_copy(
        update={"recipe": "ids", "modalities": (), "items": ItemEncoderConfig(kind="table", embedding_dim=128)}
    )


def _tuned(name: str, method: Method, **tuning: Any) -> Config:
    """The ``frozen`` recipe with encoders that run live and are trained by a method."""
    changes = {"recipe": name, "source": "live", "tuning": TuningConfig(method=method, **tuning)}
    return frozen().model_copy(update=changes)


def fft() -> Config:
    """Full fine-tuning: every weight of the encoders."""
    return _tuned("fft", "full")


def adapter() -> Config:
    """Houlsby's adapters after attention and feed-forward of every block."""
    return _tuned("adapter", "adapter", learning_rate=1e-3)


def lora() -> Config:
    """LoRA on the query and value projections of every block."""
    return _tuned("lora", "lora", learning_rate=1e-3)


def bitfit() -> Config:
    """BitFit: the biases of the encoders alone."""
    return _tuned("bitfit", "bias", learning_rate=1e-3)


def partial() -> Config:
    """The last two blocks of the encoders trained, from stored token states below them."""
    config = _tuned("partial", "full", last_n_layers=2)
    return config.model_copy(update={"source": "partial"})


def uncached() -> Config:
    """``default`` with the frozen encoders run on the fly: the same training, for comparing the cost."""
    return default().model_copy(update={"recipe": "uncached", "source": "live"})


RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        *(default, paper, reference, versa),
        *(frozen, ids, uncached),
        *(fft, adapter, lora, bitfit, partial),
    )
}


#: The recipes that are methods of their own, from the cheapest to train on.
METHODS = ("ids", "frozen", "default", "uncached", "partial", "bitfit", "lora", "adapter", "fft")


def recipe(name: str) -> Config:
    """The configuration of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe '{name}'", f"one of {', '.join(RECIPES)}", "choose one of them")
    return RECIPES[name]()


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """A recipe by name, or a YAML file; then ``key.key=value`` overrides.

    A file states only what differs from the recipe that its key ``recipe`` names (``default`` where absent).
    One that has all sections, such as the ``config.yaml`` of a run, is complete and stands for itself.

    Raises:
        ConfigError: unknown recipe, file or key, or a value that does not fit.
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
