# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What a converted checkpoint has to hold and its source does not: rows for the placeholders, and, after the authors'
first training stage, the parts that the second one trains.
"""

import zlib
from typing import Literal

import torch

from llava_mini import LlavaMiniConfig
from llava_mini.compressor_llava_mini import sine_cosine_table
from llava_mini.conversion.mapping.model_layout import NEW_PARTS
from llava_mini.conversion.reading.checkpoint_io import LazyTensor, Tensors
from llava_mini.conversion.writing.conversion_report import Report


EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# Grown vocabularies are a multiple of this, which matrix units like.
VOCABULARY_MULTIPLE = 64
ROWS_AT_A_TIME = 16384

PREFUSION_STARTS = ("random", "language-model")
PrefusionStart = Literal["random", "language-model"]


def grow_embeddings(tensors: Tensors, config: LlavaMiniConfig, report: Report) -> None:
    """Gives both embedding matrices rows for placeholders beyond their end: the mean of the rows they have."""
    text, size = config.text_config, max(config.image_token_id, config.video_token_id) + 1
    if size <= text.vocab_size:
        return
    size = -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for name in EMBEDDINGS:
        if name in tensors:
            report.filled[f"{name} rows {text.vocab_size} to {size - 1}"] = "the mean of the other rows"
            tensors[name] = _append_mean_rows(tensors[name], size)
    text.vocab_size = size


def _append_mean_rows(tensor: LazyTensor, size: int) -> LazyTensor:
    def load() -> torch.Tensor:
        matrix = tensor.load()
        # In pieces, since summing in float32 copies what it sums.
        total = sum(part.sum(dim=0, dtype=torch.float32) for part in matrix.split(ROWS_AT_A_TIME))
        mean = (total / len(matrix)).to(matrix.dtype)
        return torch.cat([matrix, mean.expand(size - len(matrix), -1)])

    return LazyTensor((size, *tensor.shape[1:]), tensor.dtype, load)


def fill_new_parts(
    tensors: Tensors,
    expected: dict[str, tuple[int, ...]],
    config: LlavaMiniConfig,
    start: PrefusionStart,
    report: Report,
) -> None:
    """
    Gives a model that has no compressor and pre-fusion yet new ones: the compressor random, the pre-fusion layers
    random or as the language model's first ones. The authors don't say how theirs started.
    """
    for name in [name for name in expected if name.startswith(NEW_PARTS) and name not in tensors]:
        donor = name.replace("model.prefusion.", "model.language_model.", 1)
        if start == "language-model" and donor != name and donor in tensors:
            tensors[name] = tensors[donor]
            report.filled[name] = f"a copy of {donor}"
        else:
            tensors[name] = _new_tensor(name, expected[name], config)
            report.filled[name] = "new, as transformers initialises it"


def _new_tensor(name: str, shape: tuple[int, ...], config: LlavaMiniConfig) -> LazyTensor:
    def load() -> torch.Tensor:
        if name.endswith("pos_embed"):
            return sine_cosine_table(config.compressor_size, shape[-1]).to(config.dtype)
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=config.dtype)
        if "norm" in name:
            return torch.ones(shape, dtype=config.dtype)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.empty(shape, dtype=config.dtype)
        return values.normal_(std=config.text_config.initializer_range, generator=generator)

    return LazyTensor(shape, config.dtype, load)
