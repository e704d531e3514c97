# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Hours of video in bounded memory: frames are decoded, resized and turned into pixels a chunk at a time, in a background
thread while the model works on the chunk before. Nothing of a frame stays but its C*C vision tokens.

    inputs = prepare_streamed_inputs(processor, messages, show_progress=True)
    ids = model.generate(**inputs.to(model.device), max_new_tokens=64)
"""

import os
import queue
import threading
from collections.abc import Iterator

import torch
from tqdm.auto import tqdm
from transformers import BatchFeature, ProcessorMixin

from .video_processing_llava_mini import (
    LlavaMiniVideoProcessor,
    iterate_frames,
    probe_video,
    resize_nearest,
    upright_pixels,
)


DEFAULT_FRAMES_PER_CHUNK = 16
# Chunks decoded ahead of the model: enough to overlap, little to hold.
CHUNKS_AHEAD = 2


class VideoStream:
    """
    One video file as chunks of pixels `(n, K, 3, height, width)`; iterating reads it from the start.

    Args:
        source (`str`, `bytes` or `os.PathLike`): path, URL, base64 or bytes of a video.
        video_processor (`LlavaMiniVideoProcessor`): sampling rule, crops and pixels.
        fps (`float`, *optional*), num_frames (`int`, *optional*): as the video processor's; its own by default.
        frames_per_chunk (`int`): frames turned into pixels at a time.
        show_progress (`bool`): whether to draw a progress bar of frames while iterating.

    Attributes:
        num_frames (`int`): frames that will come.
        duration (`float`, *optional*): seconds, when the frame rate is known.

    Raises:
        ValueError: no video that can be read; while iterating, one that ends early or can't be decoded, with the time.
    """

    def __init__(
        self,
        source: str | bytes | os.PathLike,
        video_processor: LlavaMiniVideoProcessor,
        fps: float | None = None,
        num_frames: int | None = None,
        frames_per_chunk: int = DEFAULT_FRAMES_PER_CHUNK,
        show_progress: bool = False,
    ):
        if frames_per_chunk < 1:
            raise ValueError(f"`frames_per_chunk` is {frames_per_chunk}, but has to be at least 1.")
        self.source = source
        self.video_processor = video_processor
        self.frames_per_chunk = frames_per_chunk
        self.show_progress = show_progress
        self.metadata = probe_video(source)
        self.indices = video_processor.sample_frames(self.metadata, fps=fps, num_frames=num_frames).tolist()

    @property
    def num_frames(self) -> int:
        """Frames that will come."""
        return len(self.indices)

    @property
    def duration(self) -> float | None:
        """Seconds, when the frame rate is known."""
        return self.metadata.total_num_frames / self.metadata.fps if self.metadata.fps else None

    def __iter__(self) -> Iterator[torch.Tensor]:
        ready: queue.Queue = queue.Queue(maxsize=CHUNKS_AHEAD)
        stop = threading.Event()
        worker = threading.Thread(target=self._fill, args=(ready, stop), daemon=True)
        worker.start()
        try:
            with tqdm(total=self.num_frames, unit="frame", disable=not self.show_progress) as bar:
                while (item := ready.get()) is not None:
                    if isinstance(item, Exception):
                        raise item
                    yield item
                    bar.update(len(item))
        finally:
            # A reader that leaves early must not leave the worker waiting for room.
            stop.set()
            while worker.is_alive():
                if not ready.empty():
                    ready.get()
                worker.join(timeout=0.01)

    def _fill(self, ready: queue.Queue, stop: threading.Event):
        """The worker: chunks, then None; or the error that ended it."""
        try:
            for chunk in self._chunks():
                ready.put(chunk)
                if stop.is_set():
                    return
            ready.put(None)
        except Exception as error:  # noqa: BLE001 (handed to the reader, whatever it is)
            ready.put(error)

    def _chunks(self) -> Iterator[torch.Tensor]:
        frames: list[torch.Tensor] = []
        for frame in self._wanted_frames():
            frames.append(frame)
            if len(frames) == self.frames_per_chunk:
                yield self._to_pixels(frames)
                frames = []
        if frames:
            yield self._to_pixels(frames)

    def _wanted_frames(self) -> Iterator[torch.Tensor]:
        """The sampled frames `(3, height, width)` in order, a frame that is wanted twice coming twice."""
        size = None if self.video_processor.keep_aspect_ratio else self.video_processor.crop_size
        wanted, seen = 0, -1
        for seen, frame in enumerate(iterate_frames(self.source)):
            if seen != self.indices[wanted]:
                continue
            pixels = upright_pixels(frame)
            pixels = pixels if size is None else resize_nearest(pixels, size)
            while wanted < self.num_frames and self.indices[wanted] == seen:
                yield pixels
                wanted += 1
            if wanted == self.num_frames:
                return
        raise ValueError(
            f"The video ends early, at {self._time(seen + 1)}: frame {self.indices[wanted]} of "
            f"{self.metadata.total_num_frames} ({self._time(self.indices[wanted])}) is wanted, but only {seen + 1} can "
            "be decoded. Repair the file by re-encoding, or sample fewer frames."
        )

    def _time(self, frame: int) -> str:
        return f"{frame / self.metadata.fps:.2f} s" if self.metadata.fps else f"frame {frame}"

    def _to_pixels(self, frames: list[torch.Tensor]) -> torch.Tensor:
        output = self.video_processor(
            torch.stack(frames), do_sample_frames=False, input_data_format="channels_first", return_tensors="pt"
        )
        return output["pixel_values_videos"][0]


def prepare_streamed_inputs(
    processor: ProcessorMixin,
    conversation: list[dict],
    fps: float | None = None,
    num_frames: int | None = None,
    frames_per_chunk: int = DEFAULT_FRAMES_PER_CHUNK,
    show_progress: bool = False,
) -> BatchFeature:
    """
    `apply_chat_template` for one conversation whose videos are streamed.

    Args:
        processor (`LlavaMiniProcessor`).
        conversation: messages; videos as `{"type": "video", "path" | "url" | "video": source}`, images likewise.
        fps, num_frames, frames_per_chunk, show_progress: see `VideoStream`.

    Returns:
        Model inputs with `pixel_values_videos` a list of `VideoStream`, one a video.

    Raises:
        ValueError: a video or image that can't be read, or that is given in no known way.
    """
    parts = [p for message in conversation if not isinstance(message["content"], str) for p in message["content"]]
    streams = [
        VideoStream(_source(part), processor.video_processor, fps, num_frames, frames_per_chunk, show_progress)
        for part in parts
        if part["type"] == "video"
    ]
    images = [_source(part) for part in parts if part["type"] in ("image", "image_url")]
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    pieces = text.split(processor.video_token)
    text = pieces[0]
    for stream, piece in zip(streams, pieces[1:], strict=True):
        text += processor.video_token * (stream.num_frames * processor.num_image_tokens) + piece
    text = text.replace(processor.image_token, processor.image_token * processor.num_image_tokens)
    # The template writes the first token itself.
    inputs = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    if images:
        images = processor.image_processor.fetch_images(images)
        inputs["pixel_values"] = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    if streams:
        inputs["pixel_values_videos"] = streams
    return BatchFeature(inputs)


def _source(part: dict):
    for name in ("path", "url", "base64", "image", "video"):
        if name in part:
            return part[name]
    if "image_url" in part:
        return part["image_url"]["url"]
    raise ValueError(f"A part of type {part['type']!r} has no source: give it a 'path', 'url' or {part['type']!r}.")


__all__ = ["VideoStream", "prepare_streamed_inputs"]
