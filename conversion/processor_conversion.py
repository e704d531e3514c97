# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor that belongs to a converted checkpoint, and its chat template."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llava_mini import LlavaMiniConfig, LlavaMiniImageProcessor, LlavaMiniProcessor, LlavaMiniVideoProcessor


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
) -> LlavaMiniProcessor:
    """
    The processor for a converted checkpoint.

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
    return LlavaMiniProcessor(
        image_processor=LlavaMiniImageProcessor(**settings, do_pad=original_config.get("image_aspect_ratio") == "pad"),
        tokenizer=tokenizer,
        video_processor=LlavaMiniVideoProcessor(**settings),
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
