# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Videos to pixels: decoding with PyAV, sampling and cropping as the authors do."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import IO

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    is_valid_image,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType, logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata, is_valid_video_frame, make_batched_metadata

from .image_processing_llava_mini import LlavaMiniTorchvisionMixin
from .image_processing_pil_llava_mini import as_array, check_same_size, count_crops, open_source, to_8_bit


logger = logging.get_logger(__name__)


class LlavaMiniVideoProcessorKwargs(VideosKwargs, total=False):
    """
    Attributes:
        resolution_ratio (`int`, *optional*):
            N: each frame is cut into N*N sub-images in row-major order, and the whole frame follows them (N > 1), or is
            taken alone (N = 1). Has to be the model's.
        keep_aspect_ratio (`bool`, *optional*):
            Process frames like images (`do_pad` included) instead of first resizing them to `crop_size`.
    """

    resolution_ratio: int | None
    keep_aspect_ratio: bool | None


class LlavaMiniVideoProcessor(LlavaMiniTorchvisionMixin, BaseVideoProcessor):
    r"""
    Videos to pixel values. Files are decoded with PyAV (`pip install av`), frame by frame, and only the frames that are
    wanted are kept.

    Args (also of a call):
        fps (`float`, defaults to 1):
            Frames a second to take, at the places the authors take them. Not together with `num_frames`. Frames that
            come without a frame rate are all taken, unless `num_frames` or `video_metadata` says more.
        num_frames (`int`, *optional*):
            Frames to take from the whole video, all of them if it has fewer.
        keep_aspect_ratio (`bool`, defaults to `False`):
            By default each frame is resized to `crop_size` by nearest neighbour before anything else, its aspect ratio
            not kept, as the released checkpoints expect. With `True` frames are processed like images.
        resolution_ratio (`int`, defaults to 1):
            N: N*N sub-images of each frame in row-major order, then the whole frame; the frame alone for 1.
        do_pad (`bool`, defaults to `False`):
            Pad each crop to a square with the mean colour; only with `keep_aspect_ratio`.
        return_metadata (`bool`, defaults to `False`):
            Return `video_metadata` too: duration in seconds, frames a second, size, number and indices of the frames.
        size, crop_size, resample, rescale_factor, image_mean, image_std and their switches: CLIP's, for 336 pixels.

    Returns:
        `BatchFeature` with `pixel_values_videos` `(videos, frames, K, 3, height, width)`, shorter videos zero-padded at
        the end, and `video_num_frames` `(videos,)`. K = N*N + 1 crops or 1. For N = 1 pixels equal the authors'; for
        N > 1 their bicubic resize differs by at most 2/255.

    Raises:
        ValueError: a video that has no frames, can't be read, or is cut too small; sampling that makes no sense.
        ImportError: a file is given, and PyAV is not installed.
    """

    model_input_names = ["pixel_values_videos", "video_num_frames"]
    valid_kwargs = LlavaMiniVideoProcessorKwargs

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 336}
    default_to_square = False
    crop_size = {"height": 336, "width": 336}
    do_convert_rgb = True
    do_pad = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_sample_frames = True
    fps = 1
    num_frames = None
    resolution_ratio = 1
    keep_aspect_ratio = False

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
        sample = partial(self.sample_frames, fps=kwargs.pop("fps", None), num_frames=kwargs.pop("num_frames", None))
        if not option("do_sample_frames"):
            sample = _all_frames
        frame_size = None if option("keep_aspect_ratio") else crop_size
        metadata = kwargs.pop("video_metadata", None)
        metadata = [None] * len(videos) if metadata is None else make_batched_metadata(videos, metadata)
        if len(metadata) != len(videos):
            raise ValueError(f"Got {len(videos)} videos and `video_metadata` of {len(metadata)}: pass one for each.")
        loaded = [
            self.fetch_videos(video, sample, frame_size)
            if isinstance(video, (str, bytes, os.PathLike))
            else self._take_frames(video, video_metadata, sample, option("do_rescale"), kwargs.get("input_data_format"))
            for video, video_metadata in zip(videos, metadata)
        ]
        kwargs |= {"do_sample_frames": False, "do_convert_rgb": False, "input_data_format": ChannelDimension.FIRST}
        videos, metadata = map(list, zip(*loaded))
        return super().preprocess(videos, video_metadata=metadata, **kwargs)

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **kwargs
    ) -> np.ndarray:
        """
        The authors' frame indices: the video in as many equal segments as frames are wanted, the middle of each.

        Args:
            metadata (`VideoMetadata`): at least `total_num_frames`; `fps` too when sampling by `fps`.
            num_frames (`int`, *optional*), fps (`float`, *optional*): one of them at most; the processor's by default.

        Returns:
            `np.ndarray` of shape `(frames,)`, at least one index.

        Raises:
            ValueError: both are given, one is not positive, or the video's frame rate isn't known.
        """
        if fps is not None and num_frames is not None:
            raise ValueError(f"Got `fps={fps}` and `num_frames={num_frames}`, which exclude each other: pass one.")
        total = metadata.total_num_frames
        if fps is None and num_frames is None:
            fps, num_frames = self.fps, self.num_frames
            if num_frames is None and (fps is None or not metadata.fps):
                return _all_frames(metadata)
        if num_frames is None:
            if fps <= 0:
                raise ValueError(f"`fps` is {fps}, but has to be above 0.")
            if total == 1:
                return _all_frames(metadata)
            if not metadata.fps:
                raise ValueError(
                    f"Can't sample {fps} frames a second from a video whose own frame rate is not known. Pass "
                    "`video_metadata=[{'total_num_frames': ..., 'fps': ...}]`, or use `num_frames`."
                )
            # The authors' own rule at 1 frame a second; they crash where it gives 0.
            num_frames = max(int(total * fps // metadata.fps), 1)
        elif num_frames < 1:
            raise ValueError(f"`num_frames` is {num_frames}, but has to be at least 1.")
        num_frames = min(num_frames, total)
        edges = np.round((total - 1) / num_frames * np.arange(num_frames + 1)).astype(int)
        return (edges[:-1] + edges[1:]) // 2

    def fetch_videos(
        self,
        video_url_or_urls: str | bytes | os.PathLike | list,
        sample_indices_fn: Callable[..., np.ndarray] | None = None,
        frame_size: SizeDict | None = None,
    ):
        """
        Decodes video files with PyAV, whatever else is installed: other decoders count and seek frames differently.

        Args:
            video_url_or_urls: path, URL, base64 or bytes of a video, or a list of them.
            sample_indices_fn (`Callable`, *optional*): indices of the frames to keep, given `metadata`; all by default.
            frame_size (`SizeDict`, *optional*): resize each kept frame to this by nearest neighbour at once.

        Returns:
            Frames `(frames, 3, height, width)` in 8-bit and their `VideoMetadata`; lists of both for a list.
        """
        if isinstance(video_url_or_urls, (list, tuple)):
            return list(zip(*[self.fetch_videos(v, sample_indices_fn, frame_size) for v in video_url_or_urls]))
        return decode_video(video_url_or_urls, sample_indices_fn or _all_frames, frame_size)

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
        do_rescale: bool,
        input_data_format: str | ChannelDimension | None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        if len(video) == 0:
            raise ValueError("The video has no frames. Leave it out.")
        metadata = VideoMetadata(total_num_frames=len(video)) if metadata is None else replace(metadata)
        indices = sample(metadata=metadata)
        if sample is _all_frames:
            indices = np.arange(len(video))
        elif metadata.total_num_frames != len(video):
            raise ValueError(
                f"`video_metadata` speaks of {metadata.total_num_frames} frames, but the video has {len(video)}. If "
                "they are sampled already, pass `do_sample_frames=False`."
            )
        if sample is not _all_frames or metadata.frames_indices is None:
            metadata.frames_indices = indices
        if isinstance(video, (list, tuple)):
            frames = [self.fetch_images(video[i]) for i in indices]
        else:
            # All at once, since the scale of floating-point pixels shows only in bright frames.
            frames = to_8_bit(as_array(video[indices]), do_rescale)
        frames = [
            self.process_image(frame, do_convert_rgb=True, do_rescale=do_rescale, input_data_format=input_data_format)
            for frame in frames
        ]
        metadata.height, metadata.width = frames[0].shape[-2:]
        return torch.stack(check_same_size(frames)), metadata

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


def resize_nearest(frames: torch.Tensor, size: SizeDict) -> torch.Tensor:
    """`(..., 3, height, width)` to `size`, aspect ratio not kept, as the authors resize frames."""
    return tvF.resize(frames, [size.height, size.width], interpolation=tvF.InterpolationMode.NEAREST)


def decode_video(
    source: str | bytes | os.PathLike, sample_indices_fn: Callable[..., np.ndarray], frame_size: SizeDict | None = None
) -> tuple[torch.Tensor, VideoMetadata]:
    """
    Reads a video file twice, to count its frames (not decoding) and to decode it, keeping only the frames wanted.

    Args:
        source: path, URL, base64 or bytes of a video.
        sample_indices_fn (`Callable`): ascending indices of the frames to keep, given `metadata`.
        frame_size (`SizeDict`, *optional*): resize each kept frame by nearest neighbour at once.

    Returns:
        Upright frames `(frames, 3, height, width)` in 8-bit, and `VideoMetadata`.

    Raises:
        ValueError: no video, or none of its frames can be decoded.
        ImportError: PyAV is missing.
    """
    with _reading(source) as (av, file, name):
        metadata = _probe(av, file, name)
        # Containers don't always tell how many frames decode (fields coded apart, a cut-off file). The first pass of
        # decoding finds out, and the second takes the right ones.
        for _ in range(2):
            announced = metadata.total_num_frames
            indices = sample_indices_fn(metadata=metadata)
            kept, metadata.total_num_frames = _decode(av, file, set(indices.tolist()), frame_size, metadata, name)
            if metadata.total_num_frames in (announced, 0):
                break
    if not kept or not set(indices.tolist()) <= kept.keys():
        raise ValueError(
            f"The video {name} is empty or damaged: {len(kept)} of the {len(set(indices.tolist()))} frames that are "
            "wanted can be decoded. Repair it by re-encoding."
        )
    metadata.frames_indices = indices
    return torch.stack([kept[i] for i in indices.tolist()]), metadata


def probe_video(source: str | bytes | os.PathLike) -> VideoMetadata:
    """
    Number and rate of a video's frames, without decoding any.

    Raises:
        ValueError: no video, or one without frames.
    """
    with _reading(source) as (av, file, name):
        return _probe(av, file, name)


def iterate_frames(source: str | bytes | os.PathLike) -> Iterator:
    """
    A video's frames in order, as PyAV has them; `upright_pixels` turns one into a tensor.

    Raises:
        ValueError: no video.
    """
    with _reading(source) as (av, file, name), _open_container(av, file) as container:
        yield from _frames(av, container, name)


@contextmanager
def _reading(source: str | bytes | os.PathLike) -> Iterator[tuple]:
    """PyAV, the file and its name; PyAV's errors in between become ValueErrors that name the file."""
    try:
        import av
    except ImportError as error:
        raise ImportError("Decoding a video needs PyAV: `pip install av`, or pass decoded frames.") from error

    name = str(source)[:80] if isinstance(source, (str, os.PathLike)) else "given as bytes"
    try:
        with open_source(source, "video") as file:
            yield av, file, name
    except av.error.FFmpegError as error:
        raise ValueError(f"Could not read the video {name}: {error}.") from error


def _probe(av, file: str | IO[bytes], name: str) -> VideoMetadata:
    """Frames are counted by packets, since the number in the header is missing or wrong in many containers."""
    with _open_container(av, file) as container:
        streams = _video_streams(av, container)
        if not streams:
            raise ValueError(f"The video {name} has no pictures; it may be a sound or a subtitle file.")
        times = [packet.pts for packet in _packets(av, container, streams[0], name) if packet.size]
        announced = (container.duration or 0) / av.time_base
        if streams[0].duration:
            announced = float(streams[0].duration * streams[0].time_base)
        known = [time for time in times if time is not None]
        span = float((max(known) - min(known)) * streams[0].time_base) if known else 0.0
        fps = float(streams[0].average_rate or (span and (len(known) - 1) / span))
    if not times:
        raise ValueError(f"The video {name} has no frames: it is empty or damaged.")
    if not fps and len(times) > 1:
        raise ValueError(f"The frame rate of the video {name} is not known. Re-encode it, or pass decoded frames.")
    if fps and span + 1 / fps < 0.95 * announced:
        logger.warning(
            f"The video {name} announces {announced:.1f} s of video and has {span + 1 / fps:.1f} s: is it cut off?"
        )
    return VideoMetadata(total_num_frames=len(times), fps=fps or None, video_backend="pyav")


def _decode(
    av, file: str | IO[bytes], wanted: set[int], frame_size: SizeDict | None, metadata: VideoMetadata, name: str
) -> tuple[dict[int, torch.Tensor], int]:
    """The wanted frames by index and the number of all frames; fills in what only frames tell."""
    kept, count = {}, 0
    with _open_container(av, file) as container:
        for frame in _frames(av, container, name):
            if count in wanted:
                pixels = upright_pixels(frame)
                metadata.height, metadata.width = pixels.shape[-2:]
                kept[count] = pixels if frame_size is None else resize_nearest(pixels, frame_size)
            count += 1
    metadata.duration = count / metadata.fps if metadata.fps else None
    return kept, count


def _frames(av, container, name: str) -> Iterator:
    """Every frame that can be decoded, in order of display."""
    stream = _video_streams(av, container)[0]
    stream.thread_type = "AUTO"
    for packet in _packets(av, container, stream, name):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            logger.warning(f"A part of the video {name} can't be decoded and is left out.")


def _packets(av, container, stream, name: str) -> Iterator:
    """The packets that hold something to show, and the empty one at the end; stops where the file breaks off."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning(f"The video {name} can't be read to its end: {error}.")
            return
        if packet is None:
            return
        if packet.is_corrupt:
            logger.warning(f"The video {name} is damaged or cut off; a part of it is left out.")
        elif not packet.is_discard:
            yield packet


def upright_pixels(frame) -> torch.Tensor:
    """A PyAV frame as 8-bit `(3, height, width)`, turned as its display matrix says."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(pixels, round(frame.rotation / 90), dims=(1, 2)).contiguous()


def _video_streams(av, container) -> list:
    """Not the cover of a sound file, which is a video stream too."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def _open_container(av, file: str | IO[bytes]):
    if hasattr(file, "seek"):
        file.seek(0)
    return av.open(file)


def _all_frames(metadata: VideoMetadata) -> np.ndarray:
    return np.arange(metadata.total_num_frames)


def _are_paths(items: list) -> bool:
    return all(isinstance(item, (str, bytes, os.PathLike)) for item in items)


__all__ = ["LlavaMiniVideoProcessor"]
