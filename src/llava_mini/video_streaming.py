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

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import BatchFeature, ProcessorMixin
from transformers.video_utils import VideoInput, VideoMetadata

from .image_processing_pil_llava_mini import check_same_size
from .video_processing_llava_mini import LlavaMiniVideoProcessor
from .video_reading_llava_mini import open_video, resize_nearest


DEFAULT_FRAMES_PER_CHUNK = 16
# Chunks decoded ahead of the model: enough to overlap, little to hold.
CHUNKS_AHEAD = 2
# Cells along a thumbnail's side: 21 pixels of a 336-pixel frame each, a letter or a face on a screen.
THUMBNAIL_CELLS = 16
MAX_LEVEL = 255


class VideoStream:
    """
    One video as chunks of pixels `(n, K, 3, height, width)`, the video processor's; iterating reads it from the start.

    Args:
        source (`VideoInput`, `bytes` or `os.PathLike`):
            Path, URL, base64 or bytes of a video; or its frames, as images, arrays or the files of such.
        video_processor (`LlavaMiniVideoProcessor`): sampling rule, crops and pixels.
        fps (`float`, *optional*), num_frames (`int`, *optional*): as the video processor's; its own by default.
        frames_per_chunk (`int`): frames turned into pixels at a time.
        show_progress (`bool`): whether to draw a progress bar of frames while iterating.
        skip_still (`float`, *optional*): leaves out sampled frames that hardly differ from the last one kept: by at
            most so many grey levels, 0 to 255, see `measure_change`; 0 leaves out repetitions alone. The video is
            decoded once more for it, in bounded memory.

    Attributes:
        num_frames (`int`): frames that will come.
        times (`list[float]`, *optional*): when they are shown, in seconds, if that is known.
        duration (`float`, *optional*): seconds, when they are known.

    Raises:
        ValueError: no video that can be read, `skip_still` is no number of grey levels; while iterating, a video that
            is too damaged or changes its size.
    """

    def __init__(
        self,
        source: VideoInput | bytes | os.PathLike,
        video_processor: LlavaMiniVideoProcessor,
        fps: float | None = None,
        num_frames: int | None = None,
        frames_per_chunk: int = DEFAULT_FRAMES_PER_CHUNK,
        show_progress: bool = False,
        skip_still: float | None = None,
    ):
        check_skip_still(skip_still)
        if frames_per_chunk < 1:
            raise ValueError(f"`frames_per_chunk` is {frames_per_chunk}, but has to be at least 1.")
        # Nested as in a batch of chats: there a list of paths is one video's frames.
        videos = video_processor.flatten_videos([[source]])
        if len(videos) != 1:
            raise ValueError(f"Got {len(videos)} videos as one. Pass each by itself.")
        self.source = videos[0]
        self.video_processor = video_processor
        self.frames_per_chunk = frames_per_chunk
        self.show_progress = show_progress
        self._table = None
        if isinstance(self.source, (str, bytes, os.PathLike)):
            with open_video(self.source, video_processor.max_pixels) as video:
                self._table = video.survey()
            self.metadata = self._table.metadata
        elif len(self.source):
            self.metadata = VideoMetadata(total_num_frames=len(self.source))
        else:
            raise ValueError("The video has no frames. Leave it out.")
        self.metadata.frames_indices = video_processor.sample_frames(self.metadata, fps=fps, num_frames=num_frames)
        self.indices = self.metadata.frames_indices.tolist()
        if skip_still is not None:
            self.indices = self._find_changes(skip_still)
            self.metadata.frames_indices = np.array(self.indices)

    @property
    def num_frames(self) -> int:
        """Frames that will come."""
        return len(self.indices)

    @property
    def duration(self) -> float | None:
        """Seconds, when they are known."""
        return self.metadata.duration

    @property
    def times(self) -> list[float] | None:
        """Seconds at which the frames that will come are shown, when they are known."""
        return None if self._table is None else [float(time) for time in self.metadata.timestamps]

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
        processor = self.video_processor
        size = None if processor.keep_aspect_ratio else processor.crop_size
        if self._table is not None:
            with open_video(self.source, processor.max_pixels) as video:
                yield from video.read(self._table, self.indices, size, processor.min_decodable_share)
            return
        first = None
        for frame in processor.pick_frames(self.source, self.indices, processor.do_rescale, processor.max_pixels):
            first = frame if first is None else first
            check_same_size([first, frame])
            yield frame if size is None else resize_nearest(frame, size)

    def _find_changes(self, threshold: float) -> list[int]:
        """Those of the sampled frames that differ from the last one kept by more than `threshold`."""
        kept, last = [], None
        for index, frame in zip(self.indices, self._wanted_frames()):
            thumbnail = make_thumbnail(frame)
            if last is None or measure_change(last, thumbnail) > threshold:
                kept.append(index)
                last = thumbnail
        return kept

    def _to_pixels(self, frames: list[torch.Tensor]) -> torch.Tensor:
        output = self.video_processor(
            torch.stack(frames), do_sample_frames=False, input_data_format="channels_first", return_tensors="pt"
        )
        return output["pixel_values_videos"][0]


