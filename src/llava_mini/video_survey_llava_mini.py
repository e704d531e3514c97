# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Which frames a video file has and when each is shown, from its packets and its clock."""

from dataclasses import dataclass

import numpy as np
from transformers.video_utils import VideoMetadata


# Frames decoded to learn whether this codec gives one frame for each packet: more than reordering ever holds back.
NUM_TRIAL_FRAMES = 16
# A frame rate is taken at its word while it tells the length of the video to this share (and to one frame).
RATE_TOLERANCE = 0.05
# Where clocks may start anew (MPEG streams), a longer pause is such a start: ffmpeg's `-dts_delta_threshold`.
LONGEST_PAUSE_SECONDS = 10
# AVFMT_TS_DISCONT of FFmpeg's libavformat/avformat.h.
CLOCK_MAY_JUMP = 0x0200
# AV_FIELD_UNKNOWN and AV_FIELD_PROGRESSIVE of FFmpeg's libavcodec/defs.h: every other order is of fields.
WHOLE_PICTURES = (0, 1)


@dataclass
class FrameTimes(VideoMetadata):
    """
    A file's `VideoMetadata`, with what its own clock says.

    Attributes:
        fps (`float`, *optional*): frames a second as they are, on the mean.
        duration (`float`, *optional*): seconds from the first frame to the end of the last.
        nominal_fps (`float`, *optional*): frames a second as the container announces them.
        frame_times (`np.ndarray` of shape `(frames,)`, *optional*):
            Seconds from the first frame to each, where `nominal_fps` contradicts them; `None` where it tells the same.
    """

    nominal_fps: float | None = None
    frame_times: np.ndarray | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds from the first frame to each sampled one."""
        if self.frame_times is None or self.frames_indices is None:
            return super().timestamps
        return self.frame_times[np.asarray(self.frames_indices)].tolist()


@dataclass
class FrameTable:
    """
    The frames of a video in order of display.

    Attributes:
        stamps (`np.ndarray` of shape `(frames,)`):
            What a decoded frame is known by: its time stamp, or its number when `is_by_number`.
        starts (`np.ndarray` of shape `(frames,)`): seconds from the first frame to each.
        is_by_number (`bool`): whether the frames were counted by decoding them all.
        metadata (`FrameTimes`): what is handed on.
    """

    stamps: np.ndarray
    starts: np.ndarray
    is_by_number: bool
    metadata: FrameTimes

    def find(self, stamp: int | None) -> int | None:
        """The index of the frame with this stamp."""
        index = 0 if stamp is None else int(np.searchsorted(self.stamps, stamp))
        return index if index < len(self.stamps) and self.stamps[index] == stamp else None


class PacketSurvey:
    """Time stamps of the packets that are shown, and whether each of them is one frame."""

    def __init__(self, av, stream):
        self.count = 0
        self.stamps: list[int | None] = []
        self.last_duration = 0
        self._av = av
        self._context = stream.codec_context
        # Fields of one picture come in packets of their own, or not: only decoding tells.
        self._is_regular = getattr(self._context, "field_order", 0) in WHOLE_PICTURES
        self._last_dts: int | None = None
        self._latest: int | None = None
        self._trial: list[int | None] | None = []

    def add(self, packet):
        """Takes in a packet, in the file's order; the empty one at the end too."""
        if not packet.size:
            return
        starts_inside = not self.count and not packet.is_keyframe
        goes_back = packet.dts is not None and self._last_dts is not None and packet.dts <= self._last_dts
        if starts_inside or goes_back or packet.is_corrupt:
            self._is_regular = False
        self.count += 1
        self._last_dts = packet.dts if packet.dts is not None else self._last_dts
        if not packet.is_discard:
            self.stamps.append(packet.pts)
            if packet.pts is not None and (self._latest is None or packet.pts > self._latest):
                self._latest, self.last_duration = packet.pts, packet.duration or 0
        if self._trial is not None:
            self._try(packet)
            if len(self.stamps) == NUM_TRIAL_FRAMES:
                self.end_trial()

    def is_reliable(self) -> bool:
        """Whether the stamps, sorted, are the frames."""
        return (
            self._is_regular
            and bool(self.stamps)
            and None not in self.stamps
            # Pictures that are shown before the first one need others that are cut away.
            and self.stamps[0] == min(self.stamps)
            and len(set(self.stamps)) == len(self.stamps)
        )

    def end_trial(self):
        """Compares the first packets with the frames that they give, unless that is done."""
        if self._trial is not None:
            self._try(None)
            if None in self._trial or None in self.stamps or sorted(self._trial) != sorted(self.stamps):
                self._is_regular = False
            self._trial = None

    def _try(self, packet):
        try:
            self._trial += [frame.pts for frame in self._context.decode(packet)]
        except self._av.error.FFmpegError:
            self._is_regular = False


class Clock:
    """When frames are shown, as stamps, the rate and the length that the container announces tell together."""

    def __init__(self, av, container, stream, last_duration: int):
        self.unit = float(stream.time_base or 1 / av.time_base)
        self.rate = float(stream.average_rate or 0)
        self.announced = (container.duration or 0) / av.time_base
        if stream.duration:
            self.announced = stream.duration * self.unit
        self.last_duration = last_duration * self.unit
        self.may_jump = bool(container.format.flags & CLOCK_MAY_JUMP)

    def make_table(self, stamps: np.ndarray, shown: list[int | None], is_by_number: bool) -> FrameTable:
        """
        Args:
            stamps (`np.ndarray`): what frames are known by.
            shown (`list`): their time stamps in order of display, `None` where there is none.
        """
        total = len(shown)
        if total == 0 or None in shown:
            step = 1 / self.rate if self.rate else 0.0
            starts, duration = np.arange(total) * step, total * step or None
        else:
            starts = self._starts(np.array(shown, dtype=np.int64))
            duration = self._end(starts) or None
        fps = total / duration if duration else None
        is_true = not (fps and self.rate) or (
            abs(total / self.rate - duration) <= RATE_TOLERANCE * duration + 1 / self.rate
        )
        metadata = FrameTimes(
            total_num_frames=total,
            fps=self.rate if self.rate and is_true else fps,
            duration=duration,
            video_backend="pyav",
            nominal_fps=self.rate or None,
            frame_times=None if is_true else starts,
        )
        return FrameTable(stamps, starts, is_by_number, metadata)

    def _starts(self, shown: np.ndarray) -> np.ndarray:
        steps = np.diff(shown) * self.unit
        is_jump = steps < 0
        if self.may_jump:
            is_jump |= steps > LONGEST_PAUSE_SECONDS
        if is_jump.any():
            usual = steps[~is_jump]
            steps[is_jump] = 1 / self.rate if self.rate else float(np.median(usual)) if len(usual) else 0.0
            return np.concatenate([[0.0], np.cumsum(steps)])
        # Not summed up, so that nothing is rounded twice.
        return (shown - shown[:1]) * self.unit

    def _end(self, starts: np.ndarray) -> float:
        """The last frame is shown for as long as its packet says; up to the announced end if the one before was too."""
        shortest = self.last_duration or (1 / self.rate if self.rate else 0.0)
        step = starts[-1] - starts[-2] if len(starts) > 1 else shortest
        if not shortest:
            return float(starts[-1] + step)
        return float(starts[-1] + np.clip(self.announced - starts[-1], shortest, max(shortest, step)))
