# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""The model as vLLM runs it: our own front, and vLLM's own language model."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from llava_mini.configuration_llava_mini import ORIGINAL_MODEL_TYPE, LlavaMiniConfig
from llava_mini.front_llava_mini import LlavaMiniFront
from llava_mini.original_llava_mini import find_tower
from llava_mini.vllm.processing import (
    MODALITIES,
    LlavaMiniDummyInputsBuilder,
    LlavaMiniMultiModalProcessor,
    LlavaMiniProcessingInfo,
)
from llava_mini.vllm.weights import TOWER, Weights, read_tower, rename_original


# vLLM's classes of the text types that our configuration allows.
LANGUAGE_MODELS = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Keys of `--additional-config` that are options of `open_visuals`.
VISION_OPTIONS = ("vision_memory_budget", "prefusion_patches", "prefusion_mass")


@dataclass
class Frames:
    """A video as `open_visuals` takes it: frames `(frames, K, 3, height, width)`, which may be on the host."""

    pixel_values: torch.Tensor

    @property
    def num_frames(self) -> int:
        """How many there are."""
        return len(self.pixel_values)

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield self.pixel_values


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMiniMultiModalProcessor, info=LlavaMiniProcessingInfo, dummy_inputs=LlavaMiniDummyInputsBuilder
)
class LlavaMiniForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """
    The front is whole on every rank of tensor parallelism; the language model is vLLM's and split as vLLM does it.
    Quantisation is the language model's alone, the front has plain layers.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.": "front.",
        }
    )
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What the template writes; the processor takes it to pieces."""
        return f"<{modality}>" if modality in MODALITIES else None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: LlavaMiniConfig = vllm_config.model_config.hf_config
        self.vision_options = read_vision_options(vllm_config)
        self.source = vllm_config.model_config.model
        self.original = read_original_config(self.source, vllm_config.model_config.revision)
        with self._mark_tower_model(vllm_config, set(MODALITIES)):
            is_first = get_pp_group().is_first_rank
            self.front = build_front(self.config, vllm_config.model_config.dtype) if is_first else PPMissingLayer()
        text_config = copy.deepcopy(self.config.text_config)
        text_config.tie_word_embeddings = self.config.tie_word_embeddings
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=[LANGUAGE_MODELS[text_config.model_type]],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: object) -> list[torch.Tensor]:
        """The embeddings `(L, D)` of each prompt, one after the other: each is encoded in chunks of its own."""
        if kwargs.get("prompt_ids") is None:
            return []
        names = ("prompt_ids", "pixel_values", "pixel_values_videos", "video_num_frames")
        return [self.fuse(*item) for item in zip(*(kwargs[name] for name in names))]

    def fuse(
        self,
        prompt_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor,
    ) -> torch.Tensor:
        """
        What `LlavaMiniModel` computes before its language model, for one prompt; arguments as
        `LlavaMiniMultiModalProcessor` makes them.
        """
        input_ids = prompt_ids.to(self.front.compressor.query.device)[None]
        videos = [Frames(video) for video in pixel_values_videos.split(video_num_frames.tolist())]
        visuals = self.front.open_visuals(
            pixel_values=pixel_values if len(pixel_values) else None,
            pixel_values_videos=videos or None,
            **self.vision_options,
        )
        fused, _ = self.front.fuse_modalities(input_ids, self.embed_input_ids(input_ids), None, visuals)
        return fused[0]

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: list[torch.Tensor] | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in the base class; placeholders, which may be outside the vocabulary, are looked up as id 0."""
        for token_id in (self.config.image_token_id, self.config.video_token_id):
            if token_id >= self.config.text_config.vocab_size:
                input_ids = input_ids.masked_fill(input_ids == token_id, 0)
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """The language model's, over embeddings that `embed_multimodal` made."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """The language model's."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Weights) -> set[str]:
        """
        Of a converted checkpoint, or of the authors' as it is, whose tower may lie elsewhere.

        Raises:
            ValueError: the front lacks weights.
        """
        if self.original is not None:
            weights = self._complete_original(rename_original(weights))
        loader = AutoWeightsLoader(self)
        loaded = loader.load_weights(drop_unread(weights, self.config), mapper=self.hf_to_vllm_mapper)
        if not isinstance(self.front, PPMissingLayer):
            missing = {f"front.{name}" for name in self.front.state_dict()} - loaded
            if missing:
                raise ValueError(f"The checkpoint lacks {len(missing)} weights, such as {sorted(missing)[0]!r}.")
        return loaded

    def _complete_original(self, weights: Weights) -> Weights:
        has_tower = False
        for name, tensor in weights:
            has_tower = has_tower or name.startswith(TOWER)
            yield name, tensor
        if not has_tower:
            yield from read_tower(find_tower(self.original, self.source), self.front.compressor.query.dtype)


def build_front(config: LlavaMiniConfig, dtype: torch.dtype) -> LlavaMiniFront:
    """Everything before the language model, its weights still to be loaded."""
    config = copy.deepcopy(config)
    config.dtype = config.vision_config.dtype = config.text_config.dtype = dtype
    with no_init_weights():
        front = LlavaMiniFront(config)
    # Not `front.to(dtype)`: rotary frequencies stay in float32.
    for parameter in front.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in front.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(dtype))
    return front.requires_grad_(False).eval()


def read_vision_options(vllm_config: VllmConfig) -> dict[str, object]:
    """The vision side's options of `--additional-config '{"vision_memory_budget": "4GB"}'`."""
    options = vllm_config.additional_config
    return {name: options[name] for name in VISION_OPTIONS if isinstance(options, dict) and name in options}


def read_original_config(source: str, revision: str | None) -> dict | None:
    """The authors' config.json, where the checkpoint is theirs."""
    values, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    return values if values.get("model_type") == ORIGINAL_MODEL_TYPE else None


def drop_unread(weights: Weights, config: LlavaMiniConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Without tower layers behind the selected one, which checkpoints may hold."""
    layers = range(config.num_vision_layers, config.vision_config.num_hidden_layers)
    prefixes = tuple(f"{TOWER}encoder.layers.{i}." for i in layers)
    return ((name, tensor) for name, tensor in weights if not name.startswith(prefixes))
