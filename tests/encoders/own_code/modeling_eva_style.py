"""A tiny image tower in the manner of EVA-CLIP, as code that comes with a model.

Class token, pre-norm blocks with a norm inside attention and inside a gated feed-forward.
"""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class EvaStyleConfig(PretrainedConfig):
    model_type = "eva-style"

    def __init__(self, hidden_size=16, num_hidden_layers=3, image_size=16, patch_size=8, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.image_size = image_size
        self.patch_size = patch_size


class EvaStyleBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.inner_norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.feed_norm = nn.LayerNorm(2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, hidden_states):
        query, key, value = self.qkv(self.norm1(hidden_states)).unsqueeze(1).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        hidden_states = hidden_states + self.proj(self.inner_norm(attended))
        normed = self.norm2(hidden_states)
        fed = nn.functional.silu(self.gate(normed)) * self.up(normed)
        return hidden_states + self.down(self.feed_norm(fed))


class EvaStyleVision(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dtype = torch.float32
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.randn(config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.positions = nn.Parameter(torch.randn(patches + 1, config.hidden_size))
        self.layers = nn.ModuleList(EvaStyleBlock(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, pixel_values):
        patches = self.patch_embedding(pixel_values).flatten(2).mT
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.post_layernorm(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])


class EvaStyleModel(PreTrainedModel):
    config_class = EvaStyleConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.vision_model = EvaStyleVision(config)
        self.logit_scale = nn.Parameter(torch.ones(()))
        self.post_init()
