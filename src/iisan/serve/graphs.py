"""The encoders of a run as plain modules, which ``torch.onnx`` can trace, and their files.

Legend: B histories, S positions of a history, n items, M modalities, K levels, D width, E embedding width, V
numbers of an item's dense vector, see :class:`iisan.evaluate.terms.TermScorer`.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from iisan.config import Config
from iisan.encoders.levels import Level
from iisan.errors import MissingExtraError
from iisan.evaluate.terms import Weights
from iisan.model import item_encoder, sequence_encoder
from iisan.names import INTER
from iisan.nn.anchor import Whitening
from iisan.nn.hidden import Hidden
from iisan.nn.items import Projection, SideNetwork
from iisan.runs.run import ABSENT, under
from iisan.states.sources import StateSource


def trained_sequence(config: Config, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the sequence encoder of a member with its trained weights, on the CPU."""
    sequence = sequence_encoder(config.sequence, config.items.embedding_dim)
    sequence.load_state_dict(under("sequence.", weights))
    return sequence


def trained_items(
    config: Config, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[tuple[Level, ...], int]]
) -> SideNetwork | Projection:
    """Return the item encoder of a member with its trained weights, on the CPU.

    Args:
        config: Configuration of the member.
        weights: Its weights by name.
        shapes: The K levels and the width D of the states of each modality.
    """
    levels = {name: each for name, (each, _) in shapes.items()}
    widths = {name: width for name, (_, width) in shapes.items()}
    whole = torch.tensor([ABSENT not in weights])
    source = StateSource(widths, levels, dict.fromkeys(shapes, whole))
    # Dropout of modalities says no more than the source: whether items may lack one.
    training = config.training.model_copy(update={"modality_dropout": 0.0})
    network = item_encoder(config.model_copy(update={"training": training}), 1, source)
    network.load_state_dict(under("items.", weights))
    assert isinstance(network, SideNetwork | Projection), "an id table reads no states"
    return network


class QueryGraph(nn.Module):
    """Encodes histories of item vectors to dense query vectors: ``[B, S, V], mask [B, S] -> [B, V]``.

    The dot product with an item's vector is the score without its sparse terms. Vectors at padded positions have
    no influence.

    Args:
        sequences: Sequence encoder of each member.
        widths: Embedding width E of each member.
        weights: Weights of the terms; None for a learned part alone.
        anchors: Width of the anchor of each modality.
        length: Maximum history length S.
    """

    factors: Tensor
    decays: Tensor

    def __init__(
        self,
        sequences: Sequence[nn.Module],
        widths: Sequence[int],
        weights: Weights | None,
        anchors: Mapping[str, int],
        length: int,
    ) -> None:
        super().__init__()
        self.sequences = nn.ModuleList(sequences)
        self.bounds = [0]
        for width in widths:
            self.bounds.append(self.bounds[-1] + width)
        self.anchored = weights is not None
        weights = weights or Weights((1.0,) * len(sequences))
        factors = [*zip(weights.learned, widths, strict=True)]
        factors += [(weights.anchor[name], width) for name, width in anchors.items()]
        factors += [(weights.popularity, 1)] * self.anchored
        self.register_buffer("factors", torch.cat([torch.full((width,), factor) for factor, width in factors]))
        self.register_buffer("decays", weights.decay ** torch.arange(length - 1, -1, -1.0))

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return the query vectors ``[B, V]``."""
        vectors = torch.where(mask[..., None], vectors, 0.0)
        parts = [
            sequence(vectors[..., first:last], mask)[:, -1]
            for sequence, (first, last) in zip(self.sequences, pairwise(self.bounds), strict=True)
        ]
        if self.anchored:
            parts.append((self.decays[:, None] * vectors[..., self.bounds[-1] : -1]).sum(1))
            parts.append(torch.ones_like(vectors[:, -1, -1:]))
        return torch.cat(parts, dim=1) * self.factors


class ItemGraph(nn.Module):
    """Encodes hidden states to learned embeddings ``[n, E]``, as an item encoder does; items may lack modalities.

    Args:
        network: Trained item encoder.
        names: The M modalities, in the order of the inputs.
        normalised: Whether embeddings have length 1.
    """

    def __init__(self, network: SideNetwork | Projection, names: Sequence[str], normalised: bool) -> None:
        super().__init__()
        self.network, self.names, self.normalised = network, tuple(names), normalised

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return embeddings, given states ``[n, K, D]`` of each modality and masks ``[n]`` of items with it."""
        network: Any = self.network
        masks = dict(zip(self.names, inputs[len(self.names) :], strict=True))
        items = torch.arange(inputs[0].shape[0])  # A length would be traced as a constant.
        given = zip(self.names, inputs, strict=False)
        states = {name: Hidden(_present(states, masks[name]), items) for name, states in given}
        states = network.norm(states, torch.float32)
        parts = self._towers(states, masks) if isinstance(network, SideNetwork) else {}
        if isinstance(network, Projection):
            parts = {name: gelu(network.projections[name](states[name].whole()[:, -1])) for name in self.names}
        masks[INTER] = torch.stack(list(masks.values())).any(0)
        columns = [
            torch.where(masks[name][:, None], parts[name], absent)
            for name, absent in zip(network.fusion.parts, network.fusion.absent, strict=True)
        ]
        embeddings = network.fusion.linear(torch.cat(columns, dim=1))
        return normalize(embeddings, dim=1) if self.normalised else embeddings

    def _towers(self, states: Mapping[str, Hidden], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Projected outputs of the towers, ``[n, E]`` each, by the plain recurrence."""
        network: Any = self.network
        parts = {}
        for name, tower in network.towers.items():
            across = {each: (hidden, masks[each][:, None].float()) for each, hidden in states.items()}
            output = tower(tower.inputs(across if name == INTER else states[name]))
            parts[name] = network.projections[name](network.dense[name](output))
        return parts


class AnchorGraph(nn.Module):
    """Projects hidden states to the anchors of all modalities side by side, zero where one is lacking."""

    def __init__(self, whitenings: Mapping[str, Whitening]) -> None:
        super().__init__()
        self.whitenings = dict(whitenings)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return anchors, given states ``[n, K, D]`` of each modality and masks ``[n]`` of items with it."""
        count = len(self.whitenings)
        given = zip(self.whitenings.values(), inputs[:count], inputs[count:], strict=True)
        return torch.cat(
            [_present(whitening.project_at_once(states), mask) for whitening, states, mask in given], dim=1
        )


def _present(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (values.dim() - 1)), values, 0.0)


def check_extra() -> None:
    """Raise a ``MissingExtraError`` if ONNX graphs cannot be written."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "onnx", "exporting to ONNX") from None


def save_graph(module: nn.Module, inputs: Mapping[str, Tensor], output: str, path: Path) -> None:
    """Trace a module on inputs whose first dimension is dynamic, and write it to a file.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    check_extra()
    batch = {0: torch.export.Dim("batch")}
    variadic = isinstance(module, ItemGraph | AnchorGraph)
    shapes: Any = (batch,) * len(inputs)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=(shapes,) if variadic else shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "with dynamo, a program is returned"
    _forget_sources(program.model)
    # Weights are kept in a file of their own where they exceed what one file may hold.
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's warnings of its own old names, and of operators of libraries that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _forget_sources(model: Any) -> None:
    """Remove the stack traces of the tracing, which name paths of this machine."""
    model.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
