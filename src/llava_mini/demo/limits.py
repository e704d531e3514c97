# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What a visitor may do."""

import re
from dataclasses import dataclass


MEBIBYTE = 2**20


class Refusal(Exception):
    """What is not answered, in words for the visitor: what came, what was expected, what to do. Holds no path."""


@dataclass(frozen=True)
class Limits:
    """
    Args:
        max_upload_size (`str`): bytes of a file, as gradio writes them ("32mb").
        max_files (`int`): pictures and clips of a message.
        max_pixels (`int`): of a message's pictures together, and of a clip's frame; a phone's 50 megapixels pass.
        max_clip_frames (`int`): frames in the files of a message's clips, all of which have to be decoded to reach the
            sampled ones: 2 minutes at 30 frames a second.
        max_frames (`int`): frames that are taken from a message's clips.
        max_characters (`int`): of a question and of the system message.
        max_new_tokens (`int`): of an answer.
        queue_size (`int`): questions that wait; whoever comes later is told to try again.
        max_visitors (`int`): whose pictures are kept; the one who was silent longest makes room.
        max_kept_bytes (`int`): of all that is kept for follow-up questions, likewise.
    """

    max_upload_size: str = "32mb"
    max_files: int = 8
    max_pixels: int = 64_000_000
    max_clip_frames: int = 3600
    max_frames: int = 64
    max_characters: int = 2000
    max_new_tokens: int = 512
    queue_size: int = 16
    max_visitors: int = 64
    max_kept_bytes: int = 2048 * MEBIBYTE


def upload_size(value: str) -> str:
    """
    A size as gradio takes it.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[1-9]\d*\s*(b|kb|mb|gb)", value.strip().lower()):
        raise ValueError(f"{value!r} is no size: write 500kb, 32mb or 1gb")
    return value.strip().lower()
