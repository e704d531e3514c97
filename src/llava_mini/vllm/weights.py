# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Names of weights: the authors' to ours."""

from collections.abc import Iterable, Iterator

import torch
from transformers import CLIPVisionModel

from llava_mini.original_names_llava_mini import ignored_reason, rename_key


Weights = Iterable[tuple[str, torch.Tensor]]
TOWER = "model.vision_tower."


def rename_original(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """The authors' weights under our names, one at a time; what no LLaVA-Mini has keeps its name and is refused."""
    for name, tensor in weights:
        if ignored_reason(name) is None:
            names = rename_key(name) or (name,)
            yield from zip(names, tensor.chunk(len(names)))


def read_tower(name_or_path: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a tower that the authors' checkpoint names and does not hold."""
    tower = CLIPVisionModel.from_pretrained(name_or_path, dtype=dtype)
    for name, tensor in tower.state_dict().items():
        yield TOWER + name, tensor
