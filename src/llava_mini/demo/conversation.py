# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""From what the page shows to what the model is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from llava_mini.demo.limits import Limits, Refusal
from llava_mini.image_reading_llava_mini import open_image
from llava_mini.serving.exchange import RefusedRequest
from llava_mini.serving.media import image_size, video_size


VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm")
# Characters of a decoder's own words that a visitor is told.
MAX_REASON = 200


@dataclass(frozen=True)
class Asked:
    """
    One conversation up to its newest question.

    Args:
        files (`tuple[str, ...]`): of the pictures and clips it is about, in the upload folder.
        turns (`tuple[tuple[str, str], ...]`): earlier questions with their answers.
        question (`str`).
        system (`str`): system message; empty for the checkpoint's own.
        is_new (`bool`): whether the files came with this question and others were talked about before.
    """

    files: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    question: str
    system: str = ""
    is_new: bool = False


def read_history(
    message: dict[str, Any], history: list[dict[str, Any]], system: str, remember: bool, limits: Limits
) -> Asked:
    """
    A message and what the page shows above it. As in the authors' demo, new pictures begin a new conversation.

    Args:
        message (`dict`): "text" and "files", as gradio's multimodal text box gives them.
        history: messages of gradio's chat, OpenAI's with lists of contents. Those with a title are ours, not the
            model's: figures and refusals. A question without an answer is left out.
        system (`str`): system message; empty for the checkpoint's own.
        remember (`bool`): whether what was said about the same pictures belongs to the question.
        limits (`Limits`).

    Raises:
        Refusal: nothing is asked, or more than the limits allow.
    """
    question, files = (message.get("text") or "").strip(), tuple(map(_path, message.get("files") or ()))
    for name, text in (("question", question), ("system message", system)):
        if len(text) > limits.max_characters:
            raise Refusal(
                f"The {name} has {len(text)} characters, and {limits.max_characters} are allowed: shorten it."
            )
    if not question:
        raise Refusal("There is no question: write one below your picture.")
    if len(files) > limits.max_files:
        raise Refusal(f"These are {len(files)} files, and a message may have {limits.max_files}: leave some out.")
    earlier, turns = _read_turns(history)
    if files:
        return Asked(files, (), question, system, is_new=bool(turns))
    return Asked(earlier, tuple(turns) if remember else (), question, system)


def _read_turns(history: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The last answered files, and the questions about them with their answers."""
    files: tuple[str, ...] = ()
    turns: list[tuple[str, str]] = []
    asked: tuple[tuple[str, ...], str] | None = None
    for message in history:
        texts, paths = _read_contents(message["content"])
        if message["role"] == "user":
            # A picture and its question may come as two messages.
            before = asked or ((), "")
            asked = (before[0] + paths, " ".join(filter(None, (before[1], *texts))))
        elif not (message.get("metadata") or {}).get("title") and asked is not None and any(texts):
            if asked[0]:
                files, turns = asked[0], []
            turns.append((asked[1], "\n".join(texts)))
            asked = None
        elif (message.get("metadata") or {}).get("title") and asked is not None:
            asked = None  # it was refused
    return files, turns


def _read_contents(content: Any) -> tuple[list[str], tuple[str, ...]]:
    parts = content if isinstance(content, list) else [content]
    texts = [
        part if isinstance(part, str) else part["text"] for part in parts if isinstance(part, str) or "text" in part
    ]
    files = [part.get("file", part) for part in parts if isinstance(part, dict) and ("file" in part or "path" in part)]
    return [text.strip() for text in texts if text and text.strip()], tuple(map(_path, files))


def _path(file: Any) -> str:
    return file["path"] if isinstance(file, dict) else str(file)


@dataclass(frozen=True)
class Media:
    """
    What a conversation is about, in memory.

    Args:
        images (`list[PIL.Image.Image]`), videos (`list[bytes]`): each kind in order.
        kinds (`list[str]`): "image" or "video", in the order of the files.
    """

    images: list[PIL.Image.Image]
    videos: list[bytes]
    kinds: list[str]


def read_media(files: tuple[str, ...], limits: Limits) -> Media:
    """
    Reads and checks files, headers first, so that nothing too large is decoded.

    Raises:
        Refusal: one can't be read or is too large.
    """
    media = Media([], [], [])
    pixels = frames = 0
    for number, file in enumerate(files, 1):
        name = f"File {number} ({Path(file).name[:40]})"
        try:
            content = Path(file).read_bytes()
            if Path(file).suffix.lower() in VIDEO_SUFFIXES:
                width, height, count = video_size(content, "", limits.max_clip_frames - frames)
                frames += count
                media.videos.append(content)
                media.kinds.append("video")
            else:
                width, height = image_size(content, "")
                pixels += width * height
        except RefusedRequest as error:
            raise Refusal(f"{name}: {error}") from error
        except OSError as error:
            raise Refusal(f"{name} is gone: add it again.") from error
        if max(pixels, width * height) > limits.max_pixels:
            raise Refusal(f"{name}: {width}x{height} are more pixels than the {limits.max_pixels} allowed: shrink it.")
        if frames > limits.max_clip_frames:
            raise Refusal(f"{name}: clips may have {limits.max_clip_frames} frames, this has more: cut it.")
        if Path(file).suffix.lower() not in VIDEO_SUFFIXES:
            media.images.append(_decode(content, name))
            media.kinds.append("image")
    return media


def _decode(content: bytes, name: str) -> PIL.Image.Image:
    try:
        return open_image(content, max_pixels=None)
    except ValueError as error:
        raise Refusal(f"{name} is damaged: {str(error)[:MAX_REASON]}") from error


def to_messages(asked: Asked, media: Media) -> list[dict[str, Any]]:
    """The conversation as the processor takes it."""
    images, videos = iter(media.images), iter(media.videos)
    content = [{"type": kind, kind: next(images if kind == "image" else videos)} for kind in media.kinds]
    questions = [*(question for question, _ in asked.turns), asked.question]
    messages: list[dict[str, Any]] = [{"role": "system", "content": asked.system}] if asked.system else []
    for number, question in enumerate(questions):
        parts = [*(content if number == 0 else ()), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts})
        if number < len(asked.turns):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": asked.turns[number][1]}]})
    return messages
