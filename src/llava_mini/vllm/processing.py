# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts with pictures to what the model reads: the whole prompt as ONE multimodal item."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalInput, mm_input
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import EmbeddingItems, ModalityDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    TimingContext,
)

from llava_mini.configuration_llava_mini import LlavaMiniConfig
from llava_mini.processing_llava_mini import LlavaMiniProcessor
from llava_mini.vllm.video import VideoFile


MODALITIES = ("image", "video")
# Frames of the video with which vLLM measures memory: they go through the front in chunks, however many they are.
PROFILED_FRAMES = 8
# An id that every vocabulary has, for the text of the prompt with which vLLM measures memory.
PROFILED_TOKEN_ID = 5
# Frames that are made pixels at a time: float32 takes four times what decoded frames take, and goes piece by piece.
FRAMES_AT_A_TIME = 64


class LlavaMiniDataParser(MultiModalDataParser):
    """Takes videos that have not been decoded as well."""

    def _get_video_with_metadata(self, video):
        if isinstance(video, MediaWithBytes) and isinstance(video.media[0], VideoFile):
            video = video.media[0]
        return (video, None) if isinstance(video, VideoFile) else super()._get_video_with_metadata(video)


class LlavaMiniProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about the model's inputs."""

    def get_hf_config(self) -> LlavaMiniConfig:
        return self.ctx.get_hf_config(LlavaMiniConfig)

    def get_hf_processor(self, **kwargs: object) -> LlavaMiniProcessor:
        return self.hf_processor

    @cached_property
    def hf_processor(self) -> LlavaMiniProcessor:
        """The checkpoint's own, the authors' layout included."""
        model = self.ctx.model_config
        options = self.ctx.get_mm_config().mm_processor_kwargs or {}
        return LlavaMiniProcessor.from_pretrained(model.model, revision=model.revision, **options)

    def get_data_parser(self) -> MultiModalDataParser:
        return LlavaMiniDataParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return dict.fromkeys(MODALITIES)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        # The item is the whole prompt.
        return dict.fromkeys(mm_counts, self.ctx.model_config.max_model_len)


