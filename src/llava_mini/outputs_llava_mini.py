# Copyright 2026 The llava-mini-hf authors. Licensed under the Apache License, Version 2.0.
"""What the models return. Shapes: see `modeling_llava_mini.py`."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .versions_llava_mini import MultimodalBaseModelOutputWithPast, MultimodalCausalLMOutputWithPast


@dataclass
class LlavaMiniVisionOutput(BaseModelOutputWithPooling):
    r"""
    What the model keeps of images or of videos; it does not depend on the text.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(U * K, P, Dv)`):
            Patch features of the selected tower layer, without the class token.
        pooler_output (`list[torch.Tensor]`):
            Vision tokens as they enter the language model, `(CC, D)` an image and `(frames * CC, D)` a video.
        prefusion_key_values (`tuple`):
            A pair of keys and values `(U, key_value_heads, V + CC, head_dim)` for every pre-fusion layer.
        compressor_attentions (`torch.Tensor` of shape `(U, CC, G * G)`, *optional*):
            Where each vision token looked, averaged over heads; with `output_compressor_attentions=True`.
        prefusion_dropped (`torch.Tensor` of shape `(U,)`, *optional*):
            How many of each unit's V patches pre-fusion did not read; with `prefusion_patches` or `prefusion_mass`.
            Keys and values of units that dropped more than another stand behind padding.
    """

    prefusion_key_values: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None
    compressor_attentions: torch.Tensor | None = None
    prefusion_dropped: torch.Tensor | None = None


class VisionTokensMixin:
    """The vision tokens of a forward pass in one tensor, as this package has always returned them."""

    @property
    def image_hidden_states(self) -> torch.Tensor | None:
        """Vision tokens of the images as they enter the language model, `(images * CC, D)`."""
        return None if self.image_outputs is None else torch.cat(list(self.image_outputs.pooler_output))

    @property
    def video_hidden_states(self) -> torch.Tensor | None:
        """Vision tokens of the videos' frames, `(frames * CC, D)`."""
        return None if self.video_outputs is None else torch.cat(list(self.video_outputs.pooler_output))


@dataclass
class LlavaMiniModelOutputWithPast(VisionTokensMixin, MultimodalBaseModelOutputWithPast):
    r"""
    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, S, D)`):
            Of the language model.
        cache (`Cache`, *optional*):
            Keys and values of the language model; also called `past_key_values`.
        hidden_states, attentions (`tuple[torch.Tensor]`, *optional*):
            Of the language model; with `output_hidden_states=True`, `output_attentions=True`.
        image_outputs, video_outputs (`LlavaMiniVisionOutput`, *optional*):
            The vision tokens of every image and video (`pooler_output`) and where they looked
            (`compressor_attentions`). What the tower made on the way is not kept, since a long video's would not fit:
            `get_image_features` and `get_video_features` return it.
        compressor_attentions (`torch.Tensor` of shape `(U, CC, G * G)`, *optional*):
            Where each vision token looked, images before frames; with `output_compressor_attentions=True`.
    """

    compressor_attentions: torch.Tensor | None = None


@dataclass
class LlavaMiniCausalLMOutputWithPast(VisionTokensMixin, MultimodalCausalLMOutputWithPast):
    r"""
    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*):
            Next-token loss on the positions whose label is not -100; with `labels`.
        logits (`torch.Tensor` of shape `(B, S, vocab_size)`):
            Scores of the language modeling head.
        cache, hidden_states, attentions, image_outputs, video_outputs, compressor_attentions:
            See `LlavaMiniModelOutputWithPast`.
    """

    compressor_attentions: torch.Tensor | None = None
