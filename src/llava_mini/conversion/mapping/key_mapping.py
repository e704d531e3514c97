# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Names of tensors as checkpoints have them: what training puts before them. The rest is one table in the package."""

import re


TOWER = "model.vision_tower."
ORIGINAL_TOWER = "model.vision_tower.vision_tower.vision_model."
# Training through PEFT puts this before names; merging half-way leaves only the second part.
_TRAINING_PREFIX = re.compile(r"^(base_model\.model\.|model\.(?=model\.|lm_head\.))")


def strip_training_prefix(key: str) -> str:
    """`key` without what training with adapters put before it."""
    return _TRAINING_PREFIX.sub("", key)
