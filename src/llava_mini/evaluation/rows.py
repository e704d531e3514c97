# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions of an evaluation harness as rows of a batch: prompts, pictures, streamed videos."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from llava_mini.video_streaming import DEFAULT_FRAMES_PER_CHUNK, VideoStream


IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp")
# What is kept of pictures that several questions of a batch are about takes 9 MiB a picture or frame at the release's
# size; videos of more frames in all are read again for each question.
MAX_SHARED_FRAMES = 64


@dataclass
class Visual:
    """
    A picture or a video.

    Args:
        modality (`str`): "image" or "video".
        source (`PIL.Image.Image` or `VideoStream`).
        key (`str`): equal for equal content.
    """

    modality: str
    source: Any
    key: str


@dataclass
class Row:
    """
    One question.

    Args:
        text (`str`): prompt with the placeholders of all its vision tokens, and the answer to be scored, if any.
        ids (`list[int]`): its tokens.
        visuals (`list[Visual]`): in order.
        answer (`list[int]`): 1 on the tokens of the answer to be scored.
    """

    text: str
    ids: list[int]
    visuals: list[Visual] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)


class RowReader:
    """
    Makes rows of messages, and batches of rows.

    Args:
        processor (`LlavaMiniProcessor`).
        fps (`float`, *optional*): frames a second of videos; by default the checkpoint's, 1.
        max_frames (`int`, *optional*): videos that would have more give so many, evenly.
        frames_per_chunk (`int`): frames of a video that are decoded at a time.
        system_prompt (`str`, *optional*): instead of the chat template's own.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        fps: float | None = None,
        max_frames: int | None = None,
        frames_per_chunk: int = DEFAULT_FRAMES_PER_CHUNK,
        system_prompt: str | None = None,
    ):
        self.processor = processor
        self.fps = fps
        self.max_frames = max_frames
        self.frames_per_chunk = frames_per_chunk
        self.system_prompt = system_prompt

    def read(
        self,
        messages: list[dict],
        answer: str | None = None,
        chat_template: str | None = None,
        max_frames: int | None = None,
    ) -> Row:
        """
        A conversation as a row.

        Args:
            messages: with `{"type": "text" | "image" | "video", "text" | "url": ...}` as parts, as lmms-eval's.
            answer (`str`, *optional*): what the assistant says, to be scored; without it the prompt of an answer.
            chat_template (`str`, *optional*): instead of the processor's.
            max_frames (`int`, *optional*): instead of the reader's.

        Raises:
            ValueError: something that LLaVA-Mini does not read.
        """
        visuals, chat = [], []
        if self.system_prompt is not None:
            chat.append({"role": "system", "content": self.system_prompt})
        for message in messages:
            content = []
            for part in message["content"]:
                if part["type"] == "text":
                    content.append({"type": "text", "text": part["text"]})
                else:
                    visuals.append(self._open(part, max_frames or self.max_frames))
                    content.append({"type": visuals[-1].modality})
            chat.append({"role": message["role"], "content": content})
        prompt = self._render(chat, visuals, chat_template, add_generation_prompt=True)
        if answer is None:
            return Row(prompt, self._tokenize(prompt)["input_ids"], visuals)
        text = self._render([*chat, {"role": "assistant", "content": answer.strip()}], visuals, chat_template)
        if not text.startswith(prompt):
            raise ValueError(
                "The chat template writes another prompt before an answer than without it: can't score it."
            )
        encoded = self._tokenize(text, return_offsets_mapping=True)
        is_answer = [int(end > len(prompt)) for _, end in encoded["offset_mapping"]]
        return Row(text, encoded["input_ids"], visuals, is_answer)

    def _tokenize(self, text: str, **options) -> dict:
        # The template writes the first token itself.
        return self.processor.tokenizer(text, add_special_tokens=False, **options)

    def _render(self, chat: list[dict], visuals: list[Visual], chat_template: str | None, **options) -> str:
        processor = self.processor
        text = processor.apply_chat_template(chat, chat_template, tokenize=False, **options)
        pieces = text.split(processor.video_token)
        videos = [visual.source for visual in visuals if visual.modality == "video"]
        text = pieces[0]
        for video, piece in zip(videos, pieces[1:], strict=True):
            text += processor.video_token * (video.num_frames * processor.num_image_tokens) + piece
        return text.replace(processor.image_token, processor.image_token * processor.num_image_tokens)

    def _open(self, part: dict, max_frames: int | None) -> Visual:
        source = part["url"]
        if part["type"] == "image":
            image = source if isinstance(source, Image.Image) else self.processor.image_processor.fetch_images(source)
            facts = f"{image.mode} {image.size} ".encode()
            return Visual("image", image, hashlib.sha256(facts + image.tobytes()).hexdigest())
        if part["type"] != "video" or not isinstance(source, (str, os.PathLike)):
            raise ValueError(
                f"A question comes with something of type {part['type']!r}, given as {source!r:.80}: LLaVA-Mini reads "
                "text, images, and videos that are given as a file, whole."
            )
        video_processor = self.processor.video_processor
        chunks = {"frames_per_chunk": self.frames_per_chunk}
        if os.path.isdir(source):
            stream = VideoStream(frame_files(source), video_processor, **chunks)
        else:
            stream = VideoStream(source, video_processor, self.fps, **chunks)
            if max_frames is not None and stream.num_frames > max_frames:
                stream = VideoStream(source, video_processor, num_frames=max_frames, **chunks)
        changed = os.stat(source).st_mtime_ns if os.path.exists(source) else 0
        return Visual("video", stream, f"{source} {changed} {stream.num_frames}")

    def collate(self, rows: list[Row]) -> dict:
        """
        Rows as one batch, padded on the left: `input_ids`, `attention_mask`, `pixel_values`, `pixel_values_videos`, and
        `text_fusion_mask` and `answer_mask` when there are answers to score.
        """
        longest = max(len(row.ids) for row in rows)
        pad = self.processor.tokenizer.pad_token_id
        ids, mask, answers = [], [], []
        for row in rows:
            padding = longest - len(row.ids)
            ids.append([pad or 0] * padding + row.ids)
            mask.append([0] * padding + [1] * len(row.ids))
            answers.append([0] * padding + row.answer)
        batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if rows[0].answer:
            # The answer's tokens are read raw, as what `generate` makes is.
            batch["answer_mask"] = torch.tensor(answers)
            batch["text_fusion_mask"] = 1 - batch["answer_mask"]
        return batch | self._pixels([visual for row in rows for visual in row.visuals])

    def _pixels(self, visuals: list[Visual]) -> dict:
        images = [visual.source for visual in visuals if visual.modality == "image"]
        videos = [visual.source for visual in visuals if visual.modality == "video"]
        pixels: dict = {}
        if images:
            pixels["pixel_values"] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        if videos:
            pixels["pixel_values_videos"] = videos
        return pixels

    def share(self, model: PreTrainedModel, rows: list[Row], vision_memory_budget: int | str | None) -> dict:
        """
        As `collate`, but pictures and short videos that several of the rows are about are encoded once: they come as
        `vision_context` instead of pixels. Nothing changes when each row has its own.
        """
        visuals = [visual for row in rows for visual in row.visuals]
        distinct = {visual.key: visual for visual in visuals}
        frames = [visual.source.num_frames for visual in distinct.values() if visual.modality == "video"]
        if len(distinct) == len(visuals) or sum(frames) > MAX_SHARED_FRAMES:
            return self.collate(rows)
        batch = self.collate([Row(row.text, row.ids, answer=row.answer) for row in rows])
        context = model.encode_visuals(
            **self._pixels(list(distinct.values())),
            input_ids=self._one_row_each(list(distinct.values())),
            vision_memory_budget=vision_memory_budget,
        )
        order = list(distinct)
        batch["vision_context"] = context[[order.index(visual.key) for visual in visuals]]
        return batch

    def _one_row_each(self, visuals: list[Visual]) -> torch.Tensor:
        """Ids that say that each of the visuals belongs to a row of its own."""
        tokens = {"image": self.processor.image_token_id, "video": self.processor.video_token_id}
        count = self.processor.num_image_tokens
        lengths = [count * (1 if visual.modality == "image" else visual.source.num_frames) for visual in visuals]
        ids = torch.full((len(visuals), max(lengths)), self.processor.tokenizer.pad_token_id or 0)
        for row, visual, length in zip(ids, visuals, lengths):
            row[:length] = tokens[visual.modality]
        return ids


def frame_files(folder: str | os.PathLike) -> list[str]:
    """
    The pictures in a folder that is a video, in the order of their names.

    Raises:
        ValueError: there is none.
    """
    files = sorted(str(file) for file in Path(folder).iterdir() if file.suffix.lower() in IMAGE_FILES)
    if not files:
        raise ValueError(f"{folder} is a folder without {', '.join(IMAGE_FILES)} files, so it is no video.")
    return files
