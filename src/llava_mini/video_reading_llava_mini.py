# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Video files to frames with PyAV, for the video processor and for streams."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import SizeDict
from transformers.utils import logging

from .image_reading_llava_mini import check_num_pixels, describe_source, open_source
from .video_survey_llava_mini import RATE_TOLERANCE, Clock, FrameTable, FrameTimes, PacketSurvey


logger = logging.get_logger(__name__)

# Damaged stretches that a message names.
MAX_NAMED_STRETCHES = 3


class VideoFile:
    """A video that `open_video` has opened, to be surveyed first and read then."""

    def __init__(self, av, file: str | IO[bytes], name: str, max_pixels: int | None):
        self.av = av
        self.file = file
        self.name = name
        self.max_pixels = max_pixels
        self.num_errors = 0

    def survey(self) -> FrameTable:
        """
        The frames that decoding gives. Packets tell, without decoding, where each holds one frame and the file is
        whole; else (hidden frames, fields, a start inside a group of pictures, joined streams, gaps) all are decoded.

        Raises:
            ValueError: no frames, frames that are too large, or an unknown frame rate.
        """
        with self._open() as container:
            stream = self._stream(container)
            packets = PacketSurvey(self.av, container, stream)
            for packet in self._packets(container, stream):
                packets.add(packet)
            packets.end_trial()
            clock = Clock(self.av, container, stream, packets.last_duration)
        if not packets.count:
            raise ValueError(f"The video {self.name} has no frames: it is empty or damaged. Repair it by re-encoding.")
        if packets.is_reliable():
            stamps = np.unique(np.array(packets.stamps, dtype=np.int64))
            table = clock.make_table(stamps, stamps.tolist(), is_by_number=False)
        else:
            with self._open() as container:
                shown = [frame.pts for frame in self._frames(container)]
            table = clock.make_table(np.arange(len(shown)), shown, is_by_number=True)
            if self.num_errors:
                table.num_lost = max(len(set(packets.stamps)) - len(shown), 0)
        self._check_survey(table, clock.announced, packets.count)
        return table

    def _check_survey(self, table: FrameTable, announced: float, num_packets: int):
        total, duration = len(table.stamps), table.metadata.duration
        if not total:
            raise ValueError(
                f"The video {self.name} is empty or damaged: none of its {num_packets} frames can be decoded. Repair "
                "it by re-encoding."
            )
        if total > 1 and not table.metadata.fps:
            raise ValueError(
                f"The frame rate of the video {self.name} is not known. Re-encode it, or pass decoded frames."
            )
        if duration is not None and duration < (1 - RATE_TOLERANCE) * announced:
            logger.warning(
                f"The video {self.name} announces {announced:.1f} s of video and has {duration:.1f} s: is it cut off?"
            )

    def read(
        self,
        table: FrameTable,
        indices: Sequence[int],
        frame_size: SizeDict | None = None,
        min_decodable_share: float = 0.0,
    ) -> Iterator[torch.Tensor]:
        """
        The wanted frames, each as soon as it is decoded; reading ends with the last. In place of one that is damaged
        comes the one shown before it (the first that can be decoded, at the start), and one warning says how many.

        Args:
            table (`FrameTable`): of `survey`.
            indices: ascending indices of frames; one that stands there twice comes twice.
            frame_size (`SizeDict`, *optional*): resize to this by nearest neighbour.
            min_decodable_share (`float`): share of the frames that has to be decodable.

        Yields:
            Upright frames `(3, height, width)` in 8-bit.

        Raises:
            ValueError: too little can be decoded; without `frame_size`, the picture's size changes.
        """
        loss = _Loss(self.name, table)
        indices = list(indices)
        wanted, position = 0, -1
        before = shown = pixels = None
        with self._open() as container:
            for position, frame in self._numbered_frames(container, table, loss):
                while wanted < len(indices) and indices[wanted] <= position:
                    chosen = frame if before is None or indices[wanted] == position else before
                    if chosen is not shown:
                        shown, pixels = chosen, self._pixels(chosen, frame_size, table.metadata)
                    yield pixels
                    wanted += 1
                before = frame
                if wanted == len(indices):
                    break
            else:
                loss.add(position + 1, len(table.stamps))
                position = len(table.stamps) - 1
            if before is not None and before is not shown and wanted < len(indices):
                pixels = self._pixels(before, frame_size, table.metadata)
            loss.report(position + 1, min_decodable_share)
            yield from (pixels for _ in indices[wanted:])

    def _numbered_frames(self, container, table: FrameTable, loss: "_Loss") -> Iterator[tuple[int, object]]:
        """Frames with their indices in the table, ascending; those between them go into `loss`."""
        position = -1
        for number, frame in enumerate(self._frames(container)):
            found = number if table.is_by_number else table.find(frame.pts)
            if found is not None and found > position:
                loss.add(position + 1, found)
                position = found
                yield position, frame

    def _pixels(self, frame, frame_size: SizeDict | None, metadata: FrameTimes) -> torch.Tensor:
        check_num_pixels(frame.width, frame.height, self.max_pixels, f"A frame of the video {self.name}")
        pixels = upright_pixels(frame)
        height, width = pixels.shape[-2:]
        if metadata.height is None:
            metadata.height, metadata.width = height, width
        if frame_size is not None:
            return resize_nearest(pixels, frame_size)
        if (metadata.height, metadata.width) != (height, width):
            raise ValueError(
                f"The pictures of the video {self.name} change from {metadata.width}x{metadata.height} to "
                f"{width}x{height} pixels. Read it without `keep_aspect_ratio`, or re-encode it to one size."
            )
        return pixels

    @contextmanager
    def _open(self) -> Iterator:
        if hasattr(self.file, "seek"):
            self.file.seek(0)
            # Content from elsewhere names no files or addresses to read (playlists do).
            options = {"protocol_whitelist": "data"}
            target = self.file
        else:
            # A name with a colon would be a protocol's.
            options = {}
            target = f"file:{self.file}"
        # Titles in other encodings than UTF-8 are no reason to refuse pictures.
        with self.av.open(target, options=options, metadata_errors="replace") as container:
            yield container

    def _stream(self, container):
        """The first stream of pictures: not the cover of a sound file, which is a video stream too."""
        cover = self.av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise ValueError(f"The video {self.name} has no pictures; it may be a sound or a subtitle file.")
        context = streams[0].codec_context
        if context is None:
            raise ValueError(f"The video {self.name} is in a format that PyAV can't decode. Re-encode it.")
        check_num_pixels(context.width, context.height, self.max_pixels, f"A frame of the video {self.name}")
        if self.max_pixels is not None:
            # Also for frames that are larger than the header says.
            context.options = {"max_pixels": str(self.max_pixels)}
        return streams[0]

    def _packets(self, container, stream) -> Iterator:
        """
        The packets in order and the empty one at the end; stops where the file breaks off, before a packet that is cut.
        (A damaged one further inside is decoded: behind the joint of two streams packets are whole, but marked.)
        """
        packets = container.demux(stream)
        held = None
        while True:
            try:
                packet = next(packets, None)
            except self.av.error.FFmpegError as error:
                logger.warning(f"The video {self.name} can't be read to its end: {error}.")
                packet = None
            if held is not None:
                if packet is not None and packet.size:
                    yield held
                else:
                    logger.warning(f"The video {self.name} is cut off within a frame, which is left out.")
                held = None
            if packet is None:
                return
            if packet.is_corrupt:
                held = packet
            else:
                yield packet

    def _frames(self, container) -> Iterator:
        """Every frame that can be decoded, in order of display, but for a last one that is cut off."""
        held = None
        for frame in self._decoded(container):
            if held is not None:
                yield held
            held = frame if frame.is_corrupt else None
            if held is None:
                yield frame
        if held is not None:
            logger.warning(f"The last frame of the video {self.name} is cut off and is left out.")

    def _decoded(self, container) -> Iterator:
        stream = self._stream(container)
        stream.thread_type = "AUTO"
        has_ended = False
        for packet in self._packets(container, stream):
            has_ended = not packet.size
            yield from self._decode(stream.codec_context, packet)
        if not has_ended:
            yield from self._decode(stream.codec_context, None)

    def _decode(self, context, packet) -> list:
        num_pixels = context.width * context.height
        try:
            return context.decode(packet)
        except self.av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            # After a frame beyond its limit FFmpeg has that frame's size, or none.
            is_too_large = num_pixels and not 0 < context.width * context.height <= (self.max_pixels or math.inf)
            if self.max_pixels is not None and is_too_large:
                raise ValueError(
                    f"A frame inside the video {self.name} has more than {self.max_pixels} pixels (`max_pixels` of the "
                    "processor). Make it smaller, or set `max_pixels` higher if you trust where it comes from."
                ) from error
            # Damage; which frames it costs shows when they don't come.
            self.num_errors += 1
            return []


