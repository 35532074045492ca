"""Experiments: functions that return the rows of a table, each row a complete configuration.

A scale determines data, encoders and settings: ``demo`` is the built-in catalogue with its small encoders,
``full`` is any dataset with any encoders and the settings of IISAN.
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
    """Data, encoders and settings of an experiment.

    Attributes:
        name: ``demo`` or ``full``.
        method: Function from the name of a recipe to its configuration with the settings of this scale.
        dataset: Dataset folder.
        states: Folder of the state stores of all encoders.
        encoders: Modality -> short name -> hub id or folder. Experiments that do not compare encoders use the
            first.
        depths: Modality -> short name -> number of layers T.
        captioned: Dataset folder with columns of captions.
        captions: Names of these columns, encoded by the first text encoder.
        images: Folder of the media of the dataset, where they moved.
        live: Changes to rows that run the encoders in training. If there are any, such rows have one seed.
    """

    name: str
    method: Callable[[str], Config]
    dataset: Path
    states: Path
    encoders: Mapping[str, Mapping[str, str]]
    depths: Mapping[str, Mapping[str, int]]
    captioned: Path | None = None
    captions: tuple[str, ...] = ()
    images: Path | None = None
    live: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Number of layers of the shallower of the first encoders, from which table 5 selects."""
        return min(self.depths[modality][short] for modality, short in self.chosen().items())

    def chosen(self, **encoders: str) -> dict[str, str]:
        """Return modality -> short name, with the first encoder of each modality that is not given."""
        return {modality: next(iter(named)) for modality, named in self.encoders.items()} | encoders

    def row(self, method: str, *overrides: str, **encoders: str) -> Config:
        """Return a method's configuration on this scale, with the given or the first encoders.

        The anchor is off, as in the papers, unless it is switched on: it adds the same terms to every method.
        """
        folders = {"dataset": self.dataset, "images": self.images, "states": self.states}
        config = self.method(method).model_copy(update=folders)
        if config.modalities is None:  # the default would be every modality in the state store
            config = config.model_copy(update={"modalities": tuple(self.encoders)})
        chosen = self.chosen(**encoders).items()
        names = [f"{modality}.encoder={self.encoders[modality][short]}" for modality, short in chosen]
        config = config.override(("anchor=false", *names, *overrides))
        return config if config.source == "cached" else config.override((*self.live, *overrides))


def full_settings(method: str) -> Config:
    """Return a recipe's method with all other settings of the recipe ``paper``; ``versa`` is unchanged."""
    own, base = recipe(method), paper()
    if method == "versa":
        return own
    shared = {name: getattr(base, name) for name in ("loss", "sequence", "optimizer", "training", "evaluation")}
    states = {
        modality: base.section_of(modality).model_copy(update={"levels": own.section_of(modality).levels})
        for modality in (TEXT, IMAGE)
    }
    items = base.items.model_copy(update={"kind": own.items.kind})
    return own.model_copy(update={**shared, **states, "items": items})


def table_3(scale: Scale) -> Rows:
    """Quality and cost of methods (IISAN, table 3), and of further ones."""
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
        "similarity, no training": scale.row("similarity", "anchor=true"),
        "IISAN (cached), anchored": scale.row("default", "anchor=true"),
    }


def table_4(scale: Scale) -> Rows:
    """Ablation of components (IISAN, table 4)."""
    return {
        "IISAN": scale.row("default"),
        "without LayerDrop": scale.row("default", "text.levels=all", "image.levels=all"),
        "without gates": scale.row("default", "items.gated=false"),
        "without inter-modal tower": scale.row("default", "items.inter=false"),
        "without intra-modal towers": scale.row("default", "items.intra=false"),
        "frozen encoders, no towers": scale.row("frozen"),
    }


