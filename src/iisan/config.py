"""Typed, validated configuration from YAML files and dotted overrides; unknown keys are errors."""

import math
from collections.abc import Iterable, Iterator, Mapping
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
from iisan.names import IMAGE, IMPORTED, INTER, KINDS, LAST, TEXT
from iisan.nested import explained, flatten, merge, parse_assignment
from iisan.remote.opening import with_copies

Kind = Literal["text", "image", "audio", "video", "imported"]
#: Name of an item column; folders and parameters are named after it.
Modality = Annotated[str, Field(pattern=r"^\w+$")]
#: Hidden-state index ``0..T``, or ``"last"`` for the encoder's final output.
Level = NonNegativeInt | Literal["last"]
Levels = (
    Literal["layerdrop", "all"]
    | Annotated[str, Field(pattern=r"^group-[1-9][0-9]*$")]
    | Annotated[tuple[Level, ...], Field(min_length=1)]
)
#: Keys of folders, whose contents are identified by fingerprints rather than paths.
FOLDERS = ("dataset", "images", "states")
Policy = Literal["unseen", "all", "exclude-all"]
SplitName = Literal["given", "leave-one-out", "temporal", "ratio", "users"]
#: Shares of training, validation and test.
Shares = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
SHARES: Shares = (0.8, 0.1, 0.1)


class Section(BaseModel):
    """An immutable group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class StatesConfig(Section):
    """The hidden states of all texts or all images. None accepts whatever the state store contains.

    Attributes:
        encoder: Hub id (``owner/name`` or ``owner/name@revision``) or folder of the encoder; required for
            ``source: live``.
        pooling: Pooling of a content's tokens: ``cls``, ``mean``, or ``last`` (texts only).
        max_tokens: Maximum number of tokens of a text, including special tokens.
        levels: Hidden states that are read: ``layerdrop`` (every other one), ``all``, ``group-N`` (N evenly spaced
            layers, the group layer-dropping of IISAN-Versa), or a list such as ``[0, 6, 12]``, in which ``last``
            is the encoder's final output.
    """

    encoder: str | None = None
    pooling: Literal["cls", "mean", "last"] | None = None
    max_tokens: PositiveInt | None = None
    levels: Levels = "layerdrop"


class ColumnConfig(StatesConfig):
    """Settings of one modality, such as a second text or audio.

    ``encoder``, ``pooling``, ``max_tokens`` and ``levels`` mean the same as in the sections ``text`` and
    ``image``, from which a text or image column takes them where they are None.

    Attributes:
        kind: Kind of content: ``text``, ``image``, ``audio``, ``video``, or ``imported`` (states computed
            elsewhere). Defaults to the kind recorded in the state store.
        max_seconds: Maximum duration of the audio that is encoded, taken from its middle.
        frames: Number of frames sampled from a video.
    """

    kind: Kind | None = None
    max_seconds: PositiveFloat | None = None
    frames: PositiveInt | None = None
    levels: Levels | None = None  # type: ignore[assignment]


class TuningConfig(Section):
    """Training of the encoders, for ``source: live`` or ``source: partial``.

    Attributes:
        method: Trained weights: ``none`` (frozen), ``full`` (all), ``bias`` (BitFit), ``lora``, or ``adapter``
            (Houlsby).
        last_n_layers: Number of last layers to train, with all that follows them; None trains the whole encoder.
            Required for ``source: partial``.
        rank: Rank r of LoRA.
        alpha: Scaling factor of LoRA, whose product is multiplied by ``alpha / rank``.
        bottleneck: Bottleneck width H of Houlsby's adapters.
        learning_rate: Learning rate of all trained weights inside the encoders.
        refresh: Period of encoder training in epochs. The encoders are trained in the first epoch of each period;
            in the others their final states are read from memory, at the cost of cached training. 1 trains them in
            every epoch.
        gradient_checkpointing: Whether activations are recomputed in the backward pass instead of stored.
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
    """The item encoder, from hidden states to an item embedding (IISAN, eqs. 1–3).

    Attributes:
        kind: ``side`` (side networks), ``projection`` (linear map of the last states), ``table`` (item ids), or
            ``none`` (nothing is trained; see ``anchor``).
        embedding_dim: Width E of item embeddings.
        intra: Whether each modality has a tower.
        inter: Whether there is a tower across modalities, given at least two.
        block: Weights of the SAN blocks: ``dense``, ``phm`` (parameterised hypercomplex), or ``low-rank`` (IISAN,
            table 6).
        bottleneck: Bottleneck width H of the SAN blocks.
        bottlenecks: Bottleneck widths of individual towers, by modality or ``inter``.
        transform: Transform of wider states to the width of the inter-modal tower: a trained ``linear`` map per
            level (IISAN-Versa), or ``pool``, means of neighbouring channels without parameters.
        phm: Number n of Kronecker products that sum to a PHM weight; divides widths and bottleneck.
        rank: Rank of a low-rank weight.
        activation: Activation inside a SAN block.
        gated: Whether states are weighted by learned scalar gates; otherwise they are added.
        gate_on: Term that a gate multiplies in IISAN, eq. 1: the ``previous`` state (IISAN) or the ``hidden``
            state (published code).
        first_block: Input of the first block of an intra-modal tower: the embedding state ``alone`` (IISAN), or
            ``gated`` with zeros (published code).
        projection: Linear maps from a tower to the fusion: ``single`` (D→E), ``double`` (D→D, D→E; published
            code), or ``narrow`` (D→E, E→E for intra-modal towers, ``double`` for the inter-modal tower; published
            code of IISAN-Versa).
        concatenation: Position of the inter-modal tower in the fusion's input: ``inter-between`` the modalities
            (IISAN), or ``inter-last`` (published code).
        fusion_scale: Factor on the fusion's initial weights. With 1 (Xavier) normalised states give initial dot
            products far larger than the loss calls for, and weights whose direction the optimiser turns slowly.
        level_norm: Normalisation of every state before the gates or the projection, without parameters: ``layer``
            is a LayerNorm, ``centred`` a LayerNorm of the difference from the mean of the level, which is measured
            once. What all items have in common otherwise makes their cosines alike.
    """

    kind: Literal["side", "projection", "table", "none"] = "side"
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
    level_norm: Literal["none", "layer", "centred"] = "none"


