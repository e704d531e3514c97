# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The compressor (paper section 4.2): an image's patch features become C*C vision tokens. Shapes: see
`modeling_llava_mini.py`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_llava_mini import LlavaMiniConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; the compressor's reference, and what returns its weights. No mask, no dropout."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class LlavaMiniCompressor(nn.Module):
    """
    Query-based compression (paper section 4.2): C*C learned queries attend to an image's patch features, before any
    projection. No residual, no output norm, and the values carry no position.
    """

    def __init__(self, config: LlavaMiniConfig):
        super().__init__()
        self.config = config
        self.size = config.compressor_size
        width = config.vision_config.hidden_size
        self.num_heads = config.compressor_num_attention_heads
        self.scaling = (width // self.num_heads) ** -0.5
        # What transformers' attention functions read off a module.
        self.num_key_value_groups = 1
        self.is_causal = False

        self.query = nn.Parameter(torch.empty(self.size**2, width))
        # A frozen parameter in the authors' code; a buffer stays frozen through `from_pretrained` as well. It comes
        # from the checkpoint and is never recomputed.
        self.register_buffer("pos_embed", sine_cosine_table(self.size, width).to(self.query))
        self.query_norm = nn.LayerNorm(width, eps=config.compressor_layer_norm_eps)
        self.key_norm = nn.LayerNorm(width, eps=config.compressor_layer_norm_eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, features: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            features (`torch.Tensor` of shape `(U, G * G, Dv)`): patch features in raster order.
            output_attentions (`bool`): also return the weights, computed eagerly whatever the implementation.

        Returns:
            The compressed features `(U, CC, Dv)` and the weights `(U, CC, G * G)` averaged over heads, or `None`.
        """
        features = self.key_norm(features)
        query = self.q_proj(self.query_norm(self.query) + self.pos_embed).expand(features.shape[0], -1, -1)
        key = self.k_proj(features + self.resize_position_table(features.shape[1]))
        value = self.v_proj(features)

        attention: Callable = eager_attention_forward
        if not output_attentions:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attention)
        query, key, value = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in (query, key, value)
        )
        compressed, weights = attention(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        compressed = self.out_proj(compressed.flatten(2))
        return compressed, weights.mean(dim=1) if output_attentions else None

    def resize_position_table(self, num_keys: int) -> torch.Tensor:
        """
        The keys' positions `(G * G, Dv)`: the queries' C x C table stretched to the key grid. With C == 1 it is one
        vector repeated, so the keys carry no spatial position: odd, and what the authors' weights expect.
        """
        grid = int(num_keys**0.5)
        if grid**2 != num_keys:
            raise ValueError(
                f"The vision grid is not square: the compressor got {num_keys} features an image. Use a square "
                "`image_size` and `vision_feature_select_strategy='default'`."
            )
        table = self.pos_embed.float().T.reshape(1, -1, self.size, self.size)
        table = nn.functional.interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False)
        return table.flatten(2)[0].T.to(self.pos_embed.dtype)


def sine_cosine_table(size: int, width: int) -> torch.Tensor:
    """
    The 2-D position table `(size * size, width)` that a new compressor starts from: the column in the first half of
    the width, the row in the second, each as sines then cosines of frequencies 10000**(-i / (width / 4)).
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns, rows = axis.repeat(size, 1), axis.repeat_interleave(size, dim=0)
    return torch.cat([columns, rows], dim=-1).float()