class _Loss:
    """Which frames of a table did not come, and how to say so."""

    def __init__(self, name: str, table: FrameTable):
        self._name = name
        self._starts = table.starts
        self._num_lost = table.num_lost
        self._stretches: list[tuple[int, int]] = []

    def add(self, start: int, end: int):
        """Frames from `start` up to `end` are missing."""
        if start < end:
            self._stretches.append((start, end))

    def report(self, num_frames: int, min_decodable_share: float):
        """
        Warns once of what is missing among the first `num_frames`.

        Raises:
            ValueError: more is missing than `min_decodable_share` allows.
        """
        missing = self._num_lost + sum(end - start for start, end in self._stretches)
        if not missing:
            return
        places = [f"{self._starts[start]:.2f}-{self._starts[end - 1]:.2f} s" for start, end in self._stretches]
        if len(places) > MAX_NAMED_STRETCHES:
            places = [*places[:MAX_NAMED_STRETCHES], f"{len(places) - MAX_NAMED_STRETCHES} more"]
        share = missing / (num_frames + self._num_lost)
        text = f"{missing} of {num_frames + self._num_lost} frames ({share:.1%}) can't be decoded"
        text += f", at {', '.join(places)}" if places else ""
        if share == 1 or 1 - share < min_decodable_share:
            raise ValueError(
                f"The video {self._name} is damaged: {text}; at least {min_decodable_share:.0%} have to be "
                "(`min_decodable_share` of the video processor). Repair the file by re-encoding."
            )
        logger.warning(f"The video {self._name} is damaged: {text}. The frames before them stand in.")