def kept_levels(depth: int) -> list[tuple[int, ...]]:
    """Evenly spaced selections of layers, as levels starting with h_0 (our reading of IISAN, table 5).

    Of 12 layers: 2, 3, 4, 6 and 12.
    """
    counts = [count for count in range(2, depth + 1) if depth % count == 0]
    return [tuple(range(0, depth + 1, depth // count)) for count in counts]


def table_5(scale: Scale) -> Rows:
    """Number of kept layers (IISAN, table 5)."""
    return {
        f"{len(levels) - 1} blocks": scale.row("default", f"text.levels={levels}", f"image.levels={levels}")
        for levels in map(list, kept_levels(scale.depth))
    }


def table_6(scale: Scale) -> Rows:
    """Kinds of SAN block (IISAN, table 6)."""
    return {
        "adapter (SANB)": scale.row("default"),
        "PHM": scale.row("default", "items.block=phm"),
        "low-rank": scale.row("default", "items.block=low-rank"),
    }


def table_7(scale: Scale) -> Rows:
    """Every method on a single modality (IISAN, table 7), and IISAN on both."""
    methods = {"FFT": "fft", "Adapter": "adapter", "LoRA": "lora", "BitFit": "bitfit", "IISAN": "default"}
    rows = {
        f"{modality}: {name}": scale.row(method, f"modalities=[{modality}]")
        for modality, (name, method) in product((IMAGE, TEXT), methods.items())
    }
    return {**rows, "image and text: IISAN": scale.row("default")}


def figure_4(scale: Scale) -> Rows:
    """Pairs of encoders (IISAN, figure 4)."""
    return {
        f"{image} + {text}": scale.row("default", image=image, text=text)
        for image, text in product(scale.encoders[IMAGE], scale.encoders[TEXT])
    }


def layerdrop(scale: Scale) -> Rows:
    """Open question: does LayerDrop suit every pair of encoders?"""
    return {
        f"{image} + {text}, {levels}": scale.row(
            "default", f"text.levels={levels}", f"image.levels={levels}", image=image, text=text
        )
        for image, text in product(scale.encoders[IMAGE], scale.encoders[TEXT])
        for levels in ("layerdrop", "all")
    }


def balance(scale: Scale) -> Rows:
    """Open question: how much do intra-modal and inter-modal towers contribute on this data?"""
    return {
        "intra and inter": scale.row("default"),
        "intra alone": scale.row("default", "items.inter=false"),
        "inter alone": scale.row("default", "items.intra=false"),
        "inter alone, ungated": scale.row("default", "items.intra=false", "items.gated=false"),
    }


def partial(scale: Scale) -> Rows:
    """Open question: training from the cache, or fine-tuning of the last layers, always or occasionally?"""
    tuned = scale.row("partial")
    return {
        "from the cache": scale.row("default"),
        "last two blocks": tuned,
        # As many epochs of fine-tuning as in the row above.
        "last two blocks in every second epoch, twice as long": scale.row(
            "partial", f"training.epochs={2 * tuned.training.epochs}", "tuning.refresh=2"
        ),
        "last two blocks, LoRA": scale.row("partial", "tuning.method=lora"),
        "last two blocks, biases": scale.row("partial", "tuning.method=bias"),
    }


def versa_scenarios(scale: Scale) -> Rows:
    """Scenarios of IISAN-Versa: titles, generated captions of images or videos, or both."""
    if not scale.captions:
        raise ConfigError(
            "the dataset has no captions",
            "a column written by `iisan caption`",
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


def kept_layers(levels: str, depth: int) -> int:
    """Number of layers, of ``depth``, that named levels keep."""
    return len(named_levels(levels, depth) or ()) - 1


def even_levels(depth: int, count: int) -> str:
    """LayerDrop if it keeps at most ``count`` layers, else group layer-dropping of about as many."""
    if kept_layers("layerdrop", depth) <= count:
        return "layerdrop"
    return f"group-{fitting_groups(depth, count)[0]}"


def _sizes(scale: Scale, pairs: Iterable[Mapping[str, str]]) -> Rows:
    """A row per choice of encoders; deeper encoders keep about as many layers as the first ones."""
    count = kept_layers("layerdrop", scale.depth)
    rows = {}
    for pair in pairs:
        chosen = scale.chosen(**pair)
        levels = [
            f"{side}.levels={even_levels(scale.depths[side][short], count)}" for side, short in chosen.items()
        ]
        rows[" + ".join(pair.values())] = scale.row("default", *levels, **pair)
    return rows


def versa_scaling_text(scale: Scale) -> Rows:
    """Larger text encoders with one image encoder (IISAN-Versa)."""
    return _sizes(scale, [{TEXT: text} for text in scale.encoders[TEXT]])


def versa_scaling_image(scale: Scale) -> Rows:
    """Larger image encoders with one text encoder (IISAN-Versa)."""
    return _sizes(scale, [{IMAGE: image} for image in scale.encoders[IMAGE]])


def versa_scaling_joint(scale: Scale) -> Rows:
    """Larger encoders of both modalities, paired in order (IISAN-Versa)."""
    pairs = zip(scale.encoders[IMAGE], scale.encoders[TEXT], strict=False)
    return _sizes(scale, [{IMAGE: image, TEXT: text} for image, text in pairs])


def versa_ablation(scale: Scale) -> Rows:
    """Ablation of IISAN-Versa on encoders of different shape: the first for text, the second for images."""
    pair = {TEXT: next(iter(scale.encoders[TEXT])), IMAGE: [*scale.encoders[IMAGE]][:2][-1]}
    depths = {name: scale.depths[name][short] for name, short in pair.items()}
    deeper = max(depths, key=lambda name: depths[name])
    depth = depths[deeper]
    even = even_levels(depth, kept_layers("layerdrop", min(depths.values())))
    count = kept_layers(even, depth)
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
    """The settings published for MicroLens (IISAN-Versa), and an id baseline with the same settings."""
    return {
        "IISAN-Versa": scale.row("versa"),
        "IISAN-Versa, text alone": scale.row("versa", "modalities=[text]"),
        "IISAN-Versa, images alone": scale.row("versa", "modalities=[image]"),
        "Ids (SASRec)": scale.row("versa", "modalities=[]", "items.kind=table"),
    }


EXPERIMENTS: dict[str, Callable[[Scale], Rows]] = {
    rows.__name__.replace("_", "-"): rows
    for rows in (
        *(table_3, table_4, table_5, table_6, table_7, figure_4, layerdrop, balance, partial, versa_scenarios),
        *(versa_scaling_text, versa_scaling_image, versa_scaling_joint, versa_ablation, versa_microlens),
    )
}

#: Experiments that also measure costs, each method in a separate process.
WITH_COSTS = ("table-3", "versa-scaling-text", "versa-scaling-image", "versa-scaling-joint", "versa-ablation")


def experiment(name: str) -> Callable[[Scale], Rows]:
    """Return an experiment by name.

    Raises:
        ConfigError: An unknown experiment.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"no experiment '{name}'", f"one of {', '.join(EXPERIMENTS)}", "choose one of them")
    return EXPERIMENTS[name]
