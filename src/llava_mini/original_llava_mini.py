# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
The authors' checkpoints as they are: their configuration read as ours, their weights renamed while they load.

Source of the names and of the defaults: the authors' `llavamini_arch.py` and `multimodal_*/builder.py`.
"""

import os
import re
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, PreTrainedModel

from .configuration_llava_mini import HUB_OPTIONS, ORIGINAL_MODEL_TYPE, LlavaMiniConfig
from .original_tokenizer_llava_mini import (
    TOKENIZER_FILES,
    choose_chat_template,
    convert_tokenizer,
    tokenizer_directory,
)
from .turn_headers_llava_mini import find_turn_headers


# The class that a converted checkpoint is of.
ARCHITECTURE = "LlavaMiniForConditionalGeneration"
# What the authors' code takes where the configuration says nothing.
ORIGINAL_DEFAULTS = {
    "compressor_size": 2,
    "prefusion_layer_num": 4,
    "resolution_ratio": 1,
    "mm_projector_type": "linear",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
}
SELECT_STRATEGIES = {"patch": "default", "cls_patch": "full"}
# What a Llama computes with; the rest of the file is older transformers' generation and classifier settings.
TEXT_KEYS = (
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
)
CONVERT_HINT = "Or convert it: llava-mini convert INPUT OUTPUT --vision-tower DIR"


def convert_config(
    original: dict,
    vision_config: CLIPVisionConfig,
    image_token_id: int,
    video_token_id: int,
    dtype: torch.dtype,
    assistant_headers: list[list[int]] | None = None,
    user_headers: list[list[int]] | None = None,
) -> LlavaMiniConfig:
    """
    Our configuration for the authors' `original`, with a tower, the ids of the placeholders and what opens a turn.

    Raises:
        ValueError: a setting that LLaVA-Mini here does not have, or parts that don't fit together.
    """
    settings = ORIGINAL_DEFAULTS | {key: value for key, value in original.items() if value is not None}
    if str(feature := settings["mm_vision_select_feature"]) not in SELECT_STRATEGIES:
        raise ValueError(
            f"config.json has `mm_vision_select_feature` {feature!r}, but has to have one of "
            f"{', '.join(map(repr, SELECT_STRATEGIES))}."
        )
    num_projector_layers = count_projector_layers(settings["mm_projector_type"])
    # Copied, since transformers completes `rope_scaling` in place.
    text_config = {key: deepcopy(original[key]) for key in TEXT_KEYS if original.get(key) is not None}
    try:
        return LlavaMiniConfig(
            vision_config=vision_config,
            text_config={"model_type": "llama", **text_config},
            image_token_id=image_token_id,
            video_token_id=video_token_id,
            assistant_headers=assistant_headers,
            user_headers=user_headers,
            compressor_size=settings["compressor_size"],
            resolution_ratio=settings["resolution_ratio"],
            num_prefusion_layers=settings["prefusion_layer_num"],
            prefusion_ignored_token_ids=[0],
            vision_feature_layer=settings["mm_vision_select_layer"],
            vision_feature_select_strategy=SELECT_STRATEGIES[feature],
            num_projector_layers=num_projector_layers,
            dtype=dtype,
            architectures=[ARCHITECTURE],
        )
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            "No model can be built from config.json: it describes no model that exists here. "
            f"{error.__cause__ or error}"
        ) from error


def count_projector_layers(projector_type: str) -> int:
    """
    Linear layers of the authors' `mm_projector_type`.

    Raises:
        ValueError: a type that the authors' code doesn't have either.
    """
    if projector_type in ("identity", "linear"):
        return int(projector_type == "linear")
    if match := re.fullmatch(r"mlp(\d+)x_gelu", str(projector_type)):
        return int(match[1])
    raise ValueError(
        f"config.json has `mm_projector_type` {projector_type!r}, which is not supported: expected 'linear', "
        "'mlpKx_gelu' (K a number) or 'identity'."
    )


class LlavaMiniOriginalConfig(PreTrainedConfig):
    """The authors' configuration; reading one gives a `LlavaMiniConfig`, its placeholders where conversion has them."""

    model_type = ORIGINAL_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> LlavaMiniConfig | tuple[LlavaMiniConfig, dict]:
        """
        As in the base class.

        Raises:
            ValueError: the vision tower's configuration can't be found, or the settings describe no model.
        """
        name_or_path = kwargs.pop("name_or_path", config_dict.get("_name_or_path", ""))
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        kwargs.pop("_from_auto", None)
        vision_config = read_tower_config(find_tower(config_dict, name_or_path))
        vocabulary = config_dict.get("vocab_size")
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, int):
            raise ValueError(f"config.json has `vocab_size` {vocabulary!r}, where a whole number should be.")
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        directory = tokenizer_directory(name_or_path, **hub_options) if name_or_path else None
        # Without a tokenizer, behind the vocabulary.
        tokens = {"image_token_id": vocabulary, "video_token_id": vocabulary + 1}
        if directory is not None:
            tokens = place_tokens(directory, config_dict)
        config = convert_config(config_dict, vision_config, dtype=read_dtype(config_dict), **tokens)
        config.name_or_path = str(name_or_path)
        for name in [name for name in kwargs if hasattr(config, name)]:
            setattr(config, name, kwargs.pop(name))
        return (config, kwargs) if return_unused_kwargs else config


