# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor of the authors' checkpoints as they are, which hold its parts and settings in several places."""

import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import is_torchvision_available

from .configuration_llava_mini import LlavaMiniConfig
from .image_processing_pil_llava_mini import LlavaMiniImageProcessorPil
from .original_llava_mini import CONVERT_HINT, LlavaMiniOriginalConfig, find_tower
from .original_tokenizer_llava_mini import convert_tokenizer, tokenizer_directory
from .processing_llava_mini import LlavaMiniProcessor


if is_torchvision_available():
    from .image_processing_llava_mini import LlavaMiniImageProcessor
    from .video_processing_llava_mini import LlavaMiniVideoProcessor


CHAT_TEMPLATES = Path(__file__).parent / "chat_templates"
CHAT_TEMPLATE_NAMES = ("llama3", "vicuna_v1")
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


def convert_processor(
    config: LlavaMiniConfig,
    original_config: dict,
    tokenizer: PreTrainedTokenizerBase,
    preprocessor: dict,
    template: str,
    backend: str | None = None,
) -> LlavaMiniProcessor:
    """
    The processor for a converted checkpoint.

    Args:
        preprocessor: the tower's `preprocessor_config.json`, or nothing for CLIP's settings at the tower's size.
        template: text of the chat template.
        backend: "pil" for the authors' exact image pixels, by default "torchvision".

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
    # Without torchvision images are read by Pillow, and videos are not.
    has_torchvision = is_torchvision_available()
    is_pil = backend == "pil" or not has_torchvision
    image_processor_class = LlavaMiniImageProcessorPil if is_pil else LlavaMiniImageProcessor
    return LlavaMiniProcessor(
        image_processor=image_processor_class(**settings, do_pad=original_config.get("image_aspect_ratio") == "pad"),
        tokenizer=tokenizer,
        video_processor=LlavaMiniVideoProcessor(**settings) if has_torchvision else None,
        chat_template=template,
        compressor_size=config.compressor_size,
    )


def choose_chat_template(name: str | None, tokenizer: PreTrainedTokenizerBase, original_config: dict) -> str:
    """
    The text of a chat template.

    Args:
        name: one of ours or a file; by default the one whose tokens the tokenizer has.

    Raises:
        ValueError: no such template, none that fits, or one that leaves out tokens the model was trained with.
    """
    if name is None:
        if "<|start_header_id|>" in tokenizer.get_vocab():
            name = "llama3"
        elif tokenizer.eos_token == "</s>":
            name = "vicuna_v1"
        else:
            raise ValueError(
                "The tokenizer has neither Llama 3's nor Vicuna's tokens: say how a chat is written with "
                f"--chat-template, one of {', '.join(CHAT_TEMPLATE_NAMES)} or a Jinja file."
            )
    path = CHAT_TEMPLATES / f"{name}.jinja" if name in CHAT_TEMPLATE_NAMES else Path(name)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: --chat-template takes {', '.join(CHAT_TEMPLATE_NAMES)} or a file.")
    template = path.read_text(encoding="utf-8")
    if original_config.get("mm_use_im_start_end") and "<im_start>" not in template:
        raise ValueError(
            "The checkpoint was trained with <im_start> and <im_end> around images (`mm_use_im_start_end`): pass a "
            "template that writes them with --chat-template FILE."
        )
    return template


def load_original_processor(
    name_or_path: str | os.PathLike, original: dict, backend: str | None = None, **hub_options
) -> LlavaMiniProcessor:
    """
    The processor of the authors' checkpoint, as the converter writes it.

    Args:
        original: the checkpoint's config.json.
        backend: as of `LlavaMiniProcessor.from_pretrained`.
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
    return convert_processor(config, original, tokenizer, preprocessor, template, backend)


__all__ = ["load_original_processor"]
