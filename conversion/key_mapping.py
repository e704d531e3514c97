# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Names of tensors: the authors' to ours and back. Pure functions of the name; the shapes are checked elsewhere.

Source of the authors' names: their checkpoints (`llavamini_arch.py`, `resampler.py`, `clip_encoder.py`).
"""

import re


TOWER = "model.vision_tower."
ORIGINAL_TOWER = "model.vision_tower.vision_tower.vision_model."

# Authors' name -> ours. What a pattern's group catches goes where the replacement says.
_RENAMES = (
    (r"^model\.(embed_tokens|layers|norm)\.(.+)$", r"model.language_model.\1.\2"),
    (r"^lm_head\.weight$", r"lm_head.weight"),
    (r"^model\.prefusion_layers\.(\d+)\.(.+)$", r"model.prefusion.layers.\1.\2"),
    (r"^model\.mm_projector\.(weight|bias)$", r"model.multi_modal_projector.linear_1.\1"),
    (r"^model\.compressor\.(query|pos_embed)$", r"model.compressor.\1"),
    (r"^model\.compressor\.ln_q\.(weight|bias)$", r"model.compressor.query_norm.\1"),
    (r"^model\.compressor\.ln_kv\.(weight|bias)$", r"model.compressor.key_norm.\1"),
    (r"^model\.compressor\.attn\.out_proj\.(weight|bias)$", r"model.compressor.out_proj.\1"),
    (r"^model\.vision_tower\.vision_tower\.vision_model\.(.+)$", r"model.vision_tower.\1"),
)
_PROJECTOR = re.compile(r"^model\.mm_projector\.(\d*[02468])\.(weight|bias)$")
_PACKED_ATTENTION = re.compile(r"^model\.compressor\.attn\.in_proj_(weight|bias)$")

_IGNORED = (
    (r"\.rotary_emb\.inv_freq$", "computed from the configuration"),
    (r"^model\.vision_tower\..*embeddings\.position_ids$", "a constant, 0 to the number of patches"),
)


def ignored_reason(key: str) -> str | None:
    """Why the authors' tensor `key` is not needed, or `None` when it is."""
    return next((reason for pattern, reason in _IGNORED if re.search(pattern, key)), None)


def rename_key(key: str) -> tuple[str, ...]:
    """
    Our names for the authors' tensor `key`: one, three for the compressor's packed attention projection (its rows
    are query, key, value), none for a name that no LLaVA-Mini checkpoint has.
    """
    if match := _PACKED_ATTENTION.match(key):
        return tuple(f"model.compressor.{part}_proj.{match[1]}" for part in "qkv")
    if match := _PROJECTOR.match(key):  # a sequence of linear layers with activations at the odd places
        return (f"model.multi_modal_projector.linear_{int(match[1]) // 2 + 1}.{match[2]}",)
    for pattern, replacement in _RENAMES:
        if re.match(pattern, key):
            return (re.sub(pattern, replacement, key),)
    return ()
