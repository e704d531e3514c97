# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
What LLaVA-Mini is shown, in every form that it takes, and what it keeps of that between questions. Shapes: see
`modeling_llava_mini.py`.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache
from transformers.modeling_outputs import ModelOutput

from .configuration_llava_mini import LlavaMiniConfig
from .modules_llava_mini import KeyValues, LlavaMiniVisionOutput, assign_units, read_counts


# Bytes that the vision side may use at a time unless the caller says otherwise. Small on CPUs, where a chunk that
# stays in the caches is the fastest; on accelerators large enough to fill them.
DEFAULT_MEMORY_BUDGET = {"cpu": 256 * 2**20}
DEFAULT_ACCELERATOR_MEMORY_BUDGET = 2 * 2**30


def units_per_chunk(config: LlavaMiniConfig, reference: torch.Tensor, memory_budget: int | None = None) -> int:
    """
    How many visual units go through tower, compressor and pre-fusion at a time: as many as fit in `memory_budget`
    bytes by what a unit's activations and pre-fusion keys and values take, at least one. Results don't depend on it.

    Args:
        reference: a tensor of the device and dtype that the model computes in.
        memory_budget (`int`, *optional*): bytes; by default 256 MiB on CPUs and 2 GiB elsewhere.

    Raises:
        ValueError: `memory_budget` is not positive.
    """
    if memory_budget is None:
        memory_budget = DEFAULT_MEMORY_BUDGET.get(reference.device.type, DEFAULT_ACCELERATOR_MEMORY_BUDGET)
    if memory_budget <= 0:
        raise ValueError(f"`vision_memory_budget` is {memory_budget}, but has to be a positive number of bytes.")
    vision, text = config.vision_config, config.text_config
    patches = config.num_crops * config.vision_grid_size**2
    length = patches + config.num_image_tokens
    # A layer's largest moment: input, normed input, queries, keys, values and attended, or the MLP's three.
    tower = (patches + config.num_crops) * (6 * vision.hidden_size + 2 * vision.intermediate_size)
    prefusion = length * (6 * text.hidden_size + 3 * text.intermediate_size)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kept = length * config.num_prefusion_layers * 2 * text.num_key_value_heads * head_dim
    return max(1, memory_budget // ((max(tower, prefusion) + kept) * reference.element_size()))


@dataclass
class LlavaMiniVisualChunk:
    r"""
    Some encoded visual units.

    Args:
        tokens (`torch.Tensor` of shape `(U, CC, D)`): as they enter the language model.
        key_values: a pair `(U, key_value_heads, V + CC, head_dim)` for every pre-fusion layer.
        features (`torch.Tensor` of shape `(U, K, P, Dv)`): patch features of the tower.
        attentions (`torch.Tensor` of shape `(U, CC, G * G)`, *optional*): where the tokens looked.
    """

    tokens: torch.Tensor
    key_values: KeyValues = ()
    features: torch.Tensor | None = None
    attentions: torch.Tensor | None = None

    @classmethod
    def join(cls, chunks: list["LlavaMiniVisualChunk"]) -> "LlavaMiniVisualChunk":
        """Chunks in order as one."""
        if len(chunks) == 1:
            return chunks[0]
        parts = [chunk.tensors() for chunk in chunks]
        return cls.from_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything by name."""
        named = {"tokens": self.tokens, "features": self.features, "attentions": self.attentions}
        for i, (keys, values) in enumerate(self.key_values):
            named |= {f"keys.{i}": keys, f"values.{i}": values}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> "LlavaMiniVisualChunk":
        """The inverse of `tensors`."""
        num_layers = sum(name.startswith("keys.") for name in tensors)
        key_values = tuple((tensors[f"keys.{i}"], tensors[f"values.{i}"]) for i in range(num_layers))
        return cls(tensors["tokens"], key_values, tensors.get("features"), tensors.get("attentions"))

    def select(self, units: torch.Tensor) -> "LlavaMiniVisualChunk":
        """The given units `(n,)` alone."""
        return self.from_tensors({name: tensor[units.to(tensor.device)] for name, tensor in self.tensors().items()})


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


@dataclass
class LlavaMiniTurn:
    r"""
    The text part of a context: the prompt that has been run.

    Args:
        input_ids (`torch.Tensor` of shape `(1, S)`): the prompt.
        num_kept (`torch.Tensor` of shape `(S,)`): fused tokens up to and with each position.
        visuals (`dict[str, LlavaMiniVisualChunk]`): units with pre-fusion keys and values of vision and the kept text.
        cache (`DynamicCache`): the language model's keys and values of the prompt.
    """

    input_ids: torch.Tensor
    num_kept: torch.Tensor
    visuals: dict[str, LlavaMiniVisualChunk]
    cache: DynamicCache | None = None

    def count_shared(self, input_ids: torch.Tensor, placeholders: dict[str, torch.Tensor]) -> int:
        """
        How many of the turn's tokens `input_ids` `(1, S)` begins with; 0 when that leaves out a placeholder, since
        images and videos are not kept in parts. One token at least is left to run.
        """
        length = min(input_ids.shape[1] - 1, self.input_ids.shape[1])
        differs = (input_ids[0, :length] != self.input_ids[0, :length]).nonzero()
        shared = int(differs[0]) if len(differs) else length
        return 0 if any(mask[:, shared:].any() for mask in placeholders.values()) else shared

    def crop(self, length: int) -> "LlavaMiniTurn":
        """The turn's first `length` tokens."""
        dropped = int(self.num_kept[-1] - self.num_kept[length - 1])
        visuals = {}
        for name, chunk in self.visuals.items():
            pairs = (tuple(tensor[:, :, : tensor.shape[2] - dropped] for tensor in pair) for pair in chunk.key_values)
            visuals[name] = replace(chunk, key_values=tuple(pairs))
        return LlavaMiniTurn(self.input_ids[:, :length], self.num_kept[:length], visuals, self.cache)


@dataclass
class LlavaMiniVisionContext:
    r"""
    Encoded images and videos, made by `encode_visuals` and reused by `generate(..., vision_context=...)`: later
    questions run text only.

    Args:
        visuals (`dict[str, LlavaMiniVisualChunk]`): "image" and "video" units of all rows, in order.
        sizes (`dict[str, list[int]]`): visual units of each image (1) and each video (its frames).
        rows (`dict[str, list[int]]`, *optional*): the row of each image and video; known when `input_ids` were given.
        keep_text (`bool`): whether `generate` keeps the prompt's keys and values for the next turn.
        turn (`LlavaMiniTurn`, *optional*): what it kept.
    """

    visuals: dict[str, LlavaMiniVisualChunk]
    sizes: dict[str, list[int]]
    rows: dict[str, list[int]] | None = None
    keep_text: bool = False
    turn: LlavaMiniTurn | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept, the language model's cache included."""
        total = sum(t.nbytes for chunk in self.visuals.values() for t in chunk.tensors().values())
        if self.turn is not None:
            total += sum(t.nbytes for chunk in self.turn.visuals.values() for t in chunk.tensors().values())
            total += sum(layer.keys.nbytes + layer.values.nbytes for layer in self.turn.cache.layers)
        return total

    def to(self, device: torch.device | str) -> "LlavaMiniVisionContext":
        """A copy on `device`, without the text of earlier turns (it is run again with the next question)."""
        visuals = {
            name: chunk.from_tensors({key: tensor.to(device) for key, tensor in chunk.tensors().items()})
            for name, chunk in self.visuals.items()
        }
        return replace(self, visuals=visuals, turn=None)

    def __getitem__(self, rows: int | list[int]) -> "LlavaMiniVisionContext":
        """
        The images and videos of one row or some rows, in that order.

        Raises:
            ValueError: the rows are not known, since `encode_visuals` got no `input_ids`.
        """
        if self.rows is None:
            raise ValueError("This context knows no rows: pass `input_ids` to `encode_visuals` as well.")
        rows = [rows] if isinstance(rows, int) else list(rows)
        visuals, sizes, new_rows = {}, {}, {}
        for name, chunk in self.visuals.items():
            offsets = [0]
            for size in self.sizes[name]:
                offsets.append(offsets[-1] + size)
            items = [(new, i) for new, row in enumerate(rows) for i, own in enumerate(self.rows[name]) if own == row]
            if items:
                units = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for _, i in items])
                visuals[name] = chunk.select(units)
                sizes[name], new_rows[name] = [self.sizes[name][i] for _, i in items], [new for new, _ in items]
        return replace(self, visuals=visuals, sizes=sizes, rows=new_rows, turn=None)

    def save(self, path: str | os.PathLike):
        """Writes the context to a safetensors file, without the text of earlier turns."""
        tensors = {
            f"{name}.{key}": tensor.contiguous()
            for name, chunk in self.visuals.items()
            for key, tensor in chunk.tensors().items()
        }
        facts = {"sizes": self.sizes, "rows": self.rows, "keep_text": self.keep_text}
        save_file(tensors, path, metadata={"llava_mini_vision_context": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu") -> "LlavaMiniVisionContext":
        """
        Reads what `save` wrote.

        Raises:
            ValueError: the file holds no context.
        """
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = (file.metadata() or {}).get("llava_mini_vision_context")
            if facts is None:
                raise ValueError(
                    f"{path} holds no vision context: pass a file that `LlavaMiniVisionContext.save` wrote."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file handle, no mapping)
        facts = json.loads(facts)
        visuals = {}
        for name in facts["sizes"]:
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            visuals[name] = LlavaMiniVisualChunk.from_tensors(own)
        return cls(visuals, **facts)


class LlavaMiniVisualsMixin:
    """What a model is shown, in every form that it takes: pixels, streams, features, contexts."""

    def encode_visuals(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | list | None = None,
        video_num_frames: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        keep: Literal["key_values", "features"] = "key_values",
        keep_text: bool = False,
        vision_memory_budget: int | None = None,
    ) -> LlavaMiniVisionContext:
        """
        Images and videos encoded once, for any number of questions. A processor's whole output can be passed.

        Args:
            input_ids (`torch.Tensor` of shape `(B, S)`, *optional*): tells which row each image and video belongs to,
                so that the context can be indexed by row.
            attention_mask: not used.
            keep (`str`, defaults to `"key_values"`): "key_values" keeps what the text reads, so that a question costs
                text only. "features" keeps the tower's patch features: `num_prefusion_layers * 2 * key_value_heads *
                head_dim / Dv` times less memory, and compressor, projector and pre-fusion run again with each question.
            keep_text (`bool`): also keep the prompt's keys and values, so that the next turn of a conversation runs
                only the last answer and the new question; for one row, without beams.
            vision_memory_budget (`int`, *optional*): bytes to use at a time, see `units_per_chunk`.

        Returns:
            `LlavaMiniVisionContext`, for `generate(..., vision_context=...)`.

        Raises:
            ValueError: an unknown `keep`; pixels and placeholders contradict each other.
        """
        what_is_dropped = {"key_values": {"features": None}, "features": {"key_values": ()}}
        if keep not in what_is_dropped:
            raise ValueError(f"`keep` is {keep!r}, but has to be one of {', '.join(map(repr, what_is_dropped))}.")
        opened = self.open_visuals(
            pixel_values, pixel_values_videos, video_num_frames, vision_memory_budget=vision_memory_budget
        )
        rows = None
        if input_ids is not None:
            masks = self.get_placeholder_mask(input_ids, None)
            held = dict(zip(masks, read_counts(masks.values())))
            rows = {name: assign_units(self.config, name, held[name], visual.sizes) for name, visual in opened.items()}
        visuals = {
            name: LlavaMiniVisualChunk.join([replace(chunk, **what_is_dropped[keep]) for chunk in visual.chunks])
            for name, visual in opened.items()
        }
        sizes = {name: visual.sizes for name, visual in opened.items()}
        return LlavaMiniVisionContext(visuals, sizes, rows, keep_text)

    def open_visuals(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | list | None = None,
        video_num_frames: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        vision_context: LlavaMiniVisionContext | None = None,
        output_compressor_attentions: bool = False,
        vision_memory_budget: int | None = None,
    ) -> dict[str, LlavaMiniVisuals]:
        """
        `{"image": ..., "video": ...}` with what is given, as pixels or already encoded; nothing is run yet. Arguments:
        see `LlavaMiniModel.forward`.

        Raises:
            ValueError: one modality in several forms, or pixels that don't match the configuration.
        """
        options = (output_compressor_attentions, vision_memory_budget)
        visuals = {}
        for name, chunk in (vision_context.visuals if vision_context else {}).items():
            chunks = [chunk] if chunk.features is None else self.encode_chunks([chunk.features], *options)
            visuals[name] = LlavaMiniVisuals(vision_context.sizes[name], chunks)
        outputs = {name: output for name, output in (mm_encoder_outputs or {}).items() if output is not None}
        for name, pixels in (("image", pixel_values), ("video", pixel_values_videos)):
            if (pixels is not None) + (name in outputs) + (name in visuals) > 1:
                raise ValueError(
                    f"Got {name}s in more than one form: pass only one of pixels, `mm_encoder_outputs` and "
                    "`vision_context`."
                )
        visuals |= {name: self.open_features(output) for name, output in outputs.items()}
        if pixel_values is not None:
            visuals["image"] = self.open_images(pixel_values, *options)
        if pixel_values_videos is not None:
            visuals["video"] = self.open_videos(pixel_values_videos, video_num_frames, *options)
        return visuals

    def open_images(
        self, pixel_values: torch.Tensor, output_attentions: bool = False, memory_budget: int | None = None
    ) -> LlavaMiniVisuals:
        """Images `(images, K, 3, height, width)`, to be encoded chunk by chunk."""
        check_crops(self.config, "pixel_values", pixel_values, 5)
        return LlavaMiniVisuals(
            [1] * len(pixel_values), self.encode_chunks([pixel_values], output_attentions, memory_budget)
        )

    def open_videos(
        self,
        pixel_values_videos: torch.Tensor | list,
        video_num_frames: torch.Tensor | None = None,
        output_attentions: bool = False,
        memory_budget: int | None = None,
    ) -> LlavaMiniVisuals:
        """
        Videos, to be encoded chunk by chunk: a padded tensor `(videos, frames, K, 3, height, width)`, or a list of
        streams, each with `num_frames` and yielding frames `(n, K, 3, height, width)` when iterated.
        """
        if isinstance(pixel_values_videos, torch.Tensor):
            check_crops(self.config, "pixel_values_videos", pixel_values_videos, 6)
            sizes = count_frames(pixel_values_videos, video_num_frames)
            frames = [select_frames(pixel_values_videos, sizes)]
        else:
            sizes = [stream.num_frames for stream in pixel_values_videos]
            frames = (frames for stream in pixel_values_videos for frames in stream)
        return LlavaMiniVisuals(sizes, self.encode_chunks(frames, output_attentions, memory_budget))

    def open_features(self, output: LlavaMiniVisionOutput) -> LlavaMiniVisuals:
        """What `get_image_features` or `get_video_features` returned."""
        count = self.config.num_image_tokens
        tokens = torch.cat(list(output.pooler_output)).unflatten(0, (-1, count))
        chunk = LlavaMiniVisualChunk(tokens, output.prefusion_key_values, attentions=output.compressor_attentions)
        return LlavaMiniVisuals([len(tokens) // count for tokens in output.pooler_output], [chunk])


def check_crops(config: LlavaMiniConfig, name: str, pixel_values: torch.Tensor, ndim: int) -> None:
    """
    Raises:
        ValueError: pixels `name` have not `ndim` dimensions, or not the configuration's crops, channels and size.
    """
    vision = config.vision_config
    expected = (config.num_crops, vision.num_channels, vision.image_size, vision.image_size)
    if pixel_values.ndim != ndim or tuple(pixel_values.shape[-4:]) != expected:
        leading = "images" if ndim == 5 else "videos, frames"
        raise ValueError(
            f"`{name}` has shape {tuple(pixel_values.shape)}, but has to be ({leading}, crops, channels, height, "
            f"width) ending in {expected}: `resolution_ratio` {config.resolution_ratio} makes "
            f"{config.num_crops} crop(s) an image. Use the processor saved with this model."
        )


def count_frames(pixel_values_videos: torch.Tensor, video_num_frames: torch.Tensor | None) -> list[int]:
    """
    Frames of each video that count, of `(videos, frames, K, 3, height, width)`.

    Raises:
        ValueError: not one number a video, or a number that the tensor cannot hold.
    """
    num_videos, max_frames = pixel_values_videos.shape[:2]
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