@contextmanager
def open_video(source: str | bytes | os.PathLike, max_pixels: int | None = None) -> Iterator[VideoFile]:
    """
    A video file to survey and read; PyAV's errors on the way become ValueErrors that name the file.

    Args:
        source: path, URL, base64 or bytes of a video.
        max_pixels (`int`, *optional*): refuse frames with more.

    Raises:
        ValueError: no video.
        ImportError: PyAV is missing.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Decoding a video needs PyAV: `pip install av`, or pass decoded frames.") from error

    name = describe_source(source)
    try:
        with open_source(source, "video") as file:
            yield VideoFile(av, file, name, max_pixels)
    except (av.error.FFmpegError, UnicodeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"Could not read the video {name}: {error}. It is damaged or no video; repair it by re-encoding."
        ) from error


def upright_pixels(frame) -> torch.Tensor:
    """
    A PyAV frame as 8-bit `(3, height, width)`, turned and mirrored as its display matrix `(a, b, u, c, d, v, ...)` has
    it, which shows a pixel in column `a * column + c * row` and row `b * column + d * row` (ISO 14496-12, 8.3.2).
    """
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels.contiguous()
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.transpose(1, 2)
        is_mirrored, is_upside_down = c < 0, b < 0
    else:
        is_mirrored, is_upside_down = a < 0, d < 0
    mirrored = [dimension for dimension, is_on in ((2, is_mirrored), (1, is_upside_down)) if is_on]
    return pixels.flip(mirrored).contiguous()


def resize_nearest(frames: torch.Tensor, size: SizeDict) -> torch.Tensor:
    """`(..., 3, height, width)` to `size`, aspect ratio not kept, as the authors resize frames."""
    return tvF.resize(frames, [size.height, size.width], interpolation=tvF.InterpolationMode.NEAREST)