def make_thumbnail(frame: torch.Tensor) -> torch.Tensor:
    """A frame `(3, height, width)` in 8-bit as the mean colours of a raster of cells, `(3, cells, cells)`."""
    return nn.functional.adaptive_avg_pool2d(frame.float(), THUMBNAIL_CELLS)


def measure_change(before: torch.Tensor, after: torch.Tensor) -> float:
    """
    How far two thumbnails are apart: the largest change of a colour of any cell, in grey levels (0 to 255). The mean of
    a cell hardly sees noise; the largest of all sees what happens in a small part of the picture.
    """
    return float((after - before).abs().max())


def check_skip_still(skip_still: float | None) -> None:
    """
    Raises:
        ValueError: neither `None` nor a number of grey levels.
    """
    is_number = isinstance(skip_still, int | float) and not isinstance(skip_still, bool)
    if skip_still is not None and not (is_number and 0 <= skip_still < MAX_LEVEL):
        raise ValueError(
            f"`skip_still` is {skip_still!r}, but has to be a change in grey levels, from 0 (only repetitions are left "
            f"out) to below {MAX_LEVEL}."
        )


def prepare_streamed_inputs(
    processor: ProcessorMixin,
    conversation: list[dict],
    fps: float | None = None,
    num_frames: int | None = None,
    frames_per_chunk: int = DEFAULT_FRAMES_PER_CHUNK,
    show_progress: bool = False,
    skip_still: float | None = None,
) -> BatchFeature:
    """
    `apply_chat_template` for one conversation whose videos are streamed.

    Args:
        processor (`LlavaMiniProcessor`).
        conversation: messages as for `apply_chat_template`; a `"video"` may be frames too.
        fps, num_frames, frames_per_chunk, show_progress, skip_still: see `VideoStream`.

    Returns:
        Model inputs with `pixel_values_videos` a list of `VideoStream`, one a video.

    Raises:
        ValueError: a video or image that can't be read, or that is given in no known way; `skip_still` without a
            video.
    """
    parts = [p for message in conversation if not isinstance(message["content"], str) for p in message["content"]]
    options = (fps, num_frames, frames_per_chunk, show_progress, skip_still)
    streams = [
        VideoStream(_source(part, "video"), processor.video_processor, *options)
        for part in parts
        if part["type"] == "video"
    ]
    if skip_still is not None and not streams:
        raise ValueError(
            f"`skip_still` is {skip_still!r}, but the conversation has no video: it leaves out frames, never images."
        )
    images = [_source(part, "image") for part in parts if part["type"] in ("image", "image_url")]
    inputs = write_prompt(processor, conversation, [stream.num_frames for stream in streams])
    if images:
        images = processor.image_processor.fetch_images(images)
        inputs["pixel_values"] = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    if streams:
        inputs["pixel_values_videos"] = streams
    return inputs


def write_prompt(processor: ProcessorMixin, conversation: list[dict], num_frames: list[int]) -> BatchFeature:
    """
    The text side of a conversation, without reading its images and videos: all that a follow-up question needs.

    Args:
        processor (`LlavaMiniProcessor`).
        conversation: messages as for `apply_chat_template`.
        num_frames (`list[int]`): of each video.

    Returns:
        `input_ids` and `attention_mask` `(1, S)`.
    """
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    pieces = text.split(processor.video_token)
    text = pieces[0]
    for count, piece in zip(num_frames, pieces[1:], strict=True):
        text += processor.video_token * (count * processor.num_image_tokens) + piece
    text = text.replace(processor.image_token, processor.image_token * processor.num_image_tokens)
    # The template writes the first token itself.
    inputs = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    return BatchFeature({"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]})


def _source(part: dict, kind: str):
    for name in (kind, "url", "path", "base64", "image_url"):
        if part.get(name) is not None:
            source = part[name]
            # OpenAI's own form, and a frequent shortening of it.
            return source["url"] if name == "image_url" and isinstance(source, dict) else source
    raise ValueError(f"A part of type {part['type']!r} has no source: give it a 'path', 'url' or {kind!r}.")


__all__ = ["VideoStream", "prepare_streamed_inputs", "write_prompt"]
