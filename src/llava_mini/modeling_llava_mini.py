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

from collections import Counter

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedConfig
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_llava_mini import LlavaMiniConfig
from .generation_llava_mini import LlavaMiniGenerationMixin
from .modules_llava_mini import (
    KeyValues,
    LlavaMiniCausalLMOutputWithPast,
    LlavaMiniCompressor,
    LlavaMiniModelOutputWithPast,
    LlavaMiniMultiModalProjector,
    LlavaMiniPreFusion,
    LlavaMiniPreTrainedModel,
    LlavaMiniVisionOutput,
    check_no_placeholders,
)


class LlavaMiniModel(LlavaMiniPreTrainedModel):
    """LLaVA-Mini without a language modeling head: tower, compressor, projector, pre-fusion, language model."""

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(_tower_config(config))
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniVisionOutput:
        """
        Everything about images that does not depend on the text.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, K, 3, height, width)`):
                Crops: N*N sub-images in row-major order, then the whole image; the image alone when N is 1.
            output_compressor_attentions (`bool`): also return where the vision tokens looked.

        Returns:
            `LlavaMiniVisionOutput`, one `pooler_output` entry `(CC, D)` an image.

        Raises:
            ValueError: number of crops, channels or size don't match the configuration.
        """
        self.check_crops("pixel_values", pixel_values, 5)
        return self.encode_units(pixel_values, output_compressor_attentions, **kwargs)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_num_frames: torch.Tensor | None = None,
        output_compressor_attentions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaMiniVisionOutput:
        """
        Everything about videos that does not depend on the text: each frame is treated as an image.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(videos, frames, K, 3, height, width)`):
                Frames in order, shorter videos padded at the end.
            video_num_frames (`torch.Tensor` of shape `(videos,)`, *optional*):
                Frames of each video that count; all by default.

        Returns:
            `LlavaMiniVisionOutput`, one `pooler_output` entry `(frames * CC, D)` a video.

        Raises:
            ValueError: shapes or frame counts don't match.
        """
        self.check_crops("pixel_values_videos", pixel_values_videos, 6)
        num_videos, max_frames = pixel_values_videos.shape[:2]
        num_frames = [max_frames] * num_videos if video_num_frames is None else video_num_frames.tolist()
        if len(num_frames) != num_videos or not all(0 < count <= max_frames for count in num_frames):
            raise ValueError(
                f"`video_num_frames` is {num_frames}, but `pixel_values_videos` holds {num_videos} videos of up to "
                f"{max_frames} frames: give each video a number from 1 to {max_frames}."
            )
        frames = torch.cat([video[:count] for video, count in zip(pixel_values_videos, num_frames)])
        output = self.encode_units(frames, output_compressor_attentions, **kwargs)
        tokens = torch.cat(output.pooler_output)
        output.pooler_output = list(tokens.split([count * self.config.num_image_tokens for count in num_frames]))
        return output

    def encode_units(
        self,
        pixel_values: torch.Tensor,
        output_compressor_attentions: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlavaMiniVisionOutput:
        """The vision half of the paper's figure, for units `(U, K, 3, height, width)` of whatever origin."""
        tower = self.vision_tower(pixel_values.flatten(0, 1), **kwargs)
        features = tower.last_hidden_state[:, 1:]  # (U * K, P, Dv), without the class token
        raster, whole = self.arrange_crops(features.unflatten(0, pixel_values.shape[:2]))
        compressed, attentions = self.compressor(raster, output_compressor_attentions)  # (U, CC, Dv)
        vision = torch.cat([raster, compressed] if whole is None else [raster, whole, compressed], dim=1)
        vision = self.multi_modal_projector(vision)  # (U, V + CC, D)
        tokens, key_values = self.prefusion(vision, num_outputs=self.config.num_image_tokens)  # (U, CC, D)
        return LlavaMiniVisionOutput(
            last_hidden_state=features,
            pooler_output=list(tokens),
            hidden_states=tower.hidden_states,
            attentions=tower.attentions,
            prefusion_key_values=key_values,
            compressor_attentions=attentions,
        )

    def arrange_crops(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Crop features `(U, K, P, Dv)` to the sub-images' common raster `(U, G * G, Dv)`, row-major, and the whole
        image `(U, P, Dv)`, which the compressor does not read; with N == 1 the image is the raster and there is no
        second part.
        """
        ratio, grid = self.config.resolution_ratio, self.config.vision_grid_size
        if ratio == 1:
            return features[:, 0], None
        tiles = features[:, :-1].unflatten(2, (grid, grid)).unflatten(1, (ratio, ratio))
        return tiles.transpose(2, 3).flatten(1, 4), features[:, -1]

    def check_crops(self, name: str, pixel_values: torch.Tensor, ndim: int) -> torch.Tensor:
        vision = self.config.vision_config
        expected = (self.config.num_crops, vision.num_channels, vision.image_size, vision.image_size)
        if pixel_values.ndim != ndim or tuple(pixel_values.shape[-4:]) != expected:
            leading = "images" if ndim == 5 else "videos, frames"
            raise ValueError(
                f"`{name}` has shape {tuple(pixel_values.shape)}, but has to be ({leading}, crops, channels, height, "
                f"width) ending in {expected}: `resolution_ratio` {self.config.resolution_ratio} makes "
                f"{self.config.num_crops} crop(s) an image. Use the processor saved with this model."
            )

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
            return input_ids == token_id
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

    def assign_units(self, modality: str, mask: torch.Tensor, vision: LlavaMiniVisionOutput) -> list[int]:
        """
        The row of each visual unit: rows take images or videos in order until their placeholders are filled.

        Raises:
            ValueError: placeholders and vision tokens don't match; the message names both counts.
        """
        sizes, rows = [len(tokens) for tokens in vision.pooler_output], []
        next_item = 0
        wanted = mask.sum(1).tolist()
        for row, missing in enumerate(wanted):
            while missing > 0 and next_item < len(sizes):
                missing -= sizes[next_item]
                rows += [row] * (sizes[next_item] // self.config.num_image_tokens)
                next_item += 1
            if missing:
                break
        else:
            if next_item == len(sizes):
                return rows
        raise ValueError(
            f"{modality.capitalize()} tokens and features don't match: the rows hold {wanted} {modality} placeholder "
            f"tokens ({sum(wanted)} in all), but the {len(sizes)} {modality}(s) passed need {sizes} "
            f"({sum(sizes)} in all). Write one placeholder an {modality} and let the processor expand it; its "
            f"`compressor_size` has to be the model's, {self.config.compressor_size}."
        )

    def fuse_text(
        self,
        inputs_embeds: torch.Tensor,
        text_fusion_mask: torch.Tensor,
        visuals: list[tuple[list[int], KeyValues]],
    ) -> torch.Tensor:
        """
        Lets the text read the patches: every kept token is replaced by its pre-fused embedding, averaged in float32
        over the row's images and frames. Left-out tokens are removed before and put back raw after.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(B, S, D)`): raw embeddings.
            text_fusion_mask (`torch.Tensor` of shape `(B, S)`): which text takes part.
            visuals: pairs of the units' rows and their pre-fusion keys and values.
        """
        units_of_row = Counter(row for rows, _ in visuals for row in rows)
        num_units = torch.tensor([units_of_row[row] for row in range(len(inputs_embeds))], device=inputs_embeds.device)
        text_fusion_mask = text_fusion_mask & (num_units > 0)[:, None]
        num_kept = text_fusion_mask.sum(1)
        longest = int(num_kept.max())
        if longest == 0:
            return inputs_embeds
        # Kept tokens first, in order; what is behind them is padding, which causality hides.
        positions = text_fusion_mask.logical_not().long().argsort(dim=1, stable=True)[:, :longest, None]
        positions = positions.expand(-1, -1, inputs_embeds.shape[-1])
        text = inputs_embeds.gather(1, positions)  # (B, T, D)
        total = torch.zeros_like(text, dtype=torch.float32)
        for rows, key_values in visuals:
            rows = torch.tensor(rows, device=text.device)
            fused, _ = self.prefusion(text[rows], key_values)  # (U, T, D)
            total = total.index_add(0, rows.to(total.device), fused.to(total))
        mean = (total / num_units.clamp(min=1)[:, None, None]).to(text.dtype)
        is_kept = torch.arange(longest, device=text.device) < num_kept[:, None]
        return inputs_embeds.scatter(1, positions, torch.where(is_kept[..., None], mean, text))

    def fuse_modalities(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        visuals: dict[str, LlavaMiniVisionOutput],
        text_fusion_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        What the language model sees, `(B, S, D)`: pre-fused text, and vision tokens at the placeholders. Rows
        without images and videos keep their raw embeddings.
        """
        text_fusion_mask = self.get_text_fusion_mask(input_ids, inputs_embeds, attention_mask, text_fusion_mask)
        placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
        for modality, mask in placeholders.items():
            if modality not in visuals:
                check_no_placeholders(modality, mask)
        rows_of = {name: self.assign_units(name, placeholders[name], vision) for name, vision in visuals.items()}
        fused = self.fuse_text(
            inputs_embeds, text_fusion_mask, [(rows_of[name], v.prefusion_key_values) for name, v in visuals.items()]
        )
        for modality, vision in visuals.items():
            mask = placeholders[modality].unsqueeze(-1)
            fused = fused.masked_scatter(mask.to(fused.device), torch.cat(vision.pooler_output).to(fused))
        return fused

    def encode_visuals(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        output_compressor_attentions: bool = False,
    ) -> dict[str, LlavaMiniVisionOutput]:
        """`{"image": ..., "video": ...}` with what is given, as pixels or already encoded."""
        visuals = {name: output for name, output in (mm_encoder_outputs or {}).items() if output is not None}
        for name, pixels in (("image", pixel_values), ("video", pixel_values_videos)):
            if pixels is not None and name in visuals:
                raise ValueError(f"Got {name} pixels and `mm_encoder_outputs['{name}']`: pass only one of them.")
        if pixel_values is not None:
            visuals["image"] = self.get_image_features(pixel_values, output_compressor_attentions, return_dict=True)
        if pixel_values_videos is not None:
            visuals["video"] = self.get_video_features(
                pixel_values_videos, video_num_frames, output_compressor_attentions, return_dict=True
            )
        return visuals

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
            output_compressor_attentions (`bool`): also return where the vision tokens looked.

        Raises:
            ValueError: inputs contradict each other; the message says which and what to do.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_prompt(input_ids)

        visuals = self.encode_visuals(
            pixel_values, pixel_values_videos, video_num_frames, mm_encoder_outputs, output_compressor_attentions
        )
        if (prompt := visuals.pop("prompt", None)) is not None:
            fused = prompt.last_hidden_state.to(inputs_embeds)
            inputs_embeds = torch.cat([fused, inputs_embeds[:, fused.shape[1] :]], dim=1)
        elif visuals:
            inputs_embeds = self.fuse_modalities(input_ids, inputs_embeds, attention_mask, visuals, text_fusion_mask)
        elif mm_encoder_outputs is None and past_key_values is None and input_ids is not None:
            for modality, mask in self.get_placeholder_mask(input_ids, inputs_embeds).items():
                check_no_placeholders(modality, mask)

        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        attentions = [v.compressor_attentions for v in visuals.values() if v.compressor_attentions is not None]
        return LlavaMiniModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=torch.cat(visuals["image"].pooler_output) if "image" in visuals else None,
            video_hidden_states=torch.cat(visuals["video"].pooler_output) if "video" in visuals else None,
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


def _tower_config(config: LlavaMiniConfig) -> PreTrainedConfig:
    """The tower's configuration cut to the layers that are read."""
    values = config.vision_config.to_dict() | {"num_hidden_layers": config.num_vision_layers}
    return type(config.vision_config).from_dict(values, attn_implementation=config.vision_config._attn_implementation)


__all__ = ["LlavaMiniPreTrainedModel", "LlavaMiniModel", "LlavaMiniForConditionalGeneration"]
