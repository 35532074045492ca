"""Sequence encoders: from the item embeddings of histories to a vector at each position.

All have the same interface, ``forward(x [B, S, E], mask [B, S]) -> [B, S, E]``, where the mask is true at items.
Histories are left-padded; padded positions have no influence on others.

Arguments of the constructors: embedding width E, number of layers ``blocks``, dropout probability.
"""

import math

import torch
from torch import Tensor, nn


class _TransformerBlock(nn.Module):
    """Post-norm self-attention and feed-forward; attention projections have no bias (published code)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm_attention = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norm_forward = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        """Run P positions of B histories of length S.

        Args:
            x: Input at these positions, ``[P, E]``.
            places: Indices of the positions in ``[B · S]``.
            visible: Whether a query sees a key, ``[B, 1, S, S]``.

        Returns:
            Output at these positions, ``[P, E]``.
        """
        batch, _, length, _ = visible.shape
        projected = nn.functional.linear(x, torch.cat([self.query.weight, self.key.weight, self.value.weight]))
        everywhere = projected.new_zeros(batch * length, projected.shape[1]).index_copy(0, places, projected)
        of_head = x.shape[1] // self.heads
        query, key, value = everywhere.view(batch, length, 3, self.heads, of_head).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=self.dropout.p if self.training else 0.0
        )
        attended = attended.transpose(1, 2).reshape(batch * length, x.shape[1]).index_select(0, places)
        x = self.norm_attention(x + self.dropout(self.output(attended)))
        return self.norm_forward(x + self.dropout(self.down(nn.functional.relu(self.up(x)))))


class SASRec(nn.Module):
    """Causal transformer with learned positions for histories of length S, as in the published code."""

    def __init__(self, width: int, length: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_TransformerBlock(width, heads, dropout) for _ in range(blocks))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
        for name, parameter in self.named_parameters():
            if name.endswith(("up.bias", "down.bias")):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``[B, S, E]``."""
        batch, length, width = x.shape
        # Every position attends to itself, so that the last one of an empty history is finite as well.
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        visible = (mask[:, None, None, :] & causal) | itself
        # More than half of all positions may be padding, so only items and last positions are computed. On a GPU,
        # ``nonzero`` would wait for the device; meta tensors, as in estimates, do not support it; in an exported
        # graph its length would be unknown.
        read = mask.clone()
        read[:, -1] = True
        everywhere = torch.arange(batch * length, device=x.device)
        packed = x.device.type == "cpu" and not torch.compiler.is_compiling()
        places = read.flatten().nonzero().squeeze(1) if packed else everywhere
        x = (x + self.positions.weight[-length:]).flatten(0, 1).index_select(0, places)
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, places, visible)
        return x.new_zeros(batch * length, width).index_copy(0, places, x).view(batch, length, width)


class GRU4Rec(nn.Module):
    """Gated recurrent units, run from the first item of a history on; dropout on the input and between layers."""

    def __init__(self, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, blocks, batch_first=True, dropout=dropout if blocks > 1 else 0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``[B, S, E]``."""
        length = x.shape[1]
        # Left padding is rotated to the right, where it follows all items, and back.
        shift = length - mask.sum(1, keepdim=True)
        steps = torch.arange(length, device=x.device)
        forth = ((steps + shift) % length)[..., None].expand_as(x)
        back = ((steps - shift) % length)[..., None].expand_as(x)
        output, _ = self.gru(self.dropout(x).gather(1, forth))
        return output.gather(1, back)


class _ConvolutionBlock(nn.Module):
    """Two causal dilated convolutions with a residual around them."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.dilations = (dilation, 2 * dilation)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=step) for step in self.dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = x
        for dilation, convolution, norm in zip(self.dilations, self.convolutions, self.norms, strict=True):
            padded = nn.functional.pad((hidden * mask).transpose(1, 2), (2 * dilation, 0))
            hidden = nn.functional.relu(norm(convolution(padded).transpose(1, 2)))
        return x + self.dropout(hidden)


class NextItNet(nn.Module):
    """Residual blocks of two dilated causal convolutions of kernel size 3; dilations 1, 2 and 4, 8 in turn."""

    def __init__(self, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_ConvolutionBlock(width, (1, 4)[i % 2], dropout) for i in range(blocks))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``[B, S, E]``."""
        mask = mask[..., None].to(x.dtype)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class Normalised(nn.Module):
    """A sequence encoder whose output vectors have the length 1/τ, with a learned temperature τ.

    The dot product of such a query vector and an item embedding of length 1 is their cosine divided by τ.
    """

    def __init__(self, encoder: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``[B, S, E]``."""
        # Entries of unit vectors are small beside the encoders' other inputs, such as positions.
        queries = self.encoder(x * x.shape[-1] ** 0.5, mask)
        return nn.functional.normalize(queries, dim=-1) * torch.exp(-self.log_temperature)
