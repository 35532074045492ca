"""The sizes of encoders and datasets that decide what training costs, read without loading either's contents.

Legend: B windows in a batch, S tokens of a content, U distinct items in a batch, N items, D width, F width of the
feed-forward, T blocks.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iisan.config import Config
from iisan.data.dataset import Dataset
from iisan.data.splits import split
from iisan.encoders.loading import locate
from iisan.errors import ConfigError, EncoderError
from iisan.names import IMAGE, TEXT
from iisan.states.contents import Contents
from iisan.train.batches import Batches

#: The longest text where none is given.
_LONGEST = 64
_SAMPLED_BATCHES = 20


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of a transformer that decide what it costs.

    Attributes:
        modality: ``text`` or ``image``.
        width: D.
        depth: T.
        heads: of attention.
        feed_forward: F.
        tokens: S, a content's mean number of tokens as computed: after cutting and with padding for texts, patches
            and class tokens for images.
        embeddings: parameters below the first block.
        embedding_biases: how many of these are biases.
        final: parameters behind the last block that the answer depends on.
        final_biases: how many of these are biases.
        unused: parameters in memory that the answer does not depend on.
        image_size: pixels of a side, 0 for texts.
        patch: pixels of a patch's side, 0 for texts.
        key_width: of keys and values together with all heads; 0 is D.
        gated: the feed-forward multiplies two projections (Llama).
        biased: linear layers have biases; otherwise they have none, nor have the norms.
        scales: further vectors of width D in a block (DINOv2's layer scale).
        fused: one layer for query, key and value, which LoRA and adapters cannot take apart.
        dropout: trained blocks drop hidden states and attention, so that attention is not fused (BERT).
        biased_attention: query, key and value have biases though other layers may have none (Qwen2).
        relative: rows of relative positions that attention multiplies besides a content's tokens (DeBERTa). Their
            own projection, once a piece and block, does not count.
        position_linears: layers in a block, D to D, that project them.
    """

    modality: str
    width: int
    depth: int
    heads: int
    feed_forward: int
    tokens: float
    embeddings: int = 0
    embedding_biases: int = 0
    final: int = 0
    final_biases: int = 0
    unused: int = 0
    image_size: int = 0
    patch: int = 0
    key_width: int = 0
    gated: bool = False
    biased: bool = True
    scales: int = 0
    fused: bool = False
    dropout: bool = False
    biased_attention: bool = False
    relative: int = 0
    position_linears: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "feed_forward", "tokens"):
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"{name} {value} of a {self.modality} encoder", "more than 0", "correct it")

    @property
    def matrices(self) -> int:
        """Weights of a block that multiply every token."""
        keys = self.key_width or self.width
        return self.width * (2 * self.width + 2 * keys + (3 if self.gated else 2) * self.feed_forward)

    @property
    def biases(self) -> int:
        """Biases of a block, those of the two norms included."""
        attention = self.width + 2 * (self.key_width or self.width)
        others = (4 + self.position_linears) * self.width + self.feed_forward
        return attention * (self.biased or self.biased_attention) + others * self.biased

    @property
    def block(self) -> int:
        """Parameters of a block."""
        linears = self.matrices + self.position_linears * self.width**2
        return linears + self.biases + (2 + self.scales) * self.width

    @property
    def parameters(self) -> int:
        """All parameters, without poolers and heads, which are never loaded."""
        return self.embeddings + self.depth * self.block + self.final + self.unused

    @classmethod
    def of_folder(cls, name_or_folder: str, modality: str, tokens: float | None = None) -> "EncoderShape":
        """Read the sizes from ``config.json`` alone, without loading weights.

        A hub model that is not on this machine is fetched first, as for training; a folder needs no weights.

        Args:
            name_or_folder: hub id or folder; of two-tower models the modality's tower is taken.
            modality: ``text`` or ``image``.
            tokens: S; None means 64 or the model's limit for texts, and what the image processor gives for images.

        Raises:
            EncoderError: not found, no readable configuration, or a model type whose parameters are not known.
        """
        folder = locate(name_or_folder).folder
        config = _read_json(folder / "config.json")
        if config is None:
            raise EncoderError(
                f"'{name_or_folder}' has no readable config.json", "a Hugging Face model folder", "check the path"
            )
        part = config.get("vision_config" if modality == IMAGE else "text_config")
        tower = part if isinstance(part, dict) else config
        kind = str(config.get("model_type")) if tower is config else f"{config.get('model_type')}-{modality}"
        if kind not in _FAMILIES or _FAMILIES[kind][0] != modality:
            known = ", ".join(sorted(name for name, (of, _) in _FAMILIES.items() if of == modality))
            raise EncoderError(
                f"'{name_or_folder}' has model_type '{kind}'",
                f"a model for {modality} of a type whose parameters are known ({known})",
                "choose such a model, or give a EncoderShape by hand",
            )
        try:
            sizes = _FAMILIES[kind][1](tower)
        except KeyError as error:
            raise EncoderError(
                f"the config.json of '{name_or_folder}' has no {error}",
                f"all sizes of a {kind} model",
                "save the model again with save_pretrained",
            ) from None
        if modality == TEXT:
            limit = tower.get("max_position_embeddings") or tower.get("n_positions") or _LONGEST
            tokens = tokens or min(_LONGEST, limit)
        else:
            side = _processed_side(folder) or sizes["image_size"]
            specials = sizes.pop("class_tokens")
            sizes["image_size"] = side
            tokens = tokens or (side // sizes["patch"]) ** 2 + specials
        return cls(modality, tokens=tokens, **sizes)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _processed_side(folder: Path) -> int | None:
    """Pixels of the side of what an image processor gives: its crop, else its size."""
    processor = _read_json(folder / "preprocessor_config.json") or {}
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    side = crop or processor.get("size")
    side = side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else side
    return side if isinstance(side, int) else None


def _sizes(
    config: Mapping[str, Any], width: str = "hidden_size", depth: str = "num_hidden_layers", **others: Any
) -> dict[str, Any]:
    sizes = {"width": config[width], "depth": config[depth], "heads": config.get("num_attention_heads")}
    return sizes | {"feed_forward": config.get("intermediate_size")} | others


def _uncounted(got: str, expected: str) -> EncoderError:
    return EncoderError(f"an encoder with {got}", expected, "give its EncoderShape by hand")


def _bert(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"]
    rows = config["vocab_size"] + config["max_position_embeddings"] + config["type_vocab_size"] + 2
    return _sizes(config, embeddings=rows * width, embedding_biases=width, dropout=_drops(config))


def _drops(config: Mapping[str, Any]) -> bool:
    return bool(config.get("hidden_dropout_prob") or config.get("attention_probs_dropout_prob"))


def _mpnet(config: Mapping[str, Any]) -> dict[str, Any]:
    # One table of relative positions, a number a head, serves all blocks.
    table = config["relative_attention_num_buckets"] * config["num_attention_heads"]
    sizes = _bert({**config, "type_vocab_size": 0})
    return sizes | {"embeddings": sizes["embeddings"] + table}


def _deberta(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"]
    if config.get("conv_kernel_size") or config.get("embedding_size", width) != width:
        raise _uncounted("a convolution or narrower embeddings", "DeBERTa-v2 or v3 without them")
    rows = config["vocab_size"] + config["type_vocab_size"] + 2
    rows += config["max_position_embeddings"] if config.get("position_biased_input", True) else 0
    own: dict[str, Any] = {"dropout": _drops(config), "embedding_biases": width}
    if config.get("relative_attention"):
        longest = config.get("max_relative_positions", -1)
        longest = longest if longest >= 1 else config["max_position_embeddings"]
        span = config["position_buckets"] if config.get("position_buckets", -1) > 0 else longest
        # A list, or as in old files "p2c|c2p".
        kinds = sum(kind in (config.get("pos_att_type") or ()) for kind in ("c2p", "p2c"))
        normed = "layer_norm" in config.get("norm_rel_ebd", "none")
        # All blocks share the table of relative positions and its norm.
        rows += 2 * span + 2 * normed
        own["embedding_biases"] += width * normed
        own |= {"relative": span * kinds, "position_linears": 0 if config.get("share_att_key") else kinds}
    return _sizes(config, embeddings=rows * width) | own


def _distilbert(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["dim"]
    rows = config["vocab_size"] + config["max_position_embeddings"] + 2
    own = {"heads": config["n_heads"], "feed_forward": config["hidden_dim"]}
    own["dropout"] = bool(config.get("dropout") or config.get("attention_dropout"))
    return _sizes(config, "dim", "n_layers", embeddings=rows * width, embedding_biases=width) | own


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["n_embd"]
    rows = config["vocab_size"] + config["n_positions"]
    own = {"heads": config["n_head"], "feed_forward": config.get("n_inner") or 4 * width, "fused": True}
    own["dropout"] = bool(config.get("resid_pdrop") or config.get("attn_pdrop"))
    return _sizes(config, "n_embd", "n_layer", embeddings=rows * width, final=2 * width, final_biases=width) | own


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    odd = (config.get("head_dim") or width // heads) * heads != width
    if odd or config.get("attention_bias") or config.get("mlp_bias"):
        raise _uncounted("other attention", "attention as wide as the model, and no biases")
    keys = width // heads * config.get("num_key_value_heads", heads)
    own = {"key_width": keys, "gated": True, "biased": False}
    return _sizes(config, embeddings=config["vocab_size"] * width, final=width) | own


def _two_tower_text(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"]
    rows = config["vocab_size"] + config["max_position_embeddings"]
    return _sizes(config, embeddings=rows * width, final=2 * width, final_biases=width)


def _vision(
    config: Mapping[str, Any], class_tokens: int, bias: bool = True, norm_below: bool = False, **others: Any
) -> dict[str, Any]:
    width, side, patch = config["hidden_size"], config["image_size"], config["patch_size"]
    # Positions of patches and class tokens, these tokens, and a norm's weight where there is one.
    rows = (side // patch) ** 2 + 2 * class_tokens + norm_below
    biases = (bias + norm_below) * width
    embeddings = rows * width + config.get("num_channels", 3) * patch**2 * width + biases
    own = {"embeddings": embeddings, "embedding_biases": biases, "image_size": side, "patch": patch}
    # CLIP applies its last norm to the pooled answer alone.
    last = {"unused": 2 * width} if norm_below else {"final": 2 * width, "final_biases": width}
    return _sizes(config, class_tokens=class_tokens) | own | last | others


def _dinov2(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"]
    if config.get("use_swiglu_ffn"):
        raise _uncounted("a gated feed-forward", "a plain one")
    # A token for masked patches, which is never used here.
    return _vision(config, 1, unused=width, scales=2, feed_forward=int(config["mlp_ratio"] * width))


#: By model type, with the modality for towers of two: how its parameters follow from its configuration.
_FAMILIES: dict[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), (TEXT, _bert)),
    "distilbert": (TEXT, _distilbert),
    "gpt2": (TEXT, _gpt2),
    "mpnet": (TEXT, _mpnet),
    "deberta-v2": (TEXT, _deberta),
    **dict.fromkeys(("llama", "mistral", "gemma"), (TEXT, _llama)),
    "qwen2": (TEXT, lambda config: _llama(config) | {"biased_attention": True}),
    **dict.fromkeys(("clip-text", "siglip-text"), (TEXT, _two_tower_text)),
    "vit": (IMAGE, lambda config: _vision(config, 1)),
    "deit": (IMAGE, lambda config: _vision(config, 2)),
    "dinov2": (IMAGE, _dinov2),
    "clip-image": (IMAGE, lambda config: _vision(config, 1, bias=False, norm_below=True)),
    "siglip-image": (IMAGE, lambda config: _vision(config, 0)),
}


def expected_distinct(counts: npt.ArrayLike, draws: float, negatives: int = 0, pool: int = 1) -> float:
    """Expected number of distinct items: ``Σ_i 1 − (1 − p_i)^draws · (1 − 1/pool)^negatives``.

    Windows hold an item seldom twice, so a real batch has a few more than these independent draws.

    Args:
        counts: training interactions of every item, [N]; p is their share.
        draws: items in the windows of a batch.
        negatives: drawn uniformly besides.
        pool: how many items these come from: N, or the items with an interaction.
    """
    values = np.asarray(counts, dtype=np.float64)
    pooled = (values > 0) if pool < len(values) else np.ones(len(values))
    unseen = (1 - values / values.sum()) ** draws * (1 - pooled / pool) ** negatives
    return float((1 - unseen).sum())


@dataclass(frozen=True)
class DataShape:
    """The sizes of a dataset, under a configuration, that decide what training costs.

    Attributes:
        windows: training windows (users, where each gives its last one) an epoch.
        items: N.
        distinct: U, items that a batch encodes, mean.
        positions: predicted positions of a window, mean.
        present: share of the items that have a modality; 1 for modalities that are not named.
        largest: the most items that one of the batches looked at encodes; 0 is not known, then U.
    """

    windows: int
    items: int
    distinct: float
    positions: float
    present: Mapping[str, float] = field(default_factory=dict)
    largest: int = 0

    @classmethod
    def of_counts(
        cls,
        counts: npt.ArrayLike,
        windows: int,
        positions: float,
        config: Config,
        present: Mapping[str, float] | None = None,
    ) -> "DataShape":
        """From the training interactions of every item, [N], with U by :func:`expected_distinct`."""
        values, loss = np.asarray(counts), config.loss
        pool = int((values > 0).sum()) if loss.pool == "trained" else len(values)
        draws = min(config.training.batch_size, windows) * (positions + 1)
        by_chance = expected_distinct(values, draws, loss.negatives, pool)
        return cls(windows, len(values), pool if loss.candidates == "all" else by_chance, positions, present or {})

    @classmethod
    def of_dataset(cls, dataset: Dataset, config: Config) -> "DataShape":
        """Measured on the first batches (at most 20) that training would see."""
        training = config.training
        parts = split(dataset.sequences, dataset.num_items, config.evaluation.split)
        batches = Batches(
            parts, config.sequence.max_length, training.batch_size, config.loss, training.windows, training.seed
        )
        sizes = [len(batch.rows) for _, batch in zip(range(_SAMPLED_BATCHES), batches.epoch(1), strict=False)]
        windows = batches.windows
        return cls(
            len(windows.users),
            dataset.num_items,
            float(np.mean(sizes)),
            float(np.mean(windows.ends - windows.starts - 1)),
            {name: float(Contents.of(dataset, name).present.mean()) for name in (TEXT, IMAGE)},
            max(sizes),
        )
