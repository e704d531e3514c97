# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Videos to pixels: decoding with PyAV, sampling and cropping as the authors do."""

import os
from collections.abc import Callable
from functools import partial

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
from .image_processing_pil_llava_mini import open_source


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
            num_crops = option("resolution_ratio") ** 2 + 1 if option("resolution_ratio") > 1 else 1
            empty = torch.zeros(0, 0, num_crops, 3, crop_size.height, crop_size.width)
            return self._collate([], empty, kwargs.get("return_tensors"))

        # Sampling happens here and not in the base class, which would decode every frame, fill in the default `fps`
        # beside a given `num_frames`, and look at the first video only to tell files from frames.
        sample = partial(self.sample_frames, fps=kwargs.pop("fps", None), num_frames=kwargs.pop("num_frames", None))
        if not option("do_sample_frames"):
            sample = _all_frames
        frame_size = None if option("keep_aspect_ratio") else crop_size
        metadata = kwargs.pop("video_metadata", None)
        metadata = [None] * len(videos) if metadata is None else make_batched_metadata(videos, metadata)
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
            f"Got a video of type {type(videos).__name__} and shape {getattr(videos, 'shape', None)}; expected a path, a "
            "URL, base64, bytes, a list of frames, or an array (frames, height, width, channels) or (frames, channels, "
            "height, width)."
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
        if metadata is None:
            metadata = VideoMetadata(total_num_frames=len(video))
        if sample is not _all_frames and metadata.total_num_frames != len(video):
            raise ValueError(
                f"`video_metadata` speaks of {metadata.total_num_frames} frames, but the video has {len(video)}. If "
                "they are sampled already, pass `do_sample_frames=False`."
            )
        indices = sample(metadata=metadata) if sample is not _all_frames else np.arange(len(video))
        frames = [self.fetch_images(video[i]) for i in indices]
        frames = [
            self.process_image(frame, do_convert_rgb=True, do_rescale=do_rescale, input_data_format=input_data_format)
            for frame in frames
        ]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError(f"The frames of a video have different sizes: {sorted({tuple(f.shape) for f in frames})}.")
        metadata.frames_indices = indices if metadata.frames_indices is None else metadata.frames_indices
        metadata.height, metadata.width = frames[0].shape[-2:]
        return torch.stack(frames), metadata

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
    try:
        import av
    except ImportError as error:
        raise ImportError("Decoding a video needs PyAV: `pip install av`, or pass decoded frames.") from error

    file = open_source(source, "video")
    name = source if isinstance(source, (str, os.PathLike)) else "the given bytes"
    name = str(name)[:80]
    try:
        metadata = _probe(av, file, name)
        # Containers don't always tell how many frames decode (fields coded apart, a cut-off file). The second pass
        # knows, and a third takes the right ones.
        for _ in range(2):
            announced = metadata.total_num_frames
            indices = sample_indices_fn(metadata=metadata)
            frames, metadata.total_num_frames = _decode(av, file, indices, frame_size, metadata, name)
            if metadata.total_num_frames == announced or len(frames) == 0:
                break
    except av.error.FFmpegError as error:
        raise ValueError(f"Could not read {name} as a video: {error}.") from error
    if not frames:
        raise ValueError(f"No frame of the video {name} can be decoded: it is empty or damaged.")
    metadata.frames_indices = indices
    return torch.stack(frames), metadata


def _probe(av, file, name: str) -> VideoMetadata:
    """Frames are counted by packets, since the number in the header is missing or wrong in many containers."""
    with _open_container(av, file) as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise ValueError(f"{name} has no video stream; it may be a sound or a subtitle file.")
        times = [packet.pts for packet in _packets(av, container, streams[0], name) if packet.size]
        announced = streams[0].duration * streams[0].time_base if streams[0].duration else None
        announced = announced or (container.duration or 0) / av.time_base
        known = [time for time in times if time is not None]
        span = float((max(known) - min(known)) * streams[0].time_base) if known else 0.0
        fps = float(streams[0].average_rate or (span and (len(known) - 1) / span))
    if not times:
        raise ValueError(f"The video {name} has no frames: it is empty or damaged.")
    if not fps and len(times) > 1:
        raise ValueError(f"The frame rate of the video {name} is not known. Re-encode it, or pass decoded frames.")
    if fps and span + 1 / fps < 0.95 * announced:
        logger.warning(f"{name} announces {announced:.1f} s of video and has {span + 1 / fps:.1f} s: is it cut off?")
    return VideoMetadata(total_num_frames=len(times), fps=fps or None, video_backend="pyav")


def _decode(
    av, file, indices: np.ndarray, frame_size: SizeDict | None, metadata: VideoMetadata, name: str
) -> tuple[list[torch.Tensor], int]:
    """The frames at `indices` and the number of all frames; fills in what only frames tell."""
    wanted, kept, count = set(indices.tolist()), [], 0
    with _open_container(av, file) as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        stream.thread_type = "AUTO"
        for packet in _packets(av, container, stream, name):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                logger.warning(f"A part of {name} can't be decoded and is left out.")
                continue
            for frame in frames:
                if count in wanted:
                    pixels = _upright_pixels(frame)
                    metadata.height, metadata.width = pixels.shape[-2:]
                    kept.append(pixels if frame_size is None else resize_nearest(pixels, frame_size))
                count += 1
    metadata.duration = count / metadata.fps if metadata.fps else None
    return kept, count


def _packets(av, container, stream, name: str):
    """The packets that hold something to show, and the empty one at the end; stops where the file breaks off."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning(f"{name} can't be read to its end: {error}.")
            return
        if packet is None:
            return
        if packet.is_corrupt:
            logger.warning(f"{name} is damaged or cut off; a part of it is left out.")
        elif not packet.is_discard:
            yield packet


def _upright_pixels(frame) -> torch.Tensor:
    """A PyAV frame as 8-bit `(3, height, width)`, turned as its display matrix says."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(pixels, round(frame.rotation / 90), dims=(1, 2)).contiguous()


def _open_container(av, file):
    if hasattr(file, "seek"):
        file.seek(0)
    return av.open(file)


def _all_frames(metadata: VideoMetadata) -> np.ndarray:
    return np.arange(metadata.total_num_frames)


def _are_paths(items: list) -> bool:
    return all(isinstance(item, (str, bytes, os.PathLike)) for item in items)


__all__ = ["LlavaMiniVideoProcessor"]
