"""The experiments: functions that return the rows of a table, each row a complete configuration.

A scale says on what and with which settings: ``demo`` is the built-in catalogue with its small encoders, ``full``
is anyone's data and models with the settings of the IISAN paper.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from iisan.config import Config
from iisan.encoders.levels import fitting_groups, named_levels
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
        states: folder of the state stores of all encoders.
        encoders: modality -> short name -> hub id or folder; every table takes the first of each, but those that
            compare encoders.
        depths: modality -> short name -> T.
        captioned: dataset folder with columns of captions.
        captions: those columns, whose states are of the first text encoder.
    """

    name: str
    method: Callable[[str], Config]
    dataset: Path
    states: Path
    encoders: Mapping[str, Mapping[str, str]]
    depths: Mapping[str, Mapping[str, int]]
    captioned: Path | None = None
    captions: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """T of the first encoders, of the shallower one: what the kept blocks of table 5 are chosen from."""
        return min(self.depths[modality][short] for modality, short in self.chosen().items())

    def chosen(self, **encoders: str) -> dict[str, str]:
        """Modality -> short name: the named encoders, else the first ones."""
        return {modality: next(iter(named)) for modality, named in self.encoders.items()} | encoders

    def row(self, method: str, *overrides: str, **encoders: str) -> Config:
        """A method on this scale's data, with the named encoders or the first ones."""
        config = self.method(method).model_copy(update={"dataset": self.dataset, "states": self.states})
        if config.modalities is None:  # not all that there happen to be states of
            config = config.model_copy(update={"modalities": tuple(self.encoders)})
        chosen = self.chosen(**encoders).items()
        names = [f"{modality}.encoder={self.encoders[modality][short]}" for modality, short in chosen]
        return config.override((*names, *overrides))