def place_tokens(directory: Path, original: dict) -> dict[str, int | list[list[int]]]:
    """What a configuration says of the tokenizer in `directory`: the placeholders' ids, what opens a turn of a chat."""
    files = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    uses_start_end = bool(original.get("mm_use_im_start_end"))
    return _place_tokens(directory, tuple(path.stat().st_mtime_ns for path in files), uses_start_end)


@lru_cache(maxsize=8)  # pipelines read a configuration several times, and a big vocabulary takes seconds
def _place_tokens(directory: Path, times: tuple[int, ...], uses_start_end: bool) -> dict[str, int | list[list[int]]]:
    tokenizer, _ = convert_tokenizer(directory)
    ids = {"image_token_id": tokenizer.image_token_id, "video_token_id": tokenizer.video_token_id}
    try:
        template = choose_chat_template(None, tokenizer, {"mm_use_im_start_end": uses_start_end})
    except ValueError:  # a model can be loaded without knowing how its chats are written
        return ids
    return ids | find_turn_headers(tokenizer, template)


def read_dtype(original: dict) -> torch.dtype:
    """
    The authors' `torch_dtype`; older files write `torch.float16` for `float16`.

    Raises:
        ValueError: no dtype of weights.
    """
    name = original.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"config.json has `torch_dtype` {name!r}, but weights are float32, float16 or bfloat16.")
    return dtype


def read_tower_config(name_or_path: str) -> CLIPVisionConfig:
    """
    Raises:
        ValueError: the tower is no CLIP, or one that contradicts itself.
    """
    try:
        return CLIPVisionConfig.from_pretrained(name_or_path)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{name_or_path} describes no CLIP. {error.__cause__ or error}") from error


def find_tower(original: dict, checkpoint: str | os.PathLike) -> str:
    """
    Directory or Hub repository of the checkpoint's tower; a relative path is relative to the checkpoint.

    Raises:
        ValueError: the configuration names none.
    """
    name = original.get("mm_vision_tower")
    if not name or not isinstance(name, str):
        raise ValueError(
            f"The configuration of {checkpoint} names no `mm_vision_tower` (it is {name!r}). {CONVERT_HINT}"
        )
    beside = Path(checkpoint) / name
    return str(beside.resolve()) if beside.is_dir() else name


def load_original(
    load: Callable[..., tuple[PreTrainedModel, dict]],
    name_or_path: str | os.PathLike,
    original: dict,
    *args,
    config: PreTrainedConfig | None = None,
    **kwargs,
) -> tuple[PreTrainedModel, dict]:
    """
    A model from the authors' layout. Weights are renamed while they load; a tower that is not among them comes from
    where `mm_vision_tower` says.

    Args:
        load: `from_pretrained` of a class whose weights are renamed as the table of names says.
        original: the checkpoint's config.json.

    Returns:
        The model and what `output_loading_info=True` tells of it.

    Raises:
        ValueError: weights are missing or too many.
    """
    if not isinstance(config, LlavaMiniConfig):
        config = LlavaMiniOriginalConfig.from_dict(original, name_or_path=name_or_path)
    kwargs.setdefault("ignore_mismatched_sizes", True)  # refused below, with their names
    model, info = load(name_or_path, *args, config=config, output_loading_info=True, **kwargs)
    prefix = "model.vision_tower."
    absent = {name for name in info["missing_keys"] if name.startswith(prefix)}
    if absent:
        tower = CLIPVisionModel.from_pretrained(find_tower(original, name_or_path), dtype=model.dtype).state_dict()
        own = model.model.vision_tower.state_dict()
        with torch.no_grad():
            for name in absent:
                own[name.removeprefix(prefix)].copy_(tower[name.removeprefix(prefix)])
    info["missing_keys"] = set(info["missing_keys"]) - absent
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ValueError(
                f"{name_or_path} does not load as a LLaVA-Mini checkpoint: {kind.replace('_', ' ')} such as "
                f"{sorted(info[kind], key=str)[0]!r}. Download it again. {CONVERT_HINT}"
            )
    return model, info


__all__ = ["LlavaMiniOriginalConfig"]
