# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What LLaVA-Mini adds to a vision tower and a language model: compressor, projector and pre-fusion, and what models
return. Shapes are in the vocabulary of `modeling_llava_mini.py`.
"""

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The one import below the public interface: the text types that LlavaMiniConfig allows all rotate as Llama does.
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.llama.modeling_llama import eager_attention_forward as text_eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import TransformersKwargs
from transformers.utils.quantization_config import QuantizationConfigMixin

from .configuration_llava_mini import HUB_OPTIONS, ORIGINAL_MODEL_TYPE, LlavaMiniConfig
from .versions_llava_mini import (
    CACHE_NAME,
    CACHE_NAMES,
    MultimodalBaseModelOutputWithPast,
    MultimodalCausalLMOutputWithPast,
)


# What a checkpoint may lack when the caller says so.
PARTS = ("vision_tower", "compressor", "multi_modal_projector", "prefusion", "language_model", "lm_head")
KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass
class LlavaMiniVisionOutput(BaseModelOutputWithPooling):
    r"""
    What the model keeps of images or of videos; it does not depend on the text.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(U * K, P, Dv)`):
            Patch features of the selected tower layer, without the class token.
        pooler_output (`list[torch.Tensor]`):
            Vision tokens as they enter the language model, `(CC, D)` an image and `(frames * CC, D)` a video.
        prefusion_key_values (`tuple`):
            A pair of keys and values `(U, key_value_heads, V + CC, head_dim)` for every pre-fusion layer.
        compressor_attentions (`torch.Tensor` of shape `(U, CC, G * G)`, *optional*):
            Where each vision token looked, averaged over heads; with `output_compressor_attentions=True`.
    """

    prefusion_key_values: KeyValues | None = None
    compressor_attentions: torch.Tensor | None = None


class VisionTokensMixin:
    """The vision tokens of a forward pass in one tensor, as this package has always returned them."""

    @property
    def image_hidden_states(self) -> torch.Tensor | None:
        """Vision tokens of the images as they enter the language model, `(images * CC, D)`."""
        return None if self.image_outputs is None else torch.cat(list(self.image_outputs.pooler_output))

    @property
    def video_hidden_states(self) -> torch.Tensor | None:
        """Vision tokens of the videos' frames, `(frames * CC, D)`."""
        return None if self.video_outputs is None else torch.cat(list(self.video_outputs.pooler_output))


@dataclass
class LlavaMiniModelOutputWithPast(VisionTokensMixin, MultimodalBaseModelOutputWithPast):
    r"""
    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, S, D)`):
            Of the language model.
        cache (`Cache`, *optional*):
            Keys and values of the language model; also called `past_key_values`.
        hidden_states, attentions (`tuple[torch.Tensor]`, *optional*):
            Of the language model; with `output_hidden_states=True`, `output_attentions=True`.
        image_outputs, video_outputs (`LlavaMiniVisionOutput`, *optional*):
            The vision tokens of every image and video (`pooler_output`) and where they looked
            (`compressor_attentions`). What the tower made on the way is not kept, since a long video's would not fit:
            `get_image_features` and `get_video_features` return it.
        compressor_attentions (`torch.Tensor` of shape `(U, CC, G * G)`, *optional*):
            Where each vision token looked, images before frames; with `output_compressor_attentions=True`.
    """

    compressor_attentions: torch.Tensor | None = None


@dataclass
class LlavaMiniCausalLMOutputWithPast(VisionTokensMixin, MultimodalCausalLMOutputWithPast):
    r"""
    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*):
            Next-token loss on the positions whose label is not -100; with `labels`.
        logits (`torch.Tensor` of shape `(B, S, vocab_size)`):
            Scores of the language modeling head.
        cache, hidden_states, attentions, image_outputs, video_outputs, compressor_attentions:
            See `LlavaMiniModelOutputWithPast`.
    """

    compressor_attentions: torch.Tensor | None = None


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


class LlavaMiniMultiModalProjector(nn.Module):
    """Vision width to language model width: `linear_1`, activation, `linear_2`, ... (LLaVA-1.5's, two layers)."""

    def __init__(self, config: LlavaMiniConfig):
        super().__init__()
        self.num_layers = config.num_projector_layers
        self.act = ACT2FN[config.projector_hidden_act]
        width = config.vision_config.hidden_size
        for i in range(1, self.num_layers + 1):
            self.add_module(f"linear_{i}", nn.Linear(width, config.text_config.hidden_size))
            width = config.text_config.hidden_size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(..., Dv)` to `(..., D)`."""
        for i in range(1, self.num_layers + 1):
            features = self.get_submodule(f"linear_{i}")(self.act(features) if i > 1 else features)
        return features


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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(U, length, D)`), cos, sin (`(1, length, head_dim)`).
            past_keys, past_values (`torch.Tensor` of shape `(U, key_value_heads, past, head_dim)`, *optional*).
            attention_mask: as `create_causal_mask` makes it for `num_outputs` queries over `past + length` keys.
            num_outputs (`int`): how many of the last positions are computed further.

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

        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, text_eager_attention_forward
        )
        dropout = attention.attention_dropout if self.training else 0.0
        attended, _ = interface(
            attention, queries, keys, values, attention_mask, dropout=dropout, scaling=attention.scaling
        )
        hidden_states = hidden_states[:, -num_outputs:] + attention.o_proj(attended.flatten(2))
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states, keys, values


