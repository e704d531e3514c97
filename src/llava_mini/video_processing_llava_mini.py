# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Videos to pixels: sampling and cropping as the authors do."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    SizeDict,
    is_valid_image,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata, is_valid_video_frame, make_batched_metadata

from .image_processing_llava_mini import LlavaMiniTorchvisionMixin
from .image_processing_pil_llava_mini import check_same_size, count_crops
from .image_reading_llava_mini import as_array, to_8_bit
from .video_reading_llava_mini import open_video, resize_nearest


# FFmpeg's own unit of time, to which stamps of any container are exact.
TIME_RESOLUTION = 1e-6
# A tenth of a video still tells what it shows; less is a guess.
MIN_DECODABLE_SHARE = 0.1


class LlavaMiniVideoProcessorKwargs(VideosKwargs, total=False):
    """
    Attributes:
        resolution_ratio (`int`, *optional*):
            N: each frame is cut into N*N sub-images in row-major order, and the whole frame follows them (N > 1), or is
            taken alone (N = 1). Has to be the model's.
        keep_aspect_ratio (`bool`, *optional*):
            Process frames like images (`do_pad` included) instead of first resizing them to `crop_size`.
        max_pixels (`int`, *optional*):
            Refuse frames with more pixels, from the header and before decoding; `None` is no limit.
        trust_frame_rate (`bool`, *optional*):
            Count on the container's frame rate, as the authors do, even where its time stamps contradict it.
        min_decodable_share (`float`, *optional*):
            Share of a damaged file's frames that has to be decodable.
    """

    resolution_ratio: int | None
    keep_aspect_ratio: bool | None
    max_pixels: int | None
    trust_frame_rate: bool | None
    min_decodable_share: float | None


