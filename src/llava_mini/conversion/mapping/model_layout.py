# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Which tensors a converted checkpoint has to hold, going by its configuration."""

from collections import Counter

import torch
from transformers import AutoModel

from llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.conversion.mapping.key_mapping import TOWER
from llava_mini.conversion.reading.checkpoint_io import Tensors


# What models compute with. Anything else is quantised, or something other than weights.
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What a plain language model, or one after the authors' first training stage, does not have yet.
NEW_PARTS = ("model.compressor.", "model.prefusion.")


def expected_shapes(config: LlavaMiniConfig) -> dict[str, tuple[int, ...]]:
    """
    Names and shapes of everything a converted checkpoint holds: the model's and, so that nothing is lost, the tower
    layers past the selected one, which the model does not build.

    Raises:
        ValueError: numbers in the configuration that no model can have.
    """
    try:
        with torch.device("meta"):
            model = LlavaMiniForConditionalGeneration(config)
            tower = AutoModel.from_config(config.vision_config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"No model can be built from the configuration ({type(error).__name__}: {error}): download config.json of "
            "checkpoint and vision tower again."
        ) from error
    tensors = model.state_dict() | {TOWER + name: tensor for name, tensor in tower.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def common_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most of the data."""
    sizes: Counter = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def check_dtypes(tensors: Tensors) -> None:
    """
    Raises:
        ValueError: a tensor holds no weights: integers, booleans, 8-bit or complex numbers.
    """
    if other := sorted(name for name in tensors if tensors[name].dtype not in WEIGHT_DTYPES):
        raise ValueError(
            f"{len(other)} tensor(s) hold {tensors[other[0]].dtype}, such as {other[0]!r}, but weights are "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in WEIGHT_DTYPES)}: give the checkpoint as it was "
            "before it was quantised or cast."
        )


def check_tensors(tensors: Tensors, expected: dict[str, tuple[int, ...]]) -> None:
    """
    Raises:
        ValueError: a tensor is missing, has another shape than expected, or is one too many.
    """
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    mismatched = sorted(name for name in set(expected) & set(tensors) if tensors[name].shape != expected[name])
    if missing:
        hint = "download the checkpoint's files again"
        if missing[0].startswith(TOWER):
            hint = "pass the tower with --vision-tower"
        elif missing[0].startswith(NEW_PARTS):
            hint = "if these parts are yet to be trained, say how they start with --new-prefusion"
        raise ValueError(f"{len(missing)} tensor(s) are missing, such as {missing[0]!r}: {hint}.")
    if unexpected:
        raise ValueError(
            f"{len(unexpected)} tensor(s) are unexpected, such as {unexpected[0]!r}: config.json describes a smaller "
            "model; use the one that belongs to these weights."
        )
    if mismatched:
        name = mismatched[0]
        raise ValueError(
            f"{len(mismatched)} tensor(s) have the wrong shape, such as {name!r}: {tensors[name].shape} instead of "
            f"{expected[name]} by config.json; use the one that belongs to these weights."
        )
