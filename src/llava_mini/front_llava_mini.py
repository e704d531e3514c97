# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""
Everything of LLaVA-Mini before the language model: vision tower, compressor, projector, pre-fusion. Shapes: see
`modeling_llava_mini.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .compressor_llava_mini import LlavaMiniCompressor
from .configuration_llava_mini import LlavaMiniConfig
from .input_checks_llava_mini import check_arguments, check_mask, check_rows_attend
from .outputs_llava_mini import LlavaMiniVisionOutput
from .patch_budget_llava_mini import PatchBudget, choose_patches, read_budget
from .placeholders_llava_mini import assign_units, check_units, find_fusible_text, find_rows, find_token, read_counts
from .prefusion_llava_mini import KeptText, KeyValues, LlavaMiniPreFusion
from .pretrained_llava_mini import LlavaMiniPreTrainedModel
from .vision_context_llava_mini import LlavaMiniVisionContext, fingerprint
from .visuals_llava_mini import (
    LlavaMiniVisualChunk,
    LlavaMiniVisuals,
    arrange_crops,
    find_equal,
    open_images,
    open_videos,
    open_visuals,
    select_frames,
    units_per_chunk,
)


logger = logging.get_logger(__name__)
# Text tokens that read at a time. Causality makes any number right; for all of a prompt as long as Llama 3.1 allows,
# the mask alone would take 17 GB. Most prompts are shorter than this, and read at once.
MAX_TEXT_QUERIES = 2048
NOTHING_READ = (
    "A row with images or videos has no text that takes part in pre-fusion, so the question is not read beside them "
    "and answers are much worse. What has a label takes no part: set `labels` to -100 on all but the answers, or pass "
    "`text_fusion_mask` (1 on the question), which `processor.apply_chat_template` makes."
)


class LlavaMiniMultiModalProjector(nn.Module):
    """Vision width to language model width: `linear_1`, activation, `linear_2`, ... (LLaVA-1.5's, two layers)."""

    def __init__(self, config: LlavaMiniConfig):
        super().__init__()
        self.num_layers = config.num_projector_layers
        self.act = ACT2FN[config.projector_hidden_act]
        width = config.vision_config.hidden_size
        for i in range(1, self.num_layers + 1):
            self.add_module(f"linear_{i}", nn.Linear(width, config.text_config.hidden_size))
            width = config.text_config.hidden_size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(..., Dv)` to `(..., D)`."""
        for i in range(1, self.num_layers + 1):
            features = self.get_submodule(f"linear_{i}")(self.act(features) if i > 1 else features)
        return features


class LlavaMiniFront(LlavaMiniPreTrainedModel):
    """
    What makes the language model's input embeddings of ids and pixels. `LlavaMiniModel` is this and a language model;
    an engine that runs the language model itself needs this alone.

    Args:
        language_model (`PreTrainedModel`, *optional*): of `config.text_config`, whose decoder layers the pre-fusion
            has too. Without one, embeddings are the caller's.
    """

    _modules_to_not_quantize = ("vision_tower", "compressor", "multi_modal_projector")

    def __init__(self, config: LlavaMiniConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.vision_tower.encoder.layers = self.vision_tower.encoder.layers[: config.num_vision_layers]
        self.compressor = LlavaMiniCompressor(config)
        self.multi_modal_projector = LlavaMiniMultiModalProjector(config)
        if language_model is None:
            with torch.device("meta"):  # asked for its classes only
                text_model = AutoModel.from_config(config.text_config)
        else:
            text_model = self.language_model = language_model
        self.prefusion = LlavaMiniPreFusion(config.text_config, config.num_prefusion_layers, text_model)
        # Checkpoints may hold the whole tower; layers past the selected one are read by nobody.
        self._keys_to_ignore_on_load_unexpected = [
            rf"vision_tower\..*layers\.{i}\."
            for i in range(config.num_vision_layers, config.vision_config.num_hidden_layers)
        ]
        self.post_init()

    @property
    def vision_parts(self) -> tuple[nn.Module, ...]:
        """What makes of images what does not depend on the text."""
        return self.vision_tower, self.compressor, self.multi_modal_projector, self.prefusion

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        output_compressor_attentions: bool = False,
        vision_memory_budget: int | str | None = None,
        prefusion_patches: float | None = None,
        prefusion_mass: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniVisionOutput:
        """
        Everything about images that does not depend on the text.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, K, 3, height, width)`):
                Crops: N*N sub-images in row-major order, then the whole image; the image alone when N is 1.
            output_compressor_attentions (`bool`): also return where the vision tokens looked.
            vision_memory_budget (`int` or `str`, *optional*): bytes to use at a time, see `units_per_chunk`.
            prefusion_patches, prefusion_mass (`float`, *optional*): which patches pre-fusion reads, the
                configuration's by default, see `LlavaMiniConfig`.

        Returns:
            `LlavaMiniVisionOutput`, one `pooler_output` entry `(CC, D)` an image.

        Raises:
            ValueError: number of crops, channels or size don't match the configuration; a budget is none.
        """
        check_arguments(kwargs, self.get_image_features)
        encode = partial(self.encode_chunks, output_attentions=output_compressor_attentions)
        budget = read_budget(self.config, prefusion_patches, prefusion_mass)
        encode = partial(encode, memory_budget=vision_memory_budget, budget=budget)
        visuals = open_images(self.config, encode, pixel_values)
        return self.collect_features(visuals, pixel_values, **kwargs)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor | None = None,
        output_compressor_attentions: bool = False,
        vision_memory_budget: int | str | None = None,
        prefusion_patches: float | None = None,
        prefusion_mass: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniVisionOutput:
        """
        Everything about videos that does not depend on the text: each frame is treated as an image.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(videos, frames, K, 3, height, width)`):
                Frames in order, shorter videos padded at the end.
            video_num_frames (`torch.Tensor` of shape `(videos,)`, *optional*):
                Frames of each video that count; all by default.
            output_compressor_attentions, vision_memory_budget, prefusion_patches, prefusion_mass: see
                `get_image_features`.

        Returns:
            `LlavaMiniVisionOutput`, one `pooler_output` entry `(frames * CC, D)` a video.

        Raises:
            ValueError: shapes or frame counts don't match.
        """
        check_arguments(kwargs, self.get_video_features)
        encode = partial(self.encode_chunks, output_attentions=output_compressor_attentions)
        budget = read_budget(self.config, prefusion_patches, prefusion_mass)
        encode = partial(encode, memory_budget=vision_memory_budget, budget=budget)
        visuals = open_videos(self.config, encode, pixel_values_videos, video_num_frames)
        return self.collect_features(visuals, select_frames(pixel_values_videos, visuals.sizes), **kwargs)

    def collect_features(
        self, visuals: LlavaMiniVisuals, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> LlavaMiniVisionOutput:
        """All chunks at once. The tower's own hidden states and attentions, rarely asked for, take another run."""
        chunk = LlavaMiniVisualChunk.join(list(visuals.chunks))
        config = self.vision_tower.config
        asked = kwargs or config.output_hidden_states or config.output_attentions
        tower = self.vision_tower(pixel_values.flatten(0, 1), **kwargs) if asked else None
        return self.report_units(
            chunk,
            visuals.sizes,
            last_hidden_state=chunk.features.flatten(0, 1),
            hidden_states=tower.hidden_states if tower else None,
            attentions=tower.attentions if tower else None,
            prefusion_key_values=chunk.key_values,
        )

    def report_units(self, chunk: LlavaMiniVisualChunk, sizes: list[int], **kept) -> LlavaMiniVisionOutput:
        """Images or videos of `sizes` units as they are returned: a `pooler_output` entry `(size * CC, D)` each."""
        lengths = [size * self.config.num_image_tokens for size in sizes]
        tokens = list(chunk.tokens.flatten(0, 1).split(lengths))
        return LlavaMiniVisionOutput(
            pooler_output=tokens, compressor_attentions=chunk.attentions, prefusion_dropped=chunk.dropped, **kept
        )

    def encode_visuals(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | list | None = None,
        video_num_frames: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_fusion_mask: torch.Tensor | None = None,
        keep: Literal["key_values", "features"] = "key_values",
        keep_text: bool = False,
        vision_memory_budget: int | str | None = None,
        prefusion_patches: float | None = None,
        prefusion_mass: float | None = None,
    ) -> LlavaMiniVisionContext:
        """
        Images and videos encoded once, for any number of questions. A processor's whole output can be passed.

        Args:
            input_ids (`torch.Tensor` of shape `(B, S)`, *optional*): tells which row each image and video belongs to,
                so that the context can be indexed by row.
            attention_mask, text_fusion_mask: not used.
            keep (`str`, defaults to `"key_values"`): "key_values" keeps what the text reads, so that a question costs
                text only. "features" keeps the tower's patch features: `num_prefusion_layers * 2 * key_value_heads *
                head_dim / Dv` times less memory, and compressor, projector and pre-fusion run again with each question.
                A budget shrinks what "key_values" keeps; the compressor reads all features.
            keep_text (`bool`): also keep the prompt's keys and values, so that the next turn of a conversation runs
                only the last answer and the new question; for one row, without beams.
            vision_memory_budget (`int` or `str`, *optional*): bytes to use at a time, see `units_per_chunk`.
            prefusion_patches, prefusion_mass (`float`, *optional*): see `get_image_features`.

        Returns:
            `LlavaMiniVisionContext`, for `generate(..., vision_context=...)`.

        Raises:
            ValueError: an unknown `keep`; pixels and placeholders contradict each other.
        """
        what_is_dropped = {"key_values": {"features": None}, "features": {"key_values": ()}}
        if keep not in what_is_dropped:
            raise ValueError(f"`keep` is {keep!r}, but has to be one of {', '.join(map(repr, what_is_dropped))}.")
        options = {"prefusion_patches": prefusion_patches, "prefusion_mass": prefusion_mass}
        options["vision_memory_budget"] = vision_memory_budget
        opened = self.open_visuals(pixel_values, pixel_values_videos, video_num_frames, **options)
        rows = num_rows = None
        if input_ids is not None:
            num_rows = len(input_ids)
            masks = self.get_placeholder_mask(input_ids, None)
            held = dict(zip(masks, read_counts(masks.values())))
            rows = {name: assign_units(self.config, name, held[name], visual.sizes) for name, visual in opened.items()}
        visuals = {
            name: LlavaMiniVisualChunk.join([replace(chunk, **what_is_dropped[keep]) for chunk in visual.chunks])
            for name, visual in opened.items()
        }
        sizes = {name: visual.sizes for name, visual in opened.items()}
        made_by, budget = fingerprint(self.vision_parts), read_budget(self.config, prefusion_patches, prefusion_mass)
        return LlavaMiniVisionContext(visuals, sizes, rows, num_rows, keep_text, made_by, budget=budget)

    def open_visuals(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | list | None = None,
        video_num_frames: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        vision_context: LlavaMiniVisionContext | None = None,
        output_compressor_attentions: bool = False,
        vision_memory_budget: int | str | None = None,
        prefusion_patches: float | None = None,
        prefusion_mass: float | None = None,
    ) -> dict[str, LlavaMiniVisuals]:
        """What is given, as pixels or already encoded, to be encoded as somebody asks; arguments as `forward`'s."""
        budget = read_budget(self.config, prefusion_patches, prefusion_mass)
        is_asked = prefusion_patches is not None or prefusion_mass is not None
        encode = partial(
            self.encode_chunks, output_attentions=output_compressor_attentions, memory_budget=vision_memory_budget
        )
        kept = {}
        if vision_context is not None:
            vision_context.check_made_by(self.vision_parts)
            if is_asked:
                vision_context.check_budget(budget)
            kept = vision_context.open(partial(encode, budget=budget if is_asked else vision_context.budget))
        encoded = mm_encoder_outputs or {}
        if is_asked and pixel_values is None and pixel_values_videos is None and any(encoded.values()):
            raise ValueError(
                "`mm_encoder_outputs` are encoded already, so that `prefusion_patches` and `prefusion_mass` come too "
                "late: pass them to `get_image_features` and `get_video_features`."
            )
        encode = partial(encode, budget=budget)
        return open_visuals(self.config, encode, pixel_values, pixel_values_videos, video_num_frames, encoded, kept)

    def encode_chunks(
        self,
        units: Iterable[torch.Tensor],
        output_attentions: bool = False,
        memory_budget: int | str | None = None,
        budget: PatchBudget | None = None,
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
            yield self.encode_features(features, output_attentions, budget)

    def extract_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels `(U, K, 3, height, width)` to the tower's patch features `(U, K, P, Dv)`, without the class token."""
        features = self.vision_tower(pixel_values.flatten(0, 1)).last_hidden_state[:, 1:]
        return features.unflatten(0, pixel_values.shape[:2])

    def encode_features(
        self, features: torch.Tensor, output_attentions: bool = False, budget: PatchBudget | None = None
    ) -> LlavaMiniVisualChunk:
        """Patch features `(U, K, P, Dv)` to vision tokens and what the text will read of them."""
        raster, whole = arrange_crops(self.config, features)
        compressed, attentions = self.compressor(raster, output_attentions or budget is not None)  # (U, CC, Dv)
        compressed = compressed.to(raster.device)  # the tower may have a device of its own
        vision = torch.cat([raster, compressed] if whole is None else [raster, whole, compressed], dim=1)
        if budget is None:
            vision = self.multi_modal_projector(vision)  # (U, V + CC, D)
            tokens, key_values = self.prefusion(vision, num_outputs=self.config.num_image_tokens)  # (U, CC, D)
            return LlavaMiniVisualChunk(tokens, key_values, features, attentions)
        chunk = self.encode_chosen(vision, *choose_patches(self.config, budget, attentions.to(vision.device)))
        return replace(chunk, features=features, attentions=attentions if output_attentions else None)

    def encode_chosen(self, vision: torch.Tensor, positions: torch.Tensor, counts: list[int]) -> LlavaMiniVisualChunk:
        """
        `encode_features` from `vision` `(U, V + CC, Dv)` on, with the first of the patches at `positions` `(U, V)`
        alone, as many as `counts` says; units with the same number go together.
        """
        last = torch.arange(positions.shape[1], vision.shape[1], device=vision.device)
        groups = []
        for count, units in find_equal(counts).items():
            kept = positions[units, :count]
            kept = torch.cat([kept, last.expand(len(kept), -1)], dim=1)  # (units, count + CC)
            part = vision[units].gather(1, kept[..., None].expand(-1, -1, vision.shape[-1]))
            part = self.multi_modal_projector(part)  # (units, count + CC, D)
            tokens, key_values = self.prefusion(part, num_outputs=len(last), position_ids=kept)
            # Beside the host, which asks for it.
            dropped = torch.full((len(kept),), positions.shape[1] - count, device="cpu")
            groups.append((units, LlavaMiniVisualChunk(tokens, key_values, dropped=dropped)))
        return LlavaMiniVisualChunk.regroup(groups)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Where vision tokens belong: `{"image": (B, S), "video": (B, S)}`."""
        ids = {"image": self.config.image_token_id, "video": self.config.video_token_id}
        embedding = self.get_input_embeddings() if input_ids is None else None
        return {name: find_token(token_id, input_ids, inputs_embeds, embedding) for name, token_id in ids.items()}

    def get_text_fusion_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        text_fusion_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Which text takes part in pre-fusion, `(B, S)`; see `find_fusible_text`."""
        embedding = self.get_input_embeddings() if input_ids is None else None
        return find_fusible_text(self.config, input_ids, inputs_embeds, embedding, attention_mask, text_fusion_mask)

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
        attended = (
            torch.ones_like(mask)
            if attention_mask is None
            else check_mask("attention_mask", attention_mask, mask.shape)
        )
        *held, kept, num_attended = read_counts([*placeholders.values(), mask, attended.to(mask)])
        check_rows_attend(num_attended)
        sizes = {modality: visual.sizes for modality, visual in visuals.items()}
        rows_with_units = set().union(*check_units(self.config, dict(zip(placeholders, held)), sizes).values())
        if text_fusion_mask is not None and not all(kept[row] for row in rows_with_units):
            logger.warning_once(NOTHING_READ)
        num_units = sum(found.sum(1) for found in placeholders.values()) // self.config.num_image_tokens  # (B,)
        length = max((kept[row] for row in rows_with_units), default=0)
        text = KeptText(inputs_embeds, mask & (num_units > 0)[:, None], length)
        encoded = {}
        for modality, visual in visuals.items():
            rows = find_rows(self.config, placeholders[modality], sum(visual.sizes))
            encoded[modality] = self.read_units(text, visual.chunks, rows, keep_key_values)
        fused = text.put_back(num_units)
        for modality, chunk in encoded.items():
            fused = fused.masked_scatter(placeholders[modality].unsqueeze(-1), chunk.tokens.to(fused))
        return fused, encoded

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
            key_values = self.read_chunk(text, chunk, own, keep_key_values) if text.length else chunk.key_values
            key_values = key_values if keep_key_values else ()
            seen.append(replace(chunk, key_values=key_values, features=None))
        return LlavaMiniVisualChunk.join(seen)

    def read_chunk(
        self, text: KeptText, chunk: LlavaMiniVisualChunk, rows: torch.Tensor, keep_key_values: bool
    ) -> KeyValues:
        """`read_units` of one chunk: units with the same number of patches go together, so that none is padded."""
        read = []
        for units, part in chunk.groups():
            own = rows[units]
            dropped = 0 if part.dropped is None else int(part.dropped[0])
            fused, key_values = [], part.key_values
            for embeds in text.embeds[own].split(MAX_TEXT_QUERIES, dim=1):
                first = (key_values[0][0].shape[2] if key_values else 0) + dropped
                position_ids = torch.arange(first, first + embeds.shape[1], device=embeds.device)[None]
                outputs, key_values = self.prefusion(embeds, key_values, position_ids=position_ids)
                fused.append(outputs)
            text.add(own, torch.cat(fused, dim=1))  # (U, T, D)
            read.append((units, replace(part, key_values=key_values)))
        return LlavaMiniVisualChunk.regroup(read).key_values if keep_key_values else ()
