"""Typed, validated configuration: YAML plus dotted overrides; an unknown key fails."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from iisan.errors import ConfigError
from iisan.legacy import new_name, new_value
from iisan.names import IMAGE, IMPORTED, INTER, KINDS, LAST, TEXT
from iisan.nested import flatten, merge, parse_assignment

Kind = Literal["text", "image", "audio", "video", "imported"]
#: A column of the items; the name becomes part of folders and of parameters' names.
Modality = Annotated[str, Field(pattern=r"^\w+$")]
#: A hidden-state index ``0..T``, or ``"last"`` for the encoder's own answer.
Level = NonNegativeInt | Literal["last"]
Levels = (
    Literal["layerdrop", "all"]
    | Annotated[str, Field(pattern=r"^group-[1-9][0-9]*$")]
    | Annotated[tuple[Level, ...], Field(min_length=1)]
)
#: Keys that say where something lies. Fingerprints, not paths, decide whether it is the same.
FOLDERS = ("dataset", "images", "states")
Policy = Literal["unseen", "all", "exclude-all"]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class StatesConfig(Section):
    """What the hidden states of a kind of content must be; None accepts whatever the store holds.

    Attributes:
        encoder: hub id (``owner/name`` or ``owner/name@revision``) or folder; needed with ``source`` ``live``.
        pooling: of a content's tokens: ``cls``, ``mean``, or ``last`` (texts only).
        max_tokens: longest text, special tokens included.
        levels: hidden states that are read: ``layerdrop`` (every other one), ``all``, ``group-N`` (N evenly spaced
            blocks, P2's group layer-dropping), or a list such as ``[0, 6, 12]``; ``last`` is the encoder's own
            answer.
    """

    encoder: str | None = None
    pooling: Literal["cls", "mean", "last"] | None = None
    max_tokens: PositiveInt | None = None
    levels: Levels = "layerdrop"


class ColumnConfig(Section):
    """A modality such as a second text, or sound; None is as the section of its kind says, ``text`` or ``image``.

    Attributes:
        kind: ``text``, ``image``, ``audio``, ``video``, or ``imported`` (states made elsewhere); None where the
            state store says it.
        encoder: as in the kind's section.
        pooling: as in the kind's section.
        max_tokens: as in the kind's section.
        max_seconds: longest part of a sound that is heard, from its middle.
        frames: of a video that are looked at.
        levels: as in the kind's section.
    """

    kind: Kind | None = None
    encoder: str | None = None
    pooling: Literal["cls", "mean", "last"] | None = None
    max_tokens: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    frames: PositiveInt | None = None
    levels: Levels | None = None


class TuningConfig(Section):
    """What of the encoders is trained, with ``source`` ``live`` or ``partial``.

    Attributes:
        method: ``none`` (frozen), ``full`` (every weight), ``bias`` (BitFit), ``lora``, or ``adapter`` (Houlsby).
        last_n_layers: only the last layers are trained, and what follows them; None is the whole encoder.
            Source ``partial`` needs it.
        rank: r of LoRA.
        alpha: LoRA's product is scaled by ``alpha / rank``.
        bottleneck: H of Houlsby's adapters.
        learning_rate: learning rate of everything trained inside the encoders.
        refresh: train the encoders in one epoch of ``refresh``, the first; in the others their last states
            are served from memory and the rest is trained, at the cost of cached training. 1 trains them in every
            epoch.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
    """

    method: Literal["none", "full", "bias", "lora", "adapter"] = "none"
    last_n_layers: PositiveInt | None = None
    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    bottleneck: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-4
    refresh: PositiveInt = 1
    gradient_checkpointing: bool = False


class ItemEncoderConfig(Section):
    """From hidden states to an item embedding (METHOD: P1 eqs. 1–3).

    Attributes:
        kind: ``side`` (side networks), ``projection`` (linear on the last state), ``table`` (ids).
        embedding_dim: E.
        intra: one tower per modality.
        inter: one tower across modalities; exists where there are at least two.
        block: weights of the SAN blocks: ``dense``, ``phm`` (parameterised hypercomplex) or ``low-rank``
            (P1 table 6).
        bottleneck: H.
        bottlenecks: H of single towers, by modality or ``inter``.
        transform: what brings wider states to the inter tower's width: a trained ``linear`` map per level (P2), or
            ``pool``, the means of neighbouring channels, without parameters.
        phm: n, Kronecker products a PHM weight is the sum of; divides widths and bottleneck.
        rank: of a low-rank weight.
        activation: inside a SAN block.
        gated: learn the scalar gates; otherwise states are added.
        gate_on: what the sigmoid of a gate's parameter multiplies in eq. 1: the ``previous`` state (P1) or the
            ``hidden`` state (published code).
        first_block: the first intra block sees the embedding state ``alone`` (P1), or ``gated`` with
            zeros (published code).
        projection: linear maps from a tower to the fusion: ``single`` (D→E), ``double`` (D→D, D→E; published
            code), or ``narrow`` (D→E, E→E within modalities, ``double`` across them; published code of Versa).
        concatenation: where the inter tower stands in the fusion's input.
        fusion_scale: factor on the fusion's initial weights. At 1 (Xavier) normalised states give first scores far
            larger than the loss needs, which costs epochs to unlearn.
        level_norm: parameter-free LayerNorm of every state before the gates.
    """

    kind: Literal["side", "projection", "table"] = "side"
    embedding_dim: PositiveInt = 64
    intra: bool = True
    inter: bool = True
    block: Literal["dense", "phm", "low-rank"] = "dense"
    bottleneck: PositiveInt = 64
    bottlenecks: dict[Modality, PositiveInt] = {}
    transform: Literal["linear", "pool"] = "linear"
    phm: PositiveInt = 8
    rank: PositiveInt = 1
    activation: Literal["relu", "gelu"] = "relu"
    gated: bool = True
    gate_on: Literal["previous", "hidden"] = "previous"
    first_block: Literal["alone", "gated"] = "alone"
    projection: Literal["single", "double", "narrow"] = "single"
    concatenation: Literal["inter-between", "inter-last"] = "inter-between"
    fusion_scale: PositiveFloat = 1.0
    level_norm: Literal["none", "layer"] = "none"


class SequenceConfig(Section):
    """From a history to a query vector.

    Attributes:
        kind: ``sasrec`` (transformer), ``gru4rec`` or ``nextitnet``.
        max_length: S, the history length fed to the model.
        num_layers: transformer blocks, GRU layers or residual convolution blocks.
        num_heads: attention heads (sasrec only).
        dropout: probability.
    """

    kind: Literal["sasrec", "gru4rec", "nextitnet"] = "sasrec"
    max_length: PositiveInt = 10
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class LossConfig(Section):
    """Cross-entropy over candidates (P1 eqs. 4–5).

    Attributes:
        candidates: the items of the ``batch`` (debiased by popularity), or ``all`` of the pool (full softmax).
        negatives: items drawn uniformly from the ``pool`` and added to the batch's candidates, corrected
            by the log-probability of the mixed sampling.
        pool: where ``all`` and ``negatives`` take their items from: the whole ``catalogue``, or the items that are
            ``trained`` on, those of the training windows. Items in no window can only be negatives, which teaches
            the model never to recommend them.
        exclude: the user's own items that are never negatives: those of the same training ``window``, or all
            those that the user interacted with in ``training``.
        reduction: over positions.
    """

    candidates: Literal["batch", "all"] = "batch"
    negatives: NonNegativeInt = 0
    pool: Literal["catalogue", "trained"] = "catalogue"
    exclude: Literal["window", "training"] = "training"
    reduction: Literal["mean", "sum"] = "mean"

    @model_validator(mode="after")
    def _negatives_need_batch(self) -> "LossConfig":
        if self.candidates == "all" and self.negatives:
            raise ValueError("with candidates 'all' every item is a candidate already; set negatives to 0")
        return self


class OptimizerConfig(Section):
    """Adam without weight decay, in groups.

    Attributes:
        learning_rate: learning rate of all that has none of its own.
        san_learning_rate: rate of the SAN blocks.
        gate_learning_rates: rate of a tower's gates, by tower.
        projection_learning_rates: rate of the D→D map of a tower's projection, by tower.
    """

    learning_rate: PositiveFloat = 2e-4
    san_learning_rate: PositiveFloat = 1e-4
    gate_learning_rates: dict[Modality, PositiveFloat] = {}
    projection_learning_rates: dict[Modality, PositiveFloat] = {}


class TrainingConfig(Section):
    """The loop.

    Attributes:
        batch_size: B, users (training windows) per forward pass.
        gradient_accumulation: forward passes whose gradients are averaged into one update.
        epochs: upper limit.
        early_stopping_patience: stop after this many validations in a row without improvement; 0 never stops
            early. See ``evaluation.every``.
        windows: ``all`` cuts each user's training items into windows of S + 1, in which every item but the user's
            first is a target once; ``last`` keeps the last window alone. Popularity and ``loss.pool`` follow.
        seed: of initial weights, order, dropout and negatives.
        precision: number format of encoders and item encoders in training. ``auto`` is bf16 where the run's matrix
            products are measured to be at least 20% faster in it, else fp32; ``config.yaml`` keeps the choice.
        device: ``auto`` is CUDA where it is there, else the CPU.
        resident_gb: largest size in GB of stored states that a GPU keeps; larger ones are read batch by batch.
        max_grad_norm: upper limit of the gradient's norm; 0 is none.
        modality_dropout: probability that a training step hides a modality of an item, never all of them; teaches
            the model to do without.
    """

    batch_size: PositiveInt = 64
    gradient_accumulation: PositiveInt = 1
    epochs: PositiveInt = 100
    early_stopping_patience: NonNegativeInt = 10
    windows: Literal["last", "all"] = "all"
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    resident_gb: NonNegativeFloat = 8.0
    max_grad_norm: NonNegativeFloat = 0.0
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class EvaluationConfig(Section):
    """How quality is measured; printed beside every number.

    Attributes:
        split: ``leave-one-out`` (the papers) or a global ``temporal`` split.
        policy: which items compete with a target: ``unseen`` (those that are not in the history; queries whose
            target is in it are left out), ``all``, or ``exclude-all`` (as ``unseen``, but a target in the history
            counts as a miss, as in the published code).
        cutoffs: the k of HR@k, NDCG@k and MRR@k.
        select: validation metric that chooses the best epoch.
        every: epochs from one validation to the next; the last epoch is validated, too.
        validation_users: number of users that validation samples; always the same ones of a dataset, whatever the
            seed. None validates on all. The test is always on all users.
    """

    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    policy: Policy = "unseen"
    cutoffs: tuple[PositiveInt, ...] = (5, 10, 20)
    select: Annotated[str, Field(pattern=r"^(hr|ndcg|mrr)@[1-9][0-9]*$")] = "hr@10"
    every: PositiveInt = 1
    validation_users: PositiveInt | None = None

    @model_validator(mode="after")
    def _select_is_measured(self) -> "EvaluationConfig":
        if int(self.select.split("@")[1]) not in self.cutoffs:
            raise ValueError(f"select '{self.select}' needs its cut-off among cutoffs {list(self.cutoffs)}")
        return self


class Config(Section):
    """All settings of one run.

    Attributes:
        recipe: name of the recipe that the settings started from.
        dataset: dataset folder.
        images: folder that the dataset's media lie in, where they moved since ``iisan prepare``; needed with
            ``source`` ``live`` only.
        states: folder of state stores (what ``iisan cache --out`` wrote); unused by ids.
        source: ``cached`` reads the store, ``live`` runs the encoders on the fly, ``partial`` reads the token
            states below the last ``tuning.last_n_layers`` blocks from the store and runs those blocks.
        modalities: columns of the items, in the order of concatenation; empty for ids; None takes all that there
            are states of.
        text: of the column ``text``, and of every other text that ``columns`` does not say more about.
        image: the same for images.
        columns: what is particular to a modality, by column, and all that there is to say about other kinds.
    """

    recipe: str = "default"
    dataset: Path | None = None
    images: Path | None = None
    states: Path | None = None
    source: Literal["cached", "live", "partial"] = "cached"
    modalities: tuple[Modality, ...] | None = None
    text: StatesConfig = StatesConfig()
    image: StatesConfig = StatesConfig()
    columns: dict[Modality, ColumnConfig] = {}
    tuning: TuningConfig = TuningConfig()
    items: ItemEncoderConfig = ItemEncoderConfig()
    sequence: SequenceConfig = SequenceConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Config":
        if self.modalities is not None:
            self._modalities_fit(self.modalities)
        self._source_fits()
        self._towers_fit()
        if self.sequence.kind == "sasrec" and self.items.embedding_dim % self.sequence.num_heads:
            raise ValueError(
                f"items.embedding_dim {self.items.embedding_dim} is no multiple of sequence.num_heads "
                f"{self.sequence.num_heads}"
            )
        return self

    def _source_fits(self) -> None:
        tuning = self.tuning
        if self.source == "cached" and tuning.method != "none":
            raise ValueError(
                f"tuning.method '{tuning.method}' with source 'cached': stored states cannot be trained; set "
                "source to 'live' or 'partial'"
            )
        if self.source == "partial" and (tuning.method == "none" or tuning.last_n_layers is None):
            raise ValueError(
                "source 'partial' needs a tuning.method and the number tuning.last_n_layers of live blocks"
            )
        if tuning.method == "none" and tuning.refresh > 1:
            raise ValueError(
                f"tuning.refresh {tuning.refresh} with tuning.method 'none': there is nothing to refresh when the "
                "encoders are not trained; set a tuning.method, or tuning.refresh to 1"
            )
        if tuning.method != "none" and self.items.kind != "projection":
            raise ValueError(
                f"items.kind '{self.items.kind}' with tuning.method '{tuning.method}': a trained encoder ends in "
                "items.kind 'projection'"
            )

    def _towers_fit(self) -> None:
        known = {*KINDS, IMPORTED, INTER, *self.columns, *(self.modalities or ())}
        for name in (
            *self.optimizer.gate_learning_rates,
            *self.optimizer.projection_learning_rates,
            *self.items.bottlenecks,
        ):
            if name not in known:
                raise ValueError(f"settings of a tower '{name}', which is none of {', '.join(sorted(known))}")

    def _modalities_fit(self, modalities: tuple[str, ...]) -> None:
        if len(set(modalities)) != len(modalities):
            raise ValueError(f"modalities {list(modalities)} names one twice")
        if (self.items.kind == "table") != (not modalities):
            raise ValueError(
                f"items.kind '{self.items.kind}' with modalities {list(modalities)}: 'table' learns from ids "
                "alone (modalities []), every other kind needs a modality"
            )
        inter = self.items.inter and len(modalities) > 1
        if self.items.kind == "side" and not (self.items.intra or inter):
            raise ValueError("no tower is left: items.intra is off and there is no inter tower")

    def kind_of(self, modality: str) -> str | None:
        """The kind of a modality: as ``columns`` says, or the kind that it is named after; else None."""
        stated = self.columns[modality].kind if modality in self.columns else None
        return stated or (modality if modality in (*KINDS, IMPORTED) else None)

    def states_of(self, modality: str) -> ColumnConfig:
        """All settings of a modality's states: its kind's, and over them its own.

        Raises:
            ConfigError: its kind is not known.
        """
        kind = self.kind_of(modality)
        if kind is None:
            raise ConfigError(
                f"the kind of the modality '{modality}' is not known",
                f"one of {', '.join(KINDS)}",
                f"set columns.{modality}.kind",
            )
        own = self.columns.get(modality, ColumnConfig()).model_dump(exclude_none=True)
        return ColumnConfig.model_validate({**self.section_of(kind).model_dump(), **own, "kind": kind})

    def section_of(self, kind: str) -> StatesConfig:
        """The settings of all states of a kind."""
        sections = {TEXT: self.text, IMAGE: self.image, IMPORTED: StatesConfig(levels="all")}
        return sections.get(kind, StatesConfig())

    def levels_of(self, modality: str) -> Levels:
        """The levels that this configuration reads of a modality: a projection reads the last state only."""
        if self.items.kind == "projection":
            return (LAST,)
        levels = self.states_of(modality).levels
        assert levels is not None, "every kind's section has levels"
        return levels

    def override(self, assignments: Iterable[str]) -> "Config":
        """Apply ``key.key=value`` assignments; values are YAML.

        Raises:
            ConfigError: an unknown key or a value of the wrong type.
        """
        return parse(merge(self.model_dump(mode="json"), map(parse_assignment, assignments)))

    def to_yaml(self) -> str:
        """The complete configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse(values: Mapping[str, Any]) -> Config:
    """Validate a nested mapping.

    Raises:
        ConfigError: the first thing that is wrong, with the key, the value and the cure.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        # pydantic adds the tried member of a union, or "[key]", behind the field's name: not a reader's words.
        key = ".".join(part for part in map(str, first["loc"]) if part.isidentifier() or part.isdigit())
        if first["type"] == "extra_forbidden":
            if new := new_name(key):
                raise ConfigError(
                    f"unknown configuration key '{key}'", "a known key", f"it is now '{new}'"
                ) from None
            known = [name for name, _ in flatten(Config().model_dump(mode="json"))]
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
            raise ConfigError(f"unknown configuration key '{key}'", "a known key", hint) from None
        if first["type"] == "value_error":
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(message, "settings that fit together", "change one of them") from None
        new = new_value(key, first["input"])
        raise ConfigError(
            f"configuration key '{key}' has the value {first['input']!r}",
            first["msg"].removeprefix("Input should be "),
            "change that value" if new == first["input"] else f"it is now {new!r}",
        ) from None
