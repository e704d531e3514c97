# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The authors' `config.json` to `LlavaMiniConfig`.

Source of the names and of the defaults: the authors' `llavamini_arch.py` and `multimodal_*/builder.py`.
"""

import re
from copy import deepcopy

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration


ORIGINAL_MODEL_TYPE = "llava_mini_llama"
# What the authors' code takes where the configuration says nothing.
ORIGINAL_DEFAULTS = {
    "compressor_size": 2,
    "prefusion_layer_num": 4,
    "resolution_ratio": 1,
    "mm_projector_type": "linear",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
}
SELECT_STRATEGIES = {"patch": "default", "cls_patch": "full"}
# What a Llama computes with; the rest of the file is older transformers' generation and classifier settings.
TEXT_KEYS = (
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
)


def convert_config(
    original: dict, vision_config: CLIPVisionConfig, image_token_id: int, video_token_id: int, dtype: torch.dtype
) -> LlavaMiniConfig:
    """
    Our configuration for the authors' `original`, with a tower and the ids of the placeholders.

    Raises:
        ValueError: a setting that LLaVA-Mini here does not have, or parts that don't fit together.
    """
    settings = ORIGINAL_DEFAULTS | {key: value for key, value in original.items() if value is not None}
    if (feature := settings["mm_vision_select_feature"]) not in SELECT_STRATEGIES:
        raise ValueError(
            f"config.json has `mm_vision_select_feature` {feature!r}, but has to have one of "
            f"{', '.join(map(repr, SELECT_STRATEGIES))}."
        )
    num_projector_layers = count_projector_layers(settings["mm_projector_type"])
    # Copied, since transformers completes `rope_scaling` in place.
    text_config = {key: deepcopy(original[key]) for key in TEXT_KEYS if original.get(key) is not None}
    try:
        return LlavaMiniConfig(
            vision_config=vision_config,
            text_config={"model_type": "llama", **text_config},
            image_token_id=image_token_id,
            video_token_id=video_token_id,
            compressor_size=settings["compressor_size"],
            resolution_ratio=settings["resolution_ratio"],
            num_prefusion_layers=settings["prefusion_layer_num"],
            prefusion_ignored_token_ids=[0],
            vision_feature_layer=settings["mm_vision_select_layer"],
            vision_feature_select_strategy=SELECT_STRATEGIES[feature],
            num_projector_layers=num_projector_layers,
            dtype=dtype,
            architectures=[LlavaMiniForConditionalGeneration.__name__],
        )
    except StrictDataclassError as error:
        raise ValueError(f"config.json describes no model that exists here. {error.__cause__ or error}") from error


def count_projector_layers(projector_type: str) -> int:
    """
    Linear layers of the authors' `mm_projector_type`.

    Raises:
        ValueError: a type that the authors' code doesn't have either.
    """
    if projector_type in ("identity", "linear"):
        return int(projector_type == "linear")
    if match := re.fullmatch(r"mlp(\d+)x_gelu", projector_type):
        return int(match[1])
    raise ValueError(
        f"config.json has `mm_projector_type` {projector_type!r}, which is not supported: expected 'linear', "
        "'mlpKx_gelu' (K a number) or 'identity'."
    )


def list_defaults(original: dict) -> dict[str, object]:
    """The authors' defaults that fill in for settings `original` lacks."""
    return {key: value for key, value in ORIGINAL_DEFAULTS.items() if original.get(key) is None}


def restore_config(config: LlavaMiniConfig, known: dict) -> dict:
    """
    The authors' configuration for ours, without `mm_vision_tower` and `image_aspect_ratio`, unless known.

    Args:
        known: the authors' configuration that ours was made from, if it is at hand. Where nothing has changed since,
            it is what is returned.

    Raises:
        ValueError: a setting that the authors' code does not have.
    """
    for name, value, expected in (
        ("text_config.model_type", config.text_config.model_type, "llama"),
        ("compressor_num_attention_heads", config.compressor_num_attention_heads, 8),
        ("compressor_layer_norm_eps", config.compressor_layer_norm_eps, 1e-5),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
    ):
        if value != expected:
            raise ValueError(f"`{name}` is {value!r}, but the authors' code knows only {expected!r}: can't go back.")
    settings = _original_settings(config)
    if known:
        ids = (config.image_token_id, config.video_token_id)
        as_converted = convert_config(known, config.vision_config, *ids, config.dtype)
        if _original_settings(as_converted) == settings:
            return known
    return known | settings


def _original_settings(config: LlavaMiniConfig) -> dict:
    text = config.text_config
    rope = dict(text.rope_parameters)
    settings = {key: getattr(text, key) for key in TEXT_KEYS if hasattr(text, key) and not key.startswith("rope")}
    projector = {0: "identity", 1: "linear"}.get(config.num_projector_layers, f"mlp{config.num_projector_layers}x_gelu")
    return settings | {
        "architectures": ["LlavaMiniLlamaForCausalLM"],
        "model_type": ORIGINAL_MODEL_TYPE,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": projector,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "compressor_size": config.compressor_size,
        "prefusion_layer_num": config.num_prefusion_layers,
        "resolution_ratio": config.resolution_ratio,
        "tokenizer_padding_side": "right",
    }
