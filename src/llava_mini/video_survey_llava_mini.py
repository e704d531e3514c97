# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Which frames a video file has and when each is shown, from its packets and its clock."""

import math
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
        num_lost (`int`): frames that the file has packets for and that could not be decoded in counting.
        metadata (`FrameTimes`): what is handed on.
    """

    stamps: np.ndarray
    starts: np.ndarray
    is_by_number: bool
    metadata: FrameTimes
    num_lost: int = 0

    def find(self, stamp: int | None) -> int | None:
        """The index of the frame with this stamp."""
        index = 0 if stamp is None else int(np.searchsorted(self.stamps, stamp))
        return index if index < len(self.stamps) and self.stamps[index] == stamp else None


class PacketSurvey:
    """Time stamps of the packets that are shown, and whether each of them is one frame."""

    def __init__(self, av, container, stream):
        self.count = 0
        self.stamps: list[int | None] = []
        self.last_duration = 0
        self._av = av
        self._context = stream.codec_context
        # In MPEG streams fields of one picture come in packets of their own, or not: only decoding tells.
        # (PyAV before 15 does not say.)
        has_fields = getattr(self._context, "field_order", 0) not in WHOLE_PICTURES
        self._is_regular = not (has_fields and container.format.flags & CLOCK_MAY_JUMP)
        self._first: int | None = None
        self._last_dts = self._latest = self._before_group = -math.inf
        self._trial: list[int | None] | None = []
        self._is_damaged = False

    def add(self, packet):
        """Takes in a packet, in the file's order; the empty one at the end too."""
        if not packet.size:
            return
        if not self.count:
            self._first = packet.pts
        self._is_regular = self._is_regular and self._follows(packet)
        self.count += 1
        if not packet.is_discard:
            self.stamps.append(packet.pts)
            if packet.pts is not None and packet.pts >= self._latest:
                self.last_duration = packet.duration or 0
        self._latest = max(self._latest, self._latest if packet.pts is None else packet.pts)
        if self._trial is not None:
            self._try(packet)
            if len(self.stamps) == NUM_TRIAL_FRAMES:
                self.end_trial()

    def _follows(self, packet) -> bool:
        """Whether the packet continues the stream: in order of decoding, and each group after the one before."""
        if packet.pts is None or packet.is_corrupt:
            return False
        if packet.is_keyframe:
            self._before_group = self._latest
        # Matroska has no times of decoding for its first packets.
        is_later = (packet.dts is None or packet.dts > self._last_dts) and packet.pts > self._before_group
        self._last_dts = self._last_dts if packet.dts is None else packet.dts
        return is_later and (packet.is_keyframe or self.count > 0)

    def is_reliable(self) -> bool:
        """Whether the stamps, sorted, are the frames."""
        return (
            self._is_regular
            and bool(self.stamps)
            # Pictures that are shown before the first one need others that are cut away.
            and self._first <= min(self.stamps)
            and len(set(self.stamps)) == len(self.stamps)
        )

    def end_trial(self):
        """Compares the first packets with the frames that they give, unless that is done."""
        if self._trial is not None:
            self._try(None)
            # Of damaged packets no frame comes, which is no irregularity.
            expected = set(self._trial) if self._is_damaged else set(self.stamps)
            is_each = self._trial == sorted(expected) and expected <= set(self.stamps)
            self._is_regular = self._is_regular and is_each
            self._trial = None

    def _try(self, packet):
        try:
            self._trial += [frame.pts for frame in self._context.decode(packet)]
        except self._av.error.FFmpegError:
            self._is_damaged = True


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
            # FFmpeg's own unit of time is the microsecond.
            duration = round(self._end(starts), 6) or None
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
        usual = 1 / self.rate if self.rate else float(np.median(np.abs(steps))) if len(steps) else 0.0
        # Stamps a little out of order, but each its own, are those of decoding, of frames in order of display.
        is_reordered = len(np.unique(shown)) == len(shown)
        is_restart = steps < (-NUM_TRIAL_FRAMES * usual if is_reordered else 0)
        if self.may_jump:
            is_restart |= steps > LONGEST_PAUSE_SECONDS
        parts = np.split(shown, np.flatnonzero(is_restart) + 1)
        # Not summed up, so that nothing is rounded twice.
        starts = [(np.sort(part) - part.min()) * self.unit for part in parts]
        for before, part in zip(starts, starts[1:]):
            part += before[-1] + usual
        return np.concatenate(starts)

    def _end(self, starts: np.ndarray) -> float:
        """The last frame is shown for as long as its packet says; up to the announced end if the one before was too."""
        shortest = self.last_duration or (1 / self.rate if self.rate else 0.0)
        step = starts[-1] - starts[-2] if len(starts) > 1 else shortest
        if not shortest:
            return float(starts[-1] + step)
        return float(starts[-1] + np.clip(self.announced - starts[-1], shortest, max(shortest, step)))
