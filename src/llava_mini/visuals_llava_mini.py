# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What a model is shown, in every form that it takes: pixels, streams, features; and how much of it at a time. Shapes: see
`modeling_llava_mini.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers.utils.hub import convert_file_size_to_int

from .configuration_llava_mini import LlavaMiniConfig
from .input_checks_llava_mini import check_pixels, describe
from .outputs_llava_mini import LlavaMiniVisionOutput


# Bytes that the vision side may use at a time unless the caller says otherwise. Small on CPUs, where a chunk that
# stays in the caches is the fastest; on accelerators large enough to fill them.
DEFAULT_MEMORY_BUDGET = {"cpu": 256 * 2**20}
DEFAULT_ACCELERATOR_MEMORY_BUDGET = 2 * 2**30


def units_per_chunk(config: LlavaMiniConfig, reference: torch.Tensor, memory_budget: int | str | None = None) -> int:
    """
    How many visual units go through tower, compressor and pre-fusion at a time: as many as fit in `memory_budget`
    bytes by what a unit's activations and pre-fusion keys and values take, at least one. Results don't depend on it.

    Args:
        reference: a tensor of the device and dtype that the model computes in.
        memory_budget (`int` or `str`, *optional*): bytes, or a size such as "4GB" or "512MiB"; by default 256 MiB on
            CPUs and 2 GiB elsewhere.

    Raises:
        ValueError: `memory_budget` is no size, or not positive.
    """
    if memory_budget is None:
        memory_budget = DEFAULT_MEMORY_BUDGET.get(reference.device.type, DEFAULT_ACCELERATOR_MEMORY_BUDGET)
    try:
        num_bytes = convert_file_size_to_int(memory_budget)
    except (ValueError, AttributeError):
        num_bytes = 0
    if not num_bytes > 0:
        raise ValueError(
            f"`vision_memory_budget` is {memory_budget!r}, but has to be a positive number of bytes, or a size such as "
            "'4GB' or '512MiB'."
        )
    vision, text = config.vision_config, config.text_config
    patches = config.num_crops * config.vision_grid_size**2
    length = patches + config.num_image_tokens
    # A layer's largest moment: input, normed input, queries, keys, values and attended, or the MLP's three.
    tower = (patches + config.num_crops) * (6 * vision.hidden_size + 2 * vision.intermediate_size)
    prefusion = length * (6 * text.hidden_size + 3 * text.intermediate_size)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kept = length * config.num_prefusion_layers * 2 * text.num_key_value_heads * head_dim
    return max(1, int(num_bytes // ((max(tower, prefusion) + kept) * reference.element_size())))


@dataclass(repr=False)
class LlavaMiniVisualChunk:
    r"""
    Some encoded visual units.

    Args:
        tokens (`torch.Tensor` of shape `(U, CC, D)`): as they enter the language model.
        key_values: a pair `(U, key_value_heads, V + CC, head_dim)` for every pre-fusion layer.
        features (`torch.Tensor` of shape `(U, K, P, Dv)`): patch features of the tower.
        attentions (`torch.Tensor` of shape `(U, CC, G * G)`, *optional*): where the tokens looked.
        dropped (`torch.Tensor` of shape `(U,)`, *optional*): how many of the V patches pre-fusion did not read; `None`
            is none. A unit that dropped more than another has its keys and values behind that much padding, which
            nobody reads: see `groups`.
    """

    tokens: torch.Tensor
    key_values: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    features: torch.Tensor | None = None
    attentions: torch.Tensor | None = None
    dropped: torch.Tensor | None = None

    def __repr__(self) -> str:
        """In one line, whatever it holds, and without the numbers in it."""
        shapes = (f"{name}={tuple(tensor.shape)}" for name, tensor in self.tensors().items())
        return f"{type(self).__name__}({', '.join(shapes)})"

    @classmethod
    def join(cls, chunks: list["LlavaMiniVisualChunk"]) -> "LlavaMiniVisualChunk":
        """Chunks in order as one."""
        if len(chunks) == 1:
            return chunks[0]
        if chunks[0].dropped is not None:
            least = min(int(chunk.dropped.min()) for chunk in chunks)
            chunks = [chunk.pad(int(chunk.dropped.min()) - least) for chunk in chunks]
        parts = [chunk.tensors() for chunk in chunks]
        return cls.from_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything by name."""
        named = {"tokens": self.tokens, "features": self.features, "attentions": self.attentions}
        named["dropped"] = self.dropped
        for i, (keys, values) in enumerate(self.key_values):
            named |= {f"keys.{i}": keys, f"values.{i}": values}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "LlavaMiniVisualChunk":
        """The inverse of `tensors`."""
        num_layers = sum(name.startswith("keys.") for name in tensors)
        key_values = tuple((tensors[f"keys.{i}"], tensors[f"values.{i}"]) for i in range(num_layers))
        others = (tensors.get(name) for name in ("features", "attentions", "dropped"))
        return cls(tensors["tokens"], key_values, *others)

    def select(self, units: torch.Tensor) -> "LlavaMiniVisualChunk":
        """The given units `(n,)` alone."""
        chosen = {name: tensor[units.to(tensor.device)] for name, tensor in self.tensors().items()}
        chosen = self.from_tensors(chosen)
        return chosen if self.dropped is None else chosen.pad(int(self.dropped.min()) - int(chosen.dropped.min()))

    def pad(self, length: int) -> "LlavaMiniVisualChunk":
        """With `length` more positions of padding before all keys and values; fewer when it is negative."""
        pairs = (tuple(nn.functional.pad(states, (0, 0, length, 0)) for states in pair) for pair in self.key_values)
        return replace(self, key_values=tuple(pairs)) if length else self

    def groups(self) -> list[tuple[torch.Tensor | slice, "LlavaMiniVisualChunk"]]:
        """Units that dropped the same number of patches, hence have no padding: which they are, and these alone."""
        groups = find_equal([0] if self.dropped is None else self.dropped.tolist()).values()
        return [(units, self if isinstance(units, slice) else self.select(units)) for units in groups]

    @classmethod
    def regroup(cls, groups: list[tuple[torch.Tensor | slice, "LlavaMiniVisualChunk"]]) -> "LlavaMiniVisualChunk":
        """The inverse of `groups`."""
        chunk = cls.join([part for _, part in groups])
        return chunk if len(groups) == 1 else chunk.select(torch.cat([units for units, _ in groups]).argsort())


def find_equal(numbers: list[int]) -> dict[int, torch.Tensor | slice]:
    """Where each of the numbers stands: `[3, 5, 3]` to `{3: [0, 2], 5: [1]}`; a slice where all are one."""
    if len(set(numbers)) == 1:
        return {numbers[0]: slice(None)}
    return {n: torch.tensor([i for i, own in enumerate(numbers) if own == n]) for n in sorted(set(numbers))}


@dataclass
class LlavaMiniVisuals:
    """
    The images or the videos of a batch, encoded chunk by chunk as somebody asks.

    Args:
        sizes (`list[int]`): visual units of each image (1) or video (its frames).
        chunks: encoded units in order; consumed once.
    """

    sizes: list[int]
    chunks: Iterable[LlavaMiniVisualChunk]


# Pixels `(U, K, 3, height, width)` or patch features `(U, K, P, Dv)` to encoded units, chunk by chunk.
Encode = Callable[[Iterable[torch.Tensor]], Iterator[LlavaMiniVisualChunk]]


def open_images(config: LlavaMiniConfig, encode: Encode, pixel_values: torch.Tensor) -> LlavaMiniVisuals:
    """
    Images `(images, K, 3, height, width)`, to be encoded chunk by chunk.

    Raises:
        ValueError: pixels that don't match the configuration.
    """
    check_crops(config, "pixel_values", pixel_values, 5)
    return LlavaMiniVisuals([1] * len(pixel_values), encode([pixel_values]))


def open_videos(
    config: LlavaMiniConfig,
    encode: Encode,
    pixel_values_videos: torch.Tensor | list,
    video_num_frames: torch.Tensor | None = None,
) -> LlavaMiniVisuals:
    """
    Videos, to be encoded chunk by chunk: a padded tensor `(videos, frames, K, 3, height, width)`, or a list of streams,
    each with `num_frames` and yielding frames `(n, K, 3, height, width)` when iterated.

    Raises:
        ValueError: pixels or frame counts that don't match the configuration or each other.
    """
    if isinstance(pixel_values_videos, torch.Tensor):
        check_crops(config, "pixel_values_videos", pixel_values_videos, 6)
        sizes = count_frames(pixel_values_videos, video_num_frames)
        frames = [select_frames(pixel_values_videos, sizes)]
    else:
        sizes = [stream.num_frames for stream in pixel_values_videos]
        frames = (frames for stream in pixel_values_videos for frames in stream)
    return LlavaMiniVisuals(sizes, encode(frames))


def open_features(config: LlavaMiniConfig, output: LlavaMiniVisionOutput) -> LlavaMiniVisuals:
    """What `get_image_features` or `get_video_features` returned."""
    count = config.num_image_tokens
    tokens = torch.cat(list(output.pooler_output)).unflatten(0, (-1, count))
    chunk = LlavaMiniVisualChunk(
        tokens,
        output.prefusion_key_values,
        attentions=output.compressor_attentions,
        dropped=output.prefusion_dropped,
    )
    return LlavaMiniVisuals([len(tokens) // count for tokens in output.pooler_output], [chunk])


def open_visuals(
    config: LlavaMiniConfig,
    encode: Encode,
    pixel_values: torch.Tensor | None,
    pixel_values_videos: torch.Tensor | list | None,
    video_num_frames: torch.Tensor | None,
    encoded: dict[str, LlavaMiniVisionOutput | None],
    kept: dict[str, LlavaMiniVisuals],
) -> dict[str, LlavaMiniVisuals]:
    """
    `{"image": ..., "video": ...}` with what is given; nothing is run yet.

    Args:
        encoded: "image" and "video" as `get_image_features` and `get_video_features` returned them.
        kept: likewise, as a context kept them.

    Raises:
        ValueError: one modality in several forms, or pixels that don't match the configuration.
    """
    encoded = {name: output for name, output in encoded.items() if output is not None}
    for name, pixels in (("image", pixel_values), ("video", pixel_values_videos)):
        if (pixels is not None) + (name in encoded) + (name in kept) > 1:
            raise ValueError(
                f"Got {name}s in more than one form: pass only one of pixels, `mm_encoder_outputs` and "
                "`vision_context`."
            )
    visuals = kept | {name: open_features(config, output) for name, output in encoded.items()}
    if pixel_values is not None:
        visuals["image"] = open_images(config, encode, pixel_values)
    if pixel_values_videos is not None:
        visuals["video"] = open_videos(config, encode, pixel_values_videos, video_num_frames)
    return visuals


def check_crops(config: LlavaMiniConfig, name: str, pixel_values: torch.Tensor, ndim: int) -> None:
    """
    Raises:
        ValueError: pixels `name` are not floating point, have not `ndim` dimensions, or not the configuration's crops,
            channels and size.
    """
    vision = config.vision_config
    expected = (config.num_crops, vision.num_channels, vision.image_size, vision.image_size)
    hint = (
        f"`resolution_ratio` {config.resolution_ratio} makes {config.num_crops} crop(s) an image. Use the processor "
        "saved with this model."
    )
    check_pixels(name, pixel_values, ndim, expected, hint)


def count_frames(pixel_values_videos: torch.Tensor, video_num_frames: torch.Tensor | None) -> list[int]:
    """
    Frames of each video that count, of `(videos, frames, K, 3, height, width)`.

    Raises:
        ValueError: not one number a video, or a number that the tensor cannot hold.
    """
    num_videos, max_frames = pixel_values_videos.shape[:2]
    if video_num_frames is not None and video_num_frames.is_floating_point():
        raise ValueError(f"`video_num_frames` {describe(video_num_frames)}, but has to be integers, one a video.")
    counts = [max_frames] * num_videos if video_num_frames is None else video_num_frames.tolist()
    if len(counts) != num_videos or not all(0 < count <= max_frames for count in counts):
        raise ValueError(
            f"`video_num_frames` is {counts}, but `pixel_values_videos` holds {num_videos} videos of up to "
            f"{max_frames} frames: give each video a number from 1 to {max_frames}."
        )
    return counts


def select_frames(pixel_values_videos: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """
    The frames that count, flat: `(videos, frames, K, 3, height, width)` to `(U, K, 3, height, width)`. Padding is at
    the end, as the processor puts it; or zeros in front, where transformers' pipelines put it when they make batches.
    """
    frames = pixel_values_videos.shape[1]
    if all(count == frames for count in counts):
        return pixel_values_videos.flatten(0, 1)
    selected = []
    for video, count in zip(pixel_values_videos, counts):
        is_padded_in_front = count < frames and not video[: frames - count].any() and bool(video[count:].any())
        selected.append(video[frames - count :] if is_padded_in_front else video[:count])
    return torch.cat(selected)


def arrange_crops(config: LlavaMiniConfig, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Crop features `(U, K, P, Dv)` to the sub-images' common raster `(U, G * G, Dv)`, row-major, and the whole
    image `(U, P, Dv)`, which the compressor does not read; with N == 1 the image is the raster and there is no
    second part.
    """
    ratio, grid = config.resolution_ratio, config.vision_grid_size
    if ratio == 1:
        return features[:, 0], None
    tiles = features[:, :-1].unflatten(2, (grid, grid)).unflatten(1, (ratio, ratio))
    return tiles.transpose(2, 3).flatten(1, 4), features[:, -1]
