"""Sequence encoders: ``x [B, S, E]``, ``mask [B, S]`` (true = an item stands there) -> ``[B, S, E]``.

Histories are left-padded. What stands at a padded position never reaches a real one.
"""

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

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """``[B, S, E]`` and ``visible [B, 1, S, S]`` (query sees key) -> ``[B, S, E]``."""
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=self.dropout.p if self.training else 0.0
        )
        x = self.norm_attention(x + self.dropout(self.output(attended.transpose(1, 2).flatten(2))))
        return self.norm_forward(x + self.dropout(self.down(nn.functional.relu(self.up(x)))))


class SASRec(nn.Module):
    """Causal transformer with learned positions (METHOD §3, parameters as in the published code).

    Args:
        width: E.
        length: S.
        blocks: number of blocks.
        heads: attention heads.
        dropout: probability.
    """

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
        """See the module's head."""
        length = x.shape[1]
        # Every position sees itself, so that a padded query has something to attend to and stays finite.
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        visible = (mask[:, None, None, :] & causal) | itself
        x = self.dropout(self.norm(x + self.positions.weight[-length:]))
        for block in self.blocks:
            x = block(x, visible)
        return x


class GRU4Rec(nn.Module):
    """Gated recurrent units, run from a history's first real item on.

    Args:
        width: E.
        blocks: layers.
        dropout: on the input and between layers.
    """

    def __init__(self, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, blocks, batch_first=True, dropout=dropout if blocks > 1 else 0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """See the module's head."""
        length = x.shape[1]
        # Turn left padding into right padding, which comes after all that counts, and turn it back.
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
    """Stack of dilated causal convolutions, kernel 3, dilations 1 and 4 in turn.

    Args:
        width: E.
        blocks: residual blocks.
        dropout: on the input and on every block's output.
    """

    def __init__(self, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_ConvolutionBlock(width, (1, 4)[i % 2], dropout) for i in range(blocks))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """See the module's head."""
        mask = mask[..., None].to(x.dtype)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return x
