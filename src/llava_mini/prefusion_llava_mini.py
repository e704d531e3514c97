# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Modality pre-fusion (paper section 4.2): the text reads all patches before the language model, and which text does.
Shapes: see `modeling_llava_mini.py`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The one import below the public interface: the text types that LlavaMiniConfig allows all rotate as Llama does.
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from .pretrained_llava_mini import LlavaMiniPreTrainedModel
from .versions_llava_mini import CACHE_NAME


KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class LlavaMiniPreFusionLayer(GradientCheckpointingLayer):
    """
    A decoder layer of the text model with its keys and values laid open: it continues after given ones, returns
    them for others to read, and computes query, output and MLP only for the positions that somebody reads.
    """

    def __init__(self, decoder_layer: nn.Module):
        super().__init__()
        self.self_attn = decoder_layer.self_attn
        self.mlp = decoder_layer.mlp
        self.input_layernorm = decoder_layer.input_layernorm
        self.post_attention_layernorm = decoder_layer.post_attention_layernorm

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        past_keys: torch.Tensor | None = None,
        past_values: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None,
        num_outputs: int,
        attention_function: Callable | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(U, length, D)`), cos, sin (`(1, length, head_dim)`).
            past_keys, past_values (`torch.Tensor` of shape `(U, key_value_heads, past, head_dim)`, *optional*).
            attention_mask: as `create_causal_mask` makes it for `num_outputs` queries over `past + length` keys.
            num_outputs (`int`): how many of the last positions are computed further.
            attention_function (`Callable`, *optional*): instead of the configuration's, called as that is.

        Returns:
            Hidden states `(U, num_outputs, D)`, keys and values `(U, key_value_heads, past + length, head_dim)`.
        """
        attention = self.self_attn
        normed = self.input_layernorm(hidden_states)
        per_head = (*normed.shape[:-1], -1, attention.head_dim)
        keys = attention.k_proj(normed).view(per_head).transpose(1, 2)
        values = attention.v_proj(normed).view(per_head).transpose(1, 2)
        queries = attention.q_proj(normed[:, -num_outputs:]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
        queries, _ = apply_rotary_pos_emb(queries, queries, cos[:, -num_outputs:], sin[:, -num_outputs:])
        if past_keys is not None:
            keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)

        if attention_function is None:
            attention_function = ALL_ATTENTION_FUNCTIONS.get_interface(
                attention.config._attn_implementation, eager_attention_forward
            )
        dropout = attention.attention_dropout if self.training else 0.0
        attended, _ = attention_function(
            attention, queries, keys, values, attention_mask, dropout=dropout, scaling=attention.scaling
        )
        hidden_states = hidden_states[:, -num_outputs:] + attention.o_proj(attended.flatten(2))
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states, keys, values


class LlavaMiniPreFusion(LlavaMiniPreTrainedModel):
    """
    Modality pre-fusion (paper section 4.2): decoder layers of the text model, causal, without a final norm, over
    [patches | compressed tokens | text]. It runs in two calls, which causality makes exact: the vision part once,
    leaving its keys and values, then any text after them.
    """

    def __init__(self, config: PreTrainedConfig, num_layers: int, text_model: PreTrainedModel):
        super().__init__(config)
        # Each layer is the text model's own; it never meets the language model's cache, so its index plays no part.
        decoder_layer_class = type(text_model.layers[0])
        self.layers = nn.ModuleList(
            [LlavaMiniPreFusionLayer(decoder_layer_class(config, layer_idx=0)) for _ in range(num_layers)]
        )
        self.rotary_emb = type(text_model.rotary_emb)(config)
        self.post_init()

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_values: KeyValues = (),
        num_outputs: int | None = None,
        position_ids: torch.Tensor | None = None,
        attention_function: Callable | None = None,
    ) -> tuple[torch.Tensor, KeyValues]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(U, length, D)`): every position takes part; there is no padding
                but at the end, which causality keeps from being read.
            key_values: what an earlier call returned, a pair `(U, key_value_heads, past, head_dim)` a layer.
            num_outputs (`int`, *optional*): return only this many last positions; the last layer skips the others.
            position_ids (`torch.Tensor` of shape `(U, length)` or `(1, length)`, *optional*): ascending; where
                patches are left out, the others keep theirs. By default they follow the earlier call's.
            attention_function (`Callable`, *optional*): every layer's attention instead of the configuration's; one
                that also keeps its weights, say.

        Returns:
            Hidden states `(U, num_outputs, D)` and, a layer, keys and values over `past + length` positions.
        """
        length = hidden_states.shape[1]
        num_outputs = length if num_outputs is None else num_outputs
        past = key_values[0][0].shape[2] if key_values else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=hidden_states.device)[None]
        cos, sin = self.rotary_emb(hidden_states, position_ids)

        new_key_values = []
        for i, layer in enumerate(self.layers):
            num_queries = num_outputs if i == len(self.layers) - 1 else length
            mask = self.create_mask(hidden_states, num_queries, past + length)
            past_keys, past_values = key_values[i] if key_values else (None, None)
            hidden_states, keys, values = layer(
                hidden_states,
                cos,
                sin,
                past_keys,
                past_values,
                attention_mask=mask,
                num_outputs=num_queries,
                attention_function=attention_function,
            )
            new_key_values.append((keys, values))
        return hidden_states[:, -num_outputs:], tuple(new_key_values)

    def create_mask(self, hidden_states: torch.Tensor, num_queries: int, num_keys: int) -> torch.Tensor | None:
        """The causal mask of the last `num_queries` of `num_keys` positions, whatever the attention backend needs."""
        cache = DynamicCache()  # it only tells the mask how many keys come before the queries
        if num_keys > num_queries:
            lengths = hidden_states.new_empty(1, 1, num_keys - num_queries, 1)
            cache.update(lengths, lengths, 0)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states[:1, :num_queries],
            attention_mask=None,
            **{CACHE_NAME: cache},
        )


class KeptText:
    """
    The text that takes part in pre-fusion, without the rest: kept tokens first, in order, and behind them padding,
    which causality hides. So pre-fusion needs no padding mask.

    Args:
        inputs_embeds (`torch.Tensor` of shape `(B, S, D)`): raw embeddings.
        mask (`torch.Tensor` of shape `(B, S)`): which tokens take part.
        length (`int`): T, how many they are in the longest row.

    Attributes:
        embeds (`torch.Tensor` of shape `(B, T, D)`): kept tokens.
    """

    def __init__(self, inputs_embeds: torch.Tensor, mask: torch.Tensor, length: int):
        self.inputs_embeds = inputs_embeds
        self.num_kept = mask.sum(1)
        self.length = length
        positions = mask.logical_not().long().argsort(dim=1, stable=True)[:, : self.length, None]
        self.positions = positions.expand(-1, -1, inputs_embeds.shape[-1])
        self.embeds = inputs_embeds.gather(1, self.positions)
        self.total = torch.zeros_like(self.embeds, dtype=torch.float32)

    def add(self, rows: torch.Tensor, fused: torch.Tensor):
        """Adds what units of `rows` `(U,)` made of the text, `fused` `(U, T, D)`; summed in float32."""
        self.total = self.total.index_add(0, rows, fused.to(self.total))

    def put_back(self, num_units: torch.Tensor) -> torch.Tensor:
        """The mean over each row's `num_units` `(B,)` in the kept tokens' places, raw embeddings elsewhere."""
        mean = (self.total / num_units.clamp(min=1)[:, None, None]).to(self.embeds.dtype)
        is_kept = torch.arange(self.length, device=mean.device) < self.num_kept[:, None]
        return self.inputs_embeds.scatter(1, self.positions, torch.where(is_kept[..., None], mean, self.embeds))
