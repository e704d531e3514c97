# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Generation with LLaVA-Mini: the prompt is fused with its images once, before the first token."""

import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from .modules_llava_mini import LlavaMiniVisionOutput, check_no_placeholders


class LlavaMiniGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model whose text embeddings depend on its images."""

    def generate(self, *args, **kwargs):
        """
        `GenerationMixin.generate`, with images and videos. The prompt is fused once; new tokens keep their raw
        embeddings, with a cache or without. Continuing from `past_key_values` runs only what is new, and its text is
        then not fused: for the authors' numbers in a conversation run the grown chat afresh.

        Raises:
            ValueError: `prefill_chunk_size` together with images or videos; new images after `past_key_values`.
        """
        visual_names = ("pixel_values", "pixel_values_videos", "video_num_frames", "mm_encoder_outputs")
        # `generate` encodes whatever is there by name, None too.
        kwargs = {name: value for name, value in kwargs.items() if name not in visual_names or value is not None}
        generation_config = kwargs.get("generation_config") or self.generation_config
        chunk_size = kwargs.get("prefill_chunk_size", getattr(generation_config, "prefill_chunk_size", None))
        if chunk_size is not None and any(name in kwargs for name in visual_names):
            raise ValueError(
                "`prefill_chunk_size` can't be used with images or videos: the prompt's text is fused with them as a "
                "whole. Set it to None."
            )
        return super().generate(*args, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """
        Fuses the prompt once, before it is repeated for beams. `generate` calls this after it has encoded the pixels;
        the fused prompt then travels as `mm_encoder_outputs["prompt"]`, which it drops after the prefill.
        """
        visuals = {k: v for k, v in (model_kwargs.pop("mm_encoder_outputs", None) or {}).items() if v is not None}
        text_fusion_mask = model_kwargs.pop("text_fusion_mask", None)
        cache = model_kwargs.get("past_key_values")
        if num_cached := int(cache.get_seq_length()) if cache is not None else 0:
            self._check_continuation(input_ids, num_cached, model_kwargs)
            prompt = None
        elif "prompt" in visuals:  # an assistant model gets the prompt that the main model has fused
            prompt = visuals["prompt"].last_hidden_state
        else:
            prompt = self._fuse_prompt(input_ids, visuals, text_fusion_mask, model_kwargs)

        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        model_kwargs["mm_encoder_outputs"] = {}
        if prompt is not None:
            prompt = BaseModelOutput(last_hidden_state=prompt.repeat_interleave(expand_size, dim=0))
            model_kwargs["mm_encoder_outputs"]["prompt"] = prompt
        return input_ids, model_kwargs

    def _fuse_prompt(
        self,
        input_ids: torch.Tensor,
        visuals: dict[str, LlavaMiniVisionOutput],
        text_fusion_mask: torch.Tensor | None,
        model_kwargs: dict,
    ) -> torch.Tensor | None:
        """The fused prompt `(B, S, D)`, or `None` when there is nothing to fuse with."""
        inputs_embeds = model_kwargs.get("inputs_embeds")
        # Next to `inputs_embeds`, `generate` keeps ids only of what has been made so far.
        ids = input_ids if inputs_embeds is None else None
        if not visuals:
            for modality, mask in self.model.get_placeholder_mask(ids, None).items() if ids is not None else ():
                check_no_placeholders(modality, mask)
            return None
        inputs_embeds = self.model.embed_prompt(ids) if inputs_embeds is None else inputs_embeds
        attention_mask = model_kwargs.get("attention_mask")
        return self.model.fuse_modalities(ids, inputs_embeds, attention_mask, visuals, text_fusion_mask)

    def _check_continuation(self, input_ids: torch.Tensor, num_cached: int, model_kwargs: dict):
        """Refuses new placeholders after `past_key_values`; what follows them is run raw."""
        if model_kwargs.get("inputs_embeds") is not None:
            return
        # As `generate` decides it: ids as long as the mask (hence the positions) are the whole conversation.
        is_whole = model_kwargs["position_ids"].shape[1] == input_ids.shape[1]
        new_ids = input_ids[:, num_cached:] if is_whole else input_ids
        for modality, mask in self.model.get_placeholder_mask(new_ids, None).items():
            if mask.any():
                raise ValueError(
                    f"New {modality} placeholders after `past_key_values`: text is fused with all images of its prompt "
                    "at once. Run the whole conversation without `past_key_values`."
                )
