# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Checkpoints of the authors that hold everything, and those that hold only what was trained and belong on a base model:
`mm_projector.bin` of the first training stage, and LoRA adapters with `non_lora_trainables.bin`.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llava_mini import LlavaMiniConfig
from llava_mini.conversion.mapping.key_mapping import strip_training_prefix
from llava_mini.conversion.mapping.tokenizer_conversion import has_tokenizer
from llava_mini.conversion.reading.checkpoint_io import (
    WEIGHT_FILE_PATTERNS,
    LazyTensor,
    Tensors,
    locate,
    read_checkpoint,
    read_json,
    read_weights_file,
)


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA_FILE = "non_lora_trainables.bin"
PROJECTOR_FILE = "mm_projector.bin"
CHECKPOINT_FILES = ("*.json", "tokenizer.model", *WEIGHT_FILE_PATTERNS)
BASE_MODEL_HINT = "pass the base model with --base-model DIR_OR_REPO"

_LORA_MATRIX = re.compile(r"(.+)\.lora_([AB])\.(?:default\.)?weight")
# Kinds of adapters whose merge is another formula than W + scaling * B @ A.
_OTHER_FORMULAS = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
# Starts of A and B that leave W as it is; the others (PiSSA, OLoRA, ...) take from W what they put into B @ A.
_PLAIN_STARTS = (None, True, False, "eva", "gaussian")


@dataclass(frozen=True)
class OriginalCheckpoint:
    """
    A checkpoint in the authors' layout, put together.

    Args:
        config: their configuration.
        tensors: everything under their names.
        directories: where it was read from: the checkpoint and, if there is one, its base model.
        tokenizer_dir: the one of these with the tokenizer.
        labels: what to call tensors, by their name, that do not come from the checkpoint's own weights.
        ignored: why tensors of the base model are not used.
    """

    config: dict
    tensors: Tensors
    directories: tuple[Path, ...]
    tokenizer_dir: Path
    labels: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


def read_original(directory: Path, base_model: str | None) -> OriginalCheckpoint:
    """
    The authors' checkpoint in `directory`, with its base model if it is a partial one.

    Args:
        base_model: directory or Hub repository of the base model; by default the one an adapter names.

    Raises:
        ValueError: something is missing, can't be read or can't be merged.
    """
    config = read_json(directory / "config.json")
    if config.get("model_type") == LlavaMiniConfig.model_type:
        raise ValueError(f"{directory} is converted already: load it as it is, or go back with --to-original.")
    if (directory / ADAPTER_CONFIG).is_file():
        adapter_config = read_json(directory / ADAPTER_CONFIG)
        trained, deltas = _read_adapter(directory, adapter_config)
        base_model = base_model or adapter_config.get("base_model_name_or_path")
    elif (directory / PROJECTOR_FILE).is_file():
        trained, deltas = _strip_prefixes(read_weights_file(directory / PROJECTOR_FILE)), {}
    elif base_model:
        raise ValueError(f"{directory} holds a whole model, no part of one: leave out --base-model {base_model}.")
    else:
        return OriginalCheckpoint(config, read_checkpoint(directory), (directory,), directory)

    if not base_model:
        raise ValueError(f"{directory} holds only what was trained: {BASE_MODEL_HINT}.")
    base_dir = locate(base_model, directory, CHECKPOINT_FILES, BASE_MODEL_HINT)
    base = read_checkpoint(base_dir)
    labels = {key: f"{base_model}: {key}" for key in base}
    ignored = {labels[key]: "replaced by what was trained" for key in base if key in trained}
    tensors = base | trained
    for key, delta in deltas.items():
        tensors[key] = delta.merge_into(key, tensors.get(key))
        labels[key] = f"{labels.get(key, key)} + LoRA"
    for key in trained:
        labels.pop(key, None)
    tokenizer_dir = directory if has_tokenizer(directory) else base_dir
    return OriginalCheckpoint(config, tensors, (directory, base_dir), tokenizer_dir, labels, ignored)


def _strip_prefixes(tensors: Tensors) -> Tensors:
    return {strip_training_prefix(key): tensor for key, tensor in tensors.items()}


@dataclass(frozen=True)
class LowRankDelta:
    """What LoRA adds to a matrix: scaling * B @ A."""

    a: LazyTensor
    b: LazyTensor
    scaling: float

    def merge_into(self, key: str, weight: LazyTensor | None) -> LazyTensor:
        """
        The matrix `key` with the delta, computed in float32 and rounded once, as PEFT's `merge_and_unload` does.

        Raises:
            ValueError: there is no such matrix, or it has another shape.
        """
        if weight is None:
            raise ValueError(f"The adapter changes {key!r}, which the base model does not have: {BASE_MODEL_HINT}.")
        if weight.shape != self.b.shape[:1] + self.a.shape[1:] or self.b.shape[1:] != self.a.shape[:1]:
            raise ValueError(
                f"The adapter's matrices for {key!r} have shapes {self.b.shape} and {self.a.shape}, which do not make "
                f"the base model's {weight.shape}: {BASE_MODEL_HINT}."
            )

        def load() -> torch.Tensor:
            matrix = weight.load()
            delta = (self.b.load().float() @ self.a.load().float()) * self.scaling
            return (matrix.float() + delta).to(matrix.dtype)

        return LazyTensor(weight.shape, weight.dtype, load)


def _read_adapter(directory: Path, config: dict) -> tuple[Tensors, dict[str, LowRankDelta]]:
    """What an adapter replaces, and what it adds to, both by the authors' names."""
    used = [name for name in _OTHER_FORMULAS if config.get(name)]
    if (start := config.get("init_lora_weights")) not in _PLAIN_STARTS:
        used.append(f"init_lora_weights {start!r}")
    if config.get("peft_type") != "LORA" or used:
        raise ValueError(
            f"{directory / ADAPTER_CONFIG} describes {', '.join([str(config.get('peft_type')), *used])}, but only "
            "plain LoRA can be merged here: merge it with PEFT first and convert the result."
        )
    tensors = _strip_prefixes(read_checkpoint(directory, ADAPTER_FILES))
    matrices: dict[str, dict[str, LazyTensor]] = {}
    for key in [key for key in tensors if ".lora_" in key]:
        match = _LORA_MATRIX.fullmatch(key)
        if not match:
            raise ValueError(f"The adapter has {key!r}, which is not plain LoRA: merge it with PEFT first.")
        matrices.setdefault(match[1], {})[match[2]] = tensors.pop(key)
    if incomplete := [name for name, pair in matrices.items() if len(pair) != 2]:
        raise ValueError(f"The adapter has only one of two matrices for {incomplete[0]!r}: download its files again.")
    if (directory / NON_LORA_FILE).is_file():
        tensors |= _strip_prefixes(read_weights_file(directory / NON_LORA_FILE))
    deltas = {
        f"{name}.weight": LowRankDelta(pair["A"], pair["B"], _scaling(config, name, rank=pair["A"].shape[0]))
        for name, pair in matrices.items()
    }
    return tensors, deltas


def _scaling(config: dict, module: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)),
        config.get("lora_alpha", 8),  # PEFT's default
    )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
