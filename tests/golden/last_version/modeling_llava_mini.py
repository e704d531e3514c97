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

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from transformers import AutoModel, Cache
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_llava_mini import LlavaMiniConfig
from .generation_llava_mini import LlavaMiniGenerationMixin
from .modules_llava_mini import (
    KeptText,
    LlavaMiniCausalLMOutputWithPast,
    LlavaMiniCompressor,
    LlavaMiniModelOutputWithPast,
    LlavaMiniMultiModalProjector,
    LlavaMiniPreFusion,
    LlavaMiniPreTrainedModel,
    LlavaMiniVisionOutput,
    arrange_crops,
    assign_units,
    check_no_placeholders,
    check_nothing_held,
    find_rows,
    read_counts,
)
from .vision_context_llava_mini import (
    LlavaMiniVisionContext,
    LlavaMiniVisualChunk,
    LlavaMiniVisuals,
    LlavaMiniVisualsMixin,
    select_frames,
    units_per_chunk,
)


class LlavaMiniModel(LlavaMiniVisualsMixin, LlavaMiniPreTrainedModel):
    """LLaVA-Mini without a language modeling head: tower, compressor, projector, pre-fusion, language model."""

    _modules_to_not_quantize = ("vision_tower", "compressor", "multi_modal_projector")

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.vision_tower.encoder.layers = self.vision_tower.encoder.layers[: config.num_vision_layers]
        self.compressor = LlavaMiniCompressor(config)
        self.multi_modal_projector = LlavaMiniMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.prefusion = LlavaMiniPreFusion(config.text_config, config.num_prefusion_layers, self.language_model)
        # Checkpoints may hold the whole tower; layers past the selected one are read by nobody.
        self._keys_to_ignore_on_load_unexpected = [
            rf"vision_tower\..*layers\.{i}\."
            for i in range(config.num_vision_layers, config.vision_config.num_hidden_layers)
        ]
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        output_compressor_attentions: bool = False,
        vision_memory_budget: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniVisionOutput:
        """
        Everything about images that does not depend on the text.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, K, 3, height, width)`):
                Crops: N*N sub-images in row-major order, then the whole image; the image alone when N is 1.
            output_compressor_attentions (`bool`): also return where the vision tokens looked.
            vision_memory_budget (`int`, *optional*): bytes to use at a time, see `units_per_chunk`.

        Returns:
            `LlavaMiniVisionOutput`, one `pooler_output` entry `(CC, D)` an image.

        Raises:
            ValueError: number of crops, channels or size don't match the configuration.
        """
        visuals = self.open_images(pixel_values, output_compressor_attentions, vision_memory_budget)
        return self.collect_features(visuals, pixel_values, **kwargs)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor | None = None,
        output_compressor_attentions: bool = False,
        vision_memory_budget: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniVisionOutput:
        """
        Everything about videos that does not depend on the text: each frame is treated as an image.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(videos, frames, K, 3, height, width)`):
                Frames in order, shorter videos padded at the end.
            video_num_frames (`torch.Tensor` of shape `(videos,)`, *optional*):
                Frames of each video that count; all by default.
            output_compressor_attentions, vision_memory_budget: see `get_image_features`.

        Returns:
            `LlavaMiniVisionOutput`, one `pooler_output` entry `(frames * CC, D)` a video.

        Raises:
            ValueError: shapes or frame counts don't match.
        """
        visuals = self.open_videos(
            pixel_values_videos, video_num_frames, output_compressor_attentions, vision_memory_budget
        )
        return self.collect_features(visuals, select_frames(pixel_values_videos, visuals.sizes), **kwargs)

    def collect_features(
        self, visuals: LlavaMiniVisuals, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> LlavaMiniVisionOutput:
        """All chunks at once. The tower's own hidden states and attentions, rarely asked for, take another run."""
        chunk = LlavaMiniVisualChunk.join(list(visuals.chunks))
        config = self.vision_tower.config
        asked = kwargs or config.output_hidden_states or config.output_attentions
        tower = self.vision_tower(pixel_values.flatten(0, 1), **kwargs) if asked else None
        lengths = [size * self.config.num_image_tokens for size in visuals.sizes]
        return LlavaMiniVisionOutput(
            last_hidden_state=chunk.features.flatten(0, 1),
            pooler_output=list(chunk.tokens.flatten(0, 1).split(lengths)),
            hidden_states=tower.hidden_states if tower else None,
            attentions=tower.attentions if tower else None,
            prefusion_key_values=chunk.key_values,
            compressor_attentions=chunk.attentions,
        )

    def encode_chunks(
        self, units: Iterable[torch.Tensor], output_attentions: bool = False, memory_budget: int | None = None
    ) -> Iterator[LlavaMiniVisualChunk]:
        """
        The vision half of the paper's figure, as many units at a time as the budget allows.

        Args:
            units: tensors of pixels `(U, K, 3, height, width)` or of patch features `(U, K, P, Dv)`.
        """
        reference = self.compressor.query
        size = units_per_chunk(self.config, reference, memory_budget)
        # Offloaded weights are elsewhere until they are used; then accelerate moves the pixels.
        device = None if reference.is_meta else reference.device
        for part in (part for tensor in units for part in tensor.split(size)):
            features = self.extract_features(part.to(device)) if part.ndim == 5 else part
            yield self.encode_features(features, output_attentions)

    def extract_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels `(U, K, 3, height, width)` to the tower's patch features `(U, K, P, Dv)`, without the class token."""
        features = self.vision_tower(pixel_values.flatten(0, 1)).last_hidden_state[:, 1:]
        return features.unflatten(0, pixel_values.shape[:2])

    def encode_features(self, features: torch.Tensor, output_attentions: bool = False) -> LlavaMiniVisualChunk:
        """Patch features `(U, K, P, Dv)` to vision tokens and what the text will read of them."""
        raster, whole = arrange_crops(self.config, features)
        compressed, attentions = self.compressor(raster, output_attentions)  # (U, CC, Dv)
        compressed = compressed.to(raster.device)  # the tower may have a device of its own
        vision = torch.cat([raster, compressed] if whole is None else [raster, whole, compressed], dim=1)
        vision = self.multi_modal_projector(vision)  # (U, V + CC, D)
        tokens, key_values = self.prefusion(vision, num_outputs=self.config.num_image_tokens)  # (U, CC, D)
        return LlavaMiniVisualChunk(tokens, key_values, features, attentions)

    def embed_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Ids `(B, S)` to raw embeddings `(B, S, D)`; placeholders outside the vocabulary are looked up as id 0."""
        embedding = self.get_input_embeddings()
        if max(self.config.image_token_id, self.config.video_token_id) >= self.config.text_config.vocab_size:
            for token_id in (self.config.image_token_id, self.config.video_token_id):
                input_ids = input_ids.masked_fill(input_ids == token_id, 0)
        return embedding(input_ids)

    def find_token(
        self, token_id: int, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        """Where `token_id` stands, `(B, S)`: by id, or by its embedding when there are no ids."""
        if input_ids is not None:
            found = input_ids == token_id
            # With a device_map, embeddings are where the embedding matrix is and ids where the model begins.
            return found if inputs_embeds is None else found.to(inputs_embeds.device)
        if token_id >= self.config.text_config.vocab_size:
            raise ValueError(
                f"Token id {token_id} has no embedding, so it can't be found in `inputs_embeds`: pass `input_ids`, or "
                "resize the embeddings and set the placeholder's id inside the vocabulary."
            )
        token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Where vision tokens belong: `{"image": (B, S), "video": (B, S)}`."""
        return {
            "image": self.find_token(self.config.image_token_id, input_ids, inputs_embeds),
            "video": self.find_token(self.config.video_token_id, input_ids, inputs_embeds),
        }

    def get_text_fusion_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        text_fusion_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Which text takes part in pre-fusion, `(B, S)`: what `text_fusion_mask` allows (all by default), without
        padding, placeholders and the configuration's ignored ids, which never do.
        """
        shape = inputs_embeds.shape[:2]
        mask = torch.ones(shape, dtype=torch.bool, device=inputs_embeds.device)
        for name, given in (("attention_mask", attention_mask), ("text_fusion_mask", text_fusion_mask)):
            if given is None:
                continue
            if given.shape != shape:
                raise ValueError(
                    f"`{name}` has shape {tuple(given.shape)}, but with images or videos it has to be {tuple(shape)}, "
                    "one flag a token of the prompt."
                )
            mask = mask & given.to(mask)
        config = self.config
        for token_id in (config.image_token_id, config.video_token_id, *config.prefusion_ignored_token_ids):
            mask = mask & ~self.find_token(token_id, input_ids, inputs_embeds)
        return mask

    def fuse_modalities(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        visuals: dict[str, LlavaMiniVisuals],
        text_fusion_mask: torch.Tensor | None = None,
        keep_key_values: bool = False,
    ) -> tuple[torch.Tensor, dict[str, LlavaMiniVisualChunk]]:
        """
        What the language model sees: pre-fused text, and vision tokens at the placeholders. Every text token that
        takes part is replaced by its pre-fused embedding, averaged in float32 over the row's images and frames; the
        others, and rows without images and videos, keep their raw embeddings. Units are encoded and read by the text
        chunk by chunk, and only their tokens stay.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B, S, D)`): raw embeddings.
            visuals: images and videos of all rows, in order.
            keep_key_values (`bool`): also return the pre-fusion keys and values over vision and text.

        Returns:
            Embeddings `(B, S, D)`, and by modality the units' tokens and what else was asked for.
        """
        placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
        mask = self.get_text_fusion_mask(input_ids, inputs_embeds, attention_mask, text_fusion_mask)
        *held, kept = read_counts([*placeholders.values(), mask])
        rows_with_units = self.check_units(dict(zip(placeholders, held)), visuals)
        num_units = sum(found.sum(1) for found in placeholders.values()) // self.config.num_image_tokens  # (B,)
        text = KeptText(
            inputs_embeds, mask & (num_units > 0)[:, None], max((kept[row] for row in rows_with_units), default=0)
        )
        encoded = {}
        for modality, visual in visuals.items():
            rows = find_rows(self.config, placeholders[modality], sum(visual.sizes))
            encoded[modality] = self.read_units(text, visual.chunks, rows, keep_key_values)
        fused = text.put_back(num_units)
        for modality, chunk in encoded.items():
            fused = fused.masked_scatter(placeholders[modality].unsqueeze(-1), chunk.tokens.to(fused))
        return fused, encoded

    def check_units(self, held: dict[str, list[int]], visuals: dict[str, LlavaMiniVisuals]) -> set[int]:
        """
        The rows that have images or videos, by how many placeholders each row holds.

        Raises:
            ValueError: placeholders and what was passed don't match.
        """
        for modality, counts in held.items():
            if modality not in visuals:
                check_nothing_held(modality, counts)
        return {
            row
            for modality, visual in visuals.items()
            for row in assign_units(self.config, modality, held[modality], visual.sizes)
        }

    def read_units(
        self, text: KeptText, chunks: Iterable[LlavaMiniVisualChunk], rows: torch.Tensor, keep_key_values: bool = False
    ) -> LlavaMiniVisualChunk:
        """
        Lets the text read the patches of every unit, chunk by chunk; `rows` `(U,)` is the row of each unit. Returns the
        units without what only the text reads, but with keys and values over vision and text if they are to be kept.
        """
        seen, start = [], 0
        for chunk in chunks:
            own = rows[start : start + len(chunk.tokens)]
            start += len(chunk.tokens)
            key_values = chunk.key_values
            if text.length:
                fused, key_values = self.prefusion(text.embeds[own], key_values)  # (U, T, D)
                text.add(own, fused)
            key_values = key_values if keep_key_values else ()
            seen.append(LlavaMiniVisualChunk(chunk.tokens, key_values, attentions=chunk.attentions))
        return LlavaMiniVisualChunk.join(seen)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        text_fusion_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        vision_context: LlavaMiniVisionContext | None = None,
        vision_memory_budget: int | None = None,
        output_compressor_attentions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniModelOutputWithPast:
        """
        Args:
            input_ids (`torch.Tensor` of shape `(B, S)`): with C*C placeholders an image and frame.
            pixel_values (`torch.Tensor` of shape `(images, K, 3, height, width)`): images of all rows, in order.
            pixel_values_videos (`torch.Tensor` of shape `(videos, frames, K, 3, height, width)`): likewise videos.
            video_num_frames (`torch.Tensor` of shape `(videos,)`): frames that count; all by default.
            attention_mask (`torch.Tensor` of shape `(B, S)`): 0 for padding, on whichever side.
            text_fusion_mask (`torch.Tensor` of shape `(B, S)`): which text takes part in pre-fusion; all of it by
                default. Padding, placeholders and the configuration's ignored ids never do.
            mm_encoder_outputs (`dict[str, ModelOutput]`): instead of pixels, what `get_image_features` ("image") and
                `get_video_features` ("video") returned; or the fused prompt ("prompt", made by `generate`).
            vision_context (`LlavaMiniVisionContext`): instead of pixels, what `encode_visuals` returned.
            vision_memory_budget (`int`): bytes that the vision side may use at a time, see `units_per_chunk`.
            output_compressor_attentions (`bool`): also return where the vision tokens looked.

        Raises:
            ValueError: inputs contradict each other; the message says which and what to do.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_prompt(input_ids)

        given = dict(mm_encoder_outputs or {})
        prompt, encoded = given.pop("prompt", None), {}
        visuals = self.open_visuals(
            pixel_values,
            pixel_values_videos,
            video_num_frames,
            given,
            vision_context,
            output_compressor_attentions,
            vision_memory_budget,
        )
        if prompt is not None:
            fused = prompt.last_hidden_state.to(inputs_embeds)
            inputs_embeds = torch.cat([fused, inputs_embeds[:, fused.shape[1] :]], dim=1)
        elif visuals:
            inputs_embeds, encoded = self.fuse_modalities(
                input_ids, inputs_embeds, attention_mask, visuals, text_fusion_mask
            )
        elif mm_encoder_outputs is None and past_key_values is None and input_ids is not None:
            check_no_placeholders(self.get_placeholder_mask(input_ids, inputs_embeds))

        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        tokens = {modality: chunk.tokens.flatten(0, 1) for modality, chunk in encoded.items()}
        attentions = [chunk.attentions for chunk in encoded.values() if chunk.attentions is not None]
        return LlavaMiniModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=tokens.get("image"),
            video_hidden_states=tokens.get("video"),
            compressor_attentions=torch.cat(attentions) if attentions else None,
        )


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

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> tuple | LlavaMiniVisionOutput:
        """See `LlavaMiniModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_num_frames: torch.Tensor | None = None, **kwargs
    ) -> tuple | LlavaMiniVisionOutput:
        """See `LlavaMiniModel.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, video_num_frames, **kwargs)

    def encode_visuals(self, *args, **kwargs) -> LlavaMiniVisionContext:
        """See `LlavaMiniModel.encode_visuals`."""
        return self.model.encode_visuals(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        text_fusion_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        vision_context: LlavaMiniVisionContext | None = None,
        vision_memory_budget: int | None = None,
        output_compressor_attentions: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniCausalLMOutputWithPast:
        """
        As `LlavaMiniModel.forward`, and:

        Args:
            labels (`torch.Tensor` of shape `(B, S)`): next-token targets, -100 where there is none. Answer tokens
                (not -100) take no part in pre-fusion unless `text_fusion_mask` says so.
            logits_to_keep (`int` or `torch.Tensor`): only the last so many logits (0: all), or these positions.

        Raises:
            ValueError: as `LlavaMiniModel.forward`, and `labels` of another shape than the prompt.
        """
        if labels is not None:
            text_shape = (input_ids if input_ids is not None else inputs_embeds).shape[:2]
            if labels.shape != text_shape:
                raise ValueError(
                    f"`labels` has shape {tuple(labels.shape)}, but the prompt has {tuple(text_shape)} tokens: give "
                    "one label a token, -100 where nothing is to be learned (placeholders and padding included)."
                )
            if text_fusion_mask is None:
                text_fusion_mask = labels == -100
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            video_num_frames=video_num_frames,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            text_fusion_mask=text_fusion_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            vision_context=vision_context,
            vision_memory_budget=vision_memory_budget,
            output_compressor_attentions=output_compressor_attentions,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlavaMiniCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            video_hidden_states=outputs.video_hidden_states,
            compressor_attentions=outputs.compressor_attentions,
        )


__all__ = ["LlavaMiniPreTrainedModel", "LlavaMiniModel", "LlavaMiniForConditionalGeneration"]