class LlavaMiniDummyInputsBuilder(BaseDummyInputsBuilder[LlavaMiniProcessingInfo]):
    """The prompt with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        processor = self.info.get_hf_processor()
        return processor.image_token * mm_counts.get("image", 0) + processor.video_token * mm_counts.get("video", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> dict[str, list]:
        size = self.info.get_hf_config().vision_config.image_size
        images = self._get_dummy_images(width=size, height=size, num_images=mm_counts.get("image", 0))
        room = self.info.ctx.model_config.max_model_len // self.info.get_hf_config().num_image_tokens
        frames = max(1, min(PROFILED_FRAMES, room - 1))
        videos = self._get_dummy_videos(
            width=size, height=size, num_frames=frames, num_videos=mm_counts.get("video", 0)
        )
        return {"image": images, "video": videos}


class LlavaMiniMultiModalProcessor(BaseMultiModalProcessor[LlavaMiniProcessingInfo]):
    """
    One item for the whole prompt: `prompt_ids` `(L,)`, `pixel_values` `(images, K, 3, height, width)`,
    `pixel_values_videos` `(frames, K, 3, height, width)` of all videos and `video_num_frames` `(videos,)`.
    """

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> ProcessorInputs:
        """The longest prompt: vision tokens alone would measure too little."""
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        data = inputs.mm_data_items
        units = len(data.get("image", ())) + sum(len(video) for video in data.get("video", ()))
        placeholders = sum(mm_counts.values())
        length = self.info.ctx.model_config.max_model_len - units * self.info.get_hf_config().num_image_tokens
        ids = inputs.prompt[len(inputs.prompt) - placeholders :]  # without what the tokenizer puts in front
        inputs.prompt = ids + [PROFILED_TOKEN_ID] * length
        return inputs

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """
        Ids with expanded placeholders and the one item that they are.

        Raises:
            ValueError: pictures and placeholders don't match, can't be read or don't fit; an option of the request that
                LLaVA-Mini does not have.
        """
        if inputs.hf_processor_mm_kwargs:
            raise ValueError(f"`mm_processor_kwargs` {sorted(inputs.hf_processor_mm_kwargs)} can't be chosen here.")
        if inputs.media_io_kwargs.get("image"):
            raise ValueError("`media_io_kwargs` of images can't be chosen here: they are read as the processor does.")
        images, videos = (self._take(inputs, modality) for modality in MODALITIES)
        self._check_counts(inputs.prompt, {"image": images, "video": videos})
        with timing_ctx.record("apply_hf_processor"):
            kwargs = self._read(images, videos, len(inputs.prompt))
        ids = self._expand(inputs.prompt, kwargs["video_num_frames"].tolist())
        self._check_length(len(ids))
        kwargs["prompt_ids"] = torch.tensor(ids)
        modality = "image" if images else "video"
        with timing_ctx.record("get_mm_hashes"):
            # Of what the model reads, whatever a request calls its pictures.
            algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
            item_hash = MultiModalHasher.hash_kwargs(algorithm, model_id=self.info.model_id, **kwargs)
        data = BatchFeature({name: [tensor] for name, tensor in kwargs.items()})
        return mm_input(
            prompt_token_ids=ids,
            mm_kwargs=MultiModalKwargsItems.from_hf_inputs(data, self._fields(modality)),
            mm_hashes={modality: [item_hash]},
            mm_placeholders={modality: [PlaceholderRange(offset=0, length=len(ids))]},
        )

    def _take(self, inputs: ProcessorInputs, modality: str) -> list:
        items: ModalityDataItems | list = inputs.mm_data_items.get(modality, [])
        if isinstance(items, EmbeddingItems):
            raise ValueError(f"Got embeddings of {modality}s, but the prompt's text is fused with pixels: send these.")
        taken = [items.data[i] for i in range(len(items))] if items else []
        if any(item is None or isinstance(item, str) for item in taken):
            raise ValueError(f"A {modality} has no content: send it with every request, whatever its uuid.")
        return taken

    def _check_counts(self, prompt: list[int], given: dict[str, list]) -> None:
        config, processor = self.info.get_hf_config(), self.info.get_hf_processor()
        tokens = {"image": processor.image_token, "video": processor.video_token}
        for modality, token_id in (("image", config.image_token_id), ("video", config.video_token_id)):
            if (held := prompt.count(token_id)) != len(given[modality]):
                raise ValueError(
                    f"Got {len(given[modality])} {modality}s and {held} {tokens[modality]!r} placeholders in the "
                    "prompt. Write one for each, or let the chat template do it."
                )

    def _read(self, images: list, videos: list, length: int) -> dict[str, torch.Tensor]:
        """Pixels in the model's type, and how many frames each video has; `length` is the prompt's without them."""
        config, processor = self.info.get_hf_config(), self.info.get_hf_processor()
        size = config.vision_config.image_size
        dtype = self.info.ctx.model_config.dtype
        pixels, frames = torch.zeros(2, 0, config.num_crops, 3, size, size, dtype=dtype)
        counts = torch.zeros(0, dtype=torch.long)
        if images:
            # The file itself where there is one: vLLM reads colours with and without transparency otherwise.
            sources = [item.original_bytes if isinstance(item, MediaWithBytes) else item for item in images]
            pixels = processor.image_processor(sources, return_tensors="pt")["pixel_values"]
        if videos:
            read = []
            for video in videos:
                read.append(self._read_video(video, length))
                length += len(read[-1]) * config.num_image_tokens
            frames, counts = torch.cat(read), torch.tensor([len(video) for video in read])
        return {"pixel_values": pixels.to(dtype), "pixel_values_videos": frames, "video_num_frames": counts}

    def _read_video(self, video: VideoFile | MediaWithBytes | np.ndarray | torch.Tensor, length: int) -> torch.Tensor:
        """Pixels `(frames, K, 3, height, width)`; what would not fit behind `length` tokens is not decoded."""
        processor = self.info.get_hf_processor().video_processor
        pieces = [video.media if isinstance(video, MediaWithBytes) else video]
        if isinstance(video, VideoFile):

            def sample(metadata):
                indices = processor.sample_frames(metadata=metadata, **video.sampling)
                self._check_length(length + len(indices) * self.info.get_hf_config().num_image_tokens)
                return indices

            frames, _ = processor.fetch_videos(
                video.content,
                sample,
                None if processor.keep_aspect_ratio else processor.crop_size,
                max_pixels=processor.max_pixels,
                min_decodable_share=processor.min_decodable_share,
            )
            pieces = frames.split(FRAMES_AT_A_TIME)
        dtype = self.info.ctx.model_config.dtype
        pixels = (processor([piece], do_sample_frames=False, return_tensors="pt") for piece in pieces)
        return torch.cat([piece["pixel_values_videos"][0].to(dtype) for piece in pixels])

    def _check_length(self, length: int) -> None:
        limit = self.info.ctx.model_config.max_model_len
        if length > limit:
            raise ValueError(
                f"The prompt has {length} tokens, more than this server's {limit}: send fewer images, frames (`fps` "
                "and `num_frames` of `media_io_kwargs`) or words."
            )

    def _expand(self, prompt: list[int], num_frames: list[int]) -> list[int]:
        """C*C tokens for an image's placeholder, frames * C*C for a video's."""
        config = self.info.get_hf_config()
        lengths = iter(num_frames)
        ids = []
        for token_id in prompt:
            count = 1
            if token_id == config.image_token_id:
                count = config.num_image_tokens
            elif token_id == config.video_token_id:
                count = next(lengths) * config.num_image_tokens
            ids += [token_id] * count
        return ids

    @staticmethod
    def _fields(modality: str) -> dict[str, MultiModalFieldConfig]:
        """All tensors of one item. Frames stay on the host, from where the front takes a chunk at a time."""
        on_device = MultiModalFieldConfig.batched(modality)
        on_host = MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
        return {
            "prompt_ids": on_device,
            "pixel_values": on_device,
            "pixel_values_videos": on_host,
            "video_num_frames": on_host,
        }

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]):
        raise NotImplementedError("`apply` makes the item itself.")

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        raise NotImplementedError("`apply` expands placeholders itself.")
