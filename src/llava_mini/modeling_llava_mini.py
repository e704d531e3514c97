# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
PyTorch LLaVA-Mini model (paper: arXiv 2501.03895, section 4).

Shapes are written in one vocabulary throughout:

    B   rows of the batch               S   prompt length, placeholders included
    U   visual units: images and video frames, flat over the batch
    K   crops a unit (N*N sub-images and the whole image; 1 when N == 1)
    P   patches a crop (grid * grid)    G   the grid the compressor reads (N * grid, or grid when N == 1)
    V   what pre-fusion reads of a unit: [sub-images on the full raster | whole image], K*P patches
    CC  vision tokens a unit (C * C)    T   text tokens that take part in pre-fusion
    Dv  vision width                    D   language model width
"""

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn
from transformers import AutoModel, Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_llava_mini import LlavaMiniConfig
from .front_llava_mini import LlavaMiniFront
from .generation_llava_mini import LlavaMiniGenerationMixin
from .input_checks_llava_mini import (
    LOSS_OPTIONS,
    check_arguments,
    check_embeds,
    check_ids,
    check_logits_to_keep,
    check_mask,
    check_positions,
    with_parameters_of,
)
from .original_names_llava_mini import UNUSED_NAMES, weight_mapping
from .outputs_llava_mini import LlavaMiniCausalLMOutputWithPast, LlavaMiniModelOutputWithPast
from .placeholders_llava_mini import check_no_placeholders
from .pretrained_llava_mini import LlavaMiniPreTrainedModel
from .versions_llava_mini import CACHE_NAME, accept_both_cache_names
from .vision_context_llava_mini import LlavaMiniVisionContext
from .visuals_llava_mini import LlavaMiniVisualChunk, LlavaMiniVisuals


class LlavaMiniModel(LlavaMiniFront):
    """LLaVA-Mini without a language modeling head: tower, compressor, projector, pre-fusion, language model."""

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config, AutoModel.from_config(config.text_config))

    def embed_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Ids `(B, S)` to raw embeddings `(B, S, D)`; placeholders outside the vocabulary are looked up as id 0."""
        embedding = self.get_input_embeddings()
        if max(self.config.image_token_id, self.config.video_token_id) >= self.config.text_config.vocab_size:
            for token_id in (self.config.image_token_id, self.config.video_token_id):
                input_ids = input_ids.masked_fill(input_ids == token_id, 0)
        try:
            return embedding(input_ids)
        except IndexError as error:  # on accelerators the device stops instead
            raise ValueError(
                f"`input_ids` holds ids that are negative or not below `vocab_size` "
                f"({self.config.text_config.vocab_size}): use the tokenizer saved with this model."
            ) from error

    @accept_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        text_fusion_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        vision_context: LlavaMiniVisionContext | None = None,
        vision_memory_budget: int | str | None = None,
        output_compressor_attentions: bool = False,
        prefusion_patches: float | None = None,
        prefusion_mass: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniModelOutputWithPast:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(B, S)`): with C*C placeholders an image and frame.
            pixel_values (`torch.Tensor` of shape `(images, K, 3, height, width)`): images of all rows, in order.
            pixel_values_videos (`torch.Tensor` of shape `(videos, frames, K, 3, height, width)`): likewise videos.
            video_num_frames (`torch.Tensor` of shape `(videos,)`): frames that count; all by default.
            attention_mask (`torch.Tensor` of shape `(B, S)`): 0 for padding, on whichever side.
            text_fusion_mask (`torch.Tensor` of shape `(B, S)`): which text takes part in pre-fusion. By default all
                but an answer: what follows the last of `config.assistant_headers`, as in generation, where new tokens
                stay raw. Padding, placeholders and the configuration's ignored ids never take part.
            mm_encoder_outputs (`dict[str, ModelOutput]`): instead of pixels, what `get_image_features` ("image") and
                `get_video_features` ("video") returned; or the fused prompt ("prompt", made by `generate`).
            vision_context (`LlavaMiniVisionContext`): instead of pixels, what `encode_visuals` returned.
            cache (`Cache`): keys and values to continue from; also called `past_key_values`.
            vision_memory_budget (`int` or `str`): bytes that the vision side may use at a time, see `units_per_chunk`.
            output_compressor_attentions (`bool`): also return where the vision tokens looked.
            prefusion_patches, prefusion_mass (`float`, *optional*): which patches pre-fusion reads, the
                configuration's by default, see `LlavaMiniConfig`.

        Raises:
            ValueError: inputs contradict each other; the message says which and what to do.
        """
        check_arguments(kwargs, self.forward)
        inputs_embeds, attention_mask = self.read_prompt(input_ids, inputs_embeds, attention_mask, position_ids, cache)
        given = dict(mm_encoder_outputs or {})
        prompt = given.pop("prompt", None)
        options = (output_compressor_attentions, vision_memory_budget, prefusion_patches, prefusion_mass)
        visuals = self.open_visuals(
            pixel_values, pixel_values_videos, video_num_frames, given, vision_context, *options
        )
        encoded = {}
        if prompt is not None:
            fused = prompt.last_hidden_state.to(inputs_embeds)
            inputs_embeds = torch.cat([fused, inputs_embeds[:, fused.shape[1] :]], dim=1)
        elif visuals:
            inputs_embeds, encoded = self.fuse_modalities(
                input_ids, inputs_embeds, attention_mask, visuals, text_fusion_mask
            )
        elif mm_encoder_outputs is None and cache is None and input_ids is not None:
            check_no_placeholders(self.get_placeholder_mask(input_ids, inputs_embeds))

        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        return LlavaMiniModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            **self.report_visuals(encoded, visuals),
        )

    def read_prompt(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Raw embeddings `(B, S, D)` and the mask in 0 and 1; see `forward`.

        Raises:
            ValueError: these are no prompt, or contradict each other.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        check_ids("input_ids", input_ids)
        if inputs_embeds is None:
            inputs_embeds = self.embed_prompt(input_ids)
        check_embeds(inputs_embeds, self.config.text_config.hidden_size)
        shape = tuple(inputs_embeds.shape[:2])
        check_positions(position_ids, shape)
        if getattr(attention_mask, "ndim", 2) == 2:  # else what `generate` makes for static caches
            attention_mask = check_mask("attention_mask", attention_mask, shape, follows_cache=cache is not None)
        return inputs_embeds, attention_mask

    def report_visuals(self, encoded: dict[str, LlavaMiniVisualChunk], visuals: dict[str, LlavaMiniVisuals]) -> dict:
        """What `forward` returns of images and videos."""
        seen = {modality: self.report_units(chunk, visuals[modality].sizes) for modality, chunk in encoded.items()}
        attentions = [chunk.attentions for chunk in encoded.values() if chunk.attentions is not None]
        return {
            "image_outputs": seen.get("image"),
            "video_outputs": seen.get("video"),
            "compressor_attentions": torch.cat(attentions) if attentions else None,
        }


def _of_the_base_model(method: Callable) -> Callable:
    """A method of `LlavaMiniModel` for the model around it, with its arguments and documentation."""

    @wraps(method)
    def call(self, *args, **kwargs):
        return method(self.model, *args, **kwargs)

    return call


class LlavaMiniForConditionalGeneration(LlavaMiniPreTrainedModel, LlavaMiniGenerationMixin):
    """
    LLaVA-Mini with its language modeling head.

    Example:

    ```python
    >>> import llava_mini  # registers the Auto classes
    >>> from transformers import AutoModelForImageTextToText, AutoProcessor

    >>> model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    >>> processor = AutoProcessor.from_pretrained(checkpoint)
    >>> inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    >>> ids = model.generate(**inputs, max_new_tokens=64)
    >>> processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _modules_to_not_quantize = ("model.vision_tower", "model.compressor", "model.multi_modal_projector", "lm_head")

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        self.model = LlavaMiniModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    get_image_features = _of_the_base_model(LlavaMiniModel.get_image_features)
    get_video_features = _of_the_base_model(LlavaMiniModel.get_video_features)
    encode_visuals = _of_the_base_model(LlavaMiniModel.encode_visuals)

    @with_parameters_of(LlavaMiniModel.forward)
    @accept_both_cache_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        text_fusion_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **inputs,
    ) -> tuple | LlavaMiniCausalLMOutputWithPast:
        """
        As `LlavaMiniModel.forward`, whose arguments it takes, and:

        Args:
            labels (`torch.Tensor` of shape `(B, S)`): next-token targets, -100 where there is none. Unless
                `text_fusion_mask` says otherwise, what has a label takes no part in pre-fusion, as the authors train:
                so label answers only, or pass the mask, which `apply_chat_template` makes.
            logits_to_keep (`int` or `torch.Tensor`): only the last so many logits (0: all), or these positions.

        Raises:
            ValueError: as `LlavaMiniModel.forward`, and `labels` of another shape than the prompt.
        """
        check_logits_to_keep(logits_to_keep)
        if labels is not None:
            prompt = input_ids if input_ids is not None else inputs.get("inputs_embeds")
            check_ids("labels", labels, None if prompt is None else prompt.shape[:2])
            text_fusion_mask = labels == -100 if text_fusion_mask is None else text_fusion_mask
        outputs = self.model(
            input_ids=input_ids, pixel_values=pixel_values, text_fusion_mask=text_fusion_mask, **inputs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            options = {name: inputs[name] for name in LOSS_OPTIONS if name in inputs}
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **options)
        return LlavaMiniCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_outputs=outputs.image_outputs,
            video_outputs=outputs.video_outputs,
            compressor_attentions=outputs.compressor_attentions,
            **{CACHE_NAME: outputs.cache},
        )


class LlavaMiniLlamaForCausalLM(LlavaMiniForConditionalGeneration):
    """
    The authors' name of the model, under which their weights load. A mapping of names for the model itself would also
    rename what it saves.
    """

    _keys_to_ignore_on_load_unexpected = [pattern for pattern, _ in UNUSED_NAMES]


register_checkpoint_conversion_mapping(LlavaMiniLlamaForCausalLM.__name__, weight_mapping(), overwrite=True)
LlavaMiniPreTrainedModel._original_classes = (LlavaMiniLlamaForCausalLM, LlavaMiniForConditionalGeneration)


__all__ = ["LlavaMiniPreTrainedModel", "LlavaMiniModel", "LlavaMiniForConditionalGeneration"]
