# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The CLIP tower of a checkpoint: inside it, or where `mm_vision_tower` says."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig

from llava_mini.configuration_llava_mini import DEFAULT_VISION_CONFIG
from llava_mini.conversion.mapping.key_mapping import ORIGINAL_TOWER
from llava_mini.conversion.reading.checkpoint_io import (
    WEIGHT_FILE_PATTERNS,
    Tensors,
    find_local,
    locate,
    read_checkpoint,
    read_json,
)


TOWER_FILES = ("config.json", "preprocessor_config.json", *WEIGHT_FILE_PATTERNS)
# The other half of a whole CLIP, and what the two halves are compared with.
NOT_THE_TOWER = re.compile(r"^(text_model|text_projection|visual_projection|logit_scale)\b")


@dataclass(frozen=True)
class VisionTower:
    """
    Args:
        config: the tower's configuration.
        tensors: its tensors under the authors' names; empty when the checkpoint holds them itself.
        ignored: why tensors of its files are not needed.
        preprocessor: settings of its image processor, as far as known.
        origin: where all of this comes from, in words.
        directory: the same as a directory, if it is one.
    """

    config: CLIPVisionConfig
    tensors: Tensors
    ignored: dict[str, str]
    preprocessor: dict
    origin: str
    directory: Path | None = None


def find_vision_tower(
    checkpoint: Path, original_config: dict, tensors: Tensors, vision_tower: str | None
) -> VisionTower:
    """
    The tower for the authors' checkpoint in the directory `checkpoint`.

    Args:
        tensors: what the checkpoint holds; its own tower, if there is one, is the one that counts.
        vision_tower: directory or repository to use instead of the one `mm_vision_tower` names.

    Raises:
        ValueError: no tower can be found, or it doesn't fit the checkpoint.
    """
    inside = {key.removeprefix(ORIGINAL_TOWER): t for key, t in tensors.items() if key.startswith(ORIGINAL_TOWER)}
    name = vision_tower or original_config.get("mm_vision_tower")
    if not isinstance(name, str | None):
        raise ValueError(
            f"config.json has {name!r} as `mm_vision_tower`, where a name should be: say which tower it is with "
            "--vision-tower DIR_OR_REPO."
        )
    local = name and find_local(name, checkpoint)
    if inside and not local and not vision_tower and _is_default_tower(inside):
        config = CLIPVisionConfig(**{k: v for k, v in DEFAULT_VISION_CONFIG.items() if k != "model_type"})
        tower = VisionTower(config, {}, {}, {}, "CLIP ViT-L/14-336, going by the shapes of the checkpoint's tower")
    elif not name:
        raise ValueError("config.json names no `mm_vision_tower`: say which it is with --vision-tower DIR_OR_REPO.")
    else:
        tower = read_vision_tower(name, checkpoint, needs_weights=not inside)
    expected_width = original_config.get("mm_hidden_size")
    if expected_width not in (None, tower.config.hidden_size):
        raise ValueError(
            f"The vision tower ({tower.origin}) is {tower.config.hidden_size} wide, but the checkpoint was trained "
            f"with one of width {expected_width} (`mm_hidden_size`): pass the right one with --vision-tower."
        )
    return tower


def _is_default_tower(tower: Tensors) -> bool:
    default = DEFAULT_VISION_CONFIG
    width, patch, last = default["hidden_size"], default["patch_size"], default["num_hidden_layers"] - 1
    expected = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": ((default["image_size"] // patch) ** 2 + 1, width),
        f"encoder.layers.{last}.mlp.fc1.weight": (default["intermediate_size"], width),
    }
    is_deeper = any(key.startswith(f"encoder.layers.{last + 1}.") for key in tower)
    return not is_deeper and all(key in tower and tower[key].shape == shape for key, shape in expected.items())


def read_vision_tower(name: str, relative_to: Path, needs_weights: bool = True) -> VisionTower:
    """
    The CLIP tower in a directory (seen from `relative_to` or from here) or Hub repository.

    Raises:
        ValueError: there is no such thing, or it is no CLIP.
    """
    directory = locate(name, relative_to, TOWER_FILES, "pass the vision tower with --vision-tower DIR_OR_REPO")
    config = read_json(directory / "config.json")
    if isinstance(config.get("vision_config"), dict):  # a whole CLIP has both halves' settings
        config = config["vision_config"]
    if config.get("model_type") != "clip_vision_model":
        raise ValueError(
            f"The vision tower in {directory} is of type {config.get('model_type')!r}, but has to be a CLIP: pass "
            "another with --vision-tower."
        )
    try:
        vision_config = CLIPVisionConfig.from_dict(config)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{directory / 'config.json'} describes no CLIP. {error.__cause__ or error}") from error
    tensors: Tensors = {}
    ignored: dict[str, str] = {}
    for key, tensor in (read_checkpoint(directory) if needs_weights else {}).items():
        if NOT_THE_TOWER.match(key):
            ignored[f"{name}: {key}"] = "belongs to CLIP's text half or to the comparison with it"
        else:
            tensors[ORIGINAL_TOWER + key.removeprefix("vision_model.")] = tensor
    has_preprocessor = (directory / "preprocessor_config.json").is_file()
    preprocessor = read_json(directory / "preprocessor_config.json") if has_preprocessor else {}
    return VisionTower(vision_config, tensors, ignored, preprocessor, name, directory)
