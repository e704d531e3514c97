# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Names of tensors: the authors' to ours and back. Pure functions of the name; the shapes are checked elsewhere.

Source of the authors' names: their checkpoints (`llavamini_arch.py`, `resampler.py`, `clip_encoder.py`).
"""

import re


TOWER = "model.vision_tower."
ORIGINAL_TOWER = "model.vision_tower.vision_tower.vision_model."

# Authors' name, ours. The groups of one go where the other has them.
_PAIRS = (
    (r"model\.(embed_tokens|layers|norm)\.(.+)", r"model.language_model.\1.\2"),
    (r"lm_head\.weight", r"lm_head.weight"),
    (r"model\.prefusion_layers\.(\d+)\.(.+)", r"model.prefusion.layers.\1.\2"),
    (r"model\.mm_projector\.(weight|bias)", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.compressor\.(query|pos_embed)", r"model.compressor.\1"),
    (r"model\.compressor\.ln_q\.(weight|bias)", r"model.compressor.query_norm.\1"),
    (r"model\.compressor\.ln_kv\.(weight|bias)", r"model.compressor.key_norm.\1"),
    (r"model\.compressor\.attn\.out_proj\.(weight|bias)", r"model.compressor.out_proj.\1"),
    (r"model\.vision_tower\.vision_tower\.vision_model\.(.+)", r"model.vision_tower.\1"),
)
_PAIRS_BACK = (
    (r"model\.language_model\.(embed_tokens|layers|norm)\.(.+)", r"model.\1.\2"),
    (r"lm_head\.weight", r"lm_head.weight"),
    (r"model\.prefusion\.layers\.(\d+)\.(.+)", r"model.prefusion_layers.\1.\2"),
    (r"model\.compressor\.(query|pos_embed)", r"model.compressor.\1"),
    (r"model\.compressor\.query_norm\.(weight|bias)", r"model.compressor.ln_q.\1"),
    (r"model\.compressor\.key_norm\.(weight|bias)", r"model.compressor.ln_kv.\1"),
    (r"model\.compressor\.out_proj\.(weight|bias)", r"model.compressor.attn.out_proj.\1"),
    (r"model\.compressor\.[qkv]_proj\.(weight|bias)", r"model.compressor.attn.in_proj_\1"),
    (r"model\.vision_tower\.(.+)", r"model.vision_tower.vision_tower.vision_model.\1"),
)
# In a sequence of linear layers and activations the linear ones have the even places.
_PROJECTOR = re.compile(r"model\.mm_projector\.(\d*[02468])\.(weight|bias)")
_PROJECTOR_BACK = re.compile(r"model\.multi_modal_projector\.linear_(\d+)\.(weight|bias)")
_PACKED_ATTENTION = re.compile(r"model\.compressor\.attn\.in_proj_(weight|bias)")
_IGNORED = (
    (r"\.rotary_emb\.inv_freq$", "computed from the configuration"),
    (r"^model\.vision_tower\..*embeddings\.position_ids$", "a constant, 0 to the number of patches"),
)
# Training through PEFT puts this before names; merging half-way leaves only the second part.
_TRAINING_PREFIX = re.compile(r"^(base_model\.model\.|model\.(?=model\.|lm_head\.))")


def ignored_reason(key: str) -> str | None:
    """Why the authors' tensor `key` is not needed, or `None` when it is."""
    return next((reason for pattern, reason in _IGNORED if re.search(pattern, key)), None)


def rename_key(key: str) -> tuple[str, ...]:
    """
    Our names for the authors' tensor `key`: one, three for the compressor's packed attention projection (its rows
    are query, key, value), none for a name that no LLaVA-Mini checkpoint has.
    """
    if match := _PACKED_ATTENTION.fullmatch(key):
        return tuple(f"model.compressor.{part}_proj.{match[1]}" for part in "qkv")
    if match := _PROJECTOR.fullmatch(key):
        return (f"model.multi_modal_projector.linear_{int(match[1]) // 2 + 1}.{match[2]}",)
    return _rename(key, _PAIRS)


def restore_key(name: str, projector_type: str) -> str | None:
    """
    The authors' name for our tensor `name`, the same one for the three parts of the packed attention projection;
    `None` for a name that no converted checkpoint has.

    Args:
        projector_type: the authors' `mm_projector_type`: "linear" has no number in its names.
    """
    if match := _PROJECTOR_BACK.fullmatch(name):
        place = "" if projector_type == "linear" else f"{2 * (int(match[1]) - 1)}."
        return f"model.mm_projector.{place}{match[2]}"
    return next(iter(_rename(name, _PAIRS_BACK)), None)


def _rename(key: str, pairs: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    for pattern, replacement in pairs:
        if re.fullmatch(pattern, key):
            return (re.sub(pattern, replacement, key),)
    return ()


def strip_training_prefix(key: str) -> str:
    """`key` without what training with adapters put before it."""
    return _TRAINING_PREFIX.sub("", key)
