"""Recipes: named functions that return a complete configuration."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from iisan.config import (
    FOLDERS,
    AnchorConfig,
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
from iisan.nested import flatten, merge, read_yaml
from iisan.remote.opening import addressed, with_copies

Method = Literal["full", "bias", "lora", "adapter"]
#: Separator of the members' recipes in the name of a joined run.
JOINT = " + "


def default() -> Config:
    """Our own settings, selected on validation data only (see ``results/``)."""
    return Config(
        recipe="default",
        items=ItemEncoderConfig(embedding_dim=128, level_norm="centred", fusion_scale=0.15),
        sequence=SequenceConfig(num_layers=1, dropout=0.2, similarity="cosine"),
        anchor=AnchorConfig(enabled=True),
        loss=LossConfig(negatives=800, pool="trained"),
        optimizer=OptimizerConfig(learning_rate=1e-3, san_learning_rate=5e-4),
        training=TrainingConfig(batch_size=128, early_stopping_patience=5, ema_decay=0.998),
    )


def paper() -> Config:
    """The settings of IISAN: windows ``all`` (its choice is not stated), exclude ``training``, policy ``all``."""
    return Config(
        recipe="paper",
        text=StatesConfig(pooling="cls", max_tokens=30),
        image=StatesConfig(pooling="cls"),
        loss=LossConfig(exclude="training", reduction="sum"),
        training=TrainingConfig(batch_size=32, windows="all"),
        evaluation=EvaluationConfig(policy="all"),
    )


def reference() -> Config:
    """The settings of the published code, which differ from the paper; see ``docs/method.md``."""
    items = ItemEncoderConfig(
        gate_on="hidden", first_block="gated", projection="double", concatenation="inter-last"
    )
    optimizer = OptimizerConfig(
        gate_learning_rates={"image": 1e-4}, projection_learning_rates={"text": 5e-5, "image": 1e-4}
    )
    return _changed(
        paper(),
        recipe="reference",
        items=items,
        optimizer=optimizer,
        loss=LossConfig(exclude="window"),
        training=TrainingConfig(early_stopping_patience=11, windows="last"),
        evaluation=EvaluationConfig(policy="exclude-all"),
    )


def versa() -> Config:
    """IISAN-Versa with the settings published for MicroLens; encoders may differ in width and depth."""
    return _changed(
        reference(),
        recipe="versa",
        text=StatesConfig(pooling="mean", levels="group-6"),
        image=StatesConfig(pooling="cls", levels="group-6"),
        items=reference().items.model_copy(update={"projection": "narrow", "bottlenecks": {"image": 512}}),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(batch_size=512, epochs=200, windows="last"),
    )


def frozen() -> Config:
    """``default`` with a projection of the encoders' final output instead of the side network."""
    items = ItemEncoderConfig(kind="projection", embedding_dim=128, level_norm="centred", fusion_scale=0.15)
    return _changed(default(), recipe="frozen", items=items)


def ids() -> Config:
    """``default`` with item ids only (SASRec), and without the anchor, which needs states."""
    items = ItemEncoderConfig(kind="table", embedding_dim=128)
    return _changed(default(), recipe="ids", modalities=(), items=items, anchor=AnchorConfig())


def similarity() -> Config:
    """No training: similarity of frozen states, popularity and transitions."""
    return _changed(default(), recipe="similarity", items=ItemEncoderConfig(kind="none"))


def _changed(config: Config, **changes: Any) -> Config:
    return config.model_copy(update=changes)


def _tuned(name: str, method: Method, **tuning: Any) -> Config:
    """``frozen`` with live encoders, trained by a tuning method."""
    return _changed(frozen(), recipe=name, source="live", tuning=TuningConfig(method=method, **tuning))


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
    """BitFit: only the biases of the encoders are trained."""
    return _tuned("bitfit", "bias", learning_rate=1e-3)


def partial() -> Config:
    """Fine-tuning of the last two layers of the encoders, from stored token states below them."""
    return _changed(_tuned("partial", "full", last_n_layers=2), source="partial")


def uncached() -> Config:
    """``default`` with frozen encoders that run in every step: the same training at a higher cost."""
    return _changed(default(), recipe="uncached", source="live")


_FUNCTIONS = (
    default,
    similarity,
    paper,
    reference,
    versa,
    frozen,
    ids,
    uncached,
    fft,
    adapter,
    lora,
    bitfit,
    partial,
)
RECIPES: dict[str, Callable[[], Config]] = {function.__name__: function for function in _FUNCTIONS}

#: Recipes that differ in method, by ascending training cost.
METHODS = ("ids", "frozen", "default", "uncached", "partial", "bitfit", "lora", "adapter", "fft")


def recipe(name: str) -> Config:
    """Return the configuration of a recipe; raise a ``ConfigError`` for an unknown name."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe '{name}'", f"one of {', '.join(RECIPES)}", "choose one of them")
    return RECIPES[name]()


@addressed("source")
def load_config(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Load a recipe or a YAML file and apply ``key.key=value`` overrides.

    A YAML file only contains what differs from the recipe named by its key ``recipe`` (by default ``default``). A
    file with all sections, such as the ``config.yaml`` of a run, is complete.

    Raises:
        ConfigError: An unknown recipe, file or key, an invalid value, or the configuration of a joined run.
    """
    if str(source) in RECIPES:
        return _overridden(recipe(str(source)), overrides)
    path = Path(source)
    if not path.exists() and path.suffix not in {".yaml", ".yml"}:
        expected = f"one of {', '.join(RECIPES)}, or the path of a YAML file"
        raise ConfigError(f"'{source}' is neither a recipe nor a file", expected, "check the name")
    values = dict(with_copies(read_yaml(path).items(), FOLDERS))
    # Complete configurations of version 0.1 have no anchor.
    if values.keys() >= Config.model_fields.keys() - {"anchor"}:
        if JOINT in str(values["recipe"]):
            got, cure = f"'{path}' is that of a joined run", "join its members again with `iisan join`"
            raise ConfigError(got, "the configuration of a single trained run", cure)
        return _overridden(parse(values), overrides)
    base = recipe(str(values.get("recipe", "default"))).model_dump(mode="json")
    return _overridden(parse(merge(base, flatten(values))), overrides)


def _overridden(config: Config, overrides: Iterable[str]) -> Config:
    changed = config.override(overrides)
    if changed.recipe != config.recipe and changed.recipe in RECIPES:
        got = f"the recipe '{config.recipe}' with the override recipe={changed.recipe}, which is only a name"
        raise ConfigError(got, "settings of one recipe", f"name '{changed.recipe}' as CONFIG instead")
    return changed