class SequenceConfig(Section):
    """The sequence encoder, from the embeddings of a history to a query vector.

    Attributes:
        kind: ``sasrec`` (transformer), ``gru4rec`` or ``nextitnet``.
        max_length: Maximum history length S that the model reads.
        num_layers: Number of transformer blocks, GRU layers or residual convolution blocks.
        num_heads: Number of attention heads (SASRec only).
        dropout: Dropout probability.
        similarity: Learned score of an item: the ``dot`` product of its embedding and the query vector (IISAN), or
            their ``cosine`` divided by a learned temperature.
        temperature: Initial temperature of ``similarity: cosine``.
    """

    kind: Literal["sasrec", "gru4rec", "nextitnet"] = "sasrec"
    max_length: PositiveInt = 10
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    similarity: Literal["dot", "cosine"] = "dot"
    temperature: PositiveFloat = 0.07


class AnchorConfig(Section):
    """The terms that are added to the learned score after training: anchor, popularity, transitions, repeats.

    Their weights are chosen on the validation subset. ``anchor: false`` is short for ``anchor.enabled: false``.

    Attributes:
        enabled: Whether the terms are added.
        modalities: Modalities with an anchor. Defaults to those of the model, and for item ids to every modality
            in the state store that the dataset has. Levels are those of ``text``, ``image`` and ``columns``.
        width: Numbers per item and modality, A, that the whitened levels are reduced to; None keeps all.
        shrinkage: Fraction λ of the mean variance of a level that is added to every variance before whitening.
    """

    enabled: bool = False
    modalities: tuple[Modality, ...] | None = None
    width: PositiveInt | None = 512
    shrinkage: PositiveFloat = 0.3

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class LossConfig(Section):
    """Cross-entropy over candidate items (IISAN, eqs. 4–5).

    Attributes:
        candidates: Candidate items: those of the ``batch`` (debiased by popularity), or ``all`` of the pool (full
            softmax).
        negatives: Number of items drawn uniformly from the ``pool`` and added to the candidates of a batch,
            corrected by the log-probability of the mixed sampling.
        pool: Pool for ``candidates: all`` and ``negatives``: the whole ``catalogue``, or the items ``trained`` on,
            in at least one training window. Any other item can only be a negative, so the model learns never to
            recommend it.
        exclude: The user's own items that are never negatives: those of the same training ``window``, or all items
            that the user interacted with in ``training``.
        reduction: Reduction over positions.
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
    """Adam without weight decay, with separate learning rates for groups of parameters.

    Attributes:
        learning_rate: Learning rate of all parameters without one of their own.
        san_learning_rate: Learning rate of the SAN blocks.
        gate_learning_rates: Learning rate of a tower's gates, by tower.
        projection_learning_rates: Learning rate of the D→D map of a tower's projection, by tower.
    """

    learning_rate: PositiveFloat = 2e-4
    san_learning_rate: PositiveFloat = 1e-4
    gate_learning_rates: dict[Modality, PositiveFloat] = {}
    projection_learning_rates: dict[Modality, PositiveFloat] = {}


class TrainingConfig(Section):
    """The training loop.

    Attributes:
        batch_size: Number B of training windows (users) per forward pass.
        gradient_accumulation: Number of forward passes whose gradients are averaged into one update.
        epochs: Maximum number of epochs.
        early_stopping_patience: Number of consecutive validations without improvement after which training stops;
            0 never stops early. See ``evaluation.every``.
        windows: ``all`` cuts each user's training items into windows of S + 1, so that every item but the user's
            first is a target once; ``last`` keeps the last window only. Popularity and ``loss.pool`` are counted
            over the same windows.
        seed: Seed of initial weights, batch order, dropout and negatives.
        precision: Number format of encoders and item encoder in training. ``auto`` times the run's own matrix
            products once and chooses bf16 if it is at least 20% faster than fp32; the run's ``config.yaml``
            records the choice.
        device: Torch device; ``auto`` is CUDA if available, else the CPU.
        resident_gb: Maximum size in GB of stored states that are kept on the GPU; larger ones are read per batch.
        max_grad_norm: Maximum gradient norm; 0 disables clipping.
        ema_decay: Decay of an exponential moving average of the weights over the updates, which takes their place
            in validation and in the saved model; 0 disables it. Without effect where encoders are trained.
        modality_dropout: Probability of hiding a modality of an item in a training step (never all of them), which
            teaches the model to work without it.
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
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class EvaluationConfig(Section):
    """The evaluation protocol, printed beside every number.

    Attributes:
        split: ``leave-one-out`` (as in the papers), a global ``temporal`` split, a ``ratio`` of each user's
            interactions in order of time, ``users`` that are held out of training, or ``given`` queries that the
            dataset was prepared with. ``auto`` is ``given`` if there are such queries, ``users`` if the dataset
            was prepared with users to hold out, else ``leave-one-out``; the run's ``config.yaml`` records the
            choice.
        shares: Shares of training, validation and test, which sum to 1: of all interactions (``temporal``), of
            each user's (``ratio``), or of the users (``users``, unless the dataset names them).
        held_out_seed: Seed of the draw of held-out users.
        policy: Items that compete with a target: ``unseen`` (those not in the history; queries whose target is in
            it are left out), ``all``, or ``exclude-all`` (as ``unseen``, but a target in the history counts as a
            miss; published code).
        cutoffs: Values of k for HR@k, NDCG@k and MRR@k.
        select: Validation metric that selects the best epoch, and the weights beside the learned score.
        every: Number of epochs from one validation to the next; the last epoch is always validated.
        validation_users: Size of a fixed sample of users (of queries, where a user has several) for validation,
            which depends on the dataset but not on the seed. None validates on all. Testing always covers all.
    """

    split: Literal["auto", SplitName] = "auto"
    shares: Shares = SHARES
    held_out_seed: NonNegativeInt = 0
    policy: Policy = "unseen"
    cutoffs: tuple[PositiveInt, ...] = (5, 10, 20)
    select: Annotated[str, Field(pattern=r"^(hr|ndcg|mrr)@[1-9][0-9]*$")] = "hr@10"
    every: PositiveInt = 1
    validation_users: PositiveInt | None = None

    @model_validator(mode="after")
    def _shares_are_whole(self) -> "EvaluationConfig":
        if not math.isclose(sum(self.shares), 1, abs_tol=1e-6):
            raise ValueError(f"shares {list(self.shares)} sum to {sum(self.shares):g}, not 1")
        return self

    @model_validator(mode="after")
    def _select_is_measured(self) -> "EvaluationConfig":
        if int(self.select.split("@")[1]) not in self.cutoffs:
            raise ValueError(f"select '{self.select}' needs its cut-off among cutoffs {list(self.cutoffs)}")
        return self


