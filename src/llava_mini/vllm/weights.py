# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Names of weights: the authors' to ours."""

from collections.abc import Iterable, Iterator

import torch
from transformers import CLIPVisionModel
from transformers.core_model_loading import WeightConverter, WeightRenaming

from llava_mini.original_llava_mini import WEIGHT_MAPPING


Weights = Iterable[tuple[str, torch.Tensor]]
TOWER = "model.vision_tower."


def rename_original(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """The authors' weights under our names, one at a time, by the mapping with which `from_pretrained` loads them."""
    renamings = [rule for rule in WEIGHT_MAPPING if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in WEIGHT_MAPPING if isinstance(rule, WeightConverter)]
    for name, tensor in weights:
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        for converter in converters:
            first, source = converter.rename_source_key(name)
            if source is not None:  # one tensor for query, key and value
                names = [first.replace(converter.target_patterns[0], own) for own in converter.target_patterns]
                yield from zip(names, tensor.chunk(len(names)))
                break
        else:
            yield name, tensor


def read_tower(name_or_path: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a tower that the authors' checkpoint names and does not hold."""
    tower = CLIPVisionModel.from_pretrained(name_or_path, dtype=dtype)
    for name, tensor in tower.state_dict().items():
        yield TOWER + name, tensor
