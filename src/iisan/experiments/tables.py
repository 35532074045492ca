"""The experiments: functions that return the rows of a table, each row a complete configuration.

A scale says on what and with which settings: ``demo`` is the built-in catalogue with its small backbones, ``full``
is anyone's data and models with the settings of the IISAN paper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from iisan.config import Config
from iisan.errors import ConfigError
from iisan.names import IMAGE, TEXT
from iisan.recipes import paper, recipe

#: A row's name -> its configuration.
Rows = dict[str, Config]


@dataclass(frozen=True)
class Scale:
    """What an experiment runs on.

    Attributes:
        name: ``demo`` or ``full``.
        method: from the name of a recipe to its configuration with this scale's settings.
        dataset: dataset folder.
        states: folder of the state stores of all backbones.
        backbones: modality -> short name -> hub id or folder; every table takes the first of each, but those that
            compare backbones.
        depth: T of the first backbones, which the kept blocks of table 5 are chosen from.
    """

    name: str
    method: Callable[[str], Config]
    dataset: Path
    states: Path
    backbones: Mapping[str, Mapping[str, str]]
    depth: int

    def row(self, method: str, *overrides: str, **backbones: str) -> Config:
        """A method on this scale's data, with the named backbones or the first ones."""
        config = self.method(method).model_copy(update={"dataset": self.dataset, "states": self.states})
        chosen = {modality: next(iter(named)) for modality, named in self.backbones.items()} | backbones
        names = [f"{modality}.backbone={self.backbones[modality][short]}" for modality, short in chosen.items()]
        return config.override((*names, *overrides))


def full_settings(method: str) -> Config:
    """A recipe with everything that is not its own taken from the ``paper`` recipe."""
    own, base = recipe(method), paper()
    shared = {name: getattr(base, name) for name in ("loss", "sequence", "optimizer", "training", "evaluation")}
    states = {
        modality: base.states_of(modality).model_copy(update={"levels": own.states_of(modality).levels})
        for modality in (TEXT, IMAGE)
    }
    items = base.items
    if own.items.kind != "side":
        items = items.model_copy(update={"kind": own.items.kind})
    return own.model_copy(update={**shared, **states, "items": items})


def table_3(scale: Scale) -> Rows:
    """Methods: quality and cost (P1 table 3), and those that the paper does not have."""
    return {
        "FFT": scale.row("fft"),
        "Adapter": scale.row("adapter"),
        "LoRA": scale.row("lora"),
        "BitFit": scale.row("bitfit"),
        "IISAN (uncached)": scale.row("uncached"),
        "IISAN (cached)": scale.row("default"),
        "Partial, two blocks": scale.row("partial"),
        "Frozen states": scale.row("frozen"),
        "Ids (SASRec)": scale.row("ids"),
    }


def table_4(scale: Scale) -> Rows:
    """Components: what each part of IISAN is worth (P1 table 4)."""
    return {
        "IISAN": scale.row("default"),
        "without LayerDrop": scale.row("default", "text.levels=all", "image.levels=all"),
        "without gates": scale.row("default", "items.gated=false"),
        "without inter-modal tower": scale.row("default", "items.inter=false"),
        "without intra-modal towers": scale.row("default", "items.intra=false"),
        "frozen backbones, no towers": scale.row("frozen"),
    }


def kept_levels(depth: int) -> list[tuple[int, ...]]:
    """Evenly spaced choices of blocks, as levels with h_0 in front (our reading of P1 table 5).

    For 12 blocks: 2, 3, 4, 6 and 12 of them.
    """
    counts = [count for count in range(2, depth + 1) if depth % count == 0]
    return [tuple(range(0, depth + 1, depth // count)) for count in counts]


def table_5(scale: Scale) -> Rows:
    """Kept blocks: how many hidden states are worth reading (P1 table 5)."""
    return {
        f"{len(levels) - 1} blocks": scale.row(
            "default", f"text.levels={list(levels)}", f"image.levels={list(levels)}"
        )
        for levels in kept_levels(scale.depth)
    }


def table_6(scale: Scale) -> Rows:
    """Kinds of SAN block (P1 table 6)."""
    return {
        "adapter (SANB)": scale.row("default"),
        "PHM": scale.row("default", "items.block=phm"),
        "low-rank": scale.row("default", "items.block=low-rank"),
    }


def table_7(scale: Scale) -> Rows:
    """Modalities: every method on each of them alone (P1 table 7), next to IISAN on both."""
    methods = {"FFT": "fft", "Adapter": "adapter", "LoRA": "lora", "BitFit": "bitfit", "IISAN": "default"}
    rows = {
        f"{modality}: {name}": scale.row(method, f"modalities=[{modality}]")
        for modality, (name, method) in product((IMAGE, TEXT), methods.items())
    }
    return {**rows, "image and text: IISAN": scale.row("default")}


def figure_4(scale: Scale) -> Rows:
    """Pairs of backbones (P1 figure 4)."""
    return {
        f"{image} + {text}": scale.row("default", image=image, text=text)
        for image, text in product(scale.backbones[IMAGE], scale.backbones[TEXT])
    }


def layer_drop(scale: Scale) -> Rows:
    """Open question: does LayerDrop suit every pair of backbones?"""
    return {
        f"{image} + {text}, {levels}": scale.row(
            "default", f"text.levels={levels}", f"image.levels={levels}", image=image, text=text
        )
        for image, text in product(scale.backbones[IMAGE], scale.backbones[TEXT])
        for levels in ("layerdrop", "all")
    }


def balance(scale: Scale) -> Rows:
    """Open question: how much of IISAN is within the modalities, and how much between them, on this data?"""
    return {
        "intra and inter": scale.row("default"),
        "intra alone": scale.row("default", "items.inter=false"),
        "inter alone": scale.row("default", "items.intra=false"),
        "inter alone, ungated": scale.row("default", "items.intra=false", "items.gated=false"),
    }


def partial(scale: Scale) -> Rows:
    """Open question: long training from the cache, or the last two blocks trained on top of it?"""
    epochs = scale.row("default").training.epochs
    return {
        "from the cache": scale.row("default"),
        "from the cache, twice as long": scale.row("default", f"training.epochs={2 * epochs}"),
        "last two blocks": scale.row("partial"),
        "last two blocks, LoRA": scale.row("partial", "tuning.method=lora"),
        "last two blocks, biases": scale.row("partial", "tuning.method=bias"),
    }


EXPERIMENTS: dict[str, Callable[[Scale], Rows]] = {
    "table-3": table_3,
    "table-4": table_4,
    "table-5": table_5,
    "table-6": table_6,
    "table-7": table_7,
    "figure-4": figure_4,
    "layerdrop": layer_drop,
    "balance": balance,
    "partial": partial,
}

#: Experiments whose costs are measured too, each method in a process of its own.
WITH_COSTS = ("table-3",)


def experiment(name: str) -> Callable[[Scale], Rows]:
    """The experiment of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"no experiment '{name}'", f"one of {', '.join(EXPERIMENTS)}", "choose one of them")
    return EXPERIMENTS[name]