class WeightsMismatchError(ValueError, RuntimeError):
    """Weights of other shapes than the configuration describes; a RuntimeError too, since upstream's is one."""


class LlavaMiniPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and the capabilities that transformers asks for."""

    config: LlavaMiniConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlavaMiniCompressor", "LlavaMiniPreFusionLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    # What quantisation leaves alone unless it is told otherwise: the vision part, small and read by everything else.
    _modules_to_not_quantize: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        quantization_config: QuantizationConfigMixin | dict | None = None,
        new_parts: Iterable[str] = (),
        output_loading_info: bool = False,
        **kwargs,
    ):
        """
        As in the base class, and: the authors' checkpoints load as they are. A `quantization_config` that names no
        modules to skip leaves the vision tower, the compressor, the projector and the head as they are.

        Args:
            new_parts: parts (see `PARTS`) that the checkpoint may lack, and that start at random then. Without it they
                are an error, unless `output_loading_info` asks for what is missing, or there are no files at all.

        Raises:
            ValueError: weights are missing or have other shapes than the configuration describes; the authors'
                checkpoint is incomplete, or its vision tower can't be found.
        """
        if unknown := set(new_parts) - set(PARTS):
            raise ValueError(f"`new_parts` names {sorted(unknown)}, but a model has {', '.join(PARTS)}.")
        if quantization_config is not None:
            kwargs["quantization_config"] = cls._skip_modules(quantization_config)
        if pretrained_model_name_or_path is not None:
            hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            values, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_options)
            if values.get("model_type") == ORIGINAL_MODEL_TYPE:
                # Not at the top: it needs the model classes.
                from .original_llava_mini import load_original

                kwargs["output_loading_info"] = output_loading_info
                return load_original(cls, pretrained_model_name_or_path, values, *args, **kwargs)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise WeightsMismatchError(
                f"{pretrained_model_name_or_path} holds weights of other shapes than its configuration describes; they "
                "are listed above. Use the configuration that belongs to them, or pass `ignore_mismatched_sizes=True` "
                "for new ones in their place."
            ) from error
        if output_loading_info:
            return model, info
        absent = sorted(name for name in info["missing_keys"] if not set(name.split(".")) & set(new_parts))
        if absent and pretrained_model_name_or_path is not None:
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(absent)} of the weights that its configuration describes, "
                f"such as {absent[0]!r}: download it again, or pass `new_parts=(...)` with those of "
                f"{', '.join(PARTS)} that are to start at random."
            )
        return model

    @classmethod
    def _skip_modules(cls, quantization_config: QuantizationConfigMixin | dict) -> QuantizationConfigMixin:
        if isinstance(quantization_config, dict):
            quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
        quantization_config = copy.deepcopy(quantization_config)
        for name in ("llm_int8_skip_modules", "modules_to_not_convert"):  # bitsandbytes', everybody else's
            if hasattr(quantization_config, name) and getattr(quantization_config, name) is None:
                setattr(quantization_config, name, list(cls._modules_to_not_quantize))
        return quantization_config

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LlavaMiniCompressor):
            init.normal_(module.query, mean=0.0, std=self.config.text_config.initializer_range)
            init.copy_(module.pos_embed, sine_cosine_table(module.size, module.pos_embed.shape[-1]))


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
        self, hidden_states: torch.Tensor, key_values: KeyValues = (), num_outputs: int | None = None
    ) -> tuple[torch.Tensor, KeyValues]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(U, length, D)`): every position takes part; there is no padding
                but at the end, which causality keeps from being read.
            key_values: what an earlier call returned, a pair `(U, key_value_heads, past, head_dim)` a layer.
            num_outputs (`int`, *optional*): return only this many last positions; the last layer skips the others.

        Returns:
            Hidden states `(U, num_outputs, D)` and, a layer, keys and values over `past + length` positions.
        """
        length = hidden_states.shape[1]
        num_outputs = length if num_outputs is None else num_outputs
        past = key_values[0][0].shape[2] if key_values else 0
        position_ids = torch.arange(past, past + length, device=hidden_states.device)[None]
        cos, sin = self.rotary_emb(hidden_states, position_ids)

        new_key_values = []
        for i, layer in enumerate(self.layers):
            num_queries = num_outputs if i == len(self.layers) - 1 else length
            mask = self.create_mask(hidden_states, num_queries, past + length)
            past_keys, past_values = key_values[i] if key_values else (None, None)
            hidden_states, keys, values = layer(
                hidden_states, cos, sin, past_keys, past_values, attention_mask=mask, num_outputs=num_queries
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


def read_counts(masks: Iterable[torch.Tensor]) -> list[list[int]]:
    """
    How many tokens of each row are set in each mask `(B, S)`. A prefill waits for the device here and nowhere else,
    so that wrong prompts raise errors; decoding doesn't wait at all.
    """
    return torch.stack([mask.sum(1) for mask in masks]).tolist()


def check_no_placeholders(placeholders: dict[str, torch.Tensor]):
    """Raises a ValueError when a prompt without images and videos holds placeholders."""
    for modality, held in zip(placeholders, read_counts(placeholders.values())):
        check_nothing_held(modality, held)


def check_nothing_held(modality: str, held: list[int]):
    """Raises a ValueError when rows hold placeholders that nothing was passed for."""
    if count := sum(held):
        pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[modality]
        raise ValueError(
            f"The prompt holds {count} {modality} placeholder token(s), but no `{pixels}` were passed: pass them, or "
            "take the placeholders out of the text."
        )


def arrange_crops(config: LlavaMiniConfig, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Crop features `(U, K, P, Dv)` to the sub-images' common raster `(U, G * G, Dv)`, row-major, and the whole
    image `(U, P, Dv)`, which the compressor does not read; with N == 1 the image is the raster and there is no
    second part.
    """
    ratio, grid = config.resolution_ratio, config.vision_grid_size
    if ratio == 1:
        return features[:, 0], None
    tiles = features[:, :-1].unflatten(2, (grid, grid)).unflatten(1, (ratio, ratio))
    return tiles.transpose(2, 3).flatten(1, 4), features[:, -1]


def find_rows(config: LlavaMiniConfig, mask: torch.Tensor, num_units: int) -> torch.Tensor:
    """The row of each of `num_units` units `(U,)`, by the placeholders `mask` `(B, S)`, which have to match."""
    rows = torch.arange(len(mask), device=mask.device)
    return rows.repeat_interleave(mask.sum(1) // config.num_image_tokens, output_size=num_units)


def assign_units(config: LlavaMiniConfig, modality: str, held: list[int], sizes: list[int]) -> list[int]:
    """
    The row of each image or video: rows take them in order until their placeholders are filled.

    Args:
        held (`list[int]`): placeholders of each row.
        sizes (`list[int]`): visual units of each image or video.

    Raises:
        ValueError: placeholders and vision tokens don't match; the message names both counts.
    """
    needed = [size * config.num_image_tokens for size in sizes]
    rows: list[int] = []
    for row, missing in enumerate(held):
        while missing > 0 and len(rows) < len(needed):
            missing -= needed[len(rows)]
            rows.append(row)
        if missing:
            break
    else:
        if len(rows) == len(needed):
            return rows
    raise ValueError(
        f"{modality.capitalize()} tokens and features don't match: the rows hold {held} {modality} placeholder "
        f"tokens ({sum(held)} in all), but the {len(needed)} {modality}(s) passed need {needed} "
        f"({sum(needed)} in all). Write one placeholder an {modality} and let the processor expand it; its "
        f"`compressor_size` has to be the model's, {config.compressor_size}."
    )