class Config(Section):
    """All settings of a run.

    Attributes:
        recipe: Name of the recipe that the settings are based on.
        dataset: Dataset folder.
        images: Folder of the dataset's media, if moved since ``iisan prepare``; only live encoders need it.
        states: Folder of state stores (the output of ``iisan cache``); not used for item ids.
        source: Source of the hidden states: ``cached`` reads them from the store, ``live`` runs the encoders in
            every step, ``partial`` reads token states below the last ``tuning.last_n_layers`` layers and runs
            those layers.
        modalities: Item columns whose content is used, in the order of concatenation; empty for item ids. Defaults
            to every modality in the state store that the dataset has.
        text: Settings of the column ``text``, and defaults of every other text column.
        image: Settings of the column ``image``, and defaults of every other image column.
        columns: Settings of individual modalities, which take precedence over ``text`` and ``image``.
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
    anchor: AnchorConfig = AnchorConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _settings_fit(self) -> "Config":
        for conflict in self._conflicts():
            raise ValueError(conflict)
        return self

    def _conflicts(self) -> Iterator[str]:
        """Settings that do not fit together, in sentences."""
        items, tuning, modalities = self.items, self.tuning, self.modalities
        for key, names in (("modalities", modalities), ("anchor.modalities", self.anchor.modalities)):
            if names is not None and len(set(names)) != len(names):
                yield f"{key} {list(names)} names one twice"
        if modalities is not None:
            if items.kind != "none" and (items.kind == "table") != (not modalities):
                yield (
                    f"items.kind '{items.kind}' with modalities {list(modalities)}: 'table' learns from ids alone "
                    "(modalities []), every other kind needs a modality"
                )
            if items.kind == "side" and not (items.intra or (items.inter and len(modalities) > 1)):
                yield "no tower is left: items.intra is off and there is no inter tower"
        if items.kind == "none" and not self.anchor.enabled:
            yield "items.kind 'none' with anchor 'false': nothing is left that scores items"
        if self.recipe == "similarity" and items.kind != "none":
            yield f"items.kind '{items.kind}' with recipe 'similarity', which trains nothing: take another recipe"
        if self.source == "cached" and tuning.method != "none":
            yield (
                f"tuning.method '{tuning.method}' with source 'cached': stored states cannot be trained; set "
                "source to 'live' or 'partial'"
            )
        if self.source == "partial" and (tuning.method == "none" or tuning.last_n_layers is None):
            yield "source 'partial' needs a tuning.method and tuning.last_n_layers, the number of layers to run"
        if tuning.method == "none" and tuning.refresh > 1:
            yield (
                f"tuning.refresh {tuning.refresh} with tuning.method 'none': there is nothing to refresh when the "
                "encoders are not trained; set a tuning.method, or tuning.refresh to 1"
            )
        if tuning.method != "none" and items.kind != "projection":
            yield (
                f"items.kind '{items.kind}' with tuning.method '{tuning.method}': a trained encoder needs "
                "items.kind 'projection'"
            )
        rates = self.optimizer.gate_learning_rates | self.optimizer.projection_learning_rates
        known = {*KINDS, IMPORTED, INTER, *self.columns, *(modalities or ())}
        for name in sorted((rates | items.bottlenecks).keys() - known):
            yield f"settings of a tower '{name}', which is none of {', '.join(sorted(known))}"
        if self.sequence.kind == "sasrec" and items.embedding_dim % self.sequence.num_heads:
            yield (
                f"items.embedding_dim {items.embedding_dim} is no multiple of sequence.num_heads "
                f"{self.sequence.num_heads}"
            )

    def kind_of(self, modality: str) -> str | None:
        """Kind of a modality as set in ``columns``, else the kind that it is named after, else None."""
        stated = self.columns[modality].kind if modality in self.columns else None
        return stated or (modality if modality in (*KINDS, IMPORTED) else None)

    def states_of(self, modality: str) -> ColumnConfig:
        """Settings of a modality's states: its own where set, else those of its kind.

        Raises:
            ConfigError: The modality's kind is not known.
        """
        kind = self.kind_of(modality)
        if kind is None:
            got = f"the kind of the modality '{modality}' is not known"
            raise ConfigError(got, f"one of {', '.join(KINDS)}", f"set columns.{modality}.kind")
        own = self.columns.get(modality, ColumnConfig()).model_dump(exclude_none=True)
        return ColumnConfig.model_validate({**self.section_of(kind).model_dump(), **own, "kind": kind})

    def section_of(self, kind: str) -> StatesConfig:
        """Settings of all states of a kind."""
        sections = {TEXT: self.text, IMAGE: self.image, IMPORTED: StatesConfig(levels="all")}
        return sections.get(kind, StatesConfig())

    def levels_of(self, modality: str) -> Levels:
        """Levels of a modality that are read: only the encoder's final output for a projection."""
        if self.items.kind == "projection":
            return (LAST,)
        levels = self.states_of(modality).levels
        assert levels is not None, "every kind's section has levels"
        return levels

    def override(self, assignments: Iterable[str]) -> "Config":
        """Return a copy with ``key.key=value`` assignments applied; values are YAML.

        Raises:
            ConfigError: An unknown key or an invalid value.
        """
        changes = with_copies(map(parse_assignment, assignments), FOLDERS)
        return parse(merge(self.model_dump(mode="json"), changes))

    def to_yaml(self) -> str:
        """Return the complete configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse(values: Mapping[str, Any]) -> Config:
    """Validate a nested mapping of settings.

    Raises:
        ConfigError: The first invalid setting, with its key, value and cure.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as invalid:
        known = [name for name, _ in flatten(Config().model_dump(mode="json"))]
        raise explained(invalid.errors()[0], known) from None