class LlavaMiniVideoProcessor(LlavaMiniTorchvisionMixin, BaseVideoProcessor):
    r"""
    Videos to pixel values. Files are decoded with PyAV (`pip install av`), frame by frame, and only the frames that are
    wanted are kept. What a damaged file has lost is replaced by the frame before, with one warning.

    Args (also of a call):
        fps (`float`, defaults to 1):
            Frames a second to take, at the places the authors take them. Not together with `num_frames`. Frames that
            come without a frame rate are all taken, unless `num_frames` or `video_metadata` says more. The authors
            count frames. Where a container's frame rate contradicts its time stamps (by more than 5%: rates that are
            nominal, as of screen recorders and AVI files with dropped frames), time is divided instead: in the middle
            of each of as many equal parts as seconds, the frame that is shown then.
        num_frames (`int`, *optional*):
            Frames to take from the whole video, all of them if it has fewer.
        keep_aspect_ratio (`bool`, defaults to `False`):
            By default each frame is resized to `crop_size` by nearest neighbour before anything else, its aspect ratio
            not kept, as the released checkpoints expect. With `True` frames are processed like images.
        resolution_ratio (`int`, defaults to 1):
            N: N*N sub-images of each frame in row-major order, then the whole frame; the frame alone for 1.
        do_pad (`bool`, defaults to `False`):
            Pad each crop to a square with the mean colour; only with `keep_aspect_ratio`.
        max_pixels (`int`, *optional*, defaults to 89478485):
            Refuse frames with more pixels, by the file's header and before decoding; `None` for no limit.
        trust_frame_rate (`bool`, defaults to `False`):
            Divide frames, as the authors do, also where the container's frame rate contradicts its time stamps.
        min_decodable_share (`float`, defaults to 0.1):
            Refuse a damaged file when less than this share of its frames can be decoded.
        return_metadata (`bool`, defaults to `False`):
            Return `video_metadata` too: duration in seconds, frames a second (both by the clock of the file), size,
            number and indices of the frames.
        size, crop_size, resample, rescale_factor, image_mean, image_std and their switches: CLIP's, for 336 pixels.

    Returns:
        `BatchFeature` with `pixel_values_videos` `(videos, frames, K, 3, height, width)`, shorter videos zero-padded at
        the end, and `video_num_frames` `(videos,)`. K = N*N + 1 crops or 1. For N = 1 pixels equal the authors'; for
        N > 1 their bicubic resize differs by at most 2/255.

    Raises:
        ValueError: a video that has no frames, can't be read, is too large, or is cut too small; sampling that makes no
            sense.
        ImportError: a file is given, and PyAV is not installed.
    """

    model_input_names = ["pixel_values_videos", "video_num_frames"]
    valid_kwargs = LlavaMiniVideoProcessorKwargs

    do_pad = False
    do_sample_frames = True
    fps = 1
    num_frames = None
    keep_aspect_ratio = False
    trust_frame_rate = False
    min_decodable_share = MIN_DECODABLE_SHARE

    def __init__(self, **kwargs: Unpack[LlavaMiniVideoProcessorKwargs]):
        super().__init__(**kwargs)

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[LlavaMiniVideoProcessorKwargs]) -> BatchFeature:
        """Decodes, samples and processes videos; see the class for arguments and results."""

        def option(name: str):
            value = kwargs.get(name)
            return getattr(self, name) if value is None else value

        videos = self.flatten_videos(videos)
        crop_size = self._standardize_kwargs(crop_size=option("crop_size"))["crop_size"]
        if not videos:
            empty = torch.zeros(0, 0, count_crops(option("resolution_ratio")), 3, crop_size.height, crop_size.width)
            return self._collate([], empty, kwargs.get("return_tensors"))

        # Sampling happens here and not in the base class, which would decode every frame, fill in the default `fps`
        # beside a given `num_frames`, and look at the first video only to tell files from frames.
        sample = partial(
            self.sample_frames,
            fps=kwargs.pop("fps", None),
            num_frames=kwargs.pop("num_frames", None),
            trust_frame_rate=option("trust_frame_rate"),
        )
        if not option("do_sample_frames"):
            sample = _all_frames
        files = {
            "frame_size": None if option("keep_aspect_ratio") else crop_size,
            "max_pixels": kwargs.get("max_pixels", self.max_pixels),
            "min_decodable_share": option("min_decodable_share"),
        }
        frames = {name: option(name) for name in ("do_rescale", "input_data_format")}
        frames["max_pixels"] = files["max_pixels"]
        metadata = kwargs.pop("video_metadata", None)
        metadata = [None] * len(videos) if metadata is None else make_batched_metadata(videos, metadata)
        if len(metadata) != len(videos):
            raise ValueError(f"Got {len(videos)} videos and `video_metadata` of {len(metadata)}: pass one for each.")
        loaded = [
            self.fetch_videos(video, sample, **files)
            if isinstance(video, (str, bytes, os.PathLike))
            else self._take_frames(video, video_metadata, sample, **frames)
            for video, video_metadata in zip(videos, metadata)
        ]
        kwargs |= {"do_sample_frames": False, "do_convert_rgb": False, "input_data_format": ChannelDimension.FIRST}
        videos, metadata = map(list, zip(*loaded))
        return super().preprocess(videos, video_metadata=metadata, **kwargs)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        trust_frame_rate: bool | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        The authors' frame indices: the video in as many equal segments as frames are wanted, the middle of each. Where
        `metadata` has `frame_times`, segments are of time and not of frames.

        Args:
            metadata (`VideoMetadata`): at least `total_num_frames`; `fps` too when sampling by `fps`.
            num_frames (`int`, *optional*), fps (`float`, *optional*): one of them at most; the processor's by default.
            trust_frame_rate (`bool`, *optional*): ignore `frame_times`; the processor's by default.

        Returns:
            `np.ndarray` of shape `(frames,)`, at least one index.

        Raises:
            ValueError: both are given, one is not positive, or the video's frame rate isn't known.
        """
        if fps is not None and num_frames is not None:
            raise ValueError(f"Got `fps={fps}` and `num_frames={num_frames}`, which exclude each other: pass one.")
        total, rate = metadata.total_num_frames, metadata.fps
        times = getattr(metadata, "frame_times", None)
        if self.trust_frame_rate if trust_frame_rate is None else trust_frame_rate:
            times, rate = None, getattr(metadata, "nominal_fps", None) or rate
        if fps is None and num_frames is None:
            fps, num_frames = self.fps, self.num_frames
            if num_frames is None and (fps is None or not rate):
                return _all_frames(metadata)
        if num_frames is None:
            if fps <= 0:
                raise ValueError(f"`fps` is {fps}, but has to be above 0.")
            if total == 1:
                return _all_frames(metadata)
            if not rate:
                raise ValueError(
                    f"Can't sample {fps} frames a second from a video whose own frame rate is not known. Pass "
                    "`video_metadata=[{'total_num_frames': ..., 'fps': ...}]`, or use `num_frames`."
                )
            # The authors' own rule at 1 frame a second; they crash where it gives 0.
            num_frames = int(total * fps // rate) if times is None else int((metadata.duration + TIME_RESOLUTION) * fps)
            num_frames = max(num_frames, 1)
        elif num_frames < 1:
            raise ValueError(f"`num_frames` is {num_frames}, but has to be at least 1.")
        num_frames = min(num_frames, total)
        if times is not None:
            return _divide_time(times, metadata.duration, num_frames)
        edges = np.round((total - 1) / num_frames * np.arange(num_frames + 1)).astype(int)
        return (edges[:-1] + edges[1:]) // 2

    def fetch_videos(
        self,
        video_url_or_urls: str | bytes | os.PathLike | list,
        sample_indices_fn: Callable[..., np.ndarray] | None = None,
        frame_size: SizeDict | None = None,
        **kwargs,
    ):
        """
        Decodes video files with PyAV, whatever else is installed: other decoders count and seek frames differently.

        Args:
            video_url_or_urls: path, URL, base64 or bytes of a video, or a list of them.
            sample_indices_fn (`Callable`, *optional*): indices of the frames to keep, given `metadata`; all by default.
            frame_size (`SizeDict`, *optional*): resize each kept frame to this by nearest neighbour at once.
            max_pixels (`int`, *optional*), min_decodable_share (`float`, *optional*): the processor's by default.

        Returns:
            Frames `(frames, 3, height, width)` in 8-bit and their `VideoMetadata`; lists of both for a list.

        Raises:
            ValueError: no video, or one that is too large or too damaged.
            ImportError: PyAV is missing.
        """
        if isinstance(video_url_or_urls, (list, tuple)):
            videos = [self.fetch_videos(v, sample_indices_fn, frame_size, **kwargs) for v in video_url_or_urls]
            return list(zip(*videos))
        with open_video(video_url_or_urls, kwargs.get("max_pixels", self.max_pixels)) as video:
            table = video.survey()
            metadata = table.metadata
            metadata.frames_indices = (sample_indices_fn or _all_frames)(metadata=metadata)
            share = kwargs.get("min_decodable_share", self.min_decodable_share)
            frames = list(video.read(table, metadata.frames_indices.tolist(), frame_size, share))
        return torch.stack(frames), metadata

    @staticmethod
    def flatten_videos(videos: VideoInput, depth: int = 0) -> list:
        """
        The single videos of any nesting: files (path, URL, base64, bytes), arrays `(frames, ...)`, lists of frames.
        Lists of paths are lists of videos in the first two levels (batch, row); in the third they are a video's frames.

        Raises:
            ValueError: something that is no video.
        """
        if isinstance(videos, (str, bytes, os.PathLike)):
            return [videos]
        if isinstance(videos, (list, tuple)):
            if videos and (all(map(is_valid_video_frame, videos)) or (depth == 2 and _are_paths(videos))):
                return [videos]
            return [video for item in videos for video in LlavaMiniVideoProcessor.flatten_videos(item, depth + 1)]
        if is_valid_image(videos):
            dimensions = getattr(videos, "ndim", 3)
            if dimensions == 3:
                return [[videos]]
            if dimensions in (4, 5):
                return [videos] if dimensions == 4 else list(videos)
        raise ValueError(
            f"Got a video of type {type(videos).__name__} and shape {getattr(videos, 'shape', None)}; expected a path, "
            "a URL, base64, bytes, a list of frames, or an array (frames, height, width, channels) or (frames, "
            "channels, height, width)."
        )

    def _take_frames(
        self,
        video: list | np.ndarray | torch.Tensor,
        metadata: VideoMetadata | None,
        sample: Callable[..., np.ndarray],
        **kwargs,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        if len(video) == 0:
            raise ValueError("The video has no frames. Leave it out.")
        metadata = VideoMetadata(total_num_frames=len(video)) if metadata is None else replace(metadata)
        indices = np.arange(len(video)) if sample is _all_frames else sample(metadata=metadata)
        if sample is not _all_frames and metadata.total_num_frames != len(video):
            raise ValueError(
                f"`video_metadata` speaks of {metadata.total_num_frames} frames, but the video has {len(video)}. If "
                "they are sampled already, pass `do_sample_frames=False`."
            )
        if sample is not _all_frames or metadata.frames_indices is None:
            metadata.frames_indices = indices
        frames = torch.stack(check_same_size(list(self.pick_frames(video, indices, **kwargs))))
        metadata.height, metadata.width = frames.shape[-2:]
        return frames, metadata

    def pick_frames(
        self,
        video: list | np.ndarray | torch.Tensor,
        indices: np.ndarray,
        do_rescale: bool,
        max_pixels: int | None,
        input_data_format: str | ChannelDimension | None = None,
    ) -> Iterator[torch.Tensor]:
        """Frames `(3, height, width)` of a video that is given as frames; those in files are opened one by one."""
        if isinstance(video, (list, tuple)):
            frames = (self.fetch_images(video[i], max_pixels=max_pixels) for i in indices)
        else:
            # All at once, since the scale of floating-point pixels shows only in bright frames.
            frames = to_8_bit(as_array(video[indices]), do_rescale)
        for frame in frames:
            yield self.process_image(
                frame,
                do_convert_rgb=True,
                input_data_format=input_data_format,
                do_rescale=do_rescale,
                max_pixels=max_pixels,
            )

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        crop_size: SizeDict,
        keep_aspect_ratio: bool,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        if not keep_aspect_ratio:
            videos = [resize_nearest(video, crop_size) for video in videos]
        units = [self.make_crops(video, crop_size=crop_size, **kwargs) for video in videos]
        check_same_size([video[0] for video in units])
        return self._collate(units, torch.nn.utils.rnn.pad_sequence(units, batch_first=True), return_tensors)

    @staticmethod
    def _collate(
        units: list[torch.Tensor], pixel_values: torch.Tensor, return_tensors: str | TensorType | None
    ) -> BatchFeature:
        data = {
            "pixel_values_videos": pixel_values,
            "video_num_frames": torch.tensor([len(u) for u in units], dtype=torch.long),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)


def _divide_time(times: np.ndarray, duration: float, num_frames: int) -> np.ndarray:
    """The frame shown in the middle of each of `num_frames` equal parts of time; every frame when all are wanted."""
    if num_frames == len(times):
        return np.arange(num_frames)
    middles = (np.arange(num_frames) + 0.5) * duration / num_frames
    return np.searchsorted(times, middles + TIME_RESOLUTION, side="right") - 1


def _all_frames(metadata: VideoMetadata) -> np.ndarray:
    return np.arange(metadata.total_num_frames)


def _are_paths(items: list) -> bool:
    return all(isinstance(item, (str, bytes, os.PathLike)) for item in items)


__all__ = ["LlavaMiniVideoProcessor"]
