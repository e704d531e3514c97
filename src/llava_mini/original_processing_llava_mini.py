# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor of the authors' checkpoints as they are, which hold its parts and settings in several places."""

import os
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin

from .configuration_llava_mini import LlavaMiniConfig
from .original_llava_mini import CONVERT_HINT, LlavaMiniOriginalConfig, find_tower
from .original_tokenizer_llava_mini import choose_chat_template, convert_tokenizer, tokenizer_directory


# What the pixels depend on; the rest of a CLIP's preprocessor_config.json names classes.
PIXEL_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


@dataclass
class OriginalProcessor:
    """
    What the processor of the authors' checkpoint is made of.

    Args:
        tokenizer: with tokens for the places of images and videos.
        pixels (`dict`): settings of both the image and the video processor.
        do_pad (`bool`): whether images are padded to a square; videos never are.
        chat_template (`str`), compressor_size (`int`).
    """

    tokenizer: PreTrainedTokenizerBase
    pixels: dict
    do_pad: bool
    chat_template: str
    compressor_size: int


def describe_processor(
    config: LlavaMiniConfig,
    original_config: dict,
    tokenizer: PreTrainedTokenizerBase,
    preprocessor: dict,
    template: str,
) -> OriginalProcessor:
    """
    Args:
        preprocessor: the tower's `preprocessor_config.json`, or nothing for CLIP's settings at the tower's size.
        template: text of the chat template.

    Raises:
        ValueError: the preprocessor makes pixels of another size than the tower reads.
    """
    size = config.vision_config.image_size
    settings = {"size": size, "crop_size": size} | {k: preprocessor[k] for k in PIXEL_SETTINGS if k in preprocessor}
    if isinstance(settings["crop_size"], int):
        settings["crop_size"] = {"height": settings["crop_size"], "width": settings["crop_size"]}
    if settings["crop_size"] != {"height": size, "width": size}:
        raise ValueError(
            f"The vision tower's preprocessor_config.json crops to {settings['crop_size']}, but the tower reads "
            f"{size} x {size} pixels: pass a tower whose files belong together with --vision-tower."
        )
    settings["resolution_ratio"] = config.resolution_ratio
    do_pad = original_config.get("image_aspect_ratio") == "pad"
    return OriginalProcessor(tokenizer, settings, do_pad, template, config.compressor_size)


def read_original_processor(name_or_path: str | os.PathLike, original: dict, **hub_options) -> OriginalProcessor:
    """
    What the converter would write of the authors' checkpoint.

    Args:
        original: the checkpoint's config.json.
        hub_options: where on the Hub the checkpoint is.

    Raises:
        ValueError: a part can't be found, or the parts don't fit together.
    """
    directory = tokenizer_directory(name_or_path, **hub_options)
    if directory is None:
        raise ValueError(f"{name_or_path} has no tokenizer: download its files too. {CONVERT_HINT}")
    config = LlavaMiniOriginalConfig.from_dict(original, name_or_path=name_or_path, **hub_options)
    tokenizer, _ = convert_tokenizer(directory)
    try:
        preprocessor, _ = ImageProcessingMixin.get_image_processor_dict(find_tower(original, name_or_path))
    except OSError:  # a tower without one has CLIP's settings
        preprocessor = {}
    template = choose_chat_template(None, tokenizer, original)
    return describe_processor(config, original, tokenizer, preprocessor, template)


__all__ = ["OriginalProcessor", "read_original_processor"]