def full_settings(method: str) -> Config:
    """A recipe with everything that is not its own taken from the ``paper`` recipe; ``versa`` is all its own."""
    own, base = recipe(method), paper()
    if method == "versa":
        return own
    shared = {name: getattr(base, name) for name in ("loss", "sequence", "optimizer", "training", "evaluation")}
    states = {
        modality: base.section_of(modality).model_copy(update={"levels": own.section_of(modality).levels})
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
        "frozen encoders, no towers": scale.row("frozen"),
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
    """Pairs of encoders (P1 figure 4)."""
    return {
        f"{image} + {text}": scale.row("default", image=image, text=text)
        for image, text in product(scale.encoders[IMAGE], scale.encoders[TEXT])
    }


def layer_drop(scale: Scale) -> Rows:
    """Open question: does LayerDrop suit every pair of encoders?"""
    return {
        f"{image} + {text}, {levels}": scale.row(
            "default", f"text.levels={levels}", f"image.levels={levels}", image=image, text=text
        )
        for image, text in product(scale.encoders[IMAGE], scale.encoders[TEXT])
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
    """Open question: long training from the cache, or the last two blocks trained on top of it, now and then?"""
    epochs = scale.row("default").training.epochs
    longer = f"training.epochs={2 * epochs}"
    return {
        "from the cache": scale.row("default"),
        "from the cache, twice as long": scale.row("default", longer),
        "last two blocks": scale.row("partial"),
        # As many epochs that train the blocks as the row above.
        "last two blocks in every second epoch, twice as long": scale.row("partial", longer, "tuning.refresh=2"),
        "last two blocks, LoRA": scale.row("partial", "tuning.method=lora"),
        "last two blocks, biases": scale.row("partial", "tuning.method=bias"),
    }


def versa_scenarios(scale: Scale) -> Rows:
    """Scenarios of IISAN-Versa: titles, captions that a model wrote of the images or videos, or both."""
    if not scale.captions:
        raise ConfigError(
            "the dataset has no captions",
            "a column that `iisan caption` wrote",
            "run iisan caption DATASET --model MODEL --out CAPTIONED, and pass --dataset CAPTIONED",
        )

    def row(*modalities: str) -> Config:
        kinds = [f"columns.{name}.kind={TEXT}" for name in modalities if name in scale.captions]
        config = scale.row("default", f"modalities={list(modalities)}", *kinds)
        return config.model_copy(update={"dataset": scale.captioned})

    rows = {"title and image": row(IMAGE, TEXT)}
    for name in scale.captions:
        rows[f"{name} and image"] = row(IMAGE, name)
        rows[f"title and {name}"] = row(TEXT, name)
        rows[f"title, {name} and image"] = row(IMAGE, TEXT, name)
    return rows


def kept_blocks(levels: str, depth: int) -> int:
    """How many blocks named levels keep, of ``depth``."""
    return len(named_levels(levels, depth) or ()) - 1


def even_levels(depth: int, count: int) -> str:
    """LayerDrop where it keeps at most ``count`` blocks, else group layer-dropping of about as many."""
    if kept_blocks("layerdrop", depth) <= count:
        return "layerdrop"
    return f"group-{fitting_groups(depth, count)[0]}"


def _sizes(scale: Scale, pairs: Iterable[Mapping[str, str]]) -> Rows:
    """A row for each choice of encoders; deeper ones than the first keep about as many blocks as these."""
    count = kept_blocks("layerdrop", scale.depth)
    rows = {}
    for pair in pairs:
        chosen = scale.chosen(**pair)
        levels = [
            f"{name}.levels={even_levels(scale.depths[name][short], count)}" for name, short in chosen.items()
        ]
        rows[" + ".join(pair.values())] = scale.row("default", *levels, **pair)
    return rows


def versa_scaling_text(scale: Scale) -> Rows:
    """Larger text encoders, the image encoder the same (P2)."""
    return _sizes(scale, [{TEXT: text} for text in scale.encoders[TEXT]])


def versa_scaling_image(scale: Scale) -> Rows:
    """Larger image encoders, the text encoder the same (P2)."""
    return _sizes(scale, [{IMAGE: image} for image in scale.encoders[IMAGE]])


def versa_scaling_joint(scale: Scale) -> Rows:
    """Larger encoders on both sides, one after the other as they are named (P2)."""
    pairs = zip(scale.encoders[IMAGE], scale.encoders[TEXT], strict=False)
    return _sizes(scale, [{IMAGE: image, TEXT: text} for image, text in pairs])


def versa_ablation(scale: Scale) -> Rows:
    """Parts of IISAN-Versa, on unlike encoders: the first one for text, the second one for images."""
    pair = {TEXT: next(iter(scale.encoders[TEXT])), IMAGE: [*scale.encoders[IMAGE]][:2][-1]}
    depths = {name: scale.depths[name][short] for name, short in pair.items()}
    deeper = max(depths, key=lambda name: depths[name])
    depth = depths[deeper]
    even = even_levels(depth, kept_blocks("layerdrop", min(depths.values())))
    count = kept_blocks(even, depth)
    top, bottom = [0, *range(depth - count + 1, depth + 1)], [*range(count + 1)]

    def row(*overrides: str) -> Config:
        return scale.row("default", f"{deeper}.levels={even}", *overrides, **pair)

    return {
        f"evenly spaced {deeper} blocks": row(),
        f"top {deeper} blocks": row(f"{deeper}.levels={top}"),
        f"bottom {deeper} blocks": row(f"{deeper}.levels={bottom}"),
        "without dimension transform (pooled)": row("items.transform=pool"),
        "without intra-modal towers": row("items.intra=false"),
        "without inter-modal tower": row("items.inter=false"),
        "not cached": row("source=live"),
    }


def versa_microlens(scale: Scale) -> Rows:
    """The settings that were published for MicroLens (P2), and ids trained with them."""
    return {
        "IISAN-Versa": scale.row("versa"),
        "IISAN-Versa, text alone": scale.row("versa", "modalities=[text]"),
        "IISAN-Versa, images alone": scale.row("versa", "modalities=[image]"),
        "Ids (SASRec)": scale.row("versa", "modalities=[]", "items.kind=table"),
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
    "versa-scenarios": versa_scenarios,
    "versa-scaling-text": versa_scaling_text,
    "versa-scaling-image": versa_scaling_image,
    "versa-scaling-joint": versa_scaling_joint,
    "versa-ablation": versa_ablation,
    "versa-microlens": versa_microlens,
}

#: Experiments whose costs are measured too, each method in a process of its own.
WITH_COSTS = ("table-3", "versa-scaling-text", "versa-scaling-image", "versa-scaling-joint", "versa-ablation")


def experiment(name: str) -> Callable[[Scale], Rows]:
    """The experiment of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"no experiment '{name}'", f"one of {', '.join(EXPERIMENTS)}", "choose one of them")
    return EXPERIMENTS[name]
