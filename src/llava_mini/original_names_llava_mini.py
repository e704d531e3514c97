# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Names of tensors, the authors' and ours, in one table: renaming while a checkpoint loads, the converter and the way back
are all made from it.

Source of the authors' names: their checkpoints (`llavamini_arch.py`, `resampler.py`, `clip_encoder.py`).
"""

import re

from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming


# More linear layers than any projector has.
MAX_PROJECTOR_LAYERS = 32
# What stands for a part of a name that both have.
FIELDS = {"{rest}": r"(.+)", "{kind}": r"(weight|bias)"}
# The authors' name, ours. In their sequence of linear layers and activations the linear ones have the even places.
TENSOR_NAMES = (
    ("model.embed_tokens.{rest}", "model.language_model.embed_tokens.{rest}"),
    ("model.layers.{rest}", "model.language_model.layers.{rest}"),
    ("model.norm.{rest}", "model.language_model.norm.{rest}"),
    ("lm_head.weight", "lm_head.weight"),
    ("model.prefusion_layers.{rest}", "model.prefusion.layers.{rest}"),
    *(
        (f"model.mm_projector.{2 * i}.{{kind}}", f"model.multi_modal_projector.linear_{i + 1}.{{kind}}")
        for i in range(MAX_PROJECTOR_LAYERS)
    ),
    ("model.compressor.query", "model.compressor.query"),
    ("model.compressor.pos_embed", "model.compressor.pos_embed"),
    ("model.compressor.ln_q.{kind}", "model.compressor.query_norm.{kind}"),
    ("model.compressor.ln_kv.{kind}", "model.compressor.key_norm.{kind}"),
    ("model.compressor.attn.out_proj.{kind}", "model.compressor.out_proj.{kind}"),
    ("model.vision_tower.vision_tower.vision_model.{rest}", "model.vision_tower.{rest}"),
)
# A projector of one layer (`mm_projector_type` "linear") has no number in its names.
LINEAR_PROJECTOR_NAMES = ("model.mm_projector.{kind}", "model.multi_modal_projector.linear_1.{kind}")
# One tensor of the authors', whose rows are these of ours one after the other.
PACKED_NAMES = (
    "model.compressor.attn.in_proj_{kind}",
    tuple(f"model.compressor.{part}_proj.{{kind}}" for part in ("q", "k", "v")),
)
UNUSED_NAMES = (
    (r"\.rotary_emb\.inv_freq$", "computed from the configuration"),
    (r"^model\.vision_tower\..*embeddings\.position_ids$", "a constant, 0 to the number of patches"),
)


def to_pattern(name: str) -> str:
    """A name of the table as a regular expression with a group for each field."""
    pattern = re.escape(name)
    for field, expression in FIELDS.items():
        pattern = pattern.replace(re.escape(field), expression)
    return pattern


def translate(key: str, source: str, target: str) -> str | None:
    """`key` under the name `target` when it has the name `source`; `None` when it hasn't."""
    match = re.fullmatch(to_pattern(source), key)
    if match is None:
        return None
    for value in match.groups():
        target = re.sub(r"\{\w+\}", lambda _, value=value: value, target, count=1)
    return target


def rename_key(key: str) -> tuple[str, ...]:
    """
    Our names for the authors' tensor `key`: one, three for the compressor's packed attention projection, none for a
    name that no LLaVA-Mini checkpoint has.
    """
    packed, parts = PACKED_NAMES
    for source, targets in ((packed, parts), *((theirs, (ours,)) for theirs, ours in _all_names())):
        names = tuple(translate(key, source, target) for target in targets)
        if names[0] is not None:
            return names
    return ()


def restore_key(name: str, projector_type: str) -> str | None:
    """
    The authors' name for our tensor `name`, the same one for the three parts of the packed attention projection;
    `None` for a name that no converted checkpoint has.

    Args:
        projector_type: the authors' `mm_projector_type`: "linear" has no number in its names.
    """
    packed, parts = PACKED_NAMES
    names = [(packed, part) for part in parts] + list(TENSOR_NAMES)
    if projector_type == "linear":
        names.insert(0, LINEAR_PROJECTOR_NAMES)
    translated = (translate(name, ours, theirs) for theirs, ours in names)
    return next((key for key in translated if key is not None), None)


def ignored_reason(key: str) -> str | None:
    """Why the authors' tensor `key` is not needed, or `None` when it is."""
    return next((reason for pattern, reason in UNUSED_NAMES if re.search(pattern, key)), None)


def weight_mapping() -> list[WeightRenaming | WeightConverter]:
    """The table as transformers renames weights by while it loads them."""
    renamings = [
        WeightRenaming(f"^{to_pattern(theirs)}$", re.sub(r"\{\w+\}", r"\\1", ours))
        for theirs, ours in _all_names()
        if theirs != ours
    ]
    packed, parts = PACKED_NAMES
    return renamings + [
        WeightConverter(
            packed.replace("{kind}", kind),
            [part.replace("{kind}", kind) for part in parts],
            operations=[Chunk(dim=0)],
        )
        for kind in ("weight", "bias")
    ]


def _all_names() -> list[tuple[str, str]]:
    return [LINEAR_PROJECTOR_NAMES, *TENSOR_NAMES]
