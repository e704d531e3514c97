# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""Generation with LLaVA-Mini: the prompt is fused with its images once, before the first token."""

import torch
from transformers import DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from .input_checks_llava_mini import check_ids, check_mask
from .patch_budget_llava_mini import check_budget, read_budget
from .placeholders_llava_mini import check_no_placeholders, check_units, read_counts
from .prefusion_llava_mini import KeptText
from .versions_llava_mini import CACHE_NAME, answer_to_both_cache_names, rename_cache
from .vision_context_llava_mini import LlavaMiniTurn, LlavaMiniVisionContext


# What stands for images and videos; consumed before the first token.
VISUAL_INPUTS = ("pixel_values", "pixel_values_videos", "video_num_frames", "mm_encoder_outputs", "vision_context")
# How they are encoded; consumed likewise.
VISUAL_OPTIONS = ("vision_memory_budget", "prefusion_patches", "prefusion_mass")


class LlavaMiniGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model whose text embeddings depend on its images."""

    def generate(self, *args, **kwargs):
        """
        `GenerationMixin.generate`, with images and videos. The prompt is fused once; new tokens keep their raw
        embeddings, with a cache or without. Continuing from a `cache` (`past_key_values`) runs only what is new, and
        its text is then not fused: for the authors' numbers in a conversation run the grown chat afresh, or use a
        `vision_context` made with `keep_text=True`, which gives the same ids for less work.

        Args:
            vision_context (`LlavaMiniVisionContext`, *optional*): instead of pixels, what `encode_visuals` returned.
            vision_memory_budget (`int` or `str`, *optional*): bytes (or "4GB") that the vision side may use at a time.
            prefusion_patches, prefusion_mass (`float`, *optional*): which patches pre-fusion reads, as `forward`'s.
            text_fusion_mask (`torch.Tensor` of shape `(B, S)`, *optional*): as `forward`'s.

        Raises:
            ValueError: inputs contradict each other, masks or ids are none, `prefill_chunk_size` together with images
                or videos, new images after a cache; next to a context that keeps text anything that its kept text
                can't agree with (see `_check_turn`).
        """
        # A None says nothing, and upstream would carry it along.
        kwargs = {name: value for name, value in kwargs.items() if name not in VISUAL_INPUTS or value is not None}
        kwargs = rename_cache(kwargs, CACHE_NAME)
        self._check_inputs(args, kwargs)
        context = kwargs.get("vision_context")
        if context is not None and context.keep_text:
            return answer_to_both_cache_names(self._generate_turn(context, *args, **kwargs))
        return answer_to_both_cache_names(super().generate(*args, **kwargs))

    def _check_inputs(self, args: tuple, kwargs: dict):
        """Refuses what would be read wrongly or not at all, and makes masks of 0 and 1; see `generate`."""
        generation_config = kwargs.get("generation_config") or self.generation_config
        chunk_size = kwargs.get("prefill_chunk_size", getattr(generation_config, "prefill_chunk_size", None))
        if chunk_size is not None and any(name in kwargs for name in VISUAL_INPUTS):
            raise ValueError(
                "`prefill_chunk_size` can't be used with images or videos: the prompt's text is fused with them as a "
                "whole. Set it to None."
            )
        if kwargs.get("output_compressor_attentions"):
            raise ValueError(
                "`generate` does not return where the vision tokens looked. Ask `get_image_features(pixel_values, "
                "output_compressor_attentions=True)` or `forward`."
            )
        check_budget(self.config, kwargs.get("prefusion_patches"), kwargs.get("prefusion_mass"))
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        check_ids("input_ids", input_ids)
        prompt = kwargs.get("inputs_embeds", input_ids)
        if prompt is not None:
            shape = tuple(prompt.shape[:2])
            for name, follows_cache in (("attention_mask", CACHE_NAME in kwargs), ("text_fusion_mask", False)):
                if kwargs.get(name) is not None:
                    kwargs[name] = check_mask(name, kwargs[name], shape, follows_cache)

    def _check_turn(self, context: LlavaMiniVisionContext, input_ids: torch.Tensor | None, kwargs: dict):
        """
        Raises:
            ValueError: an input that says otherwise than the context, or that its kept text makes meaningless.
        """
        mask = kwargs.get("attention_mask")
        if input_ids is None or len(input_ids) != 1 or (mask is not None and not mask.all()):
            raise ValueError("A `vision_context` that keeps text takes `input_ids` of one row without padding.")
        if CACHE_NAME in kwargs or kwargs.get("use_cache") is False:
            raise ValueError("A `vision_context` that keeps text has its own cache: leave `cache` and `use_cache` out.")
        for name in (*VISUAL_INPUTS, "inputs_embeds", "position_ids"):
            if name != "vision_context" and kwargs.get(name) is not None:
                raise ValueError(
                    f"A `vision_context` that keeps text holds all that is seen and where every token stands: leave "
                    f"`{name}` out, or encode anew with `encode_visuals`."
                )
        context.check_made_by(self.model.vision_parts)
        patches, mass = kwargs.get("prefusion_patches"), kwargs.get("prefusion_mass")
        if patches is not None or mass is not None:
            context.check_budget(read_budget(self.config, patches, mass))
        placeholders = self.model.get_placeholder_mask(input_ids, None)
        held = dict(zip(placeholders, read_counts(placeholders.values())))
        check_units(self.config, held, {modality: context.sizes.get(modality, []) for modality in held})

    def _generate_turn(self, context: LlavaMiniVisionContext, *args, **kwargs):
        """`generate` that runs only what the context's last turn has not run, and keeps the new turn."""
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        self._check_turn(context, input_ids, kwargs)
        # Gone until it is complete again, should anything fail on the way.
        turn, context.turn = context.turn, None
        shared = 0
        if turn is not None:
            embeds = self.model.embed_prompt(input_ids)
            mask = self.model.get_text_fusion_mask(input_ids, embeds, text_fusion_mask=kwargs.get("text_fusion_mask"))
            shared = turn.count_shared(input_ids, mask, self.model.get_placeholder_mask(turn.input_ids, None))
        cache = DynamicCache(config=self.config.get_text_config(decoder=True))
        if shared:
            cache = turn.cache
            drop_last(cache, cache.get_seq_length() - shared)
            context.turn = turn.crop(shared)
        # Without a mask `generate` would take any pad id in an answer for padding.
        kwargs |= {CACHE_NAME: cache, "attention_mask": torch.ones_like(input_ids)}
        output = super().generate(*args, **kwargs)
        drop_last(cache, cache.get_seq_length() - input_ids.shape[1])
        context.turn.cache = cache
        return output

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict) -> dict:
        """Leaves the pixels as they are: they are encoded chunk by chunk where the text is known, below."""
        return model_kwargs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """
        Fuses the prompt once, before it is repeated for beams. The fused prompt then travels as
        `mm_encoder_outputs["prompt"]`, which `generate` drops after the prefill.
        """
        given = {name: model_kwargs.pop(name) for name in VISUAL_INPUTS if name in model_kwargs}
        given |= {name: model_kwargs.pop(name, None) for name in VISUAL_OPTIONS}
        text_fusion_mask = model_kwargs.pop("text_fusion_mask", None)
        encoded = dict(given.pop("mm_encoder_outputs", {}))
        cache, context = model_kwargs.get(CACHE_NAME), given.get("vision_context")
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        if context is not None and context.keep_text and expand_size > 1:
            raise ValueError("A `vision_context` that keeps text takes one beam and one returned sequence.")
        if context is not None and context.turn is not None:
            prompt = self._fuse_next_turn(input_ids, context, text_fusion_mask)
        elif "prompt" in encoded:  # an assistant model gets the prompt that the main model has fused
            # Candidates that were refused may have been cut off its cache together with the end of the prompt.
            prompt = encoded["prompt"].last_hidden_state[:, num_cached:]
        elif num_cached:
            self._check_continuation(input_ids, num_cached, model_kwargs)
            prompt = None
        else:
            prompt = self._fuse_prompt(
                input_ids, given | {"mm_encoder_outputs": encoded}, text_fusion_mask, model_kwargs
            )

        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        model_kwargs["mm_encoder_outputs"] = {}
        if prompt is not None:
            prompt = BaseModelOutput(last_hidden_state=prompt.repeat_interleave(expand_size, dim=0))
            model_kwargs["mm_encoder_outputs"]["prompt"] = prompt
        return input_ids, model_kwargs

    def _fuse_prompt(
        self, input_ids: torch.Tensor, given: dict, text_fusion_mask: torch.Tensor | None, model_kwargs: dict
    ) -> torch.Tensor | None:
        """The fused prompt `(B, S, D)`, or `None` when there is nothing to fuse with."""
        inputs_embeds, context = model_kwargs.get("inputs_embeds"), given.get("vision_context")
        # Next to `inputs_embeds`, `generate` keeps ids only of what has been made so far.
        ids = input_ids if inputs_embeds is None else None
        visuals = self.model.open_visuals(**given)
        keep_text = context is not None and context.keep_text
        if not visuals and not keep_text:
            if ids is not None:
                check_no_placeholders(self.model.get_placeholder_mask(ids, None))
            return None
        inputs_embeds = self.model.embed_prompt(ids) if inputs_embeds is None else inputs_embeds
        attention_mask = model_kwargs.get("attention_mask")
        fused, encoded = self.model.fuse_modalities(
            ids, inputs_embeds, attention_mask, visuals, text_fusion_mask, keep_key_values=keep_text
        )
        if keep_text:
            mask = self.model.get_text_fusion_mask(ids, inputs_embeds, text_fusion_mask=text_fusion_mask)
            context.turn = LlavaMiniTurn(ids, mask[0], encoded)
        return fused

    def _fuse_next_turn(
        self, input_ids: torch.Tensor, context: LlavaMiniVisionContext, text_fusion_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The fused embeddings `(1, new, D)` of what follows the context's last turn, which is thereby extended."""
        turn = context.turn
        embeds = self.model.embed_prompt(input_ids)
        mask = self.model.get_text_fusion_mask(input_ids, embeds, text_fusion_mask=text_fusion_mask)
        done = turn.input_ids.shape[1]
        new = mask[:, done:] if turn.visuals else torch.zeros_like(mask[:, done:])
        text = KeptText(embeds[:, done:], new, int(new.sum()))
        visuals = {}
        for name, chunk in turn.visuals.items():
            rows = torch.zeros(len(chunk.tokens), dtype=torch.long, device=embeds.device)
            visuals[name] = self.model.read_units(text, [chunk], rows, keep_key_values=True)
        context.turn = LlavaMiniTurn(input_ids, mask[0], visuals)
        num_units = sum(len(chunk.tokens) for chunk in visuals.values())
        return text.put_back(torch.tensor([num_units], device=embeds.device))

    def _check_continuation(self, input_ids: torch.Tensor, num_cached: int, model_kwargs: dict):
        """Refuses new placeholders after a cache; what follows them is run raw."""
        if model_kwargs.get("inputs_embeds") is not None:
            return
        # As `generate` decides it: ids as long as the mask (hence the positions) are the whole conversation.
        is_whole = model_kwargs["position_ids"].shape[1] == input_ids.shape[1]
        new_ids = input_ids[:, num_cached:] if is_whole else input_ids
        for modality, mask in self.model.get_placeholder_mask(new_ids, None).items():
            if mask.any():
                raise ValueError(
                    f"New {modality} placeholders after a cache (`past_key_values`): text is fused with all images of "
                    "its prompt at once. Run the whole conversation without a cache."
                )


def drop_last(cache: DynamicCache, count: int):
    """Takes the last `count` tokens off a cache; negative lengths are what every version of `crop` understands."""
    if count:
        cache.crop(-count)
