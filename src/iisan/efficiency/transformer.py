"""What an encoder's blocks compute, write and keep, operator by operator.

Legend: S tokens of a content, D width, F of the feed-forward, T blocks, h heads.
"""

from iisan.config import TuningConfig
from iisan.efficiency.shapes import EncoderShape
from iisan.errors import EncoderError

#: Operators that one block starts in a pass, views included, as counted on ViT and BERT under full fine-tuning.
FORWARD_OPERATORS, BACKWARD_OPERATORS = 40, 95


def forward_flops(shape: EncoderShape, blocks: int | None = None) -> float:
    """Operations of one content's forward pass: ``T · (2 · weights · S + 4 · S² · D)``, and those of the patches.

    Args:
        shape: of the encoder.
        blocks: only so many of them, without patches; None is the whole encoder.
    """
    patches = patch_flops(shape) if blocks is None else 0
    return (shape.depth if blocks is None else blocks) * (product_flops(shape) + attention_flops(shape)) + patches


def patch_flops(shape: EncoderShape) -> float:
    """Operations that turn one picture into patches; 0 for texts."""
    return 2 * 3 * shape.image_size**2 * shape.width


def product_flops(shape: EncoderShape) -> float:
    """Operations of one content's products with the weights of a block."""
    return 2 * shape.matrices * shape.tokens


def attention_flops(shape: EncoderShape) -> float:
    """Operations of attention's own products in a block, one content: scores, mixture, relative positions."""
    return 4 * shape.tokens * (shape.tokens + shape.relative) * shape.width


#: Fused attention computes the scores anew before four gradients: five products for the forward pass's two.
ATTENTION_BACKWARD = 2.5


def tuned_parameters(shape: EncoderShape, tuning: TuningConfig) -> int:
    """How many parameters of an encoder are trained; exact.

    Raises:
        EncoderError: more blocks than there are, or LoRA or adapters for a fused projection.
    """
    blocks, whole = tuned_blocks(shape, tuning), tuning.last_n_layers is None
    match tuning.method:
        case "none":
            return 0
        case "full":
            return blocks * shape.block + shape.final + whole * shape.embeddings
        case "bias":
            return blocks * shape.biases + shape.final_biases + whole * shape.embedding_biases
    if shape.fused:
        raise EncoderError(
            f"tuning.method '{tuning.method}' for a {shape.modality} encoder with a fused projection",
            "separate projections to query and value",
            "use 'full' or 'bias', or another encoder",
        )
    if tuning.method == "lora":
        return blocks * tuning.rank * (3 * shape.width + (shape.key_width or shape.width))
    return blocks * 2 * (2 * shape.width * tuning.bottleneck + tuning.bottleneck + shape.width)


def tuned_blocks(shape: EncoderShape, tuning: TuningConfig) -> int:
    """How many blocks gradients flow through.

    Raises:
        EncoderError: more blocks than there are.
    """
    if tuning.last_n_layers is not None and tuning.last_n_layers > shape.depth:
        raise EncoderError(
            f"tuning.last_n_layers {tuning.last_n_layers} for {shape.modality}",
            f"1 to {shape.depth} blocks",
            "choose fewer",
        )
    return 0 if tuning.method == "none" else tuning.last_n_layers or shape.depth


def forward_elements(shape: EncoderShape, tuning: TuningConfig) -> float:
    """Numbers that a block's element-wise operators write of a token; ``tuning`` says how it is trained.

    Two norms and two sums with the residual stream, and the activation (with its product, if gated). A trained
    block's two dropouts draw, scale and apply their masks, and attention's own (scores, softmax and these three)
    is no longer fused. What LoRA and adapters multiply is so thin that writing the results is their cost: two
    products of width D, scaled and added (LoRA), or added (adapters).
    """
    width, wide = shape.width, shape.feed_forward
    written: float = 4 * width + wide * (2 if shape.gated else 1)
    if tuning.method != "none" and shape.dropout:
        written += 6 * width + 5 * shape.heads * shape.tokens
    return written + _thin_elements(shape, tuning)


def backward_elements(shape: EncoderShape, tuning: TuningConfig) -> float:
    """The same of the backward pass.

    Two norms, two sums where branches meet, two where query, key and value do, and the activation; the masks of
    dropout once more.
    """
    width, wide = shape.width, shape.feed_forward
    written: float = 6 * width + wide * (3 if shape.gated else 1)
    if shape.dropout:
        written += 2 * width + 3 * shape.heads * shape.tokens
    return written + _thin_elements(shape, tuning)


def _thin_elements(shape: EncoderShape, tuning: TuningConfig) -> float:
    match tuning.method:
        case "lora":
            return 6 * shape.width
        case "adapter":
            return 4 * shape.width + 4 * tuning.bottleneck
        case _:
            return 0


def kept_bytes(shape: EncoderShape, tuning: TuningConfig, size: int) -> float:
    """Bytes that a block keeps of a token for its backward pass, with ``size`` bytes a number.

    Always: both norms' inputs (fp32), query, key and value, and the activation's input; with a gate, the two that
    it multiplies. Fused attention keeps its answer. A linear keeps its input only where its weight is trained:
    that of query, key and value, attention's answer, that of the feed-forward and the activation's answer for
    full fine-tuning; LoRA's and the adapters' own otherwise. Dropout keeps two masks of fp32, and unfused
    attention three matrices of S × S numbers a head.
    """
    width, wide = shape.width, shape.feed_forward
    answer = tuning.method == "full" or not shape.dropout
    kept = (3 + answer) * width + wide + (2 * wide if shape.gated else 0)
    match tuning.method:
        case "full":
            kept += 2 * width + wide
        case "lora":
            kept += width + 2 * tuning.rank
        case "adapter":
            kept += 2 * width + 4 * tuning.bottleneck
    masks = 4 * 2 * width + size * 3 * shape.heads * shape.tokens if shape.dropout else 0
    return 4 * 2 * width + size * kept + masks


def working_bytes(shape: EncoderShape, size: int) -> float:
    """Bytes that a block holds of a token at its widest moment, with ``size`` bytes a number.

    The residual stream before and after attention, the feed-forward's input, and what stands before and behind
    its activation.
    """
    return 4 * 3 * shape.width + size * (3 if shape.gated else 2) * shape.feed_forward
