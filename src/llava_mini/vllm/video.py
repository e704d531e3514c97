# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Video files stay files until our own processor reads them: its frames are the authors', vLLM's readers' are not."""

from dataclasses import dataclass
from typing import Any

from vllm.multimodal.video import VideoLoader

from llava_mini.vllm.settings import FRAMES_OF_THE_CHECKPOINT


@dataclass(frozen=True)
class VideoFile:
    """
    A video that has not been decoded.

    Args:
        content (`bytes`): the file.
        sampling (`dict`): `fps` or `num_frames`, as the video processor takes them; neither for its own.
    """

    content: bytes
    sampling: dict[str, float]


class LlavaMiniVideoLoader(VideoLoader):
    """vLLM's hook for reading videos, which here happens later: how many frames fit is known with the prompt."""

    @classmethod
    def load_bytes(
        cls, data: bytes, num_frames: int = FRAMES_OF_THE_CHECKPOINT, fps: float | None = None, **kwargs: Any
    ) -> tuple[VideoFile, dict[str, Any]]:
        """
        Args:
            num_frames, fps: of `--media-io-kwargs '{"video": {...}}'` or of a request; `fps` wins, since vLLM always
                gives a number of frames.

        Raises:
            ValueError: sampling that makes no sense, or an option that there is not.
        """
        if kwargs:
            raise ValueError(f"Videos are sampled by `fps` or `num_frames`, but got {', '.join(sorted(kwargs))} too.")
        for name, value in (("fps", fps), ("num_frames", num_frames)):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and (value > 0 or value == FRAMES_OF_THE_CHECKPOINT)):
                raise ValueError(f"`{name}` is {value!r}, but has to be a number above 0.")
        if fps is not None and fps != FRAMES_OF_THE_CHECKPOINT:
            return VideoFile(data, {"fps": fps}), {}
        return VideoFile(data, {"num_frames": num_frames} if num_frames != FRAMES_OF_THE_CHECKPOINT else {}), {}
