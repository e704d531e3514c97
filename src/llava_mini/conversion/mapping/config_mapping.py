# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
`LlavaMiniConfig` back to the authors' `config.json`; the way here is `llava_mini.original_llava_mini.convert_config`.

Source of the names and of the defaults: the authors' `llavamini_arch.py` and `multimodal_*/builder.py`.
"""

from llava_mini import LlavaMiniConfig
from llava_mini.original_llava_mini import ORIGINAL_DEFAULTS, ORIGINAL_MODEL_TYPE, TEXT_KEYS, convert_config


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
